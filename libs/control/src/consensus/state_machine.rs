//! The replicated state in a voter: in memory, rebuilt from snapshot and log.

use std::io;
use std::sync::Arc;

use futures::{Stream, TryStreamExt as _};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};

use super::snapshot::{SnapshotFile, StoredSnapshot};
use super::types::{Applied, Entry, LogId, Snapshot, SnapshotMeta, StoredMembership, TypeConfig};
use crate::{ClusterState, StateHandle};

/// Applies committed entries in order and publishes the state.
#[derive(Debug)]
pub(crate) struct StateMachine {
    applied: AppliedState,
    file: SnapshotFile,
    published: StateHandle,
}

#[derive(Clone, Debug, Default)]
struct AppliedState {
    last: Option<LogId>,
    membership: StoredMembership,
    state: Arc<ClusterState>,
}

impl StateMachine {
    /// Empty; Raft restores it. `published` gets every new state.
    pub(crate) fn new(file: SnapshotFile, published: StateHandle) -> Self {
        Self {
            applied: AppliedState::default(),
            file,
            published,
        }
    }

    fn apply_entry(&mut self, entry: Entry) -> Applied {
        self.applied.last = Some(entry.log_id);
        match entry.payload {
            EntryPayload::Blank => Applied(None),
            EntryPayload::Membership(membership) => {
                self.applied.membership = StoredMembership::new(Some(entry.log_id), membership);
                Applied(None)
            }
            EntryPayload::Normal(command) => {
                let mut state = ClusterState::clone(&self.applied.state);
                let result = state.apply(&command);
                match &result {
                    Ok(outcome) if outcome.changed => {
                        self.applied.state = Arc::new(state);
                        self.published.offer_shared(Arc::clone(&self.applied.state));
                    }
                    Ok(_) => {}
                    Err(refused) => tracing::info!(%command, %refused, "control command refused"),
                }
                Applied(Some(result))
            }
        }
    }
}

impl AppliedState {
    fn stored(&self) -> StoredSnapshot {
        StoredSnapshot {
            meta: SnapshotMeta {
                last_log_id: self.last,
                last_membership: self.membership.clone(),
            },
            state: ClusterState::clone(&self.state),
        }
    }
}

fn to_snapshot(stored: StoredSnapshot) -> io::Result<Snapshot> {
    Ok(Snapshot {
        meta: stored.meta,
        snapshot: serde_json::to_vec(&stored.state)?,
    })
}

/// Writes the state as it was when the builder was made.
#[derive(Debug)]
pub(crate) struct SnapshotBuilder {
    applied: AppliedState,
    file: SnapshotFile,
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = Vec<u8>;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        self.file
            .write(self.applied.stored())
            .await
            .map_err(io::Error::other)?;
        to_snapshot(self.applied.stored())
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = Vec<u8>;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.applied.last, self.applied.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            let applied = self.apply_entry(entry);
            if let Some(responder) = responder {
                responder.send(applied);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        SnapshotBuilder {
            applied: self.applied.clone(),
            file: self.file.clone(),
        }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: Vec<u8>) -> io::Result<()> {
        let applied = AppliedState {
            last: meta.last_log_id,
            membership: meta.last_membership.clone(),
            state: Arc::new(serde_json::from_slice(&snapshot)?),
        };
        self.file
            .write(applied.stored())
            .await
            .map_err(io::Error::other)?;
        self.applied = applied;
        self.published.offer_shared(Arc::clone(&self.applied.state));
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        match self.file.read().await.map_err(io::Error::other)? {
            Some(stored) => to_snapshot(stored).map(Some),
            None => Ok(None),
        }
    }
}
