//! Between the traits' own types and protobuf.

use bytes::Bytes;
use koios_chunk::{Chunk, Run};
use koios_model::{
    BatchSet, Exemplar, LabelsRef, MatchOp, Matcher, Matchers, Metadata, PartitionId, SeriesHash, StreamId,
    TenantId, TimeRange,
};
use koios_runtime::with_sources;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

use super::channel::KEEP_ALIVE;
use super::expiry::{KnownRules, expiry_to_pb};
use crate::pb::v1;
use crate::service::damaged;
use crate::{
    BatchSetsReply, HeldSeriesRequest, LabelsReply, LabelsRequest, PushAck, ReadEnd, ReadRequest,
    SeriesExemplars, SeriesRuns, ServiceError, ServiceErrorCode, StoreLabelsRequest, StoreSelectRequest,
    TenantHoldings,
};

const CODE_HEADER: &str = "koios-code";
const STATE_HEADER: &str = "koios-state-version";

/// The gRPC status of an error; the exact code travels in a header.
pub fn status_from_error(e: &ServiceError) -> Status {
    let code = match e.code {
        ServiceErrorCode::InvalidArgument | ServiceErrorCode::TooLarge => Code::InvalidArgument,
        ServiceErrorCode::NotFound => Code::NotFound,
        ServiceErrorCode::Stale
        | ServiceErrorCode::Behind
        | ServiceErrorCode::NotCounting
        | ServiceErrorCode::UnknownSeries => Code::FailedPrecondition,
        ServiceErrorCode::ResourceExhausted => Code::ResourceExhausted,
        ServiceErrorCode::Unavailable | ServiceErrorCode::BucketUnavailable => Code::Unavailable,
        ServiceErrorCode::Unimplemented => Code::Unimplemented,
        ServiceErrorCode::DeadlineExceeded => Code::DeadlineExceeded,
        ServiceErrorCode::Corruption => Code::DataLoss,
        ServiceErrorCode::Internal => Code::Internal,
    };
    let mut status = Status::new(code, &e.message);
    status
        .metadata_mut()
        .insert(CODE_HEADER, MetadataValue::from_static(e.code.as_str()));
    status
        .metadata_mut()
        .insert(STATE_HEADER, MetadataValue::from(e.state_version));
    status
}

/// The error of a status from `addr`. The peer's own words come first and literally: people and tests look for them.
pub fn error_from_status(status: &Status, addr: &str) -> ServiceError {
    let header = |name| status.metadata().get(name).and_then(|v| v.to_str().ok());
    let code = match header(CODE_HEADER) {
        Some(name) => ServiceErrorCode::from_wire(name),
        None => match status.code() {
            Code::InvalidArgument | Code::OutOfRange => ServiceErrorCode::InvalidArgument,
            Code::Unimplemented => ServiceErrorCode::Unimplemented,
            Code::NotFound => ServiceErrorCode::NotFound,
            Code::DeadlineExceeded => ServiceErrorCode::DeadlineExceeded,
            Code::DataLoss => ServiceErrorCode::Corruption,
            Code::Internal => ServiceErrorCode::Internal,
            // `ResourceExhausted` too: a peer's own refusal carries the header. Without it, the connection was told to
            // calm down, which says nothing about the request: another peer may well answer it.
            _ => ServiceErrorCode::Unavailable,
        },
    };
    let message = if header(CODE_HEADER).is_some() {
        said_by(status.message(), addr)
    } else {
        format!("{addr}: {}", words(status))
    };
    let state_version = header(STATE_HEADER).and_then(|v| v.parse().ok()).unwrap_or(0);
    ServiceError {
        code,
        message,
        state_version,
    }
}

/// What a status without a peer's own words says. Of a connection that was given up the library says only what spoke on it.
fn words(status: &Status) -> String {
    match with_sources(status).contains("keep-alive timed out") {
        true => format!("no answer within {:?}", 2 * KEEP_ALIVE),
        false => status.message().to_owned(),
    }
}

