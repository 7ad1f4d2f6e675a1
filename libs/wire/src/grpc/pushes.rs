//! Pushes to one member over one stream that stays open: a call for each would cost both processes more than many a batch does.
//!
//! **Order.** Batches go in the order they came in; answers come in any. A batch is acknowledged by its own answer alone.
//! **Given up.** A batch whose caller went away is not sent any more, or its answer is ignored; others do not notice.
//! **Failure.** When the stream ends, for whatever reason, each batch without an answer fails for that reason, and the next one
//! opens another stream. A member of a version that does not know such streams gets calls.
//! **Bounds.** Batches are held by their callers, who account for them; what is sent and not answered is bounded here.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use koios_runtime::{CancellationToken, ClockHandle, TaskGroup};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tonic::transport::Channel;

use super::PeerChannel;
use super::client::ingester;
use super::convert::{ack_from_pb, error_from_status, refusal_from_pb};
use crate::pb::v1;
use crate::pb::v1::push_many_reply::Answer;
use crate::{PushAck, ServiceError, ServiceErrorCode};

/// Batches of a stream that are sent and not answered, at most: as many as there could be calls at once. A member takes them all,
/// so that the stream itself never stands still.
pub(super) const UNDER_WAY_MAX: usize = 256;
/// Larger batches have calls of their own, lest others wait behind them.
const STREAMED_BYTES_MAX: usize = 128 << 10;
/// How long a member that did not know streams of pushes is not asked again: it may be replaced by a later version.
const UNKNOWN_FOR: Duration = Duration::from_secs(60);

/// The way of batches to one member. Cheap to clone; clones share the stream.
#[derive(Clone, Debug)]
pub(super) struct Pushes {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    peer: PeerChannel,
    tasks: TaskGroup,
    way: Mutex<Way>,
}

#[derive(Debug, Default)]
enum Way {
    #[default]
    Closed,
    Open(Arc<PushStream>),
    /// The member does not know streams of pushes; it is asked again then, by the monotonic clock.
    Unknown {
        until: Duration,
    },
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Way::Open(stream) = self.way.get_mut() {
            stream.retire();
        }
    }
}

impl Pushes {
    pub(super) fn new(peer: PeerChannel) -> Self {
        Self {
            shared: Arc::new(Shared {
                peer,
                tasks: TaskGroup::new(CancellationToken::new()),
                way: Mutex::default(),
            }),
        }
    }

    /// Pushes an encoded batch within the deadline of a call; `None` when it needs a call of its own.
    pub(super) async fn push(&self, encoded: &Bytes) -> Option<Result<PushAck, ServiceError>> {
        if encoded.len() > STREAMED_BYTES_MAX {
            return None;
        }
        let mut sent = match self.send(encoded) {
            Ok(sent) => sent?,
            Err(error) => return Some(Err(error)),
        };
        let peer = &self.shared.peer;
        let answer = peer.clock().timeout(peer.settings().deadline, &mut sent.outcome);
        match answer.await {
            Ok(Ok(Outcome::Answered(answer))) => Some(answer),
            Ok(Ok(Outcome::Ended(e))) if e.code == ServiceErrorCode::Unimplemented => {
                self.note_unknown(&sent.stream);
                None
            }
            Ok(Ok(Outcome::Ended(error))) => Some(Err(error)),
            // Not before the stream has ended.
            Ok(Err(_)) => Some(Err(ended(peer.addr()))),
            Err(_) => {
                let error = peer.late();
                peer.drop_channel_after(&error, sent.stream.generation);
                sent.stream.retire();
                Some(Err(error))
            }
        }
    }

    /// Hands a batch to the stream, or to a new one when there is none that takes it.
    fn send(&self, encoded: &Bytes) -> Result<Option<Sent>, ServiceError> {
        let shared = &self.shared;
        let mut way = shared.way.lock();
        match &*way {
            Way::Unknown { until } if shared.peer.clock().elapsed() < *until => return Ok(None),
            Way::Open(stream) if stream.is_stuck(shared.peer.settings().deadline) => {
                // Those who would have noticed gave up before.
                shared
                    .peer
                    .drop_channel_after(&shared.peer.late(), stream.generation);
                stream.retire();
            }
            Way::Open(stream) => {
                if let Some(sent) = stream.send(encoded) {
                    return Ok(Some(sent));
                }
            }
            Way::Closed | Way::Unknown { .. } => {}
        }
        let (generation, channel) = shared.peer.channel()?;
        let clock = Arc::clone(shared.peer.clock());
        let stream = Arc::new(PushStream::new(generation, clock));
        let sent = stream.send(encoded);
        let exchange = run(Arc::clone(&stream), shared.peer.clone(), channel);
        shared.tasks.spawn("pushes", exchange);
        *way = Way::Open(stream);
        Ok(sent)
    }

