//! What senders are told while the process is short of memory.

use std::time::Duration;

use crate::messages::{good, snappy};
use crate::otlp::{self, PROTOBUF, by_grpc, framed};
use crate::rig::{NOW, Rig};

/// Longer than the watch goes without a look.
const A_MOMENT: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn i13_whatever_is_sent_while_memory_is_short_may_be_sent_again_later() {
    let rig = Rig::single();
    let message = snappy(&good("up", &[(NOW, 1.0)]));
    let import = "/api/v1/import/prometheus";
    let requests = [
        ("POST", "/api/v1/push", &[PROTOBUF][..], message),
        ("POST", import, &[][..], b"up 1\n".to_vec()),
        ("PUT", "/metrics/job/batch", &[][..], b"up 1\n".to_vec()),
        ("POST", "/write", &[][..], b"up value=1".to_vec()),
        ("POST", otlp::PATH, &[PROTOBUF][..], Vec::new()),
    ];
    rig.memory.use_percent(90);
    rig.clock.sleep(A_MOMENT).await;
    for (method, path, headers, body) in &requests {
        let refused = rig.request(method, path, headers, body.clone()).await;
        refused.assert(503, "memory is short: 900 of 1000 MiB in use");
        refused.assert(503, "try again later; give this process more memory");
        assert_eq!(refused.header("retry-after"), "5", "{path}");
    }
    let (_, said) = by_grpc(&rig, &[], framed(0, b"")).await;
    assert_eq!(said["grpc-status"], "14", "{said:?}");
    assert!(said.contains_key("grpc-status-details-bin"), "{said:?}");
    let text = said["grpc-message"].to_str().unwrap().replace("%20", " ");
    assert!(text.contains("memory is short: 900 of 1000 MiB in use"), "{text}");
    assert!(rig.stored().is_empty());

    rig.memory.use_percent(50);
    rig.clock.sleep(A_MOMENT).await;
    for (method, path, headers, body) in requests {
        let taken = rig.request(method, path, headers, body).await;
        assert!(taken.status.is_success(), "{path}: {taken:?}");
    }
}
