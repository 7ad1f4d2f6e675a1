//! Deletions among everything else: one at a time, begun in one run of the process and, where a fault is in its way, ended in
//! a later one. Some are taken back: then all of them is owed again that was ever acknowledged.

use std::collections::{BTreeMap, BTreeSet};

use koios_bucket::{Manifest, Nonce, Tombstone, TombstoneState, Writer};
use koios_model::{BatchSet, Labels, Matcher, Matchers, StreamId, TenantId, TimeRange};
use koios_wire::{DeletionsReply, DeletionsRequest, IngesterService, ServiceError};

use crate::judge::Judge;
use crate::traffic::{Place, SERIES, Sent, T0, places, series_labels};
use crate::values::{Found, Value, is_about, is_exemplar};
use crate::world::{Process, World};

/// A batch, by its name.
type BatchName = (StreamId, u64);

/// What is to be deleted.
#[derive(Clone, Debug)]
struct Wanted {
    id: Nonce,
    place: Place,
    labels: Labels,
    range: TimeRange,
}

/// What was deleted: of these batches.
#[derive(Clone, Debug)]
struct Deleted {
    wanted: Wanted,
    covers: BatchSet,
}

impl Deleted {
    fn has(&self, labels: &Labels, t: i64) -> bool {
        is_about(labels, &self.wanted.labels) && self.wanted.range.contains(t)
    }
}

/// The deletions of a run.
#[derive(Debug, Default)]
pub(crate) struct Deletions {
    open: Option<Wanted>,
    /// Is being taken back.
    returning: Option<Deleted>,
    done: Vec<Deleted>,
    /// Per tenant: the manifest version that queries know of.
    versions: BTreeMap<TenantId, u64>,
    /// Changes whenever one begins or ends.
    pub(crate) moment: u64,
    /// Of every sample sent: the batches, and the values they have.
    points: BTreeMap<(Place, Labels, i64), Vec<(BatchName, Value)>>,
    acknowledged: BTreeSet<(Place, BatchName)>,
}

fn writer() -> Writer {
    Writer {
        name: "querier".to_owned(),
        resource: "deletions".to_owned(),
        epoch: 0,
    }
}

fn name_of(sent: &Sent) -> BatchName {
    let header = sent.batch.header();
    (header.stream, header.sequence)
}

impl Deletions {
    pub(crate) fn sent(&mut self, sent: &Sent) {
        let name = name_of(sent);
        for (labels, samples) in &sent.series {
            for s in samples {
                let point = (sent.place.clone(), labels.clone(), s.t);
                self.points.entry(point).or_default().push((name, s.v.clone()));
            }
        }
    }

    /// What of an acknowledged batch must be returned from now on.
    pub(crate) fn acknowledged(&mut self, sent: &Sent) -> Sent {
        let name = name_of(sent);
        self.acknowledged.insert((sent.place.clone(), name));
        let mut left = sent.clone();
        // What returns is owed once that is answered.
        let deleting = self.done.iter().chain(&self.returning);
        for d in deleting.filter(|d| d.wanted.place == sent.place) {
            if d.covers.contains(name.0, name.1) {
                for (labels, samples) in &mut left.series {
                    samples.retain(|s| !d.has(labels, s.t));
                }
            }
        }
        left
    }

    /// Whether one of a place is under way, or is being taken back.
    pub(crate) fn is_open(&self, place: &Place) -> bool {
        let returning = self.returning.iter().map(|d| &d.wanted);
        self.open.iter().chain(returning).any(|w| w.place == *place)
    }

    /// Begins to take one back that is done.
    fn begin_return(&mut self, at: usize) {
        self.returning = Some(self.done.swap_remove(at));
        self.moment += 1;
    }

    pub(crate) fn version(&self, tenant: &TenantId) -> u64 {
        self.versions.get(tenant).copied().unwrap_or(0)
    }

