//! Which tenants this process compacts: assigned by the control plane.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use koios_bucket::Tombstone;
use koios_control::{ClusterState, Command, ControlClient, StateHandle};
use koios_ingester::Peers;
use koios_model::{TenantId, random_weight};
use koios_runtime::ClockHandle;
use koios_store::{CompactionDuty, DeletionWitness};
use koios_wire::DeletionsRequest;

/// Longest a proposal is tried: the next visit proposes again.
const PROPOSE_DEADLINE: Duration = Duration::from_secs(10);

/// Takes a tenant that nobody has, or whose holder is gone or does nothing.
///
/// An assignment does not expire by time (I8): the holder goes on until it sees another's.
#[derive(Clone, Debug)]
pub(crate) struct AssignedCompaction {
    pub(crate) member: String,
    pub(crate) state: StateHandle,
    pub(crate) control: ControlClient,
}

#[async_trait]
impl CompactionDuty for AssignedCompaction {
    async fn epoch(&self, tenant: &TenantId, overdue: bool) -> Option<u64> {
        let task = format!("compact/{tenant}");
        let state = self.state.current();
        let assigned = state.assignments.get(&task);
        if let Some(mine) = assigned.filter(|a| a.holder == self.member) {
            return Some(mine.epoch);
        }
        let holder_is_there = assigned.is_some_and(|a| serves_blocks(&state, &a.holder));
        let takes = overdue || !holder_is_there && is_preferred(&state, &self.member, tenant);
        if !takes {
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

/// Longest a member is asked about a deletion: it may have to apply it first.
const ASK_DEADLINE: Duration = Duration::from_secs(30);

/// Asks the members that hold batches of a deletion: it is forgotten when all of them have applied it, and none would
/// replay it.
#[derive(Clone, Debug)]
pub struct AskedMembers {
    state: StateHandle,
    members: Arc<dyn Peers>,
    clock: ClockHandle,
}

impl AskedMembers {
    /// Asks those of the partitions that `state` has.
    pub fn new(state: StateHandle, members: Arc<dyn Peers>, clock: ClockHandle) -> Self {
        Self {
            state,
            members,
            clock,
        }
    }

    async fn has_forgotten(&self, member: &str, request: &DeletionsRequest, version: u64) -> bool {
        let state = self.state.current();
        let Some(member) = state.members.get(member) else {
            return false;
        };
        let client = self.members.ingester(member);
        let asked = self
            .clock
            .timeout(ASK_DEADLINE, client.deletions(request.clone()))
            .await;
        let Ok(Ok(reply)) = asked else { return false };
        let is_logged = reply.logged_from != 0 && reply.logged_from <= version;
        reply.version >= request.version && !is_logged
    }
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
}

fn serves_blocks(state: &ClusterState, member: &str) -> bool {
    state.members.get(member).is_some_and(|m| m.role.serves_blocks())
}

/// Whether a member weighs most for a tenant among those that serve blocks.
fn is_preferred(state: &ClusterState, member: &str, tenant: &TenantId) -> bool {
    let stores = state.members_with(koios_control::Role::serves_blocks);
    let weight = |name: &str| (random_weight(name, tenant.as_str()), name.to_owned());
    stores
        .map(|m| weight(&m.name))
        .max()
        .is_some_and(|(_, name)| name == member)
}

#[cfg(test)]
mod tests {
    use koios_control::{Incarnation, Member, Role};

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
