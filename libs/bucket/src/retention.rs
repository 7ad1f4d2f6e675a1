//! How long a tenant's samples are kept, as its manifest notes it.

use koios_model::{Expiry, MatcherError, RetentionRule, SeriesClasses};

use crate::tombstone::{TombstoneMatcher, compiled, texts};

/// Who said how long samples are kept; what the weaker says never takes the place of what the stronger said with something shorter.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum RetentionOrigin {
    /// Nobody: the program's own defaults.
    #[default]
    BuiltIn,
    /// The process' settings, for all tenants.
    Process,
    /// The tenant's own overrides.
    Tenant,
}

/// Series that are kept for a time of their own.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ListedRule {
    /// All must hold.
    pub matchers: Vec<TombstoneMatcher>,
    /// How long, milliseconds; `None` for ever.
    pub kept_ms: Option<i64>,
}

impl ListedRule {
    /// The rule as a manifest lists it.
    pub fn new(rule: &RetentionRule) -> Self {
        Self {
            matchers: texts(&rule.matchers),
            kept_ms: rule.kept_ms,
        }
    }

    /// Its matchers as PromQL writes them.
    pub fn selector(&self) -> String {
        let text = |m: &TombstoneMatcher| format!("{}{}{:?}", m.name, m.op.as_str(), m.value);
        let all: Vec<String> = self.matchers.iter().map(text).collect();
        format!("{{{}}}", all.join(","))
    }
}

/// How long summaries of one resolution are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SummaryRetention {
    /// How much time a summary is of, milliseconds.
    pub resolution_ms: i64,
    /// How long they are kept, milliseconds; `None` for ever.
    pub kept_ms: Option<i64>,
}

/// How long what is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RetentionPolicy {
    /// Who said so.
    pub origin: RetentionOrigin,
    /// How long samples of series are kept that no rule matches, milliseconds; `None` for ever.
    pub samples_ms: Option<i64>,
    /// Summaries, by resolution.
    pub summaries: Vec<SummaryRetention>,
    /// The first that matches a series decides.
    pub rules: Vec<ListedRule>,
    /// Whether readers leave out what is older than [`Self::samples_ms`]; else it is there until its block goes.
    pub masks_rest: bool,
}

/// The longer of two times, of which `None` is for ever.
fn longer(a: Option<i64>, b: Option<i64>) -> Option<i64> {
    a.zip(b).map(|(a, b)| a.max(b))
}

impl RetentionPolicy {
    /// Whether readers leave anything out because of its age.
    pub fn masks(&self) -> bool {
        self.masks_rest || !self.rules.is_empty()
    }

    /// Nothing is kept for longer, but for summaries; `None` for ever.
    pub fn longest_ms(&self) -> Option<i64> {
        let rules = self.rules.iter().map(|rule| rule.kept_ms);
        rules.fold(self.samples_ms, longer)
    }

    /// What keeps everything for as long as both say at least, under the rules of `self`.
    #[must_use]
    pub fn at_least(&self, other: &Self) -> Self {
        let all = other.longest_ms();
        let summary = |s: &SummaryRetention| {
            let alike = other
                .summaries
                .iter()
                .find(|o| o.resolution_ms == s.resolution_ms);
            SummaryRetention {
                kept_ms: alike.map_or(s.kept_ms, |o| longer(s.kept_ms, o.kept_ms)),
                ..*s
            }
        };
        let rule = |rule: &ListedRule| ListedRule {
            kept_ms: longer(rule.kept_ms, all),
            ..rule.clone()
        };
        Self {
            origin: self.origin,
            samples_ms: longer(self.samples_ms, all),
            summaries: self.summaries.iter().map(summary).collect(),
            rules: self.rules.iter().map(rule).collect(),
            masks_rest: self.masks_rest,
        }
    }
}

/// The policy in force, and how far it is carried out.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RetentionRecord {
    /// How long what is kept.
    pub policy: RetentionPolicy,
    /// As of when it is in force, by the clock of the store that noted it, milliseconds.
    pub since_ms: i64,
    /// The time as of which it is carried out: what is older than its retention then is masked, milliseconds.
    pub horizon_ms: i64,
    /// What `lacks` of blocks calls the classes of series: one name for each rule, and one for the rest. A name never has another meaning.
    pub classes: Vec<u64>,
    /// Names up to this one were given.
    pub last_class: u64,
}

