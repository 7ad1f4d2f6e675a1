//! Limits on series: those that exist are stored whatever comes, and others get in while there is room.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use koios_control::{Incarnation, Member, Role};
use koios_tenancy::Limits;
use koios_wire::ServiceErrorCode;
use tokio::sync::Notify;

use crate::messages::{Message, request, series};
use crate::rig::{NOW, Next, Rig, state};

fn numbered(n: usize, t: i64) -> Message {
    let name = format!("m{n}");
    series(&[(b"__name__", name.as_bytes())], &[(t, 1.0)])
}

fn all(numbers: Range<usize>, t: i64) -> Vec<u8> {
    request(&numbers.map(|n| numbered(n, t)).collect::<Vec<_>>())
}

fn limited(max_series: u64) -> Limits {
    Limits {
        max_series,
        ..Limits::default()
    }
}

fn limited_rig(max_series: u64) -> Rig {
    Rig::new(state(1, 1, 3, 1), limited(max_series))
}

/// Another distributor to the same members.
fn beside(old: &Rig, max_series: u64) -> Rig {
    let rig = limited_rig(max_series);
    for (new, old) in rig.members.iter().zip(&old.members) {
        new.head.lock().clone_from(&old.head.lock());
        new.known.lock().clone_from(&old.known.lock());
    }
    rig
}

fn series_stored(rig: &Rig) -> usize {
    let stored = rig.stored();
    let series = stored.iter().map(|s| &s.0);
    series.collect::<std::collections::BTreeSet<_>>().len()
}

pub(crate) fn asks(rig: &Rig) -> usize {
    let name = "koios_distributor_series_limit_asks_total ";
    let text = rig.metrics.encode();
    let value = text.lines().find_map(|line| line.strip_prefix(name));
    value.unwrap().parse().unwrap()
}

// Row 33.
#[tokio::test(start_paused = true)]
async fn a_limit_that_is_set_while_it_runs_refuses_no_series_that_exists() {
    let rig = limited_rig(0);
    rig.push(&all(0..200, NOW)).await.assert(204, "");
    rig.limits.replace(limited(20), BTreeMap::new());
    for (i, numbers) in [0..1, 1..100, 100..200, 0..200].into_iter().enumerate() {
        rig.push(&all(numbers, NOW + 1 + i as i64)).await.assert(204, "");
    }
    // Lower still.
    rig.limits.replace(limited(10), BTreeMap::new());
    let answer = rig.push(&all(0..210, NOW + 9)).await;
    answer.assert(400, "series limit 10 exceeded (now 200): drop labels");
    answer.assert(400, "rejected: 10 samples of 10 series, written: 200 samples");
    answer.assert(400, "limits.max-series: series {__name__=\"m2");
    rig.push(&all(0..200, NOW + 10)).await.assert(204, "");
    assert_eq!(series_stored(&rig), 200);
}

// Row 33.
#[tokio::test(start_paused = true)]
async fn a_restarted_distributor_refuses_no_series_that_exists() {
    let old = limited_rig(0);
    old.push(&all(0..200, NOW)).await.assert(204, "");
    for limit in [1, 100, 190, 200] {
        let rig = beside(&old, limit);
        for slice in 0..10 {
            // New ones try to take what those have not come for yet.
            let new = rig
                .push(&all(1000 + slice * 100..1100 + slice * 100, NOW + 1))
                .await;
            new.assert(400, "exceeded (now 200)");
            rig.push(&all(slice * 20..slice * 20 + 20, NOW + 2))
                .await
                .assert(204, "");
        }
        assert_eq!(series_stored(&rig), 200);
    }
}

#[tokio::test(start_paused = true)]
async fn from_a_start_on_the_limit_is_not_exceeded() {
    for limit in [50, 1000] {
        let rig = limited_rig(limit as u64);
        let requests: Vec<Vec<u8>> = (0..10).map(|n| all(n * 200..n * 200 + 150, NOW)).collect();
        for _ in 0..20 {
            let pushes = requests.iter().map(|r| rig.push(r));
            let answers = futures::future::join_all(pushes).await;
            assert!(
                answers
                    .iter()
                    .all(|a| [204, 400, 503].contains(&a.status.as_u16()))
            );
        }
        assert_eq!(series_stored(&rig), limit);
        rig.push(&requests[0])
            .await
            .assert(if limit < 150 { 400 } else { 204 }, "");
    }
}

