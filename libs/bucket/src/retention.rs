//! How long a tenant's samples are kept, as its manifest notes it.

use koios_block::BlockId;
use koios_model::{Expiry, MatcherError, RetentionRule, SeriesClasses};

use crate::compiled_rules::CompiledRules;
use crate::manifest::Manifest;
use crate::tombstone::{TombstoneMatcher, texts};
use crate::{Error, Result};

/// Who said a value of a policy; what the weaker says never takes the place of what the stronger said with something shorter.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum RetentionOrigin {
    /// Nobody: the program's own defaults.
    #[default]
    BuiltIn,
    /// The process' settings, outside of `limits`.
    Process,
    /// `limits`, for all tenants.
    Limits,
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

/// When samples are summarised to one resolution, and how long summaries are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SummaryRetention {
    /// How much time a summary is of, milliseconds.
    pub resolution_ms: i64,
    /// How long they are kept, milliseconds; `None` for ever.
    pub kept_ms: Option<i64>,
    /// Who said [`Self::kept_ms`].
    pub kept_origin: RetentionOrigin,
    /// How long after its end a day is summarised, milliseconds; `None` for never.
    pub after_ms: Option<i64>,
    /// Who said [`Self::after_ms`].
    pub after_origin: RetentionOrigin,
}

/// How long what is kept, and who said so, value by value.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RetentionPolicy {
    /// How long samples of series are kept that no rule matches, milliseconds; `None` for ever.
    pub samples_ms: Option<i64>,
    /// Who said [`Self::samples_ms`].
    pub samples_origin: RetentionOrigin,
    /// Summaries, by resolution.
    pub summaries: Vec<SummaryRetention>,
    /// The first that matches a series decides.
    pub rules: Vec<ListedRule>,
    /// Who said [`Self::rules`], all of them.
    pub rules_origin: RetentionOrigin,
    /// Whether readers leave out what is older than [`Self::samples_ms`]; else it is there until its block goes.
    pub masks_rest: bool,
}

/// The longer of two times, of which `None` is for ever.
fn longer(a: Option<i64>, b: Option<i64>) -> Option<i64> {
    a.zip(b).map(|(a, b)| a.max(b))
}

/// Whether a time is shorter than another, of which `None` is for ever.
fn is_shorter(a: Option<i64>, b: Option<i64>) -> bool {
    a.is_some_and(|a| b.is_none_or(|b| a < b))
}

impl SummaryRetention {
    /// What is in force where `self` is told and `noted` was; `held` is told of what is held against it.
    fn after(self, noted: &Self, held: &mut Vec<&'static str>) -> Self {
        let mut in_force = self;
        if self.kept_origin < noted.kept_origin {
            held.push("downsampled-retention");
            in_force.kept_ms = longer(noted.kept_ms, self.kept_ms);
            in_force.kept_origin = noted.kept_origin;
        }
        if self.after_origin < noted.after_origin {
            held.push("downsample-after");
            // Summaries that were made are made still: without them samples would leave nothing.
            in_force.after_ms = noted.after_ms.or(self.after_ms);
            in_force.after_origin = noted.after_origin;
        }
        in_force
    }
}

impl RetentionPolicy {
    /// Whether readers leave anything out because of its age.
    pub fn masks(&self) -> bool {
        self.masks_rest || !self.rules.is_empty()
    }

    /// The strongest that said any of it.
    pub fn origin(&self) -> RetentionOrigin {
        let summaries = self.summaries.iter();
        let of_summaries = summaries.map(|s| s.kept_origin.max(s.after_origin));
        of_summaries.fold(self.samples_origin.max(self.rules_origin), Ord::max)
    }

    /// Nothing is kept for longer, but for summaries; `None` for ever.
    pub fn longest_ms(&self) -> Option<i64> {
        let rules = self.rules.iter().map(|rule| rule.kept_ms);
        rules.fold(self.samples_ms, longer)
    }

    /// Anything is kept for as long at least; `None` for ever.
    pub fn shortest_ms(&self) -> Option<i64> {
        let rules = self.rules.iter().filter_map(|rule| rule.kept_ms);
        let summaries = self.summaries.iter().filter_map(|s| s.kept_ms);
        rules.chain(summaries).chain(self.samples_ms).min()
    }

