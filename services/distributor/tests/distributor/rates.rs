//! The limit on samples per second, through several distributors.

use std::collections::BTreeMap;
use std::time::Duration;

use koios_control::{ClusterState, Incarnation, Member, Role};
use koios_tenancy::Limits;

use crate::messages::{request, series};
use crate::rig::{NOW, Rig, state};

const LIMIT: usize = 100;

fn limits() -> Limits {
    Limits {
        ingestion_rate: LIMIT as u64,
        ingestion_burst: LIMIT as u64,
        ..Limits::default()
    }
}

/// Three zones, and two distributors.
fn two_distributors() -> ClusterState {
    let mut state = state(1, 1, 3, 4);
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
    state
}

/// Sends `per_second` samples to each of the distributors, and gives how many of those each admits.
async fn send(rigs: &[&Rig], per_second: &[usize], seconds: usize) -> Vec<usize> {
    let mut admitted = vec![0; rigs.len()];
    for _ in 0..seconds {
        // What they hold does not matter here.
        for member in &rigs[0].members {
            member.head.lock().clear();
            member.batches.lock().clear();
        }
        for part in 0..10 {
            for ((rig, n), admitted) in rigs.iter().zip(per_second).zip(&mut admitted) {
                let t = NOW + i64::try_from(rig.clock.elapsed().as_millis()).unwrap();
                let one = |n: usize| series(&[(b"__name__", format!("m{n}").as_bytes())], &[(t, 1.0)]);
                let (from, to) = (n * part / 10, n * (part + 1) / 10);
                let all: Vec<_> = (from..to).map(one).collect();
                if rig.push(&request(&all)).await.status == 204 {
                    *admitted += all.len();
                }
            }
            rigs[0].clock.sleep(Duration::from_millis(100)).await;
        }
    }
    admitted
}

#[tokio::test(start_paused = true)]
async fn two_distributors_admit_the_limit_together() {
    let one = Rig::new(two_distributors(), limits());
    let two = Rig::with_members(&one, limits());
    for member in &one.members {
        member.rates.lock().1 = Some(std::sync::Arc::clone(&one.clock));
    }
    let rigs = [&one, &two];
    send(&rigs, &[3 * LIMIT, 3 * LIMIT], 60).await;
    let admitted = send(&rigs, &[3 * LIMIT, 3 * LIMIT], 60).await;
    let sum: usize = admitted.iter().sum();
    assert!((57 * LIMIT..=66 * LIMIT).contains(&sum), "{admitted:?}");
    assert!(admitted.iter().all(|n| *n > 24 * LIMIT), "{admitted:?}");
    // All of it through one.
    send(&rigs, &[LIMIT * 9 / 10, 0], 60).await;
    assert_eq!(send(&rigs, &[LIMIT * 9 / 10, 0], 60).await, [54 * LIMIT, 0]);
    // Another limit holds at once.
    for rig in rigs {
        let half = Limits {
            ingestion_rate: LIMIT as u64 / 2,
            ..limits()
        };
        rig.limits.replace(half, BTreeMap::new());
    }
    let admitted = send(&rigs, &[LIMIT * 9 / 10, 0], 120).await;
    assert!((60 * LIMIT..=62 * LIMIT).contains(&admitted[0]), "{admitted:?}");
}

#[tokio::test(start_paused = true)]
async fn i16_members_that_do_not_tell_leave_each_distributor_all_of_it() {
    let one = Rig::new(two_distributors(), limits());
    let two = Rig::with_members(&one, limits());
    let admitted = send(&[&one, &two], &[3 * LIMIT, 3 * LIMIT], 60).await;
    assert!(
        admitted.iter().all(|n| (60 * LIMIT..=62 * LIMIT).contains(n)),
        "{admitted:?}"
    );
}
