//! The member's side of a stream of pushes.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, FuturesUnordered};
use futures::{FutureExt as _, Stream};
use tonic::Status;

use super::convert::{ack_to_pb, refusal_to_pb};
use super::pushes::UNDER_WAY_MAX;
use crate::pb::v1;
use crate::pb::v1::push_many_reply::Answer;
use crate::{Batch, IngesterService, PushAck, ServiceError};

/// Decodes and pushes one batch.
pub(super) async fn push(service: &dyn IngesterService, batch: Bytes) -> Result<PushAck, ServiceError> {
    let batch = Batch::decode(batch).map_err(|e| ServiceError::invalid(format!("push: {e}")))?;
    service.push(Arc::new(batch)).await
}

/// The answers of one stream: each batch's as soon as there is one.
pub(super) struct PushAnswers {
    service: Arc<dyn IngesterService>,
    requests: BoxStream<'static, Result<v1::PushManyRequest, Status>>,
    /// How the requests ended.
    ended: Option<Result<(), Status>>,
    under_way: FuturesUnordered<BoxFuture<'static, v1::PushManyReply>>,
}

impl PushAnswers {
    pub(super) fn new(
        service: Arc<dyn IngesterService>,
        requests: BoxStream<'static, Result<v1::PushManyRequest, Status>>,
    ) -> Self {
        Self {
            service,
            requests,
            ended: None,
            under_way: FuturesUnordered::new(),
        }
    }

    /// Begins to push what has come, unless too many are under way.
    fn begin(&mut self, cx: &mut Context<'_>) {
        while self.ended.is_none() && self.under_way.len() < UNDER_WAY_MAX {
            match self.requests.as_mut().poll_next(cx) {
                Poll::Pending => return,
                Poll::Ready(None) => self.ended = Some(Ok(())),
                Poll::Ready(Some(Err(status))) => self.ended = Some(Err(status)),
                Poll::Ready(Some(Ok(request))) => {
                    let service = Arc::clone(&self.service);
                    self.under_way.push(answer(service, request).boxed());
                }
            }
        }
    }
}

impl Stream for PushAnswers {
    type Item = Result<v1::PushManyReply, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.begin(cx);
        match Pin::new(&mut self.under_way).poll_next(cx) {
            Poll::Ready(Some(answer)) => Poll::Ready(Some(Ok(answer))),
            Poll::Pending => Poll::Pending,
            // All that came is answered.
            Poll::Ready(None) => match &mut self.ended {
                None => Poll::Pending,
                Some(ended) => Poll::Ready(std::mem::replace(ended, Ok(())).err().map(Err)),
            },
        }
    }
}

/// Pushes one of the batches. A panic is its own, not of those beside it.
async fn answer(service: Arc<dyn IngesterService>, request: v1::PushManyRequest) -> v1::PushManyReply {
    let pushed = AssertUnwindSafe(push(&*service, request.batch)).catch_unwind();
    let pushed = pushed.await.unwrap_or_else(|_| {
        tracing::error!("a push panicked");
        Err(ServiceError::internal("a push panicked, see the log"))
    });
    let answer = match pushed {
        Ok(ack) => Answer::Reply(ack_to_pb(ack)),
        Err(error) => Answer::Refusal(refusal_to_pb(error)),
    };
    v1::PushManyReply {
        number: request.number,
        answer: Some(answer),
    }
}
