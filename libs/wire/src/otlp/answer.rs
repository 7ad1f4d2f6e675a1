//! What senders of OTLP are answered.
//!
//! **Source**: OTLP specification, "OTLP/HTTP Response"; `google/rpc/status.proto`, `error_details.proto`.

use std::time::Duration;

use crate::protobuf_writer::Writer;

/// How a message is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Protobuf.
    Protobuf,
    /// Protobuf's mapping to JSON.
    Json,
}

impl Encoding {
    /// Its media type.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Protobuf => "application/x-protobuf",
            Self::Json => "application/json",
        }
    }

    /// An `ExportMetricsServiceResponse`; a message without rejected data points is a warning.
    pub fn response(self, rejected_data_points: u64, error_message: &str) -> Vec<u8> {
        let whole = rejected_data_points == 0 && error_message.is_empty();
        match self {
            Self::Protobuf if whole => Vec::new(),
            Self::Protobuf => {
                let mut partial = Writer::default();
                partial.number(1, rejected_data_points);
                partial.bytes(2, error_message.as_bytes());
                let mut response = Writer::default();
                response.bytes(1, &partial.out);
                response.out
            }
            Self::Json if whole => b"{}".to_vec(),
            // Numbers of 64 bits are strings in this mapping.
            Self::Json => serde_json::json!({
                "partialSuccess": {
                    "rejectedDataPoints": rejected_data_points.to_string(),
                    "errorMessage": error_message,
                }
            })
            .to_string()
            .into_bytes(),
        }
    }

    /// A `google.rpc.Status`; `retry_after` says when the same may succeed.
    pub fn status(self, code: i32, message: &str, retry_after: Option<Duration>) -> Vec<u8> {
        const RETRY_INFO: &str = "type.googleapis.com/google.rpc.RetryInfo";
        match self {
            Self::Protobuf => {
                let mut status = Writer::default();
                status.number(1, u64::from(code.unsigned_abs()));
                status.bytes(2, message.as_bytes());
                if let Some(delay) = retry_after {
                    let (mut duration, mut info, mut any) =
                        (Writer::default(), Writer::default(), Writer::default());
                    duration.number(1, delay.as_secs());
                    duration.number(2, u64::from(delay.subsec_nanos()));
                    info.bytes(1, &duration.out);
                    any.bytes(1, RETRY_INFO.as_bytes());
                    any.bytes(2, &info.out);
                    status.bytes(3, &any.out);
                }
                status.out
            }
            Self::Json => {
                let details: Vec<_> = retry_after
                    .map(|delay| {
                        let delay = format!("{}.{:09}s", delay.as_secs(), delay.subsec_nanos());
                        serde_json::json!({ "@type": RETRY_INFO, "retryDelay": delay })
                    })
                    .into_iter()
                    .collect();
                serde_json::json!({ "code": code, "message": message, "details": details })
                    .to_string()
                    .into_bytes()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_success_says_nothing() {
        assert_eq!(Encoding::Protobuf.response(0, ""), b"");
        assert_eq!(Encoding::Json.response(0, ""), b"{}");
    }

    #[test]
    fn the_rest_is_told() {
        assert_eq!(
            Encoding::Protobuf.response(3, "no"),
            b"\x0a\x06\x08\x03\x12\x02no"
        );
        assert_eq!(
            String::from_utf8(Encoding::Json.response(3, "no\n")).unwrap(),
            r#"{"partialSuccess":{"errorMessage":"no\n","rejectedDataPoints":"3"}}"#
        );
        assert_eq!(Encoding::Protobuf.status(3, "no", None), b"\x08\x03\x12\x02no");
        let retry = Some(Duration::from_millis(1500));
        assert_eq!(
            String::from_utf8(Encoding::Json.status(14, "x", retry)).unwrap(),
            "{\"code\":14,\"details\":[{\"@type\":\"type.googleapis.com/google.rpc.RetryInfo\",\
             \"retryDelay\":\"1.500000000s\"}],\"message\":\"x\"}"
        );
        let status = Encoding::Protobuf.status(14, "x", retry);
        assert!(
            status.ends_with(b"\x12\x0a\x0a\x08\x08\x01\x10\x80\xca\xb5\xee\x01"),
            "{status:x?}"
        );
    }
}
