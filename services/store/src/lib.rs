//! Long-term storage: block reads over gRPC.
