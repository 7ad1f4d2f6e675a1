//! Matchers: making one of each kind, and trying it on a thousand values.
#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use koios_model::{MatchOp, Matcher};

fn patterns() -> Vec<(&'static str, MatchOp, String)> {
    let set: Vec<String> = (0..100).map(|i| format!("api-{i:03}")).collect();
    let regex = |name, pattern: &str| (name, MatchOp::Regex, pattern.to_owned());
    vec![
        ("equal", MatchOp::Equal, "api-500".to_owned()),
        regex("literal", "api-500"),
        regex("prefix", "api-5.*"),
        regex("suffix", ".*-500"),
        regex("contains", ".*i-5.*"),
        ("set of 100", MatchOp::Regex, set.join("|")),
        regex("alternation", "(api|web|db)-(1|2|3)00"),
        regex("alternation of prefixes", "api-1.*|api-2.*|web-.*"),
        regex("any", ".*"),
        regex("some", ".+"),
        regex("regular expression", "[a-z]+-[0-4][0-9]{2}"),
        regex("any case", "(?i)API-5[0-9]+"),
    ]
}

fn matchers(c: &mut Criterion) {
    let values: Vec<String> = (0..1_000).map(|i| format!("api-{i:03}")).collect();
    for (name, op, pattern) in patterns() {
        let make = || Matcher::new(op, "job", black_box(pattern.as_str())).unwrap();
        c.bench_function(&format!("compile/{name}"), |b| b.iter(make));
        let matcher = make();
        let mut group = c.benchmark_group("match");
        group.throughput(Throughput::Elements(values.len() as u64));
        group.bench_function(name, |b| {
            b.iter(|| values.iter().filter(|v| matcher.matches(black_box(v))).count());
        });
        group.finish();
    }
}

criterion_group!(benches, matchers);
criterion_main!(benches);
