use std::net::SocketAddr;

use axum::routing::get;
use koios_runtime::{Net as _, RealClock, RealNet};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::oneshot;

use super::*;

struct Running {
    addr: SocketAddr,
    cancel: CancellationToken,
    tasks: TaskGroup,
}

async fn start(router: Router) -> Running {
    let listener = RealNet.bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (cancel, tasks) = (CancellationToken::new(), TaskGroup::new(CancellationToken::new()));
    let (server, token) = (
        HttpServer::new(Arc::new(RealClock::new()), ConnectionLimits::default()),
        cancel.clone(),
    );
    tasks.spawn(
        "server",
        async move { server.serve(listener, router, token).await },
    );
    Running { addr, cancel, tasks }
}

async fn exchange(addr: SocketAddr, request: &[u8]) -> String {
    let mut io = RealNet.connect(&addr.to_string()).await.unwrap();
    io.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    io.read_to_end(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn answers_and_takes_double_slashes_for_one() {
    let running =
        start(Router::new().route("/a/b", get(|uri: http::Uri| async move { uri.to_string() }))).await;
    let answer = exchange(
        running.addr,
        b"GET //a//b?q=//x HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    )
    .await;
    assert!(
        answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\n/a/b?q=//x"),
        "{answer}"
    );
    running.cancel.cancel();
    running.tasks.stop().await;
}

#[tokio::test]
async fn i13_what_the_parser_refuses_is_explained() {
    let running = start(Router::new()).await;
    let long = "x".repeat(66_000);
    let many: String = (0..200).map(|i| format!("x-{i}: y\r\n")).collect();
    for (request, status, text) in [
        (
            format!("GET /{long} HTTP/1.1\r\nhost: x\r\n\r\n"),
            414,
            "URI too long",
        ),
        (
            "GET /api/v1/query?query=up{a=\"b\"} HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(),
            400,
            "percent-encode",
        ),
        (
            "GET /a<b> HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(),
            400,
            "percent-encode",
        ),
        (
            "GET / HTTP/1.1\r\nho st: x\r\n\r\n".to_owned(),
            400,
            "malformed HTTP",
        ),
        ("nonsense\r\n\r\n".to_owned(), 400, "malformed HTTP"),
        (format!("GET / HTTP/1.1\r\n{many}\r\n"), 431, "headers"),
    ] {
        let answer = exchange(running.addr, request.as_bytes()).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
        let length = format!("content-length: {}", body.len());
        assert!(head.contains(&length), "{head}\n{}", body.len());
        assert!(head.contains("content-type: application/json"), "{head}");
        let json: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(
            (&json["status"], &json["errorType"]),
            (&"error".into(), &"bad_data".into())
        );
        assert!(json["error"].as_str().unwrap().contains(text), "{body}");
    }
    running.cancel.cancel();
    running.tasks.stop().await;
}

#[tokio::test]
async fn i13_requests_say_once_which_host_they_are_for() {
    let running = start(Router::new().route("/", get(|| async { "taken" }))).await;
    let next = "GET / HTTP/1.1\r\nhost: x\r\n\r\n";
    for hosts in [
        "HTTP/1.1\r\n",
        "HTTP/1.1\r\nhost: x\r\nHost: x\r\n",
        "HTTP/1.0\r\nhost: x\r\nhost: y\r\n",
    ] {
        // Ends although it does not say that it wants to, and nothing that follows is read.
        let answer = exchange(running.addr, format!("GET / {hosts}\r\n{next}").as_bytes()).await;
        assert!(answer.contains(" 400 Bad Request\r\n"), "{hosts}: {answer}");
        assert!(
            answer.contains("Host") && !answer.contains("taken"),
            "{hosts}: {answer}"
        );
    }
    for good in ["HTTP/1.0\r\n", "HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"] {
        let answer = exchange(running.addr, format!("GET / {good}\r\n").as_bytes()).await;
        assert!(answer.ends_with("taken"), "{good}: {answer}");
    }
    running.cancel.cancel();
    running.tasks.stop().await;
}

#[tokio::test]
async fn i13_a_url_names_the_host_that_the_header_does() {
    let running = start(Router::new().route("/", get(|| async { "taken" }))).await;
    let next = "GET / HTTP/1.1\r\nhost: x\r\n\r\n";
    for other in ["http://y/", "http://x:81/", "http://x@y/"] {
        let request = format!("GET {other} HTTP/1.1\r\nhost: x\r\n\r\n{next}");
        let answer = exchange(running.addr, request.as_bytes()).await;
        assert!(answer.contains(" 400 Bad Request\r\n"), "{other}: {answer}");
        assert!(
            answer.contains("another host") && !answer.contains("taken"),
            "{other}: {answer}"
        );
    }
    for same in ["/", "http://X/", "http://y@x/"] {
        let request = format!("GET {same} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        let answer = exchange(running.addr, request.as_bytes()).await;
        assert!(answer.ends_with("taken"), "{same}: {answer}");
    }
    running.cancel.cancel();
    running.tasks.stop().await;
}

// Only the chunks count of a body with both lengths, and nothing that follows on its connection is read.
#[tokio::test]
async fn i12_what_follows_a_body_with_two_lengths_is_not_read() {
    let running =
        start(Router::new().route("/", axum::routing::post(|body: String| async move { body }))).await;
    for lengths in [
        "content-length: 5\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 60\r\n",
    ] {
        let body = "3\r\nabc\r\n0\r\n\r\nPOST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nno";
        let request = format!("POST / HTTP/1.1\r\nhost: x\r\n{lengths}\r\n{body}");
        let answer = exchange(running.addr, request.as_bytes()).await;
        assert!(answer.ends_with("\r\n\r\nabc"), "{lengths}: {answer}");
    }
    running.cancel.cancel();
    running.tasks.stop().await;
}

#[tokio::test]
async fn what_a_handler_refuses_is_left_as_it_is() {
    let refuse = || async { (http::StatusCode::BAD_REQUEST, "no") };
    let running = start(Router::new().route("/", get(refuse))).await;
    let request = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let answer = exchange(running.addr, request).await;
    assert!(answer.ends_with("\r\n\r\nno"), "{answer}");
    running.cancel.cancel();
    running.tasks.stop().await;
}

#[tokio::test]
async fn a_stop_lets_requests_in_flight_end() {
    let (entered_tx, entered) = oneshot::channel::<()>();
    let (go, go_rx) = oneshot::channel::<()>();
    let once = Arc::new(parking_lot::Mutex::new(Some((entered_tx, go_rx))));
    let handler = move || async move {
        let taken = once.lock().take();
        if let Some((entered, go)) = taken {
            entered.send(()).unwrap();
            go.await.unwrap();
        }
        "done"
    };
    let running = start(Router::new().route("/", get(handler))).await;
    let request = exchange(running.addr, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n");
    let stop = async {
        entered.await.unwrap();
        running.cancel.cancel();
        go.send(()).unwrap();
    };
    let (answer, ()) = tokio::join!(request, stop);
    assert!(answer.ends_with("done"), "{answer}");
    running.tasks.stop().await;
    assert!(
        RealNet.connect(&running.addr.to_string()).await.is_err(),
        "nobody listens any more"
    );
}
