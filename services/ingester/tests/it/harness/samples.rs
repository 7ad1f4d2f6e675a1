//! Samples as tests compare them.

use std::collections::BTreeMap;

use futures::StreamExt;
use koios_model::merge::winner;
use koios_model::{Labels, TimeRange};
use koios_wire::{ReadEnd, ReadItem, ReadStream, ServiceError};

/// Samples by (series, time), values as bits.
pub(crate) type Samples = BTreeMap<(String, i64), u64>;

pub(super) fn put(all: &mut Samples, at: (String, i64), bits: u64) {
    let kept = all.entry(at).or_insert(bits);
    *kept = winner(f64::from_bits(*kept), f64::from_bits(bits)).to_bits();
}

/// What a sample is sent with as its start timestamp; 0 for none.
pub(super) fn start_of(series: &str, t: i64) -> i64 {
    match series {
        "a" | "b" | "hist" => (t.div_euclid(64) * 64 - 1).max(1),
        _ => 0,
    }
}

/// Puts a start timestamp among samples, as one of a series of its own; of several the largest stays, as of values.
pub(super) fn put_start(all: &mut Samples, series: &str, (t, start): (i64, i64)) {
    if start != 0 {
        put(all, (format!("{series} start"), t), start.cast_unsigned());
    }
}

/// How many there are, start timestamps not counted.
pub(crate) fn without_starts(all: &Samples) -> usize {
    all.keys().filter(|(name, _)| !name.ends_with(" start")).count()
}

pub(crate) fn merge(all: &mut Samples, more: Samples) {
    more.into_iter().for_each(|(at, bits)| put(all, at, bits));
}

pub(crate) async fn collect(mut stream: ReadStream) -> Result<(Samples, ReadEnd), ServiceError> {
    let mut all = Samples::new();
    let mut last: Option<Labels> = None;
    while let Some(item) = stream.next().await {
        match item? {
            ReadItem::Series(series) => {
                for s in series {
                    assert!(last.as_ref().is_none_or(|l| *l < s.labels), "label order");
                    for run in s.runs {
                        let (mut ts, mut vs) = (Vec::new(), Vec::new());
                        run.decode_range(TimeRange::ALL, &mut ts, &mut vs).unwrap();
                        let mut histograms = Vec::new();
                        run.decode_histograms(TimeRange::ALL, &mut histograms).unwrap();
                        let mut starts = Vec::new();
                        run.decode_starts(TimeRange::ALL, &mut starts).unwrap();
                        let name = s.labels.metric_name();
                        starts
                            .into_iter()
                            .for_each(|start| put_start(&mut all, name, start));
                        let sums = histograms.into_iter().map(|(t, h)| (t, h.sum));
                        for (t, v) in ts.into_iter().zip(vs).chain(sums) {
                            put(&mut all, (s.labels.metric_name().to_owned(), t), v.to_bits());
                        }
                    }
                    last = Some(s.labels);
                }
            }
            ReadItem::End(end) => return Ok((all, end)),
        }
    }
    panic!("stream without end");
}
