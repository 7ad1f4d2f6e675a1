//! How the log names series: by small ids, each bound to labels in the segment that uses it.
//!
//! Every segment can be read alone: an id stands only in records after two others of the same segment that bind it. Two, so
//! that one damaged place costs no record but its own: what a later one means is still told by the other binding.
//!
//! Ids are counted per segment and (partition, tenant). While running, the head remembers a series' id in its mark.

use std::collections::HashMap;
use std::ops::Range;

use koios_head::{Head, Resolved};
use koios_model::{BatchColumns, SeriesHash};
use koios_wire::{Batch, BatchError, LoggedBatch, LoggedSeries};

/// Bindings before an id stands alone.
const BINDINGS: u64 = 2;
/// Ids take 30 bits of a mark; more series than that do not fit into a segment.
const ID_BITS: u32 = 30;
/// Most ids that a replay keeps of one segment and (partition, tenant), four bytes each.
const IDS_MAX: usize = 1 << 26;
/// No place.
const NOWHERE: u32 = u32::MAX;

/// Where the log last bound a series: `segment << 32 | bindings << 30 | id`, 0 for nowhere, for segments count from 1.
#[derive(Clone, Copy)]
struct Mark(u64);

impl Mark {
    fn new(segment: u32, bindings: u64, id: u32) -> Self {
        Self(u64::from(segment) << 32 | bindings << ID_BITS | u64::from(id))
    }

    /// The id and how often it is bound, if that is in `segment`.
    fn in_segment(self, segment: u32) -> Option<(u32, u64)> {
        let id = self.0 as u32 & ((1 << ID_BITS) - 1);
        let bindings = (self.0 as u32) >> ID_BITS;
        ((self.0 >> 32) as u32 == segment).then_some((id, u64::from(bindings)))
    }
}

/// The ids of one (partition, tenant) in one segment.
#[derive(Debug, Default)]
pub(crate) struct LogIds {
    segment: u32,
    next: u32,
    /// The same of the segment before: a group that was prepared for a new one may be refused, and the log stays.
    before: (u32, u32),
    /// By id, while replaying: the series it is bound to in the head.
    bound: Vec<u32>,
}

impl LogIds {
    fn enter(&mut self, segment: u32) {
        if self.segment == segment {
            return;
        }
        let now = (self.segment, self.next);
        (self.segment, self.next) = match self.before {
            (before, next) if before == segment => (segment, next),
            _ => (segment, 0),
        };
        self.before = now;
        self.bound.clear();
    }

    /// Names the series of a batch that will stand in `segment`, and binds what is not bound there twice.
    pub(crate) fn name(
        &mut self,
        segment: u32,
        head: &Head,
        columns: &BatchColumns,
        resolved: &Resolved,
    ) -> LoggedSeries {
        self.enter(segment);
        let mut out = LoggedSeries {
            ids: Vec::with_capacity(columns.series_count()),
            ..LoggedSeries::default()
        };
        for (at, place) in resolved.places().enumerate() {
            let mark = Mark(place.map_or(0, |place| head.mark_at(place)));
            let bound = mark.in_segment(segment);
            let id = bound.map_or_else(|| self.take(), |(id, _)| id);
            out.ids.push(id);
            if bound.is_none_or(|(_, bindings)| bindings < BINDINGS) {
                let hash = columns.hashes.get(at).copied().unwrap_or(SeriesHash(0));
                out.bind(at, hash, |bytes| match (columns.labels_at(at), place) {
                    (Some(labels), _) => bytes.extend_from_slice(labels.packed()),
                    (None, Some(place)) => head.write_labels_at(place, bytes),
                    (None, None) => {}
                });
            }
        }
        out
    }

    fn take(&mut self) -> u32 {
        let id = self.next;
        self.next += 1;
        id
    }

    /// Gives the columns of a replayed batch their series, as far as they can be told.
    pub(crate) fn resolve(
        &mut self,
        segment: u32,
        head: &mut Head,
        batch: &LoggedBatch,
        columns: &mut BatchColumns,
    ) -> Resolved {
        self.enter(segment);
        let ids = &batch.series.ids;
        if batch.series.places.is_empty() {
            // Most batches. Nobody asks for the reference of a series that has a place.
            columns.hashes.resize(ids.len(), SeriesHash(0));
            let place = |id: &u32| self.bound.get(*id as usize).copied().filter(|p| *p != NOWHERE);
            return head.resolve_placed(ids.iter().map(place));
        }
        let mut bound = batch.series.bound().peekable();
        let mut places = Vec::with_capacity(ids.len());
        for (at, &id) in ids.iter().enumerate() {
            let here = bound.next_if(|b| b.place == at);
            let place = self.bound.get(id as usize).copied().filter(|p| *p != NOWHERE);
            // What a segment binds once more is known, unless its labels must tell it from others with its reference.
            let place = place.filter(|place| {
                here.is_none_or(|b| !head.shares_hashes() && head.hash_at(*place) == Some(b.hash))
            });
            columns.hashes.push(here.map_or(SeriesHash(0), |b| b.hash));
            if let (Some(b), None) = (here, place) {
                columns.label_bytes.extend_from_slice(b.labels.packed());
            }
            columns.label_ends.push(columns.label_bytes.len() as u32);
            places.push(place);
        }
        head.resolve_at(columns, &places)
    }

