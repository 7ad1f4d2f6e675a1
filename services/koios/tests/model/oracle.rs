//! What must be read, may be read, and must not be: out of what was sent, acknowledged and deleted, in memory.

use std::collections::BTreeMap;

use koios_bucket::{Manifest, Nonce, Tombstone, TombstoneState};
use koios_model::merge::winner;
use koios_model::{Labels, Matchers, PartitionId, StreamId};

/// A sample's place: its series and its time.
pub(crate) type Key = (Labels, i64);
/// Samples by place, values as bits.
pub(crate) type Samples = BTreeMap<Key, u64>;

/// A batch, by its name.
pub(crate) type BatchName = (PartitionId, StreamId, u64);

/// A sample of a batch that was sent, at a logical time.
#[derive(Clone, Debug)]
struct Write {
    batch: BatchName,
    key: Key,
    value: f64,
    sent: u64,
    acknowledged: Option<u64>,
}

/// A request to delete, which its name finds in manifests.
#[derive(Clone, Debug)]
struct Request {
    begun: u64,
    ended: Option<u64>,
}

/// A deletion as the newest manifest that lists it has it.
#[derive(Clone, Debug)]
struct Listed {
    tombstone: Tombstone,
    matchers: Matchers,
}

/// What a deletion does to a write, or what becomes of it altogether.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fate {
    Visible,
    Maybe,
    Hidden,
}

/// What a read of one place may give.
#[derive(Clone, Debug, Default)]
struct Allowed {
    /// The winner of what must be there.
    due: Option<f64>,
    /// What else may be.
    maybe: Vec<f64>,
    /// It may be gone because of its age.
    expired: bool,
}

impl Allowed {
    fn permits(&self, got: Option<u64>) -> bool {
        let Some(got) = got else {
            return self.due.is_none() || self.expired;
        };
        if self.due.is_some_and(|due| due.to_bits() == got) {
            return true;
        }
        let wins = |v: &f64| self.due.map_or(*v, |due| winner(due, *v)).to_bits() == got;
        self.maybe.iter().any(wins)
    }
}

/// When a read began, as far as it matters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    now: u64,
    settled: u64,
}

/// The model.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    /// Logical time.
    now: u64,
    writes: Vec<Write>,
    requests: BTreeMap<String, Request>,
    listed: BTreeMap<Nonce, Listed>,
    /// The manifest version up to which all deletions are answered.
    settled: u64,
    /// Samples before it may be gone.
    pub(crate) kept_from: Option<i64>,
}

impl Oracle {
    fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    pub(crate) fn moment(&self) -> Moment {
        Moment {
            now: self.now,
            settled: self.settled,
        }
    }

    /// A batch is about to be sent, perhaps once more.
    pub(crate) fn sent(&mut self, batch: BatchName, samples: &[(Labels, i64, f64)]) {
        let sent = self.tick();
        if self.writes.iter().any(|w| w.batch == batch) {
            return;
        }
        let write = |(labels, t, value): &(Labels, i64, f64)| Write {
            batch,
            key: (labels.clone(), *t),
            value: *value,
            sent,
            acknowledged: None,
        };
        self.writes.extend(samples.iter().map(write));
    }

    pub(crate) fn acknowledged(&mut self, batch: BatchName) {
        let now = self.tick();
        for write in self.writes.iter_mut().filter(|w| w.batch == batch) {
            write.acknowledged.get_or_insert(now);
        }
    }

    /// A deletion is about to be asked for, perhaps once more.
    pub(crate) fn asked(&mut self, name: &str) {
        let begun = self.tick();
        let request = Request { begun, ended: None };
        self.requests.entry(name.to_owned()).or_insert(request);
    }

    /// It was answered: from now on no read may show what it deletes. Says what it should have deleted and does not.
    pub(crate) fn answered(&mut self, name: &str) -> Result<(), String> {
        let now = self.tick();
        if let Some(request) = self.requests.get_mut(name) {
            request.ended.get_or_insert(now);
        }
        let of_request = |l: &&Listed| l.tombstone.by == name;
        let versions = self.listed.values().filter(of_request);
        let newest = versions.map(|l| l.tombstone.version).max();
        self.settled = self.settled.max(newest.unwrap_or(0));
        let begun = self.requests.get(name).map_or(0, |r| r.begun);
        for listed in self.listed.values().filter(of_request) {
            // The last of those that were asked for counts, and it covers whatever the others do.
            if Some(listed.tombstone.version) != newest {
                continue;
            }
            let is_owed = |w: &&Write| {
                let was_there = w.acknowledged.is_some_and(|at| at < begun);
                was_there && matches(listed, &w.key) && !covers(listed, w)
            };
            if let Some(write) = self.writes.iter().find(is_owed) {
                let key = &write.key;
                return Err(format!(
                    "{name} does not cover {key:?}, which was acknowledged before"
                ));
            }
        }
        Ok(())
    }

