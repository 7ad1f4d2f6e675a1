//! A block of which `meta.json` repeats the end of a part, and whose series are numbered by steps.

use std::collections::BTreeMap;

use koios_block::{BlockParts, BlockWriter, SAMPLES_PART};
use koios_model::Labels;

use super::common::{id, incompressible, options};
use super::{Read, read_back, stored};

const STEP_MS: i64 = 15_000;
/// With the others more than comes with an end.
const LONG: i64 = 9_000;

fn labels(i: i64) -> Labels {
    Labels::from_pairs([("__name__", "m"), ("i", &format!("{i:02}"))])
}

/// One series has most samples, others share the last of its times.
fn read_of(i: i64) -> Read {
    let first = if i == 3 { 0 } else { LONG - 50 };
    let sample = |k: i64| (k * STEP_MS, incompressible(i * LONG + k).to_bits());
    Read {
        floats: (first..LONG).map(sample).collect(),
        ..Read::default()
    }
}

fn write() -> BlockParts {
    let mut writer = BlockWriter::new(options(55)).unwrap();
    for i in 0..20 {
        let floats = read_of(i).floats.into_iter();
        let (timestamps, values): (Vec<i64>, Vec<f64>) = floats.map(|(t, v)| (t, f64::from_bits(v))).unzip();
        writer
            .push_series(&labels(i), None, &timestamps, &values)
            .unwrap();
    }
    writer.finish().unwrap().unwrap()
}

#[test]
fn a_block_whose_meta_json_has_an_end_is_read_as_it_was_written() {
    let block = stored("v5-ends", id(55), write);
    assert!(block.meta().part(SAMPLES_PART).unwrap().end.is_some());
    let want: BTreeMap<Labels, Read> = (0..20).map(|i| (labels(i), read_of(i))).collect();
    assert_eq!(read_back(&block), want);
}
