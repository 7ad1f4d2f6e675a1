//! How long a tenant's samples are kept, and when they are summarised.

use std::collections::BTreeMap;
use std::time::Duration;

use koios_model::{Matchers, RetentionRule};

use crate::LimitError;

/// Most rules of a tenant.
pub const RETENTION_RULES_MAX: usize = 20;
/// Most bytes of names and values of a tenant's rules together.
const RULE_BYTES_MAX: usize = 8 << 10;
/// Shortest retention.
const RETENTION_MIN: Duration = Duration::from_secs(60);
/// The key of the rules.
const RULES: &str = "retention-rules";

/// What a tenant may say for itself; what it leaves out is as the process has it for all tenants.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RetentionLimits {
    /// How long samples are kept; zero for ever.
    pub samples: Option<Duration>,
    /// How long after its end a day is summarised by 5 minutes; zero for never.
    pub downsample_after_5m: Option<Duration>,
    /// The same by hours.
    pub downsample_after_1h: Option<Duration>,
    /// How long summaries of 5 minutes are kept; zero for ever.
    pub downsampled_5m: Option<Duration>,
    /// The same of hours.
    pub downsampled_1h: Option<Duration>,
    /// Series that are kept for times of their own: the first rule that matches decides. An empty list says that there are none.
    pub rules: Option<Vec<RetentionRule>>,
}

impl RetentionLimits {
    /// The same with what others say of what these do not.
    #[must_use]
    pub fn or(&self, others: &Self) -> Self {
        Self {
            samples: self.samples.or(others.samples),
            downsample_after_5m: self.downsample_after_5m.or(others.downsample_after_5m),
            downsample_after_1h: self.downsample_after_1h.or(others.downsample_after_1h),
            downsampled_5m: self.downsampled_5m.or(others.downsampled_5m),
            downsampled_1h: self.downsampled_1h.or(others.downsampled_1h),
            rules: self.rules.clone().or_else(|| others.rules.clone()),
        }
    }

    /// The longest that any sample is kept, given for how long samples are by default; zero for ever.
    pub fn longest(&self, default: Duration) -> Duration {
        let kept = |ms: Option<i64>| ms.map_or(Duration::ZERO, |ms| Duration::from_millis(ms.unsigned_abs()));
        let rules = self.rules.iter().flatten().map(|rule| kept(rule.kept_ms));
        let all = rules.chain([self.samples.unwrap_or(default)]);
        all.reduce(|a, b| match a.is_zero() || b.is_zero() {
            true => Duration::ZERO,
            false => a.max(b),
        })
        .unwrap_or(default)
    }

    /// Takes a rule out that every series with a name matches, and gives it. Versions before accepted such rules, and whether it is
    /// meant nobody can ask at a start: so nothing goes by it, nor by what it stood before. What it spoke for is kept for ever, and so
    /// are series without a name.
    pub fn disarm(&mut self) -> Option<RetentionRule> {
        let rules = self.rules.as_mut()?;
        let was_accepted = |m: &Matchers| m.match_every_name() && !m.iter().all(|m| m.matches_empty());
        let at = rules.iter().position(|rule| was_accepted(&rule.matchers))?;
        let disarmed = rules.drain(at..).next();
        self.samples = Some(Duration::ZERO);
        disarmed
    }

    /// Checks that nothing is kept for no time, and that the rules are few, small and of use.
    pub(crate) fn validate(&self) -> Result<(), LimitError> {
        for (key, kept) in [
            ("retention", self.samples),
            ("downsampled-retention-5m", self.downsampled_5m),
            ("downsampled-retention-1h", self.downsampled_1h),
        ] {
            if let Some(kept) = kept.filter(|kept| !kept.is_zero() && *kept < RETENTION_MIN) {
                let (value, rule) = (
                    format!("{kept:?}"),
                    "at least 1m, or 0, which is for ever".to_owned(),
                );
                return Err(LimitError { key, value, rule });
            }
        }
        Self::validate_rules(self.rules.as_deref().unwrap_or_default())
    }

