//! The one retry loop around the object store: deadline, backoff with jitter, through the injected clock.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use koios_runtime::{ClockHandle, RngHandle};
use object_store::path::Path;

use crate::verdict::{self, Verdict};
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

/// Carries requests to one bucket.
#[derive(Clone, Debug)]
pub(crate) struct Retry {
    pub(crate) clock: ClockHandle,
    pub(crate) rng: RngHandle,
    pub(crate) policy: RetryPolicy,
    /// Its URL, for messages.
    pub(crate) bucket: Arc<str>,
}

impl Retry {
    pub(crate) fn new(bucket: Arc<str>, clock: ClockHandle, rng: RngHandle) -> Self {
        Self {
            clock,
            rng,
            policy: RetryPolicy::default(),
            bucket,
        }
    }

    pub(crate) fn with(&self, policy: RetryPolicy) -> Self {
        Self {
            policy,
            ..self.clone()
        }
    }

    /// For a request that is one of several, of which the first began at `start`: they share the deadline.
    pub(crate) fn since(&self, start: Duration) -> Self {
        let spent = self.clock.elapsed().saturating_sub(start);
        self.with(RetryPolicy {
            deadline: self.policy.deadline.saturating_sub(spent),
            ..self.policy
        })
    }

    /// Runs `attempt` until it gives a verdict (success, or an error that repeating cannot change) or time is up.
    pub(crate) async fn run<T, F>(&self, object: &Path, mut attempt: impl FnMut() -> F) -> Result<T>
    where
        F: Future<Output = Result<T, object_store::Error>>,
    {
        let start = self.clock.elapsed();
        let mut attempts = 0u32;
        // What the last attempt that was answered said: one that time cut short knows nothing better.
        let mut failure = None;
        loop {
            attempts += 1;
            let spent = self.clock.elapsed().saturating_sub(start);
            // The last attempt does not outlive the deadline by a timeout of its own.
            let left = self.policy.deadline.saturating_sub(spent);
            let limit = self.policy.attempt_timeout.min(left.max(self.policy.backoff_min));
            match self.clock.timeout(limit, attempt()).await {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(e)) => match self.verdict(object, attempts, &e) {
                    Some(verdict) => return Err(verdict),
                    None => failure = Some(e),
                },
                Err(_) => {}
            }
            let wait = self.backoff(attempts - 1);
            if self.clock.elapsed().saturating_sub(start) + wait >= self.policy.deadline {
                return Err(unavailable(object, attempts, failure));
            }
            self.clock.sleep(wait).await;
        }
    }

    /// The error that repeating cannot change, if it is one.
    fn verdict(&self, object: &Path, attempts: u32, e: &object_store::Error) -> Option<Error> {
        let failure = verdict::read(e);
        let object = object.to_string();
        match failure.verdict {
            Verdict::Again => None,
            Verdict::NotFound => Some(Error::NotFound { object }),
            Verdict::TooShort => Some(Error::corrupt(
                object,
                "it ends before the bytes that it should have",
            )),
            Verdict::Rejected(rejection) => Some(Error::Rejected {
                object: format!("{object} of bucket {}", self.bucket),
                attempts,
                rejection,
                reason: failure.reason,
            }),
        }
    }

    /// The wait after so many doublings, jittered.
    pub(crate) fn backoff(&self, doublings: u32) -> Duration {
        let factor = 1u32.checked_shl(doublings).unwrap_or(u32::MAX);
        let backoff = self.policy.backoff_min.saturating_mul(factor);
        self.jittered(backoff.min(self.policy.backoff_max))
    }

    fn jittered(&self, backoff: Duration) -> Duration {
        let half = backoff / 2;
        half + Duration::from_micros(self.rng.below(half.as_micros() as u64 + 1))
    }
}

pub(crate) fn unavailable(object: &Path, attempts: u32, source: Option<object_store::Error>) -> Error {
    let failure = source.as_ref().map(verdict::read);
    let reason = match &failure {
        None => "no answer in time".to_owned(),
        Some(failure) if !failure.answered && verdict::is_about_credentials(&failure.reason) => format!(
            "no credentials are set, and nobody on this machine hands any out: {}",
            failure.reason
        ),
        Some(failure) => failure.reason.clone(),
    };
    Error::Unavailable {
        object: object.to_string(),
        attempts,
        reason,
        // An answer is not handed on as it is: it may quote the request, secrets included.
        source: source
            .filter(|_| failure.is_some_and(|f| !f.answered))
            .map(Box::new),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use koios_runtime::TokioClock;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_attempt_that_time_cuts_short_does_not_hide_what_was_answered_before() {
        let policy = RetryPolicy {
            attempt_timeout: Duration::from_secs(5),
            deadline: Duration::from_millis(50),
            backoff_min: Duration::from_millis(1),
            backoff_max: Duration::from_millis(1),
        };
        let clock: ClockHandle = Arc::new(TokioClock::starting_at(0));
        let retry = Retry::new("s3://b".into(), clock, RngHandle::from_seed(1)).with(policy);
        let attempts = AtomicU32::new(0);
        let object = Path::from("p/o");
        let failed = retry.run(&object, || {
            let first = attempts.fetch_add(1, Ordering::Relaxed) == 0;
            async move {
                if !first {
                    std::future::pending::<()>().await;
                }
                Err::<(), _>(object_store::Error::Generic {
                    store: "S3",
                    source: "the clock of this machine is wrong".into(),
                })
            }
        });
        let told = failed.await.unwrap_err().to_string();
        assert!(told.contains("the clock of this machine is wrong"), "{told}");
        assert_eq!(attempts.into_inner(), 2);
    }
}
