//! Rules of retention as text: `7d {job="debug"}; 2y {__name__=~"slo:.*"}`.

use std::time::Duration;

use koios_model::{Matchers, RetentionRule};
use koios_promql::parse_metric_selector;
use koios_tenancy::rule_text;

use super::value::{Value, format_duration, parse_duration};

const HINT: &str = r#"write for example `7d {job="debug"}`, several with `;` between them, or in the file as a list of `match` and `retention`"#;

/// What values are called.
pub(super) const KIND: &str = "RULES";
/// No rules.
pub(super) const NONE: &str = "[]";
/// What stands between two rules.
pub(super) const SEPARATOR: char = ';';

/// One rule of a list as text. Its retention must be one by itself: else a part of it would be taken for the selector's.
pub(super) fn one(retention: &str, selector: &str) -> Result<String, String> {
    parse_duration(retention).map_err(|e| format!("the retention {retention:?} of a rule is {e}"))?;
    Ok(joined(retention, selector))
}

fn joined(retention: &str, selector: &str) -> String {
    format!("{retention} {selector}")
}

/// Nothing where nothing is said; that there are no rules is said by a word of its own.
impl Value for Option<Vec<RetentionRule>> {
    const KIND: &'static str = KIND;

    fn parse(text: &str) -> Result<Self, String> {
        match text.trim() {
            "" => Err(format!(
                "empty: write `{NONE}` for no rules, or leave the key out"
            )),
            NONE => Ok(Some(Vec::new())),
            _ => {
                let texts = split(text);
                let all = texts.iter().map(|rule| rule.trim()).enumerate();
                // After the last one there may be a separator.
                let all = all.filter(|(at, rule)| !rule.is_empty() || at + 1 < texts.len());
                let one = |(at, rule)| {
                    parse_one(rule).map_err(|reason| format!("rule {} `{rule}`: {reason}", at + 1))
                };
                all.map(one).collect::<Result<_, _>>().map(Some)
            }
        }
    }

    fn show(&self) -> String {
        let Some(rules) = self else {
            return String::new();
        };
        if rules.is_empty() {
            return NONE.to_owned();
        }
        let kept = |ms: Option<i64>| match ms {
            Some(ms) => format_duration(Duration::from_millis(ms.unsigned_abs())),
            None => "0".to_owned(),
        };
        let rules = rules
            .iter()
            .map(|rule| joined(&kept(rule.kept_ms), &rule_text(&rule.matchers)));
        rules.collect::<Vec<_>>().join("; ")
    }
}

fn parse_one(text: &str) -> Result<RetentionRule, String> {
    let Some((retention, selector)) = text.split_once(char::is_whitespace) else {
        return Err(format!("not a retention and a selector: {HINT}"));
    };
    let kept = parse_duration(retention).map_err(|e| format!("its retention is {e}"))?;
    let kept_ms = match kept.is_zero() {
        true => None,
        false => Some(i64::try_from(kept.as_millis()).map_err(|_| "its retention is too long".to_owned())?),
    };
    let matchers = parse_metric_selector(selector.trim());
    let matchers = matchers.map_err(|e| format!("its selector cannot be read: {e}: {HINT}"))?;
    Ok(RetentionRule {
        matchers: Matchers(matchers),
        kept_ms,
    })
}

/// The rules of a text: separators in quotes belong to a matcher.
fn split(text: &str) -> Vec<&str> {
    let (mut all, mut from, mut quote, mut escaped) = (Vec::new(), 0, None, false);
    for (at, c) in text.char_indices() {
        match quote {
            // Nothing is escaped in backquotes.
            Some('`') if c == '`' => quote = None,
            Some('`') => {}
            Some(_) if escaped => escaped = false,
            Some(_) if c == '\\' => escaped = true,
            Some(q) if c == q => quote = None,
            Some(_) => {}
            None if matches!(c, '"' | '\'' | '`') => quote = Some(c),
            None if c == SEPARATOR => {
                all.push(text.get(from..at).unwrap_or(""));
                from = at + c.len_utf8();
            }
            None => {}
        }
    }
    all.push(text.get(from..).unwrap_or(""));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Vec<RetentionRule>, String> {
        Option::<Vec<RetentionRule>>::parse(text).map(Option::unwrap_or_default)
    }

    #[test]
    fn rules_survive_a_round_trip() {
        for (text, kept_ms) in [
            (r#"7d {job="debug"}"#, vec![Some(7 * 86_400_000)]),
            (
                r#"1h up{job=~"a;b|\";'c"}; 0 {__name__=~`slo:.*;`, env!='x;"'} ;"#,
                vec![Some(3_600_000), None],
            ),
            ("[]", vec![]),
        ] {
            let rules = parse(text).unwrap();
            let times: Vec<_> = rules.iter().map(|r| r.kept_ms).collect();
            assert_eq!(times, kept_ms, "{text}");
            let shown = Some(rules.clone()).show();
            assert_eq!(parse(&shown).unwrap(), rules, "{shown}");
        }
    }

    #[test]
    fn i13_what_is_wrong_with_a_rule_is_told_with_the_rule() {
        for (text, want) in [
            (
                "{job=\"a\"}",
                "rule 1 `{job=\"a\"}`: not a retention and a selector",
            ),
            (
                "7d up; 8 {a=\"b\"}",
                "rule 2 `8 {a=\"b\"}`: its retention is not a duration",
            ),
            (
                "7d up; 8d {a=b}",
                "rule 2 `8d {a=b}`: its selector cannot be read",
            ),
            (
                "7d {a=~\"(\"}",
                "rule 1 `7d {a=~\"(\"}`: its selector cannot be read",
            ),
            ("7d rate(up[5m])", "rule 1 `7d rate(up[5m])`: its selector"),
            ("7d up;; 8d down", "rule 2 ``: not a retention"),
            ("", "empty: write `[]` for no rules"),
        ] {
            let got = parse(text).unwrap_err();
            assert!(got.starts_with(want), "{text}: {got}");
        }
    }
}
