//! What a tenant may send.

use std::time::Duration;

use super::{Setting, WRITE, WRITE_AND_HEAD};

const HEADING: &str = "Limits on writes";

pub(super) const SETTINGS: &[Setting] = &[
    setting!(
        "limits.out-of-order-time-window",
        Duration,
        limits.out_of_order_time_window,
        &[],
        "How old a sample may be when it arrives"
    ),
    setting!(
        "limits.too-far-in-future",
        Duration,
        limits.too_far_in_future,
        WRITE,
        "How far ahead of this machine's clock a sample may be"
    ),
    setting!(
        "limits.max-labels-per-series",
        usize,
        limits.max_labels_per_series,
        WRITE,
        "Most labels of a series"
    ),
    bytes!(
        "limits.max-label-name-bytes",
        limits.max_label_name_bytes,
        WRITE,
        "Longest label name"
    ),
    bytes!(
        "limits.max-label-value-bytes",
        limits.max_label_value_bytes,
        WRITE,
        "Longest label value"
    ),
    bytes!(
        "limits.max-label-set-bytes",
        limits.max_label_set_bytes,
        WRITE,
        "Most bytes of all label names and values of a series together"
    ),
    setting!(
        "limits.max-series-per-request",
        usize,
        limits.max_series_per_request,
        WRITE,
        "Most series in one write request"
    ),
    setting!(
        "limits.max-samples-per-request",
        usize,
        limits.max_samples_per_request,
        WRITE,
        "Most samples in one write request"
    ),
    bytes!(
        "limits.max-request-bytes",
        limits.max_request_bytes,
        WRITE,
        "Largest write request, compressed and decompressed alike"
    ),
    setting!(
        "limits.max-series",
        u64,
        limits.max_series,
        WRITE,
        "Most active series of a tenant; samples of further ones get 400; 0 for no limit"
    ),
    setting!(
        "limits.max-series-per-metric",
        u64,
        limits.max_series_per_metric,
        WRITE,
        "Most active series of one metric of a tenant; samples of further ones get 400; 0 for no limit"
    ),
    setting!(
        "limits.max-exemplars",
        usize,
        limits.max_exemplars,
        WRITE_AND_HEAD,
        "Exemplars of a tenant that each partition keeps in memory, the newest; 0 for none"
    ),
    setting!(
        "limits.ingestion-rate",
        u64,
        limits.ingestion_rate,
        WRITE,
        "Samples per second that all distributors together admit for a tenant, exemplars included; more get 429; 0 for no limit"
    ),
    setting!(
        "limits.ingestion-burst",
        u64,
        limits.ingestion_burst,
        WRITE,
        "Samples that may come at once above limits.ingestion-rate, which it is at least; of distributors that a tenant sends to each lets its part through"
    ),
];
