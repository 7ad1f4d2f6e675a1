//! What deltas make of their series.

use proptest::prelude::*;

use super::*;
use crate::otlp::point::{Exponential, Side};

const SECOND: u64 = 1_000_000_000;

/// A request that is not refused.
struct Taken(Option<TenantDeltas>);

impl std::ops::Deref for Taken {
    type Target = TenantDeltas;

    fn deref(&self) -> &TenantDeltas {
        self.0.as_ref().unwrap()
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.take().unwrap().into_changes().sent();
    }
}

fn of(deltas: &Deltas, seconds: u64) -> Taken {
    Taken(Some(
        deltas.of(&TenantId::anonymous(), Duration::from_secs(seconds)),
    ))
}

fn place(stream: u128) -> Place {
    Place {
        series: 7,
        stream,
        monotonic: true,
        point: 0,
    }
}

fn seconds(start: u64, end: u64) -> Interval {
    Interval {
        start: start * SECOND,
        end: end * SECOND,
    }
}

/// The total and, if there is one, the time of its zero.
fn add(tenant: &TenantDeltas, start: u64, end: u64, n: i64) -> Result<(i64, Option<i64>), PointFault> {
    let added = tenant.add(place(1), seconds(start, end), &Total::Number(n, 0.0), i64::MAX)?;
    let Total::Number(n, _) = added.total else {
        panic!("{added:?}")
    };
    Ok((n, added.zero_ms))
}

/// `total @ms since ms`, after `0 @ms, ` where a zero goes first.
fn feed(tenant: &TenantDeltas, place: Place, (start, end): (u64, u64), n: i64) -> Result<String, PointFault> {
    let added = tenant.add(place, seconds(start, end), &Total::Number(n, 0.0), 1_000_000)?;
    let zero = added.zero_ms.map_or_else(String::new, |t| format!("0 @{t}, "));
    let Added {
        total,
        t_ms,
        start_ms,
        ..
    } = added;
    let Total::Number(n, _) = total else {
        panic!("{total:?}")
    };
    Ok(format!("{zero}{n} @{t_ms} since {start_ms}"))
}

#[test]
fn what_follows_is_added() {
    let deltas = Deltas::default();
    let tenant = of(&deltas, 0);
    assert_eq!(add(&tenant, 10, 20, 5), Ok((5, Some(10_001))));
    assert_eq!(add(&tenant, 20, 30, 2), Ok((7, None)));
    assert_eq!(add(&tenant, 0, 40, 1), Ok((8, None)), "an unknown start follows");
    let other = deltas.of(&TenantId::new("other").unwrap(), Duration::ZERO);
    assert_eq!(add(&other, 40, 50, 1), Ok((1, Some(40_001))));
}

#[test]
fn i2_a_delta_that_comes_again_is_not_added_again() {
    let deltas = Deltas::default();
    let tenant = of(&deltas, 0);
    for _ in 0..3 {
        assert_eq!(add(&tenant, 10, 20, 5), Ok((5, Some(10_001))));
    }
    for _ in 0..3 {
        assert_eq!(add(&tenant, 20, 30, 2), Ok((7, None)));
    }
    assert_eq!(add(&tenant, 25, 30, 5), Err(PointFault::DeltaOrder));
    assert_eq!(add(&tenant, 31, 30, 5), Err(PointFault::DeltaInterval));
    assert_eq!(add(&tenant, 30, 31, 1), Ok((8, None)));
}

#[test]
fn i2_what_the_last_two_requests_made_is_made_again() {
    let deltas = Deltas::default();
    let first = |tenant: &TenantDeltas| {
        [(10, 20, 5), (20, 30, 2), (35, 40, 1), (40, 50, 3)].map(|(start, end, n)| add(tenant, start, end, n))
    };
    let made = first(&of(&deltas, 0));
    assert_eq!(
        made,
        [
            Ok((5, Some(10_001))),
            Ok((7, None)),
            Ok((1, Some(35_001))),
            Ok((4, None))
        ]
    );
    assert_eq!(first(&of(&deltas, 1)), made);
    assert_eq!(add(&of(&deltas, 2), 50, 60, 1), Ok((5, None)));
    assert_eq!(first(&of(&deltas, 3)), made, "after a further request");
    for end in [70, 80, 90] {
        add(&of(&deltas, 4), end - 10, end, 1).unwrap();
    }
    assert_eq!(add(&of(&deltas, 5), 10, 20, 5), Err(PointFault::DeltaOrder));
    assert_eq!(add(&of(&deltas, 5), 80, 90, 1), Ok((8, None)));
}

