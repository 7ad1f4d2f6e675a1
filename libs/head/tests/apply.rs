//! What applying a batch reports and keeps.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use koios_head::{Applied, Head, HeadOptions, SeriesId};
use koios_model::{
    BatchColumns, Labels, MatchOp, Matcher, Matchers, Metadata, Sample, SeriesHash, TimeRange, stale_nan,
};

fn labels(i: u32) -> Labels {
    Labels::from_pairs([("__name__", "up".to_owned()), ("instance", format!("host-{i}"))])
}

fn batch(series: u32, samples: &[(i64, f64)]) -> BatchColumns {
    let mut b = BatchColumns::default();
    b.push_series(SeriesHash(u128::from(series)), labels(series).as_ref());
    for &(t, v) in samples {
        b.push_sample(t, v);
    }
    b
}

fn samples(head: &Head) -> Vec<Sample> {
    let mut out = Vec::new();
    let id = head.select(&Matchers::default(), TimeRange::ALL)[0];
    head.samples(id, TimeRange::ALL, &mut out).unwrap();
    out
}

#[test]
fn a_repetition_changes_nothing() {
    let mut head = Head::new(HeadOptions::default());
    let b = batch(1, &[(10, 1.0), (20, 2.0)]);
    let first = head.apply(&b, 0, 1);
    assert_eq!(
        first,
        Applied {
            samples: 2,
            series_created: 1,
            ..Applied::default()
        }
    );
    // The older one is told from a late one only when it is compared.
    assert_eq!(head.apply(&b, 0, 2).duplicates, 1);
    assert!(!head.check_late(usize::MAX));
    assert_eq!(head.windows()[0].uncut_samples, 2);
    assert_eq!(samples(&head).len(), 2);
}

#[test]
fn i2_another_value_at_the_newest_time_is_a_conflict_and_the_winner_stays() {
    let mut head = Head::new(HeadOptions::default());
    head.apply(&batch(1, &[(10, 2.0)]), 0, 1);
    let lower = head.apply(&batch(1, &[(10, 1.0)]), 0, 2);
    assert!(lower.first_conflict.is_some());
    assert_eq!(
        lower,
        Applied {
            conflicts: 1,
            first_conflict: lower.first_conflict,
            ..Applied::default()
        }
    );
    let higher = head.apply(&batch(1, &[(10, 3.0)]), 0, 3);
    assert_eq!(
        higher,
        Applied {
            conflicts: 1,
            conflicts_kept: 1,
            samples: 1,
            first_conflict: higher.first_conflict,
            ..Applied::default()
        }
    );
    let stale = head.apply(&batch(1, &[(10, stale_nan())]), 0, 4);
    assert_eq!((stale.conflicts, stale.samples), (1, 0));
    assert_eq!(samples(&head), [Sample { t: 10, v: 3.0 }]);
    assert_eq!(head.apply(&batch(1, &[(10, 3.0)]), 0, 5).duplicates, 1);
}

#[test]
fn a_late_sample_is_kept_and_counted() {
    let mut head = Head::new(HeadOptions::default());
    head.apply(&batch(1, &[(10, 1.0), (30, 3.0)]), 0, 1);
    let late = head.apply(&batch(1, &[(20, 2.0)]), 0, 2);
    assert_eq!(
        late,
        Applied {
            samples: 1,
            out_of_order: 1,
            ..Applied::default()
        }
    );
    assert_eq!(
        samples(&head).iter().map(|s| s.t).collect::<Vec<_>>(),
        [10, 20, 30]
    );
}

fn unknown(head: &mut Head, batch: &BatchColumns) -> u64 {
    let resolved = head.resolve(batch);
    let unknown = resolved.unknown();
    head.give_up(resolved);
    unknown
}

#[test]
fn a_series_that_a_logged_batch_speaks_of_is_not_given_up_before_it_is_applied() {
    let mut head = Head::new(HeadOptions::default());
    head.apply(&batch(1, &[(10, 1.0)]), 0, 1);
    let mut bare = batch(1, &[(20_000_000, 2.0)]);
    bare.label_ends.clear();
    bare.label_bytes.clear();
    let mut resolved = head.resolve(&bare);
    let cut = head.cut(0);
    head.cut_listed(cut.id);
    assert_eq!(head.forget(i64::MAX), 1);
    assert_eq!(unknown(&mut head, &bare), 1, "new batches must bring labels");
    // Another series must not get its place.
    head.apply(&batch(2, &[(20_000_000, 3.0)]), 0, 2);
    let applied = head.apply_resolved(&bare, &mut resolved, 0, 3);
    assert_eq!((applied.samples, applied.unknown_series), (1, 0));
    assert_eq!((head.series_count(), samples(&head).len()), (2, 1));
    assert_eq!(unknown(&mut head, &bare), 0, "it has a sample again");
}