    /// The member did not know what `stream` was.
    fn note_unknown(&self, stream: &Arc<PushStream>) {
        let mut way = self.shared.way.lock();
        if matches!(&*way, Way::Open(open) if Arc::ptr_eq(open, stream)) {
            let until = self.shared.peer.clock().elapsed().saturating_add(UNKNOWN_FOR);
            *way = Way::Unknown { until };
        }
    }
}

fn ended(addr: &str) -> ServiceError {
    ServiceError::unavailable(format!("{addr} ended the stream of pushes before it answered"))
}

/// What becomes of a batch on a stream.
#[derive(Debug)]
enum Outcome {
    Answered(Result<PushAck, ServiceError>),
    /// The stream ended before.
    Ended(ServiceError),
}

/// A batch on a stream; dropped, it is given up.
#[derive(Debug)]
struct Sent {
    stream: Arc<PushStream>,
    number: u64,
    outcome: oneshot::Receiver<Outcome>,
}

impl Drop for Sent {
    fn drop(&mut self) {
        self.stream.forget(self.number);
    }
}

/// One stream.
#[derive(Debug)]
struct PushStream {
    /// That of its connection.
    generation: u64,
    clock: ClockHandle,
    state: Mutex<StreamState>,
    /// Nobody waits for an answer, and nobody will.
    over: CancellationToken,
}

#[derive(Debug, Default)]
struct StreamState {
    /// By number: ascending as they came.
    waiting: BTreeMap<u64, Waiting>,
    /// The number of the next one.
    next: u64,
    /// Those before are sent.
    unsent_from: u64,
    /// How many are sent and not answered, given up or not.
    under_way: usize,
    /// Since when answers are due, of which none came; none while none is due.
    silent_since: Option<Duration>,
    /// Takes no more.
    retired: bool,
    /// Wakes who sends.
    sender: Option<Waker>,
}

#[derive(Debug)]
struct Waiting {
    /// Until it is sent.
    batch: Option<Bytes>,
    outcome: oneshot::Sender<Outcome>,
}

impl StreamState {
    fn is_over(&self) -> bool {
        self.retired && self.waiting.is_empty()
    }

    /// The next batch to send; of those that were given up none is.
    fn next_unsent(&mut self, now: Duration) -> Option<v1::PushManyRequest> {
        if self.under_way >= UNDER_WAY_MAX {
            return None;
        }
        let unsent = self.waiting.range_mut(self.unsent_from..).next();
        let (number, batch) = unsent.and_then(|(&number, waiting)| Some((number, waiting.batch.take()?)))?;
        self.unsent_from = number.saturating_add(1);
        self.under_way += 1;
        self.silent_since.get_or_insert(now);
        Some(v1::PushManyRequest { number, batch })
    }
}

impl PushStream {
    fn new(generation: u64, clock: ClockHandle) -> Self {
        Self {
            generation,
            clock,
            state: Mutex::default(),
            over: CancellationToken::new(),
        }
    }

    /// Whether answers are due and none came for so long.
    fn is_stuck(&self, limit: Duration) -> bool {
        let since = self.state.lock().silent_since;
        since.is_some_and(|since| self.clock.elapsed().saturating_sub(since) >= limit)
    }

    /// Queues a batch; `None` once the stream takes no more.
    fn send(self: &Arc<Self>, encoded: &Bytes) -> Option<Sent> {
        let mut state = self.state.lock();
        if state.retired {
            return None;
        }
        let number = state.next;
        state.next += 1;
        let (sender, outcome) = oneshot::channel();
        let waiting = Waiting {
            batch: Some(encoded.clone()),
            outcome: sender,
        };
        state.waiting.insert(number, waiting);
        let waker = state.sender.take();
        drop(state);
        wake(waker);
        Some(Sent {
            stream: Arc::clone(self),
            number,
            outcome,
        })
    }

    /// Nobody waits for this answer any more.
    fn forget(&self, number: u64) {
        let mut state = self.state.lock();
        state.waiting.remove(&number);
        self.end_if_over(state);
    }

    /// Takes no more; ends when all are answered or given up.
    fn retire(&self) {
        let mut state = self.state.lock();
        state.retired = true;
        self.end_if_over(state);
    }

    fn end_if_over(&self, mut state: parking_lot::MutexGuard<'_, StreamState>) {
        if state.is_over() {
            let waker = state.sender.take();
            drop(state);
            self.over.cancel();
            wake(waker);
        }
    }

    /// Passes an answer on. One to what was not sent is no answer.
    fn answer(&self, number: u64, answer: Result<PushAck, ServiceError>) {
        let mut state = self.state.lock();
        if number >= state.unsent_from {
            return;
        }
        let held_up = state.under_way >= UNDER_WAY_MAX;
        state.under_way = state.under_way.saturating_sub(1);
        state.silent_since = (state.under_way > 0).then(|| self.clock.elapsed());
        let waker = state.sender.take_if(|_| held_up);
        let waiting = state.waiting.remove(&number);
        self.end_if_over(state);
        wake(waker);
        if let Some(waiting) = waiting {
            // The caller may have gone.
            let _ = waiting.outcome.send(Outcome::Answered(answer));
        }
    }

