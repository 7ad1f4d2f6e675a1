//! When a write is acknowledged, and under which epoch.

use std::collections::BTreeMap;
use std::time::Duration;

use koios_model::{Labels, Sample, TenantId};
use koios_tenancy::Limits;
use koios_wire::ServiceErrorCode;

use crate::messages::{good, request, series};
use crate::rig::{NOW, Next, Rig, state};

#[tokio::test(start_paused = true)]
async fn i1_a_majority_acknowledges_and_the_slowest_still_gets_the_batch() {
    let rig = Rig::three_zones();
    rig.push(&good("up", &[(NOW, 1.0)])).await.assert(204, "");
    rig.tasks.stop().await;
    let acknowledged = rig.members.iter().filter(|m| m.batches.lock().len() == 1).count();
    assert!(acknowledged >= 2);
}

#[tokio::test(start_paused = true)]
async fn i7_one_zone_may_be_away_or_hang() {
    for next in [Next::Refuse(ServiceErrorCode::Unavailable, 0), Next::Hang] {
        for away in 0..3 {
            let rig = Rig::three_zones();
            *rig.members[away].always.lock() = Some(next.clone());
            rig.push(&good("up", &[(NOW, 1.0)])).await.assert(204, "");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn i13_two_zones_away_give_503_and_say_so() {
    for next in [Next::Refuse(ServiceErrorCode::Unavailable, 0), Next::Hang] {
        let rig = Rig::three_zones();
        for away in [0, 2] {
            *rig.members[away].always.lock() = Some(next.clone());
        }
        let answer = rig.push(&good("up", &[(NOW, 1.0)])).await;
        answer.assert(503, "not enough replicas acknowledged (1/2)");
        assert_eq!(answer.header("retry-after"), "1");
        assert_eq!(answer.header("x-prometheus-remote-write-samples-written"), "0");
        // A retry is harmless and succeeds once a zone is back.
        *rig.members[0].always.lock() = None;
        rig.push(&good("up", &[(NOW, 1.0)])).await.assert(204, "");
    }
}

#[tokio::test(start_paused = true)]
async fn i13_bad_samples_do_not_hide_a_lack_of_replicas() {
    let rig = Rig::three_zones();
    for away in [0, 2] {
        *rig.members[away].always.lock() = Some(Next::Refuse(ServiceErrorCode::Unavailable, 0));
    }
    let mixed = request(&[
        series(&[], &[(NOW, 1.0)]),
        series(&[(b"__name__", b"up")], &[(NOW, 1.0)]),
    ]);
    rig.push(&mixed).await.assert(503, "not enough replicas");
}

#[tokio::test(start_paused = true)]
async fn i13_without_partitions_a_write_gets_503() {
    let rig = Rig::new(state(1, 1, 3, 0), Limits::default());
    let answer = rig.push(&good("up", &[(NOW, 1.0)])).await;
    answer.assert(503, "no partitions have been formed");
    assert_eq!(answer.header("retry-after"), "1");
}

#[tokio::test(start_paused = true)]
async fn i14_acknowledgements_of_two_epochs_do_not_add_up() {
    let rig = Rig::three_zones();
    // One member takes the batch under epoch 1; the others know epoch 2 already.
    for newer in [1, 2] {
        rig.members[newer]
            .next
            .lock()
            .push_back(Next::Refuse(ServiceErrorCode::Stale, 2));
    }
    *rig.members[0].always.lock() = None;
    let message = good("up", &[(NOW, 1.0)]);
    let (answer, ()) = tokio::join!(rig.push(&message), async {
        tokio::task::yield_now().await;
        // From now on, member 0 is out of reach.
        *rig.members[0].always.lock() = Some(Next::Refuse(ServiceErrorCode::Unavailable, 0));
        assert!(rig.state.offer(state(2, 2, 3, 1)));
    });
    answer.assert(204, "");
    for newer in [1, 2] {
        let batches = rig.members[newer].batches.lock();
        assert_eq!(batches.len(), 1);
        assert_eq!((batches[0].header().epoch, batches[0].header().sequence), (2, 1));
    }
    let first = rig.members[0].batches.lock();
    assert_eq!((first[0].header().epoch, first[0].header().sequence), (1, 0));
    assert_eq!(first[0].header().admission_ms, NOW);
}

#[tokio::test(start_paused = true)]
async fn i14_a_state_that_never_comes_gives_503_within_the_deadline() {
    let rig = Rig::three_zones();
    for member in &rig.members {
        *member.always.lock() = Some(Next::Refuse(ServiceErrorCode::Stale, 9));
    }
    rig.push(&good("up", &[(NOW, 1.0)]))
        .await
        .assert(503, "not enough replicas acknowledged (0/2)");
    assert_eq!(rig.clock.elapsed(), Duration::from_secs(10));
}

#[tokio::test(start_paused = true)]
async fn members_behind_get_the_batch_again() {
    let rig = Rig::three_zones();
    for member in &rig.members[..2] {
        let behind = Next::Refuse(ServiceErrorCode::Behind, 0);
        member.next.lock().extend([behind.clone(), behind]);
    }
    rig.push(&good("up", &[(NOW, 1.0)])).await.assert(204, "");
    assert!(rig.metrics.encode().contains("koios_distributor_resends_total 2"));
}

#[tokio::test(start_paused = true)]
async fn resends_are_bounded() {
    let rig = Rig::three_zones();
    for member in &rig.members {
        *member.always.lock() = Some(Next::Refuse(ServiceErrorCode::Behind, 0));
    }
    rig.push(&good("up", &[(NOW, 1.0)]))
        .await
        .assert(503, "not enough replicas acknowledged (0/2)");
    assert!(rig.metrics.encode().contains("koios_distributor_resends_total 5"));
}

#[tokio::test(start_paused = true)]
async fn sequences_are_contiguous_per_partition_and_tenant_and_settle() {
    let rig = Rig::new(state(1, 1, 1, 4), Limits::default());
    for i in 0..20 {
        let many: Vec<_> = (0..50)
            .map(|s| {
                series(
                    &[(b"__name__", b"up"), (b"i", format!("{s}").as_bytes())],
                    &[(NOW + i, 1.0)],
                )
            })
            .collect();
        rig.push(&request(&many)).await.assert(204, "");
    }
    let batches = rig.members[0].batches.lock();
    let mut by_partition: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
    let streams: std::collections::BTreeSet<_> = batches.iter().map(|b| b.header().stream).collect();
    assert_eq!(streams.len(), 1);
    for batch in batches.iter() {
        let header = batch.header();
        assert_eq!(
            header.settled_below, header.sequence,
            "what came before is settled"
        );
        by_partition
            .entry(header.partition.0)
            .or_default()
            .push(header.sequence);
    }
    assert_eq!(by_partition.len(), 4, "fifty series meet every partition");
    for sequences in by_partition.values() {
        assert_eq!(*sequences, (0..20).collect::<Vec<u64>>());
    }
}

#[tokio::test(start_paused = true)]
async fn a_batch_on_its_way_to_a_slow_member_is_not_settled() {
    let rig = Rig::three_zones();
    rig.members[2].next.lock().push_back(Next::Hang);
    rig.push(&good("up", &[(NOW, 1.0)])).await.assert(204, "");
    rig.push(&good("up", &[(NOW + 1, 1.0)])).await.assert(204, "");
    rig.clock.sleep(Duration::from_secs(11)).await;
    rig.push(&good("up", &[(NOW + 2, 1.0)])).await.assert(204, "");
    let batches = rig.members[0].batches.lock();
    let settled: Vec<u64> = batches.iter().map(|b| b.header().settled_below).collect();
    assert_eq!(settled, [0, 0, 2]);
}

#[tokio::test(start_paused = true)]
async fn the_process_writes_its_own_series() {
    let rig = Rig::single();
    let labels = Labels::from_pairs([("__name__", "koios_up")]);
    let series = [(labels, vec![Sample { t: NOW, v: 1.0 }])];
    let outcome = rig
        .distributor
        .push(&TenantId::anonymous(), &series)
        .await
        .unwrap();
    assert_eq!((outcome.written.samples, outcome.complaint()), (1, None));
    assert_eq!(rig.stored(), [("{__name__=\"koios_up\"}".to_owned(), NOW, 1.0)]);
}

#[tokio::test(start_paused = true)]
async fn a_request_given_up_by_its_sender_settles_its_sequence() {
    let rig = Rig::three_zones();
    for member in &rig.members {
        member.next.lock().push_back(Next::Hang);
    }
    let message = good("up", &[(NOW, 1.0)]);
    let given_up = rig
        .clock
        .timeout(Duration::from_secs(1), rig.push(&message))
        .await;
    assert!(given_up.is_err());
    rig.push(&good("up", &[(NOW + 1, 1.0)])).await.assert(204, "");
    let batches = rig.members[0].batches.lock();
    assert_eq!(
        (batches[0].header().sequence, batches[0].header().settled_below),
        (1, 1)
    );
}

#[tokio::test(start_paused = true)]
async fn i13_what_one_partition_never_takes_does_not_hide_that_another_is_down() {
    let (never, down) = (ServiceErrorCode::TooLarge, ServiceErrorCode::Unavailable);
    let named = |n: u32| {
        let i = n.to_string();
        series(&[(b"__name__", b"up"), (b"i", i.as_bytes())], &[(NOW, 1.0)])
    };
    let message = request(&(0..50).map(named).collect::<Vec<_>>());
    for answers in [[never, down], [down, never]] {
        let rig = Rig::new(state(1, 1, 1, 2), Limits::default());
        let answers = answers.map(|code| Next::Refuse(code, 0));
        rig.members[0].next.lock().extend(answers);
        let answer = rig.push(&message).await;
        answer.assert(503, "not enough replicas acknowledged (0/1)");
        assert!(rig.members[0].next.lock().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn i13_what_members_never_take_is_not_to_be_sent_again() {
    let never = Some(Next::Refuse(ServiceErrorCode::TooLarge, 0));
    let rig = Rig::three_zones();
    *rig.members[0].always.lock() = never.clone();
    rig.push(&good("up", &[(NOW, 1.0)])).await.assert(204, "");
    *rig.members[1].always.lock() = Some(Next::Refuse(ServiceErrorCode::Unavailable, 0));
    rig.push(&good("up", &[(NOW, 1.0)]))
        .await
        .assert(503, "not enough replicas");
    *rig.members[1].always.lock() = never;
    let answer = rig.push(&good("up", &[(NOW, 1.0)])).await;
    answer.assert(413, "partition 0 cannot take the request: member m");
    answer.assert(413, "refused by the test");
    assert_eq!(answer.header("retry-after"), "");
    // What older versions cannot read comes again, and arrives when they are replaced.
    for unreadable in [0, 1] {
        *rig.members[unreadable].always.lock() = Some(Next::Refuse(ServiceErrorCode::InvalidArgument, 0));
    }
    rig.push(&good("up", &[(NOW, 1.0)]))
        .await
        .assert(503, "not enough replicas");
}
