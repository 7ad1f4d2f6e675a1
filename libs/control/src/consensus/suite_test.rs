//! The storage conformance suite that comes with Raft.

use std::sync::Arc;

use koios_runtime::{DiskHandle, RealDisk, RngHandle};
use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use tempfile::TempDir;

use super::log_store::LogStore;
use super::snapshot::SnapshotFile;
use super::state_machine::StateMachine;
use super::types::TypeConfig;
use crate::StateHandle;

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let disk = DiskHandle::inline(Arc::new(RealDisk));
        let log = LogStore::open(&disk, dir.path(), &RngHandle::from_seed(1))
            .await
            .unwrap();
        let machine = StateMachine::new(SnapshotFile::new(disk, dir.path()), StateHandle::default());
        Ok((dir, log, machine))
    }
}

#[tokio::test]
async fn log_and_state_machine_conform() {
    Suite::test_all(Builder).await.unwrap();
}