/// A peer's own words.
fn said_by(message: &str, addr: &str) -> String {
    format!("{message} (from {addr})")
}

/// An error that stands in a message, where it is one of several answers.
pub(super) fn refusal_to_pb(e: ServiceError) -> v1::Refusal {
    v1::Refusal {
        code: e.code.as_str().to_owned(),
        message: e.message,
        state_version: e.state_version,
    }
}

pub(super) fn refusal_from_pb(refusal: &v1::Refusal, addr: &str) -> ServiceError {
    let code = ServiceErrorCode::from_wire(&refusal.code);
    ServiceError::new(code, said_by(&refusal.message, addr)).with_state_version(refusal.state_version)
}

pub(super) fn ack_to_pb(ack: PushAck) -> v1::PushReply {
    v1::PushReply {
        state_version: ack.state_version,
        partition_series: ack.partition_series,
        conflicts: ack.conflicts,
        histogram_conflicts: ack.histogram_conflicts,
        conflicts_kept: ack.conflicts_kept,
        histogram_conflicts_kept: ack.histogram_conflicts_kept,
        conflict: ack.conflict,
        tenant_rate: ack.tenant_rate,
    }
}

pub(super) fn ack_from_pb(reply: v1::PushReply) -> PushAck {
    PushAck {
        state_version: reply.state_version,
        partition_series: reply.partition_series,
        conflicts: reply.conflicts,
        histogram_conflicts: reply.histogram_conflicts,
        conflicts_kept: reply.conflicts_kept,
        histogram_conflicts_kept: reply.histogram_conflicts_kept,
        conflict: reply.conflict,
        tenant_rate: reply.tenant_rate,
    }
}

pub(super) fn held_to_pb(request: &HeldSeriesRequest) -> v1::HeldSeriesRequest {
    let references = request.references.iter().flat_map(|hash| hash.0.to_le_bytes());
    v1::HeldSeriesRequest {
        tenant: request.tenant.to_string(),
        partition: request.partition.0,
        epoch: request.epoch,
        references: references.collect::<Vec<u8>>().into(),
        metrics: request.metrics.to_vec(),
    }
}

pub(super) fn held_from_pb(request: &v1::HeldSeriesRequest) -> Result<HeldSeriesRequest, ServiceError> {
    let (references, rest) = request.references.as_chunks();
    if !rest.is_empty() {
        return Err(ServiceError::invalid("held series: a reference is cut short"));
    }
    let reference = |bytes: &[u8; 16]| SeriesHash(u128::from_le_bytes(*bytes));
    Ok(HeldSeriesRequest {
        tenant: tenant_from_pb(&request.tenant)?,
        partition: PartitionId(request.partition),
        epoch: request.epoch,
        references: references.iter().map(reference).collect(),
        metrics: request.metrics.clone().into(),
    })
}

pub(super) fn matchers_to_pb(m: &Matchers) -> Vec<v1::Matcher> {
    let op = |op| match op {
        MatchOp::Equal => v1::matcher::Op::Equal,
        MatchOp::NotEqual => v1::matcher::Op::NotEqual,
        MatchOp::Regex => v1::matcher::Op::Regex,
        MatchOp::NotRegex => v1::matcher::Op::NotRegex,
    };
    m.iter()
        .map(|m| v1::Matcher {
            op: op(m.op()).into(),
            name: m.name().to_owned(),
            value: m.value().to_owned(),
        })
        .collect()
}

pub(super) fn matchers_from_pb(ms: Vec<v1::Matcher>) -> Result<Matchers, ServiceError> {
    let mut out = Vec::with_capacity(ms.len());
    for m in ms {
        let op = match v1::matcher::Op::try_from(m.op) {
            Ok(v1::matcher::Op::Equal) => MatchOp::Equal,
            Ok(v1::matcher::Op::NotEqual) => MatchOp::NotEqual,
            Ok(v1::matcher::Op::Regex) => MatchOp::Regex,
            Ok(v1::matcher::Op::NotRegex) => MatchOp::NotRegex,
            Err(_) => {
                return Err(ServiceError::invalid(format!(
                    "unknown matcher operator {}",
                    m.op
                )));
            }
        };
        out.push(Matcher::new(op, m.name, m.value).map_err(|e| ServiceError::invalid(e.to_string()))?);
    }
    Ok(Matchers(out))
}

