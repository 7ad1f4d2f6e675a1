//! Series that are taken out of a request after they were taken in.

use koios_model::{BatchColumns, LabelsRef, PartitionId, SeriesHash};

use crate::intake::{Part, Taken};
use crate::rejection::{Rejection, RejectionReport, describe};
use crate::series_limit::{ByPartition, Decision};

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
        let (by_metric, refused, undecided) = (
            &decision.refused_by_metric,
            &decision.refused,
            &decision.undecided,
        );
        let rejection = |hash: &SeriesHash| match by_metric.get(hash) {
            Some(rejection) => Some(&**rejection),
            None => refused.contains(hash).then_some(&of_all),
        };
        for part in self.parts.values_mut() {
            let before = self.report.samples;
            self.exemplars_dropped += report(&part.columns, rejection, &mut self.report);
            // Of a data point that makes several series each that is refused counts.
            self.points_rejected += self.report.samples - before;
            let rows = part.columns.hashes.iter();
            self.undecided += rows.filter(|hash| undecided.contains(hash)).count() as u64;
            part.take_out(|hash| undecided.contains(hash) || rejection(hash).is_some());
        }
        self.parts.retain(|_, part| !part.columns.is_empty());
    }
}

impl Part {
    fn take_out(&mut self, out: impl Fn(&SeriesHash) -> bool) {
        let hashes = &self.columns.hashes;
        let is_out = |at: usize| hashes.get(at).is_some_and(&out);
        if !(0..hashes.len()).any(is_out) {
            return;
        }
        let places = std::mem::take(&mut self.left_out).into_iter().enumerate();
        self.left_out = places
            .filter_map(|(at, place)| (!is_out(at)).then_some(place))
            .collect();
        self.new.retain(|new| !out(&new.hash));
        self.columns = self.columns.without(is_out);
        self.content = None;
        self.encode();
    }
}

/// Reports the refusal of series that stand in columns with their labels. Gives how many exemplars they have.
pub(crate) fn report<'a>(
    columns: &BatchColumns,
    rejection: impl Fn(&SeriesHash) -> Option<&'a Rejection>,
    report: &mut RejectionReport,
) -> u64 {
    let mut histograms = columns.histograms.iter().peekable();
    for (at, series) in columns.series().enumerate() {
        let mut samples = series.timestamps.len() as u64;
        while histograms.next_if(|h| h.series as usize == at).is_some() {
            samples += 1;
        }
        if let Some(rejection) = rejection(&series.hash) {
            report.series += 1;
            report.add(rejection.clone(), samples, || describe_packed(series.labels));
        }
    }
    let hash_of = |series: u32| columns.hashes.get(series as usize);
    let exemplars = columns.exemplars.iter();
    let dropped = exemplars.filter(|e| hash_of(e.series).is_some_and(|hash| rejection(hash).is_some()));
    dropped.count() as u64
}

fn describe_packed(labels: Option<LabelsRef<'_>>) -> String {
    let labels: Vec<_> = labels.into_iter().flat_map(|l| l.iter_bytes()).collect();
    describe(&labels)
}