    /// Says which sample has come back.
    pub(crate) fn check(&self, place: &Place, found: &Found) -> Result<(), String> {
        for d in self.done.iter().filter(|d| d.wanted.place == *place) {
            let about = found.iter().filter(|(l, _)| is_about(l, &d.wanted.labels));
            let samples = about.flat_map(|(labels, points)| points.iter().map(move |s| (labels, s)));
            for (labels, s) in samples.filter(|(_, s)| d.wanted.range.contains(s.t)) {
                let point = (place.clone(), labels.clone(), s.t);
                let sent = self.points.get(&point).into_iter().flatten();
                let later = |((stream, sequence), v): &&(BatchName, Value)| {
                    !d.covers.contains(*stream, *sequence) && v.is_same(&s.v)
                };
                if !sent.into_iter().any(|sent| later(&sent)) {
                    return Err(format!(
                        "sample {labels} @{} was deleted and is there again (I10)",
                        s.t
                    ));
                }
            }
        }
        Ok(())
    }

    /// A deletion was answered: its samples are owed no more, but for those of other batches.
    fn end(&mut self, deleted: Deleted, version: u64, judge: &mut Judge) {
        let place = deleted.wanted.place.clone();
        let points = self
            .points
            .iter()
            .filter(|((p, labels, t), _)| *p == place && deleted.has(labels, *t));
        for ((_, labels, t), batches) in points {
            let owed = |(name, _): &&(BatchName, Value)| {
                let is_acknowledged = self.acknowledged.contains(&(place.clone(), *name));
                let is_deleted = |d: &Deleted| {
                    d.wanted.place == place && d.has(labels, *t) && d.covers.contains(name.0, name.1)
                };
                is_acknowledged && !is_deleted(&deleted) && !self.done.iter().any(is_deleted)
            };
            let owed = batches.iter().filter(owed).map(|(_, v)| v.clone());
            judge.deleted(&place, labels, *t, owed);
        }
        let known = self.versions.entry(place.1).or_default();
        *known = version.max(*known);
        self.done.push(deleted);
        self.open = None;
        self.moment += 1;
    }
}

impl Deletions {
    /// A deletion is taken back: all samples of it are owed that no other one deletes. What a flipped bit took is not told from them.
    fn returned(&mut self, deleted: &Deleted, version: u64, judge: &mut Judge) {
        let place = &deleted.wanted.place;
        let is_told = !judge.was_flipped();
        let points = self.points.iter().filter(|_| is_told);
        let points = points
            .filter(|((p, labels, t), _)| p == place && deleted.has(labels, *t) && !is_exemplar(labels));
        for ((_, labels, t), batches) in points {
            let is_deleted = |name: &BatchName| {
                let mut others = self.done.iter().filter(|d| d.wanted.place == *place);
                others.any(|d| d.has(labels, *t) && d.covers.contains(name.0, name.1))
            };
            let is_acknowledged = |name: &BatchName| self.acknowledged.contains(&(place.clone(), *name));
            let owed = batches
                .iter()
                .filter(|(name, _)| is_acknowledged(name) && !is_deleted(name));
            judge.returned(place, labels, *t, owed.map(|(_, v)| v.clone()));
        }
        let known = self.versions.entry(place.1.clone()).or_default();
        *known = version.max(*known);
        self.returning = None;
        self.moment += 1;
    }
}

impl World {
    /// Goes on with the deletion under way, or begins one, or begins to take one back.
    pub(crate) async fn delete(&self, process: &Process) -> Result<(), ServiceError> {
        {
            let mut deletions = self.deletions.lock();
            if deletions.open.is_none() && deletions.returning.is_none() {
                let done = deletions.done.len() as u64;
                if done > 0 && self.rng.below(3) == 0 {
                    deletions.begin_return(self.rng.below(done) as usize);
                } else {
                    deletions.open = Some(self.something());
                    deletions.moment += 1;
                }
            }
        }
        self.go_on(process).await
    }

    async fn go_on(&self, process: &Process) -> Result<(), ServiceError> {
        let (open, returning) = {
            let deletions = self.deletions.lock();
            (deletions.open.clone(), deletions.returning.clone())
        };
        if let Some(wanted) = open {
            self.finish_deletion(process, wanted).await?;
        }
        if let Some(deleted) = returning {
            self.finish_return(process, deleted).await?;
        }
        Ok(())
    }