#[test]
fn i13_another_value_for_the_same_interval_is_reported() {
    let deltas = Deltas::default();
    let tenant = of(&deltas, 0);
    assert_eq!(add(&tenant, 10, 20, 5), Ok((5, Some(10_001))));
    assert_eq!(add(&tenant, 10, 20, 6), Err(PointFault::DeltaChanged));
    assert_eq!(add(&tenant, 20, 30, 2), Ok((7, None)));
}

#[test]
fn i13_streams_of_one_series_are_added_up() {
    let deltas = Deltas::default();
    let all = |tenant: &TenantDeltas| {
        [
            feed(tenant, place(1), (10, 20), 5).unwrap(),
            feed(tenant, place(2), (10, 20), 7).unwrap(),
            feed(tenant, place(1), (20, 30), 1).unwrap(),
            feed(tenant, place(2), (25, 30), 1).unwrap(),
            feed(tenant, place(3), (1, 2), 1).unwrap(),
        ]
    };
    let made = all(&of(&deltas, 0));
    assert_eq!(
        made,
        [
            "0 @10001, 5 @20000 since 10000",
            "12 @20001 since 10000",
            "13 @30000 since 10000",
            "14 @30001 since 10000",
            "15 @30002 since 10000"
        ]
    );
    assert_eq!(all(&of(&deltas, 0)), made);
}

#[test]
fn what_is_not_monotonic_gets_no_zero_and_loses_what_ends() {
    let deltas = Deltas::default();
    let tenant = of(&deltas, 0);
    let gauge = |stream| Place {
        monotonic: false,
        ..place(stream)
    };
    let feed = |stream, interval, n| feed(&tenant, gauge(stream), interval, n).unwrap();
    assert_eq!(feed(1, (10, 20), 5), "5 @20000 since 10000");
    assert_eq!(feed(1, (25, 30), 2), "2 @30000 since 25000", "a gap");
    assert_eq!(feed(2, (20, 30), 10), "12 @30001 since 25000");
    assert_eq!(feed(2, (30, 40), -1), "11 @40000 since 25000");
    assert_eq!(
        feed(1, (35, 40), 4),
        "13 @40001 since 25000",
        "a gap of one of two"
    );
    assert_eq!(tenant.end(gauge(2), seconds(0, 50), 1_000_000), Ok(None));
    assert_eq!(feed(1, (40, 50), 1), "5 @50000 since 25000");
    assert_eq!(tenant.end(gauge(1), seconds(0, 50), 1_000_000), Ok(Some(50_001)));
    assert_eq!(tenant.end(gauge(1), seconds(0, 50), 1_000_000), Ok(Some(50_001)));
    assert_eq!(feed(1, (50, 60), 1), "1 @60000 since 50001");
}

#[test]
fn a_series_with_more_deltas_than_milliseconds_is_refused_further_ones() {
    let deltas = Deltas::default();
    let tenant = of(&deltas, 0);
    let feed = |stream, interval| feed(&tenant, place(stream), interval, 1);
    assert_eq!(feed(1, (0, 1_000)).unwrap(), "1 @1000000 since 0");
    assert_eq!(feed(2, (0, 1_000)), Err(PointFault::DeltaCrowded));
}

#[test]
fn what_does_not_follow_starts_anew_with_a_zero() {
    let deltas = Deltas::default();
    let tenant = of(&deltas, 0);
    assert_eq!(add(&tenant, 10, 20, 5), Ok((5, Some(10_001))));
    assert_eq!(add(&tenant, 25, 30, 7), Ok((7, Some(25_001))), "a gap");
    assert_eq!(add(&tenant, 28, 40, 1), Ok((1, Some(30_001))), "an overlap");
    assert_eq!(add(&tenant, 28, 40, 1), Ok((1, Some(30_001))), "it came again");
}

