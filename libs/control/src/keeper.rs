//! The durable copy of the state: nothing is seen by this process before its disk has it.

use std::path::PathBuf;
use std::sync::Arc;

use koios_runtime::{Disk, DiskHandle};

use crate::sealed::{seal_state, unseal_state};
use crate::{ClusterState, Error, Identity, StateHandle};

const FILE: &str = "control-state.json";

/// Adopts states: checks the cluster, writes the disk copy, then offers the state to the process. Cheap to clone.
///
/// Because the copy is written first, a restarted process never knows a lower epoch than it acted under (I14), and it can
/// start without anyone else (I8).
#[derive(Clone, Debug)]
pub struct StateKeeper {
    identity: Identity,
    disk: DiskHandle,
    path: PathBuf,
    handle: StateHandle,
    writing: Arc<tokio::sync::Mutex<()>>,
}

impl StateKeeper {
    /// Loads the copy in the identity's data directory. A damaged copy is reported, put aside and not used (I11): the
    /// state must then come from a peer or the backup.
    ///
    /// # Errors
    /// [`Error::OtherCluster`] when the copy and the identity disagree, or the disk's.
    pub async fn open(identity: Identity, disk: DiskHandle) -> Result<Self, Error> {
        let path = identity.data_dir().join(FILE);
        let read_path = path.clone();
        let copy = disk
            .run(move |disk| match disk.read(&read_path) {
                Ok(sealed) => match unseal_state(&read_path, &sealed) {
                    Ok(state) => Ok(Some(state)),
                    Err(error) => {
                        tracing::error!(%error, "the copy of the control state is put aside");
                        disk.rename(&read_path, &read_path.with_extension("json.damaged"))?;
                        Ok(None)
                    }
                },
                Err(e) if e.is_not_found() => Ok(None),
                Err(e) => Err(Error::Disk(e)),
            })
            .await?;
        let copy = copy.unwrap_or_default();
        if let Some(cluster) = copy.cluster_id {
            identity.join_cluster(cluster).await?;
        }
        Ok(Self {
            identity,
            disk,
            path,
            handle: StateHandle::new(copy),
            writing: Arc::default(),
        })
    }

    /// What the process sees.
    pub fn handle(&self) -> &StateHandle {
        &self.handle
    }

    /// Whose data directory holds the copy.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Takes a state if it is newer: durable first, then visible. Returns whether it was taken.
    ///
    /// # Errors
    /// [`Error::OtherCluster`], or the disk's; the state is not visible then.
    pub async fn adopt(&self, state: Arc<ClusterState>) -> Result<bool, Error> {
        let Some(cluster) = state.cluster_id else {
            return Ok(false);
        };
        if state.version <= self.handle.current().version {
            return Ok(false);
        }
        self.identity.join_cluster(cluster).await?;
        let one_at_a_time = Arc::clone(&self.writing).lock_owned().await;
        let (path, handle) = (self.path.clone(), self.handle.clone());
        // Writing and showing go together, even when this future is dropped between them.
        let work = move |disk: &dyn Disk| {
            let _one_at_a_time = one_at_a_time;
            if state.version <= handle.current().version {
                return Ok(false);
            }
            let sealed = seal_state(&state).map_err(|e| Error::Storage(e.to_string()))?;
            disk.replace(&path, &sealed)?;
            Ok(handle.offer_shared(state))
        };
        self.disk.run(work).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ClusterId;
    use koios_runtime::{RealDisk, RngHandle};
    use std::path::Path;

    fn state(version: u64) -> Arc<ClusterState> {
        Arc::new(ClusterState {
            version,
            cluster_id: Some(ClusterId(1)),
            ..ClusterState::default()
        })
    }

    async fn keeper(dir: &Path) -> StateKeeper {
        let disk = DiskHandle::inline(Arc::new(RealDisk));
        let identity = Identity::open(&disk, dir, "a", &RngHandle::from_seed(1))
            .await
            .unwrap();
        StateKeeper::open(identity, disk).await.unwrap()
    }

    #[tokio::test]
    async fn i8_a_restarted_process_knows_what_it_knew() {
        let dir = tempfile::tempdir().unwrap();
        let first = keeper(dir.path()).await;
        assert!(first.adopt(state(4)).await.unwrap());
        assert!(!first.adopt(state(3)).await.unwrap());
        drop(first);
        let again = keeper(dir.path()).await;
        assert_eq!(again.handle().current(), state(4));
        assert_eq!(again.identity().cluster_id(), Some(ClusterId(1)));
    }

    #[tokio::test]
    async fn i11_a_damaged_copy_is_put_aside_and_not_used() {
        let dir = tempfile::tempdir().unwrap();
        keeper(dir.path()).await.adopt(state(4)).await.unwrap();
        let path = dir.path().join(FILE);
        let mut bytes = RealDisk.read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        RealDisk.replace(&path, &bytes).unwrap();
        let again = keeper(dir.path()).await;
        assert_eq!(again.handle().current().version, 0);
        assert!(
            RealDisk
                .read(&dir.path().join("control-state.json.damaged"))
                .is_ok()
        );
    }

    #[tokio::test]
    async fn the_state_of_another_cluster_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let keeper = keeper(dir.path()).await;
        keeper.adopt(state(1)).await.unwrap();
        let mut other = ClusterState::clone(&state(9));
        other.cluster_id = Some(ClusterId(2));
        let refused = keeper.adopt(Arc::new(other)).await;
        assert!(matches!(refused, Err(Error::OtherCluster { .. })));
        assert_eq!(keeper.handle().current().version, 1);
    }
}
