//! Consensus by Raft between the listed voters.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use koios_runtime::{ClockHandle, Runtime, TaskGroup};
use openraft::async_runtime::{Instant as _, WatchReceiver as _};
use openraft::errors::{ClientWriteError, ForwardToLeader, RaftError};
use openraft::{Config, SnapshotPolicy};
use serde::de::DeserializeOwned;

use super::bootstrap::Bootstrap;
use super::log_store::LogStore;
use super::messages::{Envelope, Hello, Join, JoinReply, SnapshotMessage, decode, encode, kind};
use super::network::{NetworkFactory, addr_of};
use super::ordered::Ordered;
use super::snapshot::SnapshotFile;
use super::state_machine::StateMachine;
use super::types::{Raft, Snapshot, VoterNode, node_id};
use super::{Consensus, ProposeError, VoterStatus, Voters};
use crate::peer::Peers;
use crate::{Command, Error, Outcome, Settings, StateBackup, StateHandle, StateKeeper};

/// Followers hear from the leader this often, milliseconds.
const HEARTBEAT_MS: u64 = 250;
/// A follower that heard nothing for a random time in this range, milliseconds, asks to be elected.
const ELECTION_MS: std::ops::Range<u64> = 1_000..2_000;
/// How long a snapshot may take to arrive, milliseconds.
const SNAPSHOT_MS: u64 = 20_000;
/// A leader whom no majority answered for this long may not be the leader any more.
const CONFIRMED_WITHIN: Duration = Duration::from_millis(ELECTION_MS.end);
/// Entries after which the log is replaced by a snapshot.
const SNAPSHOT_EVERY: u64 = 1_000;
/// Entries kept behind a snapshot for followers that lag a little.
const LOG_KEPT: u64 = 500;
/// How long a leader that stops waits for another one.
const HAND_OVER_DEADLINE: Duration = Duration::from_secs(2);
const HAND_OVER_POLL: Duration = Duration::from_millis(20);
/// Folder of the log and the snapshot in the data directory.
const DIR: &str = "control";

/// What a voter is told.
#[derive(Clone, Debug)]
pub struct RaftOptions {
    /// All listed voters; this process must be one of them.
    pub voters: Voters,
    /// How a new cluster forms its partitions.
    pub settings: Settings,
    /// Where a cluster whose voters were all lost may be restored from.
    pub backup: Option<Arc<dyn StateBackup>>,
}

/// A voter. Dropping it does not stop it; [`Consensus::shutdown`] does.
pub struct RaftConsensus {
    name: String,
    id: u64,
    raft: Raft,
    keeper: StateKeeper,
    replicated: StateHandle,
    listed: Voters,
    own_addr: String,
    clock: ClockHandle,
}

impl std::fmt::Debug for RaftConsensus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RaftConsensus({} {:016x})", self.name, self.id)
    }
}

impl RaftConsensus {
    /// Opens this voter's log and starts it, together with the tasks that bring it into the cluster and its states into
    /// `keeper`. The process must already answer, or be about to answer, at its listed address.
    ///
    /// # Errors
    /// [`Error::Config`] when this node is not listed, [`Error::Storage`] when its log is damaged.
    pub async fn start(
        runtime: &Runtime,
        tasks: &TaskGroup,
        keeper: StateKeeper,
        options: RaftOptions,
    ) -> Result<Arc<Self>, Error> {
        let name = keeper.identity().node();
        let own_addr = options.voters.get(&name).cloned().ok_or_else(|| {
            let listed: Vec<_> = options.voters.keys().map(String::as_str).collect();
            Error::Config(format!(
                "control.voters lists {}, not this node {name}",
                listed.join(", ")
            ))
        })?;
        let peers = Peers::new(Arc::clone(&runtime.net), Arc::clone(&runtime.clock));
        let published = StateHandle::default();
        let network = NetworkFactory {
            peers: peers.clone(),
            listed: options.voters.clone(),
        };
        let (id, raft) = open_raft(runtime, &keeper, network, published.clone()).await?;
        let this = Arc::new(Self {
            name,
            id,
            raft,
            keeper,
            replicated: published.clone(),
            listed: options.voters.clone(),
            own_addr,
            clock: Arc::clone(&runtime.clock),
        });
        tasks.spawn_cancelled(
            "control-adopt",
            adopt(published, this.keeper.clone(), tasks.clone()),
        );
        let bootstrap = Bootstrap {
            voter: Arc::clone(&this),
            peers,
            options,
            rng: runtime.rng.fork(),
        };
        tasks.spawn_cancelled("control-bootstrap", bootstrap.run());
        Ok(this)
    }

