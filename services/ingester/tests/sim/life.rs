//! One run of the process, from its start on what was left to whatever ends it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use koios_runtime::{CancellationToken, TaskError, TaskGroup};
use koios_testkit::sim_disk::{Fault, FaultPlan};

use crate::world::{DATA_DIR, Process, WAL_DIR, World};

/// A stop that takes longer hangs.
const STOP_MAX: Duration = Duration::from_secs(60);
/// After a failed sync the process is gone by then.
const FAIL_MAX: Duration = Duration::from_secs(2);
const SENDERS: usize = 2;
/// A snapshot of nothing is shorter.
const EMPTY_SNAPSHOT_BYTES: usize = 200;

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
        if self.rng.below(3) == 0 {
            self.set_clock();
        }
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
        actors.spawn_cancelled("clock", Arc::clone(self).set_clock_forever());
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
        if self.spare_flipped.swap(false, Ordering::Relaxed) && process.snapshot_failures() > 0 {
            self.judge.lock().totals.snapshots_refused += 1;
        }
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

    /// Flips a bit of the log or of its mark, while nobody uses it: that may cost a record.
    pub(crate) fn flip_in_log(&self) {
        if self.flip_a_bit(|path, _| !is_spare(path)) {
            self.judge.lock().flipped();
        }
    }

    /// Flips a bit of a snapshot that has something, or of what was copied aside of a damaged log: that costs nothing.
    pub(crate) fn flip_in_spare(&self) {
        if self.flip_a_bit(|path, len| is_spare(path) && len > EMPTY_SNAPSHOT_BYTES) {
            self.judge.lock().totals.spare_flips += 1;
            self.spare_flipped.store(true, Ordering::Relaxed);
        }
    }

    fn flip_a_bit(&self, of: impl Fn(&Path, usize) -> bool) -> bool {
        let mut files = self.disk.files_under(Path::new(DATA_DIR));
        files.retain(|(path, len)| *len > 0 && of(path, *len));
        if files.is_empty() {
            return false;
        }
        let (path, len) = &files[self.rng.below(files.len() as u64) as usize];
        let at = self.rng.below(*len as u64) as usize;
        let bit = self.rng.below(8) as u8;
        self.trace
            .note(format!("bit {bit} of byte {at} of {} flips", path.display()));
        self.disk.flip_bit(path, at, bit)
    }
}

/// Whether a file is one that could be missing.
fn is_spare(path: &Path) -> bool {
    let folders = [
        Path::new(DATA_DIR).join("snapshot"),
        Path::new(WAL_DIR).join("quarantine"),
    ];
    folders.iter().any(|folder| path.starts_with(folder))
}
