//! Why a query failed, in Prometheus' words.

use std::sync::Arc;

/// What a client is told beside the message: Prometheus' `errorType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// `timeout`, HTTP 503.
    Timeout,
    /// `canceled`, HTTP 499.
    Canceled,
    /// `execution`, HTTP 422: the query itself cannot be answered; a retry cannot help.
    Execution,
    /// `bad_data`, HTTP 400.
    BadData,
    /// `unavailable`, HTTP 503: a retry may help.
    Unavailable,
    /// `internal`, HTTP 500.
    Internal,
}

impl ErrorKind {
    /// Prometheus' `errorType`.
    pub fn error_type(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Canceled => "canceled",
            Self::Execution => "execution",
            Self::BadData => "bad_data",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
        }
    }

    /// The HTTP status Prometheus answers with.
    pub fn http_status(self) -> u16 {
        match self {
            Self::Timeout | Self::Unavailable => 503,
            Self::Canceled => 499,
            Self::Execution => 422,
            Self::BadData => 400,
            Self::Internal => 500,
        }
    }
}

/// Why a query failed. Cheap to clone, so that one fetch's failure can be told to every waiter.
#[derive(Clone, Debug, thiserror::Error)]
pub enum QueryError {
    /// The query's deadline passed.
    #[error("query timed out in {0}")]
    Timeout(&'static str),
    /// The caller gave up.
    #[error("query was canceled in {0}")]
    Canceled(&'static str),
    /// The expression cannot be evaluated on this data.
    #[error("{0}")]
    Execution(String),
    /// The request's parameters are not acceptable.
    #[error("{0}")]
    BadData(String),
    /// The query would hold more samples at once than the limit.
    #[error("query processing would load too many samples into memory in {0}")]
    TooManySamples(&'static str),
    /// Another limit was hit; the text names the limit and the remedy.
    #[error("{0}")]
    LimitExceeded(String),
    /// The data cannot be read completely now; a retry may help.
    #[error("{message}")]
    Unavailable {
        /// What could not be reached.
        message: String,
        /// The cause.
        #[source]
        source: Option<Arc<dyn std::error::Error + Send + Sync>>,
    },
    /// A bug or corruption.
    #[error("{message}")]
    Internal {
        /// What went wrong.
        message: String,
        /// The cause.
        #[source]
        source: Option<Arc<dyn std::error::Error + Send + Sync>>,
    },
}

impl QueryError {
    /// An [`QueryError::Execution`].
    pub fn execution(message: impl Into<String>) -> Self {
        Self::Execution(message.into())
    }

    /// An [`QueryError::Unavailable`] without a cause.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::Unavailable {
            message: message.into(),
            source: None,
        }
    }

    /// An [`QueryError::Internal`] without a cause.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::Internal {
            message: message.into(),
            source: None,
        }
    }

    /// What kind of failure this is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Timeout(_) => ErrorKind::Timeout,
            Self::Canceled(_) => ErrorKind::Canceled,
            Self::Execution(_) | Self::TooManySamples(_) | Self::LimitExceeded(_) => ErrorKind::Execution,
            Self::BadData(_) => ErrorKind::BadData,
            Self::Unavailable { .. } => ErrorKind::Unavailable,
            Self::Internal { .. } => ErrorKind::Internal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_over_its_limits_is_an_execution_error_in_prometheus_words() {
        let e = QueryError::TooManySamples("query execution");
        assert_eq!(
            e.to_string(),
            "query processing would load too many samples into memory in query execution"
        );
        assert_eq!(
            (e.kind().error_type(), e.kind().http_status()),
            ("execution", 422)
        );
    }
}
