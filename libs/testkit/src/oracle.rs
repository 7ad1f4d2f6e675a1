//! Judges what queries return by what was sent and what was acknowledged: acknowledged ⊆ returned ⊆ sent, each once.

use std::collections::BTreeMap;

use koios_model::{Labels, Sample, merge};

/// What is judged: a value of a series at a time.
pub trait Judged: Clone {
    /// The time in milliseconds.
    fn time(&self) -> i64;

    /// Whether another value at the same time is the same, bit for bit.
    fn is_same(&self, other: &Self) -> bool;

    /// Whether it stays where another value at the same time is held as well (I2). Of equal ones each does.
    fn wins_over(&self, other: &Self) -> bool;

    /// The value for people, and exactly.
    fn tell(&self) -> String;
}

impl Judged for Sample {
    fn time(&self) -> i64 {
        self.t
    }

    fn is_same(&self, other: &Self) -> bool {
        self.v.to_bits() == other.v.to_bits()
    }

    fn wins_over(&self, other: &Self) -> bool {
        merge::winner(self.v, other.v).to_bits() == self.v.to_bits()
    }

    fn tell(&self) -> String {
        format!("{} ({:016x})", self.v, self.v.to_bits())
    }
}

/// What one sent sample may look like when read.
#[derive(Clone, Debug)]
struct Fate<S> {
    /// Every value ever sent for the timestamp.
    sent: Vec<S>,
    /// The winner among the acknowledged ones.
    acknowledged: Option<S>,
    /// What was read last, where a read proves that the value stays.
    read: Option<S>,
}

impl<S> Default for Fate<S> {
    fn default() -> Self {
        Self {
            sent: Vec::new(),
            acknowledged: None,
            read: None,
        }
    }
}

impl<S: Judged> Fate<S> {
    /// What must be returned, or a winner over it.
    fn due(&self) -> Option<&S> {
        match (&self.acknowledged, &self.read) {
            (Some(a), Some(b)) => Some(if a.wins_over(b) { a } else { b }),
            (a, b) => a.as_ref().or(b.as_ref()),
        }
    }
}

/// What was sent and acknowledged for one tenant.
#[derive(Clone, Debug)]
pub struct Oracle<S = Sample> {
    series: BTreeMap<Labels, BTreeMap<i64, Fate<S>>>,
    acknowledged: u64,
}

impl<S> Default for Oracle<S> {
    fn default() -> Self {
        Self {
            series: BTreeMap::new(),
            acknowledged: 0,
        }
    }
}

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// I1: an acknowledged sample is not returned.
    #[error("acknowledged sample {labels} @{t} is missing")]
    Missing {
        /// The series.
        labels: Labels,
        /// Its time in milliseconds.
        t: i64,
    },
    /// I2: a value is returned that another one, acknowledged or returned before, wins over.
    #[error("sample {labels} @{t} is {got}, but {due} was acknowledged or read before and wins")]
    Loser {
        /// The series.
        labels: Labels,
        /// Its time in milliseconds.
        t: i64,
        /// What was returned.
        got: String,
        /// What should have won.
        due: String,
    },
    /// I2: another value is returned than was sent.
    #[error("sample {labels} @{t} is {got}, not one of the values sent")]
    WrongValue {
        /// The series.
        labels: Labels,
        /// Its time in milliseconds.
        t: i64,
        /// What was returned.
        got: String,
    },
    /// I2: a sample is returned twice or out of order.
    #[error("sample {labels} @{t} is returned after one at {before}")]
    Repeated {
        /// The series.
        labels: Labels,
        /// Its time in milliseconds.
        t: i64,
        /// The time before it.
        before: i64,
    },
    /// I3: a sample that nobody sent.
    #[error("sample {labels} @{t} was never sent")]
    Phantom {
        /// The series.
        labels: Labels,
        /// Its time in milliseconds.
        t: i64,
    },
}

