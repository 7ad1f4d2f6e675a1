//! What a process refuses to start with, once it runs.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use koios::{Node, NodeError, NodeOptions};
use koios_runtime::{RealNet, Runtime};
use koios_server::Settings;
use koios_server::config::Target;
use koios_testkit::http::HttpClient;
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

#[tokio::test]
async fn i13_storage_that_commits_cannot_rely_on_is_for_the_operator_to_change() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = Settings {
        data_dir: dir.path().join("data"),
        ..Settings::default()
    };
    settings.http.listen = "127.0.0.1:0".to_owned();
    settings.grpc.listen = "127.0.0.1:0".to_owned();
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

#[tokio::test]
async fn a_distributor_of_a_cluster_by_itself_is_not_ready_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = Settings {
        data_dir: dir.path().join("data"),
        ..Settings::default()
    };
    settings.http.listen = "127.0.0.1:0".to_owned();
    settings.grpc.listen = "127.0.0.1:0".to_owned();
    let runtime = Runtime::real().unwrap();
    let clock = Arc::clone(&runtime.clock);
    let node = Node::start(Target::Distributor, settings, runtime, NodeOptions::default())
        .await
        .unwrap();
    let client = HttpClient::new(Arc::new(RealNet), Arc::clone(&clock), Duration::from_secs(10));
    let mut last = (0, String::new());
    for _ in 0..100 {
        let answer = client.get(node.http_addr(), "/ready").await.unwrap();
        last = (answer.status, answer.text());
        if last.1.contains("distributor: ") {
            break;
        }
        clock.sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(last.0, 503, "{last:?}");
    assert!(last.1.contains("control.voters is empty"), "{last:?}");
    node.stop().await.unwrap();
}
