//! What of an answer is too old, on its way to a head; its rules are compiled once by who receives them.

use std::collections::BTreeMap;
use std::sync::Arc;

use koios_model::{Expiry, Matchers, SeriesClasses, TenantId};
use parking_lot::Mutex;

use super::convert::{matchers_from_pb, matchers_to_pb};
use crate::ServiceError;
use crate::pb::v1;

/// Most tenants whose rules are kept compiled: some megabytes for each, if they have the largest patterns there may be.
const TENANTS_MAX: usize = 256;

/// Nothing where all is kept.
pub(super) fn expiry_to_pb(expiry: &Expiry) -> Option<v1::Expiry> {
    expiry.latest()?;
    let classes = expiry.classes();
    let kept_from = |class: usize| expiry.by_class().get(class).copied().flatten();
    let rule = |(class, matchers): (usize, &Matchers)| v1::expiry::Rule {
        matchers: matchers_to_pb(matchers),
        kept_from_ms: kept_from(class),
    };
    Some(v1::Expiry {
        rules: classes.rules().iter().enumerate().map(rule).collect(),
        rest_kept_from_ms: kept_from(classes.rest()),
    })
}

/// The rules of tenants as they came last, compiled: requests repeat them, with other times, until they are changed. Cheap to
/// clone; clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct KnownRules(Arc<Mutex<BTreeMap<TenantId, Known>>>);

#[derive(Debug)]
struct Known {
    rules: Vec<Vec<v1::Matcher>>,
    classes: SeriesClasses,
}

impl KnownRules {
    /// What is too old of a tenant.
    pub(super) fn expiry(
        &self,
        tenant: &TenantId,
        expiry: Option<v1::Expiry>,
    ) -> Result<Expiry, ServiceError> {
        let Some(expiry) = expiry else {
            return Ok(Expiry::default());
        };
        let mut kept_from: Vec<_> = expiry.rules.iter().map(|rule| rule.kept_from_ms).collect();
        kept_from.push(expiry.rest_kept_from_ms);
        let rules = expiry.rules.into_iter().map(|rule| rule.matchers).collect();
        Ok(Expiry::new(self.classes(tenant, rules)?, kept_from))
    }

    fn classes(
        &self,
        tenant: &TenantId,
        rules: Vec<Vec<v1::Matcher>>,
    ) -> Result<SeriesClasses, ServiceError> {
        if rules.is_empty() {
            return Ok(SeriesClasses::default());
        }
        if let Some(known) = self.0.lock().get(tenant).filter(|known| known.rules == rules) {
            return Ok(known.classes.clone());
        }
        let compiled = rules.iter().cloned().map(matchers_from_pb);
        let classes = SeriesClasses::new(compiled.collect::<Result<Vec<_>, _>>()?);
        let mut all = self.0.lock();
        if all.len() >= TENANTS_MAX && !all.contains_key(tenant) {
            all.pop_first();
        }
        let known = Known {
            rules,
            classes: classes.clone(),
        };
        all.insert(tenant.clone(), known);
        Ok(classes)
    }
}

#[cfg(test)]
mod tests {
    use koios_model::{MatchOp, Matcher};

    use super::*;

    fn rule(op: MatchOp, value: &str) -> Matchers {
        Matchers(vec![Matcher::new(op, "job", value).unwrap()])
    }

    fn arrived(known: &KnownRules, tenant: &TenantId, expiry: &Expiry) -> Expiry {
        known.expiry(tenant, expiry_to_pb(expiry)).unwrap()
    }

    #[test]
    fn what_is_too_old_arrives_as_it_was_sent() {
        let classes = SeriesClasses::new([rule(MatchOp::Equal, "api"), rule(MatchOp::Regex, "a.*b")]);
        let (known, tenant) = (KnownRules::default(), TenantId::anonymous());
        for expiry in [
            Expiry::default(),
            Expiry::new(classes.clone(), [None, Some(-5), Some(7)]),
            Expiry::new(classes, [Some(0), Some(3), None]),
        ] {
            assert_eq!(arrived(&known, &tenant, &expiry), expiry);
        }
        assert_eq!(expiry_to_pb(&Expiry::default()), None);
    }

    #[test]
    fn rules_are_compiled_once_until_they_change_and_tenants_have_their_own() {
        let known = KnownRules::default();
        let [a, b] = ["a", "b"].map(|name| TenantId::new(name).unwrap());
        let of = |value: &str, from| {
            Expiry::new(
                SeriesClasses::new([rule(MatchOp::Regex, value)]),
                [Some(from), None],
            )
        };
        let is_same = |x: &Expiry, y: &Expiry| std::ptr::eq(x.classes().rules(), y.classes().rules());
        let first = arrived(&known, &a, &of("x.*y", 1));
        let later = arrived(&known, &a, &of("x.*y", 2));
        assert!(is_same(&first, &later));
        assert_eq!(later, of("x.*y", 2));
        assert_eq!(arrived(&known, &b, &of("z.*", 1)), of("z.*", 1));
        assert!(is_same(&first, &arrived(&known, &a, &of("x.*y", 3))));
        assert_eq!(arrived(&known, &a, &of("z.*", 1)), of("z.*", 1));
        assert!(!is_same(&first, &arrived(&known, &a, &of("x.*y", 3))));
    }

    #[test]
    fn i12_rules_of_few_tenants_are_kept() {
        let known = KnownRules::default();
        let expiry = Expiry::new(SeriesClasses::new([rule(MatchOp::Equal, "x")]), [Some(1), None]);
        for i in 0..2 * TENANTS_MAX {
            let tenant = TenantId::new(&format!("t{i}")).unwrap();
            assert_eq!(arrived(&known, &tenant, &expiry), expiry);
        }
        assert_eq!(known.0.lock().len(), TENANTS_MAX);
    }
}
