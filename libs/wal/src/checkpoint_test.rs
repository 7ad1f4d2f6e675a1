//! Segments that begin with much.

use std::sync::Arc;

use koios_runtime::{CancellationToken, Cpu, DiskHandle, RealClock, RngHandle};
use koios_testkit::sim_disk::SimDisk;
use parking_lot::Mutex;

use crate::wal_test::{ID, record, settings};
use crate::{Apply, Error, Lsn, Replay, Wal};

/// Has a checkpoint of so many bytes.
struct Heavy(Mutex<usize>);

impl Apply for Heavy {
    type Entry = u32;
    type Answer = Lsn;
    type Refusal = String;

    fn prepare(&self, _: u32, _: &mut u32) -> Result<Vec<u8>, String> {
        Ok(Vec::new())
    }
    fn give_up(&self, _: u32) {}
    fn apply(&self, lsn: Lsn, _: u32) -> Lsn {
        lsn
    }
    fn checkpoint(&self, _: Lsn) -> Vec<u8> {
        vec![0; *self.0.lock()]
    }
}

#[expect(clippy::disallowed_methods, reason = "the test owns its one task")]
async fn run(disk: &SimDisk, heavy: &Arc<Heavy>) -> Wal<Heavy> {
    let disk = DiskHandle::inline(Arc::new(disk.mount()));
    let mut replay = Replay::open(disk, settings(), ID).await.unwrap();
    for number in replay.segments().to_vec() {
        replay.read(number).await.unwrap();
    }
    let started = replay.start(Arc::clone(heavy), Cpu::inline(), Arc::new(RealClock::new()));
    let (wal, committer) = started.await.unwrap();
    tokio::spawn(committer.run(CancellationToken::new()));
    wal
}

#[tokio::test]
async fn a_checkpoint_larger_than_a_segment_is_not_written_for_every_group() {
    let heavy = Arc::new(Heavy(Mutex::new(3 * 4096)));
    let wal = run(&SimDisk::new(RngHandle::from_seed(1)), &heavy).await;
    for n in 0..100 {
        wal.append(record(n, 100)).await.unwrap().unwrap();
    }
    // Some 25 records fill what a segment has beside its checkpoint.
    let segments = wal.segments().len();
    assert!((3..=6).contains(&segments), "{segments} segments");
}

#[tokio::test]
async fn i13_a_checkpoint_that_no_segment_can_hold_refuses_appends_and_the_log_goes_on() {
    let heavy = Arc::new(Heavy(Mutex::new(10)));
    let wal = run(&SimDisk::new(RngHandle::from_seed(1)), &heavy).await;
    *heavy.0.lock() = u32::MAX as usize;
    let mut n = 0;
    let refused = loop {
        match wal.append(record(n, 700)).await {
            Ok(answer) => drop(answer.unwrap()),
            Err(error) => break error,
        }
        n += 1;
    };
    assert!(matches!(refused, Error::CheckpointTooLarge { .. }), "{refused}");
    // There is less of it later.
    *heavy.0.lock() = 10;
    wal.append(record(n, 700)).await.unwrap().unwrap();
    assert_eq!(wal.segments().len(), 2);
}
