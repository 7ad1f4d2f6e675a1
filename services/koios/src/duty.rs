//! Which tenants this process compacts: assigned by the control plane.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use koios_bucket::Tombstone;
use koios_control::{ClusterState, Command, ControlClient, StateHandle};
use koios_ingester::Peers;
use koios_model::{TenantId, random_weight};
use koios_runtime::ClockHandle;
use koios_store::{Announced, CompactionDuty, DeletionWitness};
use koios_wire::{DeletionsReply, DeletionsRequest};
use parking_lot::Mutex;

/// Longest a proposal is tried: the next visit proposes again.
const PROPOSE_DEADLINE: Duration = Duration::from_secs(10);

/// How long a tenant stays that came back to a process which does not compact: it went round, and no other one does.
const KEPT_AFTER_A_ROUND: Duration = Duration::from_secs(3600);

/// Takes a tenant that nobody has, or whose holder is gone or does nothing.
///
/// An assignment does not expire by time (I8): the holder goes on until it sees another's. A process that does not compact gives its
/// tenants on to the next one: nobody else knows that it does not.
#[derive(Clone, Debug)]
pub(crate) struct AssignedCompaction {
    pub(crate) member: String,
    pub(crate) state: StateHandle,
    pub(crate) control: ControlClient,
    /// Whether this process compacts what it is assigned.
    pub(crate) compacts: bool,
    pub(crate) rounds: Rounds,
}

/// The tenants that a process which does not compact gave on, and when.
#[derive(Clone, Debug)]
pub(crate) struct Rounds {
    clock: ClockHandle,
    begun: Arc<Mutex<BTreeMap<TenantId, Duration>>>,
}

impl Rounds {
    /// None yet.
    pub(crate) fn new(clock: ClockHandle) -> Self {
        let begun = Arc::default();
        Self { clock, begun }
    }

    /// Whether a tenant is to be given on, which is noted. Only one that this process was assigned can have gone round: one that
    /// nobody has any more was with a store that is gone, and another may compact it.
    fn gives_on(&self, tenant: &TenantId, is_own: bool) -> bool {
        let now = self.clock.elapsed();
        let mut begun = self.begun.lock();
        begun.retain(|_, at| now.saturating_sub(*at) < KEPT_AFTER_A_ROUND);
        if is_own && begun.contains_key(tenant) {
            return false;
        }
        begun.insert(tenant.clone(), now);
        true
    }

    /// Notes that it was not given on after all.
    fn forget(&self, tenant: &TenantId) {
        self.begun.lock().remove(tenant);
    }
}

#[async_trait]
impl CompactionDuty for AssignedCompaction {
    async fn epoch(&self, tenant: &TenantId, overdue: bool) -> Option<u64> {
        let task = format!("compact/{tenant}");
        let state = self.state.current();
        let assigned = state.assignments.get(&task);
        let holder_is_there = assigned.is_some_and(|a| serves_blocks(&state, &a.holder));
        let is_first = !holder_is_there && is_preferred(&state, &self.member, tenant);
        let is_own = assigned.is_some_and(|a| a.holder == self.member);
        if !self.compacts
            && (is_own || is_first)
            && let Some(next) = next_after(&state, &self.member, tenant)
            && self.rounds.gives_on(tenant, is_own)
        {
            let epoch = assigned.map_or(0, |a| a.epoch);
            self.give_on(
                tenant,
                Command::Assign {
                    task,
                    holder: next,
                    epoch,
                },
            )
            .await;
            return None;
        }
        if let Some(mine) = assigned.filter(|a| a.holder == self.member) {
            return Some(mine.epoch);
        }
        if !overdue && !is_first {
            return None;
        }
        let assign = Command::Assign {
            task,
            holder: self.member.clone(),
            epoch: assigned.map_or(0, |a| a.epoch),
        };
        match self.control.propose(assign, PROPOSE_DEADLINE).await {
            Ok(outcome) => {
                tracing::info!(%tenant, epoch = outcome.epoch, overdue, "this process compacts the tenant's blocks from now on");
                Some(outcome.epoch)
            }
            Err(error) => {
                tracing::debug!(%tenant, %error, "compaction not assigned");
                None
            }
        }
    }
}

