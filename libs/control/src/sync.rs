//! How a process that does not vote, or does not vote yet, learns the state: from seeds, peers and the backup.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::join_all;
use koios_runtime::{RngHandle, TaskGroup};

use crate::consensus::Consensus;
use crate::peer::{Peer, Peers};
use crate::sealed::{seal_state, unseal_state};
use crate::service::KEEPALIVE;
use crate::{ClusterState, Error, Partition, StateKeeper};

const CALL_DEADLINE: Duration = Duration::from_secs(3);
/// A stream that brings not even a keepalive for this long is lost.
const SILENCE_MAX: Duration = KEEPALIVE.saturating_mul(3);
/// How often some other member is asked, in case no seed answers or all seeds are behind.
const GOSSIP_EVERY: Duration = Duration::from_secs(15);
const RECONNECT_MIN: Duration = Duration::from_millis(200);
const RECONNECT_MAX: Duration = Duration::from_secs(5);
const BACKUP_RETRY: Duration = Duration::from_secs(10);

/// Where the state is backed up: an object in the bucket.
#[async_trait]
pub trait StateBackup: Send + Sync + std::fmt::Debug + 'static {
    /// What operators call the bucket.
    fn bucket(&self) -> String;

    /// The bytes last stored; `None` when there are none.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when none are whole, or [`Error::Backup`].
    async fn load(&self) -> Result<Option<Bytes>, Error>;

    /// Replaces the bytes. `version` is the state's; an implementation may refuse to go back.
    ///
    /// # Errors
    /// [`Error::Backup`].
    async fn store(&self, version: u64, bytes: Bytes) -> Result<(), Error>;
}

/// Keeps this process's state up to date.
#[derive(Clone, Debug)]
pub struct StateSync {
    keeper: StateKeeper,
    peers: Peers,
    seeds: Vec<String>,
    own_addr: String,
    rng: RngHandle,
}

impl StateSync {
    pub(crate) fn new(
        keeper: StateKeeper,
        peers: Peers,
        mut seeds: Vec<String>,
        own_addr: String,
        rng: RngHandle,
    ) -> Self {
        seeds.sort_unstable();
        seeds.dedup();
        seeds.retain(|seed| *seed != own_addr);
        Self {
            keeper,
            peers,
            seeds,
            own_addr,
            rng,
        }
    }

