//! How long what was not stored as it was sent is not sent again: it is encoded and uploaded anew each time, under another name, and what is
//! not listed of it leaves a dead one.

use std::collections::BTreeMap;
use std::time::Duration;

use koios_bucket::Nonce;
use parking_lot::Mutex;

use crate::segments::ReplicaKey;

/// How long a cut waits, as what a compactor makes does: first, and at most.
pub(crate) const CUT_PAUSES: (Duration, Duration) = (Duration::from_secs(600), Duration::from_secs(6 * 3600));

/// How long a deletion's backup waits. Reads ask for it, and wait as long.
pub(crate) const BACKUP_PAUSES: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(1800));

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Sent {
    /// The cut of the window that begins then.
    Cut(i64),
    /// What a deletion takes from the head.
    Backup(Nonce),
}

#[derive(Clone, Copy, Debug)]
struct Failed {
    times: u32,
    until: Duration,
}

/// What failed so, and when it is sent again, by the monotonic clock.
#[derive(Debug, Default)]
pub(crate) struct StoredOtherwise(Mutex<BTreeMap<(ReplicaKey, Sent), Failed>>);

impl StoredOtherwise {
    /// For how long it is not to be sent yet, if it is not.
    pub(crate) fn waits(&self, key: &ReplicaKey, sent: Sent, now: Duration) -> Option<Duration> {
        let all = self.0.lock();
        let failed = all.get(&(key.clone(), sent))?;
        failed.until.checked_sub(now).filter(|left| !left.is_zero())
    }

    /// Notes a failure: the pause is `first`, twice as long after each further one, and `longest` at most.
    pub(crate) fn note(
        &self,
        key: &ReplicaKey,
        sent: Sent,
        now: Duration,
        (first, longest): (Duration, Duration),
    ) {
        let mut all = self.0.lock();
        // What was given up since, with its window or its deletion.
        all.retain(|_, failed| failed.until.saturating_add(longest) > now);
        let failed = all
            .entry((key.clone(), sent))
            .or_insert(Failed { times: 0, until: now });
        let pause = first.saturating_mul(1 << failed.times.min(20)).min(longest);
        failed.times = failed.times.saturating_add(1);
        failed.until = now.saturating_add(pause);
    }

    /// Forgets of what was stored.
    pub(crate) fn forget(&self, key: &ReplicaKey, sent: Sent) {
        self.0.lock().remove(&(key.clone(), sent));
    }
}
