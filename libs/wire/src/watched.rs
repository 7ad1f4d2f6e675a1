//! Streams that are given up when their reader stops reading.
//!
//! A reader that neither goes away nor takes anything keeps alive whatever its answer needs, and nothing tells the
//! sender: while a connection is full, a body or a reply is not even polled. So a task beside each stream watches it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{Stream, StreamExt};
use koios_runtime::{ClockHandle, TaskGroup};
use parking_lot::Mutex;
use tokio::sync::oneshot;

/// How slowly a stream may be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReaderPace {
    /// Longest wait for the reader to take an item.
    pub patience: Duration,
    /// What an item that is taken earns back of the patience: who needs longer for each is given up in the end.
    pub per_item: Duration,
}

/// A stream that ends with an error once its reader was too slow. What it held is dropped at that moment, not only when
/// it is polled again.
#[derive(Debug)]
pub struct Watched<S, E> {
    shared: Arc<Mutex<Reading<S>>>,
    clock: ClockHandle,
    pace: ReaderPace,
    /// Told once, if the stream was given up.
    given_up: Option<E>,
    /// Its drop ends the watch.
    _alive: oneshot::Sender<()>,
}

#[derive(Debug)]
struct Reading<S> {
    /// `None` once it ended or was given up.
    stream: Option<S>,
    ended: bool,
    /// How much longer the reader may wait.
    patience: Duration,
    /// When the reader could have taken the next item; `None` while it waits for one.
    ready_since: Option<Duration>,
}

/// Watches over the reader of `stream`, which gets `given_up` when it is too slow.
pub fn watched<S, T, E>(
    stream: S,
    pace: ReaderPace,
    given_up: E,
    clock: ClockHandle,
    tasks: &TaskGroup,
) -> Watched<S, E>
where
    S: Stream<Item = Result<T, E>> + Send + Unpin + 'static,
{
    let shared = Arc::new(Mutex::new(Reading {
        stream: Some(stream),
        ended: false,
        patience: pace.patience,
        ready_since: Some(clock.elapsed()),
    }));
    let (alive, gone) = oneshot::channel();
    tasks.spawn_cancelled(
        "watch of a reader",
        watch(Arc::clone(&shared), pace, Arc::clone(&clock), gone),
    );
    Watched {
        shared,
        clock,
        pace,
        given_up: Some(given_up),
        _alive: alive,
    }
}

/// Drops the stream once its reader's patience is used up; ends with the stream.
async fn watch<S>(
    shared: Arc<Mutex<Reading<S>>>,
    pace: ReaderPace,
    clock: ClockHandle,
    mut gone: oneshot::Receiver<()>,
) {
    loop {
        // A stream that is being polled has a reader.
        let left = match shared.try_lock() {
            Some(reading) => reading.left(clock.elapsed()),
            None => Some(pace.patience),
        };
        let Some(left) = left else {
            // Out of the lock: what the stream holds may take long to drop.
            let given_up = shared.lock().stream.take();
            drop(given_up);
            return;
        };
        tokio::select! {
            biased;
            _ = &mut gone => return,
            () = clock.sleep(left) => {}
        }
    }
}

impl<S> Reading<S> {
    /// How much longer the reader may take; `None` when it is too late.
    fn left(&self, now: Duration) -> Option<Duration> {
        let Some(since) = self.ready_since else {
            return Some(self.patience.max(Duration::from_millis(1)));
        };
        let left = self.patience.saturating_sub(now.saturating_sub(since));
        (!left.is_zero()).then_some(left)
    }

    /// The reader asks for the next item.
    fn asked(&mut self, now: Duration, pace: ReaderPace) {
        if let Some(since) = self.ready_since.take() {
            let left = self.patience.saturating_sub(now.saturating_sub(since));
            self.patience = left.saturating_add(pace.per_item).min(pace.patience);
        }
    }
}

