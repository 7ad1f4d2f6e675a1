//! Named tasks that end together.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::FutureExt;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cpu::panic_text;

/// Why a group of tasks ended before it was asked to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TaskError {
    /// A task panicked: a bug.
    #[error("task {task} panicked: {message}")]
    Panicked {
        /// The task's name.
        task: &'static str,
        /// The panic's message.
        message: String,
    },
    /// A task failed in a way that the process cannot go on with.
    #[error("task {task} failed: {message}")]
    Failed {
        /// The task's name.
        task: &'static str,
        /// What failed.
        message: String,
    },
}

/// Tasks of one component: named, panics caught, cancelled together. Cheap to clone.
#[derive(Clone, Debug)]
pub struct TaskGroup {
    tracker: TaskTracker,
    cancel: CancellationToken,
    failure: Arc<Mutex<Option<TaskError>>>,
    parent: Option<Arc<TaskGroup>>,
}

impl TaskGroup {
    /// A group that ends when `cancel` is cancelled.
    pub fn new(cancel: CancellationToken) -> Self {
        Self {
            tracker: TaskTracker::new(),
            cancel,
            failure: Arc::default(),
            parent: None,
        }
    }

    /// A group that ends with this one, and may be stopped before. What fails in it fails this one, too: nothing goes on without
    /// a part of it that nobody stopped.
    pub fn child(&self) -> Self {
        Self {
            parent: Some(Arc::new(self.clone())),
            ..Self::new(self.cancel.child_token())
        }
    }

    /// The token that tells tasks to end.
    pub fn token(&self) -> &CancellationToken {
        &self.cancel
    }

    /// Starts a task that watches [`Self::token`] itself and ends in order. A panic cancels the whole group.
    pub fn spawn(&self, task: &'static str, future: impl Future<Output = ()> + Send + 'static) {
        let group = self.clone();
        self.tracker.spawn(async move {
            if let Err(panic) = AssertUnwindSafe(future).catch_unwind().await {
                group.fail(TaskError::Panicked {
                    task,
                    message: panic_text(panic.as_ref()),
                });
            }
        });
    }

    /// Starts a task that is dropped at its next await once the group is cancelled.
    pub fn spawn_cancelled(&self, task: &'static str, future: impl Future<Output = ()> + Send + 'static) {
        let cancel = self.cancel.clone();
        self.spawn(task, async move {
            tokio::select! {
                biased;
                () = cancel.cancelled() => {}
                () = future => {}
            }
        });
    }

    /// Records the first fatal error and cancels the group, and those that it is a part of.
    pub fn fail(&self, error: TaskError) {
        tracing::error!(%error, "task group failed");
        if let Some(whole) = &self.parent {
            whole.fail(error.clone());
        }
        self.failure.lock().get_or_insert(error);
        self.cancel.cancel();
    }

    /// The first fatal error, if there was one.
    pub fn failure(&self) -> Option<TaskError> {
        self.failure.lock().clone()
    }

    /// Cancels the group and waits until every task has ended.
    pub async fn stop(&self) {
        self.cancel.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_fails_in_a_part_fails_the_whole() {
        let whole = TaskGroup::new(CancellationToken::new());
        let part = whole.child().child();
        whole.child().stop().await;
        assert!(!whole.token().is_cancelled(), "a part may be stopped");
        part.spawn("breaks", async { panic!("boom") });
        whole.token().cancelled().await;
        assert_eq!(whole.failure(), part.failure());
        assert!(whole.failure().is_some());
    }

    #[tokio::test]
    async fn a_panic_cancels_the_group() {
        let group = TaskGroup::new(CancellationToken::new());
        group.spawn_cancelled("waits", std::future::pending());
        group.spawn("breaks", async { panic!("boom") });
        group.token().cancelled().await;
        group.stop().await;
        assert_eq!(
            group.failure(),
            Some(TaskError::Panicked {
                task: "breaks",
                message: "boom".to_owned()
            })
        );
    }
}
