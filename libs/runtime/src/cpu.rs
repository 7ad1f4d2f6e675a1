//! Heavy computation, off the async threads; inline in simulation.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::FutureExt;
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;

use crate::pace::PaceHandle;

type Job = Box<dyn FnOnce() + Send>;

/// The computation panicked: a bug.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("computation panicked: {0}")]
pub struct CpuPanicked(pub String);

impl CpuPanicked {
    #[expect(clippy::needless_pass_by_value, reason = "what catching a panic gives")]
    fn of(payload: Box<dyn Any + Send>) -> Self {
        Self(panic_text(payload.as_ref()))
    }

    fn ended() -> Self {
        Self("the worker thread ended".to_owned())
    }
}

/// Runs closures on a fixed set of threads, or on the calling one in simulation. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Cpu {
    workers: Workers,
    /// How many threads [`Cpu::each`] may still start, over all callers.
    helpers: Arc<AtomicUsize>,
}

impl Cpu {
    /// Runs every closure at once on the calling thread.
    pub fn inline() -> Self {
        Self {
            workers: Workers::Inline,
            helpers: Arc::default(),
        }
    }

    /// Runs every closure on the calling thread, when and as late as `pace` says: for simulation.
    pub fn paced(pace: PaceHandle) -> Self {
        Self {
            workers: Workers::Paced(pace),
            helpers: Arc::default(),
        }
    }

    /// Runs closures on `count` threads, which end with the last handle.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn threaded(count: usize) -> std::io::Result<Self> {
        Ok(Self {
            workers: Workers::Threads(Threads::start("koios-cpu", count)?),
            helpers: Arc::new(AtomicUsize::new(count.saturating_sub(1))),
        })
    }

    /// A pool of its own of `count` threads, for long work that must not keep that of others waiting; without threads
    /// where this one has none.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn separate(&self, name: &str, count: usize) -> std::io::Result<Self> {
        Ok(Self {
            workers: match &self.workers {
                Workers::Threads(_) => Workers::Threads(Threads::start(name, count)?),
                without => without.clone(),
            },
            helpers: Arc::clone(&self.helpers),
        })
    }

    /// How many closures may run at once.
    pub fn parallelism(&self) -> usize {
        match &self.workers {
            Workers::Threads(threads) => threads.count,
            Workers::Inline | Workers::Paced(_) => 1,
        }
    }

    /// Runs `job` and waits for it without blocking the async thread. The job runs to its end even when the future is
    /// dropped.
    ///
    /// # Errors
    /// [`CpuPanicked`] when it panics.
    pub async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, CpuPanicked> {
        self.workers.run(job).await
    }
}

impl Cpu {
    /// What a task that has a thread of its own ([`Cpu::host`]) computes with: that thread. Without threads as before.
    #[must_use]
    pub fn hosted(&self) -> Self {
        Self {
            workers: match &self.workers {
                Workers::Threads(_) => Workers::Inline,
                without => without.clone(),
            },
            helpers: Arc::clone(&self.helpers),
        }
    }

    /// Drives `task` to its end on a thread of its own, where it may compute between its awaits without keeping others
    /// waiting and without a hand-over for each part; on the calling task where this one has no threads. On a thread the
    /// task runs to its end even when the future is dropped.
    ///
    /// # Errors
    /// [`CpuPanicked`] when it panics, or no thread can be started.
    pub async fn host<T: Send + 'static>(
        &self,
        name: &str,
        task: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, CpuPanicked> {
        let task = AssertUnwindSafe(task).catch_unwind();
        let Workers::Threads(_) = self.workers else {
            return task.await.map_err(CpuPanicked::of);
        };
        let (tx, rx) = tokio::sync::oneshot::channel();
        let async_threads = tokio::runtime::Handle::current();
        let drive = move || {
            // The receiver may have been dropped: then nobody wants the result.
            let _ = tx.send(async_threads.block_on(task).map_err(CpuPanicked::of));
        };
        let started = std::thread::Builder::new().name(name.to_owned()).spawn(drive);
        if let Err(e) = started {
            return Err(CpuPanicked(format!("cannot start a thread for it: {e}")));
        }
        rx.await.unwrap_or_else(|_| Err(CpuPanicked::ended()))
    }
}