impl<S, T, E> Stream for Watched<S, E>
where
    S: Stream<Item = Result<T, E>> + Unpin,
    E: Unpin,
{
    type Item = Result<T, E>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let mut reading = this.shared.lock();
        let reading = &mut *reading;
        let Some(stream) = &mut reading.stream else {
            let error = this.given_up.take().filter(|_| !reading.ended);
            return Poll::Ready(error.map(Err));
        };
        let polled = stream.poll_next_unpin(cx);
        reading.asked(this.clock.elapsed(), this.pace);
        match polled {
            Poll::Ready(Some(item)) => {
                reading.ready_since = Some(this.clock.elapsed());
                Poll::Ready(Some(item))
            }
            Poll::Ready(None) => {
                reading.stream = None;
                reading.ended = true;
                Poll::Ready(None)
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use koios_runtime::{CancellationToken, TokioClock};

    use super::*;

    const PACE: ReaderPace = ReaderPace {
        patience: Duration::from_secs(10),
        per_item: Duration::from_secs(1),
    };

    struct World {
        clock: ClockHandle,
        tasks: TaskGroup,
        held: Arc<()>,
    }

    impl World {
        fn new() -> Self {
            Self {
                clock: Arc::new(TokioClock::starting_at(0)),
                tasks: TaskGroup::new(CancellationToken::new()),
                held: Arc::default(),
            }
        }

        /// Numbers without end that hold something.
        fn numbers(&self) -> Watched<impl Stream<Item = Result<u32, &'static str>> + use<>, &'static str> {
            let held = Arc::clone(&self.held);
            let numbers = stream::iter(0..).map(move |n| {
                let _held = &held;
                Ok(n)
            });
            watched(numbers, PACE, "too slow", Arc::clone(&self.clock), &self.tasks)
        }

        fn is_held(&self) -> bool {
            Arc::strong_count(&self.held) > 1
        }
    }

    #[tokio::test(start_paused = true)]
    async fn i6_a_reader_that_stops_holds_nothing_and_hears_why() {
        let world = World::new();
        for taken in [0, 1, 1000] {
            let mut numbers = world.numbers();
            for n in 0..taken {
                assert_eq!(numbers.next().await, Some(Ok(n)));
            }
            world.clock.sleep(Duration::from_millis(9_900)).await;
            assert!(world.is_held());
            world.clock.sleep(Duration::from_millis(200)).await;
            assert!(!world.is_held(), "after {taken} items");
            assert_eq!(numbers.next().await, Some(Err("too slow")));
            assert_eq!(numbers.next().await, None);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_crawls_is_given_up_and_a_steady_one_never() {
        let world = World::new();
        let mut steady = world.numbers();
        for n in 0..1000 {
            assert_eq!(steady.next().await, Some(Ok(n)));
            world.clock.sleep(PACE.per_item).await;
        }
        drop(steady);
        let mut crawling = world.numbers();
        let mut taken = 0;
        while let Some(Ok(_)) = crawling.next().await {
            taken += 1;
            world.clock.sleep(PACE.per_item * 3).await;
        }
        assert!((4..6).contains(&taken), "{taken} items, each two seconds late");
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_for_the_source_is_not_the_readers_fault() {
        let world = World::new();
        let clock = Arc::clone(&world.clock);
        let slow = stream::iter([Ok::<_, &str>(1), Ok(2)]).then(move |n| {
            let waited = clock.sleep(PACE.patience * 7);
            async move {
                waited.await;
                n
            }
        });
        let slow = watched(
            slow.boxed(),
            PACE,
            "too slow",
            Arc::clone(&world.clock),
            &world.tasks,
        );
        assert_eq!(slow.collect::<Vec<_>>().await, [Ok(1), Ok(2)]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_watch_ends_with_the_stream() {
        let world = World::new();
        drop(world.numbers());
        // Every watch shares the clock.
        let mut turns = 0;
        while Arc::strong_count(&world.clock) > 1 {
            turns += 1;
            assert!(turns < 100, "still watching");
            tokio::task::yield_now().await;
        }
    }
}
