use koios_runtime::{CancellationToken, DiskHandle, RealDisk, RngHandle, TokioClock};

use super::*;
use crate::pairs::{PAIR_IDLE, Sighting};
use crate::{Identity, Incarnation, LocalConsensus, Member, Role, Settings, StateKeeper};

/// A process that decides alone, as all-in-one does.
struct Alone {
    referee: Arc<Referee>,
    state: StateHandle,
    clock: ClockHandle,
    tasks: TaskGroup,
    _dir: tempfile::TempDir,
}

impl Alone {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (disk, rng) = (DiskHandle::inline(Arc::new(RealDisk)), RngHandle::from_seed(1));
        let identity = Identity::open(&disk, dir.path(), "koios", &rng).await.unwrap();
        let keeper = StateKeeper::open(identity, disk).await.unwrap();
        let state = keeper.handle().clone();
        let settings = Settings::default();
        let consensus = LocalConsensus::start(keeper, settings, None, "koios:9095", &rng).await;
        let clock: ClockHandle = Arc::new(TokioClock::starting_at(1_700_000_000_000));
        let tasks = TaskGroup::new(CancellationToken::new());
        let referee = Referee::new(consensus.unwrap(), state.clone(), Arc::clone(&clock));
        referee.spawn(&tasks);
        Self {
            referee,
            state,
            clock,
            tasks,
            _dir: dir,
        }
    }

    async fn report(&self, tenant: &str, clusters: &[&str], pairs_max: u64) -> Vec<Ruling> {
        let pair = |cluster: &&str| PairReport {
            tenant: TenantId::new(tenant).unwrap(),
            cluster: (*cluster).to_owned(),
            failover_ms: 30_000,
            pairs_max,
            epoch: 1,
            replicas: vec![Sighting {
                replica: "a".to_owned(),
                newest_ms: self.clock.now_ms(),
                age_ms: 0,
                span: None,
                lost_ms: None,
            }],
        };
        let report = Report {
            reporter: "koios".to_owned(),
            pairs: clusters.iter().map(pair).collect(),
        };
        self.referee.hear(&report).await.unwrap()
    }

    async fn registers_as(&self, version: &str) {
        let member = Member {
            name: "koios".to_owned(),
            role: Role::All,
            zone: "z".to_owned(),
            grpc_addr: "koios:9095".to_owned(),
            http_addr: "koios:9009".to_owned(),
            incarnation: Incarnation(1),
            version: version.to_owned(),
        };
        let command = Command::Register {
            member,
            cluster_id: self.state.current().cluster_id,
        };
        self.referee.consensus.propose(command).await.unwrap();
    }

    fn tasks_held(&self) -> Vec<String> {
        self.state.current().assignments.keys().cloned().collect()
    }
}

#[tokio::test(start_paused = true)]
async fn a_pair_that_nobody_sends_for_is_forgotten() {
    let alone = Alone::start().await;
    alone.report("t", &["eu"], 10).await;
    alone.report("t", &["us"], 10).await;
    assert_eq!(alone.tasks_held(), ["ha/t/eu", "ha/t/us"]);
    for _ in 0..33 {
        alone.clock.sleep(PAIR_IDLE / 30).await;
        alone.report("t", &["us"], 10).await;
    }
    // A voter of another version may not understand that it ends.
    alone.registers_as("0.0.1").await;
    alone.clock.sleep(SWEEP_EVERY * 2).await;
    assert_eq!(alone.tasks_held(), ["ha/t/eu", "ha/t/us"]);
    alone.registers_as(env!("CARGO_PKG_VERSION")).await;
    alone.clock.sleep(SWEEP_EVERY * 2).await;
    assert_eq!(alone.tasks_held(), ["ha/t/us"]);
    alone.tasks.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_distributor_has_told_all_only_with_a_report_that_is_not_full() {
    let alone = Alone::start().await;
    let heard_of = || {
        alone
            .referee
            .memory
            .lock()
            .as_ref()
            .is_some_and(|m| m.has_heard_of("koios"))
    };
    alone.report("t", &["eu"; PAIRS_PER_REPORT_MAX], 10).await;
    assert!(!heard_of());
    alone.report("t", &[], 10).await;
    assert!(heard_of());
}

#[tokio::test(start_paused = true)]
async fn i12_a_tenant_has_no_more_pairs_than_its_limit() {
    let alone = Alone::start().await;
    // New pairs of a tenant are elected one by one, however many one report brings.
    for _ in 0..5 {
        alone.report("t", &["c1", "c2", "c3", "c4"], 3).await;
    }
    assert_eq!(alone.tasks_held(), ["ha/t/c1", "ha/t/c2", "ha/t/c3"]);
    let rulings = alone.report("t", &["c3", "c4"], 3).await;
    assert_eq!(
        (rulings[0].elected.as_deref(), rulings[0].refused.as_deref()),
        (Some("a"), None)
    );
    assert_eq!(
        (rulings[1].elected.as_deref(), rulings[1].refused.as_deref()),
        (None, Some("the tenant has 3 HA pairs, limit 3"))
    );
    // A tenant whose name begins the same is another one.
    alone.report("t-2", &["c1"], 3).await;
    assert_eq!(alone.tasks_held().len(), 4);
    let refused = &alone.report("t", &["a\nb"], 10).await[0];
    assert!(
        refused.elected.is_none() && refused.refused.is_some(),
        "{refused:?}"
    );
}
