//! What services say to each other and what clients send: batches, service traits, gRPC, hot-path decoders.
//!
//! **Data flow.** A distributor decodes a request ([`remote_write`], [`exposition`], [`families`], [`otlp`], [`influx`]),
//! builds [`Batch`]es and calls [`IngesterService::push`] on each member; a querier calls [`IngesterService::read`] and
//! [`StoreService::select`]. In one process these traits are the service itself and batches go by reference; across
//! processes they are the clients in [`grpc`], where protobuf exists.
//!
//! **Invariants.** A batch is encoded at most once and checked by its checksum wherever it arrives (I11). Every call
//! has a deadline. Every error is a [`ServiceError`] whose code says what the caller must do (I13).
//!
//! **Deliberately absent.** Routing, retries and quorum: those belong to the callers.
//!
//! **Failure behaviour.** Bytes from clients and peers never panic or allocate beyond their declared, bounded length
//! (I12). A reader that stops reading loses its stream ([`watched()`]), so that it holds nothing for ever (I6).

pub mod batch;
pub mod compression;
mod error;
pub mod exposition;
pub mod families;
pub mod grpc;
pub mod influx;
mod numbers;
pub mod otlp;
mod protobuf;
mod protobuf_writer;
pub mod remote_write;
mod service;
mod strings;
mod watched;

pub use batch::{Batch, BatchError, BatchHeader, BoundSeries, LoggedBatch, LoggedSeries};
pub use error::{ServiceError, ServiceErrorCode};
pub use service::{
    BatchSetsReply, BatchSetsRequest, BatchStream, DeletionsReply, DeletionsRequest, ExemplarsRequest,
    FetchBatchesRequest, FlushReply, FlushRequest, HeldSeriesReply, HeldSeriesRequest, IngesterService,
    LabelsReply, LabelsRequest, MetadataRequest, PushAck, ReadEnd, ReadItem, ReadRequest, ReadStream,
    SeriesExemplars, SeriesRuns, StoreItem, StoreLabelsRequest, StoreSelectRequest, StoreService,
    StoreStream, TenantHoldings,
};
pub use strings::Strings;
pub use watched::{ReaderPace, Watched, watched};

/// Generated protobuf types.
#[expect(missing_docs, unused_qualifications, reason = "generated")]
#[allow(
    clippy::all,
    clippy::doc_markdown,
    clippy::missing_errors_doc,
    rust_2018_idioms
)]
pub mod pb {
    /// Internal services.
    pub mod v1 {
        tonic::include_proto!("koios.v1");
    }
    /// Prometheus' remote write messages, for tests and load generators.
    pub mod prometheus {
        include!(concat!(env!("OUT_DIR"), "/prometheus.rs"));
    }
}