    /// The same with [`Self::masks_rest`] as it follows from the other values: where a tenant's limits say how long samples are kept, and
    /// no summaries take their place. Where these do, samples are there until that is done.
    #[must_use]
    pub fn masking(mut self) -> Self {
        let outlives = |s: &SummaryRetention| s.after_ms.is_some() && is_shorter(self.samples_ms, s.kept_ms);
        let is_bounded = self.samples_ms.is_some() && self.samples_origin >= RetentionOrigin::Limits;
        self.masks_rest = is_bounded && !self.summaries.iter().any(outlives);
        self
    }

    /// What is in force when `self` is what the settings say and `noted` is what was in force before, and the keys of `limits` that are
    /// held against the settings. What the weaker says of a value, because what the stronger said is no longer known, makes nothing go
    /// earlier; and a rule that is no longer in a list that has others makes nothing go earlier either.
    pub fn after(&self, noted: &Self) -> (Self, Vec<&'static str>) {
        let (mut in_force, mut held) = (self.clone(), Vec::new());
        if self.samples_origin < noted.samples_origin {
            held.push("retention");
            in_force.samples_ms = longer(noted.samples_ms, self.samples_ms);
            in_force.samples_origin = noted.samples_origin;
        }
        for summary in &mut in_force.summaries {
            let same = |s: &&SummaryRetention| s.resolution_ms == summary.resolution_ms;
            if let Some(before) = noted.summaries.iter().find(same) {
                *summary = summary.after(before, &mut held);
            }
        }
        let is_told =
            |s: &&SummaryRetention| self.summaries.iter().any(|t| t.resolution_ms == s.resolution_ms);
        let untold = noted.summaries.iter().filter(|s| !is_told(s));
        in_force.summaries.extend(untold.copied());
        let is_weaker = self.rules_origin < noted.rules_origin;
        let is_shortened = self.rules_origin == noted.rules_origin
            && !self.rules.is_empty()
            && self.loses_rules(&noted.rules, in_force.samples_ms);
        if is_weaker || is_shortened {
            held.push("retention-rules");
            // Which series the rules that are told would have kept is not asked.
            let all = self.longest_ms();
            in_force.rules = noted.rules.clone();
            for rule in &mut in_force.rules {
                rule.kept_ms = longer(rule.kept_ms, all);
            }
            in_force.rules_origin = noted.rules_origin;
            in_force.samples_ms = longer(in_force.samples_ms, all);
        }
        held.sort_unstable();
        held.dedup();
        (in_force.masking(), held)
    }

