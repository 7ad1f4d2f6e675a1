//! The one error of internal services.

use std::fmt;

/// What a caller must do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ServiceErrorCode {
    /// The request is wrong: do not retry.
    InvalidArgument,
    /// The request is larger than the callee ever takes: do not retry, ask for less or send less at once.
    TooLarge,
    /// The thing asked for does not exist: do not retry.
    NotFound,
    /// The batch speaks of a series by a reference that the callee does not know: send it with labels.
    UnknownSeries,
    /// The request was made under an older state or epoch: fetch the state and try again.
    Stale,
    /// The callee has not adopted the request's state yet: try again shortly.
    Behind,
    /// The member may lack acknowledged samples: read from other members.
    NotCounting,
    /// A limit was reached: slow down, then retry.
    ResourceExhausted,
    /// Not reachable or not able now: retry, or use another replica.
    Unavailable,
    /// The callee is well, but cannot reach the bucket: another replica may, a third one need not be asked.
    BucketUnavailable,
    /// The callee is of a version that does not know the call: use another replica.
    Unimplemented,
    /// The deadline passed.
    DeadlineExceeded,
    /// Stored bytes are damaged: use another replica and report.
    Corruption,
    /// A bug.
    Internal,
}

impl ServiceErrorCode {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidArgument => "invalid_argument",
            Self::TooLarge => "too_large",
            Self::NotFound => "not_found",
            Self::UnknownSeries => "unknown_series",
            Self::Stale => "stale",
            Self::Behind => "behind",
            Self::NotCounting => "not_counting",
            Self::ResourceExhausted => "resource_exhausted",
            Self::Unavailable => "unavailable",
            Self::BucketUnavailable => "bucket_unavailable",
            Self::Unimplemented => "unimplemented",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::Corruption => "corruption",
            Self::Internal => "internal",
        }
    }

    /// From the name on the wire; unknown names, from a newer peer, are [`Self::Unavailable`].
    pub fn from_wire(name: &str) -> Self {
        [
            Self::InvalidArgument,
            Self::TooLarge,
            Self::NotFound,
            Self::UnknownSeries,
            Self::Stale,
            Self::Behind,
            Self::NotCounting,
            Self::ResourceExhausted,
            Self::BucketUnavailable,
            Self::Unimplemented,
            Self::DeadlineExceeded,
            Self::Corruption,
            Self::Internal,
        ]
        .into_iter()
        .find(|c| c.as_str() == name)
        .unwrap_or(Self::Unavailable)
    }
}

/// An error between services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceError {
    /// What the caller must do.
    pub code: ServiceErrorCode,
    /// What failed, to what, and what to do about it.
    pub message: String,
    /// The callee's control-state version; a caller that knows less should fetch it.
    pub state_version: u64,
}

impl ServiceError {
    /// An error without a state version.
    pub fn new(code: ServiceErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            state_version: 0,
        }
    }

    /// The same, saying which control state the callee has.
    #[must_use]
    pub fn with_state_version(mut self, version: u64) -> Self {
        self.state_version = version;
        self
    }

    /// [`ServiceErrorCode::Unavailable`].
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(ServiceErrorCode::Unavailable, message)
    }

    /// [`ServiceErrorCode::Internal`].
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ServiceErrorCode::Internal, message)
    }

    /// [`ServiceErrorCode::InvalidArgument`].
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ServiceErrorCode::InvalidArgument, message)
    }
}

impl fmt::Display for ServiceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.code.as_str())
    }
}

impl std::error::Error for ServiceError {}