#[tokio::test(start_paused = true)]
async fn requests_at_the_same_time_do_not_take_the_same_room() {
    let rig = limited_rig(100);
    let go_on = Arc::new(Notify::new());
    for member in &rig.members {
        let waits = (0..2).map(|_| Next::Wait(Arc::clone(&go_on)));
        member.next.lock().extend(waits);
    }
    let requests = [0, 1000].map(|from| all(from..from + 80, NOW));
    let mut first = Box::pin(rig.push(&requests[0]));
    assert!(futures::poll!(first.as_mut()).is_pending());
    let mut second = Box::pin(rig.push(&requests[1]));
    assert!(futures::poll!(second.as_mut()).is_pending());
    let release = async {
        loop {
            go_on.notify_waiters();
            tokio::task::yield_now().await;
        }
    };
    let (first, second) = tokio::select! {
        both = async { tokio::join!(first, second) } => both,
        () = release => unreachable!(),
    };
    first.assert(204, "");
    second.assert(503, "60 series may exceed the series limit 100");
    assert_eq!(second.header("retry-after"), "1");
    assert_eq!(second.header("x-prometheus-remote-write-samples-written"), "20");
    rig.push(&requests[1])
        .await
        .assert(400, "series limit 100 exceeded (now 100)");
    assert_eq!(series_stored(&rig), 100);
}

#[tokio::test(start_paused = true)]
async fn far_below_the_limit_members_are_hardly_asked_and_without_one_never() {
    let rig = limited_rig(100_000);
    for n in 0..20 {
        rig.push(&all(n * 100..n * 100 + 100, NOW)).await.assert(204, "");
    }
    assert_eq!(asks(&rig), 1, "how many there are");
    rig.push(&all(0..2000, NOW + 1)).await.assert(204, "");
    assert_eq!(asks(&rig), 1);
    let unlimited = limited_rig(0);
    unlimited.push(&all(0..200, NOW)).await.assert(204, "");
    assert_eq!(asks(&unlimited), 0);
}

#[tokio::test(start_paused = true)]
async fn series_that_were_refused_do_not_get_in_later() {
    let rig = limited_rig(20);
    rig.push(&all(0..1, NOW)).await.assert(204, "");
    let too_old = NOW - 7 * 3_600_000;
    for round in 0..10 {
        let numbers = 100 + round * 15..115 + round * 15;
        rig.push(&all(numbers, too_old))
            .await
            .assert(400, "too old sample");
    }
    rig.push(&all(100..119, NOW)).await.assert(204, "");
    let answer = rig.push(&all(100..250, NOW)).await;
    answer.assert(400, "series limit 20 exceeded (now 20)");
    assert_eq!(series_stored(&rig), 20);
}

#[tokio::test(start_paused = true)]
async fn series_that_found_no_members_do_not_get_in_later() {
    let rig = limited_rig(20);
    for member in &rig.members {
        *member.always.lock() = Some(Next::Refuse(ServiceErrorCode::Unavailable, 0));
    }
    let same = all(0..20, NOW);
    for _ in 0..3 {
        rig.push(&same).await.assert(503, "not enough replicas");
    }
    for member in &rig.members {
        *member.always.lock() = None;
    }
    rig.push(&all(100..120, NOW)).await.assert(503, "try again");
    rig.push(&same).await.assert(204, "");
    rig.push(&all(100..120, NOW))
        .await
        .assert(400, "exceeded (now 20)");
    assert_eq!(series_stored(&rig), 20);
}

/// Members forget the series of a limit's test whose numbers are not below.
fn forget(rig: &Rig, left: usize) {
    for member in &rig.members {
        let mut known = member.known.lock();
        let kept = |labels: &str| {
            let digits: String = labels.chars().filter(char::is_ascii_digit).collect();
            digits.parse::<usize>().unwrap() < left
        };
        known.retain(|_, labels| kept(labels));
        member.head.lock().retain(|(_, labels, _), _| kept(labels));
    }
}

