//! What must be returned, per place; what a flipped bit may cost.

use std::collections::BTreeMap;

use koios_bucket::ManifestBlock;
use koios_model::{Labels, Metadata, PartitionId};
use koios_testkit::oracle::{Oracle, Violation};
use koios_wire::ReadEnd;

use crate::metadata::MetadataJudge;
use crate::traffic::{Place, Sent, is_of};
use crate::values::{Found, Point, Value, is_exemplar, merge_points};

/// What was promised so far.
#[derive(Debug, Default)]
pub(crate) struct Judge {
    oracles: BTreeMap<Place, Oracle<Point>>,
    metadata: BTreeMap<Place, MetadataJudge>,
    sent: Vec<Sent>,
    /// Flipped bits that have cost nothing yet. One costs a record at most, which is reported.
    flips: usize,
    pub(crate) totals: Totals,
}

/// What a run did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) acknowledged: u64,
    pub(crate) refused: u64,
    pub(crate) reads: u64,
    /// What was found by them, each time it was.
    pub(crate) histograms: u64,
    pub(crate) exemplars: u64,
    pub(crate) described: u64,
    pub(crate) lives: u64,
    pub(crate) faults: u64,
    pub(crate) flips: u64,
    pub(crate) lost_to_flips: u64,
    /// Bits that flipped of what could be missing, and starts that did not use the snapshot then.
    pub(crate) spare_flips: u64,
    pub(crate) snapshots_refused: u64,
    pub(crate) clock_steps: u64,
    pub(crate) flushes: u64,
    pub(crate) truncated: u64,
    /// Batches that came again with labels.
    pub(crate) labelled: u64,
    pub(crate) deletions: u64,
    /// Those of them that were taken back.
    pub(crate) taken_back: u64,
}

impl Totals {
    pub(crate) fn add(&mut self, other: &Self) {
        self.acknowledged += other.acknowledged;
        self.refused += other.refused;
        self.reads += other.reads;
        self.histograms += other.histograms;
        self.exemplars += other.exemplars;
        self.described += other.described;
        self.lives += other.lives;
        self.faults += other.faults;
        self.flips += other.flips;
        self.lost_to_flips += other.lost_to_flips;
        self.spare_flips += other.spare_flips;
        self.snapshots_refused += other.snapshots_refused;
        self.clock_steps += other.clock_steps;
        self.flushes += other.flushes;
        self.truncated += other.truncated;
        self.labelled += other.labelled;
        self.deletions += other.deletions;
        self.taken_back += other.taken_back;
    }

    /// That enough happened for the runs to mean something.
    pub(crate) fn check(&self) {
        let each = [
            self.acknowledged / 1000,
            self.refused / 100,
            self.reads / 1000,
            self.histograms / 10_000,
            self.exemplars / 10_000,
            self.described / 1000,
            self.faults / 50,
            self.flips / 10,
            self.lost_to_flips,
            self.spare_flips / 10,
            self.snapshots_refused / 5,
            self.clock_steps / 100,
            self.flushes / 100,
            self.truncated / 100,
            self.labelled / 100,
            self.deletions / 40,
            self.taken_back / 10,
        ];
        assert!(each.iter().all(|n| *n > 0), "too little happened: {self:?}");
    }
}

impl Judge {
    pub(crate) fn sent(&mut self, sent: &Sent) {
        let metadata = self.metadata.entry(sent.place.clone()).or_default();
        metadata.sent(sent.admission_ms(), &sent.metadata);
        self.oracles
            .entry(sent.place.clone())
            .or_default()
            .sent(&sent.series);
        self.sent.push(sent.clone());
    }

    pub(crate) fn acknowledged(&mut self, sent: &Sent) {
        let metadata = self.metadata.entry(sent.place.clone()).or_default();
        metadata.acknowledged(sent.admission_ms(), &sent.metadata);
        self.oracles
            .entry(sent.place.clone())
            .or_default()
            .acknowledged(&sent.series);
        self.totals.acknowledged += 1;
    }

    /// A sample was deleted; values of it that were sent later are owed still.
    pub(crate) fn deleted(
        &mut self,
        place: &Place,
        labels: &Labels,
        t: i64,
        owed: impl Iterator<Item = Value>,
    ) {
        let oracle = self.oracles.entry(place.clone()).or_default();
        let point = |v| [(labels.clone(), vec![Point { t, v }])];
        oracle.lost(&point(Value::Float(0.0)));
        owed.for_each(|v| oracle.acknowledged(&point(v)));
    }

    /// A sample is there again: these values of it are owed.
    pub(crate) fn returned(
        &mut self,
        place: &Place,
        labels: &Labels,
        t: i64,
        owed: impl Iterator<Item = Value>,
    ) {
        let oracle = self.oracles.entry(place.clone()).or_default();
        owed.for_each(|v| oracle.acknowledged(&[(labels.clone(), vec![Point { t, v }])]));
    }

    pub(crate) fn flipped(&mut self) {
        self.flips += 1;
        self.totals.flips += 1;
    }

