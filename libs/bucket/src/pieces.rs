//! Objects that are sent in pieces: each piece is tried again by itself.

use async_trait::async_trait;
use object_store::client::HttpErrorKind;
use object_store::path::Path;
use object_store::retry::{RetryContext, RetryFailure, RetryPolicy};
use object_store::{MultipartUpload, ObjectStore, PutMultipartOptions};

use crate::retry::Retry;

/// Begins an object in pieces. Those that fail are sent again within the deadline.
pub(crate) async fn begin(
    store: &dyn ObjectStore,
    path: &Path,
    retry: Retry,
) -> object_store::Result<Box<dyn MultipartUpload>> {
    let options = PutMultipartOptions::default().with_retry_policy(std::sync::Arc::new(PieceRetry(retry)));
    store.put_multipart_opts(path, options).await
}

/// When a piece is sent again.
#[derive(Debug)]
struct PieceRetry(Retry);

#[async_trait]
impl RetryPolicy for PieceRetry {
    async fn retry(&self, context: RetryContext) -> bool {
        if !may_pass(&context.failure) {
            return false;
        }
        let doublings = u32::try_from(context.attempt.saturating_sub(1)).unwrap_or(u32::MAX);
        let wait = self.0.backoff(doublings);
        if context.elapsed.saturating_add(wait) >= self.0.policy.deadline {
            return false;
        }
        self.0.clock.sleep(wait).await;
        true
    }
}

fn may_pass(failure: &RetryFailure) -> bool {
    match failure {
        RetryFailure::Status(status) => {
            (status.is_server_error() && status.as_u16() != 501)
                || matches!(status.as_u16(), 200..=299 | 408 | 429)
        }
        RetryFailure::Transport(kind) => !matches!(kind, HttpErrorKind::Decode),
        _ => false,
    }
}
