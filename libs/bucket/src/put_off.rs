//! What fails is put off: nothing else waits for it, and a storage that answers nothing, or refuses everything, is not asked on and on.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::{Error, Result};

/// How long it is put off.
const AGAIN_AFTER: Duration = Duration::from_secs(3600);
/// Of one object a storage may say for ever that it is busy; of two in a row, and it is away.
const UNANSWERED_MAX: u32 = 2;
/// So many refusals in a row, and the rest is refused, too.
const REFUSED_MAX: u32 = 8;

/// What failed, and when it is tried again, by this process' own clock.
#[derive(Clone, Debug)]
pub struct PutOff<K>(BTreeMap<K, Duration>);

impl<K> Default for PutOff<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord> PutOff<K> {
    /// Puts something off for an hour, and forgets what that is over for.
    pub fn add(&mut self, what: K, now: Duration) {
        self.0.retain(|_, until| *until > now);
        self.0.insert(what, now.saturating_add(AGAIN_AFTER));
    }

    /// Whether something is put off.
    pub fn contains(&self, what: &K, now: Duration) -> bool {
        self.0.get(what).is_some_and(|until| *until > now)
    }
}

/// How requests of one round end, one after another.
#[derive(Clone, Copy, Debug, Default)]
pub struct Failures {
    unanswered: u32,
    refused: u32,
}

impl Failures {
    /// Notes how a request ended.
    pub fn note<T>(&mut self, done: &Result<T>) {
        match done {
            Ok(_) => *self = Self::default(),
            Err(Error::Unavailable { .. }) => self.unanswered += 1,
            Err(Error::Rejected { .. }) => {
                self.unanswered = 0;
                self.refused += 1;
            }
            // That is about the object.
            Err(_) => self.unanswered = 0,
        }
    }

    /// Whether the rest of the round would only fail, too.
    pub fn are_enough(&self) -> bool {
        self.unanswered >= UNANSWERED_MAX || self.refused >= REFUSED_MAX
    }
}
