//! The ends of parts that `meta.json` repeats: read from there, not from the part, and no less checked.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{Counting, Model, bits, incompressible, open, open_over, read_all, write};
use koios_block::{BlockMeta, BlockParts, Layout, MemoryBlock, PartEnd, SAMPLES_PART, verify_checksums};
use koios_model::{Labels, Matcher, Matchers, TimeRange};

/// Two series whose samples are more than what comes with an end.
fn model() -> Model {
    let samples = |i: i64| (0..6_000).map(move |k| (k * 15_000, incompressible(i * 6_000 + k)));
    let labels = |i: i64| Labels::from_pairs([("__name__", "m"), ("i", &i.to_string())]);
    (0..2).map(|i| (labels(i), samples(i).collect())).collect()
}

fn with_end(parts: &BlockParts, end: Option<PartEnd>) -> BlockParts {
    let mut parts = parts.clone();
    let of_samples = parts.meta.parts.iter_mut().find(|p| p.name == SAMPLES_PART);
    of_samples.unwrap().end = end;
    parts
}

#[tokio::test]
async fn what_meta_json_has_of_a_part_nobody_fetches() {
    let parts = write(1, Layout::default(), &model());
    let samples = parts.meta.part(SAMPLES_PART).unwrap();
    let end = samples.end.clone().unwrap();
    assert!(end.zstd.len() < 2_000, "{} bytes", end.zstd.len());
    assert!(end.from > samples.bytes / 2, "{} of {}", end.from, samples.bytes);
    // It stays through JSON, and is told to those who fetch ends with `meta.json`.
    let meta = BlockMeta::from_json(parts.meta.block, &parts.meta.to_json()).unwrap();
    assert_eq!(meta, parts.meta);
    let told = |meta: &BlockMeta| {
        let all = meta.summaries().into_iter();
        all.filter(|p| p.end_in_meta).map(|p| p.name).collect::<Vec<_>>()
    };
    assert_eq!(told(&meta), [SAMPLES_PART]);
    let without = with_end(&parts, None);
    assert!(told(&without.meta).is_empty());
    assert!(
        !String::from_utf8(without.meta.to_json().to_vec())
            .unwrap()
            .contains("\"end\"")
    );
    // One request less, and the same samples.
    let mut costs = Vec::new();
    for parts in [&parts, &without] {
        let source = Counting::new(parts);
        let block = open_over(source.clone(), parts);
        let matchers = Matchers(vec![Matcher::equal("i", "1")]);
        let series = block.select(&matchers, TimeRange::ALL).await.unwrap();
        let read = block.read_samples(&series, TimeRange::ALL).await.unwrap();
        costs.push((read, source.take()));
    }
    assert_eq!(costs[0].0, costs[1].0);
    assert_eq!(
        costs[0].1.0 + 1,
        costs[1].1.0,
        "{:?} {:?}",
        costs[0].1,
        costs[1].1
    );
}

#[tokio::test]
async fn i11_an_end_that_is_another_is_told_and_one_that_is_none_does_no_harm() {
    let model = model();
    let parts = write(1, Layout::default(), &model);
    let source = MemoryBlock::new(&parts);
    verify_checksums(&source, &parts.meta).await.unwrap();
    let end = parts.meta.part(SAMPLES_PART).unwrap().end.clone().unwrap();
    let garbage = PartEnd {
        zstd: b"no frame"[..].into(),
        ..end.clone()
    };
    let short = PartEnd {
        from: end.from + 1,
        ..end
    };
    for end in [garbage, short] {
        let other = with_end(&parts, Some(end));
        // What cannot be an end is not looked at.
        let read = read_all(&open(&other)).await.unwrap();
        assert_eq!(bits(&read), bits(&model));
        let told = verify_checksums(&source, &other.meta).await.unwrap_err();
        assert!(
            told.is_corrupt() && told.to_string().contains("another end"),
            "{told}"
        );
    }
    // Damage where it came from is told.
    let mut damaged = parts.clone();
    let (_, bytes) = damaged
        .parts
        .iter_mut()
        .find(|(name, _)| name == SAMPLES_PART)
        .unwrap();
    let mut changed = bytes.to_vec();
    *changed.last_mut().unwrap() ^= 1;
    *bytes = changed.into();
    let told = verify_checksums(&MemoryBlock::new(&damaged), &damaged.meta)
        .await
        .unwrap_err();
    assert!(told.is_corrupt(), "{told}");
    // An end outside of its part is none that a writer writes.
    let outside = PartEnd {
        from: u64::MAX,
        zstd: Default::default(),
    };
    let json = with_end(&parts, Some(outside)).meta.to_json();
    assert!(
        BlockMeta::from_json(parts.meta.block, &json)
            .unwrap_err()
            .is_corrupt()
    );
}
