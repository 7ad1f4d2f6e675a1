//! Voters and other processes over a network in memory, in paused time: minutes of faults pass in moments.
#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

mod support;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use koios_control::*;
use koios_model::{PartitionId, TenantId};
use koios_runtime::Net as _;
use support::memory_net::{MemoryNet, Node};
use support::{LONG, MemoryBackup, Process, Running, ingester, options, paused_runtime, register};

/// Three voters and what they need to be started again.
struct Cluster {
    dir: tempfile::TempDir,
    net: MemoryNet,
    voters: Voters,
    backup: Arc<MemoryBackup>,
    running: Running,
    nodes: std::collections::BTreeMap<String, Node>,
    lives: u64,
}

impl Cluster {
    async fn start(seed: u64) -> Self {
        let voters = ["a", "b", "c"]
            .into_iter()
            .enumerate()
            .map(|(i, name)| (name.to_owned(), format!("10.0.0.{}:9095", i + 1)))
            .collect();
        let mut cluster = Self {
            dir: tempfile::tempdir().unwrap(),
            net: MemoryNet::default(),
            voters,
            backup: Arc::default(),
            running: Running::new(),
            nodes: std::collections::BTreeMap::new(),
            lives: seed * 1000,
        };
        for name in ["a", "b", "c"] {
            cluster.start_voter(name).await;
        }
        cluster
    }