#[test]
fn a_series_that_comes_back_while_it_is_given_up_keeps_its_samples() {
    let mut head = Head::new(HeadOptions::default());
    head.apply(&batch(1, &[(10, 1.0)]), 0, 1);
    let open = head.resolve(&batch(1, &[(20_000_000, 1.0)]));
    let cut = head.cut(0);
    head.cut_listed(cut.id);
    head.forget(i64::MAX);
    // It comes with its labels, once more taken for known, before the first is applied.
    let (with_labels, mut known) = (batch(1, &[(30_000_000, 2.0)]), BatchColumns::default());
    known.push_known_series(SeriesHash(1), labels(1).as_ref());
    known.push_sample(40_000_000, 3.0);
    let mut second = head.resolve(&with_labels);
    let mut third = head.resolve(&known);
    head.give_up(open);
    head.apply(&batch(2, &[(30_000_000, 9.0)]), 0, 2);
    head.apply_resolved(&with_labels, &mut second, 0, 3);
    head.apply_resolved(&known, &mut third, 0, 4);
    let found = |value: &str| {
        let ids = head.select(&Matchers::default(), TimeRange::ALL);
        let is = |id: &&SeriesId| head.labels(**id).unwrap().get("instance") == Some(value);
        let mut out = Vec::new();
        head.samples(*ids.iter().find(is).unwrap(), TimeRange::ALL, &mut out)
            .unwrap();
        out.iter().map(|s| s.v).collect::<Vec<_>>()
    };
    assert_eq!((found("host-1"), found("host-2")), (vec![2.0, 3.0], vec![9.0]));
}

#[test]
fn a_series_without_samples_goes_when_no_batch_speaks_of_it() {
    let mut head = Head::new(HeadOptions::default());
    head.apply(&batch(1, &[(10, 1.0)]), 0, 1);
    let resolved = head.resolve(&batch(1, &[(20, 1.0)]));
    let cut = head.cut(0);
    head.cut_listed(cut.id);
    head.forget(i64::MAX);
    assert_eq!(head.series_count(), 1);
    head.give_up(resolved);
    assert_eq!(head.series_count(), 0);
}

#[test]
fn what_the_sender_takes_for_known_is_found_by_reference_and_created_when_it_is_not() {
    let mut head = Head::new(HeadOptions::default());
    let mut known = BatchColumns::default();
    known.push_known_series(SeriesHash(1), labels(1).as_ref());
    known.push_sample(10, 1.0);
    assert_eq!(head.apply(&known, 0, 1).series_created, 1);
    let resolved = head.resolve(&known);
    assert_eq!(resolved.places().collect::<Vec<_>>(), [Some(0)]);
    head.give_up(resolved);
}

#[test]
fn references_alone_work_once_the_series_is_known() {
    let mut head = Head::new(HeadOptions::default());
    let full = batch(1, &[(10, 1.0)]);
    let mut bare = batch(1, &[(20, 2.0)]);
    bare.label_ends.clear();
    bare.label_bytes.clear();
    assert_eq!(unknown(&mut head, &bare), 1);
    assert_eq!(
        head.apply(&bare, 0, 1),
        Applied {
            unknown_series: 1,
            ..Applied::default()
        }
    );
    head.apply(&full, 0, 2);
    assert_eq!(unknown(&mut head, &bare), 0);
    head.apply(&bare, 0, 3);
    assert_eq!(samples(&head).len(), 2);
}

#[test]
fn a_reference_that_two_label_sets_share_is_never_taken_alone() {
    let mut head = Head::new(HeadOptions::default());
    let mut other = BatchColumns::default();
    other.push_series(SeriesHash(1), labels(2).as_ref());
    other.push_sample(10, 5.0);
    head.apply(&batch(1, &[(10, 1.0)]), 0, 1);
    assert_eq!(head.apply(&other, 0, 2).series_created, 1);
    let mut bare = batch(1, &[(20, 2.0)]);
    bare.label_ends.clear();
    bare.label_bytes.clear();
    assert_eq!(unknown(&mut head, &bare), 1);
}

#[test]
fn later_admitted_metadata_wins_in_any_order() {
    let meta = |help: &str| Metadata {
        kind: "gauge".into(),
        help: help.into(),
        unit: String::new(),
    };
    let with = |help: &str| BatchColumns {
        metadata: vec![("up".into(), meta(help))],
        ..BatchColumns::default()
    };
    let batches = [(with("old"), 1), (with("new b"), 2), (with("new a"), 2)];
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0], [2, 0, 1]] {
        let mut head = Head::new(HeadOptions::default());
        for i in order {
            head.apply(&batches[i].0, batches[i].1, 1);
        }
        let held: Vec<_> = head
            .metadata()
            .map(|(n, at, m)| (n.to_owned(), at, m.clone()))
            .collect();
        assert_eq!(held, [("up".to_owned(), 2, meta("new b"))]);
    }
}

