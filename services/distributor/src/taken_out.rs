//! Series that are taken out of a request after they were taken in.

use std::collections::{HashMap, HashSet};

use koios_model::{BatchColumns, LabelsRef, PartitionId, SeriesHash, describe_labels};

use crate::intake::Part;
use crate::rejection::{Rejection, RejectionReport};
use crate::series_limit::{ByPartition, Decision};
use crate::taken::Taken;

impl Taken {
    /// What members are to be asked about, if it comes to that.
    pub(crate) fn unknown(&mut self) -> ByPartition<std::sync::Arc<[SeriesHash]>> {
        let parts = self.parts.iter_mut().filter(|(_, part)| !part.unknown.is_empty());
        let unknown = |(id, part): (&PartitionId, &mut Part)| (*id, std::mem::take(&mut part.unknown).into());
        parts.map(unknown).collect()
    }

    /// Keeps what was decided to get in.
    pub(crate) fn settle(&mut self, mut decision: Decision, limit: u64) {
        for (partition, part) in &mut self.parts {
            part.reserved = decision.reserved.remove(partition);
        }
        self.metric_room = decision.metric_room.take();
        let of_all = Rejection::SeriesLimit {
            limit,
            now: decision.count,
        };
        let undecided = &decision.undecided;
        let rejection = |hash: &SeriesHash| decision.refusal(hash, &of_all);
        let out_points = self.points_out(rejection, undecided);
        for part in self.parts.values_mut() {
            let (columns, points) = (&part.columns, &part.points);
            let of_point = |at| points.at(at).and_then(|point| out_points.get(&point));
            let of_row = |at, hash: &SeriesHash| rejection(hash).or_else(|| of_point(at).copied().flatten());
            self.exemplars_dropped += report(columns, of_row, &mut self.report);
            let rows = || columns.hashes.iter().enumerate();
            let rejected = rows().filter(|(at, hash)| of_row(*at, hash).is_some());
            self.points
                .refused
                .extend(rejected.filter_map(|(at, _)| points.at(at)));
            self.undecided += rows().filter(|(_, hash)| undecided.contains(hash)).count() as u64;
            let is_out = |(at, hash): (usize, &SeriesHash)| {
                undecided.contains(hash) || rejection(hash).is_some() || of_point(at).is_some()
            };
            let out: Vec<bool> = rows().map(is_out).collect();
            part.take_out(&out);
        }
        self.parts.retain(|_, part| !part.columns.is_empty());
        if let Some(deltas) = &mut self.deltas {
            deltas.take_back(|point| out_points.contains_key(&point));
        }
    }

    /// The data points that were added to totals and cannot be taken whole, with the reason if they are refused. What a
    /// total has must be in all of its series, or in none.
    fn points_out<'r>(
        &self,
        rejection: impl Fn(&SeriesHash) -> Option<&'r Rejection>,
        undecided: &HashSet<SeriesHash>,
    ) -> HashMap<u32, Option<&'r Rejection>> {
        let deltas = self.deltas.iter().flat_map(|deltas| deltas.points());
        let deltas: HashSet<u32> = deltas.collect();
        let mut out = HashMap::new();
        if deltas.is_empty() {
            return out;
        }
        for part in self.parts.values() {
            for (at, hash) in part.columns.hashes.iter().enumerate() {
                let Some(point) = part.points.at(at).filter(|point| deltas.contains(point)) else {
                    continue;
                };
                match rejection(hash) {
                    Some(rejection) => drop(out.insert(point, Some(rejection))),
                    None if undecided.contains(hash) => drop(out.entry(point).or_insert(None)),
                    None => {}
                }
            }
        }
        out
    }
}

impl Part {
    /// Takes out the series that are so marked.
    fn take_out(&mut self, out: &[bool]) {
        if !out.contains(&true) {
            return;
        }
        let is_out = |at: usize| out.get(at).copied().unwrap_or(false);
        let places = std::mem::take(&mut self.left_out).into_iter().enumerate();
        self.left_out = places
            .filter_map(|(at, place)| (!is_out(at)).then_some(place))
            .collect();
        self.points = self.points.without(is_out);
        self.columns = self.columns.without(is_out);
        let left: HashSet<SeriesHash> = self.columns.hashes.iter().copied().collect();
        self.new.retain(|new| left.contains(&new.hash));
        self.content = None;
        self.encode();
    }
}

/// Reports the refusal of series that stand in columns with their labels, which their places and references tell. Gives how
/// many exemplars they have.
pub(crate) fn report<'a>(
    columns: &BatchColumns,
    rejection: impl Fn(usize, &SeriesHash) -> Option<&'a Rejection>,
    report: &mut RejectionReport,
) -> u64 {
    let mut histograms = columns.histograms.iter().peekable();
    for (at, series) in columns.series().enumerate() {
        let mut samples = series.timestamps.len() as u64;
        while histograms.next_if(|h| h.series as usize == at).is_some() {
            samples += 1;
        }
        if let Some(rejection) = rejection(at, &series.hash) {
            report.series += 1;
            report.add(rejection.clone(), samples, || describe_packed(series.labels));
        }
    }
    let is_rejected = |at: usize| {
        let hash = columns.hashes.get(at);
        hash.is_some_and(|hash| rejection(at, hash).is_some())
    };
    let exemplars = columns.exemplars.iter();
    exemplars.filter(|e| is_rejected(e.series as usize)).count() as u64
}

fn describe_packed(labels: Option<LabelsRef<'_>>) -> String {
    describe_labels(labels.into_iter().flat_map(|l| l.iter_bytes()))
}
