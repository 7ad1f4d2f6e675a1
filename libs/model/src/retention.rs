//! How long samples are kept: classes of series, and from which time on those of a class are.

use std::sync::Arc;

use crate::{LabelsRef, Matchers, TimeRange};

/// Series that are kept for a time of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetentionRule {
    /// The series.
    pub matchers: Matchers,
    /// How long, milliseconds; `None` for ever.
    pub kept_ms: Option<i64>,
}

/// Sorts series into classes: of a list of rules the first that matches a series decides, and the last class has the series that none matches.
/// Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeriesClasses(Arc<[Matchers]>);

impl SeriesClasses {
    /// A class for each rule, and one for the rest.
    pub fn new(rules: impl IntoIterator<Item = Matchers>) -> Self {
        Self(rules.into_iter().collect())
    }

    /// The rules, in their order.
    pub fn rules(&self) -> &[Matchers] {
        &self.0
    }

    /// How many classes there are.
    pub fn count(&self) -> usize {
        self.0.len() + 1
    }

    /// The class of the series that no rule matches.
    pub fn rest(&self) -> usize {
        self.0.len()
    }

    /// The class of a series.
    pub fn of(&self, labels: LabelsRef<'_>) -> usize {
        let first = self.0.iter().position(|rule| rule.matches(labels));
        first.unwrap_or_else(|| self.rest())
    }
}

/// From which time on samples are kept, by class of series. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expiry {
    classes: SeriesClasses,
    /// By class, milliseconds; `None` for ever, as for classes beyond the end.
    kept_from: Arc<[Option<i64>]>,
}

impl Expiry {
    /// From which time on the samples of each class are kept.
    pub fn new(classes: SeriesClasses, kept_from: impl IntoIterator<Item = Option<i64>>) -> Self {
        Self {
            classes,
            kept_from: kept_from.into_iter().collect(),
        }
    }

    /// The classes.
    pub fn classes(&self) -> &SeriesClasses {
        &self.classes
    }

    /// From which time on the samples of each class are kept.
    pub fn by_class(&self) -> &[Option<i64>] {
        &self.kept_from
    }

    /// From which time on samples of a series are kept; `None` when all are.
    pub fn kept_from(&self, labels: LabelsRef<'_>) -> Option<i64> {
        self.latest()?;
        self.kept_from.get(self.classes.of(labels)).copied().flatten()
    }

    /// The times of a series whose samples are no longer kept.
    pub fn gone(&self, labels: LabelsRef<'_>) -> Option<TimeRange> {
        let from = self.kept_from(labels).filter(|from| *from > i64::MIN)?;
        Some(TimeRange::new(i64::MIN, from - 1))
    }

    /// The time from which on everything is kept; `None` when nothing goes at all.
    pub fn latest(&self) -> Option<i64> {
        self.kept_from.iter().copied().flatten().max()
    }

    /// Whether something may be gone of a range of time.
    pub fn reaches(&self, range: TimeRange) -> bool {
        self.latest().is_some_and(|from| range.min < from)
    }

    /// The same of series that a rule matches alone: all others are kept.
    #[must_use]
    pub fn of_rules(&self) -> Self {
        let rules = self.kept_from.iter().take(self.classes.rest());
        Self {
            classes: self.classes.clone(),
            kept_from: rules.copied().collect(),
        }
    }

    /// The same so much earlier.
    #[must_use]
    pub fn earlier_by(&self, ms: i64) -> Self {
        let earlier = |from: &Option<i64>| from.map(|from| from.saturating_sub(ms));
        Self {
            classes: self.classes.clone(),
            kept_from: self.kept_from.iter().map(earlier).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Labels, MatchOp, Matcher};

    fn rule(op: MatchOp, value: &str) -> Matchers {
        Matchers(vec![Matcher::new(op, "job", value).unwrap()])
    }

    #[test]
    fn of_rules_the_first_that_matches_decides() {
        let rules = [
            rule(MatchOp::Equal, "api"),
            rule(MatchOp::Regex, "a.*"),
            rule(MatchOp::Equal, "slow"),
        ];
        let classes = SeriesClasses::new(rules);
        let expiry = Expiry::new(classes, [Some(30), Some(10), None, Some(20)]);
        for (job, class, from) in [
            ("api", 0, Some(30)),
            ("auth", 1, Some(10)),
            ("slow", 2, None),
            ("other", 3, Some(20)),
        ] {
            let labels = Labels::from_pairs([("job", job)]);
            assert_eq!(expiry.classes().of(labels.as_ref()), class, "{job}");
            assert_eq!(expiry.kept_from(labels.as_ref()), from, "{job}");
            let gone = from.map(|from| TimeRange::new(i64::MIN, from - 1));
            assert_eq!(expiry.gone(labels.as_ref()), gone, "{job}");
            let earlier = expiry.earlier_by(5).kept_from(labels.as_ref());
            assert_eq!(earlier, from.map(|from| from - 5), "{job}");
        }
        assert_eq!(expiry.latest(), Some(30));
        assert!(expiry.reaches(TimeRange::new(29, 99)) && !expiry.reaches(TimeRange::new(30, 99)));
    }

    #[test]
    fn without_anything_all_is_kept() {
        let labels = Labels::from_pairs([("job", "api")]);
        let expiry = Expiry::default();
        assert_eq!((expiry.kept_from(labels.as_ref()), expiry.latest()), (None, None));
        assert!(!expiry.reaches(TimeRange::ALL));
        assert_eq!(expiry.classes().count(), 1);
    }
}
