//! Who uses the ingester while it runs: senders, a reader, and the weather.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::future::join_all;
use koios_wire::{Batch, FlushRequest, IngesterService, ServiceError, ServiceErrorCode};

use crate::traffic::{Sent, places};
use crate::world::{Process, World};

/// Batches that are sent again later, at most.
const PENDING_MAX: usize = 12;

impl World {
    pub(crate) async fn sleep_ms(&self, ms: u64) {
        self.clock.sleep(Duration::from_millis(ms)).await;
    }

    /// Sends batches, some of them again, some at once.
    pub(crate) async fn send_forever(self: Arc<Self>, process: Arc<Process>) {
        loop {
            self.sleep_ms(self.rng.below(60)).await;
            let pushes = (0..=self.rng.below(3)).map(|_| self.send(&process, self.next_batch()));
            join_all(pushes).await;
        }
    }

    fn next_batch(&self) -> Sent {
        let mut pending = self.pending.lock();
        if !pending.is_empty() && self.rng.below(3) == 0 {
            let at = self.rng.below(pending.len() as u64) as usize;
            let again = pending.swap_remove(at);
            return self.renewed(again);
        }
        let now = self.wall.true_ms();
        let mut traffic = self.traffic.lock();
        // Some are numbered and stay on their way while others arrive.
        if pending.len() < PENDING_MAX && self.rng.below(8) == 0 {
            pending.push(traffic.batch(|p| self.epoch(p), now));
        }
        traffic.batch(|p| self.epoch(p), now)
    }

    /// The same batch under today's epoch.
    pub(crate) fn renewed(&self, sent: Sent) -> Sent {
        let mut header = sent.batch.header().clone();
        let epoch = self.epoch(header.partition);
        if header.epoch == epoch {
            return sent;
        }
        header.epoch = epoch;
        let batch = Arc::new(Batch::new(header, sent.batch.columns().clone()));
        Sent { batch, ..sent }
    }

    /// Pushes a batch; what is not acknowledged is kept for later.
    pub(crate) async fn send(&self, process: &Process, sent: Sent) -> Result<(), ServiceErrorCode> {
        self.judge.lock().sent(&sent);
        self.deletions.lock().sent(&sent);
        {
            // Before the answer, which may never come.
            let mut pending = self.pending.lock();
            if pending.len() >= PENDING_MAX {
                pending.remove(0);
            }
            pending.push(sent.clone());
        }
        let header = sent.batch.header();
        let name = format!("push {} {} #{}", header.partition, header.tenant, header.sequence);
        let sync_had_failed =
            self.failed_syncs() > process.failed_syncs_before && process.ingester.is_running();
        let mut answer = process.ingester.push(self.travelled(&sent.batch)).await;
        if let Err(e) = &answer
            && e.code == ServiceErrorCode::UnknownSeries
        {
            self.trace.note(format!("{name} comes again with labels"));
            self.judge.lock().totals.labelled += 1;
            let labelled = Arc::new(sent.batch.with_labels());
            answer = process.ingester.push(self.travelled(&labelled)).await;
        }
        match answer {
            Ok(_) => {
                self.trace.note(format!("{name} acknowledged"));
                if sync_had_failed {
                    self.trace
                        .violated(format!("{name} was acknowledged after a sync had failed (I1)"));
                }
                let same = |s: &Sent| Arc::ptr_eq(&s.batch, &sent.batch);
                self.pending.lock().retain(|s| !same(s));
                let owed = self.deletions.lock().acknowledged(&sent);
                self.judge.lock().acknowledged(&owed);
                Ok(())
            }
            Err(e) => {
                self.judge.lock().totals.refused += 1;
                self.trace.note(format!("{name} refused: {}", e.code.as_str()));
                self.check_refusal(&name, &e);
                Err(e.code)
            }
        }
    }