impl<S: Judged> Oracle<S> {
    /// Tells it what is about to be sent.
    pub fn sent(&mut self, series: &[(Labels, Vec<S>)]) {
        for (labels, samples) in series {
            let fates = self.series.entry(labels.clone()).or_default();
            for s in samples {
                fates.entry(s.time()).or_default().sent.push(s.clone());
            }
        }
    }

    /// Tells it that the same was answered with 2xx.
    pub fn acknowledged(&mut self, series: &[(Labels, Vec<S>)]) {
        for (labels, samples) in series {
            let fates = self.series.entry(labels.clone()).or_default();
            for s in samples {
                let fate = fates.entry(s.time()).or_default();
                if fate.acknowledged.as_ref().is_none_or(|kept| s.wins_over(kept)) {
                    fate.acknowledged = Some(s.clone());
                }
                self.acknowledged += 1;
            }
        }
    }

    /// Tells it what was read and must stay from then on: where what is read is known to be durable (I3).
    pub fn read(&mut self, returned: &BTreeMap<Labels, Vec<S>>) {
        for (labels, samples) in returned {
            let Some(fates) = self.series.get_mut(labels) else {
                continue;
            };
            for s in samples {
                if let Some(fate) = fates.get_mut(&s.time()) {
                    fate.read = Some(s.clone());
                }
            }
        }
    }

    /// Tells it that what was acknowledged of these is reported as lost.
    pub fn lost(&mut self, series: &[(Labels, Vec<S>)]) {
        for (labels, samples) in series {
            let Some(fates) = self.series.get_mut(labels) else {
                continue;
            };
            for s in samples {
                if let Some(fate) = fates.get_mut(&s.time()) {
                    (fate.acknowledged, fate.read) = (None, None);
                }
            }
        }
    }

    /// How many samples were acknowledged.
    pub fn acknowledged_count(&self) -> u64 {
        self.acknowledged
    }

    /// The time range of everything sent, or `None`.
    pub fn range(&self) -> Option<(i64, i64)> {
        let times = || self.series.values().flat_map(|f| f.keys().copied());
        Some((times().min()?, times().max()?))
    }

    /// Checks a complete answer to "all samples of all series".
    ///
    /// # Errors
    /// The first broken promise.
    pub fn check(&self, returned: &BTreeMap<Labels, Vec<S>>) -> Result<(), Violation> {
        self.check_genuine(returned)?;
        self.check_complete(returned)
    }

    /// Checks that nothing but what was sent is returned, each sample once (I2, I3).
    ///
    /// # Errors
    /// The first broken promise.
    pub fn check_genuine(&self, returned: &BTreeMap<Labels, Vec<S>>) -> Result<(), Violation> {
        returned
            .iter()
            .try_for_each(|(labels, samples)| self.check_returned(labels, samples))
    }

    /// Checks that everything acknowledged is returned (I1), or a value that wins over it (I2).
    ///
    /// # Errors
    /// The first broken promise.
    pub fn check_complete(&self, returned: &BTreeMap<Labels, Vec<S>>) -> Result<(), Violation> {
        self.check_complete_where(returned, |_, _| true)
    }

    /// The same for some series and times.
    ///
    /// # Errors
    /// The first broken promise.
    pub fn check_complete_where(
        &self,
        returned: &BTreeMap<Labels, Vec<S>>,
        is_owed: impl Fn(&Labels, i64) -> bool,
    ) -> Result<(), Violation> {
        for (labels, fates) in &self.series {
            let samples = returned.get(labels).into_iter().flatten();
            let got: BTreeMap<i64, &S> = samples.map(|s| (s.time(), s)).collect();
            for (&t, fate) in fates.iter().filter(|(t, _)| is_owed(labels, **t)) {
                if let Some(due) = fate.due() {
                    check_due(labels, t, due, got.get(&t).copied())?;
                }
            }
        }
        Ok(())
    }

