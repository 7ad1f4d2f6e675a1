//! One process's whole part in the control plane, put together.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use koios_runtime::{CancellationToken, Runtime, TaskGroup};

use crate::client::ControlClient;
use crate::consensus::{Consensus, LocalConsensus, RaftConsensus, RaftOptions, Voters};
use crate::pairs::Referee;
use crate::peer::Peers;
use crate::service::ControlRpc;
use crate::sync::{StateBackup, StateSync, back_up_for_ever, is_own_backup};
use crate::{Error, Identity, Settings, StateHandle, StateKeeper};

/// What a process is told about the control plane.
#[derive(Clone, Debug)]
pub struct ControlOptions {
    /// Where this process keeps everything.
    pub data_dir: PathBuf,
    /// This process's name, unique in the cluster.
    pub node: String,
    /// `host:port` at which others reach this process's gRPC listener.
    pub own_addr: String,
    /// The listed voters. Empty: this process decides alone, as in all-in-one.
    pub voters: Voters,
    /// Further processes to learn the state from.
    pub seeds: Vec<String>,
    /// How a new cluster forms its partitions.
    pub settings: Settings,
    /// Where the leader backs the state up.
    pub backup: Option<Arc<dyn StateBackup>>,
}

/// A process's part in the control plane.
#[derive(Debug)]
pub struct ControlPlane {
    identity: Identity,
    keeper: StateKeeper,
    sync: StateSync,
    backup: Option<Arc<dyn StateBackup>>,
    consensus: Option<Arc<dyn Consensus>>,
    referee: Option<Arc<Referee>>,
    client: ControlClient,
    vote_ended: AtomicBool,
    stopping: CancellationToken,
    runtime: Runtime,
}

impl ControlPlane {
    /// Locks and opens the data directory, and starts this process's vote if it has one. Nothing waits for other
    /// processes here: next the caller serves [`Self::rpc`] at its address, then calls [`Self::join`].
    ///
    /// # Errors
    /// When the data directory is another node's or cluster's, or damaged, or the voters are wrongly listed.
    pub async fn start(runtime: &Runtime, tasks: &TaskGroup, options: ControlOptions) -> Result<Self, Error> {
        let identity = Identity::open(&runtime.disk, &options.data_dir, &options.node, &runtime.rng).await?;
        let keeper = StateKeeper::open(identity.clone(), runtime.disk.clone()).await?;
        let consensus = start_consensus(runtime, tasks, &keeper, &options).await?;
        let peers = Peers::new(Arc::clone(&runtime.net), Arc::clone(&runtime.clock));
        let voters: Vec<String> = options
            .voters
            .values()
            .filter(|addr| **addr != options.own_addr)
            .cloned()
            .collect();
        let seeds = voters.iter().chain(&options.seeds).cloned().collect();
        let sync = StateSync::new(
            keeper.clone(),
            peers.clone(),
            seeds,
            options.own_addr,
            runtime.rng.fork(),
        );
        let referee = consensus.as_ref().map(|consensus| {
            let (state, clock) = (keeper.handle().clone(), Arc::clone(&runtime.clock));
            Referee::new(Arc::clone(consensus), state, clock)
        });
        if let Some(referee) = &referee {
            referee.spawn(tasks);
        }
        let client = ControlClient::new(
            keeper.clone(),
            sync.clone(),
            (consensus.clone(), referee.clone()),
            voters,
            peers.clone(),
            runtime.rng.fork(),
        );
        if let (Some(consensus), Some(backup)) = (&consensus, &options.backup) {
            let backing_up =
                back_up_for_ever(keeper.clone(), Arc::clone(consensus), Arc::clone(backup), peers);
            tasks.spawn_cancelled("control-backup", backing_up);
        }
        Ok(Self {
            identity,
            keeper,
            sync,
            backup: options.backup,
            consensus,
            referee,
            client,
            vote_ended: AtomicBool::new(false),
            stopping: CancellationToken::new(),
            runtime: runtime.clone(),
        })
    }

    /// The `Control` service of this process.
    pub fn rpc(&self) -> ControlRpc {
        ControlRpc::new(
            self.state().clone(),
            Arc::clone(&self.runtime.clock),
            self.consensus.clone(),
        )
        .with_referee(self.referee.clone())
        .until(self.stopping.clone())
    }

    /// Learns the newest state there is and follows it from then on. Afterwards the state may still be empty, when no
    /// process and no backup knows one yet: wait with [`StateHandle::wait_for`].
    pub async fn join(&self, tasks: &TaskGroup) {
        self.sync.catch_up(self.backup.as_deref()).await;
        self.sync.spawn(tasks);
    }

    /// Whether the bucket's backup of the control state is of this process's cluster; `false` while there is none, or no
    /// cluster is known here. Without a bucket it is.
    ///
    /// # Errors
    /// [`Error::OtherBucket`], with which nothing may be done there; another one when the backup cannot be read.
    pub async fn is_own_bucket(&self) -> Result<bool, Error> {
        match &self.backup {
            Some(backup) => is_own_backup(&self.keeper, backup.as_ref()).await,
            None => Ok(true),
        }
    }

    /// This process's copy of the state.
    pub fn state(&self) -> &StateHandle {
        self.keeper.handle()
    }

    /// Whose data directory it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Proposes commands.
    pub fn client(&self) -> &ControlClient {
        &self.client
    }

    /// This process's vote, if it has one.
    pub fn consensus(&self) -> Option<&Arc<dyn Consensus>> {
        self.consensus.as_ref()
    }

    /// Ends this process's vote, and lets go who watches its state.
    pub async fn shutdown(&self) {
        self.stopping.cancel();
        if let Some(consensus) = &self.consensus {
            consensus.shutdown().await;
        }
        self.vote_ended.store(true, Ordering::Release);
    }

    /// Gives the data directory free, for when every task that may write there has ended. As long as this process's vote
    /// has not, the directory stays locked, at the longest until the process ends.
    pub fn release(&self) {
        if self.vote_ended.load(Ordering::Acquire) {
            self.identity.release();
        }
    }
}

async fn start_consensus(
    runtime: &Runtime,
    tasks: &TaskGroup,
    keeper: &StateKeeper,
    options: &ControlOptions,
) -> Result<Option<Arc<dyn Consensus>>, Error> {
    let listed = options.voters.contains_key(&options.node);
    let alone = options.voters.is_empty() || (listed && options.voters.len() == 1);
    if alone {
        let settings = options.settings.clone();
        let (backup, addr) = (options.backup.as_deref(), options.own_addr.as_str());
        let local = LocalConsensus::start(keeper.clone(), settings, backup, addr, &runtime.rng).await?;
        return Ok(Some(local));
    }
    if !listed {
        return Ok(None);
    }
    let raft_options = RaftOptions {
        voters: options.voters.clone(),
        settings: options.settings.clone(),
        backup: options.backup.clone(),
    };
    let raft = RaftConsensus::start(runtime, tasks, keeper.clone(), raft_options).await?;
    Ok(Some(raft))
}