    /// Ends the deletion under way, if there is one.
    pub(crate) async fn settle_deletions(&self, process: &Process) {
        if let Err(e) = self.go_on(process).await {
            self.trace
                .violated(format!("a healed process does not delete: {e}"));
        }
    }

    /// Takes one back now and then of what was deleted, whatever was acknowledged since.
    pub(crate) async fn take_some_back(&self, process: &Process) {
        let done = self.deletions.lock().done.len() as u64;
        if done > 0 && self.rng.below(4) > 0 {
            let at = self.rng.below(done) as usize;
            self.deletions.lock().begin_return(at);
            self.settle_deletions(process).await;
        }
    }

    fn something(&self) -> Wanted {
        let places = places();
        let place = places[self.rng.below(places.len() as u64) as usize].clone();
        let labels = series_labels(place.0, self.rng.below(SERIES));
        let hours = |n: u64| self.rng.below(n * 3_600_000) as i64;
        let range = match self.rng.below(3) {
            0 => TimeRange::ALL,
            _ => {
                let from = T0 + hours(12) - 3 * 3_600_000;
                TimeRange::new(from, from + hours(4))
            }
        };
        Wanted {
            id: Nonce(self.rng.u128()),
            place,
            labels,
            range,
        }
    }

    /// What a process says of deletions once it knows of those of a version.
    async fn ask(
        &self,
        process: &Process,
        place: &Place,
        version: u64,
    ) -> Result<DeletionsReply, ServiceError> {
        let request = DeletionsRequest {
            tenant: place.1.clone(),
            partition: place.0,
            epoch: self.epoch(place.0),
            version,
            with_held: true,
        };
        process.ingester.deletions(request).await
    }

    async fn finish_return(&self, process: &Process, deleted: Deleted) -> Result<(), ServiceError> {
        let (id, place) = (deleted.wanted.id, &deleted.wanted.place);
        let undo = |m: &mut Manifest| {
            m.set_tombstone_state(id, TombstoneState::Undone);
            Ok(())
        };
        let manifest = self.manifests.commit(&place.1, &writer(), undo).await.unwrap();
        let version = manifest.tombstone(id).unwrap().known_from();
        let name = format!("deletion of {} in {} {}", deleted.wanted.labels, place.0, place.1);
        self.trace
            .note(format!("{name} is taken back in version {version}"));
        self.ask(process, place, version).await?;
        self.trace.note(format!("{name} is taken back"));
        let mut judge = self.judge.lock();
        judge.totals.taken_back += 1;
        self.deletions.lock().returned(&deleted, version, &mut judge);
        Ok(())
    }

    async fn finish_deletion(&self, process: &Process, wanted: Wanted) -> Result<(), ServiceError> {
        let (partition, tenant) = wanted.place.clone();
        let held = self.ask(process, &wanted.place, 0).await?.held;
        let matchers = wanted
            .labels
            .iter()
            .map(|(name, value)| Matcher::equal(name, value));
        let tombstone = Tombstone {
            covers: BTreeMap::from([(partition, held)]),
            ..Tombstone::new(wanted.id, &Matchers(matchers.collect()), wanted.range)
        };
        // Nothing happens to this bucket client. One that is listed already stays as it is.
        let add = |m: &mut Manifest| {
            m.add_tombstone(tombstone.clone());
            Ok(())
        };
        let manifest = self.manifests.commit(&tenant, &writer(), add).await.unwrap();
        let listed = manifest.tombstone(wanted.id).unwrap();
        let (version, covers) = (listed.version, listed.covers[&partition].clone());
        let name = format!("deletion of {} in {partition} {tenant}", wanted.labels);
        self.trace.note(format!("{name} is listed in version {version}"));
        self.ask(process, &wanted.place, version).await?;
        self.trace.note(format!("{name} is applied"));
        let mut judge = self.judge.lock();
        judge.totals.deletions += 1;
        let deleted = Deleted { wanted, covers };
        self.deletions.lock().end(deleted, version, &mut judge);
        Ok(())
    }
}
