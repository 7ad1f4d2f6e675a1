//! What a process refuses to start with, once it runs.
#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::TryStreamExt;
use futures::stream::BoxStream;
use koios::{Node, NodeError, NodeOptions};
use koios_runtime::{Clock as _, ClockHandle, RealClock, Runtime};
use koios_server::Settings;
use koios_server::config::Target;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// Storage that takes no notice of preconditions.
#[derive(Debug, Default)]
struct Careless(InMemory);

impl fmt::Display for Careless {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("careless")
    }
}

#[async_trait]
impl ObjectStore for Careless {
    async fn put_opts(&self, path: &Path, payload: PutPayload, _: PutOptions) -> Result<PutResult> {
        self.0.put_opts(path, payload, PutOptions::default()).await
    }
    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.0.put_multipart_opts(path, options).await
    }
    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        self.0.get_opts(path, options).await
    }
    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.0.delete_stream(paths)
    }
    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.0.list(prefix)
    }
    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.0.list_with_delimiter(prefix).await
    }
    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.0.copy_opts(from, to, options).await
    }
}

/// With its data in a folder, and on free ports.
fn settings_in(data_dir: std::path::PathBuf) -> Settings {
    let mut settings = Settings {
        data_dir,
        ..Settings::default()
    };
    settings.http.listen = "127.0.0.1:0".to_owned();
    settings.grpc.listen = "127.0.0.1:0".to_owned();
    settings
}

#[tokio::test]
async fn i13_storage_that_commits_cannot_rely_on_is_for_the_operator_to_change() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings_in(dir.path().join("data"));
    let options = NodeOptions {
        object_store: Some(Arc::new(Careless::default())),
        ..NodeOptions::default()
    };
    let runtime = Runtime::real().unwrap();
    let node = Node::start(Target::All, settings, runtime, options)
        .await
        .unwrap();
    node.failed().await;
    let refused = node.stop().await.unwrap_err();
    assert!(matches!(refused, NodeError::Bucket(_)), "{refused}");
    // Exit code 2.
    assert!(refused.is_usage());
    assert!(refused.to_string().contains("failed its self-test"), "{refused}");
}

/// One without voters would take over the cluster whose bucket it is given, while that still runs.
#[tokio::test]
async fn i14_a_part_of_a_cluster_does_not_start_without_the_voters_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    for target in [
        Target::Distributor,
        Target::Ingester,
        Target::Querier,
        Target::Store,
        Target::Control,
    ] {
        let settings = settings_in(dir.path().join("data"));
        let runtime = Runtime::real().unwrap();
        let starting = Node::start(target, settings, runtime, NodeOptions::default());
        let refused = Box::pin(starting).await.unwrap_err();
        assert!(refused.is_usage(), "{refused}");
        assert!(
            refused.to_string().starts_with("control.voters is empty"),
            "{refused}"
        );
    }
}

/// An all-in-one with its data in `dir` and its blocks in `store`.
async fn all_in_one(dir: &std::path::Path, store: &Arc<dyn ObjectStore>) -> Node {
    let settings = settings_in(dir.to_owned());
    let options = NodeOptions {
        object_store: Some(Arc::clone(store)),
        ..NodeOptions::default()
    };
    let starting = Node::start(Target::All, settings, Runtime::real().unwrap(), options);
    Box::pin(starting).await.unwrap()
}

async fn backups(store: &Arc<dyn ObjectStore>) -> Vec<ObjectMeta> {
    let folder = Path::from("__cluster/control");
    store.list(Some(&folder)).try_collect().await.unwrap()
}

/// The cluster's id in a data directory.
fn cluster_of(dir: &std::path::Path) -> String {
    let identity = std::fs::read(dir.join("identity.json")).unwrap();
    let identity: serde_json::Value = serde_json::from_slice(&identity).unwrap();
    identity["cluster_id"].to_string()
}

/// Waits until the process is registered and that is backed up.
async fn backed_up(store: &Arc<dyn ObjectStore>) {
    while backups(store).await.len() < 2 {
        RealClock::new().sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn i14_a_process_refuses_the_bucket_of_another_cluster_and_restores_it_with_an_empty_data_dir() {
    let dir = tempfile::tempdir().unwrap();
    let (one, other, third) = (
        dir.path().join("one"),
        dir.path().join("other"),
        dir.path().join("third"),
    );
    let (ones, others): (Arc<dyn ObjectStore>, Arc<dyn ObjectStore>) =
        (Arc::new(InMemory::new()), Arc::new(InMemory::new()));
    for (dir, store) in [(&one, &ones), (&other, &others)] {
        let node = all_in_one(dir, store).await;
        backed_up(store).await;
        node.stop().await.unwrap();
    }
    let before = backups(&ones).await;

    let node = all_in_one(&other, &ones).await;
    let clock: ClockHandle = Arc::new(RealClock::new());
    let failed = clock.timeout(Duration::from_secs(20), node.failed()).await;
    failed.expect("it runs on another cluster's bucket");
    let refused = node.stop().await.unwrap_err();
    // Exit code 2.
    assert!(refused.is_usage());
    let (told, id) = (refused.to_string(), cluster_of(&one));
    for part in [
        id.trim_matches('"'),
        "belongs to cluster",
        "`bucket`",
        "empty data-dir",
    ] {
        assert!(told.contains(part), "{part:?} in {told}");
    }
    assert_eq!(backups(&ones).await, before);

    let restored = all_in_one(&third, &ones).await;
    assert_eq!(cluster_of(&third), cluster_of(&one));
    restored.stop().await.unwrap();
    // And each goes on where it belongs.
    for (dir, store) in [(&one, &ones), (&other, &others)] {
        let node = all_in_one(dir, store).await;
        let gone_on = clock.timeout(Duration::from_secs(2), node.failed()).await;
        assert!(gone_on.is_err());
        node.stop().await.unwrap();
    }
}