    pub(crate) fn raft(&self) -> &Raft {
        &self.raft
    }

    pub(crate) fn keeper(&self) -> &StateKeeper {
        &self.keeper
    }

    /// The state that this voter's log holds, which may be behind the copy in [`Self::keeper`].
    pub(crate) fn replicated(&self) -> &StateHandle {
        &self.replicated
    }

    /// This voter, as others reach it.
    pub(crate) fn own_join(&self) -> Join {
        Join {
            name: self.name.clone(),
            id: self.id,
            addr: self.own_addr.clone(),
        }
    }

    /// Who this voter is and what it knows.
    pub(crate) fn hello(&self) -> Hello {
        Hello {
            name: self.name.clone(),
            id: self.id,
            has_log: !self.members().is_empty(),
        }
    }

    /// The current voters by id; empty while this voter has no log.
    pub(crate) fn members(&self) -> BTreeMap<u64, VoterNode> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = &metrics.membership_config;
        let voters = membership.voter_ids();
        voters
            .map(|id| (id, membership.get_node(&id).cloned().unwrap_or_default()))
            .collect()
    }

    /// The other voter that lacks the least of the log.
    fn successor(&self) -> Option<u64> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let replication = metrics.replication.as_ref()?;
        let others = metrics.membership_config.voter_ids().filter(|id| *id != self.id);
        others.max_by_key(|id| replication.get(id).copied().flatten())
    }

    async fn hand_over(&self) {
        let Some(successor) = self.successor().filter(|_| self.raft.is_leader()) else {
            return;
        };
        if self.raft.trigger().transfer_leader(successor).await.is_err() {
            return;
        }
        let handed_over = async {
            while self.raft.is_leader() {
                self.clock.sleep(HAND_OVER_POLL).await;
            }
        };
        if self.clock.timeout(HAND_OVER_DEADLINE, handed_over).await.is_err() {
            tracing::info!("no other voter took over; the others will elect one");
        }
    }

    /// Takes a voter without a log into the cluster, in place of the one of the same name.
    async fn take_in(&self, join: Join) -> Result<JoinReply, Error> {
        if !self.raft.is_leader() {
            return Ok(JoinReply::AskLeader(self.leader_addr()));
        }
        let voters = self.members();
        if voters.contains_key(&join.id) {
            return Ok(JoinReply::Joined);
        }
        tracing::info!(voter = %join.name, id = join.id, "taking in a voter");
        let node = VoterNode {
            name: join.name.clone(),
            addr: join.addr,
        };
        if let Err(e) = self.raft.add_learner(join.id, node, true).await {
            return Ok(JoinReply::Failed(e.to_string()));
        }
        let others = voters.into_iter().filter(|(_, node)| node.name != join.name);
        let wanted: BTreeSet<u64> = others.map(|(id, _)| id).chain([join.id]).collect();
        match self.raft.change_membership(wanted, false).await {
            Ok(_) => Ok(JoinReply::Joined),
            Err(e) => Ok(JoinReply::Failed(e.to_string())),
        }
    }

    /// The body of a message for this very voter.
    fn open<T: DeserializeOwned>(&self, kind: &str, payload: &[u8]) -> Result<T, Error> {
        let envelope: Envelope<T> = decode(&self.own_addr, kind, payload)?;
        if envelope.to != self.id {
            return Err(Error::Peer {
                addr: self.own_addr.clone(),
                message: format!(
                    "{kind} message is for voter {:016x}, this is {:016x}",
                    envelope.to, self.id
                ),
            });
        }
        Ok(envelope.body)
    }

    async fn install(&self, message: SnapshotMessage) -> Result<Bytes, Error> {
        let snapshot = Snapshot {
            meta: message.meta,
            snapshot: serde_json::to_vec(&message.state).map_err(stopped)?,
        };
        let reply = self.raft.install_full_snapshot(message.vote, snapshot).await;
        encode(&reply.map_err(stopped)?)
    }

    fn forward(&self, forward: &ForwardToLeader<super::types::TypeConfig>) -> ProposeError {
        let addr = forward
            .leader_node
            .as_ref()
            .map(|node| addr_of(&self.listed, node));
        ProposeError::NotLeader {
            leader: addr.filter(|addr| *addr != self.own_addr).map(str::to_owned),
        }
    }
}

