//! Every single-bit flip in every byte of a small block and of a manifest is noticed, and so is every truncation (I11).
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;

use bytes::Bytes;
use common::{bucket_over, entry, id, tenant, writer};
use futures::TryStreamExt;
use koios_block::{
    BlockCache, BlockOptions, BlockParts, BlockReader, BlockSeries, BlockWriter, EXEMPLARS_PART,
    HISTOGRAMS_PART, Layout, META_PART, RESOLUTION_5M_MS, SAMPLES_5M_PART, SAMPLES_PART, SERIES_PART,
    SeriesColumns, TIMES_PART,
};
use koios_bucket::{Blocks, Bucket, Error, Nonce, Tombstone};
use koios_model::summary::downsample;
use koios_model::{Exemplar, Histogram, Labels, Matcher, Matchers, Sample, TimeRange, spans_of, stale_nan};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStoreExt, PutPayload};

const STEP_MS: i64 = 15_000;

fn options(n: u64, resolution_ms: i64) -> BlockOptions {
    BlockOptions {
        resolution_ms,
        layout: Layout {
            page_rows: 16,
            group_rows: 40,
            ..Layout::default()
        },
        ..BlockOptions::new(id(n), tenant(), TimeRange::new(0, 7_199_999))
    }
}

fn series(i: usize) -> Labels {
    Labels::from_pairs([("__name__", "m".to_owned()), ("i", format!("{i:02}"))])
}

fn floats(i: usize) -> Vec<Sample> {
    let value = |k: i64| match k {
        7 => stale_nan(),
        k if i.is_multiple_of(2) => k as f64 / 3.0,
        k => k as f64 / 10.0,
    };
    (0..24)
        .map(|k| Sample {
            t: k * STEP_MS,
            v: value(k),
        })
        .collect()
}

fn histograms() -> Vec<(i64, Arc<Histogram>)> {
    let histogram = |k: i64| {
        let (positive_spans, positive_buckets) = spans_of([(-1, k as f64), (3, 2.0)]);
        Histogram {
            schema: 3,
            count: k as f64 + 2.0,
            sum: 12.5,
            zero_threshold: 0.001,
            positive_spans,
            positive_buckets,
            ..Histogram::default()
        }
    };
    (30..40).map(|k| (k * STEP_MS, Arc::new(histogram(k)))).collect()
}

/// A block with samples, histograms and exemplars.
fn block_of_samples() -> BlockParts {
    let mut writer = BlockWriter::new(options(1, 0)).unwrap();
    for i in 0..6 {
        let (times, values): (Vec<i64>, Vec<f64>) = floats(i).iter().map(|s| (s.t, s.v)).unzip();
        let histograms = histograms();
        let columns = SeriesColumns {
            timestamps: &times,
            values: &values,
            histograms: if i == 3 { &histograms } else { &[] },
            ..SeriesColumns::default()
        };
        writer.push_columns(&series(i), None, columns).unwrap();
        let exemplar = Exemplar {
            t: 15_000,
            v: 0.5,
            labels: Labels::from_pairs([("trace_id", "abcdef")]),
        };
        writer.push_exemplars(&series(i), &[exemplar]).unwrap();
    }
    writer.finish().unwrap().unwrap()
}

/// A block with summaries.
fn block_of_summaries() -> BlockParts {
    let mut writer = BlockWriter::new(BlockOptions {
        histogram_sums: true,
        ..options(2, RESOLUTION_5M_MS)
    })
    .unwrap();
    for i in 0..6 {
        let histograms = histograms();
        let mut kept = downsample(
            &floats(i),
            if i == 3 { &histograms } else { &[] },
            RESOLUTION_5M_MS,
        );
        for summary in kept.summaries.iter_mut().filter(|s| s.histograms > 0) {
            summary.histogram_sum = Some(Arc::clone(&histograms[0].1));
        }
        writer.push_downsampled(&series(i), None, &kept).unwrap();
    }
    writer.finish().unwrap().unwrap()
}

/// A bucket with one block, and what is behind it.
struct Stored {
    store: Arc<InMemory>,
    bucket: Bucket,
    block: BlockParts,
}

impl Stored {
    async fn new(block: BlockParts) -> Self {
        let store = Arc::new(InMemory::new());
        let bucket = bucket_over(store.clone(), 1);
        bucket.upload_block(&tenant(), &block).await.unwrap();
        let listed = entry(&block.meta);
        bucket
            .commit(&tenant(), &writer(1), |m| m.add_block(listed.clone()))
            .await
            .unwrap();
        Self { store, bucket, block }
    }

    fn part(&self, name: &str) -> Path {
        Path::from(format!("prefix/team-a/blocks/{}/{name}", self.block.meta.block))
    }

