//! One run of the process, from its start on what was left to whatever ends it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use koios_runtime::{CancellationToken, Disk, TaskError, TaskGroup};
use koios_testkit::sim_disk::{Fault, FaultPlan};

use crate::world::{Process, WAL_DIR, World};

/// A stop that takes longer hangs.
const STOP_MAX: Duration = Duration::from_secs(60);
/// After a failed sync the process is gone by then.
const FAIL_MAX: Duration = Duration::from_secs(2);
const SENDERS: usize = 2;

/// How a run ends, unless a fault ends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    PowerLoss,
    Kill,
    Stop,
}

impl World {
    /// Runs the process once, under faults.
    pub(crate) async fn live(self: &Arc<Self>) {
        let plan = self.faults();
        let end = [End::PowerLoss, End::Kill, End::PowerLoss, End::Stop][self.rng.below(4) as usize];
        let lasts = match self.rng.below(4) {
            // It ends while it replays, or soon after.
            0 => self.rng.below(60),
            _ => 60 + self.rng.below(600),
        };
        self.trace
            .note(format!("start; {end:?} after {lasts} ms; {plan}"));
        self.disk.set_faults(plan);
        let process = Arc::new(self.boot());
        let actors = self.act(&process);
        self.wait(&process, lasts).await;
        self.end(&process, &actors, end).await;
    }

    fn faults(&self) -> FaultPlan {
        let (count, operations) = match self.rng.below(6) {
            0 => (0, 1),
            // In the replay.
            1 => (1, 40),
            2 => (2, 60),
            3 => (1, 150),
            _ => (3, 150),
        };
        // What ends the process is not all there is.
        let kinds: &[Fault] = match self.rng.below(3) {
            0 => &[Fault::Full],
            _ => &Fault::ALL,
        };
        FaultPlan::random(&self.rng, count, kinds, operations)
    }

    fn act(self: &Arc<Self>, process: &Arc<Process>) -> TaskGroup {
        let actors = TaskGroup::new(CancellationToken::new());
        self.traffic.lock().new_stream();
        for _ in 0..SENDERS {
            actors.spawn_cancelled("sender", Arc::clone(self).send_forever(Arc::clone(process)));
        }
        actors.spawn_cancelled("reader", Arc::clone(self).read_forever(Arc::clone(process)));
        actors.spawn_cancelled("weather", Arc::clone(self).weather_forever(Arc::clone(process)));
        actors
    }

    /// Until the time is over or a fault has ended the process.
    async fn wait(&self, process: &Process, lasts: u64) {
        let until = self.clock.elapsed() + Duration::from_millis(lasts);
        while self.clock.elapsed() < until
            && self.disk.boots() == process.boot
            && !process.tasks.token().is_cancelled()
            && self.trace.violation().is_none()
        {
            self.sleep_ms(1).await;
        }
        // Somewhere between two awaits of whoever runs in this very moment.
        for _ in 0..self.rng.below(30) {
            tokio::task::yield_now().await;
        }
    }

    async fn end(&self, process: &Arc<Process>, actors: &TaskGroup, end: End) {
        for struck in self.disk.take_struck() {
            self.judge.lock().totals.faults += 1;
            self.trace.note(struck);
        }
        let lost_power = self.disk.boots() != process.boot;
        let failed = process.tasks.failure();
        if !lost_power {
            self.check_failed_sync(process).await;
        }
        match (lost_power, &failed, end) {
            (true, _, _) => self.trace.note("a fault has ended the run"),
            (false, Some(e), _) => self.trace.note(format!("the process ends: {e}")),
            (false, None, End::Stop) => self.stop(process).await,
            (false, None, _) => {}
        }
        if !lost_power {
            let power = match failed {
                Some(_) => self.rng.below(2) == 0,
                None => end == End::PowerLoss,
            };
            self.cut_off(power);
        }
        process.bucket.dead.store(true, Ordering::Relaxed);
        actors.stop().await;
        process.tasks.stop().await;
        self.check_ended(process, actors);
        self.disk.set_capacity(None);
    }

    pub(crate) fn cut_off(&self, power: bool) {
        if power {
            self.disk.crash();
            self.trace.note("power loss");
        } else {
            self.disk.kill();
            self.trace.note("kill -9");
        }
    }

    async fn stop(&self, process: &Process) {
        let stopped = self.clock.timeout(STOP_MAX, process.ingester.stop()).await;
        match stopped {
            Ok(()) => self.trace.note("stopped"),
            Err(_) => self.trace.violated("the ingester does not stop"),
        }
    }

    /// A failed sync ends the process.
    async fn check_failed_sync(&self, process: &Process) {
        if self.failed_syncs() == process.failed_syncs_before || process.tasks.failure().is_some() {
            return;
        }
        self.clock.sleep(FAIL_MAX).await;
        if process.tasks.failure().is_none() && self.disk.boots() == process.boot {
            self.trace
                .violated("a sync of the log failed and the process goes on (I1)");
        }
    }

    /// Nothing panics, whatever the disk does.
    fn check_ended(&self, process: &Process, actors: &TaskGroup) {
        let failures = [process.tasks.failure(), actors.failure()];
        for failure in failures.into_iter().flatten() {
            if matches!(failure, TaskError::Panicked { .. }) {
                self.trace.violated(format!("{failure} (I12)"));
            }
        }
    }

    /// Flips a bit of what lies on the disk, while nobody uses it.
    pub(crate) fn flip_a_bit(&self) {
        let files = self.disk.files_under(Path::new(WAL_DIR));
        let mut files: Vec<_> = files.into_iter().filter(|(_, len)| *len > 0).collect();
        let mark = Path::new("/data/wal.end");
        if let Ok(bytes) = self.disk.read(mark) {
            files.push((mark.to_owned(), bytes.len()));
        }
        let Some((path, len)) = files.get(self.rng.below(files.len() as u64) as usize) else {
            return;
        };
        let at = self.rng.below(*len as u64) as usize;
        let bit = self.rng.below(8) as u8;
        if self.disk.flip_bit(path, at, bit) {
            self.judge.lock().flipped();
            self.trace
                .note(format!("bit {bit} of byte {at} of {} flips", path.display()));
        }
    }
}
