//! Remote write messages, written field by field so that they can be wrong.

use koios_wire::pb::prometheus as pb;
use prost::Message as _;

/// A protobuf message under construction.
#[derive(Clone, Debug, Default)]
pub(crate) struct Message(pub(crate) Vec<u8>);

fn varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

impl Message {
    pub(crate) fn number(mut self, field: u32, n: u64) -> Self {
        varint(&mut self.0, u64::from(field) << 3);
        varint(&mut self.0, n);
        self
    }

    pub(crate) fn signed(self, field: u32, n: i64) -> Self {
        self.number(field, ((n << 1) ^ (n >> 63)) as u64)
    }

    pub(crate) fn double(self, field: u32, v: f64) -> Self {
        self.fixed(field, v.to_bits())
    }

    pub(crate) fn fixed(mut self, field: u32, n: u64) -> Self {
        varint(&mut self.0, u64::from(field) << 3 | 1);
        self.0.extend_from_slice(&n.to_le_bytes());
        self
    }

    pub(crate) fn bytes(mut self, field: u32, b: impl AsRef<[u8]>) -> Self {
        varint(&mut self.0, u64::from(field) << 3 | 2);
        varint(&mut self.0, b.as_ref().len() as u64);
        self.0.extend_from_slice(b.as_ref());
        self
    }

    pub(crate) fn message(self, field: u32, m: &Message) -> Self {
        self.bytes(field, &m.0)
    }

    pub(crate) fn packed(self, field: u32, numbers: &[u64]) -> Self {
        let mut packed = Vec::new();
        numbers.iter().for_each(|n| varint(&mut packed, *n));
        self.bytes(field, packed)
    }

    pub(crate) fn span(self, field: u32, offset: i64, length: u64) -> Self {
        self.message(field, &Message::default().signed(1, offset).number(2, length))
    }
}

/// A series of version 1 from raw label bytes and samples.
pub(crate) fn series(labels: &[(&[u8], &[u8])], samples: &[(i64, f64)]) -> Message {
    let mut out = Message::default();
    for (name, value) in labels {
        out = out.message(1, &Message::default().bytes(1, name).bytes(2, value));
    }
    for (t, v) in samples {
        out = out.message(2, &Message::default().double(1, *v).number(2, *t as u64));
    }
    out
}

/// A request of version 1.
pub(crate) fn request(series: &[Message]) -> Vec<u8> {
    series.iter().fold(Message::default(), |m, s| m.message(1, s)).0
}

/// A request of version 2.
pub(crate) fn request_v2(symbols: &[&str], series: &[Message]) -> Vec<u8> {
    let table = symbols.iter().fold(Message::default(), |m, s| m.bytes(4, s));
    series.iter().fold(table, |m, s| m.message(5, s)).0
}

/// A series of version 2.
pub(crate) fn series_v2(refs: &[u64], samples: &[(i64, f64)]) -> Message {
    samples
        .iter()
        .fold(Message::default().packed(1, refs), |m, (t, v)| {
            m.message(2, &Message::default().double(1, *v).number(2, *t as u64))
        })
}

/// A good request as other programs encode it.
pub(crate) fn good(metric: &str, samples: &[(i64, f64)]) -> Vec<u8> {
    let label = |name: &str, value: &str| pb::Label {
        name: name.to_owned(),
        value: value.to_owned(),
    };
    let sample = |&(timestamp, value): &(i64, f64)| pb::Sample { value, timestamp };
    pb::WriteRequest {
        timeseries: vec![pb::TimeSeries {
            labels: vec![label("__name__", metric), label("job", "test")],
            samples: samples.iter().map(sample).collect(),
        }],
        metadata: Vec::new(),
    }
    .encode_to_vec()
}

pub(crate) fn snappy(bytes: &[u8]) -> Vec<u8> {
    snap::raw::Encoder::new().compress_vec(bytes).unwrap()
}
