//! What the process listens on.

use std::time::Duration;

use super::{READ, Setting, WRITE};
use crate::cors::CorsOrigin;

const HEADING: &str = "Listeners";

pub(super) const SETTINGS: &[Setting] = &[
    address!("http.listen", http.listen, "Address of the HTTP API"),
    address!(
        "grpc.listen",
        grpc.listen,
        "Address for the other processes of the cluster"
    ),
    setting!(
        "grpc.advertise",
        String,
        grpc.advertise,
        &[],
        "Address at which other processes reach grpc.listen; the same when empty"
    ),
    setting!(
        "otlp.listen",
        String,
        otlp_listen,
        WRITE,
        "Address of a listener for OTLP by gRPC alone, such as 0.0.0.0:4317, to which senders default; none when empty: \
         http.listen takes it, too"
    ),
    bytes!(
        "grpc.max-message-bytes",
        grpc.max_message_bytes,
        &[],
        "Largest message between processes"
    ),
    setting!(
        "http.request-timeout",
        Duration,
        http.request_timeout,
        &[],
        "Longest HTTP request, from its first byte to the last of the answer's head"
    ),
    setting!(
        "http.max-requests-in-flight",
        usize,
        http.max_requests_in_flight,
        &[],
        "HTTP requests at once, of which a tenant that has half gets more only while more than an eighth is free; further ones get 503 \
         with Retry-After"
    ),
    bytes!(
        "http.max-write-bytes-in-flight",
        http.max_write_bytes_in_flight,
        WRITE,
        "Bytes of write requests held at once; further ones get 503 with Retry-After"
    ),
    setting!(
        "http.cors-origin",
        CorsOrigin,
        http.cors_origin,
        READ,
        "Origins whose scripts, in browsers, may read answers to queries, as a regular expression of the whole origin such \
         as https://.+[.]example[.]com; none when empty"
    ),
];
