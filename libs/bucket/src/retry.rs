//! The one retry loop around the object store: deadline, backoff with jitter, through the injected clock.

use std::future::Future;
use std::time::Duration;

use koios_runtime::{ClockHandle, RngHandle};
use object_store::path::Path;

use crate::{Error, Result};

/// How long and how often operations are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// When an attempt that does not answer is given up.
    pub attempt_timeout: Duration,
    /// When the whole operation is given up.
    pub deadline: Duration,
    /// The first wait, doubled each time; the actual wait is random between half of it and all of it.
    pub backoff_min: Duration,
    /// The longest wait.
    pub backoff_max: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempt_timeout: Duration::from_secs(20),
            deadline: Duration::from_secs(60),
            backoff_min: Duration::from_millis(50),
            backoff_max: Duration::from_secs(5),
        }
    }
}

impl RetryPolicy {
    /// With room to move `bytes`, at a megabyte a second or faster.
    pub(crate) fn for_bytes(self, bytes: u64) -> Self {
        let extra = Duration::from_secs(bytes >> 20);
        Self {
            attempt_timeout: self.attempt_timeout + extra,
            deadline: self.deadline + 2 * extra,
            ..self
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Retry {
    pub(crate) clock: ClockHandle,
    pub(crate) rng: RngHandle,
    pub(crate) policy: RetryPolicy,
}

/// Whether the storage gave a verdict rather than failing to.
fn is_verdict(e: &object_store::Error) -> bool {
    use object_store::Error as E;
    !matches!(e, E::Generic { .. } | E::JoinError { .. })
}

impl Retry {
    pub(crate) fn with(&self, policy: RetryPolicy) -> Self {
        Self {
            policy,
            ..self.clone()
        }
    }

    /// Runs `attempt` until it gives a verdict (success, or an error that repeating cannot change) or time is up.
    pub(crate) async fn run<T, F>(&self, object: &Path, mut attempt: impl FnMut() -> F) -> Result<T>
    where
        F: Future<Output = Result<T, object_store::Error>>,
    {
        let start = self.clock.elapsed();
        let mut attempts = 0u32;
        let mut backoff = self.policy.backoff_min;
        loop {
            attempts += 1;
            let failure = match self.clock.timeout(self.policy.attempt_timeout, attempt()).await {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(e)) if is_verdict(&e) => return Err(verdict(object, attempts, e)),
                Ok(Err(e)) => Some(e),
                Err(_) => None,
            };
            let wait = self.jittered(backoff);
            if self.clock.elapsed().saturating_sub(start) + wait >= self.policy.deadline {
                return Err(unavailable(object, attempts, failure));
            }
            self.clock.sleep(wait).await;
            backoff = (backoff * 2).min(self.policy.backoff_max);
        }
    }

    fn jittered(&self, backoff: Duration) -> Duration {
        let half = backoff / 2;
        half + Duration::from_micros(self.rng.below(half.as_micros() as u64 + 1))
    }
}

fn verdict(object: &Path, attempts: u32, e: object_store::Error) -> Error {
    match e {
        object_store::Error::NotFound { .. } => Error::NotFound {
            object: object.to_string(),
        },
        other => unavailable(object, attempts, Some(other)),
    }
}

fn unavailable(object: &Path, attempts: u32, source: Option<object_store::Error>) -> Error {
    Error::Unavailable {
        object: object.to_string(),
        attempts,
        reason: source
            .as_ref()
            .map_or_else(|| "no answer in time".to_owned(), ToString::to_string),
        source: source.map(Box::new),
    }
}
