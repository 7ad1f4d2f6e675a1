//! Reads of heads.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use futures::StreamExt;
use futures::stream;
use koios_chunk::Encoder;
use koios_head::SeriesId;
use koios_model::{BatchSet, Metadata, PartitionId, TimeRange};
use koios_runtime::Cpu;
use koios_wire::{
    ExemplarsRequest, LabelsReply, LabelsRequest, MetadataRequest, ReadEnd, ReadItem, ReadRequest,
    ReadStream, SeriesExemplars, SeriesRuns, ServiceError, ServiceErrorCode,
};

use crate::Error;
use crate::ingester::Inner;
use crate::replica::{Replica, ReplicaState};

/// Series of one item.
const RUN: usize = 1024;
/// Series copied under one hold of the lock: about a millisecond, for which writes may have to wait.
const PART: usize = 128;

/// What a member answers that never held anything of a tenant.
fn nothing_held(deletions_version: u64) -> ReadEnd {
    ReadEnd {
        forgotten_below_ms: i64::MIN,
        deletions_version,
        ..ReadEnd::default()
    }
}

/// How series are wanted.
#[derive(Clone, Copy, Debug)]
struct Form {
    labels_only: bool,
    encoded: bool,
}

/// A read under way.
struct Reading {
    replica: Arc<Replica>,
    held: BatchSet,
    /// Taken with them.
    deletions_version: u64,
    ids: Vec<SeriesId>,
    next: usize,
    /// How many series may still be sent. Candidates without runs around the range do not count: whoever asks for one
    /// series more than it may have relies on getting it.
    left: usize,
    range: TimeRange,
    form: Form,
    cpu: Cpu,
    ended: bool,
}

impl Inner {
    /// Whether a partition has no replica but this member's.
    fn is_sole_member(&self, partition: PartitionId) -> bool {
        let state = self.deps.state.current();
        state.partition(partition).is_some_and(|p| p.replicas.len() == 1)
    }

    /// Refuses reads that this member could answer incompletely.
    async fn admit_read(&self, partition: PartitionId, epoch: u64) -> Result<(), ServiceError> {
        // Where there are other members, they answer sooner.
        if self.is_sole_member(partition) {
            self.replayed().await;
        }
        if let Err(e) = self.wal() {
            return Err(self.refusal(ServiceErrorCode::NotCounting, e.to_string()));
        }
        // Acknowledged writes of this epoch are here from its adoption on; nothing has to stay in place.
        drop(self.enter(partition, epoch).await?);
        if self.counts(partition) {
            return Ok(());
        }
        let member = &self.deps.member;
        let message = match self.is_damaged(partition) {
            true => format!(
                "the write-ahead log of member {member} is damaged: it does not count for reads of partition {partition} until \
                 it has copied from the others, or an operator runs `koios ctl partition accept-loss {partition}`"
            ),
            false => format!(
                "member {member} does not count for reads of partition {partition} until it is repaired; read from others"
            ),
        };
        Err(self.refusal(ServiceErrorCode::NotCounting, message))
    }

    pub(crate) async fn read(self: &Arc<Self>, request: ReadRequest) -> Result<ReadStream, ServiceError> {
        self.admit_read(request.partition, request.epoch).await?;
        let version = request.deletions_version;
        let Some(replica) = self.store.replica(request.partition, &request.tenant) else {
            return Ok(stream::iter([Ok(ReadItem::End(nothing_held(version)))]).boxed());
        };
        self.ensure_deletions(&replica, version).await?;
        let started = self.deps.runtime.clock.elapsed();
        let cpu = self.deps.runtime.cpu.clone();
        let (selecting, range) = (Arc::clone(&replica), request.range);
        let (matchers, expiry) = (request.matchers, request.expiry);
        let select = move || {
            let state = selecting.state.read();
            let ids = state.head.select_kept(&matchers, range, &expiry);
            (state.held.clone(), state.deletions.version, ids)
        };
        let (held, deletions_version, ids) = cpu
            .run(select)
            .await
            .map_err(|e| self.refuse(&Error::Panicked(e)))?;
        let took = self.deps.runtime.clock.elapsed().saturating_sub(started);
        self.store.metrics.reads.observe(took.as_secs_f64());
        let reading = Reading {
            replica,
            held,
            deletions_version,
            ids,
            next: 0,
            left: match request.limit {
                0 => usize::MAX,
                limit => usize::try_from(limit).unwrap_or(usize::MAX),
            },
            range,
            form: Form {
                labels_only: request.labels_only,
                encoded: request.encoded,
            },
            cpu,
            ended: false,
        };
        Ok(stream::try_unfold(reading, Reading::step).boxed())
    }

    pub(crate) async fn labels(
        self: &Arc<Self>,
        request: LabelsRequest,
        of: impl FnOnce(&ReplicaState, &LabelsRequest) -> Vec<String> + Send + 'static,
    ) -> Result<LabelsReply, ServiceError> {
        self.admit_read(request.partition, request.epoch).await?;
        let version = request.deletions_version;
        let Some(replica) = self.store.replica(request.partition, &request.tenant) else {
            return Ok(LabelsReply {
                names: Vec::new(),
                end: nothing_held(version),
            });
        };
        self.ensure_deletions(&replica, version).await?;
        let collect = move || {
            let state = replica.state.read();
            let mut names = of(&state, &request);
            if request.limit > 0 {
                names.truncate(usize::try_from(request.limit).unwrap_or(usize::MAX));
            }
            LabelsReply {
                names,
                end: state.end(),
            }
        };
        let reply = self.deps.runtime.cpu.run(collect).await;
        reply.map_err(|e| self.refuse(&Error::Panicked(e)))
    }