    fn validate_rules(rules: &[RetentionRule]) -> Result<(), LimitError> {
        let wrong = |value: String, rule: String| {
            let key = RULES;
            Err(LimitError { key, value, rule })
        };
        if rules.len() > RETENTION_RULES_MAX {
            let value = format!("a list of {} rules", rules.len());
            return wrong(
                value,
                format!("at most {RETENTION_RULES_MAX}: join matchers by regular expressions"),
            );
        }
        let bytes: usize = rules.iter().map(|r| bytes_of(&r.matchers)).sum();
        if bytes > RULE_BYTES_MAX {
            let value = format!("{bytes} bytes of label names and values");
            return wrong(value, format!("at most {RULE_BYTES_MAX}: shorten the patterns"));
        }
        let mut seen: BTreeMap<Vec<String>, usize> = BTreeMap::new();
        for (at, rule) in rules.iter().enumerate() {
            let number = at + 1;
            let value = format!("rule {number} {}", rule_text(&rule.matchers));
            if rule.matchers.iter().all(|m| m.matches_empty()) {
                let rule = "a selector with at least one matcher that does not match the empty string: for all series set limits.retention";
                return wrong(value, rule.to_owned());
            }
            if rule.matchers.match_every_name() {
                let rule = "a selector that some series do not match: this one matches all, for which set the tenant's limits.retention";
                return wrong(value, rule.to_owned());
            }
            if rule.matchers.iter().any(|m| m.is_large()) {
                return wrong(
                    value,
                    "a selector with smaller patterns: match fewer repetitions".to_owned(),
                );
            }
            if rule.kept_ms.is_some_and(is_too_short) {
                return wrong(
                    value,
                    "kept for at least 1m, or for 0, which is for ever".to_owned(),
                );
            }
            if let Some(first) = seen.insert(sorted_texts(&rule.matchers), number) {
                return wrong(
                    value,
                    format!("another selector than rule {first}, which decides: leave one out"),
                );
            }
        }
        Ok(())
    }
}

fn is_too_short(kept_ms: i64) -> bool {
    u128::from(kept_ms.unsigned_abs()) < RETENTION_MIN.as_millis()
}

/// The matchers as texts that are the same whatever their order.
fn sorted_texts(matchers: &Matchers) -> Vec<String> {
    let mut texts: Vec<String> = matchers.iter().map(ToString::to_string).collect();
    texts.sort_unstable();
    texts.dedup();
    texts
}

fn bytes_of(matchers: &Matchers) -> usize {
    matchers.iter().map(|m| m.name().len() + m.value().len()).sum()
}

/// Matchers as PromQL writes them, `{job="api",env=~"dev|test"}`.
pub fn rule_text(matchers: &Matchers) -> String {
    let all: Vec<String> = matchers.iter().map(ToString::to_string).collect();
    format!("{{{}}}", all.join(","))
}

#[cfg(test)]
mod tests {
    use koios_model::{METRIC_NAME, MatchOp, Matcher};

    use super::*;

    fn rule(op: MatchOp, value: &str, kept_ms: Option<i64>) -> RetentionRule {
        RetentionRule {
            matchers: Matchers(vec![Matcher::new(op, "job", value).unwrap()]),
            kept_ms,
        }
    }

    fn refused(rules: &[RetentionRule]) -> String {
        let limits = RetentionLimits {
            rules: Some(rules.to_vec()),
            ..RetentionLimits::default()
        };
        limits
            .validate()
            .map_or_else(|e| e.to_string(), |()| String::new())
    }

