//! A push: check, log, answer.

use std::sync::Arc;
use std::time::Duration;

use koios_runtime::MemoryShort;
use koios_wal::{Append, ReserveUse};
use koios_wire::batch::DECODED_BYTES_MAX;
use koios_wire::{Batch, PushAck, ServiceError};

use crate::apply::{Answer, Pushed};
use crate::epochs::EpochGuard;
use crate::ingester::Inner;
use crate::metrics::gauge_value;
use crate::record::{Entry, Origin, Pending};
use crate::{Error, Result};

/// How old an answer about free disk space may be.
const DISK_LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How often a full queue is tried again.
const QUEUE_RETRY: Duration = Duration::from_millis(50);

impl Inner {
    /// Logs, syncs and applies a batch. It is refused, as a whole, only before it is logged.
    pub(crate) async fn push(&self, batch: Arc<Batch>) -> Result<PushAck, ServiceError> {
        let started = self.deps.runtime.clock.elapsed();
        let pushed = self.try_push(batch).await;
        let took = self.deps.runtime.clock.elapsed().saturating_sub(started);
        self.store.metrics.push.observe(took.as_secs_f64());
        if pushed.is_err() {
            self.store.metrics.pushes_refused.inc();
        }
        pushed
    }

    async fn try_push(&self, batch: Arc<Batch>) -> Result<PushAck, ServiceError> {
        self.replayed_with(batch.columns().memory_bytes()).await;
        self.wal().map_err(|e| self.refuse(&e))?;
        self.check_memory().map_err(|e| self.refuse(&e.into()))?;
        self.check_disk(self.settings.disk_reserve_bytes).await?;
        let header = batch.header();
        let pushing = self.enter(header.partition, header.epoch).await?;
        let pushed = self
            .log_batch(batch, Origin::Sender, pushing)
            .await
            .map_err(|e| self.refuse(&e))?;
        let applied = pushed.applied;
        Ok(PushAck {
            state_version: self.deps.state.current().version,
            partition_series: pushed.series,
            conflicts: applied.conflicts,
            histogram_conflicts: applied.histogram_conflicts,
            conflicts_kept: applied.conflicts_kept,
            histogram_conflicts_kept: applied.histogram_conflicts_kept,
            conflict: pushed.conflict,
            tenant_rate: pushed.rate,
        })
    }

    /// Whether the process has memory for another batch.
    pub(crate) fn check_memory(&self) -> Result<(), MemoryShort> {
        let runtime = &self.deps.runtime;
        runtime.memory.check(runtime.clock.elapsed())
    }

    /// Refuses batches while less than `reserve` bytes are free; looks at the disk once a second at most. The log itself
    /// checks again whenever it takes space.
    pub(crate) async fn check_disk(&self, reserve: u64) -> Result<(), ServiceError> {
        let now = self.deps.runtime.clock.elapsed();
        let due = {
            let mut disk = self.disk.lock();
            let old = |at| now.saturating_sub(at) >= DISK_LOOK_INTERVAL;
            let due = disk.looked_at.is_none_or(old);
            if due {
                disk.looked_at = Some(now);
            }
            due
        };
        if due {
            let dir = self.settings.wal_dir.clone();
            let free = self.deps.runtime.disk.run(move |d| d.free_bytes(&dir)).await;
            // A disk that cannot be asked will say so when it is written.
            self.disk.lock().free = free.ok();
        }
        let free = self.disk.lock().free;
        match free.filter(|free| *free < reserve) {
            None => Ok(()),
            Some(free) => Err(self.refuse(&Error::Wal(koios_wal::Error::Full {
                dir: self.settings.wal_dir.clone(),
                free,
                needed: self.settings.wal_segment_bytes,
                reserve,
            }))),
        }
    }

    /// Logs a batch under its tenant's queue. One that makes damage good, or is logged once more, may use half of the disk reserve: no log
    /// is given back before.
    pub(crate) async fn log_batch(
        &self,
        batch: Arc<Batch>,
        origin: Origin,
        pushing: EpochGuard,
    ) -> Result<Pushed> {
        let wal = self.wal()?;
        if !batch.has_content() && !batch.is_encoded_inline() {
            let encode = Arc::clone(&batch);
            let cpu = &self.deps.runtime.cpu;
            cpu.run(move || encode.content().len()).await?;
        }
        let bytes = batch.largest_bytes();
        if bytes > DECODED_BYTES_MAX {
            return Err(Error::BatchTooLarge { bytes });
        }
        let (tenant, weight) = (batch.header().tenant.clone(), batch.columns().memory_bytes());
        let gives_back = match origin {
            Origin::Sender => false,
            Origin::Member => self.is_damaged(batch.header().partition),
            Origin::Log => true,
        };
        let reserve = match gives_back {
            true => ReserveUse::Half,
            false => ReserveUse::None,
        };
        let entry = Entry::Batch(Box::new(Pending {
            batch,
            origin,
            prepared: None,
            _pushing: pushing,
        }));
        let append = wal.append(Append {
            tenant: Some(tenant),
            reserve,
            kind: entry.kind(),
            payload: entry.payload(),
            weight,
            entry,
        });
        let answer = append.await.map_err(Error::Wal);
        let queue = wal.queue_stats();
        let metrics = &self.store.metrics;
        metrics.queue_records.set(gauge_value(queue.records));
        metrics.queue_bytes.set(gauge_value(queue.bytes));
        Ok(match answer?? {
            Answer::Pushed(pushed) => pushed,
            Answer::Cut(_) | Answer::Done => Pushed::default(),
        })
    }

    /// Logs a batch that does not come from its sender, as it is. Waits while pushes fill the queue: a fetch that is given up begins anew,
    /// with as little room.
    pub(crate) async fn log_when_there_is_room(&self, batch: Arc<Batch>, origin: Origin) -> Result<()> {
        let clock = &self.deps.runtime.clock;
        let give_up = clock.elapsed().saturating_add(self.settings.peer_deadline);
        loop {
            let pushing = self.push_along(batch.header().partition).await;
            match self.log_batch(Arc::clone(&batch), origin, pushing).await {
                Err(Error::Wal(koios_wal::Error::QueueFull { .. })) if clock.elapsed() < give_up => {
                    clock.sleep(QUEUE_RETRY).await;
                }
                other => return other.map(drop),
            }
        }
    }
}

/// Memory that a batch takes in its tenant's queue, bytes; about, for the log adds a header. Encodes its content unless it
/// came encoded.
pub(crate) fn queued_bytes(batch: &Batch) -> usize {
    batch
        .content()
        .len()
        .saturating_add(batch.columns().memory_bytes())
}