    /// Tells all who wait why there will be no answers.
    fn fail(&self, error: &ServiceError) {
        let mut state = self.state.lock();
        state.retired = true;
        let waiting = std::mem::take(&mut state.waiting);
        self.end_if_over(state);
        for waiting in waiting.into_values() {
            // The caller may have gone.
            let _ = waiting.outcome.send(Outcome::Ended(error.clone()));
        }
    }

    fn poll_send(&self, cx: &Context<'_>) -> Poll<Option<v1::PushManyRequest>> {
        let mut state = self.state.lock();
        if state.is_over() {
            return Poll::Ready(None);
        }
        let next = state.next_unsent(self.clock.elapsed());
        if next.is_none() {
            state.sender = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(next)
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// The batches of a stream as they are sent.
struct Outgoing(Arc<PushStream>);

impl Stream for Outgoing {
    type Item = v1::PushManyRequest;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_send(cx)
    }
}

/// A stream in use: whatever ends it, nobody waits in vain.
struct InUse {
    stream: Arc<PushStream>,
    peer: PeerChannel,
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.stream.fail(&ended(self.peer.addr()));
    }
}

/// Sends and passes answers on until the stream is over or fails.
async fn run(stream: Arc<PushStream>, peer: PeerChannel, channel: Channel) {
    let in_use = InUse { stream, peer };
    let InUse { stream, peer } = &in_use;
    let error = tokio::select! {
        biased;
        () = stream.over.cancelled() => return,
        error = exchange(stream, peer.addr(), channel) => error,
    };
    // Before anybody hears of it and comes again.
    peer.drop_channel_after(&error, stream.generation);
    stream.fail(&error);
}

/// Gives why it ended.
async fn exchange(stream: &Arc<PushStream>, addr: &str, channel: Channel) -> ServiceError {
    let outgoing = Outgoing(Arc::clone(stream));
    let mut answers = match ingester(channel).push_many(outgoing).await {
        Ok(answers) => answers.into_inner(),
        Err(status) => return error_from_status(&status, addr),
    };
    loop {
        match answers.message().await {
            Ok(Some(reply)) => stream.answer(reply.number, answer_from_pb(reply.answer, addr)),
            Ok(None) => return ended(addr),
            Err(status) => return error_from_status(&status, addr),
        }
    }
}

fn answer_from_pb(answer: Option<Answer>, addr: &str) -> Result<PushAck, ServiceError> {
    match answer {
        Some(Answer::Reply(reply)) => Ok(ack_from_pb(reply)),
        Some(Answer::Refusal(refusal)) => Err(refusal_from_pb(&refusal, addr)),
        None => {
            let message = format!("{addr} gave an answer of a newer version, which this one does not know");
            Err(ServiceError::unavailable(message))
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::task::noop_waker_ref;
    use koios_runtime::TokioClock;

    use super::*;

    fn stream() -> Arc<PushStream> {
        Arc::new(PushStream::new(1, Arc::new(TokioClock::starting_at(0))))
    }

    fn send(stream: &Arc<PushStream>, batch: &'static str) -> Sent {
        stream.send(&Bytes::from_static(batch.as_bytes())).unwrap()
    }

    /// What is sent now; none when it has to wait.
    fn sent(stream: &PushStream) -> Option<(u64, Bytes)> {
        match stream.poll_send(&Context::from_waker(noop_waker_ref())) {
            Poll::Ready(Some(request)) => Some((request.number, request.batch)),
            Poll::Ready(None) | Poll::Pending => None,
        }
    }

    fn series(outcome: &mut Sent) -> Option<u64> {
        match outcome.outcome.try_recv() {
            Ok(Outcome::Answered(answer)) => Some(answer.unwrap().partition_series),
            _ => None,
        }
    }

    fn ack(partition_series: u64) -> Result<PushAck, ServiceError> {
        Ok(PushAck {
            partition_series,
            ..PushAck::default()
        })
    }

    #[test]
    fn i1_each_batch_has_its_own_answer_whatever_the_order() {
        let stream = stream();
        let (mut a, mut b) = (send(&stream, "a"), send(&stream, "b"));
        assert_eq!(sent(&stream), Some((0, "a".into())));
        // Not sent yet: that cannot be its answer.
        stream.answer(1, ack(9));
        assert_eq!(sent(&stream), Some((1, "b".into())));
        assert_eq!((series(&mut a), series(&mut b)), (None, None));
        stream.answer(1, ack(2));
        assert_eq!((series(&mut a), series(&mut b)), (None, Some(2)));
        stream.answer(0, ack(1));
        assert_eq!(series(&mut a), Some(1));
    }

    #[test]
    fn what_is_given_up_is_not_sent_and_nobody_else_loses_anything() {
        let stream = stream();
        let (a, b, mut c) = (send(&stream, "a"), send(&stream, "b"), send(&stream, "c"));
        assert_eq!(sent(&stream), Some((0, "a".into())));
        drop(b);
        drop(a);
        assert_eq!(sent(&stream), Some((2, "c".into())));
        assert_eq!(sent(&stream), None);
        stream.answer(0, ack(1));
        stream.answer(2, ack(3));
        assert_eq!(series(&mut c), Some(3));
    }

    #[test]
    fn i12_no_more_are_under_way_than_a_member_takes() {
        let stream = stream();
        let mut all: Vec<_> = (0..=UNDER_WAY_MAX).map(|_| send(&stream, "x")).collect();
        while sent(&stream).is_some() {}
        assert_eq!(stream.state.lock().unsent_from, UNDER_WAY_MAX as u64);
        // Given up, it still is under way at the member.
        drop(all.remove(0));
        assert_eq!(sent(&stream), None);
        stream.answer(0, ack(1));
        assert_eq!(sent(&stream), Some((UNDER_WAY_MAX as u64, "x".into())));
    }

    #[test]
    fn who_sends_is_woken_by_a_batch_by_room_and_by_the_end_only() {
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let cx = Context::from_waker(&waker);
        let stream = stream();
        assert!(stream.poll_send(&cx).is_pending());
        let all: Vec<_> = (0..=UNDER_WAY_MAX).map(|_| send(&stream, "x")).collect();
        assert_eq!(woken.count(), 1);
        while stream.poll_send(&cx).is_ready() {}
        stream.answer(0, ack(0));
        assert_eq!(woken.count(), 2);
        assert!(stream.poll_send(&cx).is_ready() && stream.poll_send(&cx).is_pending());
        stream.answer(1, ack(0));
        assert_eq!(woken.count(), 3, "there was no room before");
        assert!(stream.poll_send(&cx).is_pending());
        stream.answer(2, ack(0));
        assert_eq!(woken.count(), 3, "there was room, and nothing to send");
        stream.retire();
        assert_eq!(woken.count(), 3);
        drop(all);
        assert_eq!(woken.count(), 4);
        assert!(matches!(stream.poll_send(&cx), Poll::Ready(None)));
    }

    #[test]
    fn i13_all_who_wait_are_told_why_a_stream_ended() {
        let stream = stream();
        let (mut a, mut b) = (send(&stream, "a"), send(&stream, "b"));
        assert!(sent(&stream).is_some());
        stream.fail(&ServiceError::unavailable("reset"));
        for waiting in [&mut a, &mut b] {
            let outcome = waiting.outcome.try_recv().unwrap();
            assert!(matches!(outcome, Outcome::Ended(e) if e.message == "reset"));
        }
        assert!(stream.send(&Bytes::new()).is_none());
        assert!(stream.over.is_cancelled());
    }

    #[test]
    fn a_retired_stream_goes_on_until_all_are_answered() {
        let stream = stream();
        let mut a = send(&stream, "a");
        stream.retire();
        assert!(stream.send(&Bytes::new()).is_none() && !stream.over.is_cancelled());
        assert!(sent(&stream).is_some());
        stream.answer(0, ack(1));
        assert_eq!(series(&mut a), Some(1));
        assert!(stream.over.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn i7_a_stream_that_owes_answers_for_long_is_stuck_whoever_waits() {
        const LIMIT: Duration = Duration::from_secs(10);
        let stream = stream();
        let wait = |seconds| tokio::time::advance(Duration::from_secs(seconds));
        let given_up = send(&stream, "a");
        wait(60).await;
        assert!(!stream.is_stuck(LIMIT), "it was not sent yet");
        assert!(sent(&stream).is_some());
        drop(given_up);
        wait(9).await;
        assert!(!stream.is_stuck(LIMIT));
        wait(1).await;
        assert!(stream.is_stuck(LIMIT));
        let _b = send(&stream, "b");
        assert!(sent(&stream).is_some());
        stream.answer(0, ack(1));
        assert!(!stream.is_stuck(LIMIT), "it goes on");
        wait(10).await;
        assert!(stream.is_stuck(LIMIT));
        stream.answer(1, ack(1));
        wait(60).await;
        assert!(!stream.is_stuck(LIMIT), "nothing is due");
    }

    #[derive(Debug, Default)]
    struct Woken(std::sync::atomic::AtomicUsize);

    impl Woken {
        fn count(&self) -> usize {
            self.0.load(std::sync::atomic::Ordering::Relaxed)
        }
    }

    impl std::task::Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }
}
