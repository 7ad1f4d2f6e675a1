//! Voters over real sockets and the real clock.
#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use koios_control::*;
use koios_model::PartitionId;
use koios_runtime::{CancellationToken, Net, RealNet, TaskGroup};
use support::{LONG, Process, Running, ingester, options, real_runtime, register};

#[tokio::test(flavor = "multi_thread")]
async fn three_voters_agree_over_tcp_and_survive_their_leader() {
    let dir = tempfile::tempdir().unwrap();
    let mut listeners = BTreeMap::new();
    for name in ["a", "b", "c"] {
        listeners.insert(name.to_owned(), RealNet.bind("127.0.0.1:0").await.unwrap());
    }
    let voters: Voters = listeners
        .iter()
        .map(|(name, listener)| (name.clone(), listener.local_addr().unwrap().to_string()))
        .collect();
    let mut running = Running::new();
    for (seed, (name, listener)) in listeners.into_iter().enumerate() {
        let options = options(dir.path().join(&name), &name, &voters[&name], &voters);
        let runtime = real_runtime(seed as u64, Arc::new(RealNet));
        running.insert(name, Process::start(options, runtime, listener).await);
    }
    for zone in ["x", "y", "z"] {
        let client = running["a"].plane.client();
        client.propose(register(ingester(zone, 1)), LONG).await.unwrap();
    }
    // A machine that stalls may have made them elect another one.
    let leader = loop {
        if let Some((name, _)) = running.iter().find(|(_, p)| p.leads()) {
            break name.clone();
        }
        running["a"].runtime.clock.sleep(Duration::from_millis(50)).await;
    };
    running.remove(&leader).unwrap().kill().await;
    let survivor = running.values().next().unwrap();
    let again = register(ingester("x", 2));
    let outcome = survivor.plane.client().propose(again, LONG).await.unwrap();
    for process in running.values() {
        let state = process.state_with(|s| s.version >= outcome.version).await;
        assert_eq!(state.partitions[&PartitionId(0)].epoch, 2);
        assert!(state.partitions[&PartitionId(1)].is_readable());
    }
}

#[tokio::test]
async fn one_process_alone_decides_at_once_and_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let options = ControlOptions {
        settings: Settings::default(),
        ..options(dir.path().to_owned(), "koios", "127.0.0.1:9095", &Voters::new())
    };
    let mut versions = Vec::new();
    for seed in 0..2 {
        let tasks = TaskGroup::new(CancellationToken::new());
        let runtime = real_runtime(seed, Arc::new(RealNet));
        let plane = ControlPlane::start(&runtime, &tasks, options.clone())
            .await
            .unwrap();
        let member = Member {
            name: "koios".to_owned(),
            role: Role::All,
            incarnation: plane.identity().incarnation(),
            ..ingester("one", 0)
        };
        plane.client().register(&member, LONG).await.unwrap();
        let state = plane.state().current();
        assert!(state.partitions[&PartitionId(0)].counts("koios", member.incarnation));
        versions.push(state.version);
        // Whoever still writes there does so alone until all have ended.
        plane.release();
        plane.shutdown().await;
        tasks.stop().await;
        let other = TaskGroup::new(CancellationToken::new());
        let refused = ControlPlane::start(&runtime, &other, options.clone()).await;
        assert!(matches!(refused, Err(Error::Locked { .. })));
        plane.release();
    }
    assert_eq!(versions[0], versions[1]);
}