    #[test]
    fn rules_that_cannot_be_meant_are_refused_by_name() {
        let fine = rule(MatchOp::Equal, "api", Some(60_000));
        let every = |pattern: &str| RetentionRule {
            matchers: Matchers(vec![Matcher::new(MatchOp::Regex, METRIC_NAME, pattern).unwrap()]),
            kept_ms: None,
        };
        let both = |names: [&str; 2]| RetentionRule {
            matchers: Matchers(names.map(|name| Matcher::equal(name, "x")).to_vec()),
            kept_ms: None,
        };
        assert_eq!(refused(&[fine.clone(), rule(MatchOp::Regex, "a.+", None)]), "");
        for (rules, want) in [
            (
                vec![fine.clone(), rule(MatchOp::Regex, ".*", None)],
                "rule 2 {job=~\".*\"}, must be a selector with at least one",
            ),
            (
                vec![rule(MatchOp::NotEqual, "a", None)],
                "rule 1 {job!=\"a\"}, must be a selector",
            ),
            (
                vec![fine.clone(), every(".+")],
                "rule 2 {__name__=~\".+\"}, must be a selector that some series do not match",
            ),
            (vec![every("(.|a)..*|.")], "set the tenant's limits.retention"),
            (
                vec![rule(MatchOp::Equal, "a", Some(59_999))],
                "must be kept for at least 1m",
            ),
            (
                vec![fine.clone(), fine.clone()],
                "rule 2 {job=\"api\"}, must be another selector than rule 1",
            ),
            (
                vec![rule(MatchOp::Equal, &"a".repeat(9000), None)],
                "9003 bytes of label names and values, must be at most 8192",
            ),
            (
                vec![both(["a", "b"]), both(["b", "a"])],
                "must be another selector than rule 1",
            ),
            (vec![fine; 21], "a list of 21 rules, must be at most 20"),
        ] {
            let got = refused(&rules);
            assert!(
                got.starts_with("limits.retention-rules is ") && got.contains(want),
                "{got}"
            );
        }
    }

    #[test]
    fn i10_by_a_rule_that_every_series_matches_nothing_goes() {
        let named = |pattern: &str, kept_ms| RetentionRule {
            matchers: Matchers(vec![Matcher::new(MatchOp::Regex, METRIC_NAME, pattern).unwrap()]),
            kept_ms,
        };
        let of = |rules: &[RetentionRule]| RetentionLimits {
            samples: Some(Duration::from_secs(3600)),
            rules: Some(rules.to_vec()),
            ..RetentionLimits::default()
        };
        let first = rule(MatchOp::Equal, "api", Some(60_000));
        let all = named(".+", Some(120_000));
        let mut limits = of(&[first.clone(), all.clone(), named("a.*", Some(60_000))]);
        assert_eq!(limits.disarm(), Some(all));
        // The rule behind it would decide for series that it spoke for.
        assert_eq!(limits.rules.as_deref(), Some(&[first.clone()][..]));
        assert_eq!(limits.samples, Some(Duration::ZERO));
        assert_eq!(limits.validate(), Ok(()));
        assert_eq!(limits.disarm(), None);
        let fine = of(&[first]);
        let mut same = fine.clone();
        assert_eq!((same.disarm(), same), (None, fine));
    }

    #[test]
    fn a_retention_that_cannot_be_meant_is_refused() {
        let refused = |samples, downsampled_5m| {
            let limits = RetentionLimits {
                samples: Some(samples),
                downsampled_5m: Some(downsampled_5m),
                ..RetentionLimits::default()
            };
            limits.validate().map_err(|e| e.to_string())
        };
        let (fine, short) = (Duration::from_secs(60), Duration::from_millis(1));
        assert_eq!(refused(fine, Duration::ZERO), Ok(()));
        assert_eq!(
            refused(short, fine).unwrap_err(),
            "limits.retention is 1ms, must be at least 1m, or 0, which is for ever"
        );
        assert!(
            refused(fine, short)
                .unwrap_err()
                .starts_with("limits.downsampled-retention-5m")
        );
    }

    #[test]
    fn the_longest_retention_is_of_any_rule_or_the_rest() {
        let hour = Duration::from_secs(3600);
        let of = |samples, rules: &[RetentionRule]| {
            let rules = Some(rules.to_vec());
            let limits = RetentionLimits {
                samples,
                rules,
                ..RetentionLimits::default()
            };
            limits.longest(2 * hour)
        };
        assert_eq!(of(None, &[]), 2 * hour);
        assert_eq!(of(Some(hour), &[]), hour);
        assert_eq!(of(Some(Duration::ZERO), &[]), Duration::ZERO);
        let long = rule(MatchOp::Equal, "a", Some(3 * 3_600_000));
        assert_eq!(of(None, std::slice::from_ref(&long)), 3 * hour);
        assert_eq!(of(None, &[long, rule(MatchOp::Equal, "b", None)]), Duration::ZERO);
    }
}