#[test]
fn memory_per_series_stays_small() {
    let mut head = Head::new(HeadOptions::default());
    let count = 1_500u32;
    for k in 0..120i64 {
        let mut b = BatchColumns::default();
        for i in 0..count {
            let l = Labels::from_pairs([
                ("__name__", format!("metric_{}", i % 500)),
                ("instance", format!("host-{}", i / 500)),
                ("job", "node".to_owned()),
                ("cluster", "eu-1".to_owned()),
            ]);
            b.push_series(SeriesHash(u128::from(i)), l.as_ref());
            b.push_sample(k * 15_000, (k * i64::from(i % 50)) as f64);
        }
        head.apply(&b, 0, 1);
    }
    let per_series = head.memory_bytes() / count as usize;
    println!("{per_series} bytes per series after 120 samples");
    assert!(per_series <= 1024, "{per_series}");
}

#[test]
fn metadata_goes_with_a_deletion_of_all_series_of_its_metric() {
    let described = |kind: &str| Metadata {
        kind: kind.to_owned(),
        help: "words".to_owned(),
        unit: String::new(),
    };
    let metrics = [
        ("up", "gauge"),
        ("hits", "counter"),
        ("took", "histogram"),
        ("sizes", "summary"),
    ];
    let left = |matchers: &[(&str, MatchOp, &str)], range: TimeRange| {
        let mut head = Head::new(HeadOptions::default());
        let b = BatchColumns {
            metadata: metrics
                .map(|(name, kind)| (name.to_owned(), described(kind)))
                .to_vec(),
            ..BatchColumns::default()
        };
        head.apply(&b, 100, 1);
        let matcher = |(name, op, value): &(&str, MatchOp, &str)| Matcher::new(*op, *name, *value).unwrap();
        head.delete(&Matchers(matchers.iter().map(matcher).collect()), range);
        let names: Vec<String> = head.metadata().map(|(name, _, _)| name.to_owned()).collect();
        names.join(" ")
    };
    let (name, all) = ("__name__", TimeRange::ALL);
    let (equal, regex) = (MatchOp::Equal, MatchOp::Regex);
    assert_eq!(left(&[(name, equal, "up")], all), "hits sizes took");
    assert_eq!(
        left(&[(name, equal, "up"), ("job", regex, ".*")], all),
        "hits sizes took"
    );
    assert_eq!(left(&[], all), "");
    // Series of other jobs may be left, here or in other partitions.
    assert_eq!(
        left(&[(name, equal, "up"), ("job", equal, "a")], all),
        "hits sizes took up"
    );
    assert_eq!(left(&[("job", equal, "a")], all), "hits sizes took up");
    // What came later is of series that were not deleted.
    assert_eq!(
        left(&[(name, equal, "up")], TimeRange::new(0, 99)),
        "hits sizes took up"
    );
    assert_eq!(
        left(&[(name, equal, "up")], TimeRange::new(0, 100)),
        "hits sizes took"
    );
    // Families, whose series have other names.
    assert_eq!(left(&[(name, equal, "hits_total")], all), "sizes took up");
    assert_eq!(left(&[(name, equal, "took_bucket")], all), "hits sizes took up");
    assert_eq!(
        left(&[(name, regex, "took_(bucket|sum|count)")], all),
        "hits sizes up"
    );
    assert_eq!(left(&[(name, equal, "sizes")], all), "hits sizes took up");
    assert_eq!(left(&[(name, regex, "sizes.*")], all), "hits took up");
}