pub(super) fn range_to_pb(r: TimeRange) -> v1::TimeRange {
    v1::TimeRange {
        min_ms: r.min,
        max_ms: r.max,
    }
}

pub(super) fn range_from_pb(r: Option<v1::TimeRange>) -> Result<TimeRange, ServiceError> {
    r.map(|r| TimeRange::new(r.min_ms, r.max_ms))
        .ok_or_else(|| ServiceError::invalid("the request has no time range"))
}

pub(super) fn tenant_from_pb(t: &str) -> Result<TenantId, ServiceError> {
    TenantId::new(t).map_err(|e| ServiceError::invalid(e.to_string()))
}

pub(super) fn set_to_pb(set: &BatchSet) -> v1::BatchSet {
    let stream = |(id, sequences): (StreamId, &koios_model::SequenceSet)| v1::StreamSet {
        stream: Bytes::copy_from_slice(&id.0.to_be_bytes()),
        runs: sequences.runs().flat_map(|(s, e)| [s, e]).collect(),
    };
    v1::BatchSet {
        streams: set.streams().map(stream).collect(),
    }
}

pub(super) fn set_from_pb(set: Option<v1::BatchSet>) -> Result<BatchSet, ServiceError> {
    let mut out = BatchSet::default();
    for s in set.unwrap_or_default().streams {
        let id: [u8; 16] = s
            .stream
            .as_ref()
            .try_into()
            .map_err(|_| ServiceError::invalid("stream id is not 16 bytes"))?;
        let id = StreamId(u128::from_be_bytes(id));
        for run in s.runs.chunks(2) {
            let &[start, end] = run else {
                return Err(ServiceError::invalid("batch set has an odd run"));
            };
            out.insert_run(id, start, end);
        }
    }
    Ok(out)
}

pub(super) fn end_to_pb(e: &ReadEnd) -> v1::ReadEnd {
    v1::ReadEnd {
        held: Some(set_to_pb(&e.held)),
        forgotten_below_ms: e.forgotten_below_ms,
        manifest_floor: e.manifest_floor,
        deletions_version: e.deletions_version,
    }
}

pub(super) fn end_from_pb(e: v1::ReadEnd) -> Result<ReadEnd, ServiceError> {
    Ok(ReadEnd {
        held: set_from_pb(e.held)?,
        forgotten_below_ms: e.forgotten_below_ms,
        manifest_floor: e.manifest_floor,
        deletions_version: e.deletions_version,
    })
}

/// Fails when not all runs are chunks, which a request that came from another process asks for.
pub(super) fn series_to_pb(s: SeriesRuns) -> Result<v1::Series, ServiceError> {
    let chunk = |run| match run {
        Run::Chunk(chunk) => Ok(chunk.into_bytes()),
        Run::Open(_) | Run::Plain(_) => Err(ServiceError::internal(format!(
            "samples of series {} were to be sent without being encoded",
            s.labels
        ))),
    };
    Ok(v1::Series {
        labels: Bytes::copy_from_slice(s.labels.packed()),
        chunks: s.runs.into_iter().map(chunk).collect::<Result<_, _>>()?,
    })
}

/// Checks every chunk's checksum, so that a source that sends damaged bytes counts as failed and another one is read
/// instead (I11).
pub(super) fn series_from_pb(s: v1::Series) -> Result<SeriesRuns, ServiceError> {
    let labels = LabelsRef::from_packed(&s.labels)
        .map_err(|e| ServiceError::new(ServiceErrorCode::Corruption, e.to_string()))?
        .to_labels();
    let parsed = s.chunks.into_iter().map(|c| Chunk::parse(c).map(Run::Chunk));
    let runs = parsed
        .collect::<Result<_, _>>()
        .map_err(|e| damaged(&labels, &e))?;
    Ok(SeriesRuns { labels, runs })
}

