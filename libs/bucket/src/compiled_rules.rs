//! Rules of retention, compiled once for all reads of a manifest, and for the versions after it while they say the same.

use std::sync::{Arc, OnceLock};

use koios_model::{MatcherError, SeriesClasses};

use crate::retention::ListedRule;
use crate::tombstone::{TombstoneMatcher, compiled};

/// Keeps what the first who asked compiled. Clones share it. It says nothing that the rules do not: all are equal.
#[derive(Clone, Debug, Default)]
pub(crate) struct CompiledRules(OnceLock<Arc<Compiled>>);

#[derive(Debug)]
struct Compiled {
    /// What was compiled: whoever changes a copy of a manifest changes only its rules.
    rules: Vec<Vec<TombstoneMatcher>>,
    classes: SeriesClasses,
}

impl PartialEq for CompiledRules {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for CompiledRules {}

impl CompiledRules {
    /// The classes of some rules, which are those of the manifest that has this.
    pub(crate) fn of(&self, rules: &[ListedRule]) -> Result<SeriesClasses, MatcherError> {
        if let Some(kept) = self.kept(rules) {
            return Ok(kept.classes.clone());
        }
        let all = rules.iter().map(|rule| compiled(&rule.matchers));
        let classes = SeriesClasses::new(all.collect::<Result<Vec<_>, _>>()?);
        let rules = rules.iter().map(|rule| rule.matchers.clone()).collect();
        let fresh = Compiled {
            rules,
            classes: classes.clone(),
        };
        // Who was faster compiled the same, or this is a changed copy.
        let _ = self.0.set(Arc::new(fresh));
        Ok(classes)
    }

    /// Takes over what was compiled of the same rules of another version.
    pub(crate) fn adopt(&self, other: &Self, rules: &[ListedRule]) {
        if let Some(kept) = other.kept(rules) {
            // It may be there already.
            let _ = self.0.set(Arc::clone(kept));
        }
    }

    fn kept(&self, rules: &[ListedRule]) -> Option<&Arc<Compiled>> {
        let kept = self.0.get();
        kept.filter(|k| k.rules.iter().eq(rules.iter().map(|rule| &rule.matchers)))
    }
}

#[cfg(test)]
mod tests {
    use koios_model::{MatchOp, Matcher, Matchers, RetentionRule};

    use super::*;

    fn rules(patterns: &[&str]) -> Vec<ListedRule> {
        let rule = |pattern: &&str| {
            let matcher = Matcher::new(MatchOp::Regex, "job", *pattern).unwrap();
            let matchers = Matchers(vec![matcher]);
            ListedRule::new(&RetentionRule {
                matchers,
                kept_ms: None,
            })
        };
        patterns.iter().map(rule).collect()
    }

    #[test]
    fn rules_are_compiled_once_and_again_when_they_change() {
        let (first, other) = (rules(&["a.*b", "c"]), rules(&["a.*b"]));
        let kept = CompiledRules::default();
        let is_same = |a: &SeriesClasses, b: &SeriesClasses| std::ptr::eq(a.rules(), b.rules());
        let classes = kept.of(&first).unwrap();
        assert!(is_same(&classes, &kept.of(&first).unwrap()));
        let copy = kept.clone();
        assert!(is_same(&classes, &copy.of(&first).unwrap()));
        // Of a copy whose rules were changed.
        assert_eq!(copy.of(&other).unwrap().count(), 2);
        let next = CompiledRules::default();
        next.adopt(&kept, &first);
        assert!(is_same(&classes, &next.of(&first).unwrap()));
        let changed = CompiledRules::default();
        changed.adopt(&kept, &other);
        assert!(changed.kept(&other).is_none());
    }
}
