//! The control plane as seen from outside of the cluster: by an operator's tool.

use std::time::Duration;

use koios_runtime::{ClockHandle, NetHandle};

use crate::peer::Peers;
use crate::propose::{ATTEMPT_DEADLINE, Attempt, PAUSE_MAX, PAUSE_MIN, Proposal};
use crate::{ClusterState, Command, Error, Outcome, Role};

/// Talks to the control plane through any process of the cluster. Cheap to clone.
#[derive(Clone, Debug)]
pub struct RemoteControl {
    peers: Peers,
    addr: String,
}

impl RemoteControl {
    /// Goes through the process whose gRPC listener is at `addr`.
    pub fn new(net: NetHandle, clock: ClockHandle, addr: impl Into<String>) -> Self {
        Self {
            peers: Peers::new(net, clock),
            addr: addr.into(),
        }
    }

    /// The state as that process knows it; `None` when it knows none yet.
    ///
    /// # Errors
    /// [`Error::Peer`].
    pub async fn state(&self) -> Result<Option<ClusterState>, Error> {
        self.peers.to(&self.addr).state(0, ATTEMPT_DEADLINE).await
    }

    /// Proposes a command to the leader, whoever that is.
    ///
    /// # Errors
    /// [`Error::Rejected`], which is final, or [`Error::NoLeader`] after `deadline`.
    pub async fn propose(&self, command: &Command, deadline: Duration) -> Result<Outcome, Error> {
        let proposal = Proposal::new(&self.peers, command);
        let deciding = Box::pin(self.propose_until_done(&proposal));
        proposal.within(deadline, deciding).await
    }

    async fn propose_until_done(&self, proposal: &Proposal<'_>) -> Result<Outcome, Error> {
        let mut pause = PAUSE_MIN;
        loop {
            // Most often this process votes, or it names who does.
            let first = proposal.ask(&self.addr).await?;
            let voters = match &first {
                Attempt::Done(_) => Vec::new(),
                Attempt::AskLeader(_) | Attempt::Failed(_) => self.possible_voters().await,
            };
            if let Some(decision) = proposal.round(first, voters.into()).await? {
                return Ok(decision.outcome);
            }
            self.peers.clock().sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// The other members that may vote, those first that do nothing else.
    async fn possible_voters(&self) -> Vec<String> {
        let Ok(Some(state)) = self.state().await else {
            return Vec::new();
        };
        let voters = state.members_with(|role| role == Role::Control);
        let others = state.members_with(Role::holds_partitions);
        voters
            .chain(others)
            .map(|member| member.grpc_addr.clone())
            .filter(|addr| *addr != self.addr)
            .collect()
    }
}
