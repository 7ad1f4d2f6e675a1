//! Whether a disk answers reads. One that does not is left alone, and tried now and then until it does.

use std::time::Duration;

use parking_lot::Mutex;

/// Failures in a row, each begun after the one before was noticed, until the disk is left alone: a busy disk is slow, but
/// answers between them.
const FAILURES: u32 = 3;
/// How long it is left alone then; doubled each time it still does not answer.
const REST_MIN: Duration = Duration::from_secs(5);
/// The longest that gets.
const REST_MAX: Duration = Duration::from_secs(60);

/// What reads have seen of a disk. Times are on the monotonic clock.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Since it last answered.
    failures: u32,
    /// When it last answered, and when it last failed.
    answered: Duration,
    failed: Duration,
    /// When it may be tried, and how long it was left alone before.
    until: Duration,
    rested: Duration,
    is_tried: bool,
}

impl State {
    fn is_resting(&self) -> bool {
        self.failures >= FAILURES
    }
}

/// Leave to read. While the disk is left alone one read at a time has it.
#[derive(Debug)]
pub(super) struct Turn<'p> {
    pulse: &'p Pulse,
    is_trial: bool,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if self.is_trial {
            self.pulse.state.lock().is_tried = false;
        }
    }
}

impl Pulse {
    /// Leave to read now; none while the disk is left alone, but for one read when it is time to try it.
    pub(super) fn turn(&self, now: Duration) -> Option<Turn<'_>> {
        let mut state = self.state.lock();
        let is_trial = state.is_resting();
        if is_trial && (now < state.until || state.is_tried) {
            return None;
        }
        state.is_tried |= is_trial;
        Some(Turn {
            pulse: self,
            is_trial,
        })
    }

    /// Takes note of an answer; tells whether the disk was left alone until now.
    pub(super) fn answered(&self, now: Duration) -> bool {
        let mut state = self.state.lock();
        let was_resting = state.is_resting();
        state.answered = now;
        (state.failures, state.rested) = (0, Duration::ZERO);
        was_resting
    }

    /// Takes note of silence, or of an error, that began at `since`; tells for how long the disk is left alone from now on,
    /// if it was not before. Whatever was noticed meanwhile says more: an answer, or the same silence by another read.
    pub(super) fn failed(&self, turn: &Turn<'_>, since: Duration, now: Duration) -> Option<Duration> {
        let mut state = self.state.lock();
        let was_resting = state.is_resting();
        let is_known = state.answered > since || (state.failures > 0 && state.failed > since);
        if (was_resting || is_known) && !turn.is_trial {
            return None;
        }
        (state.failures, state.failed) = (state.failures.saturating_add(1), now);
        if !state.is_resting() {
            return None;
        }
        state.rested = state.rested.saturating_mul(2).clamp(REST_MIN, REST_MAX);
        state.until = now.saturating_add(state.rested);
        (!was_resting).then_some(state.rested)
    }

    /// When it last answered.
    pub(super) fn last_answer(&self) -> Duration {
        self.state.lock().answered
    }

    /// Whether it is left alone.
    pub(super) fn is_resting(&self) -> bool {
        self.state.lock().is_resting()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// A read that fails in a time; whether the disk is left alone then.
    fn fails(pulse: &Pulse, since: u64, now: u64) -> bool {
        let turn = pulse.turn(at(since));
        turn.is_some_and(|turn| pulse.failed(&turn, at(since), at(now)).is_some())
    }

    #[test]
    fn several_silences_in_a_row_are_a_dead_disk_and_one_is_not() {
        let pulse = Pulse::default();
        for round in 0..10u64 {
            let from = round * 10_000;
            assert!(!fails(&pulse, from, from + 500));
            // The same silence, as others saw it.
            for _ in 0..10 {
                assert!(!fails(&pulse, from + 100, from + 600));
            }
            assert!(!fails(&pulse, from + 700, from + 1200));
            assert!(!pulse.answered(at(from + 1300)));
            // It answered others meanwhile.
            assert!(!fails(&pulse, from + 1200, from + 1700));
        }
        assert!(!fails(&pulse, 200_000, 200_500));
        assert!(!fails(&pulse, 200_500, 201_000));
        assert!(fails(&pulse, 201_000, 201_500));
        assert!(pulse.is_resting());
    }

    #[test]
    fn a_dead_disk_is_tried_by_one_read_at_a_time_ever_more_rarely_until_it_answers() {
        let pulse = Pulse::default();
        let mut now = 0;
        for _ in 0..3 {
            now += 1000;
            fails(&pulse, now - 500, now);
        }
        for rest in [5_000, 10_000, 20_000, 40_000, 60_000, 60_000] {
            assert!(pulse.turn(at(now + rest - 1)).is_none());
            let trial = pulse.turn(at(now + rest)).unwrap();
            assert!(pulse.turn(at(now + rest)).is_none());
            // One that was given up says nothing.
            drop(trial);
            let trial = pulse.turn(at(now + rest)).unwrap();
            now += rest + 500;
            assert_eq!(pulse.failed(&trial, at(now - 500), at(now)), None, "told once");
        }
        let _trial = pulse.turn(at(now + 60_000)).unwrap();
        assert!(pulse.answered(at(now + 60_001)));
        assert!(pulse.turn(at(now + 60_001)).is_some() && !pulse.is_resting());
    }
}
