//! Streamed replies: bounded messages, for readers who keep reading.

use std::iter::Peekable;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{BoxStream, Stream, StreamExt};
use koios_runtime::{CancellationToken, ClockHandle, TaskGroup, TokioClock};
use tonic::Status;

use super::MESSAGE_BYTES_MAX;
use super::convert::{series_to_pb, status_from_error};
use crate::pb::v1;
use crate::{ReaderPace, SeriesRuns, ServiceError, ServiceErrorCode, watched};

/// A message ends before it would be longer than this, so that neither side holds much at once; a single series may be.
const REPLY_BYTES: usize = 4 << 20;
/// Longest framing of one series in a message: a tag and a length.
const FRAMING_BYTES: usize = 16;

/// Longer than any query runs: a quorum read leaves spare streams unread until it knows that it does not need them.
const PACE: ReaderPace = ReaderPace {
    patience: Duration::from_secs(600),
    per_item: Duration::from_secs(600),
};

/// Watches over the readers of one service's streams.
#[derive(Clone, Debug)]
pub(super) struct Readers {
    clock: ClockHandle,
    tasks: TaskGroup,
}

impl Readers {
    pub(super) fn new() -> Self {
        Self {
            // Only intervals are measured; tokio's time is simulated wherever clocks are.
            clock: Arc::new(TokioClock::starting_at(0)),
            tasks: TaskGroup::new(CancellationToken::new()),
        }
    }

    /// The same stream, given up when its reader stops reading.
    pub(super) fn watch<T: Send + 'static>(
        &self,
        replies: impl Stream<Item = Result<T, Status>> + Send + 'static,
    ) -> BoxStream<'static, Result<T, Status>> {
        let message = format!("the reader took nothing for {:?}: given up", PACE.patience);
        let given_up = ServiceError::new(ServiceErrorCode::DeadlineExceeded, message);
        let clock = Arc::clone(&self.clock);
        watched(
            replies.boxed(),
            PACE,
            status_from_error(&given_up),
            clock,
            &self.tasks,
        )
        .boxed()
    }
}

/// Cuts series into messages.
pub(super) fn runs(series: Vec<SeriesRuns>) -> impl Iterator<Item = Result<Vec<v1::Series>, Status>> {
    Runs {
        series: series.into_iter().peekable(),
    }
}

struct Runs {
    series: Peekable<std::vec::IntoIter<SeriesRuns>>,
}

impl Iterator for Runs {
    type Item = Result<Vec<v1::Series>, Status>;

    fn next(&mut self) -> Option<Self::Item> {
        let first = self.series.next()?;
        if wire_bytes(&first) > MESSAGE_BYTES_MAX {
            return Some(Err(too_long(&first)));
        }
        let mut bytes = wire_bytes(&first);
        let mut run = Vec::new();
        if let Err(e) = push(&mut run, first) {
            return Some(Err(e));
        }
        while let Some(next) = self.series.next_if(|s| bytes + wire_bytes(s) <= REPLY_BYTES) {
            bytes += wire_bytes(&next);
            if let Err(e) = push(&mut run, next) {
                return Some(Err(e));
            }
        }
        Some(Ok(run))
    }
}

fn push(run: &mut Vec<v1::Series>, series: SeriesRuns) -> Result<(), Status> {
    run.push(series_to_pb(series).map_err(|e| status_from_error(&e))?);
    Ok(())
}

/// What a series takes in a message, or a little more.
fn wire_bytes(series: &SeriesRuns) -> usize {
    let chunks = series.runs.iter().map(|r| r.bytes() + FRAMING_BYTES);
    series.labels.packed().len() + 2 * FRAMING_BYTES + chunks.sum::<usize>()
}

fn too_long(series: &SeriesRuns) -> Status {
    let message = format!(
        "series {} has {} bytes in this time range, one message may have {MESSAGE_BYTES_MAX}: ask for a shorter range",
        series.labels,
        wire_bytes(series)
    );
    status_from_error(&ServiceError::new(ServiceErrorCode::ResourceExhausted, message))
}

#[cfg(test)]
mod tests {
    use koios_model::Labels;
    use prost::Message;

    use super::super::convert::series_to_pb;
    use super::super::test_runs::runs_of;
    use super::*;

    fn series(i: usize, bytes: usize) -> SeriesRuns {
        SeriesRuns {
            labels: Labels::from_pairs([("i", i.to_string())]),
            runs: runs_of(bytes),
        }
    }

    #[test]
    fn i12_messages_are_bounded_and_lose_nothing() {
        let sizes = [1, 1 << 20, 3 << 20, 9 << 20, 10, 10, 2 << 20, 2 << 20, 2 << 20];
        let all: Vec<_> = sizes.iter().enumerate().map(|(i, b)| series(i, *b)).collect();
        let mut runs: Vec<_> = runs(all.clone()).map(|run| run.unwrap()).collect();
        for run in &runs {
            let reply = v1::ReadReply {
                series: run.clone(),
                end: None,
            };
            assert!(reply.encoded_len() <= REPLY_BYTES || run.len() == 1);
        }
        assert_eq!(runs.iter().map(Vec::len).collect::<Vec<_>>(), [2, 1, 1, 3, 1, 1]);
        let sent: Vec<_> = runs.drain(..).flatten().collect();
        assert_eq!(
            sent,
            all.into_iter()
                .map(|s| series_to_pb(s).unwrap())
                .collect::<Vec<_>>()
        );
    }

    #[test]
    fn i13_a_series_that_no_message_can_hold_is_named() {
        let results: Vec<_> = runs(vec![series(0, 10), series(7, MESSAGE_BYTES_MAX)]).collect();
        assert_eq!(results.len(), 2);
        let status = results[1].as_ref().unwrap_err();
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
        assert!(status.message().starts_with(r#"series {i="7"} has "#), "{status}");
    }
}
