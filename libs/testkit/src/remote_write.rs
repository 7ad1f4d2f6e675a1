//! Remote write 1.0 requests for tests.

use bytes::Bytes;
use koios_model::{Labels, Sample};
use koios_wire::pb::prometheus as pb;
use prost::Message;

use crate::differential::wire;
use crate::http::{Answer, HttpClient};
use crate::query_gen::data::SentSeries;

/// A request's message.
pub fn request(series: &[(Labels, Vec<Sample>)]) -> pb::WriteRequest {
    let timeseries = series
        .iter()
        .map(|(labels, samples)| pb::TimeSeries {
            labels: labels
                .iter()
                .map(|(n, v)| pb::Label {
                    name: n.to_owned(),
                    value: v.to_owned(),
                })
                .collect(),
            samples: samples
                .iter()
                .map(|s| pb::Sample {
                    value: s.v,
                    timestamp: s.t,
                })
                .collect(),
        })
        .collect();
    pb::WriteRequest {
        timeseries,
        metadata: Vec::new(),
    }
}

/// The compressed body.
pub fn body(message: &pb::WriteRequest) -> Bytes {
    compressed(message)
}

/// The compressed body of any message.
///
/// # Panics
/// Never: compression to memory does not fail below 4 GiB.
pub(crate) fn compressed(message: &impl Message) -> Bytes {
    let raw = message.encode_to_vec();
    snap::raw::Encoder::new()
        .compress_vec(&raw)
        .expect("snappy compresses anything below 4 GiB")
        .into()
}

/// Pushes series for a tenant.
///
/// # Errors
/// When no answer comes in time; any status is an answer.
pub async fn push(
    client: &HttpClient,
    addr: &str,
    tenant: &str,
    series: &[(Labels, Vec<Sample>)],
) -> anyhow::Result<Answer> {
    send(client, addr, tenant, body(&request(series))).await
}

/// Pushes series that may have native histograms.
///
/// # Errors
/// As [`push`].
pub async fn push_mixed(
    client: &HttpClient,
    addr: &str,
    tenant: &str,
    series: &[SentSeries],
) -> anyhow::Result<Answer> {
    let body = wire::body(series, i64::MIN, i64::MAX).unwrap_or_default();
    send(client, addr, tenant, body).await
}

async fn send(client: &HttpClient, addr: &str, tenant: &str, body: Bytes) -> anyhow::Result<Answer> {
    let headers = [
        ("content-type", "application/x-protobuf"),
        ("content-encoding", "snappy"),
        ("x-prometheus-remote-write-version", "0.1.0"),
        ("x-scope-orgid", tenant),
    ];
    client.send("POST", addr, "/api/v1/push", &headers, body).await
}