pub(super) fn read_to_pb(r: &ReadRequest) -> v1::ReadRequest {
    v1::ReadRequest {
        tenant: r.tenant.to_string(),
        partition: r.partition.0,
        epoch: r.epoch,
        matchers: matchers_to_pb(&r.matchers),
        range: Some(range_to_pb(r.range)),
        labels_only: r.labels_only,
        limit: r.limit,
        deletions_version: r.deletions_version,
        expiry: expiry_to_pb(&r.expiry),
    }
}

pub(super) fn read_from_pb(r: v1::ReadRequest, rules: &KnownRules) -> Result<ReadRequest, ServiceError> {
    let tenant = tenant_from_pb(&r.tenant)?;
    Ok(ReadRequest {
        expiry: rules.expiry(&tenant, r.expiry)?,
        tenant,
        partition: PartitionId(r.partition),
        epoch: r.epoch,
        matchers: matchers_from_pb(r.matchers)?,
        range: range_from_pb(r.range)?,
        labels_only: r.labels_only,
        encoded: true,
        limit: r.limit,
        deletions_version: r.deletions_version,
    })
}

pub(super) fn labels_to_pb(r: LabelsRequest) -> v1::LabelsRequest {
    v1::LabelsRequest {
        tenant: r.tenant.to_string(),
        partition: r.partition.0,
        epoch: r.epoch,
        matchers: matchers_to_pb(&r.matchers),
        range: Some(range_to_pb(r.range)),
        expiry: expiry_to_pb(&r.expiry),
        name: r.name,
        limit: r.limit,
        deletions_version: r.deletions_version,
    }
}

pub(super) fn labels_from_pb(
    r: v1::LabelsRequest,
    rules: &KnownRules,
) -> Result<LabelsRequest, ServiceError> {
    let tenant = tenant_from_pb(&r.tenant)?;
    Ok(LabelsRequest {
        expiry: rules.expiry(&tenant, r.expiry)?,
        tenant,
        partition: PartitionId(r.partition),
        epoch: r.epoch,
        matchers: matchers_from_pb(r.matchers)?,
        range: range_from_pb(r.range)?,
        name: r.name,
        limit: r.limit,
        deletions_version: r.deletions_version,
    })
}

pub(super) fn labels_reply_from_pb(r: v1::LabelsReply) -> Result<LabelsReply, ServiceError> {
    Ok(LabelsReply {
        names: r.names,
        end: end_from_pb(r.end.unwrap_or_default())?,
    })
}

pub(super) fn exemplars_to_pb((labels, exemplars): SeriesExemplars) -> v1::SeriesExemplars {
    let exemplar = |e: Exemplar| v1::Exemplar {
        time_ms: e.t,
        value: e.v.to_bits(),
        labels: Bytes::copy_from_slice(e.labels.packed()),
    };
    v1::SeriesExemplars {
        labels: Bytes::copy_from_slice(labels.packed()),
        exemplars: exemplars.into_iter().map(exemplar).collect(),
    }
}

pub(super) fn exemplars_from_pb(s: v1::SeriesExemplars) -> Result<SeriesExemplars, ServiceError> {
    let labels = |packed: &[u8]| {
        let labels = LabelsRef::from_packed(packed);
        labels
            .map(|labels| labels.to_labels())
            .map_err(|e| ServiceError::new(ServiceErrorCode::Corruption, e.to_string()))
    };
    let exemplar = |e: v1::Exemplar| {
        Ok(Exemplar {
            t: e.time_ms,
            v: f64::from_bits(e.value),
            labels: labels(&e.labels)?,
        })
    };
    let exemplars: Result<_, ServiceError> = s.exemplars.into_iter().map(exemplar).collect();
    Ok((labels(&s.labels)?, exemplars?))
}

pub(super) fn metadata_to_pb((metric, m): (String, Metadata)) -> v1::MetricMetadata {
    v1::MetricMetadata {
        metric,
        kind: m.kind,
        help: m.help,
        unit: m.unit,
    }
}

