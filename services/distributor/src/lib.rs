//! Ingestion: receive, validate, limit, shard, replicate.
