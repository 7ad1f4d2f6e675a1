//! The only voter of a cluster: its disk copy of the state is the log.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use koios_runtime::RngHandle;

use super::{Consensus, ProposeError, VoterStatus};
use crate::sync::{load_backup, warn_of_takeover};
use crate::{ClusterId, ClusterState, Command, Error, Outcome, Secret, Settings, StateBackup, StateKeeper};

const SECRET_WORDS: usize = 4;

/// Decides alone: instantly, without a network.
#[derive(Debug)]
pub struct LocalConsensus {
    keeper: StateKeeper,
    addr: String,
}

impl LocalConsensus {
    /// Goes on with the keeper's state, else restores the backup's, else creates a cluster. `addr` is what other processes
    /// call this one.
    ///
    /// # Errors
    /// The disk's, the backup's, or [`Error::Config`] when the settings are not valid.
    pub async fn start(
        keeper: StateKeeper,
        settings: Settings,
        backup: Option<&dyn StateBackup>,
        addr: impl Into<String>,
        rng: &RngHandle,
    ) -> Result<Arc<Self>, Error> {
        let this = Arc::new(Self {
            keeper,
            addr: addr.into(),
        });
        if this.keeper.handle().current().cluster_id.is_none() {
            let backed_up = match backup {
                Some(backup) => load_backup(backup).await?.map(|state| (backup, state)),
                None => None,
            };
            let restored = backed_up.as_ref().map(|(_, state)| state.clone().restored());
            let state = Box::new(restored.unwrap_or_else(|| fresh_state(settings, rng)));
            let created = this.propose(Command::Create { state }).await;
            created.map_err(|e| Error::Config(e.to_string()))?;
            if let Some((backup, state)) = backed_up {
                warn_of_takeover(backup, &state);
            }
        }
        Ok(this)
    }
}

/// The first state of a new cluster.
pub(crate) fn fresh_state(settings: Settings, rng: &RngHandle) -> ClusterState {
    let secret = (0..SECRET_WORDS).flat_map(|_| rng.u64().to_le_bytes()).collect();
    ClusterState {
        version: 1,
        cluster_id: Some(ClusterId(rng.u128())),
        secret: Secret(secret),
        settings,
        ..ClusterState::default()
    }
}

#[async_trait]
impl Consensus for LocalConsensus {
    async fn propose(&self, command: Command) -> Result<Outcome, ProposeError> {
        loop {
            let mut state = ClusterState::clone(&self.keeper.handle().current());
            let outcome = state.apply(&command)?;
            if !outcome.changed {
                return Ok(outcome);
            }
            let adopted = self.keeper.adopt(Arc::new(state)).await;
            // Another proposal may have come between: then this one is applied to what that left.
            if adopted.map_err(|e| ProposeError::Unknown(e.to_string()))? {
                return Ok(outcome);
            }
        }
    }

    fn is_leader(&self) -> bool {
        true
    }

    fn leader_addr(&self) -> Option<String> {
        Some(self.addr.clone())
    }

    fn is_voting(&self) -> bool {
        true
    }

    fn voters(&self) -> Vec<VoterStatus> {
        vec![VoterStatus {
            name: self.keeper.identity().node(),
            addr: self.addr.clone(),
            leads: true,
        }]
    }

    async fn handle(&self, kind: &str, _payload: Bytes) -> Result<Bytes, Error> {
        Err(Error::Peer {
            addr: self.addr.clone(),
            message: format!("{kind} message to the only voter; list the same voters everywhere"),
        })
    }

    async fn shutdown(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Identity, Member, Role};
    use koios_runtime::{DiskHandle, RealDisk};

    #[tokio::test(flavor = "multi_thread")]
    async fn proposals_at_the_same_time_all_take_effect_even_when_their_callers_leave() {
        let dir = tempfile::tempdir().unwrap();
        let rng = RngHandle::from_seed(1);
        let disk = DiskHandle::threaded(Arc::new(RealDisk), 4).unwrap();
        let identity = Identity::open(&disk, dir.path(), "koios", &rng).await.unwrap();
        let keeper = StateKeeper::open(identity.clone(), disk.clone()).await.unwrap();
        let settings = Settings::default();
        let local = LocalConsensus::start(keeper.clone(), settings, None, "koios:9095", &rng)
            .await
            .unwrap();
        let register = |number: usize| Command::Register {
            member: Member {
                name: format!("querier-{number}"),
                role: Role::Querier,
                zone: "one".to_owned(),
                grpc_addr: "h:1".to_owned(),
                http_addr: "h:2".to_owned(),
                incarnation: identity.incarnation(),
                version: "1".to_owned(),
            },
            cluster_id: None,
        };
        // Polled once and dropped: what was submitted to the disk goes on.
        for number in 0..8 {
            let _ = futures::poll!(local.propose(register(number)));
        }
        let proposals = (8..40).map(|number| local.propose(register(number)));
        for outcome in futures::future::join_all(proposals).await {
            assert!(outcome.unwrap().changed);
        }
        let state = keeper.handle().current();
        assert!((8..40).all(|number| state.members.contains_key(&format!("querier-{number}"))));
        assert_eq!(state.version, 1 + state.members.len() as u64);
        drop((local, keeper));
        identity.release();
        let identity = Identity::open(&disk, dir.path(), "koios", &rng).await.unwrap();
        let again = StateKeeper::open(identity, disk).await.unwrap();
        assert_eq!(again.handle().current(), state);
    }
}
