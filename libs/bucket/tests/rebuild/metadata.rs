//! Blocks that no version lists and whose `meta.json` is not what this version of the program wrote.

use std::collections::BTreeMap;
use std::sync::Arc;

use koios_block::{BlockCache, BlockMeta, BlockOptions, BlockParts, BlockWriter, META_PART, SAMPLES_PART};
use koios_bucket::{Blocks, Rebuild, Result};
use koios_model::{Labels, Matchers, TimeRange};
use object_store::ObjectStoreExt;
use object_store::path::Path;

use super::Rig;
use super::common::{id, tenant};

/// What there is of each series: times, and the bits of values.
type Read = BTreeMap<Labels, Vec<(i64, u64)>>;

/// A block with so many samples that `meta.json` has the end of their part.
fn with_an_end() -> BlockParts {
    let options = BlockOptions::new(id(1), tenant(), TimeRange::new(0, 7_199_999));
    let mut w = BlockWriter::new(options).unwrap();
    let times: Vec<i64> = (0..12_000).map(|k| k * 600).collect();
    let values: Vec<f64> = times.iter().map(|&t| (t as f64).sqrt()).collect();
    let labels = Labels::from_pairs([("__name__", "m")]);
    w.push_series(&labels, None, &times, &values).unwrap();
    let parts = w.finish().unwrap().unwrap();
    assert!(parts.meta.part(SAMPLES_PART).unwrap().end.is_some());
    parts
}

impl Rig {
    async fn put_meta(&self, json: Vec<u8>) {
        let path = Path::from(format!("prefix/team-a/blocks/{}/{META_PART}", id(1)));
        self.store.put(&path, json.into()).await.unwrap();
    }

    /// What is read of all blocks that a plan lists.
    async fn read(&self, plan: &Rebuild) -> Result<Read> {
        let blocks = Blocks::new(
            self.bucket.clone(),
            Arc::new(BlockCache::new(1 << 20, 1 << 20)),
            0,
        );
        let mut all = Read::new();
        for entry in &plan.blocks {
            let block = blocks.open(&tenant(), entry).await?;
            let series = block.select(&Matchers::default(), TimeRange::ALL).await?;
            let samples = block.read_samples(&series, TimeRange::ALL).await?;
            for (of_series, samples) in series.into_iter().zip(samples) {
                let values = samples.values.iter().map(|v| v.to_bits());
                all.insert(
                    of_series.labels,
                    samples.timestamps.into_iter().zip(values).collect(),
                );
            }
        }
        Ok(all)
    }
}

#[tokio::test]
async fn i11_a_bit_that_flips_in_the_end_of_a_part_changes_no_answer_of_a_block_that_is_listed() {
    let rig = Rig::new();
    let parts = with_an_end();
    rig.upload(&parts).await;
    let right = rig
        .read(&rig.bucket.plan_rebuild(&tenant()).await.unwrap())
        .await
        .unwrap();
    assert_eq!(right.values().map(Vec::len).sum::<usize>(), 12_000);
    let json = parts.meta.to_json().to_vec();
    let text = String::from_utf8(json.clone()).unwrap();
    let from = text.find("\"end\":").unwrap();
    let to = from + text[from..].find('}').unwrap() + 1;
    // All of the place and of the beginning of the frame, and then one bit of every other character.
    let bits = (from * 8..(from + 40) * 8).chain(((from + 40) * 8..to * 8).step_by(17));
    for bit in bits {
        let mut json = json.clone();
        json[bit / 8] ^= 1 << (bit % 8);
        rig.put_meta(json).await;
        let plan = rig.bucket.plan_rebuild(&tenant()).await.unwrap();
        let is_named = plan
            .left_out
            .iter()
            .any(|(block, why)| *block == id(1) && why.may_lose());
        match is_named {
            true => assert!(plan.blocks.is_empty(), "bit {bit}"),
            false => {
                let read = rig.read(&plan).await.unwrap();
                assert!(read == right, "bit {bit}: {plan:?}");
            }
        }
    }
}

#[tokio::test]
async fn what_a_later_version_says_of_a_part_keeps_no_rebuilt_manifest_from_listing_its_block() {
    let rig = Rig::new();
    let parts = with_an_end();
    rig.upload(&parts).await;
    let right = rig
        .read(&rig.bucket.plan_rebuild(&tenant()).await.unwrap())
        .await
        .unwrap();
    let text = String::from_utf8(parts.meta.to_json().to_vec()).unwrap();
    let later = text.replacen("\"rows\":", "\"later\":[1],\"rows\":", 1);
    assert_ne!(later, text);
    // It says the same otherwise.
    let meta = BlockMeta::from_json(id(1), later.as_bytes()).unwrap();
    assert_eq!(meta, parts.meta);
    rig.put_meta(later.into_bytes()).await;
    let plan = rig.bucket.plan_rebuild(&tenant()).await.unwrap();
    rig.bucket.rebuild_manifest(&plan, "test").await.unwrap();
    assert_eq!(rig.names().await, [1]);
    assert_eq!(rig.read(&plan).await.unwrap(), right);
}