/// With one member replaced by an empty one that does not count yet, and one away.
#[tokio::test(start_paused = true)]
async fn members_that_cannot_tell_refuse_nothing() {
    let old = limited_rig(0);
    old.push(&all(0..100, NOW)).await.assert(204, "");
    let rig = beside(&old, 100);
    let new = &rig.members[2];
    new.known.lock().clear();
    new.head.lock().clear();
    *new.is_new.lock() = true;
    rig.push(&all(0..30, NOW + 1)).await.assert(204, "");
    rig.push(&all(200..210, NOW + 1)).await.assert(400, "now 100");
    let away = Next::Refuse(ServiceErrorCode::Unavailable, 0);
    *rig.members[1].asked.lock() = Some(away.clone());
    *rig.members[1].always.lock() = Some(away);
    // One says that it has them, which is enough; of others it alone says that it has them not.
    rig.push(&all(0..60, NOW + 2)).await.assert(204, "");
    let answer = rig.push(&all(60..110, NOW + 3)).await;
    answer.assert(503, "10 series may exceed the series limit 100");
    assert_eq!(answer.header("x-prometheus-remote-write-samples-written"), "40");
    assert_eq!(series_stored(&rig), 100);
}

#[tokio::test(start_paused = true)]
async fn a_series_exists_that_one_member_has() {
    let old = limited_rig(0);
    old.push(&all(0..100, NOW)).await.assert(204, "");
    let rig = beside(&old, 100);
    for lacking in [0, 1] {
        rig.members[lacking].known.lock().clear();
        *rig.members[lacking].is_new.lock() = true;
    }
    rig.push(&all(0..100, NOW + 1)).await.assert(204, "");
}

#[tokio::test(start_paused = true)]
async fn i16_members_of_an_earlier_version_refuse_nothing() {
    let old = limited_rig(0);
    old.push(&all(0..100, NOW)).await.assert(204, "");
    let rig = beside(&old, 100);
    for member in &rig.members {
        *member.asked.lock() = Some(Next::Refuse(ServiceErrorCode::Unimplemented, 0));
    }
    rig.push(&all(0..100, NOW + 1)).await.assert(204, "");
    rig.push(&all(0..100, NOW + 2)).await.assert(204, "");
}

#[tokio::test(start_paused = true)]
async fn known_series_that_members_forgot_take_room_like_new_ones() {
    let rig = limited_rig(100);
    rig.push(&all(0..100, NOW)).await.assert(204, "");
    // Forty of them are forgotten, and others come instead.
    forget(&rig, 60);
    rig.clock.sleep(Duration::from_secs(1)).await;
    rig.push(&all(0..60, NOW + 1)).await.assert(204, "");
    rig.push(&all(200..230, NOW + 1)).await.assert(204, "");
    let answer = rig.push(&all(0..100, NOW + 2)).await;
    answer.assert(400, "series limit 100 exceeded (now ");
    let stored = series_stored(&rig);
    assert!(stored <= 100, "{stored}");
    answer.assert(400, &format!("written: {} samples", stored - 30));
    // What was refused does not pass for known any more.
    let resent = |rig: &Rig| {
        let text = rig.metrics.encode();
        let of = |line: &str| line.starts_with("koios_distributor_send_failures_total");
        text.lines().find(|line| of(line)).map(str::to_owned)
    };
    let before = resent(&rig);
    rig.push(&all(0..100, NOW + 3))
        .await
        .assert(400, "exceeded (now 100)");
    assert_eq!(resent(&rig), before);
    rig.push(&all(0..60, NOW + 4)).await.assert(204, "");
    rig.push(&all(200..230, NOW + 4)).await.assert(204, "");
    assert_eq!(series_stored(&rig), 100);
}

#[tokio::test(start_paused = true)]
async fn two_distributors_share_the_room() {
    let one = limited_rig(1000);
    let two = Rig::with_members(&one, limited(1000));
    for rig in [&one, &two] {
        let mut state = (*rig.state.current()).clone();
        for name in ["d0", "d1"] {
            let member = Member {
                name: name.to_owned(),
                role: Role::Distributor,
                zone: "z0".to_owned(),
                grpc_addr: String::new(),
                http_addr: String::new(),
                incarnation: Incarnation(77),
                version: String::new(),
            };
            state.members.insert(name.to_owned(), member);
        }
        state.version += 1;
        assert!(rig.state.offer(state));
    }
    let requests: Vec<Vec<u8>> = (0..40).map(|n| all(n * 100..n * 100 + 50, NOW)).collect();
    for round in 0..20 {
        let half = |rig, odd| {
            let requests = requests.iter().skip(odd).step_by(2);
            requests.map(move |request| Rig::push(rig, request))
        };
        let pushes = half(&one, round % 2).chain(half(&two, 1 - round % 2));
        futures::future::join_all(pushes).await;
        let stored = series_stored(&one);
        assert!(stored <= 1100, "{stored}");
    }
    assert!(series_stored(&one) >= 1000);
    // Whoever takes them.
    let existing: Vec<usize> = (0..4000)
        .filter(|n| {
            let labels = format!("{{__name__=\"m{n}\"}}");
            one.members[0].known.lock().values().any(|known| *known == labels)
        })
        .collect();
    assert!(existing.len() >= 1000);
    for rig in [&one, &two] {
        let messages: Vec<Message> = existing.iter().map(|n| numbered(*n, NOW + 1)).collect();
        rig.push(&request(&messages)).await.assert(204, "");
    }
}