    /// A batch as it arrives: from this process, or over the network, where labels of known series don't travel.
    fn travelled(&self, batch: &Arc<Batch>) -> Arc<Batch> {
        match self.rng.below(2) {
            0 => Arc::clone(batch),
            _ => Arc::new(Batch::decode(batch.encoded().clone()).unwrap()),
        }
    }

    /// A retry must be able to help (I13).
    fn check_refusal(&self, name: &str, e: &ServiceError) {
        use ServiceErrorCode::{Behind, ResourceExhausted, Stale, Unavailable};
        if !matches!(e.code, Behind | ResourceExhausted | Stale | Unavailable) {
            self.trace.violated(format!("{name} was refused for good: {e}"));
        }
    }

    /// Reads places in turn.
    pub(crate) async fn read_forever(self: Arc<Self>, process: Arc<Process>) {
        let places = places();
        loop {
            self.sleep_ms(5 + self.rng.below(60)).await;
            let place = &places[self.rng.below(places.len() as u64) as usize];
            let with_blocks = self.rng.below(3) == 0;
            if let Err(e) = self.read(&process, place, with_blocks).await {
                self.trace.note(format!(
                    "read {} {} refused: {}",
                    place.0,
                    place.1,
                    e.code.as_str()
                ));
                use ServiceErrorCode::{Behind, NotCounting, Stale, Unavailable};
                if !matches!(e.code, Behind | NotCounting | Stale | Unavailable) {
                    self.trace.violated(format!("a read was refused for good: {e}"));
                }
            }
        }
    }

    /// Disks fill up, the bucket goes away, operators flush, epochs change.
    pub(crate) async fn weather_forever(self: Arc<Self>, process: Arc<Process>) {
        loop {
            self.sleep_ms(20 + self.rng.below(200)).await;
            match self.rng.below(10) {
                8.. => {
                    let deleted = self.delete(&process).await;
                    self.trace
                        .note(format!("deletion: {:?}", deleted.map_err(|e| e.code)));
                }
                0 => self.fill_disk().await,
                1 => {
                    let down = self.rng.below(2) == 0;
                    process.bucket.down.store(down, Ordering::Relaxed);
                    self.trace
                        .note(format!("the bucket is {}", if down { "away" } else { "back" }));
                }
                2..5 => {
                    let flushed = self.flush(&process).await;
                    self.trace.note(format!("flush: {flushed:?}"));
                }
                5 => {
                    let (partition, _) = places()[self.rng.below(4) as usize].clone();
                    self.raise_epoch(partition);
                    self.trace.note(format!(
                        "partition {partition} has epoch {}",
                        self.epoch(partition)
                    ));
                }
                _ => {
                    if process.is_damaged() && self.judge.lock().was_flipped() {
                        self.accept_losses();
                        self.trace.note("an operator accepts the loss");
                    }
                }
            }
        }
    }

    /// Sets the wall clock now and then.
    pub(crate) async fn set_clock_forever(self: Arc<Self>) {
        loop {
            self.sleep_ms(20 + self.rng.below(250)).await;
            self.set_clock();
        }
    }

    async fn fill_disk(&self) {
        use koios_runtime::Disk;
        let used: usize = self
            .disk
            .files_under("/".as_ref())
            .iter()
            .map(|(_, len)| len)
            .sum();
        let free = self.rng.below(24 << 10);
        self.disk.set_capacity(Some(used as u64 + free));
        self.trace.note(format!("{free} bytes are free on the disk"));
        self.sleep_ms(self.rng.below(600)).await;
        self.disk.set_capacity(None);
        let free = self.disk.free_bytes("/".as_ref());
        self.trace
            .note(format!("the disk has room again: {}", free.is_ok()));
    }

    pub(crate) async fn flush(&self, process: &Process) -> Result<u64, ServiceErrorCode> {
        self.judge.lock().totals.flushes += 1;
        let request = FlushRequest {
            tenant: None,
            wait: true,
        };
        let flushed = process.ingester.flush(request).await;
        flushed.map(|f| f.samples).map_err(|e| e.code)
    }
}
