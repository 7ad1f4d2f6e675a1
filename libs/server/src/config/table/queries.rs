//! What a tenant may ask.

use std::time::Duration;

use super::{READ, Setting};

const HEADING: &str = "Limits on queries";

pub(super) const SETTINGS: &[Setting] = &[
    bytes!(
        "limits.max-query-bytes",
        limits.max_query_bytes,
        READ,
        "Longest query text"
    ),
    setting!(
        "limits.max-query-samples",
        u64,
        limits.max_query_samples,
        READ,
        "Most samples a query may hold at once"
    ),
    setting!(
        "limits.max-query-series",
        u64,
        limits.max_query_series,
        READ,
        "Most series a query may fetch"
    ),
    bytes!(
        "limits.max-query-memory-bytes",
        limits.max_query_memory_bytes,
        READ,
        "Most memory a query may hold, its result included; series that wait to be merged may take as much again"
    ),
    setting!(
        "limits.max-query-points",
        u64,
        limits.max_query_points,
        READ,
        "Most points per series of a range query"
    ),
    setting!(
        "limits.query-timeout",
        Duration,
        limits.query_timeout,
        READ,
        "Longest run of a query"
    ),
    setting!(
        "limits.lookback-delta",
        Duration,
        limits.lookback_delta,
        READ,
        "How far back an instant looks for a sample"
    ),
    setting!(
        "limits.max-concurrent-queries",
        usize,
        limits.max_concurrent_queries,
        READ,
        "Queries of a tenant that run at once in one querier"
    ),
    setting!(
        "limits.experimental-promql",
        bool,
        limits.experimental_promql,
        READ,
        "Whether queries may use experimental functions and aggregations, duration expressions, anchored, smoothed and fill"
    ),
];