    /// Whether series of a noted rule may go earlier because it is not listed any more, given for how long the rest is kept.
    fn loses_rules(&self, noted: &[ListedRule], rest_ms: Option<i64>) -> bool {
        let mut rules = noted.iter().enumerate();
        rules.any(|(at, rule)| {
            let is_listed = self.rules.iter().any(|r| r.matchers == rule.matchers);
            // No rule before it matches its series.
            let is_other = |r: &&ListedRule| noted.iter().take(at).all(|b| b.matchers != r.matchers);
            let others = self.rules.iter().filter(is_other).map(|r| r.kept_ms);
            let mut left = others.chain([rest_ms]);
            !is_listed && left.any(|ms| is_shorter(ms, rule.kept_ms))
        })
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
    /// The first version of which readers leave out the same as of the one that has this; `None` when it is not known. The commit stamps it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub masks_since: Option<u64>,
    /// Its rules, once they were compiled.
    #[serde(skip)]
    pub(crate) compiled: CompiledRules,
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
            masks_since: None,
            compiled: CompiledRules::default(),
        }
    }

    /// The same, carried out as of another time.
    #[must_use]
    pub fn moved(&self, since_ms: i64, horizon_ms: i64) -> Self {
        Self {
            since_ms,
            horizon_ms,
            ..self.clone()
        }
    }

    /// Whether readers leave out the same of any block.
    fn masks_like(&self, other: &Self) -> bool {
        let rest = |r: &Self| r.policy.samples_ms.filter(|_| r.policy.masks_rest);
        match (self.policy.masks(), other.policy.masks()) {
            (true, true) => {
                self.horizon_ms == other.horizon_ms
                    && rest(self) == rest(other)
                    && self.policy.rules == other.policy.rules
                    && self.classes == other.classes
            }
            (masks, others) => masks == others,
        }
    }

    /// Stamps [`Self::masks_since`], given what the version before notes.
    pub(crate) fn stamp(&mut self, before: Option<&Self>, version: u64) {
        let same = before.filter(|b| b.masks_like(self)).and_then(|b| b.masks_since);
        self.masks_since = same.or(Some(version));
    }

    /// The classes of series, compiled.
    ///
    /// # Errors
    /// [`MatcherError`] when a pattern does not compile, which whoever read the rules has checked.
    pub fn series_classes(&self) -> Result<SeriesClasses, MatcherError> {
        self.compiled.of(&self.policy.rules)
    }

    /// The time from which on readers leave nothing out; `None` when they leave nothing out at all.
    pub fn masked_before(&self) -> Option<i64> {
        let rules = self.policy.rules.iter().filter_map(|rule| rule.kept_ms);
        let rest = self.policy.samples_ms.filter(|_| self.policy.masks_rest);
        let shortest = rules.chain(rest).min();
        shortest.map(|kept| self.horizon_ms.saturating_sub(kept))
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

impl Manifest {
    /// What readers leave out because of its age.
    ///
    /// # Errors
    /// [`Error::Refused`] when a pattern of a rule does not compile.
    pub fn expiry(&self) -> Result<Expiry> {
        let Some(record) = &self.retention else {
            return Ok(Expiry::default());
        };
        record.expiry().map_err(|e| Error::Refused {
            tenant: self.tenant.clone(),
            reason: format!("a rule of its retention cannot be read: {e}"),
        })
    }

    /// Takes over the compiled rules of another version, where they are the same.
    pub(crate) fn adopt_rules(&self, other: &Self) {
        if let (Some(own), Some(other)) = (&self.retention, &other.retention) {
            own.compiled.adopt(&other.compiled, &own.policy.rules);
        }
    }

    /// The first version of which readers leave out the same because of its age as of this one; `None` when that is not known.
    /// None before a version that was made without knowing them is.
    pub fn masks_since(&self) -> Option<u64> {
        let since = self.retention.as_ref().map_or(Some(0), |r| r.masks_since);
        since.map(|since| since.max(self.rebuilt))
    }

    /// Notes classes of series that a block has none of.
    pub fn note_lacks(&mut self, block: BlockId, classes: &[u64]) {
        for b in self.blocks.iter_mut().filter(|b| b.block == block) {
            b.lacks.extend_from_slice(classes);
            b.lacks.sort_unstable();
            b.lacks.dedup();
        }
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

    use RetentionOrigin::{BuiltIn, Limits, Process, Tenant};

    /// What is in force after what was noted, told twice.
    fn in_force(told: &RetentionPolicy, noted: &RetentionPolicy) -> (RetentionPolicy, Vec<&'static str>) {
        let (first, held) = told.after(noted);
        assert_eq!(
            told.after(&first),
            (first.clone(), held.clone()),
            "again and again"
        );
        (first, held)
    }

    #[test]
    fn i10_a_value_that_a_weaker_says_is_never_shorter() {
        let said = |samples_ms, samples_origin, rules: &[ListedRule], rules_origin| RetentionPolicy {
            samples_origin,
            rules_origin,
            ..policy(samples_ms, rules)
        };
        let (week, month, year) = (Some(7), Some(30), Some(365));
        let own = said(year, Tenant, &[rule("debug", week), rule("slo", None)], Tenant);
        let (held, keys) = in_force(&said(month, BuiltIn, &[], BuiltIn), &own);
        assert_eq!((held.samples_ms, held.samples_origin), (year, Tenant));
        assert_eq!(held.rules, [rule("debug", month), rule("slo", None)]);
        assert_eq!(keys, ["retention", "retention-rules"]);
        // Whatever the weaker's rules match.
        let other = said(week, Process, &[rule("x", Some(400))], Limits);
        let (held, _) = in_force(&other, &own);
        assert_eq!((held.samples_ms, held.rules[0].kept_ms), (Some(400), Some(400)));
        // The tenant is named, and for another reason: each value for itself.
        let (held, keys) = in_force(&said(month, Process, &own.rules, Tenant), &own);
        assert_eq!((held.samples_ms, keys), (year, vec!["retention"]));
        let (held, keys) = in_force(&said(month, Tenant, &[], BuiltIn), &own);
        assert_eq!((held.samples_ms, keys), (month, vec!["retention-rules"]));
        assert_eq!(held.rules, [rule("debug", month), rule("slo", None)]);
        // `limits` beside what the process was told.
        let limits = said(year, Limits, &[], BuiltIn);
        assert_eq!(
            in_force(&said(month, Process, &[], BuiltIn), &limits)
                .0
                .samples_ms,
            year
        );
        // Who may say so is obeyed, and so is who says that there is none.
        let told = said(month, Tenant, &[], Tenant);
        assert_eq!(in_force(&told, &own), (told.masking(), vec![]));
        let longer = said(None, BuiltIn, &[], BuiltIn);
        assert_eq!(in_force(&longer, &limits).0.samples_ms, None);
    }

    #[test]
    fn i10_a_rule_that_is_lost_from_a_list_is_held() {
        let said = |samples_ms, rules: &[ListedRule]| RetentionPolicy {
            rules_origin: Tenant,
            ..policy(samples_ms, rules)
        };
        let (slo, debug, dev) = (rule("slo", None), rule("debug", Some(7)), rule("dev", Some(30)));
        let noted = said(Some(100), &[debug.clone(), slo.clone(), dev.clone()]);
        let keys = |told: &[ListedRule]| in_force(&said(Some(100), told), &noted).1;
        // Half a list is read.
        let (held, _) = in_force(&said(Some(100), std::slice::from_ref(&debug)), &noted);
        assert_eq!(
            held.rules,
            [rule("debug", Some(100)), slo.clone(), rule("dev", Some(100))]
        );
        assert_eq!(keys(&[debug.clone(), dev.clone()]), ["retention-rules"]);
        // What is lost kept nothing for longer than anything else would.
        assert_eq!(keys(&[debug.clone(), slo.clone()]), Vec::<&str>::new());
        assert_eq!(keys(&[slo, dev]), Vec::<&str>::new());
        // It is said: none, another time, or a rule before it.
        assert_eq!(keys(&[]), Vec::<&str>::new());
        assert_eq!(keys(&[debug.clone(), rule("slo", Some(100))]), Vec::<&str>::new());
        let shorter = said(Some(100), &[debug.clone(), rule("slo", Some(100))]);
        assert_eq!(
            in_force(&said(Some(100), &[debug]), &shorter).1,
            Vec::<&str>::new()
        );
    }

    #[test]
    fn i10_summaries_that_were_made_are_made_still() {
        let said = |after_ms, after_origin, kept_ms, kept_origin| RetentionPolicy {
            summaries: vec![SummaryRetention {
                resolution_ms: 5,
                kept_ms,
                kept_origin,
                after_ms,
                after_origin,
            }],
            samples_origin: Tenant,
            ..policy(Some(100), &[])
        };
        let own = said(Some(40), Tenant, None, Tenant).masking();
        assert!(!own.masks_rest);
        let (held, keys) = in_force(&said(None, Process, Some(200), Process), &own);
        assert_eq!(held, own);
        assert_eq!(keys, ["downsample-after", "downsampled-retention"]);
        let (obeyed, keys) = in_force(&said(None, Tenant, Some(200), Tenant), &own);
        assert!(keys.is_empty() && obeyed.masks_rest && obeyed.summaries[0].after_ms.is_none());
        // Nobody says anything of a resolution.
        let nothing = RetentionPolicy {
            summaries: Vec::new(),
            ..own.clone()
        };
        assert_eq!(in_force(&nothing, &own).0, own);
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
        assert_eq!(record.masked_before(), Some(30));
        record.policy.masks_rest = true;
        assert_eq!((from(&record, "a"), from(&record, "b")), (Some(30), Some(90)));
        assert_eq!(record.masked_before(), Some(90));
        record.policy.rules.clear();
        record.policy.masks_rest = false;
        assert_eq!((from(&record, "b"), record.masked_before()), (None, None));
    }
}
