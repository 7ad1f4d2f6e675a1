//! A head against a plain map, under random batches, cuts, listings, abandonments and forgetting.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::sync::Arc;

use koios_head::{
    Cut, CutSeries, Head, HeadOptions, HeldSamples, SeriesId, Strip, merge_histogram_runs, merge_runs,
    merge_starts,
};
use koios_model::merge::winner;
use koios_model::{
    BatchColumns, Expiry, Histogram, Labels, Matcher, Matchers, Sample, SeriesHash, TimeRange, stale_nan,
};
use proptest::prelude::*;

const WINDOW_MS: i64 = 100;

/// Indices of series from here on mean the native histograms of the series so much below.
const HISTOGRAMS: usize = 7;

/// A histogram and its time.
type At = (i64, Arc<Histogram>);
/// Series, time, value, start.
type Sent = (usize, i64, f64, i64);
/// What of a series.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Float,
    Histogram,
    Start,
}
use Kind::{Float, Histogram as Native, Start};
/// Labels, what of it, time.
type Key = (Labels, Kind, i64);
/// What was accepted, or what listed blocks hold: values, sums of histograms, and starts, of which the larger wins, too.
type Content = BTreeMap<Key, f64>;

/// Of histograms that differ in their sum only, the winner is that of the sums.
fn put(content: &mut Content, key: Key, new: f64) {
    content
        .entry(key)
        .and_modify(|v| *v = winner(*v, new))
        .or_insert(new);
}

fn put_cut(content: &mut Content, cut: &CutSeries) {
    for (t, v, kind) in samples_of(cut) {
        put(content, (cut.labels.clone(), kind, t), v);
    }
}

/// Matches one metric, or with 2 all.
fn of_metric(metric: usize) -> Matchers {
    match metric {
        2 => Matchers::default(),
        n => Matchers(vec![Matcher::equal("__name__", format!("metric_{n}"))]),
    }
}

fn delete(content: &mut Content, matchers: &Matchers, range: TimeRange) {
    content.retain(|(labels, _, t), _| !range.contains(*t) || !matchers.matches(labels.as_ref()));
}

fn kind_of(series: usize) -> Kind {
    if series >= HISTOGRAMS { Native } else { Float }
}

/// Time, value, and what it is.
fn samples_of(cut: &CutSeries) -> Vec<(i64, f64, Kind)> {
    let (mut samples, mut histograms) = (Vec::new(), Vec::new());
    cut.samples(&mut samples).unwrap();
    cut.histograms(&mut histograms).unwrap();
    let mut starts = Vec::new();
    cut.starts(&mut starts).unwrap();
    assert_eq!(cut.has_starts(), !starts.is_empty());
    let floats = samples.iter().map(|s| (s.t, s.v, Float));
    floats
        .chain(histograms.iter().map(|(t, h)| (*t, h.sum, Native)))
        .chain(starts.iter().map(|(t, start)| (*t, *start as f64, Start)))
        .collect()
}

fn bits(content: &Content) -> BTreeMap<Key, u64> {
    content.iter().map(|(k, v)| (k.clone(), v.to_bits())).collect()
}

fn series(i: usize) -> (SeriesHash, Labels) {
    let i = i % HISTOGRAMS;
    let labels = Labels::from_pairs([
        ("__name__", format!("metric_{}", i % 2)),
        ("instance", format!("host-{i}")),
        (
            "odd",
            if i % 2 == 1 {
                "yes".to_owned()
            } else {
                String::new()
            },
        ),
    ]);
    // The last three share a hash: identity must not depend on it.
    (SeriesHash(i.min(4) as u128), labels)
}

#[derive(Clone, Debug)]
enum Op {
    /// Samples; without labels where the head knows the reference.
    Apply(Vec<Sent>, bool),
    Cut(i64),
    List(usize),
    Abandon(usize),
    Forget(i64),
    /// Of one metric or of all, from when, for how long.
    Delete(usize, i64, i64),
    Restart,
}