impl AssignedCompaction {
    async fn give_on(&self, tenant: &TenantId, assign: Command) {
        match self.control.propose(assign, PROPOSE_DEADLINE).await {
            Ok(_) => {
                tracing::info!(%tenant, "another store is to compact the tenant's blocks: this one does not (store.compaction)");
            }
            Err(error) => {
                self.rounds.forget(tenant);
                tracing::debug!(%tenant, %error, "compaction not given on");
            }
        }
    }
}

/// Longest a member is asked about a deletion: it may have to apply it first.
const ASK_DEADLINE: Duration = Duration::from_secs(30);

/// Longest a member is asked which version of a manifest it knows: it only has to look.
const TELL_DEADLINE: Duration = Duration::from_secs(5);

/// How long one that did not answer in time is not asked that again: of each of many tenants it would be waited for.
const SILENT_FOR: Duration = Duration::from_secs(60);

/// Who fails so late is waited for as much as one that says nothing: to a host that drops all packets it takes seconds until no connection
/// is made. A member that refuses does so at once.
const REFUSES_WITHIN: Duration = Duration::from_millis(500);

/// Asks the members that hold batches of a deletion: it is forgotten when all of them have applied it, and none would
/// replay it. And all members which version of a manifest they know.
#[derive(Clone, Debug)]
pub struct AskedMembers {
    state: StateHandle,
    members: Arc<dyn Peers>,
    clock: ClockHandle,
    /// Members that did not answer in time, or failed as late, and when they were asked.
    silent: Arc<Mutex<BTreeMap<String, Duration>>>,
}

impl AskedMembers {
    /// Asks those of the partitions that `state` has.
    pub fn new(state: StateHandle, members: Arc<dyn Peers>, clock: ClockHandle) -> Self {
        Self {
            state,
            members,
            clock,
            silent: Arc::default(),
        }
    }

    async fn ask(&self, member: &str, request: DeletionsRequest, deadline: Duration) -> Asked {
        let state = self.state.current();
        let Some(member) = state.members.get(member) else {
            return Asked::Refused;
        };
        let client = self.members.ingester(member);
        let asked_at = self.clock.elapsed();
        let asked = self.clock.timeout(deadline, client.deletions(request)).await;
        let took = self.clock.elapsed().saturating_sub(asked_at);
        match asked {
            Ok(Ok(reply)) => Asked::Told(reply),
            Ok(Err(_)) if took < REFUSES_WITHIN => Asked::Refused,
            Ok(Err(_)) | Err(_) => Asked::Silent,
        }
    }

    /// The newest version of a manifest that a member knows.
    async fn announced_by(&self, member: &str, request: DeletionsRequest) -> Option<u64> {
        let now = self.clock.elapsed();
        self.silent
            .lock()
            .retain(|_, at| now.saturating_sub(*at) < SILENT_FOR);
        if self.silent.lock().contains_key(member) {
            return None;
        }
        match self.ask(member, request, TELL_DEADLINE).await {
            Asked::Told(reply) => Some(reply.announced()),
            Asked::Refused => None,
            Asked::Silent => {
                self.silent.lock().insert(member.to_owned(), now);
                None
            }
        }
    }

    async fn has_forgotten(&self, member: &str, request: &DeletionsRequest, version: u64) -> bool {
        let Asked::Told(reply) = self.ask(member, request.clone(), ASK_DEADLINE).await else {
            return false;
        };
        let is_logged = reply.logged_from != 0 && reply.logged_from <= version;
        reply.version >= request.version && !is_logged
    }
}

/// What came of a question.
#[derive(Debug)]
enum Asked {
    Told(DeletionsReply),
    Refused,
    /// Nothing came in time, or an error late.
    Silent,
}

#[async_trait]
impl DeletionWitness for AskedMembers {
    async fn is_forgotten(&self, tenant: &TenantId, deletion: &Tombstone) -> bool {
        let state = self.state.current();
        for partition in deletion.covers.keys() {
            let Some(p) = state.partition(*partition) else {
                return false;
            };
            for replica in &p.replicas {
                let request = DeletionsRequest {
                    tenant: tenant.clone(),
                    partition: p.id,
                    epoch: p.epoch,
                    version: deletion.known_from(),
                    with_held: false,
                };
                if !self
                    .has_forgotten(&replica.member, &request, deletion.version)
                    .await
                {
                    return false;
                }
            }
        }
        true
    }

