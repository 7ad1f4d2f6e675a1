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
    /// One cache for all parts of the process: of a tenant with very many blocks a manifest is tens of megabytes, which are fetched, read
    /// and kept once.
    manifests: Option<TenantManifests>,
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
            return Ok(Self::over(Bucket::new(store, "", clock, rng)));
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
                    "bucket is not set: {} {} needs --bucket s3://name/prefix, gs://…, az://… or file:///folder, the same for all processes",
                    if target == Target::Ingester { "an" } else { "a" },
                    target.as_str()
                )));
            }
            "" => return Ok(Self { manifests: None }),
            url => url.to_owned(),
        };
        let env = storage_env::of(settings, std::env::vars_os());
        let opened = Bucket::open_with_env(&url, env, clock, rng);
        let bucket = opened.map_err(|e| match (settings.bucket.as_str(), e) {
            ("", BucketError::Url { reason, .. }) => NodeError::Settings(format!(
                "data-dir {} cannot be used: {reason}",
                settings.data_dir.display()
            )),
            (_, e) => NodeError::Bucket(Box::new(e)),
        })?;
        Ok(Self::over(bucket.with_retry(retry_policy(settings))))
    }

    fn over(bucket: Bucket) -> Self {
        Self {
            manifests: Some(TenantManifests::new(bucket, MANIFEST_FRESH_FOR)),
        }
    }

    /// The bucket, when there is one.
    pub(crate) fn bucket(&self) -> Option<&Bucket> {
        self.manifests.as_ref().map(TenantManifests::bucket)
    }

    /// Manifests as this process knows them.
    pub(crate) fn manifests(&self) -> Result<TenantManifests, NodeError> {
        let manifests = self.manifests.clone();
        manifests.ok_or_else(|| NodeError::Settings("bucket is not set".to_owned()))
    }

    /// Tests what commits rely on. A bucket that answers wrongly ends the process; one that does not answer is tried
    /// until it does, for a process may start while object storage is away (I9).
    pub(super) fn spawn_self_test(&self, runtime: &Runtime, tasks: &TaskGroup, refusal: &Refusal) {
        let Some(bucket) = self.bucket().cloned() else {
            return;
        };
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

#[cfg(test)]
mod tests {
    use koios_bucket::Writer;
    use koios_model::{PartitionId, TenantId};
    use object_store::memory::InMemory;

    use super::*;

    #[tokio::test]
    async fn i13_what_cannot_be_opened_is_told_with_its_setting() {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = Settings {
            data_dir: dir.path().join("file"),
            ..Settings::default()
        };
        std::fs::write(&settings.data_dir, "").unwrap();
        let runtime = Runtime::real().unwrap();
        let told = async |target, settings: &Settings| {
            let opened = Storage::open(target, settings, &runtime, None).await;
            opened.unwrap_err().to_string()
        };
        let text = told(Target::All, &settings).await;
        let file = settings.data_dir.display().to_string();
        assert!(
            text.starts_with(&format!("data-dir {file} cannot be used: ")),
            "{text}"
        );
        let text = told(Target::Ingester, &settings).await;
        assert!(text.contains("an ingester needs --bucket"), "{text}");
        let text = told(Target::Store, &settings).await;
        assert!(text.contains("a store needs --bucket"), "{text}");
        settings.bucket = format!("file://{file}/bucket");
        let text = told(Target::All, &settings).await;
        assert!(text.starts_with("bucket URL"), "{text}");
    }

    #[tokio::test]
    async fn a_manifest_that_one_part_of_a_process_has_read_is_known_to_all() {
        let runtime = Runtime::real().unwrap();
        let store: Arc<dyn object_store::ObjectStore> = Arc::new(InMemory::new());
        let storage = Storage::open(Target::All, &Settings::default(), &runtime, Some(store))
            .await
            .unwrap();
        let (one, other) = (storage.manifests().unwrap(), storage.manifests().unwrap());
        let tenant = TenantId::anonymous();
        assert!(other.known(&tenant).is_none());
        let writer = Writer::partition("a", PartitionId(0), 1);
        one.begin(&tenant, &writer).await.unwrap();
        assert_eq!(other.known(&tenant).map(|m| m.version), Some(1));
    }
}
