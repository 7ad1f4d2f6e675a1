//! A run: lives under faults, then everything heals and everything is looked at.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use koios_testkit::sim_disk::FaultPlan;
use koios_wire::ServiceErrorCode;

use crate::judge::{Answer, Totals};
use crate::traffic::places;
use crate::world::{Process, World};

/// How long a healed process may take to answer.
const HEALING: Duration = Duration::from_secs(30);

/// What came of a seed.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) lines: Vec<String>,
    pub(crate) violation: Option<String>,
    pub(crate) hash: u64,
    pub(crate) totals: Totals,
}

/// Runs a seed, on this thread alone.
pub(crate) fn run(seed: u64) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let world = Arc::new(World::new(seed));
        world.lives().await;
        if world.trace.violation().is_none() {
            world.heal().await;
        }
        Outcome {
            lines: world.trace.lines(),
            violation: world.trace.violation(),
            hash: world.trace.hash(world.disk.digest()),
            totals: world.judge.lock().totals,
        }
    })
}

impl World {
    async fn lives(self: &Arc<Self>) {
        let (flips, spare_flips) = (self.rng.below(4) == 0, self.rng.below(2) == 0);
        for _ in 0..2 + self.rng.below(3) {
            self.live().await;
            if self.trace.violation().is_some() {
                return;
            }
            if flips && self.rng.below(2) == 0 {
                self.flip_in_log();
            }
            if spare_flips {
                self.flip_in_spare();
            }
        }
    }

    /// Nothing fails any more: all is there, in the head, in blocks, and after further restarts.
    async fn heal(self: &Arc<Self>) {
        self.trace.note("everything heals");
        self.disk.set_faults(FaultPlan::default());
        let process = self.boot();
        process.bucket.calm.store(true, Ordering::Relaxed);
        if !self.counts_again(&process).await {
            return;
        }
        self.settle_deletions(&process).await;
        self.check_all(&process).await;
        self.check_pending(&process).await;
        self.take_some_back(&process).await;
        if let Err(code) = self.flush(&process).await {
            self.trace.violated(format!("the last flush failed: {code:?}"));
        }
        self.check_blocks().await;
        self.cut_off(self.rng.below(2) == 0);
        process.tasks.stop().await;
        self.set_clock();
        // What was written since, and what was forgotten, is found by a start.
        let process = self.boot();
        process.bucket.calm.store(true, Ordering::Relaxed);
        if self.counts_again(&process).await {
            self.check_all(&process).await;
        }
        self.cut_off(true);
        process.tasks.stop().await;
        let first = self.first_segment();
        self.trace.note(format!("the log begins with segment {first}"));
        self.judge.lock().totals.truncated += first - 1;
    }

    /// Waits until the process answers for everything; an operator helps where a disk has lied, and only there.
    async fn counts_again(&self, process: &Process) -> bool {
        let until = self.clock.elapsed() + HEALING;
        while self.clock.elapsed() < until {
            let status = process.ingester.status();
            let counting = status.partitions.iter().filter(|p| p.counts).count();
            if status.running && counting == 2 {
                return true;
            }
            if process.is_damaged() && self.judge.lock().was_flipped() && self.rng.below(8) == 0 {
                self.accept_losses();
                self.trace.note("an operator accepts the loss");
            }
            self.sleep_ms(100).await;
        }
        self.trace.violated(format!(
            "the healed process does not count: {:?}, {:?}",
            process.tasks.failure(),
            process.ingester.status()
        ));
        false
    }

    async fn check_all(&self, process: &Process) {
        for place in places() {
            if let Err(e) = self.read(process, &place, true).await {
                self.trace
                    .violated(format!("a healed process refuses reads: {e}"));
            }
        }
    }

    /// What was refused or not answered is taken now. A batch that was stored although nobody heard of it, and is in blocks alone, is
    /// not taken again: its sender sends the samples in one of their own.
    async fn check_pending(&self, process: &Process) {
        let pending = std::mem::take(&mut *self.pending.lock());
        for sent in pending {
            let sent = self.renewed(sent);
            let mut taken = self.send(process, sent.clone()).await;
            if taken == Err(ServiceErrorCode::Stale) {
                let anew = self.traffic.lock().anew(&sent);
                taken = self.send(process, anew).await;
            }
            if taken.is_err() {
                self.trace.violated("a healed process refuses a batch");
            }
        }
    }

    /// Once all is flushed, blocks alone hold everything (I10).
    async fn check_blocks(&self) {
        for place in places() {
            let series = self.in_blocks(&place).await;
            let answer = Answer {
                series,
                complete_from: i64::MIN,
            };
            let before = self.judge.lock().oracle(&place);
            if let Err(back) = self.deletions.lock().check(&place, &answer.series) {
                self.trace.violated(format!("blocks alone: {back}"));
            }
            let judged = before.check(&answer.series);
            if let Err(violation) = judged {
                self.trace.violated(format!(
                    "the blocks of {} {} alone: {violation}",
                    place.0, place.1
                ));
            }
        }
    }
}