fn value() -> impl Strategy<Value = f64> {
    prop_oneof![
        6 => (0i64..20).prop_map(|m| m as f64 / 4.0),
        1 => Just(stale_nan()),
        1 => Just(-0.0),
        1 => any::<u64>().prop_map(f64::from_bits),
    ]
}

/// Most samples have none.
fn start() -> impl Strategy<Value = i64> {
    prop_oneof![6 => Just(0i64), 2 => Just(5i64), 2 => 1i64..9]
}

fn op() -> impl Strategy<Value = Op> {
    let samples = proptest::collection::vec((0usize..14, -150i64..450, value(), start()), 1..40);
    let orderly = (
        0usize..14,
        -150i64..400,
        proptest::collection::vec((value(), start()), 1..30),
    )
        .prop_map(|(s, t, vs)| {
            vs.into_iter()
                .enumerate()
                .map(|(i, (v, start))| (s, t + 3 * i as i64, v, start))
                .collect()
        });
    prop_oneof![
        4 => (prop_oneof![samples, orderly], any::<bool>()).prop_map(|(s, by_ref)| Op::Apply(s, by_ref)),
        3 => (-2i64..5).prop_map(|w| Op::Cut(w * WINDOW_MS)),
        2 => any::<usize>().prop_map(Op::List),
        1 => any::<usize>().prop_map(Op::Abandon),
        2 => (-150i64..600).prop_map(Op::Forget),
        2 => (0usize..3, -150i64..450, 0i64..200).prop_map(|(m, from, len)| Op::Delete(m, from, len)),
        1 => Just(Op::Restart),
    ]
}

fn batch(samples: &[Sent]) -> BatchColumns {
    let mut by_series: BTreeMap<usize, Vec<(Kind, Sample, i64)>> = BTreeMap::new();
    for &(s, t, v, start) in samples {
        let of_series = by_series.entry(s % HISTOGRAMS).or_default();
        of_series.push((kind_of(s), Sample { t, v }, start));
    }
    let mut columns = BatchColumns::default();
    for (s, samples) in by_series {
        let (hash, labels) = series(s);
        columns.push_series(hash, labels.as_ref());
        for (kind, s, start) in samples {
            if kind == Native {
                let histogram = Histogram {
                    sum: s.v,
                    ..Histogram::default()
                };
                columns.push_started_histogram(s.t, start, histogram);
            } else {
                columns.push_sample(s.t, s.v);
                columns.set_last_start(start);
            }
        }
    }
    columns
}

/// The same batch by references, if the head can resolve them all. Series that share a hash always travel with labels.
fn by_reference(head: &mut Head, columns: BatchColumns) -> BatchColumns {
    if columns.hashes.contains(&SeriesHash(4)) {
        return columns;
    }
    let bare = BatchColumns {
        label_ends: Vec::new(),
        label_bytes: Vec::new(),
        ..columns.clone()
    };
    let resolved = head.resolve(&bare);
    let unknown = resolved.unknown();
    head.give_up(resolved);
    if unknown == 0 { bare } else { columns }
}

fn options() -> HeadOptions {
    HeadOptions {
        window_ms: WINDOW_MS,
        samples_per_chunk: 5,
        ..HeadOptions::default()
    }
}