#[test]
fn what_is_quiet_is_forgotten_and_ended_series_sooner() {
    let deltas = Deltas::default();
    add(&of(&deltas, 0), 10, 20, 5).unwrap();
    assert_eq!(add(&of(&deltas, 3_599), 20, 30, 1), Ok((6, None)));
    assert_eq!(add(&of(&deltas, 2 * 3_600), 30, 40, 1), Ok((1, Some(30_001))));
    let tenant = of(&deltas, 2 * 3_600);
    assert_eq!(tenant.end(place(1), seconds(0, 40), i64::MAX), Ok(Some(40_001)));
    assert_eq!(add(&tenant, 40, 50, 1), Ok((1, Some(40_002))));
    assert_eq!(tenant.end(place(1), seconds(0, 50), i64::MAX), Ok(Some(50_001)));
    drop(tenant);
    let other = TenantId::new("other").unwrap();
    drop(deltas.of(&other, Duration::from_secs(2 * 3_600 + 599)));
    assert!(deltas.bytes.load(Ordering::Relaxed) > 0);
    drop(deltas.of(&other, Duration::from_secs(2 * 3_600 + 660)));
    assert_eq!(deltas.bytes.load(Ordering::Relaxed), 0);
    assert_eq!(deltas.tenants.lock().totals.len(), 1);
}

#[test]
fn i2_what_is_refused_is_in_no_total() {
    let deltas = Deltas::default();
    let refused = |start, end, n| add(&deltas.of(&TenantId::anonymous(), Duration::ZERO), start, end, n);
    for _ in 0..2 {
        assert_eq!(refused(10, 20, 5), Ok((5, Some(10_001))));
    }
    assert_eq!(deltas.bytes.load(Ordering::Relaxed), 0);
    assert_eq!(add(&of(&deltas, 0), 20, 30, 2), Ok((2, Some(20_001))));
    assert_eq!(refused(30, 40, 3), Ok((5, None)));
    assert_eq!(add(&of(&deltas, 0), 30, 40, 3), Ok((5, None)), "it comes again");
    assert_eq!(add(&of(&deltas, 0), 30, 40, 3), Ok((5, None)), "and once more");
    assert_eq!(refused(40, 50, 4), Ok((9, None)));
    assert_eq!(
        add(&of(&deltas, 0), 50, 60, 1),
        Ok((1, Some(50_001))),
        "it never came"
    );
}

#[test]
fn data_points_of_a_request_are_taken_back_one_by_one() {
    let deltas = Deltas::default();
    let tenant = deltas.of(&TenantId::anonymous(), Duration::ZERO);
    for point in 0..6u32 {
        let (series, end) = (u128::from(point % 2), u64::from(point / 2));
        let place = Place {
            series,
            point,
            ..place(1)
        };
        let delta = Total::Number(1, 0.0);
        tenant
            .add(place, seconds(end, end + 1), &delta, i64::MAX)
            .unwrap();
    }
    let mut changes = tenant.into_changes();
    // The last two of one series, and the first of the other one, which others were added to.
    changes.take_back(|point| [1, 2, 4].contains(&point));
    changes.sent();
    let tenant = of(&deltas, 0);
    let next = |series, start| {
        let place = Place { series, ..place(1) };
        let delta = Total::Number(1, 0.0);
        let added = tenant.add(place, seconds(start, start + 1), &delta, i64::MAX);
        format!("{:?}", added.unwrap().total)
    };
    assert_eq!(next(0, 1), "Number(2, 0.0)");
    assert_eq!(next(1, 3), "Number(4, 0.0)");
}

#[test]
fn what_another_request_added_to_stays() {
    let deltas = Deltas::default();
    let refused = deltas.of(&TenantId::anonymous(), Duration::ZERO);
    add(&refused, 10, 20, 5).unwrap();
    assert_eq!(add(&of(&deltas, 0), 20, 30, 2), Ok((7, None)));
    drop(refused);
    assert_eq!(add(&of(&deltas, 0), 30, 40, 1), Ok((8, None)));
}

#[test]
fn i2_what_another_request_repeats_stays() {
    let deltas = Deltas::default();
    let refused = deltas.of(&TenantId::anonymous(), Duration::ZERO);
    add(&refused, 10, 20, 5).unwrap();
    assert_eq!(add(&of(&deltas, 0), 10, 20, 5), Ok((5, Some(10_001))), "stored");
    drop(refused);
    assert_eq!(add(&of(&deltas, 0), 20, 30, 2), Ok((7, None)));
}