impl Cpu {
    /// Runs `part(0)` to `part(parts - 1)` on the calling thread and on as many others as are free: all callers together
    /// get one less than this pool has, so that one has all cores and many have one each. Inline one after the other. The
    /// others are started for this: it pays from about a millisecond of work on.
    ///
    /// # Panics
    /// When a part panics.
    pub fn each(&self, parts: usize, part: &(dyn Fn(usize) + Sync)) {
        let next = AtomicUsize::new(0);
        let work = || {
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if i >= parts {
                    return;
                }
                part(i);
            }
        };
        std::thread::scope(|scope| {
            for i in 1..self.parallelism().min(parts) {
                let Some(helper) = Helper::take(&self.helpers) else {
                    break;
                };
                let named = std::thread::Builder::new().name(format!("koios-each-{i}"));
                let started = named.spawn_scoped(scope, move || {
                    let _helper = helper;
                    work();
                });
                if let Err(e) = started {
                    tracing::warn!(error = %e, "no thread for a part of a computation: going on with fewer");
                    break;
                }
            }
            work();
        });
    }
}

/// The right to one thread of [`Cpu::each`].
struct Helper(Arc<AtomicUsize>);

impl Helper {
    fn take(left: &Arc<AtomicUsize>) -> Option<Self> {
        let one_less = |n: usize| n.checked_sub(1);
        left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less)
            .is_ok()
            .then(|| Self(Arc::clone(left)))
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Where submitted work runs.
#[derive(Clone, Debug)]
pub(crate) enum Workers {
    /// At once, on the calling thread.
    Inline,
    Threads(Arc<Threads>),
    /// On the calling thread, later.
    Paced(PaceHandle),
}

impl Workers {
    /// Runs `job`; it runs to its end even when the future is dropped.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, CpuPanicked> {
        let (tx, rx) = tokio::sync::oneshot::channel();
        let work = move |job| {
            // The receiver may have been dropped: then nobody wants the result.
            let _ = tx.send(catch(job));
        };
        match self {
            Self::Inline => return catch(job),
            Self::Threads(threads) => threads.submit(Box::new(move || work(job))),
            Self::Paced(pace) => run_later(pace, move || work(job)).await,
        }
        rx.await.unwrap_or_else(|_| Err(CpuPanicked::ended()))
    }
}

/// Runs `work` between two pauses, in a task of its own: who submitted it may give up, as with threads.
#[expect(
    clippy::disallowed_methods,
    reason = "stands in for a thread, which ends with its work and belongs to no task group either"
)]
async fn run_later(pace: &PaceHandle, work: impl FnOnce() + Send + 'static) {
    let working = Arc::clone(pace);
    let done = tokio::spawn(async move {
        working.pause().await;
        work();
        working.pause().await;
    });
    // It cannot panic, for the job is caught; cancelled it is only when the runtime ends.
    let _ = done.await;
}

fn catch<T>(job: impl FnOnce() -> T) -> Result<T, CpuPanicked> {
    std::panic::catch_unwind(AssertUnwindSafe(job)).map_err(CpuPanicked::of)
}

pub(crate) fn panic_text(payload: &(dyn Any + Send)) -> String {
    payload
        .downcast_ref::<&str>()
        .map(|s| (*s).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "unknown panic".to_owned())
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    closed: bool,
}

/// A fixed set of worker threads over one queue.
pub(crate) struct Threads {
    queue: Arc<(Mutex<Queue>, Condvar)>,
    count: usize,
}

impl std::fmt::Debug for Threads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Threads({})", self.count)
    }
}

impl Threads {
    pub(crate) fn start(name: &str, count: usize) -> std::io::Result<Arc<Self>> {
        let queue = Arc::new((Mutex::new(Queue::default()), Condvar::new()));
        for i in 0..count {
            let queue = Arc::clone(&queue);
            std::thread::Builder::new()
                .name(format!("{name}-{i}"))
                .spawn(move || work(&queue))?;
        }
        Ok(Arc::new(Self { queue, count }))
    }

    pub(crate) fn submit(&self, job: Job) {
        self.queue.0.lock().jobs.push_back(job);
        self.queue.1.notify_one();
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.queue.0.lock().closed = true;
        self.queue.1.notify_all();
    }
}

