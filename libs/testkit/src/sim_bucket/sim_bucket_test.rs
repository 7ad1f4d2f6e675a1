use std::sync::Arc;

use koios_runtime::TokioClock;
use object_store::{PutMode, PutOptions};

use super::*;

fn bucket() -> SimBucket {
    let clock = Arc::new(TokioClock::starting_at(0));
    SimBucket::new(clock, RngHandle::from_seed(1))
}

fn payload(text: &'static str) -> PutPayload {
    PutPayload::from_static(text.as_bytes())
}

#[tokio::test(start_paused = true)]
async fn a_process_dies_at_its_operation_before_or_after_its_effect() {
    for after_effect in [false, true] {
        let bucket = bucket();
        let (doomed, other) = (bucket.handle("doomed"), bucket.handle("other"));
        doomed.die_at(1, after_effect);
        let path = Path::from("a");
        doomed.put(&path, payload("1")).await.unwrap();
        let second = Path::from("b");
        tokio::select! {
            _ = doomed.put(&second, payload("2")) => panic!("a dead process was answered"),
            () = doomed.died() => {}
        }
        assert!(doomed.is_dead() && !other.is_dead());
        assert_eq!(other.head(&second).await.is_ok(), after_effect);
        assert_eq!(bucket.names().await.len(), 1 + usize::from(after_effect));
        assert_eq!(doomed.journal(), ["doomed 0: put a", "doomed 1: put b"]);
        assert_eq!((doomed.changes(), other.changes()), (vec![0, 1], vec![]));
    }
}

#[tokio::test(start_paused = true)]
async fn a_process_stops_where_it_is_told_to_and_others_go_on() {
    let bucket = bucket();
    let (held, other) = (bucket.handle("held"), bucket.handle("other"));
    held.stop_before(0);
    let path = Path::from("a");
    let create = held.put_opts(&path, payload("late"), PutOptions::from(PutMode::Create));
    let meanwhile = async {
        held.stopped().await;
        let early = other.put_opts(&path, payload("early"), PutOptions::from(PutMode::Create));
        early.await.unwrap();
        held.release();
    };
    let (created, ()) = futures::join!(create, meanwhile);
    assert!(matches!(created, Err(object_store::Error::AlreadyExists { .. })));
}

#[tokio::test(start_paused = true)]
async fn what_changed_lately_may_be_seen_as_it_was() {
    let bucket = bucket();
    let handle = bucket.handle("p");
    let path = Path::from("a");
    handle.put(&path, payload("1")).await.unwrap();
    let seen = || async {
        match handle.get(&path).await {
            Ok(found) => String::from_utf8(found.bytes().await.unwrap().to_vec()).unwrap(),
            Err(e) => {
                assert!(matches!(e, object_store::Error::NotFound { .. }), "{e}");
                "nothing".to_owned()
            }
        }
    };
    let stale = BucketFaults {
        stale: 1000,
        ..BucketFaults::NONE
    };
    handle.set_faults(stale);
    assert_eq!(seen().await, "nothing");
    handle.set_faults(BucketFaults::NONE);
    handle.put(&path, payload("2")).await.unwrap();
    handle.set_faults(stale);
    assert_eq!(seen().await, "1");
    bucket.clock.sleep(STALE_FOR).await;
    assert_eq!(seen().await, "2");
}

#[tokio::test(start_paused = true)]
async fn answers_are_lost_and_bodies_break_off() {
    let bucket = bucket();
    let handle = bucket.handle("p");
    let path = Path::from("a");
    let only = |what: fn(&mut BucketFaults)| {
        let mut faults = BucketFaults::NONE;
        what(&mut faults);
        handle.set_faults(faults);
    };
    only(|f| f.conflicts = 1000);
    let create = handle.put_opts(&path, payload("12345"), PutOptions::from(PutMode::Create));
    assert!(matches!(
        create.await,
        Err(object_store::Error::AlreadyExists { .. })
    ));
    assert!(bucket.names().await.is_empty());
    only(|f| f.busy = 1000);
    assert!(handle.put(&path, payload("12345")).await.is_err());
    assert!(bucket.names().await.is_empty());
    only(|f| f.lost_answers = 1000);
    let limit = Duration::from_secs(60);
    let clock: ClockHandle = Arc::clone(&bucket.clock);
    let put = clock.timeout(limit, handle.put(&path, payload("12345"))).await;
    assert!(!matches!(put, Ok(Ok(_))));
    assert_eq!(bucket.names().await, ["a"]);
    only(|f| f.broken_bodies = 1000);
    for _ in 0..20 {
        match handle.get(&path).await.unwrap().bytes().await {
            Ok(short) => assert!(short.len() < 5),
            Err(e) => assert!(matches!(e, object_store::Error::Generic { .. })),
        }
    }
}