    /// Asks every seed once, and the backup when nothing is known then. What is on disk has been loaded before.
    pub async fn catch_up(&self, backup: Option<&dyn StateBackup>) {
        let asked = self.seeds.iter().map(|seed| self.ask(seed));
        join_all(asked).await;
        if self.keeper.handle().current().version > 0 {
            return;
        }
        let Some(backup) = backup else { return };
        match load_backup(backup).await {
            Ok(Some(state)) => self.adopt("backup", state).await,
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "the backup of the control state is not used"),
        }
    }

    /// Follows every seed, and asks some member now and then.
    pub fn spawn(&self, tasks: &TaskGroup) {
        for seed in &self.seeds {
            let (this, seed) = (self.clone(), seed.clone());
            tasks.spawn_cancelled("control-watch", async move { this.watch_for_ever(&seed).await });
        }
        let this = self.clone();
        tasks.spawn_cancelled("control-gossip", async move { this.gossip_for_ever().await });
    }

    async fn watch_for_ever(&self, seed: &str) {
        let mut pause = RECONNECT_MIN;
        loop {
            let before = self.peers.clock().elapsed();
            if let Err(error) = self.watch_once(&self.peers.dial(seed)).await {
                tracing::debug!(%error, "watching the control state");
            }
            let lasted = self.peers.clock().elapsed().saturating_sub(before);
            pause = if lasted > SILENCE_MAX {
                RECONNECT_MIN
            } else {
                (pause * 2).min(RECONNECT_MAX)
            };
            self.peers.clock().sleep(jittered(&self.rng, pause)).await;
        }
    }

    async fn watch_once(&self, peer: &Peer) -> Result<(), Error> {
        let known = self.keeper.handle().current().version;
        let mut states = peer.watch(known, CALL_DEADLINE).await?;
        loop {
            let next = self.peers.clock().timeout(SILENCE_MAX, states.message()).await;
            let reply = next
                .map_err(|elapsed| peer.failed(elapsed))?
                .map_err(|status| peer.failed(status.message()))?;
            let Some(reply) = reply else { return Ok(()) };
            if let Some(state) = peer.parse_state(&reply)? {
                self.adopt(peer.addr(), state).await;
            }
        }
    }

    async fn gossip_for_ever(&self) {
        loop {
            self.peers.clock().sleep(jittered(&self.rng, GOSSIP_EVERY)).await;
            let state = self.keeper.handle().current();
            let others: Vec<&str> = state
                .members
                .values()
                .map(|member| member.grpc_addr.as_str())
                .filter(|addr| *addr != self.own_addr)
                .collect();
            let chosen = self.rng.below(others.len() as u64);
            if let Some(addr) = usize::try_from(chosen).ok().and_then(|i| others.get(i)) {
                self.ask(addr).await;
            }
        }
    }

    /// Asks one process for a newer state.
    pub(crate) async fn ask(&self, addr: &str) {
        let known = self.keeper.handle().current().version;
        match self.peers.to(addr).state(known, CALL_DEADLINE).await {
            Ok(Some(state)) => self.adopt(addr, state).await,
            Ok(None) => {}
            Err(error) => tracing::debug!(%error, "asking for the control state"),
        }
    }

    async fn adopt(&self, from: &str, state: ClusterState) {
        let version = state.version;
        let known = self.keeper.handle().current();
        if known.version > 0 && state.restores > known.restores && !self.seeds.iter().any(|seed| seed == from)
        {
            // A process that passes for a cluster by itself may have restored it from the bucket, while this one's voters still run.
            tracing::warn!(
                from,
                version,
                "control state not adopted: it was restored from a copy, which no control voter or seed has told of; if that process is to \
                 be a part of the cluster, is its control.voters right?"
            );
            return;
        }
        match self.keeper.adopt(Arc::new(state)).await {
            Ok(true) => tracing::info!(from, version, "adopted control state"),
            Ok(false) => {}
            Err(error) => tracing::error!(from, version, %error, "control state not adopted"),
        }
    }
}

/// Half to all of `pause`, so that processes that failed together do not come back together.
pub(crate) fn jittered(rng: &RngHandle, pause: Duration) -> Duration {
    let half = pause / 2;
    half + Duration::from_nanos(rng.below(u64::try_from(half.as_nanos()).unwrap_or(u64::MAX)))
}

/// The state in the backup, if there is one.
pub(crate) async fn load_backup(backup: &dyn StateBackup) -> Result<Option<ClusterState>, Error> {
    match backup.load().await? {
        Some(sealed) => unseal_state(Path::new("backup of the control state"), &sealed).map(Some),
        None => Ok(None),
    }
}

/// Says that a cluster is restored: what still runs of it elsewhere is not heard of any more.
pub(crate) fn warn_of_takeover(backup: &dyn StateBackup, state: &ClusterState) {
    let cluster = state.cluster_id.map(|id| id.to_string()).unwrap_or_default();
    tracing::warn!(
        bucket = backup.bucket(),
        cluster,
        version = state.version,
        "no control state on disk: this process takes the cluster over from the backup in the bucket, with higher epochs; processes \
         of it that still run elsewhere are fenced, they list no block there any more: if there are any, end them or this one"
    );
}

/// Whether the backup is of the keeper's cluster; `false` while there is none, or no cluster is known here.
///
/// # Errors
/// [`Error::OtherBucket`] when it is of another one; [`Error::Corrupt`] or [`Error::Backup`] when that is not known.
pub(crate) async fn is_own_backup(keeper: &StateKeeper, backup: &dyn StateBackup) -> Result<bool, Error> {
    own_backup(keeper, backup).await.map(|own| own.is_some())
}

/// The backup of the keeper's cluster; errors as [`is_own_backup`].
async fn own_backup(keeper: &StateKeeper, backup: &dyn StateBackup) -> Result<Option<ClusterState>, Error> {
    let Some(backed_up) = load_backup(backup).await? else {
        return Ok(None);
    };
    let (Some(owner), Some(own)) = (backed_up.cluster_id, keeper.identity().cluster_id()) else {
        return Ok(None);
    };
    if owner == own {
        return Ok(Some(backed_up));
    }
    Err(Error::OtherBucket {
        bucket: backup.bucket(),
        owner: owner.to_string(),
        path: keeper.identity().data_dir().to_owned(),
        cluster: own.to_string(),
    })
}