    /// That a deletion was taken back was answered.
    pub(crate) fn taken_back(&mut self, id: Nonce) {
        self.tick();
        let changed = self.listed.get(&id).map_or(0, |l| l.tombstone.known_from());
        self.settled = self.settled.max(changed);
    }

    /// Everything that is listed is known to everybody.
    pub(crate) fn quiet(&mut self) {
        let now = self.tick();
        for request in self.requests.values_mut() {
            request.ended.get_or_insert(now);
        }
        let versions = self.listed.values().map(|l| l.tombstone.known_from());
        self.settled = self.settled.max(versions.max().unwrap_or(0));
    }

    /// Takes note of what a manifest lists.
    pub(crate) fn note(&mut self, manifest: &Manifest) {
        for tombstone in &manifest.tombstones {
            let listed = Listed {
                tombstone: tombstone.clone(),
                matchers: tombstone.matchers().unwrap(),
            };
            self.listed.insert(tombstone.id, listed);
        }
    }

    /// The last deletion that can be taken back.
    pub(crate) fn last_masked(&self) -> Option<Nonce> {
        let masked = self
            .listed
            .values()
            .filter(|l| l.tombstone.state == TombstoneState::Masked);
        masked.max_by_key(|l| l.tombstone.version).map(|l| l.tombstone.id)
    }

    /// Batches that were sent and not acknowledged.
    pub(crate) fn has_unacknowledged(&self) -> bool {
        self.writes.iter().any(|w| w.acknowledged.is_none())
    }

    fn effect(&self, listed: &Listed, write: &Write, moment: Moment) -> Fate {
        let t = &listed.tombstone;
        if !matches(listed, &write.key) {
            return Fate::Visible;
        }
        if t.state == TombstoneState::Undone && t.changed <= moment.settled {
            return Fate::Visible;
        }
        let request = self.requests.get(&t.by);
        let is_concurrent = match request {
            None => true,
            Some(r) => {
                let later = r.ended.is_some_and(|ended| write.sent > ended);
                let earlier = write.acknowledged.is_some_and(|at| at < r.begun);
                !later && !earlier
            }
        };
        let is_settled = t.version <= moment.settled && t.state != TombstoneState::Undone;
        match (covers(listed, write), is_settled, is_concurrent) {
            (true, true, _) => Fate::Hidden,
            (true, false, _) | (false, _, true) => Fate::Maybe,
            (false, _, false) => Fate::Visible,
        }
    }

    fn fate(&self, write: &Write, moment: Moment) -> Fate {
        let acknowledged = write.acknowledged.is_some_and(|at| at <= moment.now);
        let own = if acknowledged { Fate::Visible } else { Fate::Maybe };
        let effects = self.listed.values().map(|l| self.effect(l, write, moment));
        effects.fold(own, Fate::max)
    }

    /// Judges what a read gave that began at a moment.
    pub(crate) fn check(&self, got: &Samples, moment: Moment) -> Result<(), String> {
        let mut allowed: BTreeMap<&Key, Allowed> = BTreeMap::new();
        for write in &self.writes {
            let of_key = allowed.entry(&write.key).or_default();
            of_key.expired = self.kept_from.is_some_and(|from| write.key.1 < from);
            match self.fate(write, moment) {
                Fate::Visible => {
                    let due = of_key.due.map_or(write.value, |due| winner(due, write.value));
                    of_key.due = Some(due);
                }
                Fate::Maybe => of_key.maybe.push(write.value),
                Fate::Hidden => {}
            }
        }
        if let Some(key) = got.keys().find(|key| !allowed.contains_key(key)) {
            return Err(format!("{key:?} was never sent (I3)"));
        }
        for (key, of_key) in allowed {
            let found = got.get(key).copied();
            if !of_key.permits(found) {
                let found = found.map(f64::from_bits);
                return Err(format!("{key:?} is {found:?}, expected {of_key:?}"));
            }
        }
        Ok(())
    }

    /// Whether a value may still be in the bucket once all that is final is removed.
    pub(crate) fn may_be_kept(&self, key: &Key, bits: u64) -> bool {
        let moment = self.moment();
        let is_final = |l: &&Listed| l.tombstone.state == TombstoneState::Final;
        let deleted = |w: &Write| {
            let finals = self.listed.values().filter(is_final);
            finals
                .map(|l| self.effect(l, w, moment))
                .any(|f| f == Fate::Hidden)
        };
        let mut same = self
            .writes
            .iter()
            .filter(|w| w.key == *key && w.value.to_bits() == bits);
        same.any(|w| !deleted(w))
    }
}

fn matches(listed: &Listed, (labels, t): &Key) -> bool {
    listed.tombstone.range.contains(*t) && listed.matchers.matches(labels.as_ref())
}

fn covers(listed: &Listed, write: &Write) -> bool {
    let (partition, stream, sequence) = write.batch;
    let of_partition = listed.tombstone.covers.get(&partition);
    of_partition.is_some_and(|set| set.contains(stream, sequence))
}