    async fn read(&self, path: &Path) -> Bytes {
        self.store.get(path).await.unwrap().bytes().await.unwrap()
    }

    async fn write(&self, path: &Path, bytes: Vec<u8>) {
        self.store.put(path, PutPayload::from(bytes)).await.unwrap();
    }

    /// The block, open, with caches that know nothing.
    async fn open(&self) -> BlockReader {
        let cache = BlockCache::new(1 << 20, 1 << 20).with_series_and_samples(1 << 20, 1 << 20);
        let blocks = Blocks::new(self.bucket.clone(), Arc::new(cache), 1 << 20);
        blocks.open(&tenant(), &entry(&self.block.meta)).await.unwrap()
    }

    /// The block, open, with nothing read of it yet.
    fn unread(&self) -> BlockReader {
        let cache = BlockCache::new(1 << 20, 1 << 20).with_series_and_samples(1 << 20, 1 << 20);
        let source = self.bucket.range_read(&tenant(), self.block.meta.block);
        let meta = Arc::new(self.block.meta.clone());
        BlockReader::open(Arc::new(source), meta, Arc::new(cache)).unwrap()
    }

    /// Damages an object in every way there is; `noticed` says whether a look at it finds that.
    async fn damage(&self, path: &Path, noticed: impl AsyncFn(&Damage) -> bool) -> usize {
        let sound = self.read(path).await;
        assert!(!noticed(&Damage::None).await, "{path} is sound");
        for damage in Damage::all(sound.len()) {
            self.write(path, damage.of(&sound)).await;
            assert!(noticed(&damage).await, "{damage:?} of {path} is not noticed");
        }
        self.write(path, sound.to_vec()).await;
        assert!(!noticed(&Damage::None).await, "{path} is sound again");
        sound.len()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Damage {
    None,
    Flip { byte: usize, bit: u8 },
    Cut { bytes: usize },
}

impl Damage {
    fn all(bytes: usize) -> impl Iterator<Item = Self> {
        let flips = (0..bytes).flat_map(|byte| (0..8).map(move |bit| Self::Flip { byte, bit }));
        flips.chain((0..bytes).map(|bytes| Self::Cut { bytes }))
    }

    fn of(self, sound: &[u8]) -> Vec<u8> {
        let mut bytes = sound.to_vec();
        match self {
            Self::None => {}
            Self::Flip { byte, bit } => bytes[byte] ^= 1 << bit,
            Self::Cut { bytes: kept } => bytes.truncate(kept),
        }
        bytes
    }
}

/// What reading one part of a block gives.
async fn read_part(block: &BlockReader, part: &str, series: &[BlockSeries]) -> koios_block::Result<usize> {
    let count = match part {
        SERIES_PART => block.select(&Matchers::default(), TimeRange::ALL).await?.len(),
        SAMPLES_PART | TIMES_PART => block.read_samples(series, TimeRange::ALL).await?.len(),
        SAMPLES_5M_PART => block.read_summaries(series).await?.len(),
        HISTOGRAMS_PART => block.read_histograms(series).await?.len(),
        EXEMPLARS_PART => {
            let exemplars = block.scan_exemplars(Matchers::default(), TimeRange::ALL);
            exemplars.try_collect::<Vec<_>>().await?.concat().len()
        }
        other => panic!("{other} is no part of these blocks"),
    };
    Ok(count)
}

/// Damages every part and `meta.json`; gives how many bytes they have.
async fn every_part(block: BlockParts) -> usize {
    let stored = Stored::new(block).await;
    let mut bytes = 0;
    for (part, _) in &stored.block.parts {
        // What leads to the part is read while all is sound; the part itself only when it is damaged, so that it is in no cache.
        let block = stored.unread();
        let series = match part.as_str() {
            SERIES_PART => Vec::new(),
            _ => block.select(&Matchers::default(), TimeRange::ALL).await.unwrap(),
        };
        let noticed = async |damage: &Damage| {
            if *damage == Damage::None {
                let fresh = stored.open().await;
                assert_eq!(read_part(&fresh, part, &series).await.unwrap(), 6, "{part}");
                koios_block::verify(&fresh).await.unwrap();
                return false;
            }
            let read = read_part(&block, part, &series).await;
            let is_corrupt = read.as_ref().is_err_and(koios_block::Error::is_corrupt);
            assert!(is_corrupt, "{damage:?} of {part}: {:?}", read.err());
            // However it is opened.
            if matches!(damage, Damage::Flip { byte, bit } if byte.is_multiple_of(16) && byte / 16 % 8 == usize::from(*bit))
            {
                let fresh = stored.open().await;
                let read = read_part(&fresh, part, &series).await;
                assert!(read.is_err_and(|e| e.is_corrupt()), "{damage:?} of {part}");
            }
            // The checksum of the whole, too, for what is looked at without cells.
            if matches!(damage, Damage::Flip { byte, bit } if byte % 8 == usize::from(*bit)) {
                let source = stored.bucket.range_read(&tenant(), stored.block.meta.block);
                let checked = koios_block::verify_checksums(&source, block.meta()).await;
                assert!(checked.is_err_and(|e| e.is_corrupt()), "{damage:?} of {part}");
            }
            true
        };
        bytes += stored.damage(&stored.part(part), noticed).await;
    }
    let listed = entry(&stored.block.meta);
    let noticed = async |_: &Damage| match stored.bucket.block_meta(&tenant(), &listed).await {
        Ok(meta) => {
            assert_eq!(meta, stored.block.meta);
            false
        }
        Err(e) => matches!(e, Error::Corrupt { .. }),
    };
    bytes + stored.damage(&stored.part(META_PART), noticed).await
}

#[tokio::test]
async fn i11_every_flipped_bit_of_a_block_of_samples_is_noticed() {
    let block = block_of_samples();
    let names: Vec<&str> = block.parts.iter().map(|(name, _)| name.as_str()).collect();
    for part in [
        SERIES_PART,
        SAMPLES_PART,
        TIMES_PART,
        HISTOGRAMS_PART,
        EXEMPLARS_PART,
    ] {
        assert!(names.contains(&part), "{names:?}");
    }
    let bytes = Box::pin(every_part(block)).await;
    assert!(bytes > 4096, "{bytes}");
}

#[tokio::test]
async fn i11_every_flipped_bit_of_a_block_of_summaries_is_noticed() {
    let block = block_of_summaries();
    assert!(block.parts.iter().any(|(name, _)| name == SAMPLES_5M_PART));
    let bytes = Box::pin(every_part(block)).await;
    assert!(bytes > 4096, "{bytes}");
}

fn tombstone() -> Tombstone {
    let matchers = Matchers(vec![Matcher::equal("__name__", "m")]);
    Tombstone::new(Nonce(7), &matchers, TimeRange::new(0, 1000))
}

#[tokio::test]
async fn i11_every_flipped_bit_of_a_manifest_is_noticed() {
    let stored = Stored::new(block_of_samples()).await;
    let newest = stored
        .bucket
        .commit(&tenant(), &writer(2), |m| {
            m.add_tombstone(tombstone());
            m.note_import(id(9), 12, None);
            m.bury(id(5), vec![META_PART.to_owned()]);
            Ok(())
        })
        .await
        .unwrap();
    let version = |n: u64| Path::from(format!("prefix/team-a/manifest/{n:020}.json"));
    let noticed = async |damage: &Damage| {
        let read = stored.bucket.latest(&tenant()).await;
        if let Ok(read) = &read {
            assert_eq!(read, &newest, "{damage:?}");
        }
        matches!(read, Err(Error::Corrupt { .. }))
    };
    let bytes = stored.damage(&version(2), noticed).await;
    assert!(bytes > 500, "{bytes}");
    // What is left of a version whose content was dropped.
    stored.bucket.drop_history(&tenant(), 2).await.unwrap();
    let noticed = async |_: &Damage| {
        let read = stored.bucket.manifest(&tenant(), 1).await;
        assert!(!matches!(read, Ok(Some(_))));
        matches!(read, Err(Error::Corrupt { .. }))
    };
    stored.damage(&version(1), noticed).await;
}

#[tokio::test]
async fn i11_a_damaged_hint_leads_to_the_newest_version() {
    let stored = Stored::new(block_of_samples()).await;
    let hint = Path::from("prefix/team-a/manifest/latest");
    for _ in 0..20 {
        stored
            .bucket
            .commit(&tenant(), &writer(1), |_| Ok(()))
            .await
            .unwrap();
    }
    let sound = stored.read(&hint).await;
    assert!(sound.starts_with(b"21 "), "{sound:?}");
    let newest = stored.bucket.latest(&tenant()).await.unwrap();
    for damage in Damage::all(sound.len()) {
        stored.write(&hint, damage.of(&sound)).await;
        assert_eq!(
            stored.bucket.latest(&tenant()).await.unwrap(),
            newest,
            "{damage:?}"
        );
    }
}

#[tokio::test]
async fn i11_every_flipped_bit_of_a_control_backup_is_noticed() {
    let stored = Stored::new(block_of_samples()).await;
    let state = b"the state of the control plane";
    stored.bucket.put_control_backup(1, state).await.unwrap();
    let path = Path::from(format!("prefix/__cluster/control/{:020}.bin", 1));
    let noticed = async |_: &Damage| match stored.bucket.control_backup().await {
        Ok(Some((1, read))) => {
            assert_eq!(&read[..], state);
            false
        }
        other => matches!(other, Err(Error::Corrupt { .. })),
    };
    stored.damage(&path, noticed).await;
}