pub(super) fn metadata_from_pb(m: v1::MetricMetadata) -> (String, Metadata) {
    (
        m.metric,
        Metadata {
            kind: m.kind,
            help: m.help,
            unit: m.unit,
        },
    )
}

pub(super) fn holdings_to_pb(r: &BatchSetsReply) -> v1::BatchSetsReply {
    let tenant = |t: &TenantHoldings| v1::TenantHoldings {
        tenant: t.tenant.to_string(),
        held: Some(set_to_pb(&t.held)),
        logged: Some(set_to_pb(&t.logged)),
        forgotten_below_ms: t.forgotten_below_ms,
        manifest_floor: t.manifest_floor,
        log_forgotten_below_ms: t.log_forgotten_below_ms,
    };
    v1::BatchSetsReply {
        tenants: r.tenants.iter().map(tenant).collect(),
        counts: r.counts,
    }
}

pub(super) fn holdings_from_pb(r: v1::BatchSetsReply) -> Result<BatchSetsReply, ServiceError> {
    let tenant = |t: v1::TenantHoldings| {
        Ok(TenantHoldings {
            tenant: tenant_from_pb(&t.tenant)?,
            held: set_from_pb(t.held)?,
            logged: set_from_pb(t.logged)?,
            forgotten_below_ms: t.forgotten_below_ms,
            manifest_floor: t.manifest_floor,
            log_forgotten_below_ms: t.log_forgotten_below_ms,
        })
    };
    let tenants = r
        .tenants
        .into_iter()
        .map(tenant)
        .collect::<Result<_, ServiceError>>()?;
    Ok(BatchSetsReply {
        tenants,
        counts: r.counts,
    })
}

pub(super) fn select_to_pb(r: &StoreSelectRequest) -> v1::StoreSelectRequest {
    v1::StoreSelectRequest {
        tenant: r.tenant.to_string(),
        manifest_version: r.manifest_version,
        blocks: r.blocks.clone(),
        matchers: matchers_to_pb(&r.matchers),
        range: Some(range_to_pb(r.range)),
        labels_only: r.labels_only,
        limit: r.limit,
        histogram_sums: r.histogram_sums,
    }
}

pub(super) fn select_from_pb(r: v1::StoreSelectRequest) -> Result<StoreSelectRequest, ServiceError> {
    Ok(StoreSelectRequest {
        tenant: tenant_from_pb(&r.tenant)?,
        manifest_version: r.manifest_version,
        blocks: r.blocks,
        matchers: matchers_from_pb(r.matchers)?,
        range: range_from_pb(r.range)?,
        labels_only: r.labels_only,
        limit: r.limit,
        histogram_sums: r.histogram_sums,
    })
}

pub(super) fn store_labels_to_pb(r: StoreLabelsRequest) -> v1::StoreLabelsRequest {
    v1::StoreLabelsRequest {
        tenant: r.tenant.to_string(),
        manifest_version: r.manifest_version,
        blocks: r.blocks,
        matchers: matchers_to_pb(&r.matchers),
        range: Some(range_to_pb(r.range)),
        name: r.name,
        limit: r.limit,
    }
}