impl RetentionRecord {
    /// Notes a policy, after `before`. Classes that mean the same keep their names.
    pub fn new(policy: RetentionPolicy, before: Option<&Self>, since_ms: i64, horizon_ms: i64) -> Self {
        let mut last_class = before.map_or(0, |b| b.last_class);
        let rules = |p: &RetentionPolicy| -> Vec<Vec<TombstoneMatcher>> {
            p.rules.iter().map(|rule| rule.matchers.clone()).collect()
        };
        let (now, then) = (
            rules(&policy),
            before.map(|b| rules(&b.policy)).unwrap_or_default(),
        );
        let alike = now.iter().zip(&then).take_while(|(a, b)| a == b).count();
        let rest_is_alike = before.is_some() && now == then;
        let name = |class: usize| {
            let kept = class < alike || class == now.len() && rest_is_alike;
            let name = before
                .filter(|_| kept)
                .and_then(|b| b.classes.get(class).copied());
            name.unwrap_or_else(|| {
                last_class += 1;
                last_class
            })
        };
        let classes = (0..=now.len()).map(name).collect();
        Self {
            policy,
            since_ms,
            horizon_ms,
            classes,
            last_class,
        }
    }

    /// The classes of series, compiled.
    ///
    /// # Errors
    /// [`MatcherError`] when a pattern does not compile, which whoever read the rules has checked.
    pub fn series_classes(&self) -> Result<SeriesClasses, MatcherError> {
        let rules = self.policy.rules.iter().map(|rule| compiled(&rule.matchers));
        Ok(SeriesClasses::new(rules.collect::<Result<Vec<_>, _>>()?))
    }

    /// What readers leave out.
    ///
    /// # Errors
    /// As [`Self::series_classes`].
    pub fn expiry(&self) -> Result<Expiry, MatcherError> {
        if !self.policy.masks() {
            return Ok(Expiry::default());
        }
        let from = |kept_ms: Option<i64>| kept_ms.map(|kept| self.horizon_ms.saturating_sub(kept));
        let rules = self.policy.rules.iter().map(|rule| from(rule.kept_ms));
        let rest = from(self.policy.samples_ms).filter(|_| self.policy.masks_rest);
        Ok(Expiry::new(
            self.series_classes()?,
            rules.chain(std::iter::once(rest)),
        ))
    }
}

#[cfg(test)]
mod tests {
    use koios_model::{Labels, Matcher, Matchers};

    use super::*;

    fn rule(job: &str, kept_ms: Option<i64>) -> ListedRule {
        ListedRule::new(&RetentionRule {
            matchers: Matchers(vec![Matcher::equal("job", job)]),
            kept_ms,
        })
    }

    fn policy(samples_ms: Option<i64>, rules: &[ListedRule]) -> RetentionPolicy {
        RetentionPolicy {
            samples_ms,
            rules: rules.to_vec(),
            ..RetentionPolicy::default()
        }
    }

    #[test]
    fn i10_what_keeps_as_long_as_both_never_keeps_shorter() {
        let (week, month, year) = (Some(7), Some(30), Some(365));
        let own = policy(year, &[rule("debug", week), rule("slo", None)]);
        let held = own.at_least(&policy(month, &[]));
        assert_eq!(held.samples_ms, year);
        assert_eq!(held.rules, [rule("debug", month), rule("slo", None)]);
        assert_eq!(held.at_least(&policy(month, &[])), held);
        // Whatever its rules match.
        let held = own.at_least(&policy(week, &[rule("x", Some(400))]));
        assert_eq!((held.samples_ms, held.rules[0].kept_ms), (Some(400), Some(400)));
        assert_eq!(policy(week, &[]).at_least(&policy(None, &[])).samples_ms, None);
    }

    #[test]
    fn i10_a_name_of_a_class_never_has_another_meaning() {
        let (a, b) = (rule("a", Some(1)), rule("b", Some(2)));
        let first = RetentionRecord::new(policy(None, &[a.clone(), b.clone()]), None, 0, 0);
        assert_eq!(first.classes, [1, 2, 3]);
        let next = |rules: &[ListedRule]| RetentionRecord::new(policy(None, rules), Some(&first), 0, 0);
        // Another time for the same series; another first rule; one less, one more at the end.
        assert_eq!(next(&[rule("a", None), b.clone()]).classes, [1, 2, 3]);
        assert_eq!(next(&[b.clone(), a.clone()]).classes, [4, 5, 6]);
        assert_eq!(next(std::slice::from_ref(&a)).classes, [1, 4]);
        assert_eq!(next(&[a, b, rule("c", None)]).classes, [1, 2, 4, 5]);
    }

    #[test]
    fn what_is_masked_is_told_by_the_horizon() {
        let labels = |job: &str| Labels::from_pairs([("job", job)]);
        let mut record = RetentionRecord::new(policy(Some(10), &[rule("a", Some(70))]), None, 0, 100);
        let from = |r: &RetentionRecord, job: &str| r.expiry().unwrap().kept_from(labels(job).as_ref());
        assert_eq!((from(&record, "a"), from(&record, "b")), (Some(30), None));
        record.policy.masks_rest = true;
        assert_eq!((from(&record, "a"), from(&record, "b")), (Some(30), Some(90)));
        record.policy.rules.clear();
        record.policy.masks_rest = false;
        assert_eq!(from(&record, "b"), None);
    }
}