    fn data_dir(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn start_voter(&mut self, name: &str) {
        let addr = self.voters[name].clone();
        self.start_process(name, &addr, Vec::new()).await;
    }

    async fn start_process(&mut self, name: &str, addr: &str, seeds: Vec<String>) {
        let voters = self.voters.clone();
        self.start_with_voters(name, addr, seeds, &voters).await;
    }

    async fn start_with_voters(&mut self, name: &str, addr: &str, seeds: Vec<String>, voters: &Voters) {
        self.lives += 1;
        let node = self.net.node(addr);
        let listener = node.bind(addr).await.unwrap();
        let options = ControlOptions {
            seeds,
            backup: Some(Arc::clone(&self.backup) as _),
            ..options(self.data_dir(name), name, addr, voters)
        };
        let process = Process::start(options, paused_runtime(self.lives, node.handle()), listener).await;
        self.running.insert(name.to_owned(), process);
        self.nodes.insert(name.to_owned(), node);
    }

    async fn kill(&mut self, name: &str) {
        self.nodes.remove(name).unwrap().kill();
        self.running.remove(name).unwrap().kill().await;
    }

    async fn kill_and_wipe(&mut self, name: &str) {
        self.kill(name).await;
        std::fs::remove_dir_all(self.data_dir(name)).unwrap();
    }

    fn leader(&self) -> Option<String> {
        let found = self.running.iter().find(|(_, process)| process.leads());
        found.map(|(name, _)| name.clone())
    }

    /// Proposes at the last process by name, whoever leads.
    async fn register(&self, zone: &str, incarnation: u128) -> u64 {
        let client = self.running.values().next_back().unwrap().plane.client();
        let proposed = client.propose(register(ingester(zone, incarnation)), LONG).await;
        proposed.unwrap().version
    }

    /// Waits until a voter that was taken in votes.
    async fn votes(&self, name: &str) {
        let process = &self.running[name];
        while !process.plane.consensus().is_some_and(|c| c.is_voting()) {
            process.runtime.clock.sleep(Duration::from_millis(100)).await;
        }
    }

    async fn all_reach(&self, version: u64) -> Vec<Arc<ClusterState>> {
        let mut states = Vec::new();
        for process in self.running.values() {
            states.push(process.state_with(|state| state.version >= version).await);
        }
        states
    }
}

#[tokio::test(start_paused = true)]
async fn an_operator_reaches_the_leader_through_any_process() {
    let mut cluster = Cluster::start(1).await;
    cluster.start_process("x", "10.0.1.1:9095", Vec::new()).await;
    cluster.register("x", 1).await;
    let leader = cluster.leader().unwrap();
    let tool = cluster.net.node("10.0.9.9:1");
    let mut last = 0;
    for (i, process) in cluster.running.values().enumerate() {
        let addr = match cluster.voters.get(&process.plane.identity().node()) {
            Some(addr) => addr.as_str(),
            None => "10.0.1.1:9095",
        };
        let clock = Arc::clone(&process.runtime.clock);
        let remote = RemoteControl::new(tool.handle(), clock, addr);
        let member = Member {
            name: format!("control-{i}"),
            role: Role::Control,
            grpc_addr: cluster.voters[&leader].clone(),
            ..ingester("x", i as u128)
        };
        last = remote.propose(&register(member), LONG).await.unwrap().version;
        let refused = remote.propose(&register(ingester("", 1)), LONG).await;
        assert!(matches!(refused, Err(Error::Rejected(_))), "{refused:?}");
        process.state_with(|state| state.version >= last).await;
        let state = remote.state().await.unwrap().unwrap();
        assert_eq!(state.version, last);
    }
    // Without a majority there is a deadline, and the error says what the last one asked answered.
    for name in cluster.voters.clone().into_keys().filter(|n| *n != leader) {
        cluster.kill(&name).await;
    }
    let clock = Arc::clone(&cluster.running[&leader].runtime.clock);
    let remote = RemoteControl::new(tool.handle(), clock, &cluster.voters[&leader]);
    let failed = remote
        .propose(&register(ingester("y", 1)), Duration::from_secs(60))
        .await;
    let Err(Error::NoLeader { last: said, .. }) = failed else {
        panic!("{failed:?} after version {last}");
    };
    assert_ne!(said, "nobody was asked");
}

#[tokio::test(start_paused = true)]
async fn voters_form_partitions_and_survive_each_others_death() {
    let mut cluster = Cluster::start(1).await;
    let mut last = 0;
    for zone in ["x", "y", "z"] {
        last = cluster.register(zone, 1).await;
    }
    let formed = cluster.all_reach(last).await;
    assert!(formed.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(formed[0].partitions.len(), 2);

    // The leader dies: the others elect another one and go on.
    let leader = cluster.leader().unwrap();
    cluster.kill_and_wipe(&leader).await;
    let last = cluster.register("x", 2).await;
    assert_eq!(
        cluster.all_reach(last).await[0].partitions[&PartitionId(0)].epoch,
        2
    );

    // It comes back with nothing and is taken in under a new id, so that the next one to die can be done without.
    cluster.start_voter(&leader).await;
    cluster.all_reach(last).await;
    cluster.votes(&leader).await;
    let voters = cluster.running[&leader].plane.consensus().unwrap().voters();
    let names: Vec<&str> = voters.iter().map(|voter| voter.name.as_str()).collect();
    assert_eq!(names, ["a", "b", "c"]);
    let next = cluster.leader().unwrap();
    cluster.kill(&next).await;
    let last = cluster.register("y", 2).await;
    let states = cluster.all_reach(last).await;
    assert_eq!(
        (states.len(), states[0].partitions[&PartitionId(0)].epoch),
        (2, 3)
    );
}

#[tokio::test(start_paused = true)]
async fn i14_a_leader_that_is_cut_off_cannot_decide_and_follows_when_it_is_back() {
    let cluster = Cluster::start(2).await;
    let last = cluster.register("x", 1).await;
    cluster.all_reach(last).await;
    let leader = cluster.leader().unwrap();
    let addr = cluster.voters[&leader].clone();
    cluster.net.cut_off(&addr);
    let alone = &cluster.running[&leader];
    let refused = alone
        .plane
        .client()
        .propose(register(ingester("lost", 1)), Duration::from_secs(20))
        .await;
    assert!(matches!(refused, Err(Error::NoLeader { .. })), "{refused:?}");
    let other = cluster
        .running
        .iter()
        .find(|(name, _)| **name != leader)
        .unwrap()
        .1;
    let proposed = other
        .plane
        .client()
        .propose(register(ingester("y", 1)), LONG)
        .await;
    let last = proposed.unwrap().version;
    assert!(alone.plane.state().current().version < last);

    cluster.net.heal(&addr);
    let states = cluster.all_reach(last).await;
    assert!(
        states
            .iter()
            .all(|state| state.members.contains_key("ingester-y"))
    );
}

#[tokio::test(start_paused = true)]
async fn i8_voters_go_on_from_their_disks_after_all_were_stopped() {
    let mut cluster = Cluster::start(3).await;
    let before = cluster.register("x", 1).await;
    let cluster_id = cluster.all_reach(before).await[0].cluster_id;
    for name in ["a", "b", "c"] {
        cluster.kill(name).await;
    }
    for name in ["a", "b", "c"] {
        cluster.start_voter(name).await;
        assert!(cluster.running[name].plane.state().current().version >= before);
    }
    let after = cluster.register("y", 1).await;
    let states = cluster.all_reach(after).await;
    assert_eq!((states[0].cluster_id, states[0].members.len()), (cluster_id, 2));
}

#[tokio::test(start_paused = true)]
async fn i8_processes_start_and_learn_from_each_other_without_any_voter() {
    let mut cluster = Cluster::start(4).await;
    let last = cluster.register("x", 1).await;
    cluster
        .start_process("querier", "10.0.1.1:9095", Vec::new())
        .await;
    cluster.all_reach(last).await;
    for name in ["a", "b", "c", "querier"] {
        cluster.kill(name).await;
    }
    // From its own disk, and from that process.
    cluster
        .start_process("querier", "10.0.1.1:9095", Vec::new())
        .await;
    let seeds = vec!["10.0.1.1:9095".to_owned()];
    cluster.start_process("distributor", "10.0.1.2:9095", seeds).await;
    for state in cluster.all_reach(last).await {
        assert_eq!(state.version, last);
    }
    let client = cluster.running["distributor"].plane.client();
    let registered = client.register(&ingester("x", 1), Duration::from_secs(5)).await;
    assert!(registered.is_ok(), "what is registered already needs no voter");
    let refused = client.register(&ingester("y", 1), Duration::from_secs(5)).await;
    assert!(matches!(refused, Err(Error::NoLeader { .. })));
}

#[tokio::test(start_paused = true)]
async fn i10_lost_voters_are_restored_from_any_process_or_the_backup_with_higher_epochs() {
    for survivor in [false, true] {
        let mut cluster = Cluster::start(5 + u64::from(survivor)).await;
        if survivor {
            cluster
                .start_process("querier", "10.0.1.1:9095", Vec::new())
                .await;
            let querier = Member {
                name: "querier".to_owned(),
                role: Role::Querier,
                grpc_addr: "10.0.1.1:9095".to_owned(),
                ..ingester("q", 1)
            };
            let client = cluster.running["querier"].plane.client();
            client.propose(register(querier), LONG).await.unwrap();
        }
        let mut last = 0;
        for zone in ["x", "y", "z"] {
            last = cluster.register(zone, 1).await;
        }
        let before = Arc::clone(&cluster.all_reach(last).await[0]);
        let clock = Arc::clone(&cluster.running["a"].runtime.clock);
        while cluster
            .backup
            .0
            .lock()
            .as_ref()
            .is_none_or(|(version, _)| *version < last)
        {
            clock.sleep(Duration::from_secs(1)).await;
        }
        for name in ["a", "b", "c"] {
            cluster.kill_and_wipe(name).await;
        }
        for name in ["a", "b", "c"] {
            cluster.start_voter(name).await;
        }
        let state = Arc::clone(&cluster.all_reach(last + 1).await[0]);
        assert_eq!(
            (state.cluster_id, &state.secret),
            (before.cluster_id, &before.secret)
        );
        for (id, partition) in &state.partitions {
            assert!(partition.epoch > before.partitions[id].epoch);
            assert_eq!(partition.replicas, before.partitions[id].replicas);
        }
    }
}

/// It passes for a cluster by itself, restored from the backup, under the name and address of a member.
#[tokio::test(start_paused = true)]
async fn i14_a_process_that_lost_its_voters_does_not_lead_the_others_astray() {
    let mut cluster = Cluster::start(8).await;
    let mut last = 0;
    for (name, addr) in [("querier", "10.0.1.1:9095"), ("store", "10.0.1.2:9095")] {
        cluster.start_process(name, addr, Vec::new()).await;
        let member = Member {
            name: name.to_owned(),
            role: Role::Querier,
            grpc_addr: addr.to_owned(),
            ..ingester(name, 1)
        };
        let client = cluster.running[name].plane.client();
        last = client.propose(register(member), LONG).await.unwrap().version;
    }
    let clock = Arc::clone(&cluster.running["a"].runtime.clock);
    let backed_up = |cluster: &Cluster| {
        cluster
            .backup
            .0
            .lock()
            .as_ref()
            .map_or(0, |(version, _)| *version)
    };
    while backed_up(&cluster) < last {
        clock.sleep(Duration::from_secs(1)).await;
    }
    cluster.kill_and_wipe("querier").await;
    cluster
        .start_with_voters("querier", "10.0.1.1:9095", Vec::new(), &Voters::new())
        .await;
    let astray = cluster.running["querier"].plane.state().current();
    assert_eq!((astray.restores, astray.version > last + 999), (1, true));
    clock.sleep(Duration::from_secs(600)).await;
    let stays = |cluster: &Cluster| {
        cluster
            .running
            .iter()
            .filter(|(name, _)| *name != "querier")
            .all(|(_, p)| {
                let state = p.plane.state().current();
                state.restores == 0 && state.version < last + 500
            })
    };
    assert!(stays(&cluster), "a copy was taken for the cluster's state");
    // What the voters decide is seen, and the backup that the other wrote is not written over unseen.
    let client = cluster.running["store"].plane.client();
    let decided = client.propose(register(ingester("x", 1)), LONG).await.unwrap();
    let seen = cluster.running["store"]
        .state_with(|state| state.version >= decided.version)
        .await;
    assert!(seen.members.contains_key("ingester-x") && stays(&cluster));
    clock.sleep(Duration::from_secs(60)).await;
    assert!(backed_up(&cluster) > last + 999);
    // To go on with the voters they forget what they decided, and restore what the other one backed up.
    cluster.kill("querier").await;
    let astray = backed_up(&cluster);
    for name in ["a", "b", "c"] {
        cluster.kill(name).await;
        let dir = cluster.data_dir(name);
        std::fs::remove_file(dir.join("control-state.json")).unwrap();
        std::fs::remove_dir_all(dir.join("control")).unwrap();
    }
    for name in ["a", "b", "c"] {
        cluster.start_voter(name).await;
    }
    let goes_on = |state: &ClusterState| state.restores == 2 && state.version > astray + 999;
    for name in ["a", "b", "c", "store"] {
        cluster.running[name].state_with(goes_on).await;
    }
    while backed_up(&cluster) < astray + 999 {
        clock.sleep(Duration::from_secs(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_long_log_is_cut_and_a_wiped_voter_catches_up_from_the_snapshot() {
    let mut cluster = Cluster::start(7).await;
    cluster.register("x", 1).await;
    let client = cluster.running["a"].plane.client();
    let assign = |number: u32| Command::Assign {
        task: format!("task-{number}"),
        holder: "a".to_owned(),
        epoch: 0,
    };
    let proposed = futures::future::join_all((0..1_600).map(|n| client.propose(assign(n), LONG))).await;
    let last = proposed.into_iter().map(|p| p.unwrap().version).max().unwrap();
    cluster.kill_and_wipe("b").await;
    cluster.start_voter("b").await;
    let states = cluster.all_reach(last).await;
    assert_eq!(states[1].assignments.len(), 1_600);
}

/// What can be seen of a run from outside, with the times at which it was seen.
async fn trace(seed: u64) -> Vec<(i64, Option<String>, u64)> {
    let mut cluster = Cluster::start(seed).await;
    let clock = Arc::clone(&cluster.running["a"].runtime.clock);
    let mut seen = Vec::new();
    for round in 0..4_u32 {
        let last = cluster.register("x", u128::from(round)).await;
        cluster.all_reach(last).await;
        seen.push((clock.now_ms(), cluster.leader(), last));
        let leader = cluster.leader().unwrap_or_else(|| "a".to_owned());
        if round % 2 == 0 {
            let addr = cluster.voters[&leader].clone();
            cluster.net.cut_off(&addr);
            clock.sleep(Duration::from_secs(10)).await;
            seen.push((clock.now_ms(), cluster.leader(), last));
            cluster.net.heal(&addr);
        } else {
            cluster.kill_and_wipe(&leader).await;
            cluster.start_voter(&leader).await;
            cluster.votes(&leader).await;
        }
        seen.push((clock.now_ms(), cluster.leader(), last));
    }
    seen
}

#[test]
fn i15_one_seed_gives_one_run() {
    let run = |seed| {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().start_paused(true);
        runtime.build().unwrap().block_on(trace(seed))
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

/// Tells the leader, through the process `from`, what it sees of a pair: replicas with their newest sample times.
async fn report(cluster: &Cluster, from: &str, replicas: &[(&str, i64)]) -> Result<Ruling, Error> {
    let sightings = replicas.iter().map(|(replica, newest_ms)| Sighting {
        replica: (*replica).to_owned(),
        newest_ms: *newest_ms,
        age_ms: 0,
        span: Some(Span::at(*newest_ms)),
        lost_ms: None,
    });
    let pair = PairReport {
        tenant: TenantId::anonymous(),
        cluster: "eu".to_owned(),
        failover_ms: 30_000,
        pairs_max: 1,
        epoch: 1,
        replicas: sightings.collect(),
    };
    let client = cluster.running[from].plane.client();
    let rulings = client.report_pairs(vec![pair], Duration::from_secs(10)).await?;
    Ok(rulings.into_iter().next().unwrap())
}

/// Three voters, and two distributors that send reports.
async fn with_distributors(seed: u64) -> Cluster {
    let mut cluster = Cluster::start(seed).await;
    cluster.start_process("d1", "10.0.1.1:9095", Vec::new()).await;
    cluster.start_process("d2", "10.0.1.2:9095", Vec::new()).await;
    cluster.register("x", 1).await;
    cluster
}

async fn elected(cluster: &Cluster, replica: &str) {
    let task = election_task(&TenantId::anonymous(), "eu");
    for process in cluster.running.values() {
        let is_it = |state: &ClusterState| state.assignments.get(&task).is_some_and(|a| a.holder == replica);
        process.state_with(is_it).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_pair_has_one_elected_replica_until_no_distributor_sees_it() {
    let cluster = with_distributors(11).await;
    let clock = Arc::clone(&cluster.running["d1"].runtime.clock);
    let ruling = report(&cluster, "d1", &[("a", clock.now_ms())]).await.unwrap();
    assert_eq!((ruling.elected.as_deref(), ruling.epoch), (Some("a"), 1));
    elected(&cluster, "a").await;
    // One distributor sees the one, the other one the other.
    for _ in 0..30 {
        clock.sleep(Duration::from_secs(2)).await;
        report(&cluster, "d1", &[("a", clock.now_ms())]).await.unwrap();
        let ruling = report(&cluster, "d2", &[("b", clock.now_ms())]).await.unwrap();
        assert_eq!(ruling.elected.as_deref(), Some("a"));
        let sighting = ruling.sighting.unwrap();
        assert!(sighting.age_ms < 1_000 && sighting.span.is_some(), "{sighting:?}");
    }
    let last_seen = clock.elapsed();
    loop {
        clock.sleep(Duration::from_secs(2)).await;
        report(&cluster, "d1", &[]).await.unwrap();
        let ruling = report(&cluster, "d2", &[("b", clock.now_ms())]).await.unwrap();
        let away = clock.elapsed() - last_seen;
        if ruling.elected.as_deref() == Some("b") {
            assert_eq!(ruling.epoch, 2);
            assert!(away > Duration::from_secs(29), "{away:?}");
            break;
        }
        assert!(away < Duration::from_secs(40), "{away:?}");
    }
    elected(&cluster, "b").await;
    // The tenant may have one pair.
    let other = PairReport {
        tenant: TenantId::anonymous(),
        cluster: "us".to_owned(),
        failover_ms: 30_000,
        pairs_max: 1,
        epoch: 1,
        replicas: vec![Sighting {
            replica: "a".to_owned(),
            newest_ms: 0,
            age_ms: 0,
            span: None,
            lost_ms: None,
        }],
    };
    let client = cluster.running["d1"].plane.client();
    let rulings = client.report_pairs(vec![other], LONG).await.unwrap();
    assert_eq!(rulings[0].elected, None);
    assert_eq!(
        rulings[0].refused.as_deref(),
        Some("the tenant has 1 HA pairs, limit 1")
    );
}

#[tokio::test(start_paused = true)]
async fn a_new_leader_waits_a_minute_before_it_elects_another_replica() {
    let mut cluster = with_distributors(12).await;
    let clock = Arc::clone(&cluster.running["d1"].runtime.clock);
    report(&cluster, "d1", &[("a", clock.now_ms())]).await.unwrap();
    elected(&cluster, "a").await;
    clock.sleep(Duration::from_secs(20)).await;
    let leader = cluster.leader().unwrap();
    cluster.kill(&leader).await;
    // Without a majority of voters there is nobody to tell.
    let other = ["a", "b", "c"].into_iter().find(|n| *n != leader).unwrap();
    cluster.kill(other).await;
    clock.sleep(Duration::from_secs(20)).await;
    let refused = report(&cluster, "d1", &[("b", clock.now_ms())]).await;
    assert!(matches!(refused, Err(Error::NoLeader { .. })), "{refused:?}");
    cluster.start_voter(other).await;
    let heard_first = loop {
        clock.sleep(Duration::from_secs(1)).await;
        if report(&cluster, "d1", &[("b", clock.now_ms())]).await.is_ok() {
            break clock.elapsed();
        }
    };
    loop {
        clock.sleep(Duration::from_secs(2)).await;
        let ruling = report(&cluster, "d1", &[("b", clock.now_ms())]).await.unwrap();
        let waited = clock.elapsed() - heard_first;
        if ruling.elected.as_deref() == Some("b") {
            assert!(waited >= Duration::from_secs(60), "{waited:?}");
            return;
        }
        assert!(waited < Duration::from_secs(70), "{waited:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_voter_that_does_not_answer_silences_no_reports() {
    let mut cluster = with_distributors(13).await;
    let clock = Arc::clone(&cluster.running["d1"].runtime.clock);
    report(&cluster, "d1", &[("a", clock.now_ms())]).await.unwrap();
    elected(&cluster, "a").await;
    for name in ["a", "b", "c"] {
        // The network swallows what is sent to it; the others elect a leader among them.
        let addr = cluster.voters[name].clone();
        cluster.net.cut_off(&addr);
        clock.sleep(Duration::from_secs(20)).await;
        for round in 0..4 {
            let client = cluster.running["d1"].plane.client();
            let asked_at = clock.elapsed();
            let answer = client.report_pairs(Vec::new(), Duration::from_secs(3)).await;
            let took = clock.elapsed() - asked_at;
            assert!(round == 0 || answer.is_ok(), "{name}, round {round}: {answer:?}");
            assert!(took <= Duration::from_secs(3), "{name}: {took:?}");
            clock.sleep(Duration::from_secs(2)).await;
        }
        cluster.net.heal(&addr);
        cluster.kill(name).await;
        cluster.start_voter(name).await;
        clock.sleep(Duration::from_secs(20)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn i14_the_backup_of_another_cluster_is_never_replaced() {
    let (dir, net) = (tempfile::tempdir().unwrap(), MemoryNet::default());
    let start = async |name: &str, life: u64, backup: &Arc<MemoryBackup>| {
        let addr = "10.0.0.1:9095";
        let node = net.node(addr);
        let listener = node.bind(addr).await.unwrap();
        let options = ControlOptions {
            backup: Some(Arc::clone(backup) as _),
            ..options(dir.path().join(name), name, addr, &Voters::new())
        };
        (
            Process::start(options, paused_runtime(life, node.handle()), listener).await,
            node,
        )
    };
    let (ones, others) = (Arc::<MemoryBackup>::default(), Arc::<MemoryBackup>::default());
    for (name, life, backup) in [("one", 1, &ones), ("other", 2, &others)] {
        let (process, node) = start(name, life, backup).await;
        process.runtime.clock.sleep(Duration::from_secs(30)).await;
        node.kill();
        process.kill().await;
    }
    let before = ones.0.lock().clone();
    assert!(before.is_some());
    let (process, node) = start("other", 3, &ones).await;
    let client = process.plane.client();
    client.propose(register(ingester("x", 1)), LONG).await.unwrap();
    process.runtime.clock.sleep(Duration::from_secs(60)).await;
    assert_eq!(*ones.0.lock(), before);
    node.kill();
    process.kill().await;

    // Where it belongs it is backed up again.
    let before = others.0.lock().clone();
    let (process, _node) = start("other", 4, &others).await;
    process.runtime.clock.sleep(Duration::from_secs(60)).await;
    assert_ne!(*others.0.lock(), before);
}