    fn check_returned(&self, labels: &Labels, samples: &[S]) -> Result<(), Violation> {
        let mut before = i64::MIN;
        for s in samples {
            let t = s.time();
            if t <= before {
                return Err(Violation::Repeated {
                    labels: labels.clone(),
                    t,
                    before,
                });
            }
            before = t;
            let Some(fate) = self.series.get(labels).and_then(|f| f.get(&t)) else {
                return Err(Violation::Phantom {
                    labels: labels.clone(),
                    t,
                });
            };
            if !fate.sent.iter().any(|sent| sent.is_same(s)) {
                return Err(Violation::WrongValue {
                    labels: labels.clone(),
                    t,
                    got: s.tell(),
                });
            }
        }
        Ok(())
    }
}

fn check_due<S: Judged>(labels: &Labels, t: i64, due: &S, got: Option<&S>) -> Result<(), Violation> {
    let Some(got) = got else {
        return Err(Violation::Missing {
            labels: labels.clone(),
            t,
        });
    };
    if got.wins_over(due) {
        return Ok(());
    }
    Err(Violation::Loser {
        labels: labels.clone(),
        t,
        got: got.tell(),
        due: due.tell(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::SeriesMap;

    fn one(t: i64, v: f64) -> Vec<(Labels, Vec<Sample>)> {
        vec![(Labels::from_pairs([("a", "1")]), vec![Sample { t, v }])]
    }

    #[test]
    fn notices_each_broken_promise() {
        let mut oracle = Oracle::default();
        oracle.sent(&one(1, 1.0));
        oracle.sent(&one(2, 2.0));
        oracle.acknowledged(&one(1, 1.0));
        let answer = |s: Vec<Vec<(Labels, Vec<Sample>)>>| {
            let mut map = SeriesMap::new();
            for (l, samples) in s.into_iter().flatten() {
                map.entry(l).or_default().extend(samples);
            }
            map
        };
        assert_eq!(oracle.check(&answer(vec![one(1, 1.0)])), Ok(()));
        assert_eq!(oracle.check(&answer(vec![one(1, 1.0), one(2, 2.0)])), Ok(()));
        assert!(matches!(
            oracle.check(&answer(vec![])),
            Err(Violation::Missing { t: 1, .. })
        ));
        assert!(matches!(
            oracle.check(&answer(vec![one(1, 3.0)])),
            Err(Violation::WrongValue { .. })
        ));
        assert!(matches!(
            oracle.check(&answer(vec![one(1, 1.0), one(1, 1.0)])),
            Err(Violation::Repeated { .. })
        ));
        assert!(matches!(
            oracle.check(&answer(vec![one(1, 1.0), one(9, 1.0)])),
            Err(Violation::Phantom { .. })
        ));
    }

    fn map(answer: Vec<(Labels, Vec<Sample>)>) -> SeriesMap {
        answer.into_iter().collect()
    }

    #[test]
    fn i2_the_winner_of_what_was_acknowledged_is_due_and_one_over_it_is_allowed() {
        let mut oracle = Oracle::default();
        for v in [1.0, 2.0, 3.0] {
            oracle.sent(&one(1, v));
        }
        oracle.acknowledged(&one(1, 2.0));
        oracle.acknowledged(&one(1, 1.0));
        assert!(matches!(
            oracle.check(&map(one(1, 1.0))),
            Err(Violation::Loser { t: 1, .. })
        ));
        assert_eq!(oracle.check(&map(one(1, 2.0))), Ok(()));
        assert_eq!(oracle.check(&map(one(1, 3.0))), Ok(()));
    }

    #[test]
    fn i3_what_was_read_stays_until_it_is_reported_as_lost() {
        let mut oracle = Oracle::default();
        oracle.sent(&one(1, 1.0));
        assert_eq!(oracle.check(&map(Vec::new())), Ok(()));
        oracle.read(&map(one(1, 1.0)));
        assert!(matches!(
            oracle.check(&map(Vec::new())),
            Err(Violation::Missing { t: 1, .. })
        ));
        assert_eq!(
            oracle.check_complete_where(&map(Vec::new()), |_, t| t >= 2),
            Ok(())
        );
        oracle.lost(&one(1, 1.0));
        assert_eq!(oracle.check(&map(Vec::new())), Ok(()));
    }
}