// Row 33.
#[tokio::test(start_paused = true)]
async fn a_tenant_that_rests_for_hours_finds_its_series_as_long_as_members_have_them() {
    let rig = limited_rig(100);
    rig.push(&all(0..100, NOW)).await.assert(204, "");
    for hours in [1, 2, 5] {
        rig.clock.sleep(Duration::from_secs(hours * 3600)).await;
        let now = NOW + i64::try_from(rig.clock.elapsed().as_millis()).unwrap();
        rig.push(&all(0..110, now))
            .await
            .assert(400, "written: 100 samples");
    }
}

fn of_metric(metric: &str, numbers: Range<usize>, t: i64) -> Vec<u8> {
    let one = |n: usize| {
        let n = n.to_string();
        series(
            &[(b"__name__", metric.as_bytes()), (b"n", n.as_bytes())],
            &[(t, 1.0)],
        )
    };
    request(&numbers.map(one).collect::<Vec<_>>())
}

fn rig_limited_per_metric(max_series_per_metric: u64, max_series: u64) -> Rig {
    let limits = Limits {
        max_series_per_metric,
        max_series,
        ..Limits::default()
    };
    Rig::new(state(3, 1, 3, 1), limits)
}

#[tokio::test(start_paused = true)]
async fn series_of_one_metric_are_limited_and_leave_others_room() {
    let rig = rig_limited_per_metric(10, 0);
    rig.push(&of_metric("a", 0..8, NOW)).await.assert(204, "");
    let answer = rig.push(&of_metric("a", 0..15, NOW + 1)).await;
    answer.assert(400, "series limit 10 of metric \"a\" exceeded (now 10)");
    answer.assert(400, "limits.max-series-per-metric");
    answer.assert(400, "rejected: 5 samples of 5 series, written: 10 samples");
    assert_eq!(series_stored(&rig), 10);
    rig.push(&of_metric("b", 0..10, NOW)).await.assert(204, "");
    // Neither a restart nor a lower limit makes those new that exist.
    let lower = rig_limited_per_metric(5, 0);
    for (new, old) in lower.members.iter().zip(&rig.members) {
        new.head.lock().clone_from(&old.head.lock());
        new.known.lock().clone_from(&old.known.lock());
    }
    lower.push(&of_metric("a", 0..8, NOW + 2)).await.assert(204, "");
    lower
        .push(&of_metric("a", 20..21, NOW + 2))
        .await
        .assert(400, "series limit 5 of metric \"a\" exceeded (now 10)");
}

#[tokio::test(start_paused = true)]
async fn requests_at_the_same_time_share_the_room_of_a_metric() {
    let rig = rig_limited_per_metric(100, 0);
    let requests: Vec<Vec<u8>> = (0..10)
        .map(|n| of_metric("a", n * 20..n * 20 + 20, NOW))
        .collect();
    for _ in 0..3 {
        futures::future::join_all(requests.iter().map(|r| rig.push(r))).await;
        assert!(series_stored(&rig) <= 100);
    }
    for request in &requests {
        rig.push(request).await;
    }
    assert_eq!(series_stored(&rig), 100);
}

#[tokio::test(start_paused = true)]
async fn the_same_series_twice_at_once_are_not_refused() {
    let rig = rig_limited_per_metric(100, 0);
    let request = of_metric("a", 0..60, NOW);
    for answer in futures::future::join_all([rig.push(&request), rig.push(&request)]).await {
        assert!([204, 503].contains(&answer.status.as_u16()), "{answer:?}");
    }
    rig.push(&request).await.assert(204, "");
    assert_eq!(series_stored(&rig), 60);
}