    async fn announced(&self, tenant: &TenantId) -> Announced {
        let state = self.state.current();
        // Of one of its partitions: a member tells what it knows of all.
        let mut asked = BTreeMap::<&str, DeletionsRequest>::new();
        for p in state.partitions.values() {
            for replica in &p.replicas {
                let request = || DeletionsRequest {
                    tenant: tenant.clone(),
                    partition: p.id,
                    epoch: p.epoch,
                    version: 0,
                    with_held: false,
                };
                asked.entry(&replica.member).or_insert_with(request);
            }
        }
        let asked = asked.into_iter();
        let told = join_all(asked.map(|(member, request)| self.announced_by(member, request))).await;
        Announced {
            version: told.iter().copied().flatten().max().unwrap_or(0),
            by_all: told.iter().all(Option::is_some),
        }
    }
}

fn serves_blocks(state: &ClusterState, member: &str) -> bool {
    state.members.get(member).is_some_and(|m| m.role.serves_blocks())
}

/// The members that serve blocks, the one that weighs most for a tenant first.
fn by_weight<'s>(state: &'s ClusterState, tenant: &TenantId) -> Vec<&'s str> {
    let stores = state.members_with(koios_control::Role::serves_blocks);
    let mut names: Vec<&str> = stores.map(|m| m.name.as_str()).collect();
    names.sort_unstable_by_key(|name| Reverse((random_weight(name, tenant.as_str()), *name)));
    names
}

/// Whether a member weighs most for a tenant among those that serve blocks.
fn is_preferred(state: &ClusterState, member: &str, tenant: &TenantId) -> bool {
    by_weight(state, tenant).first() == Some(&member)
}