    /// Notes, after a replayed batch was applied, which series its ids are bound to.
    pub(crate) fn replayed(&mut self, batch: &LoggedBatch, resolved: &Resolved) {
        for b in batch.series.bound() {
            let (id, place) = (b.id as usize, resolved.place_of(b.place));
            let Some(place) = place.filter(|_| id < IDS_MAX) else {
                continue;
            };
            if self.bound.len() <= id {
                self.bound.resize(id + 1, NOWHERE);
            }
            self.bound[id] = place;
        }
    }

    /// Forgets what a replay needed.
    pub(crate) fn replay_ended(&mut self) {
        self.bound = Vec::new();
    }
}

/// Notes, once a batch is durable in a segment and applied, which ids stand for its series there.
pub(crate) fn mark(segment: u32, head: &mut Head, series: &LoggedSeries, resolved: &Resolved) {
    for b in series.bound() {
        let Some(place) = resolved.place_of(b.place) else {
            continue;
        };
        let before = Mark(head.mark_at(place)).in_segment(segment);
        let bindings = match before {
            Some((id, bindings)) if id == b.id => (bindings + 1).min(BINDINGS),
            _ => 1,
        };
        head.set_mark_at(place, Mark::new(segment, bindings, b.id).0);
    }
}

/// What the ids of one segment and (partition, tenant) are bound to.
#[derive(Debug, Default)]
pub(crate) struct Bindings {
    by_id: HashMap<u32, (SeriesHash, Range<usize>)>,
    labels: Vec<u8>,
}

impl Bindings {
    /// Takes what a record binds.
    pub(crate) fn add(&mut self, series: &LoggedSeries) {
        for b in series.bound() {
            let (from, labels) = (self.labels.len(), &mut self.labels);
            self.by_id.entry(b.id).or_insert_with(|| {
                labels.extend_from_slice(b.labels.packed());
                (b.hash, from..labels.len())
            });
        }
    }

    /// A batch as it was sent, with all its labels; none when some cannot be told.
    ///
    /// # Errors
    /// [`BatchError`] when the content is malformed.
    pub(crate) fn batch(&self, logged: LoggedBatch) -> Result<Option<Batch>, BatchError> {
        let mut columns = logged.columns()?;
        for id in &logged.series.ids {
            let bound = self.by_id.get(id);
            let Some((hash, labels)) =
                bound.and_then(|(h, range)| Some((h, self.labels.get(range.clone())?)))
            else {
                return Ok(None);
            };
            columns.hashes.push(*hash);
            columns.label_bytes.extend_from_slice(labels);
            columns.label_ends.push(columns.label_bytes.len() as u32);
        }
        // As it was written: members that log or read it may be of a version before this one.
        let content = logged.content();
        Ok(Some(Batch::new(logged.header, columns).with_content(content)))
    }
}

#[cfg(test)]
mod tests {
    use koios_head::HeadOptions;
    use koios_model::Labels;

    use super::*;

    fn batch(series: &[u32], t: i64) -> BatchColumns {
        let mut c = BatchColumns::default();
        for &n in series {
            let labels = Labels::from_pairs([("__name__", format!("m{n}"))]);
            c.push_known_series(SeriesHash(u128::from(n)), labels.as_ref());
            c.push_sample(t, 1.0);
        }
        c
    }

    /// Names and applies a batch; gives its ids and how many of them it binds.
    fn log(ids: &mut LogIds, head: &mut Head, segment: u32, columns: &BatchColumns) -> (Vec<u32>, usize) {
        let mut resolved = head.resolve(columns);
        let series = ids.name(segment, head, columns, &resolved);
        head.apply_resolved(columns, &mut resolved, 0, 1);
        mark(segment, head, &series, &resolved);
        (series.ids, series.places.len())
    }

