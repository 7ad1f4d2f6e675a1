//! Random queries, and samples for them to find: the same for the same seed.
//!
//! **Data flow.** [`data`] makes series; a [`QueryGenerator`] makes [`Asked`] queries over them: text and times. Most are
//! type-correct; some have a mistake put in, see [`broken`]. Queries use the language of the Prometheus that they are
//! compared with, 2.42: its functions alone, and no syntax that came later.
//!
//! **Invariants.** No sample and no point of a subquery lies on the edge of a range or of the lookback, where Prometheus
//! 2 and 3 differ: samples are 7 ms past a whole second, queries are evaluated 3 ms past one, `@` names such times too,
//! and the ranges of subqueries are a millisecond longer than whole seconds. Operands are in parentheses, so that the
//! text of one is a query by itself; chains of operators without any are there to compare precedence.

mod aggregate;
mod binary;
mod broken;
mod call;
pub mod data;
mod literal;
mod native;
mod selector;

use std::fmt;

use crate::random::Random;

/// When a query is evaluated, milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Times {
    /// Once.
    At(i64),
    /// From a start to an end, both included, in steps.
    Range {
        /// The first time.
        start: i64,
        /// The last time, at most.
        end: i64,
        /// From one time to the next.
        step: i64,
    },
}

impl Times {
    /// Every time of evaluation; none where the step is none.
    pub fn steps(self) -> Vec<i64> {
        match self {
            Self::At(t) => vec![t],
            Self::Range { start, end, step } => {
                let step = usize::try_from(step).ok().filter(|step| *step > 0);
                step.map_or_else(Vec::new, |step| (start..=end).step_by(step).collect())
            }
        }
    }

    /// The first time of evaluation.
    pub fn start(self) -> i64 {
        match self {
            Self::At(t) | Self::Range { start: t, .. } => t,
        }
    }

    /// The end, which is not always a time of evaluation.
    pub fn end(self) -> i64 {
        match self {
            Self::At(t) | Self::Range { end: t, .. } => t,
        }
    }
}

/// As the command line takes them.
impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(t) => write!(f, "{t}"),
            Self::Range { start, end, step } => write!(f, "{start}..{end}/{step}"),
        }
    }
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.query, self.times)
    }
}

/// A query and when it is evaluated.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Asked {
    /// The text.
    pub query: String,
    /// The times.
    pub times: Times,
}

/// What the queries are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// [`data::floats`], with all that Prometheus 2.42 can do.
    Floats,
    /// [`data::histograms`], with the little that 2.42 can do with native histograms.
    NativeHistograms,
}

/// Makes queries.
#[derive(Clone, Debug)]
pub struct QueryGenerator {
    random: Random,
    subject: Subject,
}

impl QueryGenerator {
    /// A generator whose queries depend on the seed alone.
    pub fn new(seed: u64, subject: Subject) -> Self {
        Self {
            random: Random::new(seed),
            subject,
        }
    }

    /// The next query, of up to five levels.
    pub fn asked(&mut self) -> Asked {
        let depth = u32::try_from(self.random.index(6)).unwrap_or(0);
        if self.subject == Subject::NativeHistograms {
            let query = self.of_histograms(depth.min(3));
            return Asked {
                query,
                times: self.times(),
            };
        }
        match self.random.index(44) {
            0 => self.at_once(Self::text),
            1 | 2 => self.at_once(|g| g.range_vector(depth)),
            3..=5 => {
                let query = self.scalar(depth);
                self.at_some_time(query)
            }
            6..=8 => {
                let query = self.vector(depth);
                let query = self.with_a_mistake(&query);
                self.at_some_time(query)
            }
            9 | 10 => {
                let query = self.chain();
                self.at_some_time(query)
            }
            11 => {
                let query = self.vector(depth);
                let query = self.written_otherwise(&query);
                self.at_some_time(query)
            }
            12 => {
                let query = self.vector(depth);
                let times = self.odd_times();
                Asked { query, times }
            }
            13 => {
                let query = format!("count({})", self.refused_selector());
                self.at_some_time(query)
            }
            _ => {
                let query = self.vector(depth);
                self.at_some_time(query)
            }
        }
    }

    fn at_some_time(&mut self, query: String) -> Asked {
        let times = self.times();
        Asked { query, times }
    }

    /// Before or after all samples, or no times at all.
    fn odd_times(&mut self) -> Times {
        let start = self.time_ms();
        let day = 24 * 3_600_000;
        match self.random.index(6) {
            0 => Times::At(start - day),
            1 => Times::At(start + day),
            2 => Times::At(-3),
            3 => Times::Range {
                start,
                end: start + 1_000,
                step: 0,
            },
            4 => Times::Range {
                start,
                end: start - 1_000,
                step: 1_000,
            },
            _ => Times::Range {
                start,
                end: start + 60_000,
                step: -1_000,
            },
        }
    }

    /// Strings and range vectors have no value over time.
    fn at_once(&mut self, make: impl FnOnce(&mut Self) -> String) -> Asked {
        Asked {
            query: make(self),
            times: Times::At(self.time_ms()),
        }
    }

    /// A time to evaluate at, milliseconds: neither a sample's nor a subquery's.
    fn time_ms(&mut self) -> i64 {
        const AFTER_START_MS: i64 = 10 * 60_000;
        let seconds = self.random.below_i64(data::SPAN_MS / 1_000 - 300);
        data::START_MS + AFTER_START_MS + seconds * 1_000 + 3
    }

    fn times(&mut self) -> Times {
        let start = self.time_ms();
        if self.random.percent(50) {
            return Times::At(start);
        }
        let step = self.random.pick(&[15_000, 60_000, 77_000, 300_000, 1_000]);
        let steps = self.random.below_i64(40);
        let rest = self.random.pick(&[0, 0, 999]);
        Times::Range {
            start,
            end: start + steps * step + rest,
            step,
        }
    }

    /// A query for an instant vector with up to `depth` levels above its selectors.
    fn vector(&mut self, depth: u32) -> String {
        let Some(depth) = depth.checked_sub(1) else {
            return self.selector();
        };
        match self.random.index(24) {
            0..=3 => self.over_range(depth),
            4..=8 => self.aggregation(depth),
            9..=11 => self.joined(depth),
            12 => self.set_operation(depth),
            13..=15 => self.with_scalar(depth),
            16..=19 => self.call(depth),
            20 => self.bucket_quantile(depth),
            21 => self.relabelled(depth),
            22 => format!("{}({})", self.random.pick(&["-", "-", "+"]), self.vector(depth)),
            _ => format!("vector({})", self.scalar(depth)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_queries_nearly_all_of_them_valid() {
        for subject in [Subject::Floats, Subject::NativeHistograms] {
            let (mut a, mut b) = (QueryGenerator::new(3, subject), QueryGenerator::new(3, subject));
            let mut wrong = 0;
            for _ in 0..2_000 {
                let asked = a.asked();
                assert_eq!(asked, b.asked());
                wrong +=
                    usize::from(koios_promql::parse(&asked.query.replace("holt_winters", "deriv")).is_err());
            }
            // `deriv` does not take what `holt_winters` takes; the rest has a mistake put in.
            assert!(wrong < 400, "{wrong} of 2,000 {subject:?} queries are not valid");
        }
    }

    #[test]
    fn a_range_has_its_steps() {
        let times = Times::Range {
            start: 3,
            end: 24,
            step: 10,
        };
        assert_eq!(times.steps(), [3, 13, 23]);
    }
}
