//! This process's copy of the control state.

use std::sync::Arc;
use std::time::Duration;

use koios_runtime::{Clock, watch};

use crate::{ClusterState, Error};

/// The newest state this process knows. Cheap to clone; all clones see the same state.
#[derive(Clone, Debug)]
pub struct StateHandle {
    sender: Arc<watch::Sender<Arc<ClusterState>>>,
    receiver: watch::Receiver<Arc<ClusterState>>,
}

impl Default for StateHandle {
    fn default() -> Self {
        Self::new(ClusterState::default())
    }
}

impl StateHandle {
    /// Starts with a state.
    pub fn new(state: ClusterState) -> Self {
        let (sender, receiver) = watch::channel(Arc::new(state));
        Self {
            sender: Arc::new(sender),
            receiver,
        }
    }

    /// The newest known state.
    pub fn current(&self) -> Arc<ClusterState> {
        Arc::clone(&self.sender.borrow())
    }

    /// Waits until the state is another one than this clone's `changed` last returned (or than it was when the clone was
    /// made), and returns it.
    ///
    /// # Cancel safety
    /// Cancel safe: a change is not lost.
    pub async fn changed(&mut self) -> Arc<ClusterState> {
        // The sender lives in `self`, so the channel cannot be closed.
        let _ = self.receiver.changed().await;
        Arc::clone(&self.receiver.borrow_and_update())
    }

    /// Takes a newer state of the same cluster. Returns whether it was taken.
    pub fn offer(&self, state: ClusterState) -> bool {
        self.offer_shared(Arc::new(state))
    }

    /// As [`Self::offer`].
    pub fn offer_shared(&self, state: Arc<ClusterState>) -> bool {
        self.sender.send_if_modified(|current| {
            if state.version <= current.version {
                return false;
            }
            if current.cluster_id.is_some() && current.cluster_id != state.cluster_id {
                tracing::warn!(
                    ours = ?current.cluster_id,
                    theirs = ?state.cluster_id,
                    "refused the control state of another cluster"
                );
                return false;
            }
            *current = state;
            true
        })
    }

    /// Waits until `version` or a later one is known.
    ///
    /// # Errors
    /// [`Error::Behind`] when it takes longer than `deadline`.
    pub async fn at_least(
        &self,
        version: u64,
        clock: &dyn Clock,
        deadline: Duration,
    ) -> Result<Arc<ClusterState>, Error> {
        self.wait_for(clock, deadline, |state| state.version >= version)
            .await
            .map_err(|have| Error::Behind {
                wanted: version,
                have: have.version,
                waited: deadline,
            })
    }

    /// Waits, for ever if need be, until `version` or a later one is known.
    pub async fn reached(&self, version: u64) -> Arc<ClusterState> {
        let mut receiver = self.receiver.clone();
        let state = receiver.wait_for(|state| state.version >= version).await;
        // The sender lives in `self`, so the channel cannot be closed.
        state.map(|s| Arc::clone(&s)).unwrap_or_else(|_| self.current())
    }

    /// Waits until the state satisfies `wanted`; gives the state as it is when that takes longer than `deadline`.
    ///
    /// # Errors
    /// The current state, when the deadline passes first.
    pub async fn wait_for(
        &self,
        clock: &dyn Clock,
        deadline: Duration,
        wanted: impl Fn(&ClusterState) -> bool + Send,
    ) -> Result<Arc<ClusterState>, Arc<ClusterState>> {
        let mut receiver = self.receiver.clone();
        let found = clock
            .timeout(deadline, async {
                let state = receiver.wait_for(|state| wanted(state)).await;
                // The sender lives in `self`, so the channel cannot be closed.
                state.map(|s| Arc::clone(&s)).unwrap_or_else(|_| self.current())
            })
            .await;
        found.map_err(|_| self.current())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ClusterId;
    use koios_runtime::RealClock;

    fn state(version: u64, cluster: u128) -> ClusterState {
        ClusterState {
            version,
            cluster_id: Some(ClusterId(cluster)),
            ..ClusterState::default()
        }
    }

    #[test]
    fn i14_takes_only_newer_states_of_the_same_cluster() {
        let handle = StateHandle::default();
        assert!(handle.offer(state(3, 1)));
        assert!(!handle.offer(state(3, 1)));
        assert!(!handle.offer(state(2, 1)));
        assert!(!handle.offer(state(9, 2)));
        assert!(handle.offer(state(4, 1)));
        assert_eq!(handle.current().version, 4);
    }

    #[tokio::test]
    async fn waiters_see_the_version_they_waited_for() {
        let handle = StateHandle::default();
        let mut watcher = handle.clone();
        let clock = RealClock::new();
        let (found, _) = tokio::join!(handle.at_least(2, &clock, Duration::from_secs(60)), async {
            handle.offer(state(1, 1));
            handle.offer(state(2, 1))
        });
        assert_eq!(found.unwrap().version, 2);
        assert_eq!(watcher.changed().await.version, 2);
        let late = handle.at_least(3, &clock, Duration::ZERO).await;
        assert!(matches!(
            late,
            Err(Error::Behind {
                wanted: 3,
                have: 2,
                ..
            })
        ));
    }
}