#[tokio::test(start_paused = true)]
async fn many_metrics_beyond_their_limit_are_refused_at_once() {
    let rig = rig_limited_per_metric(2, 0);
    let of_metrics = |metrics: usize| {
        let one = |n: usize| {
            let (metric, label) = (format!("m{}", n / 3), (n % 3).to_string());
            series(
                &[(b"__name__", metric.as_bytes()), (b"n", label.as_bytes())],
                &[(NOW, 1.0)],
            )
        };
        request(&(0..3 * metrics).map(one).collect::<Vec<_>>())
    };
    let answer = rig.push(&of_metrics(2000)).await;
    answer.assert(
        400,
        "rejected: 2000 samples of 2000 series, written: 4000 samples",
    );
    assert_eq!(series_stored(&rig), 4000);
}

#[tokio::test(start_paused = true)]
async fn both_limits_on_series_hold_together() {
    let rig = rig_limited_per_metric(10, 15);
    rig.push(&of_metric("a", 0..12, NOW))
        .await
        .assert(400, "of metric \"a\" exceeded");
    rig.push(&of_metric("b", 0..12, NOW))
        .await
        .assert(400, "exceeded");
    assert_eq!(series_stored(&rig), 15);
}

#[tokio::test(start_paused = true)]
async fn known_series_that_members_forgot_take_room_of_their_metric() {
    let rig = rig_limited_per_metric(100, 0);
    rig.push(&of_metric("a", 0..100, NOW)).await.assert(204, "");
    forget(&rig, 60);
    rig.push(&of_metric("a", 200..230, NOW + 1)).await.assert(204, "");
    let answer = rig.push(&of_metric("a", 0..100, NOW + 2)).await;
    answer.assert(400, "series limit 100 of metric \"a\" exceeded (now 100)");
    answer.assert(400, "rejected: 30 samples of 30 series, written: 70 samples");
    assert_eq!(series_stored(&rig), 100);
    // Also where labels were left in the message, and where others have room.
    rig.push(&of_metric("a", 0..60, NOW + 3)).await.assert(204, "");
    forget(&rig, 0);
    rig.push(&of_metric("b", 0..100, NOW + 3)).await.assert(204, "");
    rig.push(&of_metric("a", 300..390, NOW + 3)).await.assert(204, "");
    rig.push(&of_metric("a", 0..60, NOW + 4))
        .await
        .assert(400, "written: 10 samples");
    rig.push(&of_metric("b", 0..100, NOW + 5)).await.assert(204, "");
    assert_eq!(series_stored(&rig), 200);
}

#[tokio::test(start_paused = true)]
async fn series_of_a_metric_wait_for_members_that_can_tell_of_them() {
    let old = rig_limited_per_metric(0, 0);
    old.push(&of_metric("a", 0..10, NOW)).await.assert(204, "");
    let rig = rig_limited_per_metric(10, 0);
    for (new, old) in rig.members.iter().zip(&old.members) {
        new.head.lock().clone_from(&old.head.lock());
        new.known.lock().clone_from(&old.known.lock());
    }
    let away = Next::Refuse(ServiceErrorCode::Unavailable, 0);
    for member in &rig.members {
        *member.asked.lock() = Some(away.clone());
    }
    let answer = rig.push(&of_metric("a", 0..5, NOW + 1)).await;
    answer.assert(503, "5 series may exceed the series limit 10, which shows once");
    answer.assert(503, "raise limits.max-series-per-metric");
    *rig.members[0].asked.lock() = None;
    // One says that it has them, which is enough.
    rig.push(&of_metric("a", 0..8, NOW + 2)).await.assert(204, "");
    rig.push(&of_metric("a", 20..22, NOW + 2))
        .await
        .assert(503, "2 series may exceed");
    rig.push(&of_metric("b", 0..10, NOW + 2)).await.assert(204, "");
    rig.push(&of_metric("b", 0..11, NOW + 3))
        .await
        .assert(503, "1 series may exceed");
    *rig.members[1].asked.lock() = None;
    rig.push(&of_metric("a", 0..10, NOW + 4)).await.assert(204, "");
    rig.push(&of_metric("a", 20..22, NOW + 4))
        .await
        .assert(400, "exceeded (now 10)");
    assert_eq!(series_stored(&rig), 20);
}

#[tokio::test(start_paused = true)]
async fn i16_members_of_an_earlier_version_refuse_no_series_of_a_metric() {
    let rig = rig_limited_per_metric(10, 0);
    for member in &rig.members {
        *member.asked.lock() = Some(Next::Refuse(ServiceErrorCode::Unimplemented, 0));
    }
    rig.push(&of_metric("a", 0..20, NOW)).await.assert(204, "");
}
