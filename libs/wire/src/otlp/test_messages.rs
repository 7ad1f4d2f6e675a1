//! OTLP messages for tests, written field by field so that they can be wrong.

/// A protobuf message under construction.
#[derive(Clone, Debug, Default)]
pub(super) struct Message(pub(super) Vec<u8>);

fn varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

impl Message {
    pub(super) fn number(mut self, field: u32, n: u64) -> Self {
        varint(&mut self.0, u64::from(field) << 3);
        varint(&mut self.0, n);
        self
    }

    pub(super) fn signed(self, field: u32, n: i64) -> Self {
        self.number(field, ((n << 1) ^ (n >> 63)) as u64)
    }

    pub(super) fn fixed(mut self, field: u32, n: u64) -> Self {
        varint(&mut self.0, u64::from(field) << 3 | 1);
        self.0.extend_from_slice(&n.to_le_bytes());
        self
    }

    pub(super) fn double(self, field: u32, v: f64) -> Self {
        self.fixed(field, v.to_bits())
    }

    pub(super) fn bytes(mut self, field: u32, b: impl AsRef<[u8]>) -> Self {
        varint(&mut self.0, u64::from(field) << 3 | 2);
        varint(&mut self.0, b.as_ref().len() as u64);
        self.0.extend_from_slice(b.as_ref());
        self
    }

    pub(super) fn packed(self, field: u32, numbers: &[u64]) -> Self {
        let mut packed = Vec::new();
        numbers.iter().for_each(|n| varint(&mut packed, *n));
        self.bytes(field, packed)
    }

    /// Packed numbers of eight bytes.
    pub(super) fn fixed_list(self, field: u32, numbers: &[u64]) -> Self {
        let packed: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        self.bytes(field, packed)
    }

    pub(super) fn message(self, field: u32, m: &Self) -> Self {
        self.bytes(field, &m.0)
    }

    pub(super) fn messages(self, field: u32, all: &[Self]) -> Self {
        all.iter().fold(self, |m, part| m.message(field, part))
    }

    /// String attributes.
    pub(super) fn attributes(self, field: u32, pairs: &[(&str, &str)]) -> Self {
        pairs.iter().fold(self, |m, (key, value)| {
            m.message(field, &attribute(key, &Self::default().bytes(1, value)))
        })
    }
}

pub(super) fn attribute(key: &str, value: &Message) -> Message {
    Message::default().bytes(1, key).message(2, value)
}

/// An `AnyValue` that is a list.
pub(super) fn list(items: &[Message]) -> Message {
    Message::default().message(5, &Message::default().messages(1, items))
}

/// An `AnyValue` that is a map.
pub(super) fn map(items: &[(&str, Message)]) -> Message {
    let items = items.iter().map(|(key, value)| attribute(key, value));
    let items = items.fold(Message::default(), |m, item| m.message(1, &item));
    Message::default().message(6, &items)
}

/// A request with one resource, one scope without a name, and these metrics.
pub(super) fn request(resource: &[(&str, &str)], metrics: &[Message]) -> Vec<u8> {
    let resource = Message::default().attributes(1, resource);
    let scope = Message::default().messages(2, metrics);
    let of_resource = Message::default().message(1, &resource).message(2, &scope);
    Message::default().message(1, &of_resource).0
}