    /// Whether an operator may be needed: only when a disk has lied.
    pub(crate) fn was_flipped(&self) -> bool {
        self.totals.flips > 0
    }

    pub(crate) fn oracle(&self, place: &Place) -> Oracle<Point> {
        self.oracles.get(place).cloned().unwrap_or_default()
    }

    pub(crate) fn metadata(&self, place: &Place) -> MetadataJudge {
        self.metadata.get(place).cloned().unwrap_or_default()
    }

    /// Judges the metadata that was told by what was acknowledged before.
    pub(crate) fn told(
        &mut self,
        place: &Place,
        before: &MetadataJudge,
        told: &[(String, Metadata)],
    ) -> Result<(), Violation> {
        self.totals.described += told.len() as u64;
        self.metadata(place).read(before, told, self.was_flipped())
    }

    /// Judges what was read by what was acknowledged before, and notes it. Says which batch was lost to a flipped bit.
    pub(crate) fn read(
        &mut self,
        place: &Place,
        before: &Oracle<Point>,
        got: &Answer,
        damage: u64,
        durable: bool,
    ) -> Result<Option<String>, Violation> {
        self.totals.reads += 1;
        let histograms = got.series.values().flatten();
        let histograms = histograms.filter(|p| matches!(p.v, Value::Histogram(_)));
        self.totals.histograms += histograms.count() as u64;
        self.totals.exemplars += got.series.keys().filter(|l| is_exemplar(l)).count() as u64;
        let now = self.oracles.entry(place.clone()).or_default();
        now.check_genuine(&got.series)?;
        let mut excused = None;
        if let Err(violation) = got.check_complete(before) {
            let lost = match damage {
                0 => None,
                // As few as explain it: each flipped bit is an excuse once. Two can hit both places that name a series in a
                // segment, and then every batch whose series cannot be told is reported.
                _ => (1..=self.flips.max(if self.flips > 1 { damage as usize } else { 0 }))
                    .find_map(|n| self.lost_to_flips(place, before, got, n)),
            };
            let lost = lost.ok_or(violation)?;
            let now = self.oracles.entry(place.clone()).or_default();
            lost.iter().for_each(|l| now.lost(&l.series));
            self.flips = self.flips.saturating_sub(lost.len());
            self.totals.lost_to_flips += lost.len() as u64;
            let name = |l: &Sent| format!("#{}", l.batch.header().sequence);
            excused = Some(lost.iter().map(name).collect::<Vec<_>>().join(", "));
        }
        if durable {
            let now = self.oracles.entry(place.clone()).or_default();
            now.read(&got.series);
        }
        Ok(excused)
    }

    /// The batches, at most so many, without which the answer is complete. What was not acknowledged may have been read.
    fn lost_to_flips(
        &self,
        place: &Place,
        before: &Oracle<Point>,
        got: &Answer,
        flips: usize,
    ) -> Option<Vec<Sent>> {
        let (labels, t) = match got.check_complete(before) {
            Ok(()) => return Some(Vec::new()),
            Err(Violation::Missing { labels, t } | Violation::Loser { labels, t, .. }) => (labels, t),
            Err(_) => return None,
        };
        let left = flips.checked_sub(1)?;
        let has_it = |sent: &&Sent| {
            let mut series = sent.series.iter().filter(|(l, _)| *l == labels);
            sent.place == *place && series.any(|(_, samples)| samples.iter().any(|s| s.t == t))
        };
        self.sent.iter().filter(has_it).find_map(|sent| {
            let mut without = before.clone();
            without.lost(&sent.series);
            let mut lost = self.lost_to_flips(place, &without, got, left)?;
            lost.push(sent.clone());
            Some(lost)
        })
    }
}

/// What a read gave.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) series: Found,
    /// Older samples are not asked for here; nor, unless blocks were asked as well, exemplars.
    pub(crate) complete_from: i64,
}

impl Answer {
    fn check_complete(&self, oracle: &Oracle<Point>) -> Result<(), Violation> {
        let with_blocks = self.complete_from == i64::MIN;
        let is_owed = |labels: &Labels, t| t >= self.complete_from && (with_blocks || !is_exemplar(labels));
        oracle.check_complete_where(&self.series, is_owed)
    }
}

/// Adds a partition's series, keeping the winner of each timestamp.
pub(crate) fn merge(all: &mut Found, more: &Found, partition: PartitionId) {
    for (labels, points) in more.iter().filter(|(l, _)| is_of(l, partition)) {
        merge_points(all.entry(labels.clone()).or_default(), points);
    }
}

/// Whether a querier reads a block beside a head: unless the head has forgotten nothing of its time and held every batch
/// that it covers.
pub(crate) fn is_needed(block: &ManifestBlock, end: &ReadEnd, partition: PartitionId) -> bool {
    let covers = block.covers.get(&partition).filter(|c| !c.is_empty());
    let held = covers.is_some_and(|c| end.held.includes(c));
    block.range.min < end.forgotten_below_ms || !held
}
