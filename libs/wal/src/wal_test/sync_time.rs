//! How long a sync took.

use std::sync::Arc;
use std::thread::{self, ThreadId};
use std::time::Duration;

use koios_runtime::{CancellationToken, Clock, Cpu, DiskHandle};
use parking_lot::{Condvar, Mutex};

use super::memory_disk::MemoryDisk;
use super::{ID, record, settings};
use crate::{Apply, GroupStats, Lsn, Replay, Wal, WalSettings};

const HOUR: Duration = Duration::from_secs(3600);

/// Stands still while nothing is applied, and knows how often the disk's thread looked at it.
#[derive(Debug)]
struct StillClock {
    home: ThreadId,
    now: Mutex<Duration>,
    looked: Mutex<u32>,
    looks: Condvar,
}

impl Clock for StillClock {
    fn now_ms(&self) -> i64 {
        0
    }

    fn elapsed(&self) -> Duration {
        let now = *self.now.lock();
        if thread::current().id() != self.home {
            *self.looked.lock() += 1;
            self.looks.notify_all();
        }
        now
    }

    fn sleep(&self, _: Duration) -> futures::future::BoxFuture<'static, ()> {
        Box::pin(std::future::pending())
    }
}

/// Takes an hour for a record, once the disk has synced the next, and keeps how long syncs took.
#[derive(Debug)]
struct Slow {
    clock: Arc<StillClock>,
    syncs: Mutex<Vec<Duration>>,
}

impl Apply for Slow {
    type Entry = u32;
    type Answer = ();
    type Refusal = ();

    fn prepare(&self, _: u32, _: &mut u32) -> Result<Vec<u8>, ()> {
        Ok(Vec::new())
    }

    fn give_up(&self, _: u32) {}

    fn apply(&self, _: Lsn, entry: u32) {
        if entry == 0 {
            let mut looked = self.clock.looked.lock();
            let next_is_synced = |looked: &mut u32| *looked < 2;
            let patience = Duration::from_secs(10);
            let waited = self
                .clock
                .looks
                .wait_while_for(&mut looked, next_is_synced, patience);
            assert!(!waited.timed_out(), "nobody noted when the next one was synced");
        }
        *self.clock.now.lock() += HOUR;
    }

    fn checkpoint(&self, _: Lsn) -> Vec<u8> {
        Vec::new()
    }

    fn synced(&self, stats: GroupStats) {
        self.syncs.lock().push(stats.sync);
    }
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "the test owns its one task")]
async fn a_sync_ends_though_the_group_before_is_still_applied() {
    let disk = DiskHandle::threaded(Arc::new(MemoryDisk::default()), 1).unwrap();
    let settings = WalSettings {
        group_bytes_max: 1,
        ..settings()
    };
    let clock = Arc::new(StillClock {
        home: thread::current().id(),
        now: Mutex::default(),
        looked: Mutex::default(),
        looks: Condvar::new(),
    });
    let apply = Arc::new(Slow {
        clock: Arc::clone(&clock),
        syncs: Mutex::default(),
    });
    let replay = Replay::open(disk, settings, ID).await.unwrap();
    let (wal, committer): (Wal<Slow>, _) = replay
        .start(Arc::clone(&apply), Cpu::inline(), clock)
        .await
        .unwrap();
    let ended = tokio::spawn(committer.run(CancellationToken::new()));

    // Each is a group; the second is written while the first is applied.
    let (first, second) = tokio::join!(wal.append(record(0, 10)), wal.append(record(1, 10)));
    first.unwrap().unwrap();
    second.unwrap().unwrap();
    wal.close();
    ended.await.unwrap().unwrap();

    assert_eq!(*apply.syncs.lock(), [Duration::ZERO; 2]);
}