    pub(crate) async fn exemplars(
        self: &Arc<Self>,
        request: ExemplarsRequest,
    ) -> Result<Vec<SeriesExemplars>, ServiceError> {
        self.admit_read(request.partition, request.epoch).await?;
        let Some(replica) = self.store.replica(request.partition, &request.tenant) else {
            return Ok(Vec::new());
        };
        let version = request.deletions_version;
        self.ensure_deletions(&replica, version).await?;
        let collect = move || {
            let state = replica.state.read();
            state.head.exemplars(&request.matchers, request.range)
        };
        let found = self.deps.runtime.cpu.run(collect).await;
        found.map_err(|e| self.refuse(&Error::Panicked(e)))
    }

    pub(crate) async fn metadata(
        self: &Arc<Self>,
        request: MetadataRequest,
    ) -> Result<Vec<(String, Metadata)>, ServiceError> {
        self.admit_read(request.partition, request.epoch).await?;
        let Some(replica) = self.store.replica(request.partition, &request.tenant) else {
            return Ok(Vec::new());
        };
        self.ensure_deletions(&replica, request.deletions_version).await?;
        let state = replica.state.read();
        let wanted = |name: &str| request.metric.is_empty() || name == request.metric;
        Ok(state
            .head
            .metadata()
            .filter(|(name, _, _)| wanted(name))
            .map(|(name, _, m)| (name.to_owned(), m.clone()))
            .collect())
    }
}

impl Reading {
    /// The next run of series, then the end.
    async fn step(mut self) -> Result<Option<(ReadItem, Self)>, ServiceError> {
        while self.next < self.ids.len() && self.left > 0 {
            let run: Vec<SeriesId> = self.ids.iter().skip(self.next).take(RUN).copied().collect();
            self.next += run.len();
            let (replica, range, form) = (Arc::clone(&self.replica), self.range, self.form);
            let cores = self.cpu.clone();
            let copy = move || {
                copy_run(&cores, run.len(), |part| {
                    let series = copy_part(
                        &replica,
                        run.get(part).unwrap_or_default(),
                        range,
                        form.labels_only,
                    )?;
                    if form.encoded { encode(series) } else { Ok(series) }
                })
            };
            let copied = self.cpu.run(copy).await;
            let mut series = copied.map_err(|e| Error::Panicked(e).to_service())??;
            series.truncate(self.left);
            self.left -= series.len();
            if !series.is_empty() {
                return Ok(Some((ReadItem::Series(series), self)));
            }
        }
        if self.ended {
            return Ok(None);
        }
        self.ended = true;
        let held = std::mem::take(&mut self.held);
        let end = ReadEnd {
            deletions_version: self.deletions_version,
            ..self.replica.state.read().end_with(held)
        };
        Ok(Some((ReadItem::End(end), self)))
    }
}

/// Copies the series of a run, its parts on all cores that are free.
fn copy_run(
    cores: &Cpu,
    series: usize,
    copy: impl Fn(Range<usize>) -> Result<Vec<SeriesRuns>, ServiceError> + Sync,
) -> Result<Vec<SeriesRuns>, ServiceError> {
    let parts: Vec<OnceLock<_>> = (0..series.div_ceil(PART)).map(|_| OnceLock::new()).collect();
    cores.each(parts.len(), &|i| {
        if let Some(slot) = parts.get(i) {
            // Each part is copied once, so the slot is empty.
            let _ = slot.set(copy(i * PART..series.min((i + 1) * PART)));
        }
    });
    let mut out = Vec::with_capacity(series);
    for part in parts {
        let copied = part.into_inner();
        out.extend(copied.unwrap_or_else(|| Err(ServiceError::internal("a part of a read was left out")))?);
    }
    Ok(out)
}

/// Makes chunks of what is not, without holding the head's lock.
fn encode(series: Vec<SeriesRuns>) -> Result<Vec<SeriesRuns>, ServiceError> {
    let mut encoder = Encoder::default();
    series.into_iter().map(|s| s.encode(&mut encoder)).collect()
}

/// Copies some series. One that was forgotten meanwhile is left out: the end of the read says where it is.
fn copy_part(
    replica: &Replica,
    ids: &[SeriesId],
    range: TimeRange,
    labels_only: bool,
) -> Result<Vec<SeriesRuns>, ServiceError> {
    let state = replica.state.read();
    let mut out = Vec::with_capacity(ids.len());
    for &id in ids {
        let Some(labels) = state.head.labels(id) else {
            continue;
        };
        let mut runs = Vec::new();
        if !labels_only {
            match state.head.read(id, range, &mut runs) {
                Ok(()) => {}
                Err(koios_head::Error::SeriesForgotten { .. }) => continue,
                Err(koios_head::Error::Chunk(source)) => {
                    let (partition, tenant) = replica.key.clone();
                    let damaged = Error::Chunk {
                        tenant,
                        partition,
                        source,
                    };
                    return Err(damaged.to_service());
                }
            }
            if runs.is_empty() {
                continue;
            }
        }
        out.push(SeriesRuns { labels, runs });
    }
    Ok(out)
}