pub(super) fn store_labels_from_pb(r: v1::StoreLabelsRequest) -> Result<StoreLabelsRequest, ServiceError> {
    Ok(StoreLabelsRequest {
        tenant: tenant_from_pb(&r.tenant)?,
        manifest_version: r.manifest_version,
        blocks: r.blocks,
        matchers: matchers_from_pb(r.matchers)?,
        range: range_from_pb(r.range)?,
        name: r.name,
        limit: r.limit,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i13_a_peers_words_arrive_literally_with_its_address_behind() {
        let text = "block 01A failed checksum: part samples.parquet is corrupt";
        let sent = ServiceError::new(ServiceErrorCode::Corruption, text).with_state_version(7);
        let got = error_from_status(&status_from_error(&sent), "10.0.0.1:9095");
        assert_eq!((got.code, got.state_version), (sent.code, 7));
        assert_eq!(got.message, format!("{text} (from 10.0.0.1:9095)"));
        let own = error_from_status(&Status::unavailable("connection refused"), "10.0.0.1:9095");
        assert_eq!(own.to_string(), "10.0.0.1:9095: connection refused (unavailable)");
    }

    #[test]
    fn i13_a_refusal_among_answers_says_what_a_call_would() {
        for code in [ServiceErrorCode::UnknownSeries, ServiceErrorCode::Unavailable] {
            let sent = ServiceError::new(code, "batch 3: why").with_state_version(7);
            let of_call = error_from_status(&status_from_error(&sent), "10.0.0.1:9095");
            assert_eq!(refusal_from_pb(&refusal_to_pb(sent), "10.0.0.1:9095"), of_call);
        }
    }

    #[test]
    fn all_of_an_acknowledgement_arrives() {
        let sent = PushAck {
            state_version: 1,
            partition_series: 2,
            conflicts: 3,
            histogram_conflicts: 5,
            conflicts_kept: 6,
            histogram_conflicts_kept: 7,
            conflict: "one".to_owned(),
            tenant_rate: 4,
        };
        assert_eq!(ack_from_pb(ack_to_pb(sent.clone())), sent);
    }

    #[test]
    fn references_arrive_as_they_were_sent_and_whole() {
        let sent = HeldSeriesRequest {
            tenant: TenantId::anonymous(),
            partition: PartitionId(3),
            epoch: 7,
            references: [0, 1, u128::MAX - 5].map(SeriesHash).into(),
            metrics: ["up".to_owned(), "down".to_owned()].into(),
        };
        let mut pb = held_to_pb(&sent);
        let got = held_from_pb(&pb).unwrap();
        assert_eq!((got.partition, got.epoch), (sent.partition, sent.epoch));
        assert_eq!((got.references, got.metrics), (sent.references, sent.metrics));
        pb.references.truncate(47);
        assert_eq!(
            held_from_pb(&pb).unwrap_err().code,
            ServiceErrorCode::InvalidArgument
        );
    }

    #[test]
    fn i11_damaged_chunks_fail_the_source_before_use() {
        let labels = koios_model::Labels::from_pairs([("a", "b")]);
        let mut chunk = koios_chunk::encode(&[1], &[1.0]).unwrap();
        chunk[3] ^= 1;
        let damaged = series_from_pb(v1::Series {
            labels: Bytes::copy_from_slice(labels.packed()),
            chunks: vec![chunk.into()],
        });
        let e = damaged.unwrap_err();
        assert_eq!(e.code, ServiceErrorCode::Corruption);
        assert!(e.message.contains(r#"series {a="b"}"#), "{e}");
    }

    #[test]
    fn only_a_peer_itself_says_that_a_request_asks_for_too_much() {
        let sent = ServiceError::new(ServiceErrorCode::ResourceExhausted, "add matchers");
        let got = error_from_status(&status_from_error(&sent), "10.0.0.1:9095");
        assert_eq!(got.code, ServiceErrorCode::ResourceExhausted);
        let transport = Status::resource_exhausted("h2 protocol error: ENHANCE_YOUR_CALM");
        let got = error_from_status(&transport, "10.0.0.1:9095");
        assert_eq!(got.code, ServiceErrorCode::Unavailable);
    }

    #[test]
    fn i16_a_peer_that_does_not_know_a_call_is_told_from_a_wrong_request() {
        let got = error_from_status(&Status::unimplemented("unknown method"), "10.0.0.1:9095");
        assert_eq!(got.code, ServiceErrorCode::Unimplemented);
        for code in [
            ServiceErrorCode::BucketUnavailable,
            ServiceErrorCode::TooLarge,
            ServiceErrorCode::Unimplemented,
        ] {
            let sent = status_from_error(&ServiceError::new(code, "text"));
            assert_eq!(error_from_status(&sent, "10.0.0.1:9095").code, code);
        }
    }
}