#[test]
fn metadata_that_nobody_sends_goes_once_no_series_of_its_metric_is_left() {
    let described = |kind: &str| Metadata {
        kind: kind.to_owned(),
        help: "words".to_owned(),
        unit: String::new(),
    };
    let mut head = Head::new(HeadOptions::default());
    let mut b = BatchColumns {
        metadata: [
            ("away", "gauge"),
            ("hits", "counter"),
            ("took", "histogram"),
            ("up", "gauge"),
        ]
        .map(|(name, kind)| (name.to_owned(), described(kind)))
        .to_vec(),
        ..BatchColumns::default()
    };
    for (i, (name, job)) in [
        ("hits_total", "a"),
        ("took_bucket", "b"),
        ("up", "a"),
        ("up", "b"),
    ]
    .into_iter()
    .enumerate()
    {
        let labels = Labels::from_pairs([("__name__", name), ("job", job)]);
        b.push_series(SeriesHash(i as u128 + 1), labels.as_ref());
        b.push_sample(100, 1.0);
    }
    head.apply(&b, 100, 1);
    let names = |head: &Head| {
        let names: Vec<String> = head.metadata().map(|(name, _, _)| name.to_owned()).collect();
        names.join(" ")
    };
    // Series of "away" may be in another partition, and its sender may be slow.
    assert_eq!(head.forget_metadata(100), 0);
    assert_eq!(head.forget_metadata(101), 1);
    assert_eq!(names(&head), "hits took up");
    let of_job = |job: &str| Matchers(vec![Matcher::equal("job", job)]);
    head.delete(&of_job("a"), TimeRange::ALL);
    assert_eq!(
        names(&head),
        "hits took up",
        "another job may have them elsewhere"
    );
    assert_eq!(head.forget_metadata(101), 1);
    assert_eq!(names(&head), "took up");
    head.delete(&of_job("b"), TimeRange::ALL);
    // What is sent again stays.
    let again = BatchColumns {
        metadata: vec![("up".to_owned(), described("gauge"))],
        ..BatchColumns::default()
    };
    head.apply(&again, 200, 2);
    assert_eq!(head.forget_metadata(200), 1);
    assert_eq!(names(&head), "up");
}

#[test]
fn i12_metadata_is_bounded_as_a_log_has_it() {
    const BOUND: usize = 16 << 20;
    let escaped = "\u{1}\u{1f}\n\t\"\\é\u{7f}".repeat(1 << 10);
    let mut head = Head::new(HeadOptions::default());
    for i in 0..2_000 {
        let of_one = |text: &str| Metadata {
            kind: "gauge".to_owned(),
            help: text.to_owned(),
            unit: "\u{2}".repeat(100),
        };
        let batch = BatchColumns {
            metadata: vec![(format!("m{i:04}\u{3}"), of_one(&escaped))],
            ..BatchColumns::default()
        };
        head.apply(&batch, 1 + i64::from(i), 1);
    }
    // By metric, with admission time: so do the checkpoints of segments have it.
    let all: Vec<_> = head.metadata().collect();
    let json = serde_json::to_vec(&all).unwrap();
    assert!((BOUND / 4..=BOUND).contains(&json.len()), "{} bytes", json.len());
}

#[test]
fn i12_metadata_is_counted_as_it_is_and_bounded() {
    const BOUND: usize = 16 << 20;
    const HELP: usize = 16 << 10;
    let described = |name: String, help: usize| {
        let metadata = Metadata {
            kind: "gauge".to_owned(),
            help: "h".repeat(help),
            unit: String::new(),
        };
        BatchColumns {
            metadata: vec![(name, metadata)],
            ..BatchColumns::default()
        }
    };
    let mut head = Head::new(HeadOptions::default());
    let empty = head.memory().beside;
    // Has a series, and was sent last before all others.
    let mut up = described("up".to_owned(), 10);
    up.push_series(SeriesHash(1), Labels::from_pairs([("__name__", "up")]).as_ref());
    up.push_sample(100, 1.0);
    head.apply(&up, 1, 1);
    for i in 0..100 {
        head.apply(&described(format!("m{i:04}"), HELP), 2, 1);
    }
    let beside = head.memory().beside;
    assert!(
        (100 * HELP..101 * HELP + (64 << 10)).contains(&beside),
        "{beside}"
    );
    let texts = |head: &Head| -> usize { head.metadata().map(|(n, _, m)| n.len() + m.help.len()).sum() };
    let (mut dropped, mut times) = (0, 0);
    for i in 0..3000 {
        let applied = head.apply(&described(format!("m{i:04}"), HELP), 3 + i64::from(i), 1);
        dropped += applied.metadata_dropped;
        times += usize::from(applied.metadata_dropped > 0);
        assert!(
            texts(&head) <= BOUND && head.memory().beside <= BOUND,
            "after {i}"
        );
    }
    let names: Vec<&str> = head.metadata().map(|(name, _, _)| name).collect();
    assert_eq!(names.len() as u64 + dropped, 3001);
    assert!(names.contains(&"up"), "others without a series go first");
    assert!(
        names.contains(&"m2999") && !names.contains(&"m0500"),
        "the oldest go first"
    );
    assert!(names.len() > BOUND / HELP * 3 / 8, "{} are left", names.len());
    // All of it is looked through each time.
    assert!(times <= 3000 * HELP / (BOUND / 2), "{times} times");
    // Texts that grow count, too.
    let known: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    for name in &known {
        head.apply(&described(name.clone(), 2 * HELP), 10_000, 1);
        assert!(texts(&head) <= BOUND, "{name}");
    }
    head.forget_metadata(i64::MAX);
    head.delete(&Matchers::default(), TimeRange::ALL);
    assert_eq!((head.metadata().count(), head.memory().beside), (0, empty));
}
