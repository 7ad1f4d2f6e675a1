//! Bytes that pass their checksums and were written by nobody: the worst a bucket can hold.

use std::sync::Arc;

use bytes::Bytes;
use futures::executor::block_on;
use koios_model::{Labels, Matcher, Matchers, TenantId, TimeRange};
use proptest::prelude::*;

use crate::meta::PartMeta;
use crate::{
    BlockCache, BlockId, BlockMeta, BlockOptions, BlockParts, BlockReader, BlockWriter, Error, Layout,
    MemoryBlock, Result, verify,
};

fn block() -> BlockParts {
    let mut options = BlockOptions::new(BlockId::new(1, 1), TenantId::anonymous(), TimeRange::ALL);
    options.layout = Layout {
        page_rows: 64,
        group_rows: 128,
        ..Layout::default()
    };
    let mut writer = BlockWriter::new(options).unwrap();
    for i in 0..12 {
        let labels = Labels::from_pairs([("__name__", "m"), ("i", &format!("{i:02}"))]);
        let t: Vec<i64> = (0..50).collect();
        let v: Vec<f64> = t
            .iter()
            .map(|&t| t as f64 / if i % 2 == 0 { 3.0 } else { 10.0 })
            .collect();
        writer.push_series(&labels, None, &t, &v).unwrap();
    }
    writer.finish().unwrap().unwrap()
}

/// Puts `bytes` in place of a part, with checksums that agree.
fn forge(parts: &BlockParts, part: usize, bytes: Vec<u8>) -> BlockParts {
    let mut forged = parts.clone();
    let name = forged.parts[part].0.clone();
    let rows = forged.meta.parts[part].rows;
    forged.meta.parts[part] = PartMeta::of(&name, rows, &bytes);
    forged.parts[part].1 = Bytes::from(bytes);
    forged
}

fn read(parts: &BlockParts) -> Result<()> {
    let cache = Arc::new(BlockCache::new(1 << 20, 1 << 20).with_decoded(1 << 20, 1 << 20));
    let source = Arc::new(MemoryBlock::new(parts));
    let block = BlockReader::open(source, Arc::new(parts.meta.clone()), cache)?;
    block_on(async {
        // Also out of the cache.
        for _ in 0..2 {
            for (matchers, range) in [
                (Matchers::default(), TimeRange::ALL),
                (Matchers(vec![Matcher::equal("i", "07")]), TimeRange::new(10, 20)),
            ] {
                let series = block.select(&matchers, range).await?;
                block.read_samples(&series, TimeRange::new(10, 20)).await?;
                block.label_values("i", &matchers, range).await?;
                block.label_names(&matchers, range).await?;
            }
        }
        verify(&block).await
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn i12_changed_bytes_with_agreeing_checksums_never_panic(
        part in 0usize..2,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), any::<bool>()), 1..6),
    ) {
        let good = block();
        let mut bytes = good.parts[part].1.to_vec();
        for (at, byte, near_the_end) in changes {
            // Footer and indexes are at the end, and hold what is dangerous.
            let from = if near_the_end { bytes.len() / 2 } else { 0 };
            let at = from + at.index(bytes.len() - from);
            bytes[at] = byte;
        }
        // Anything but a panic; what is not noticed has to be harmless.
        let _ = read(&forge(&good, part, bytes));
    }

    #[test]
    fn i12_arbitrary_bytes_are_corrupt(part in 0usize..2, bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let mut bytes = bytes;
        bytes.extend_from_slice(b"PAR1");
        let e = read(&forge(&block(), part, bytes)).unwrap_err();
        prop_assert!(e.is_corrupt(), "{e}");
    }

    #[test]
    fn i12_arbitrary_metadata_is_refused(json in ".{0,200}") {
        prop_assert!(BlockMeta::from_json(BlockId::new(1, 1), json.as_bytes()).is_err());
    }
}

#[test]
fn metadata_survives_json_and_is_refused_when_it_is_newer_or_anothers() {
    let meta = block().meta;
    let json = meta.to_json();
    assert_eq!(BlockMeta::from_json(meta.block, &json).unwrap(), meta);
    let other = BlockId::new(1, 2);
    assert!(BlockMeta::from_json(other, &json).unwrap_err().is_corrupt());
    let newer = BlockMeta {
        format: 2,
        ..meta.clone()
    };
    let e = BlockMeta::from_json(meta.block, &newer.to_json()).unwrap_err();
    assert!(
        matches!(
            e,
            Error::Version {
                found: 2,
                supported: 1,
                ..
            }
        ),
        "{e}"
    );
    let mut short = meta.clone();
    short.parts[0].cells.pop();
    assert!(
        BlockMeta::from_json(meta.block, &short.to_json())
            .unwrap_err()
            .is_corrupt()
    );
}

#[test]
fn a_part_that_ends_early_is_corrupt_at_every_length() {
    let good = block();
    for part in 0..2 {
        let whole = &good.parts[part].1;
        for len in (0..whole.len()).step_by(13) {
            let e = read(&forge(&good, part, whole[..len].to_vec())).unwrap_err();
            assert!(e.is_corrupt(), "{len}: {e}");
        }
    }
}
