//! What a process does when its memory runs short.

use std::time::Duration;

use koios::{Node, NodeOptions};
use koios_model::{Labels, Sample};
use koios_runtime::Runtime;
use koios_server::Settings;
use koios_server::config::Target;
use koios_testkit::http::HttpClient;
use koios_testkit::memory::PretendedMemory;
use koios_testkit::remote_write::push;

/// Longer than the watch goes without a look.
const A_MOMENT: Duration = Duration::from_millis(200);

#[tokio::test(flavor = "multi_thread")]
async fn i12_writes_and_queries_are_shed_before_memory_runs_out() {
    let dir = tempfile::tempdir().unwrap();
    let memory = PretendedMemory::default();
    let mut settings = Settings {
        data_dir: dir.path().join("data"),
        ..Settings::default()
    };
    settings.http.listen = "127.0.0.1:0".to_owned();
    settings.grpc.listen = "127.0.0.1:0".to_owned();
    settings.self_metrics.interval = Duration::ZERO;
    let runtime = Runtime {
        memory: memory.watch(),
        ..Runtime::real().unwrap()
    };
    let (clock, net) = (runtime.clock.clone(), runtime.net.clone());
    let node = Node::start(Target::All, settings, runtime, NodeOptions::default())
        .await
        .unwrap();
    let addr = node.http_addr().to_owned();
    let client = HttpClient::new(net, clock.clone(), Duration::from_secs(30));
    while client.get(&addr, "/ready").await.unwrap().status != 200 {
        clock.sleep(A_MOMENT).await;
    }
    let now = clock.now_ms();
    let sample = |age| {
        let t = now - age;
        [(
            Labels::from_pairs([("__name__", "up")]),
            vec![Sample { t, v: 1.0 }],
        )]
    };
    let write = async |age| push(&client, &addr, "anonymous", &sample(age)).await.unwrap();
    let query = async || {
        client
            .get(&addr, "/api/v1/query?query=count_over_time(up[1m])")
            .await
            .unwrap()
    };
    assert_eq!(write(3).await.status, 204);

    memory.use_percent(90);
    clock.sleep(A_MOMENT).await;
    let refused = write(2).await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("5")));
    assert!(
        refused.text().starts_with("memory is short: 900 of 1000 MiB"),
        "{}",
        refused.text()
    );
    let refused = query().await;
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert!(refused.header("retry-after").is_some());
    assert!(refused.text().contains("memory is short"), "{}", refused.text());
    // What operators need goes on.
    for path in ["/ready", "/metrics", "/api/v1/status/buildinfo"] {
        assert_eq!(client.get(&addr, path).await.unwrap().status, 200, "{path}");
    }
    let metrics = client.get(&addr, "/metrics").await.unwrap().text();
    assert!(
        metrics.contains("koios_memory_limit_bytes 1048576000"),
        "{metrics}"
    );

    memory.use_percent(84);
    clock.sleep(A_MOMENT).await;
    assert_eq!(write(1).await.status, 204);
    let answer = query().await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(answer.text().contains("\"2\""), "{}", answer.text());
    node.stop().await.unwrap();
}
