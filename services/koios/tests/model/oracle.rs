//! What must be read, may be read, and must not be: out of what was sent, acknowledged and deleted, in memory.

use std::collections::BTreeMap;

use koios_bucket::{Manifest, Nonce, Tombstone, TombstoneState};
use koios_model::{Matchers, PartitionId, StreamId};

use crate::held::{Found, Held, Key};

/// A batch, by its name.
pub(crate) type BatchName = (PartitionId, StreamId, u64);

/// A sample of a batch that was sent, at a logical time.
#[derive(Clone, Debug)]
struct Write {
    batch: BatchName,
    key: Key,
    value: Held,
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
    due: Option<Held>,
    /// It and what it won against: what is too old goes block by block, and the winner's may go first.
    of_due: Vec<Held>,
    /// What else may be.
    maybe: Vec<Held>,
    /// It may be gone because of its age…
    expired: bool,
    /// …or must be.
    is_past: bool,
}

impl Allowed {
    fn permits(&self, got: Option<&Held>) -> bool {
        let Some(got) = got else {
            return self.due.is_none() || self.expired;
        };
        if self.is_past {
            return false;
        }
        if self.due.as_ref().is_some_and(|due| due.is(got)) {
            return true;
        }
        if self.expired && self.of_due.iter().any(|v| v.is(got)) {
            return true;
        }
        let wins = |v: &Held| match &self.due {
            Some(due) => due.or_better(v).is(got),
            None => v.is(got),
        };
        self.maybe.iter().any(wins)
    }
}

/// What a read was about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum About {
    Samples,
    Exemplars,
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
    age: Age,
}

/// What goes because of its age.
#[derive(Debug, Default)]
struct Age {
    /// Samples before it may be gone.
    kept_from: Option<i64>,
    /// Samples before it must be.
    gone_before: Option<i64>,
    /// Whether what is gone for one read is for all that begin later: readers leave it out by what the manifest says, and do not wait
    /// for its block.
    is_hidden: bool,
    /// What was seen to be gone, and when.
    gone: BTreeMap<Key, u64>,
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
    pub(crate) fn sent(&mut self, batch: BatchName, samples: &Found) {
        let sent = self.tick();
        if self.writes.iter().any(|w| w.batch == batch) {
            return;
        }
        let write = |(key, value): (&Key, &Held)| Write {
            batch,
            key: key.clone(),
            value: value.clone(),
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

    /// What is older than some time may be gone from now on, for good where readers hide it.
    pub(crate) fn may_be_gone(&mut self, before: i64, is_hidden: bool) {
        let age = &mut self.age;
        age.kept_from = Some(age.kept_from.map_or(before, |from| from.max(before)));
        age.is_hidden = is_hidden;
    }

    /// What is older than some time must be gone from now on.
    pub(crate) fn must_be_gone(&mut self, before: i64) {
        self.age.gone_before = Some(before);
    }

    /// A deletion is about to be asked for, perhaps once more.
    pub(crate) fn asked(&mut self, name: &str) {
        let begun = self.tick();
        let request = Request { begun, ended: None };
        self.requests.entry(name.to_owned()).or_insert(request);
    }

    /// It was answered: from now on no read may show what it deletes.
    pub(crate) fn answered(&mut self, name: &str) {
        let now = self.tick();
        if let Some(request) = self.requests.get_mut(name) {
            request.ended.get_or_insert(now);
        }
        let of_request = |l: &&Listed| l.tombstone.by == name;
        let versions = self.listed.values().filter(of_request);
        let newest = versions.map(|l| l.tombstone.version).max();
        self.settled = self.settled.max(newest.unwrap_or(0));
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
            // Heads have no exemplars to give back.
            return match write.key.aspect.is_exemplar() && covers(listed, write) {
                true => Fate::Maybe,
                false => Fate::Visible,
            };
        }
        let (earlier, later) = self.requests.get(&t.by).map_or((false, false), |r| {
            (
                write.acknowledged.is_some_and(|at| at < r.begun),
                r.ended.is_some_and(|ended| write.sent > ended),
            )
        });
        let is_settled = t.version <= moment.settled && t.state != TombstoneState::Undone;
        // It need not cover what no member's head or log has any more: the manifest masks blocks whole that do not know of it.
        match (covers(listed, write) || earlier, is_settled, !earlier && !later) {
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
    pub(crate) fn check(&mut self, got: &Found, about: About, moment: Moment) -> Result<(), String> {
        let mut allowed: BTreeMap<&Key, Allowed> = BTreeMap::new();
        let age = &self.age;
        let is_asked = |key: &Key| key.aspect.is_exemplar() == (about == About::Exemplars);
        for write in self.writes.iter().filter(|w| is_asked(&w.key)) {
            let (key, value) = (&write.key, &write.value);
            let of_key = allowed.entry(key).or_default();
            of_key.expired = age.kept_from.is_some_and(|from| key.t < from);
            of_key.is_past = age.gone_before.is_some_and(|before| key.t < before);
            let gone_at = age.gone.get(key).filter(|at| **at <= moment.now);
            let fate = match gone_at {
                Some(at) if write.sent <= *at => Fate::Hidden,
                _ => self.fate(write, moment),
            };
            match fate {
                Fate::Visible => {
                    of_key.of_due.push(value.clone());
                    let due = of_key.due.as_ref().map(|due| due.or_better(value));
                    of_key.due = Some(due.unwrap_or_else(|| value.clone()));
                }
                Fate::Maybe => of_key.maybe.push(value.clone()),
                Fate::Hidden => {}
            }
        }
        if let Some((key, _)) = got.iter().find(|(key, _)| !allowed.contains_key(key)) {
            return Err(format!("{key:?} was never sent (I3)"));
        }
        let mut gone = Vec::new();
        for (key, of_key) in allowed {
            let found = got.get(key);
            if !of_key.permits(found) {
                return Err(format!("{key:?} is {found:?}, expected {of_key:?}"));
            }
            if found.is_none() && of_key.due.is_some() && age.is_hidden {
                gone.push(key.clone());
            }
        }
        let now = self.now;
        for key in gone {
            self.age.gone.insert(key, now);
        }
        Ok(())
    }

    /// Whether a value may still be in the bucket once all that is final is removed.
    pub(crate) fn may_be_kept(&self, key: &Key, held: &Held) -> bool {
        let moment = self.moment();
        let is_final = |l: &&Listed| l.tombstone.state == TombstoneState::Final;
        let deleted = |w: &Write| {
            let finals = self.listed.values().filter(is_final);
            finals
                .map(|l| self.effect(l, w, moment))
                .any(|f| f == Fate::Hidden)
        };
        let mut same = self.writes.iter().filter(|w| w.key == *key && w.value.is(held));
        same.any(|w| !deleted(w))
    }
}

fn matches(listed: &Listed, key: &Key) -> bool {
    listed.tombstone.range.contains(key.t) && listed.matchers.matches(key.series.as_ref())
}

fn covers(listed: &Listed, write: &Write) -> bool {
    let (partition, stream, sequence) = write.batch;
    let of_partition = listed.tombstone.covers.get(&partition);
    of_partition.is_some_and(|set| set.contains(stream, sequence))
}