fn content_of(head: &Head, range: TimeRange) -> Content {
    let mut content = Content::new();
    let (mut samples, mut merged) = (Vec::new(), Vec::new());
    let (mut histograms, mut merged_histograms) = (Vec::new(), Vec::new());
    let mut starts = Vec::new();
    let mut last: Option<Labels> = None;
    for id in head.select(&Matchers::default(), range) {
        let labels = head.labels(id).unwrap();
        assert!(
            last.as_ref().is_none_or(|l| *l < labels),
            "label order, each once"
        );
        head.samples(id, range, &mut samples).unwrap();
        assert!(samples.windows(2).all(|w| w[0].t < w[1].t), "i2: each time once");
        let mut runs = Vec::new();
        head.read(id, range, &mut runs).unwrap();
        merge_runs(&runs, range, &mut merged).unwrap();
        assert_eq!(merged, samples, "runs and samples agree");
        for s in &samples {
            assert!(range.contains(s.t));
            content.insert((labels.clone(), Float, s.t), s.v);
        }
        head.histograms(id, range, &mut histograms).unwrap();
        assert!(
            histograms.windows(2).all(|w| w[0].0 < w[1].0),
            "i2: each time once"
        );
        merge_histogram_runs(&runs, range, &mut merged_histograms).unwrap();
        let same = |(a, b): (&At, &At)| a.0 == b.0 && a.1.bits_cmp(&b.1).is_eq();
        assert_eq!(histograms.len(), merged_histograms.len());
        assert!(
            histograms.iter().zip(&merged_histograms).all(same),
            "runs and histograms agree"
        );
        for (t, h) in &histograms {
            assert!(range.contains(*t));
            content.insert((labels.clone(), Native, *t), h.sum);
        }
        merge_starts(&runs, range, &mut starts).unwrap();
        for (t, start) in &starts {
            assert!(range.contains(*t));
            content.insert((labels.clone(), Start, *t), *start as f64);
        }
        last = Some(labels);
    }
    content
}

/// A copy of a head in strips of a series each, between which something happens, and its accounts.
fn snapshot(head: &mut Head, mut between: impl FnMut(&mut Head)) -> (Vec<Strip>, Vec<u8>) {
    let (mut strips, mut next) = (Vec::new(), Some(0));
    while let Some(from) = next {
        head.check_late_from(from, 1);
        let (strip, after) = head.snapshot(from, 1).unwrap();
        strips.push(strip);
        next = after;
        between(head);
    }
    (strips, head.snapshot_accounts())
}

fn loaded((strips, accounts): &(Vec<Strip>, Vec<u8>)) -> Head {
    let mut head = Head::new(options());
    for strip in strips {
        head.load(&strip.clone().open().unwrap()).unwrap();
    }
    head.load_accounts(accounts).unwrap();
    head
}

/// A head with what a world around it would know.
struct World {
    head: Head,
    accepted: Content,
    listed: Content,
    /// With what was deleted since each was begun: a block of it is masked.
    pending: Vec<(Cut, Vec<(Matchers, TimeRange)>)>,
}

impl World {
    fn step(&mut self, op: Op) {
        match op {
            Op::Apply(samples, by_ref) => self.apply(&samples, by_ref),
            Op::Cut(window) => self.cut(window),
            Op::List(i) if !self.pending.is_empty() => {
                let (cut, deleted) = self.pending.swap_remove(i % self.pending.len());
                let mut block = Content::new();
                cut.series.iter().for_each(|s| put_cut(&mut block, s));
                deleted.iter().for_each(|(m, r)| delete(&mut block, m, *r));
                for (key, v) in block {
                    put(&mut self.listed, key, v);
                }
                self.head.cut_listed(cut.id);
            }
            Op::Abandon(i) if !self.pending.is_empty() => {
                let (cut, _) = self.pending.swap_remove(i % self.pending.len());
                self.head.cut_abandoned(cut.id);
            }
            Op::Forget(keep_from) => {
                let below = self.head.forgotten_below_ms();
                let dropped = self.head.forget(keep_from);
                assert!(self.head.forgotten_below_ms() >= below);
                assert!(self.head.forgotten_below_ms() <= keep_from.max(below) || dropped == 0);
            }
            Op::Delete(metric, from, len) => {
                let (matchers, range) = (of_metric(metric), TimeRange::new(from, from + len));
                self.head.delete(&matchers, range);
                delete(&mut self.accepted, &matchers, range);
                delete(&mut self.listed, &matchers, range);
                for (_, deleted) in &mut self.pending {
                    deleted.push((matchers.clone(), range));
                }
                let left = self.head.select(&matchers, range);
                let empty =
                    |id: &SeriesId| self.head.held_samples(*id, range).unwrap() == HeldSamples::default();
                assert!(left.iter().all(empty), "what is deleted is still there");
            }
            // Cuts that are under way are given back.
            Op::Restart => {
                self.head = loaded(&snapshot(&mut self.head, |_| {}));
                self.pending.clear();
            }
            Op::List(_) | Op::Abandon(_) => {}
        }
    }

