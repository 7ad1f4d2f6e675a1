//! Reads a place whole, as queriers do, and has what it gives judged.

use std::collections::BTreeMap;

use futures::StreamExt;
use koios_model::{Labels, Matchers, TimeRange};
use koios_wire::{
    ExemplarsRequest, IngesterService, MetadataRequest, ReadEnd, ReadItem, ReadRequest, ReadStream,
    ServiceError,
};

use crate::judge::{Answer, is_needed, merge};
use crate::traffic::Place;
use crate::values::{Collected, Found, is_exemplar, put_exemplars};
use crate::world::{Process, World};

impl World {
    /// Reads a place whole and judges the answer. Without blocks only what the head has not forgotten.
    pub(crate) async fn read(
        &self,
        process: &Process,
        place: &Place,
        with_blocks: bool,
    ) -> Result<(), ServiceError> {
        self.read_metadata(process, place).await?;
        let before = self.judge.lock().oracle(place);
        let (moment, version) = {
            let deletions = self.deletions.lock();
            (deletions.moment, deletions.version(&place.1))
        };
        // First: what the head lets go of them later is in blocks below the floor that the samples come with.
        let exemplars = self.read_exemplars(process, place, version).await?;
        let request = ReadRequest {
            tenant: place.1.clone(),
            partition: place.0,
            epoch: self.epoch(place.0),
            matchers: Matchers::default(),
            range: TimeRange::ALL,
            labels_only: false,
            encoded: self.rng.below(2) == 0,
            limit: 0,
            deletions_version: version,
            expiry: Default::default(),
        };
        let stream = process.ingester.read(request).await?;
        let (mut series, end) = self.collect(stream).await?;
        series.extend(exemplars);
        // A head that lost a record is complete with the blocks that cover it only.
        let mut complete_from = match self.judge.lock().was_flipped() {
            true => i64::MAX,
            false => end.forgotten_below_ms,
        };
        if with_blocks {
            complete_from = i64::MIN;
            let floor = end.manifest_floor.max(end.deletions_version);
            for block in self.listed(&place.1, floor).await {
                let mut found = self.masked_block(&place.1, &block).await;
                if !is_needed(&block, &end, place.0) {
                    // Of exemplars heads keep the newest only, so that all blocks are asked for theirs.
                    found.retain(|labels, _| is_exemplar(labels));
                }
                merge(&mut series, &found, place.0);
            }
        }
        let samples: usize = series.values().map(Vec::len).sum();
        let answer = Answer {
            series,
            complete_from,
        };
        let name = format!("read {} {}", place.0, place.1);
        self.trace.note(format!("{name}: {samples} samples"));
        {
            let deletions = self.deletions.lock();
            if deletions.moment != moment || deletions.is_open(place) {
                // What is being deleted may be there or not.
                return Ok(());
            }
            if let Err(back) = deletions.check(place, &answer.series) {
                self.trace.violated(format!("{name}: {back}"));
            }
        }
        let durable = process.ingester.status().log_settled;
        let judged = self
            .judge
            .lock()
            .read(place, &before, &answer, process.damage(), durable);
        match judged {
            Ok(None) => {}
            Ok(Some(lost)) => self
                .trace
                .note(format!("{name}: {lost} was lost with a flipped bit")),
            Err(violation) => self.trace.violated(format!("{name}: {violation}")),
        }
        Ok(())
    }

    async fn read_metadata(&self, process: &Process, place: &Place) -> Result<(), ServiceError> {
        let before = self.judge.lock().metadata(place);
        let request = MetadataRequest {
            tenant: place.1.clone(),
            partition: place.0,
            epoch: self.epoch(place.0),
            metric: String::new(),
            deletions_version: 0,
        };
        let told = process.ingester.metadata(request).await?;
        if let Err(violation) = self.judge.lock().told(place, &before, &told) {
            let (partition, tenant) = place;
            self.trace
                .violated(format!("metadata of {partition} {tenant}: {violation}"));
        }
        Ok(())
    }

    async fn read_exemplars(
        &self,
        process: &Process,
        place: &Place,
        deletions_version: u64,
    ) -> Result<Found, ServiceError> {
        let request = ExemplarsRequest {
            tenant: place.1.clone(),
            partition: place.0,
            epoch: self.epoch(place.0),
            matchers: Matchers::default(),
            range: TimeRange::ALL,
            deletions_version,
        };
        let mut found = Found::new();
        for (labels, exemplars) in process.ingester.exemplars(request).await? {
            put_exemplars(&mut found, &labels, &exemplars);
        }
        Ok(found)
    }

    /// The samples of a head: its series once each, in order.
    async fn collect(&self, mut stream: ReadStream) -> Result<(Found, ReadEnd), ServiceError> {
        let mut all = Found::new();
        let mut last: Option<Labels> = None;
        while let Some(item) = stream.next().await {
            let series = match item? {
                ReadItem::Series(series) => series,
                ReadItem::End(end) => return Ok((all, end)),
            };
            for s in series {
                if last.as_ref().is_some_and(|l| *l >= s.labels) {
                    self.trace
                        .violated(format!("series {} is returned out of order (I2)", s.labels));
                }
                let mut collected = Collected::default();
                for run in &s.runs {
                    if let Err(e) = collected.add(run) {
                        self.trace.violated(format!("{}: {e} (I2)", s.labels));
                    }
                }
                collected.put(&mut all, &s.labels);
                last = Some(s.labels);
            }
        }
        self.trace.violated("a read ended without its end");
        Ok((all, ReadEnd::default()))
    }

    /// All listed blocks of a place, and what they cover.
    pub(crate) async fn in_blocks(&self, place: &Place) -> Found {
        let mut all: Found = BTreeMap::new();
        for block in self.listed(&place.1, 0).await {
            merge(&mut all, &self.masked_block(&place.1, &block).await, place.0);
        }
        all
    }
}