    #[test]
    fn an_id_is_bound_twice_in_every_segment() {
        let (mut ids, mut head) = (LogIds::default(), Head::new(HeadOptions::default()));
        assert_eq!(
            log(&mut ids, &mut head, 1, &batch(&[1, 2, 3], 1)),
            (vec![0, 1, 2], 3)
        );
        assert_eq!(log(&mut ids, &mut head, 1, &batch(&[3, 2], 2)), (vec![2, 1], 2));
        assert_eq!(
            log(&mut ids, &mut head, 1, &batch(&[1, 2, 3], 3)),
            (vec![0, 1, 2], 1)
        );
        assert_eq!(
            log(&mut ids, &mut head, 1, &batch(&[1, 2, 3, 4], 4)),
            (vec![0, 1, 2, 3], 1)
        );
        assert_eq!(log(&mut ids, &mut head, 2, &batch(&[4, 3], 5)), (vec![0, 1], 2));
        assert_eq!(
            log(&mut ids, &mut head, 2, &batch(&[1, 4, 3], 6)),
            (vec![2, 0, 1], 3)
        );
        assert_eq!(
            log(&mut ids, &mut head, 2, &batch(&[1, 4, 3], 7)),
            (vec![2, 0, 1], 1)
        );
        assert_eq!(
            log(&mut ids, &mut head, 2, &batch(&[1, 4, 3], 8)),
            (vec![2, 0, 1], 0)
        );
    }

    #[test]
    fn i16_a_batch_out_of_the_log_has_the_content_it_came_with() {
        use koios_model::{PartitionId, StreamId, TenantId};
        use koios_wire::BatchHeader;
        let (mut ids, head, columns) = (
            LogIds::default(),
            Head::new(HeadOptions::default()),
            batch(&[1, 2], 1),
        );
        let series = ids.name(
            1,
            &head,
            &columns,
            &Head::new(HeadOptions::default()).resolve(&columns),
        );
        let header = BatchHeader {
            epoch: 1,
            partition: PartitionId(0),
            tenant: TenantId::anonymous(),
            stream: StreamId(1),
            sequence: 1,
            settled_below: 0,
            admission_ms: 1,
        };
        let sent = Batch::new(header, columns);
        let record: Vec<u8> = [&sent.log_prefix(&series)[..], sent.content()].concat();
        let logged = LoggedBatch::decode(&record.into()).unwrap();
        let mut bindings = Bindings::default();
        bindings.add(&logged.series);
        let read = bindings.batch(logged).unwrap().unwrap();
        assert!(
            read.has_content(),
            "not encoded anew: who gets it may be of an earlier version"
        );
        assert_eq!(read.content(), sent.content());
        assert_eq!(read.columns().label_bytes, sent.columns().label_bytes);
    }

    #[test]
    fn ids_go_on_in_a_segment_that_the_log_did_not_leave() {
        let (mut ids, mut head) = (LogIds::default(), Head::new(HeadOptions::default()));
        log(&mut ids, &mut head, 1, &batch(&[1, 2], 1));
        log(&mut ids, &mut head, 1, &batch(&[1, 2], 2));
        // A group is prepared for the next segment, for which the disk has no room.
        let columns = batch(&[1, 7], 3);
        let resolved = head.resolve(&columns);
        assert_eq!(ids.name(2, &head, &columns, &resolved).ids, [0, 1]);
        head.give_up(resolved);
        assert_eq!(log(&mut ids, &mut head, 1, &batch(&[1, 8], 4)), (vec![0, 2], 1));
        assert_eq!(log(&mut ids, &mut head, 2, &batch(&[8, 1], 5)), (vec![2, 3], 2));
    }

    #[test]
    fn a_batch_prepared_before_the_one_that_binds_is_applied_binds_too() {
        let (mut ids, mut head) = (LogIds::default(), Head::new(HeadOptions::default()));
        let columns = batch(&[1], 1);
        let mut both: Vec<(Resolved, LoggedSeries)> = (0..2)
            .map(|_| {
                let resolved = head.resolve(&columns);
                let series = ids.name(1, &head, &columns, &resolved);
                (resolved, series)
            })
            .collect();
        assert_eq!((both[0].1.ids[0], both[1].1.ids[0]), (0, 1));
        for (resolved, series) in &mut both {
            head.apply_resolved(&columns, resolved, 0, 1);
            mark(1, &mut head, series, resolved);
        }
        // Of the two the second counts from now on, and it was bound once.
        assert_eq!(log(&mut ids, &mut head, 1, &columns), (vec![1], 1));
        assert_eq!(log(&mut ids, &mut head, 1, &columns), (vec![1], 0));
    }
}
