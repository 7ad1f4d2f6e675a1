//! The remote form of the service traits: gRPC clients that implement them and servers that call them.
//!
//! A call that passes its deadline drops its connection, so that a peer behind a silent network fault is dialled
//! afresh by the next call instead of being waited for.
//!
//! Batches to one member share a stream that stays open; each is answered and given up by itself, as if it were a call.

mod channel;
mod client;
mod convert;
mod expiry;
mod push_answers;
mod pushes;
mod replies;
mod server;
#[cfg(test)]
mod test_runs;

pub use channel::{PeerChannel, RpcSettings};
pub use client::{IngesterClient, StoreClient};
pub use convert::{error_from_status, status_from_error};
pub use server::{IngesterRpc, StoreRpc};

/// Largest gRPC message, bytes.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;