    fn apply(&mut self, samples: &[Sent], by_ref: bool) {
        let mut columns = batch(samples);
        if by_ref {
            columns = by_reference(&mut self.head, columns);
        }
        let applied = self.head.apply(&columns, 0, 1);
        assert_eq!(applied.unknown_series, 0);
        for &(s, t, v, start) in samples {
            put(&mut self.accepted, (series(s).1, kind_of(s), t), v);
            if start != 0 {
                put(&mut self.accepted, (series(s).1, Start, t), start as f64);
            }
        }
    }

    fn cut(&mut self, window: i64) {
        let cut = self.head.cut(window);
        for s in &cut.series {
            let samples = samples_of(s);
            assert!(!samples.is_empty() && samples.iter().all(|(t, ..)| cut.window.contains(*t)));
        }
        assert!(cut.series.windows(2).all(|w| w[0].labels < w[1].labels));
        if cut.series.is_empty() {
            assert_eq!(cut.samples, 0);
        } else {
            self.pending.push((cut, Vec::new()));
        }
        let left = self.head.windows().into_iter().find(|w| w.start == window);
        assert!(left.is_none_or(|w| w.uncut_samples == 0));
    }

    fn check(&mut self) {
        let held = content_of(&self.head, TimeRange::ALL);
        let mut all = self.listed.clone();
        for (key, v) in &held {
            put(&mut all, key.clone(), *v);
        }
        assert_eq!(
            bits(&all),
            bits(&self.accepted),
            "i10: listed and held add up to what was accepted"
        );
        let below = self.head.forgotten_below_ms();
        let late = |c: &Content| -> BTreeMap<_, _> {
            bits(c).into_iter().filter(|((.., t), _)| *t >= below).collect()
        };
        assert_eq!(
            late(&held),
            late(&self.accepted),
            "nothing from forgotten_below on is missing"
        );
        let restored = loaded(&snapshot(&mut self.head, |_| {}));
        assert_eq!(restored.forgotten_below_ms(), self.head.forgotten_below_ms());
        assert_eq!(
            bits(&content_of(&restored, TimeRange::ALL)),
            bits(&held),
            "i10: a snapshot holds what its head holds"
        );
        let given_back = |head: &Head| -> Vec<_> {
            let windows = head.windows().into_iter();
            let sums = windows.map(|w| (w.start, w.uncut_samples + w.cutting_samples, w.listed_samples));
            sums.collect()
        };
        assert_eq!(given_back(&restored), given_back(&self.head));
        assert_eq!(restored.unlisted_from_lsn(), self.head.unlisted_from_lsn());
        let some = TimeRange::new(20, 130);
        let within = |c: &Content| -> BTreeMap<_, _> {
            bits(c)
                .into_iter()
                .filter(|((.., t), _)| some.contains(*t))
                .collect()
        };
        assert_eq!(
            bits(&content_of(&self.head, some)),
            within(&held),
            "a narrower read"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn i10_i2_listed_cuts_and_head_hold_what_was_accepted_exactly_once(ops in proptest::collection::vec(op(), 1..40)) {
        let mut world = World { head: Head::new(options()), accepted: Content::new(), listed: Content::new(), pending: Vec::new() };
        for op in ops {
            world.step(op);
            world.check();
        }
    }

    #[test]
    fn i2_content_depends_on_the_set_of_batches_only(
        batches in proptest::collection::vec(proptest::collection::vec((0usize..14, -50i64..250, value(), start()), 1..30), 1..12),
        order in any::<u64>(),
    ) {
        let mut shuffled = batches.clone();
        // Repeats some batches, then permutes all.
        shuffled.extend(batches.iter().step_by(2).cloned());
        let mut seed = order;
        for i in (1..shuffled.len()).rev() {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            shuffled.swap(i, (seed >> 33) as usize % (i + 1));
        }
        let fill = |batches: &[Vec<_>]| {
            let mut head = Head::new(options());
            for b in batches {
                head.apply(&batch(b), 0, 1);
            }
            bits(&content_of(&head, TimeRange::ALL))
        };
        prop_assert_eq!(fill(&batches), fill(&shuffled));
    }

    #[test]
    fn i2_batches_applied_while_a_snapshot_is_made_are_applied_again_after_it(
        batches in proptest::collection::vec(proptest::collection::vec((0usize..14, -50i64..250, value(), start()), 1..30), 1..20),
        before in 0usize..10,
    ) {
        let mut head = Head::new(options());
        let before = before.min(batches.len());
        for b in &batches[..before] {
            head.apply(&batch(b), 0, 1);
        }
        let mut later = batches[before..].iter();
        let copy = snapshot(&mut head, |head| {
            if let Some(b) = later.next() {
                head.apply(&batch(b), 0, 2);
            }
        });
        for b in later {
            head.apply(&batch(b), 0, 2);
        }
        let mut restarted = loaded(&copy);
        for b in &batches[before..] {
            restarted.apply(&batch(b), 0, 2);
        }
        let all = |head: &Head| bits(&content_of(head, TimeRange::ALL));
        prop_assert_eq!(all(&restarted), all(&head));
        // What is not in a block must be cut.
        let starts: Vec<i64> = restarted.windows().iter().map(|w| w.start).collect();
        let mut cut = Content::new();
        for start in starts {
            restarted.cut(start).series.iter().for_each(|s| put_cut(&mut cut, s));
        }
        prop_assert_eq!(bits(&cut), all(&head));
    }

    #[test]
    fn i12_arbitrary_bytes_are_no_snapshot(bytes in proptest::collection::vec(any::<u8>(), 1..200), series in 0u32..4) {
        let mut head = Head::new(options());
        let strip = Strip { series, labels: bytes.clone(), data: bytes.clone() };
        prop_assert!(strip.open().and_then(|strip| head.load(&strip)).is_err());
        prop_assert!(head.load_accounts(&bytes).is_err());
    }
}

#[test]
fn everything_forgotten_leaves_nothing_behind() {
    let mut head = Head::new(options());
    for round in 0..50i64 {
        let samples: Vec<_> = (0..7)
            .map(|s| {
                (
                    s + s % 2 * HISTOGRAMS,
                    round * WINDOW_MS + s as i64,
                    1.0,
                    s as i64,
                )
            })
            .collect();
        assert_eq!(head.apply(&batch(&samples), 0, round as u64).series_created, 7);
        let cut = head.cut(round * WINDOW_MS);
        assert_eq!((cut.series.len(), cut.samples), (7, 7));
        assert_eq!(head.unlisted_from_lsn(), Some(round as u64));
        head.cut_listed(cut.id);
        assert_eq!(head.unlisted_from_lsn(), None);
        let ids = head.select(&Matchers::default(), TimeRange::ALL);
        assert_eq!(head.forget((round + 1) * WINDOW_MS), 7);
        assert_eq!((head.series_count(), head.windows().len()), (0, 0));
        assert_eq!(head.forgotten_below_ms(), (round + 1) * WINDOW_MS);
        let kept = Expiry::default();
        assert!(
            head.label_names(&Matchers::default(), TimeRange::ALL, &kept)
                .is_empty()
        );
        assert!(
            ids.iter().all(|id| head.labels(*id).is_none()),
            "i3: an old id never means another series"
        );
    }
}

#[test]
fn i10_times_at_the_ends_of_time_are_cut_and_forgotten_like_others() {
    let mut head = Head::new(options());
    let samples = [
        (0, i64::MIN, 1.0, 0),
        (0, i64::MAX, 2.0, 7),
        (1, i64::MIN + 1, 3.0, 7),
    ];
    head.apply(&batch(&samples), 0, 1);
    assert_eq!(content_of(&head, TimeRange::ALL).len(), 3 + 2);
    let taken: u64 = head
        .windows()
        .iter()
        .map(|w| head.cut(w.start).samples)
        .collect::<Vec<_>>()
        .iter()
        .sum();
    assert_eq!(taken, 3);
}
