//! What happens to operations, and how often.

use std::time::Duration;

use koios_runtime::RngHandle;

/// How many of a thousand operations something happens to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BucketFaults {
    /// It and some more are refused: 503, slow down.
    pub busy: u64,
    /// It is done, and the answer is lost: an error, or nothing at all.
    pub lost_answers: u64,
    /// It takes its time, at times more than anybody waits.
    pub slow: u64,
    /// The body of its answer ends too early.
    pub broken_bodies: u64,
    /// It sees what was there some seconds ago.
    pub stale: u64,
    /// A creation finds a conflict, although nothing is there.
    pub conflicts: u64,
    /// A bit of what is written is another one in the storage. Of blocks alone: they are what is read back before anything relies on it.
    pub altered: u64,
}

impl BucketFaults {
    /// Nothing happens.
    pub const NONE: Self = Self {
        busy: 0,
        lost_answers: 0,
        slow: 0,
        broken_bodies: 0,
        stale: 0,
        conflicts: 0,
        altered: 0,
    };

    /// Each happens to some operations, how many the seed says.
    pub fn random(rng: &RngHandle) -> Self {
        let rate = || [0, 0, 10, 40][rng.below(4) as usize];
        Self {
            busy: rate(),
            lost_answers: rate(),
            slow: rate(),
            broken_bodies: rate(),
            stale: rate(),
            conflicts: rate(),
            altered: rate(),
        }
    }
}

/// What happens to one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is done and answered.
    Done,
    /// It is refused and changes nothing.
    Busy,
    /// It is done; whoever asked gets an error, or never hears of it.
    LostAnswer { silent: bool },
    /// It is done after some time.
    Slow(Duration),
    /// It is done, and so much of the body, in thousandths, arrives, with an error at the end of it or without.
    BrokenBody { permille: u64, silent: bool },
    /// It reads what was there before.
    Stale,
    /// It is told that somebody was faster.
    Conflict,
    /// It is done and answered, with another bit in the body, so many thousandths from its start.
    Altered { permille: u64 },
}

/// Draws fates.
#[derive(Debug)]
pub(super) struct Weather {
    pub(super) faults: BucketFaults,
    /// Operations that are still refused.
    busy_left: u64,
}

impl Weather {
    pub(super) fn new(faults: BucketFaults) -> Self {
        Self { faults, busy_left: 0 }
    }

    pub(super) fn next(&mut self, rng: &RngHandle) -> Fate {
        if self.faults == BucketFaults::NONE {
            return Fate::Done;
        }
        if let Some(left) = self.busy_left.checked_sub(1) {
            self.busy_left = left;
            return Fate::Busy;
        }
        let mut at = rng.below(1000);
        let mut is = |rate: u64| {
            let hit = at < rate;
            at = at.wrapping_sub(rate);
            hit
        };
        if is(self.faults.busy) {
            self.busy_left = rng.below(6);
            return Fate::Busy;
        }
        if is(self.faults.lost_answers) {
            let silent = rng.below(4) == 0;
            return Fate::LostAnswer { silent };
        }
        if is(self.faults.slow) {
            let ms = [50, 2_000, 40_000][rng.below(3) as usize];
            return Fate::Slow(Duration::from_millis(rng.below(ms)));
        }
        if is(self.faults.broken_bodies) {
            return Fate::BrokenBody {
                permille: rng.below(1000),
                silent: rng.below(2) == 0,
            };
        }
        if is(self.faults.stale) {
            return Fate::Stale;
        }
        if is(self.faults.conflicts) {
            return Fate::Conflict;
        }
        if is(self.faults.altered) {
            return Fate::Altered {
                permille: rng.below(1000),
            };
        }
        Fate::Done
    }
}