fn work(queue: &(Mutex<Queue>, Condvar)) {
    loop {
        let mut q = queue.0.lock();
        let job = loop {
            if let Some(job) = q.jobs.pop_front() {
                break job;
            }
            if q.closed {
                return;
            }
            queue.1.wait(&mut q);
        };
        drop(q);
        job();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Pace;

    #[tokio::test]
    async fn a_separate_pool_goes_on_while_the_other_is_busy() {
        let busy = Cpu::threaded(1).unwrap();
        let separate = busy.separate("separate", 3).unwrap();
        let (release, held) = std::sync::mpsc::channel::<()>();
        let waiting = busy.run(move || held.recv());
        let freeing = async {
            assert_eq!(separate.run(|| 1).await, Ok(1));
            drop(release);
        };
        assert!(tokio::join!(waiting, freeing).0.unwrap().is_err());
        assert_eq!(separate.parallelism(), 3);
        assert_eq!(Cpu::inline().separate("inline", 3).unwrap().parallelism(), 1);
    }

    #[test]
    fn each_part_runs_once() {
        for cpu in [Cpu::inline(), Cpu::threaded(3).unwrap()] {
            for parts in [0, 1, 2, 100] {
                let ran: Vec<_> = (0..parts).map(|_| AtomicUsize::new(0)).collect();
                cpu.each(parts, &|i| {
                    ran[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(ran.iter().all(|n| n.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn i6_all_computations_together_use_the_cores_and_no_more() {
        let cpu = Cpu::threaded(4).unwrap();
        let (running, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let part = |_| {
            most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            std::thread::sleep(std::time::Duration::from_millis(2));
            running.fetch_sub(1, Ordering::SeqCst);
        };
        std::thread::scope(|scope| {
            for _ in 0..5 {
                scope.spawn(|| cpu.each(20, &part));
            }
        });
        // Five callers and three helpers.
        assert!(most.load(Ordering::SeqCst) <= 8, "{most:?}");
        assert_eq!(cpu.helpers.load(Ordering::SeqCst), 3);
    }

    #[tokio::test]
    async fn a_hosted_task_computes_on_a_thread_of_its_own() {
        let cpu = Cpu::threaded(1).unwrap();
        let hosted = cpu.hosted();
        let (ask, asked) = tokio::sync::oneshot::channel();
        let task = async move {
            // Woken from another thread.
            let n: u32 = asked.await.unwrap();
            let name = || std::thread::current().name().map(str::to_owned);
            (n, name(), hosted.run(name).await.unwrap())
        };
        let done = cpu.host("koios-hosted", task);
        let asking = async {
            tokio::task::yield_now().await;
            ask.send(7).unwrap();
        };
        let (n, here, computed) = tokio::join!(done, asking).0.unwrap();
        assert_eq!((n, here.as_deref()), (7, Some("koios-hosted")));
        assert_eq!(here, computed);
    }

    #[tokio::test]
    async fn a_hosted_task_ends_though_nobody_waits_for_it() {
        let cpu = Cpu::threaded(1).unwrap();
        let (ended, end) = tokio::sync::oneshot::channel();
        let mut hosting = Box::pin(cpu.host("koios-hosted", async move {
            tokio::task::yield_now().await;
            ended.send(()).unwrap();
        }));
        let _begun = futures::poll!(&mut hosting);
        drop(hosting);
        end.await.unwrap();
    }

    #[tokio::test]
    async fn hosting_reports_panics_and_needs_no_threads() {
        for cpu in [
            Cpu::inline(),
            Cpu::paced(Arc::new(Yields)),
            Cpu::threaded(2).unwrap(),
        ] {
            let hosted = cpu.hosted();
            let task = async move { hosted.run(|| 1 + 1).await };
            assert_eq!(cpu.host("hosted", task).await, Ok(Ok(2)));
            let failed: Result<(), _> = cpu.host("hosted", async { panic!("boom") }).await;
            assert_eq!(failed, Err(CpuPanicked("boom".to_owned())));
        }
    }

    #[tokio::test]
    async fn answers_and_reports_panics() {
        for cpu in [
            Cpu::inline(),
            Cpu::paced(Arc::new(Yields)),
            Cpu::threaded(2).unwrap(),
        ] {
            assert_eq!(cpu.run(|| 1 + 1).await, Ok(2));
            let failed: Result<(), _> = cpu.run(|| panic!("boom")).await;
            assert_eq!(failed, Err(CpuPanicked("boom".to_owned())));
            assert_eq!(cpu.run(|| 3).await, Ok(3));
        }
    }

    /// One turn of everybody else.
    #[derive(Debug)]
    struct Yields;

    impl Pace for Yields {
        fn pause(&self) -> futures::future::BoxFuture<'static, ()> {
            Box::pin(tokio::task::yield_now())
        }
    }

    #[tokio::test]
    async fn paced_work_is_done_although_its_submitter_gave_up() {
        let cpu = Cpu::paced(Arc::new(Yields));
        let ran = Arc::new(AtomicUsize::new(0));
        let running = Arc::clone(&ran);
        let mut submitted = Box::pin(cpu.run(move || running.fetch_add(1, Ordering::Relaxed)));
        assert!(futures::poll!(submitted.as_mut()).is_pending());
        drop(submitted);
        assert_eq!(ran.load(Ordering::Relaxed), 0);
        for _ in 0..3 {
            tokio::task::yield_now().await;
        }
        assert_eq!(ran.load(Ordering::Relaxed), 1);
    }
}