#[test]
fn i12_what_a_request_replaces_itself_is_bounded() {
    let deltas = Deltas::default();
    let tenant = deltas.of(&TenantId::anonymous(), Duration::ZERO);
    let taken = (0..3_000u32).filter(|&point| {
        let delta = Total::Exponential(Arc::new(exponential(point as i32 % 2 * 4_000)));
        let end = u64::from(point) + 1;
        let added = tenant.add(Place { point, ..place(1) }, seconds(0, end), &delta, i64::MAX);
        added.is_ok_and(|added| !matches!(added.total, Total::Exponential(total) if total.count != end))
    });
    let taken = taken.count() as u64;
    assert!((900..1_200).contains(&taken), "{taken} deltas of 32 kB");
    let mut changes = tenant.into_changes();
    assert!(changes.bytes() < 36 << 20, "{}", changes.bytes());
    changes.sent();
    let delta = Total::Exponential(Arc::new(exponential(0)));
    let next = of(&deltas, 0).add(place(1), seconds(0, taken + 1), &delta, i64::MAX);
    assert!(
        matches!(next.unwrap().total, Total::Exponential(total) if total.count == taken + 1),
        "another request goes on"
    );
}

/// What a series of a number takes after one request.
fn one_series() -> usize {
    let deltas = Deltas::default();
    add(&of(&deltas, 0), 0, 1, 1).unwrap();
    deltas.bytes.load(Ordering::Relaxed)
}

#[test]
fn i6_a_tenant_gets_half_of_the_room() {
    let deltas = Deltas::within(20 * one_series());
    let tenant = |tenant: &str| Taken(Some(deltas.of(&TenantId::new(tenant).unwrap(), Duration::ZERO)));
    let fits = |tenant: &TenantDeltas, series: u128, end: u64| {
        let place = Place { series, ..place(1) };
        let delta = Total::Number(1, 0.0);
        tenant.add(place, seconds(0, end), &delta, i64::MAX).is_ok()
    };
    let fill = |name: &str| (0..100).filter(|series| fits(&tenant(name), *series, 1)).count();
    assert_eq!((fill("a"), fill("b"), fill("c")), (10, 10, 0));
    let goes_on = (0..100).filter(|series| fits(&tenant("a"), *series, 2)).count();
    assert_eq!(goes_on, 10, "what is remembered gives way");
}

#[test]
fn i12_a_total_that_grows_beyond_the_room_is_refused_and_kept() {
    let deltas = Deltas::within(20 * one_series());
    let tenant = of(&deltas, 0);
    let add = |end: u64, offset: i32| {
        let delta = Total::Exponential(Arc::new(exponential(offset)));
        let added = tenant.add(place(1), Interval { start: 0, end }, &delta, i64::MAX)?;
        let Total::Exponential(total) = added.total else {
            panic!()
        };
        Ok(total.count)
    };
    assert_eq!(add(1, 0), Ok(1));
    assert_eq!(add(2, 4_000), Err(PointFault::DeltaRoom));
    assert_eq!(add(2, 5), Ok(2));
}

fn exponential(offset: i32) -> Exponential {
    Exponential {
        count: 1,
        sum: Some(1.0),
        positive: Side {
            offset,
            counts: vec![1],
        },
        ..Exponential::default()
    }
}

proptest! {
    /// Whatever comes, of however many streams: in one request times ascend, what was counted is the sum of what was
    /// taken, and all of it comes out the same when the request comes again.
    #[test]
    fn i2_i13_nothing_is_lost_and_nothing_counted_twice(
        sent in proptest::collection::vec((0u128..3, 0u64..9, 0u64..4, 1i64..5), 1..40)
    ) {
        let deltas = Deltas::default();
        let run = || {
            let tenant = of(&deltas, 0);
            let all = sent.iter().map(|&(stream, start, length, n)| {
                let delta = Total::Number(n, 0.0);
                let added = tenant.add(place(stream), seconds(start, start + length), &delta, i64::MAX);
                added.map(|a| (a.t_ms, a.zero_ms, a.start_ms, format!("{:?}", a.total)))
            });
            all.collect::<Vec<_>>()
        };
        let made = run();
        prop_assert_eq!(&made, &run());
        let (mut last, mut times) = (0, Vec::new());
        let (mut counted, mut taken) = (0, 0);
        let mut seen = std::collections::BTreeSet::new();
        for (&(stream, start, length, n), made) in sent.iter().zip(&made) {
            let Ok((t, zero, _, total)) = made else { continue };
            if !seen.insert((stream, start, length)) {
                continue;
            }
            let total: i64 = total.trim_start_matches("Number(").split(',').next().unwrap().parse().unwrap();
            times.extend(*zero);
            times.push(*t);
            // As `increase` counts, with the first total counted from nothing.
            last = if zero.is_some() { 0 } else { last };
            counted += if total < last { total } else { total - last };
            last = total;
            taken += n;
        }
        prop_assert_eq!(counted, taken);
        prop_assert!(times.windows(2).all(|pair| pair[0] < pair[1]), "{:?}", times);
    }
}
