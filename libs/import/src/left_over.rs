//! Files of uploads that nobody needs any more go; those that the storage does not delete keep nothing else waiting.

use std::sync::Arc;
use std::time::Duration;

use koios_block::BlockId;
use koios_bucket::{Bucket, Failures, PutOff};
use koios_model::TenantId;
use koios_runtime::with_sources;
use parking_lot::Mutex;

type Uploads = Arc<Mutex<PutOff<(TenantId, BlockId)>>>;

/// Uploads that the storage did not let at just now. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct LeftOver {
    undeleted: Uploads,
    failed: Uploads,
}

impl LeftOver {
    /// One round of removals from a bucket.
    pub(crate) fn round<'a>(&'a self, bucket: &'a Bucket, now: Duration) -> Removals<'a> {
        Removals {
            left: self,
            bucket,
            now,
            failures: Failures::default(),
        }
    }
}

/// The removals of one round.
#[derive(Debug)]
pub(crate) struct Removals<'a> {
    left: &'a LeftOver,
    bucket: &'a Bucket,
    /// When the round began.
    now: Duration,
    failures: Failures,
}

impl Removals<'_> {
    /// Puts uploads last that failed, so that rounds that end early get to the others.
    pub(crate) fn put_last_what_failed(&self, tenant: &TenantId, uploads: &mut [BlockId]) {
        let failed = self.left.failed.lock();
        uploads.sort_by_key(|block| failed.contains(&(tenant.clone(), *block), self.now));
    }

    /// Notes that an upload failed.
    pub(crate) fn note_failed(&self, tenant: &TenantId, block: BlockId) {
        self.left.failed.lock().add((tenant.clone(), block), self.now);
    }

    /// Removes all files of an upload but `kept`. Where the storage does not delete them, that is told, and they stay for a later round.
    pub(crate) async fn remove(&mut self, tenant: &TenantId, block: BlockId, kept: Option<&str>) {
        let upload = (tenant.clone(), block);
        if self.failures.are_enough() || self.left.undeleted.lock().contains(&upload, self.now) {
            return;
        }
        let removed = self.bucket.remove_upload(tenant, block, kept).await;
        self.failures.note(&removed);
        if let Err(error) = removed {
            self.left.undeleted.lock().add(upload, self.now);
            let error = with_sources(&error);
            tracing::warn!(%tenant, source = %block, error, "files of an upload are not deleted now");
        }
    }
}
