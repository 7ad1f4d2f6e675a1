//! The bucket of a process, and the self-test that it must pass.

use std::sync::Arc;
use std::time::Duration;

use koios_bucket::{Bucket, Error as BucketError, RetryPolicy, TenantManifests};
use koios_runtime::{Runtime, TaskGroup};
use koios_server::Settings;
use koios_server::config::Target;

use super::{NodeError, Refusal, storage_env};

/// A manifest is believed to be the newest for this long, unless a reply says otherwise.
const MANIFEST_FRESH_FOR: Duration = Duration::from_secs(5);
/// How often an unreachable bucket is tried for its self-test.
const SELF_TEST_EVERY: Duration = Duration::from_secs(10);

/// What a process has of the bucket.
#[derive(Clone, Debug)]
pub(crate) struct Storage {
    bucket: Option<Bucket>,
}

impl Storage {
    /// Opens what the settings name. A distributor needs none; a cluster's other services must share one.
    pub(super) async fn open(
        target: Target,
        settings: &Settings,
        runtime: &Runtime,
        store: Option<Arc<dyn object_store::ObjectStore>>,
    ) -> Result<Self, NodeError> {
        let (clock, rng) = (Arc::clone(&runtime.clock), runtime.rng.fork());
        if let Some(store) = store {
            return Ok(Self {
                bucket: Some(Bucket::new(store, "", clock, rng)),
            });
        }
        let needed = !matches!(target, Target::Distributor | Target::Control);
        let url = match settings.bucket.as_str() {
            "" if target == Target::All => {
                let folder = std::path::absolute(settings.data_dir.join("bucket"))
                    .map_err(|e| NodeError::Settings(format!("data-dir: {e}")))?;
                format!("file://{}", folder.display())
            }
            "" if needed => {
                return Err(NodeError::Settings(format!(
                    "bucket is not set: a {} needs --bucket s3://name/prefix, gs://…, az://… or file:///folder, the same for all processes",
                    target.as_str()
                )));
            }
            "" => return Ok(Self { bucket: None }),
            url => url.to_owned(),
        };
        let env = storage_env::of(settings, std::env::vars_os());
        let bucket =
            Bucket::open_with_env(&url, env, clock, rng).map_err(|e| NodeError::Bucket(Box::new(e)))?;
        Ok(Self {
            bucket: Some(bucket.with_retry(retry_policy(settings))),
        })
    }

    /// The bucket, when there is one.
    pub(crate) fn bucket(&self) -> Option<&Bucket> {
        self.bucket.as_ref()
    }

    /// Manifests as this process knows them.
    pub(crate) fn manifests(&self) -> Result<TenantManifests, NodeError> {
        Ok(TenantManifests::new(self.required()?.clone(), MANIFEST_FRESH_FOR))
    }

    fn required(&self) -> Result<&Bucket, NodeError> {
        self.bucket
            .as_ref()
            .ok_or_else(|| NodeError::Settings("bucket is not set".to_owned()))
    }

    /// Tests what commits rely on. A bucket that answers wrongly ends the process; one that does not answer is tried
    /// until it does, for a process may start while object storage is away (I9).
    pub(super) fn spawn_self_test(&self, runtime: &Runtime, tasks: &TaskGroup, refusal: &Refusal) {
        let Some(bucket) = self.bucket.clone() else { return };
        let (clock, group, refusal) = (Arc::clone(&runtime.clock), tasks.clone(), refusal.clone());
        tasks.spawn_cancelled("bucket-self-test", async move {
            loop {
                match bucket.self_test(false).await {
                    Ok(()) => return tracing::info!(bucket = bucket.url(), "bucket passed its self-test"),
                    Err(e @ BucketError::Unsafe { .. }) => {
                        return refusal.fail(&group, "bucket-self-test", NodeError::Bucket(Box::new(e)));
                    }
                    // It may be that an operator is about to make it right.
                    Err(error @ BucketError::Rejected { .. }) => {
                        tracing::error!(%error, "bucket refuses its self-test, trying again");
                    }
                    Err(error) => {
                        tracing::warn!(bucket = bucket.url(), %error, "bucket cannot be tested yet, trying again");
                    }
                }
                clock.sleep(SELF_TEST_EVERY).await;
            }
        });
    }
}

fn retry_policy(settings: &Settings) -> RetryPolicy {
    let storage = &settings.storage;
    RetryPolicy {
        attempt_timeout: storage.request_timeout,
        deadline: storage.timeout,
        backoff_min: storage.backoff_min,
        backoff_max: storage.backoff_max,
    }
}
