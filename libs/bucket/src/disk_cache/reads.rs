//! Reads cells off the disk, and never waits long for it: what does not come in time is fetched from the bucket.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{Either, select};
use futures::stream::{self, StreamExt};
use koios_runtime::{ClockHandle, DiskError, DiskHandle};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::bucket_pace::BucketPace;
use super::index::Place;
use super::pulse::{Pulse, Turn};
use super::segment::read_record;
use super::stats::{Counters, NotRead};

/// Reads that the disk does at the same time: each has a thread, so that the time it takes is the disk's alone.
pub(super) const READERS: usize = 7;
/// How many of them one read may have.
const READERS_EACH: usize = 4;
/// Bytes that are read by one of them: more are shared out, and let others in between.
const JOB_BYTES: u64 = 4 << 20;
/// How long a disk that answers may be silent, and how long a read waits for one of the readers: as long as the bucket
/// usually takes, within these bounds. A disk that is slower is of no use, and one that is quicker is, however slow.
const SILENCE: std::ops::RangeInclusive<Duration> = Duration::from_millis(500)..=Duration::from_secs(5);
/// Longest wait for the disk altogether, however much is read: so many silences.
const READ_SILENCES: u32 = 2;

/// A cell that was asked for, and where it is.
#[derive(Debug)]
pub(super) struct Wanted {
    /// Its place among those that were asked for.
    pub(super) at: usize,
    pub(super) place: Place,
}

/// A cell as it was read; `None` when it is damaged.
pub(super) type ReadCell = io::Result<Option<Bytes>>;

/// Reads under way.
#[derive(Debug)]
pub(super) struct Reads {
    disk: DiskHandle,
    clock: ClockHandle,
    readers: Arc<Semaphore>,
    pulse: Pulse,
    pub(super) bucket: BucketPace,
}

/// How long one read waits for the disk.
#[derive(Clone, Copy, Debug)]
struct Waits {
    /// For anything at all.
    silence: Duration,
    /// Until then altogether, on the monotonic clock.
    give_up: Duration,
}

impl Waits {
    /// How long to wait from now on.
    fn left(&self, now: Duration) -> Duration {
        self.give_up.saturating_sub(now).min(self.silence)
    }
}

/// How the cells of one reader came to an end.
enum End {
    /// All that there are, or as many as there was time for.
    Came,
    /// There was no reader for them.
    Busy,
    /// The disk went silent, or fails, from then on.
    Failed { since: Duration, why: String },
}

impl Reads {
    pub(super) fn new(disk: DiskHandle, clock: ClockHandle) -> Self {
        Self {
            disk,
            clock,
            readers: Arc::new(Semaphore::new(READERS)),
            pulse: Pulse::default(),
            bucket: BucketPace::default(),
        }
    }

    /// Whether the disk is left alone.
    pub(super) fn is_resting(&self) -> bool {
        self.pulse.is_resting()
    }

    /// Reads cells, as many as come in time.
    pub(super) async fn read(&self, wanted: Vec<Wanted>, counters: &Counters) -> Vec<(Wanted, ReadCell)> {
        let usual = self.bucket.usual().unwrap_or_default();
        let silence = usual.clamp(*SILENCE.start(), *SILENCE.end());
        let waits = Waits {
            silence,
            give_up: self.clock.elapsed().saturating_add(silence * READ_SILENCES),
        };
        let read = |job| self.read_job(job, waits, counters);
        let read = stream::iter(jobs(wanted))
            .map(read)
            .buffer_unordered(READERS_EACH);
        read.map(stream::iter).flatten().collect().await
    }

    async fn read_job(&self, job: Vec<Wanted>, waits: Waits, counters: &Counters) -> Vec<(Wanted, ReadCell)> {
        let (cells, mut found) = (job.len(), Vec::new());
        let Some(turn) = self.pulse.turn(self.clock.elapsed()) else {
            counters.not_read(NotRead::Resting, cells);
            return found;
        };
        let end = self.read_with(job, waits, &mut found).await;
        let why = match &end {
            End::Busy => NotRead::Busy,
            End::Came | End::Failed { .. } => NotRead::Late,
        };
        counters.not_read(why, cells - found.len());
        if let End::Failed { since, why } = end {
            counters.read_failures.add(1);
            self.failed(&turn, since, &why);
        }
        found
    }