/// Backs up every state while this process leads.
pub(crate) async fn back_up_for_ever(
    keeper: StateKeeper,
    consensus: Arc<dyn Consensus>,
    backup: Arc<dyn StateBackup>,
    peers: Peers,
) {
    let mut stored = 0;
    loop {
        // Leadership may come without a change of the state, so this looks again after a while.
        let newer = keeper.handle().reached(stored + 1);
        let Ok(state) = peers.clock().timeout(BACKUP_RETRY, newer).await else {
            continue;
        };
        if !consensus.is_leader() {
            peers.clock().sleep(BACKUP_RETRY).await;
            continue;
        }
        match store_backup(&keeper, backup.as_ref(), &state).await {
            Ok(()) => stored = state.version,
            Err(error @ (Error::OtherBucket { .. } | Error::TakenOver { .. })) => {
                tracing::error!(%error, version = state.version, "control state not backed up");
                peers.clock().sleep(BACKUP_RETRY).await;
            }
            Err(error) => {
                tracing::warn!(%error, version = state.version, "control state not backed up yet");
                peers.clock().sleep(BACKUP_RETRY).await;
            }
        }
    }
}

/// Whether what is stored is of a process that restored the cluster while this one's voters run. A voter that ran as a version before
/// 2026-11-24 has forgotten how often its cluster was restored: it is ahead of what it stored before that. Where the cluster was restored
/// elsewhere, all epochs are higher there, by more than this one ever comes to.
fn is_taken_over(stored: &ClusterState, own: &ClusterState) -> bool {
    let has_epoch = |stored: &Partition| {
        own.partition(stored.id)
            .is_some_and(|own| own.epoch >= stored.epoch)
    };
    let is_ahead = own.version >= stored.version && stored.partitions.values().all(has_epoch);
    stored.restores > own.restores && !is_ahead
}

async fn store_backup(
    keeper: &StateKeeper,
    backup: &dyn StateBackup,
    state: &ClusterState,
) -> Result<(), Error> {
    match own_backup(keeper, backup).await {
        Ok(Some(stored)) if is_taken_over(&stored, state) => {
            return Err(Error::TakenOver {
                bucket: backup.bucket(),
                version: stored.version,
            });
        }
        Ok(_) => {}
        Err(error @ Error::Corrupt { .. }) => {
            tracing::warn!(%error, "no backup of the control state can be read: a newer one is written beside them");
        }
        Err(error) => return Err(error),
    }
    let sealed = seal_state(state).map_err(|e| Error::Backup(e.to_string()))?;
    backup.store(state.version, Bytes::from(sealed)).await
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use koios_model::PartitionId;

    use super::*;
    use crate::{ClusterId, Replica};

    #[test]
    fn i14_a_voter_that_forgot_that_its_cluster_was_restored_takes_no_backup_of_its_own_for_anothers() {
        let partition = Partition {
            id: PartitionId(0),
            epoch: 3,
            replicas: Vec::<Replica>::new(),
            formed_at_version: 1,
        };
        let first = ClusterState {
            version: 40,
            cluster_id: Some(ClusterId(7)),
            partitions: BTreeMap::from([(partition.id, partition)]),
            ..ClusterState::default()
        };
        let restored = first.clone().restored();
        let mut forgetful = serde_json::to_value(&restored).unwrap();
        forgetful.as_object_mut().unwrap().remove("restores").unwrap();
        let mut forgetful: ClusterState = serde_json::from_value(forgetful).unwrap();
        assert!(!is_taken_over(&restored, &forgetful));
        forgetful.version += 5;
        assert!(!is_taken_over(&restored, &forgetful) && !is_taken_over(&forgetful, &restored));
        // The voters that still run are behind it, and however much they decide, they do not come by its epochs.
        let mut others = first;
        assert!(is_taken_over(&restored, &others));
        others.version += 5000;
        assert!(is_taken_over(&restored, &others));
    }
}
