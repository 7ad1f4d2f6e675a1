//! What goes wrong on purpose.

use std::time::Duration;

use super::request::Request;
use crate::random::Random;

/// One thing that goes wrong with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// 503, without effect.
    Busy,
    /// The connection is closed, without effect.
    Closes,
    /// No answer comes, without effect.
    Hangs,
    /// It takes effect, and then the connection is closed instead of an answer.
    LostAnswer,
    /// Half of the body comes, and then the connection is closed.
    CutShort,
    /// Half of the body comes, and the rest after a while.
    Slow(Duration),
    /// A read of an object shows what was there before the last change of it; other requests are answered well.
    Stale,
    /// 409 to a write with a condition, without effect, as when another one is under way; other requests are answered well.
    Conflict,
}

/// Which requests a fault happens to.
#[derive(Clone, Copy, Debug)]
pub enum When {
    /// The next so many.
    Next(u64),
    /// The next so many of a method.
    NextOf(&'static str, u64),
    /// All, until it heals.
    Always,
    /// One in so many, by chance of a seed, until it heals.
    OneIn(u64, u64),
}

#[derive(Debug, Default)]
pub(super) struct Faults {
    planned: Vec<(Fault, Plan)>,
    done: u64,
}

#[derive(Debug)]
enum Plan {
    Left {
        method: Option<&'static str>,
        times: u64,
    },
    Always,
    Chance {
        one_in: u64,
        random: Random,
    },
}

impl Faults {
    pub(super) fn inject(&mut self, fault: Fault, when: When) {
        let plan = match when {
            When::Next(times) => Plan::Left { method: None, times },
            When::NextOf(method, times) => Plan::Left {
                method: Some(method),
                times,
            },
            When::Always => Plan::Always,
            When::OneIn(one_in, seed) => Plan::Chance {
                one_in,
                random: Random::new(seed),
            },
        };
        self.planned.push((fault, plan));
    }

    pub(super) fn done(&self) -> u64 {
        self.done
    }

    /// What happens to a request.
    pub(super) fn next(&mut self, request: &Request) -> Option<Fault> {
        let fault = self.planned.iter_mut().find_map(|(fault, plan)| {
            let happens = match plan {
                Plan::Left { method, times } => {
                    let meant = *times > 0 && method.is_none_or(|m| request.method == m);
                    *times -= u64::from(meant);
                    meant
                }
                Plan::Always => true,
                Plan::Chance { one_in, random } => random.below(*one_in) == 0,
            };
            happens.then_some(*fault)
        });
        self.done += u64::from(fault.is_some());
        fault
    }
}