    async fn read_with(&self, job: Vec<Wanted>, waits: Waits, found: &mut Vec<(Wanted, ReadCell)>) -> End {
        let since = self.clock.elapsed();
        let wait = waits.left(since);
        if wait.is_zero() {
            return End::Came;
        }
        let permit = match self.clock.timeout(wait, self.reader()).await {
            Ok(permit) => permit,
            // Readers that are all stuck are nothing else than a disk that is silent.
            Err(_) if wait == waits.silence && self.pulse.last_answer() < since => {
                let why = format!("none of {READERS} reads got anything for {wait:?}");
                return End::Failed { since, why };
            }
            Err(_) => return End::Busy,
        };
        let (send, cells) = mpsc::channel(job.len().max(1));
        let work = self.disk.run(move |_| {
            let _permit = permit;
            for wanted in job {
                // Nobody waits any more.
                if send.is_closed() {
                    break;
                }
                let read = read_record(&wanted.place);
                if send.try_send((wanted, read)).is_err() {
                    break;
                }
            }
            Ok::<_, DiskError>(())
        });
        let collected = std::pin::pin!(self.collect(cells, waits, found));
        let work = std::pin::pin!(work);
        match select(collected, work).await {
            // What does not come is left to itself.
            Either::Left((end, _)) => end,
            Either::Right((Ok(()), collected)) => collected.await,
            Either::Right((Err(e), _)) => End::Failed {
                since,
                why: e.to_string(),
            },
        }
    }

    async fn reader(&self) -> Option<OwnedSemaphorePermit> {
        // It is never closed.
        Arc::clone(&self.readers).acquire_owned().await.ok()
    }

    /// Takes cells as they come.
    async fn collect(
        &self,
        mut cells: mpsc::Receiver<(Wanted, ReadCell)>,
        waits: Waits,
        found: &mut Vec<(Wanted, ReadCell)>,
    ) -> End {
        let mut failure = None;
        loop {
            let since = self.clock.elapsed();
            let wait = waits.left(since);
            match self.clock.timeout(wait, cells.recv()).await {
                Ok(Some((wanted, read))) => {
                    match &read {
                        Ok(_) => self.answered(),
                        Err(e) => failure = Some((since, e.to_string())),
                    }
                    found.push((wanted, read));
                }
                Err(_) if wait == waits.silence => {
                    let why = format!("no answer for {wait:?}");
                    return End::Failed { since, why };
                }
                Ok(None) | Err(_) => {
                    return failure.map_or(End::Came, |(since, why)| End::Failed { since, why });
                }
            }
        }
    }

    fn answered(&self) {
        if self.pulse.answered(self.clock.elapsed()) {
            tracing::info!("the disk cache answers again");
        }
    }

    fn failed(&self, turn: &Turn<'_>, since: Duration, why: &str) {
        if let Some(rest) = self.pulse.failed(turn, since, self.clock.elapsed()) {
            tracing::warn!(
                why,
                "the disk cache does not answer: blocks are read from the bucket, and it is tried again in {rest:?}"
            );
        }
    }
}

/// Shares cells out over readers.
fn jobs(wanted: Vec<Wanted>) -> Vec<Vec<Wanted>> {
    let (mut jobs, mut bytes) = (Vec::<Vec<Wanted>>::new(), 0);
    for wanted in wanted {
        let more = u64::from(wanted.place.header.bytes);
        match jobs.last_mut().filter(|_| bytes + more <= JOB_BYTES) {
            Some(job) => {
                bytes += more;
                job.push(wanted);
            }
            None => {
                bytes = more;
                jobs.push(vec![wanted]);
            }
        }
    }
    jobs
}