/// The one that comes after a member, the first after the last: so all are asked in turn.
fn next_after(state: &ClusterState, member: &str, tenant: &TenantId) -> Option<String> {
    let names = by_weight(state, tenant);
    let at = names.iter().position(|name| *name == member)?;
    let next = names.iter().cycle().nth(at + 1)?;
    (*next != member).then(|| (*next).to_owned())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::io;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use koios_control::{Incarnation, Member, Partition, Replica, Role};
    use koios_model::PartitionId;
    use koios_runtime::{BoxedIo, Listener, Net, NetHandle, TokioClock};
    use koios_testkit::down::DownIngester;
    use koios_wire::IngesterService;
    use koios_wire::grpc::{IngesterClient, PeerChannel, RpcSettings};

    use super::*;

    fn state(stores: &[&str]) -> ClusterState {
        let member = |name: &&str| Member {
            name: (*name).to_owned(),
            role: Role::Store,
            zone: String::new(),
            grpc_addr: String::new(),
            http_addr: String::new(),
            incarnation: Incarnation(1),
            version: String::new(),
        };
        ClusterState {
            members: stores.iter().map(|n| ((*n).to_owned(), member(n))).collect(),
            ..ClusterState::default()
        }
    }

    #[test]
    fn a_tenant_that_is_given_on_comes_to_every_store_and_stays_where_it_began() {
        let state = state(&["a", "b", "c"]);
        for i in 0..20 {
            let tenant = TenantId::new(&format!("t{i}")).expect("a tenant's name");
            let mut seen = BTreeSet::from(["a".to_owned()]);
            let mut at = "a".to_owned();
            for _ in 0..2 {
                at = next_after(&state, &at, &tenant).expect("there are others");
                assert!(seen.insert(at.clone()), "{at} comes twice");
            }
            assert_eq!(next_after(&state, &at, &tenant).as_deref(), Some("a"));
        }
        let alone = self::state(&["a"]);
        assert_eq!(next_after(&alone, "a", &TenantId::anonymous()), None);
        assert_eq!(next_after(&alone, "b", &TenantId::anonymous()), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_tenant_that_came_back_is_given_on_again_an_hour_later() {
        let clock: ClockHandle = Arc::new(TokioClock::starting_at(0));
        let rounds = Rounds::new(Arc::clone(&clock));
        let tenant = TenantId::anonymous();
        assert!(rounds.gives_on(&tenant, true) && !rounds.gives_on(&tenant, true));
        clock.sleep(KEPT_AFTER_A_ROUND).await;
        assert!(rounds.gives_on(&tenant, true));
    }

    #[tokio::test(start_paused = true)]
    async fn a_tenant_whose_store_went_away_is_given_on_at_once() {
        let clock: ClockHandle = Arc::new(TokioClock::starting_at(0));
        let rounds = Rounds::new(Arc::clone(&clock));
        let tenant = TenantId::anonymous();
        assert!(rounds.gives_on(&tenant, true));
        // The next one took it, and left.
        assert!(rounds.gives_on(&tenant, false));
        // None of the others compacts.
        assert!(!rounds.gives_on(&tenant, true));
    }

    /// A network with hosts that drop all packets.
    #[derive(Debug, Default)]
    struct Dropping {
        dialled: AtomicUsize,
    }

    #[async_trait]
    impl Net for Dropping {
        async fn bind(&self, _: &str) -> io::Result<Box<dyn Listener>> {
            Err(io::Error::from(io::ErrorKind::Unsupported))
        }

        async fn connect(&self, _: &str) -> io::Result<BoxedIo> {
            self.dialled.fetch_add(1, Ordering::Relaxed);
            std::future::pending().await
        }
    }

    /// The first is such a host, the second one that refuses.
    #[derive(Debug)]
    struct Two {
        channel: PeerChannel,
    }

    impl Peers for Two {
        fn ingester(&self, member: &Member) -> Arc<dyn IngesterService> {
            match member.name.as_str() {
                "a" => Arc::new(IngesterClient::new(self.channel.clone())),
                _ => Arc::new(DownIngester),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_member_that_nobody_gets_through_to_is_waited_for_once_and_not_for_every_tenant() {
        let replica = |member: &str| Replica {
            member: member.to_owned(),
            zone: String::new(),
            incarnation: Incarnation(1),
            counts: true,
        };
        let partition = Partition {
            id: PartitionId(0),
            epoch: 1,
            replicas: vec![replica("a"), replica("b")],
            formed_at_version: 1,
        };
        let state = ClusterState {
            partitions: [(partition.id, partition)].into(),
            ..state(&["a", "b"])
        };
        let clock: ClockHandle = Arc::new(TokioClock::starting_at(0));
        let net = Arc::new(Dropping::default());
        let channel = PeerChannel::new(
            Arc::clone(&net) as NetHandle,
            Arc::clone(&clock),
            "10.0.0.1:9095",
            RpcSettings::default(),
        );
        let members = Arc::new(Two { channel });
        let asked = AskedMembers::new(StateHandle::new(state), members, Arc::clone(&clock));
        for round in 1..=3 {
            let began = clock.elapsed();
            for i in 0..100 {
                let tenant = TenantId::new(&format!("t{i}")).expect("a tenant's name");
                let announced = asked.announced(&tenant).await;
                assert!(!announced.by_all && announced.version == 0);
            }
            let took = clock.elapsed().saturating_sub(began);
            assert!(took < TELL_DEADLINE, "round {round} took {took:?}");
            // Nor is it given up.
            assert_eq!(net.dialled.load(Ordering::Relaxed), round);
            clock.sleep(SILENT_FOR).await;
        }
    }

    #[test]
    fn one_store_is_preferred_and_tenants_spread() {
        let names = ["a", "b", "c"];
        let state = state(&names);
        let mut of_each = [0; 3];
        for i in 0..300 {
            let tenant = TenantId::new(&format!("t{i}")).expect("a tenant's name");
            let preferred: Vec<_> = (0..3)
                .filter(|n| is_preferred(&state, names[*n], &tenant))
                .collect();
            assert_eq!(preferred.len(), 1);
            of_each[preferred[0]] += 1;
        }
        assert!(of_each.iter().all(|n| *n > 60), "{of_each:?}");
        assert!(!is_preferred(&state, "d", &TenantId::anonymous()));
    }
}
