//! Limits on series: those that exist are stored whatever comes, and others get in while there is room.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use koios_tenancy::Limits;
use koios_wire::ServiceErrorCode;

use crate::messages::{Message, request, series};
use crate::rig::{NOW, Next, Rig, state};

const QUARTER: Duration = Duration::from_secs(900);

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

/// Past the time in which series are learnt, with one series of a tenant that may have as many.
async fn learnt(max_series: u64) -> Rig {
    let rig = Rig::new(state(1, 1, 1, 1), limited(max_series));
    rig.push(&all(0..1, NOW)).await.assert(204, "");
    rig.clock.sleep(QUARTER).await;
    rig
}

fn series_stored(rig: &Rig) -> usize {
    let stored = rig.stored();
    stored
        .iter()
        .map(|s| &s.0)
        .collect::<std::collections::BTreeSet<_>>()
        .len()
}

// Row 33.
#[tokio::test(start_paused = true)]
async fn a_limit_that_is_set_while_it_runs_refuses_no_series_that_exists() {
    let rig = Rig::new(state(1, 1, 1, 1), limited(0));
    rig.push(&all(0..200, NOW)).await.assert(204, "");
    rig.clock.sleep(4 * QUARTER).await;
    rig.limits.replace(limited(20), BTreeMap::new());
    let now = NOW + 3_600_000;
    for (i, numbers) in [0..1, 1..100, 100..200, 0..200].into_iter().enumerate() {
        rig.push(&all(numbers, now + i as i64)).await.assert(204, "");
    }
    // Lower still, and with nothing to learn from any more.
    rig.clock.sleep(2 * QUARTER).await;
    rig.limits.replace(limited(10), BTreeMap::new());
    let now = now + 1_800_000;
    rig.push(&all(0..200, now)).await.assert(204, "");
    rig.push(&all(200..210, now))
        .await
        .assert(400, "series limit 10 exceeded (now 200)");
    rig.push(&all(0..200, now + 1)).await.assert(204, "");
}

// Row 33.
#[tokio::test(start_paused = true)]
async fn a_restarted_distributor_refuses_no_series_that_exists() {
    let old = Rig::new(state(1, 1, 1, 1), limited(0));
    old.push(&all(0..200, NOW)).await.assert(204, "");
    for limit in [100, 190, 1000] {
        let rig = Rig::new(state(1, 1, 1, 1), limited(limit));
        rig.members[0].head.lock().clone_from(&old.members[0].head.lock());
        rig.members[0]
            .known
            .lock()
            .clone_from(&old.members[0].known.lock());
        rig.push(&all(0..1, NOW + 1)).await.assert(204, "");
        // One request is larger than what can be told at once; its sender is to try again, and loses nothing.
        let mut tries = 0;
        loop {
            let answer = rig.push(&all(0..200, NOW + 2)).await;
            if answer.status == 204 {
                break;
            }
            answer.assert(503, "try again");
            assert_eq!(answer.header("retry-after"), "1");
            tries += 1;
            assert!(tries < 50, "{answer:?}");
        }
        assert_eq!(series_stored(&rig), 200);
    }
}

#[tokio::test(start_paused = true)]
async fn series_that_were_refused_do_not_get_in_later() {
    let rig = learnt(20).await;
    let now = NOW + 900_000;
    let too_old = now - 7 * 3_600_000;
    for round in 0..10 {
        let numbers = 100 + round * 15..115 + round * 15;
        rig.push(&all(numbers, too_old))
            .await
            .assert(400, "too old sample");
    }
    let answer = rig.push(&all(100..250, now)).await;
    answer.assert(400, "series limit 20 exceeded");
    assert_eq!(series_stored(&rig), 20);
}

#[tokio::test(start_paused = true)]
async fn series_that_found_no_members_do_not_get_in_later() {
    let rig = learnt(20).await;
    let now = NOW + 900_000;
    *rig.members[0].always.lock() = Some(Next::Refuse(ServiceErrorCode::Unavailable, 0));
    for round in 0..10 {
        let numbers = 100 + round * 15..115 + round * 15;
        rig.push(&all(numbers, now)).await.assert(503, "");
    }
    *rig.members[0].always.lock() = None;
    rig.clock.sleep(Duration::from_secs(61)).await;
    let answer = rig.push(&all(100..250, now)).await;
    answer.assert(400, "series limit 20 exceeded");
    assert_eq!(series_stored(&rig), 20);
}

#[tokio::test(start_paused = true)]
async fn requests_at_once_exceed_the_limit_by_no_more_than_a_tenth() {
    let rig = learnt(100).await;
    let now = NOW + 900_000;
    let requests: Vec<Vec<u8>> = (1..10).map(|n| all(n * 100..n * 100 + 90, now)).collect();
    let answers = futures::future::join_all(requests.iter().map(|r| rig.push(r))).await;
    assert!(answers.iter().any(|a| a.status == 204));
    assert!(series_stored(&rig) <= 110, "{}", series_stored(&rig));
}
