//! Bodies that come slowly hold no more than what has come, and not for long.

use std::time::Duration;

use axum::body::Body;
use futures::StreamExt as _;
use futures::stream;

use crate::messages::good;
use crate::rig::{NOW, Rig};

const TYPE: (&str, &str) = ("content-type", "application/x-protobuf");

/// A body of pieces that come after a rest each.
fn pieces(rig: &Rig, rest: Duration, piece: usize, number: usize) -> Body {
    let clock = rig.clock.clone();
    let pieces = stream::iter(0..number).then(move |_| {
        let clock = clock.clone();
        async move {
            clock.sleep(rest).await;
            Ok::<_, std::io::Error>(vec![0u8; piece])
        }
    });
    Body::from_stream(pieces)
}

// Row 73.
#[tokio::test(start_paused = true)]
async fn i6_what_is_declared_and_does_not_come_leaves_room_for_others() {
    let rig = Rig::single();
    let declared = [TYPE, ("content-length", "33554432")];
    let rest = Duration::from_secs(29);
    let slow = (0..8).map(|_| rig.send(&declared, pieces(&rig, rest, 1, 1000)));
    let slow = futures::future::join_all(slow);
    let good = async {
        rig.clock.sleep(Duration::from_secs(10)).await;
        rig.push(&good("up", &[(NOW, 1.0)])).await
    };
    let began = rig.clock.elapsed();
    let (slow, good) = futures::join!(slow, good);
    good.assert(204, "");
    for answer in slow {
        answer.assert(408, "request body comes too slowly, 1 bytes in 30s");
    }
    assert!(rig.clock.elapsed().saturating_sub(began) < Duration::from_secs(31));
}

#[tokio::test(start_paused = true)]
async fn a_body_that_comes_steadily_may_take_its_time() {
    let rig = Rig::single();
    let second = Duration::from_secs(1);
    // Ten minutes at the least rate: it is read to its end, and found to be no message.
    let answer = rig.send(&[TYPE], pieces(&rig, second, 32 << 10, 600)).await;
    answer.assert(400, "snappy");
    let answer = rig.send(&[TYPE], pieces(&rig, second, 16 << 10, 600)).await;
    answer.assert(408, "request body comes too slowly");
}