#[async_trait]
impl Consensus for RaftConsensus {
    async fn propose(&self, command: Command) -> Result<Outcome, ProposeError> {
        let written = self.raft.client_write(command).await;
        let applied = match written {
            Ok(written) => written.data.0,
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(leader))) => {
                return Err(self.forward(&leader));
            }
            Err(other) => return Err(ProposeError::Unknown(other.to_string())),
        };
        let outcome =
            applied.ok_or_else(|| ProposeError::Unknown("the entry was no command".to_owned()))??;
        // The caller bounds this wait; it ends when the state is on this process's disk.
        self.keeper.handle().reached(outcome.version).await;
        Ok(outcome)
    }

    fn is_leader(&self) -> bool {
        self.raft.is_leader()
    }

    fn leads_surely(&self) -> bool {
        // Before the metrics are borrowed: it borrows them too.
        let leads = self.raft.is_leader();
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let confirmed = metrics.last_quorum_acked.as_ref();
        leads && confirmed.is_some_and(|at| at.elapsed() < CONFIRMED_WITHIN)
    }

    fn leader_addr(&self) -> Option<String> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let leader = metrics.current_leader?;
        metrics
            .membership_config
            .get_node(&leader)
            .map(|node| addr_of(&self.listed, node).to_owned())
    }

    fn is_voting(&self) -> bool {
        self.members().contains_key(&self.id)
    }

    fn voters(&self) -> Vec<VoterStatus> {
        let leader = self.raft.metrics().borrow_watched().current_leader;
        let status = |(id, node): (u64, VoterNode)| VoterStatus {
            addr: addr_of(&self.listed, &node).to_owned(),
            name: node.name,
            leads: leader == Some(id),
        };
        let mut voters: Vec<VoterStatus> = self.members().into_iter().map(status).collect();
        voters.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        voters
    }

    async fn handle(&self, kind: &str, payload: Bytes) -> Result<Bytes, Error> {
        match kind {
            kind::APPEND => {
                let reply = self.raft.append_entries(self.open(kind, &payload)?).await;
                encode(&reply.map_err(stopped)?)
            }
            kind::VOTE => {
                let reply = self.raft.vote(self.open(kind, &payload)?).await;
                encode(&reply.map_err(stopped)?)
            }
            kind::PRE_VOTE => {
                let reply = self.raft.pre_vote(self.open(kind, &payload)?).await;
                encode(&reply.map_err(stopped)?)
            }
            kind::TRANSFER => {
                let reply = self.raft.handle_transfer_leader(self.open(kind, &payload)?).await;
                encode(&reply.map_err(stopped)?)
            }
            kind::SNAPSHOT => self.install(self.open(kind, &payload)?).await,
            kind::HELLO => encode(&self.hello()),
            kind::JOIN => encode(&self.take_in(decode(&self.own_addr, kind, &payload)?).await?),
            other => Err(Error::Peer {
                addr: self.own_addr.clone(),
                message: format!("{other:?} is no kind of message between voters; upgrade koios"),
            }),
        }
    }

    async fn shutdown(&self) {
        self.hand_over().await;
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(%error, "the voter's core ended badly");
        }
    }
}

fn stopped(error: impl std::fmt::Display) -> Error {
    Error::Stopped(error.to_string())
}

fn config() -> Result<Arc<Config>, Error> {
    let config = Config {
        cluster_name: "koios".to_owned(),
        heartbeat_interval: HEARTBEAT_MS,
        election_timeout_min: ELECTION_MS.start,
        election_timeout_max: ELECTION_MS.end,
        install_snapshot_timeout: SNAPSHOT_MS,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_EVERY),
        max_in_snapshot_log_to_keep: LOG_KEPT,
        enable_pre_vote: Some(true),
        ..Config::default()
    };
    let config = config.validate();
    config.map(Arc::new).map_err(|e| Error::Config(e.to_string()))
}

async fn open_raft(
    runtime: &Runtime,
    keeper: &StateKeeper,
    network: NetworkFactory,
    published: StateHandle,
) -> Result<(u64, Raft), Error> {
    let dir: PathBuf = keeper.identity().data_dir().join(DIR);
    let log = LogStore::open(&runtime.disk, &dir, &runtime.rng).await?;
    let id = node_id(&keeper.identity().node(), log.nonce());
    let machine = StateMachine::new(SnapshotFile::new(runtime.disk.clone(), &dir), published);
    let opening = Raft::new(id, config()?, network, log, machine);
    let raft = Ordered::scope(runtime.rng.u64(), opening).await;
    Ok((id, raft.map_err(|e| Error::Storage(e.to_string()))?))
}

/// Brings every applied state to this process's disk and then to its components.
async fn adopt(mut published: StateHandle, keeper: StateKeeper, tasks: TaskGroup) {
    let mut state = published.current();
    loop {
        if let Err(error) = keeper.adopt(state).await {
            tasks.fail(koios_runtime::TaskError::Failed {
                task: "control-adopt",
                message: error.to_string(),
            });
            return;
        }
        state = published.changed().await;
    }
}
