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

#[tokio::test(start_paused = true)]
async fn a_bit_of_a_block_is_stored_otherwise_and_of_nothing_else() {
    let bucket = bucket();
    let handle = bucket.handle("p");
    handle.set_faults(BucketFaults {
        altered: 1000,
        ..BucketFaults::NONE
    });
    for (path, is_altered) in [("t/blocks/b/part", true), ("t/manifest/1.json", false)] {
        let path = Path::from(path);
        handle.put(&path, payload("12345")).await.unwrap();
        let stored = handle.get(&path).await.unwrap().bytes().await.unwrap();
        let bits = stored.iter().zip(b"12345").map(|(a, b)| (a ^ b).count_ones());
        assert_eq!(
            (stored.len(), bits.sum::<u32>()),
            (5, u32::from(is_altered)),
            "{path}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_object_in_pieces_is_there_with_the_last_one_and_anything_happens_to_each() {
    let path = Path::from("a");
    let send = async |handle: &BucketHandle| {
        let mut upload = handle.put_multipart(&path).await?;
        // They may arrive in any order.
        let pieces = ["one ", "two ", "three"].map(|piece| upload.put_part(payload(piece)));
        for piece in pieces.into_iter().rev() {
            piece.await?;
        }
        upload.complete().await
    };
    let operations = [
        "begin multipart",
        "put piece",
        "put piece",
        "put piece",
        "put together",
    ];
    for at in 0..operations.len() {
        for after_effect in [false, true] {
            let bucket = bucket();
            let doomed = bucket.handle("doomed");
            doomed.die_at(at as u64, after_effect);
            tokio::select! {
                _ = send(&doomed) => panic!("a dead process was answered"),
                () = doomed.died() => {}
            }
            let is_there = at == operations.len() - 1 && after_effect;
            assert_eq!(
                bucket.names().await.len(),
                usize::from(is_there),
                "{at} {after_effect}"
            );
            assert!(
                doomed.journal()[at].contains(operations[at]),
                "{:?}",
                doomed.journal()
            );
        }
    }
    let bucket = bucket();
    let handle = bucket.handle("p");
    handle.set_faults(BucketFaults {
        busy: 1000,
        ..BucketFaults::NONE
    });
    assert!(send(&handle).await.is_err());
    handle.set_faults(BucketFaults::NONE);
    let mut upload = handle.put_multipart(&path).await.unwrap();
    let _never_sent = upload.put_part(payload("1"));
    assert!(upload.complete().await.is_err(), "a piece is missing");
    upload.abort().await.unwrap();
    assert!(bucket.names().await.is_empty());
    send(&handle).await.unwrap();
    let stored = handle.get(&path).await.unwrap().bytes().await.unwrap();
    assert_eq!(&stored[..], b"one two three");
}

#[tokio::test(start_paused = true)]
async fn folders_are_not_seen_yet_or_their_list_breaks_off() {
    let bucket = bucket();
    let handle = bucket.handle("p");
    for path in ["x/a/1", "x/a/b/2", "x/c", "y/3"] {
        handle.put(&Path::from(path), payload("1")).await.unwrap();
    }
    let root = Path::from("x");
    let folders = async || {
        let listed = handle.list_with_delimiter(Some(&root)).await?;
        let objects = listed.objects.into_iter().map(|o| o.location);
        let all = listed.common_prefixes.into_iter().chain(objects);
        Ok::<_, object_store::Error>(all.map(|p| p.to_string()).collect::<Vec<_>>())
    };
    assert_eq!(folders().await.unwrap(), ["x/a", "x/c"]);
    let only = |stale, broken_bodies| BucketFaults {
        stale,
        broken_bodies,
        ..BucketFaults::NONE
    };
    handle.set_faults(only(1000, 0));
    assert!(folders().await.unwrap().is_empty());
    bucket.clock.sleep(STALE_FOR).await;
    assert_eq!(folders().await.unwrap().len(), 2);
    handle.set_faults(only(0, 1000));
    assert!(folders().await.is_err());
}
