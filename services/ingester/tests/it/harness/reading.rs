//! What is read, and whether it is right.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::TryStreamExt;
use koios_block::BlockCache;
use koios_bucket::Blocks;
use koios_model::merge::sort_and_dedup_histograms;
use koios_model::{Histogram, Labels, Matchers, Metadata, TimeRange};
use koios_wire::{IngesterService, MetadataRequest, ReadEnd, ReadItem, ReadRequest, ServiceError};

use super::samples::{Samples, collect, merge, put, put_start};
use super::{PARTITION, World, tenant};

impl World {
    /// Reads a member's head.
    pub(crate) async fn read(&self, i: usize) -> Result<(Samples, ReadEnd), ServiceError> {
        self.read_knowing(i, 0).await
    }

    /// Reads the head of a member that has applied, or applies first, the deletions of a manifest version.
    pub(crate) async fn read_knowing(
        &self,
        i: usize,
        deletions_version: u64,
    ) -> Result<(Samples, ReadEnd), ServiceError> {
        let request = self.read_request(deletions_version);
        collect(self.node(i).read(request).await?).await
    }

    fn read_request(&self, deletions_version: u64) -> ReadRequest {
        ReadRequest {
            tenant: tenant(),
            partition: PARTITION,
            epoch: self.epoch(),
            matchers: Matchers::default(),
            range: TimeRange::ALL,
            labels_only: false,
            encoded: false,
            limit: 0,
            deletions_version,
            expiry: Default::default(),
        }
    }

    /// The native histograms of a member's head, whole, by series.
    pub(crate) async fn histograms(&self, i: usize) -> BTreeMap<Labels, Vec<(i64, Arc<Histogram>)>> {
        let mut items = self.node(i).read(self.read_request(0)).await.unwrap();
        let mut all = BTreeMap::new();
        while let Some(item) = items.try_next().await.unwrap() {
            let ReadItem::Series(series) = item else { break };
            for s in series {
                let mut histograms = Vec::new();
                for run in &s.runs {
                    run.decode_histograms(TimeRange::ALL, &mut histograms).unwrap();
                }
                sort_and_dedup_histograms(&mut histograms);
                if !histograms.is_empty() {
                    all.insert(s.labels, histograms);
                }
            }
        }
        all
    }

    /// The metrics of which a member's head has metadata.
    pub(crate) async fn described(&self, i: usize) -> Vec<String> {
        let found = self.metadata(i).await.into_iter();
        found.map(|(metric, _)| metric).collect()
    }

    /// The metadata of a member's head, by metric.
    pub(crate) async fn metadata(&self, i: usize) -> Vec<(String, Metadata)> {
        let request = MetadataRequest {
            tenant: tenant(),
            partition: PARTITION,
            epoch: self.epoch(),
            metric: String::new(),
            deletions_version: 0,
        };
        self.node(i).metadata(request).await.unwrap()
    }

    /// What a querier answers: the head, and blocks where the head may have forgotten.
    pub(crate) async fn query(&self, i: usize) -> Samples {
        let (mut all, end) = self.read(i).await.unwrap();
        if end.forgotten_below_ms > i64::MIN {
            let below = TimeRange::new(i64::MIN, end.forgotten_below_ms - 1);
            merge(&mut all, self.blocks(end.manifest_floor, below).await);
        }
        all
    }

    /// The samples of all live blocks, as of a manifest version not below `floor`; as of the newest when it is 0.
    pub(crate) async fn blocks(&self, floor: u64, range: TimeRange) -> Samples {
        let manifest = match floor {
            0 => self.manifests.probe(&tenant()).await.unwrap(),
            _ => self.manifests.at_least(&tenant(), floor).await.unwrap(),
        };
        let blocks = Blocks::new(
            self.manifests.bucket().clone(),
            Arc::new(BlockCache::new(1 << 20, 1 << 20)),
            1 << 20,
        );
        let mut all = Samples::new();
        for block in manifest.overlapping(range) {
            let masks: Vec<_> = manifest
                .masking(block)
                .map(|t| (t.matchers().unwrap(), t.range))
                .collect();
            let reader = blocks.open(&tenant(), block).await.unwrap();
            let series = reader.select(&Matchers::default(), range).await.unwrap();
            let samples = reader.read_samples(&series, range).await.unwrap();
            let histograms = reader.read_histograms(&series).await.unwrap();
            for ((s, columns), chunks) in series.iter().zip(samples).zip(histograms) {
                let name = s.labels.metric_name().to_owned();
                let masked = |t: i64| {
                    let of_series =
                        |(m, r): &(Matchers, TimeRange)| r.contains(t) && m.matches(s.labels.as_ref());
                    masks.iter().any(of_series)
                };
                let (mut decoded, mut starts) = (Vec::new(), columns.starts.clone());
                for chunk in chunks {
                    chunk.decode_histograms(range, &mut decoded).unwrap();
                    chunk.decode_starts(range, &mut starts).unwrap();
                }
                starts.retain(|start| range.contains(start.0) && !masked(start.0));
                starts
                    .into_iter()
                    .for_each(|start| put_start(&mut all, &name, start));
                for (t, h) in decoded.into_iter().filter(|(t, _)| !masked(*t)) {
                    put(&mut all, (name.clone(), t), h.sum.to_bits());
                }
                for (&t, v) in columns.timestamps.iter().zip(&columns.values) {
                    if range.contains(t) && !masked(t) {
                        put(&mut all, (name.clone(), t), v.to_bits());
                    }
                }
            }
        }
        all
    }

    /// Metrics and times of all exemplars in listed blocks.
    pub(crate) async fn exemplars_of_blocks(&self) -> BTreeSet<(String, i64)> {
        let manifest = self.manifests.probe(&tenant()).await.unwrap();
        let cache = Arc::new(BlockCache::new(1 << 20, 1 << 20));
        let blocks = Blocks::new(self.manifests.bucket().clone(), cache, 1 << 20);
        let mut found = BTreeSet::new();
        for block in &manifest.blocks {
            let reader = blocks.open(&tenant(), block).await.unwrap();
            let scan = reader.scan_exemplars(Matchers::default(), TimeRange::ALL);
            let batches: Vec<_> = scan.try_collect().await.unwrap();
            for (labels, all) in batches.into_iter().flatten() {
                found.extend(all.iter().map(|e| (labels.metric_name().to_owned(), e.t)));
            }
        }
        found
    }

    /// Nothing acknowledged is missing, and nothing is there that was not sent (I1, I2, I3).
    pub(crate) fn check(&self, found: &Samples) {
        for (at, bits) in &self.acked {
            let got = found.get(at);
            assert!(got.is_some(), "acknowledged sample {at:?} is missing");
            if self.sent[at].len() == 1 {
                assert_eq!(got, Some(bits), "{at:?}");
            }
        }
        for (at, bits) in found {
            assert!(self.sent[at].contains(bits), "phantom {at:?}");
        }
    }
}
