//! How long samples of a tenant are kept.

use std::time::Duration;

use koios_model::RetentionRule;

use super::{STORE, Setting};

const HEADING: &str = "Retention of tenants";

pub(super) const SETTINGS: &[Setting] = &[
    setting!(
        "limits.retention",
        Option<Duration>,
        limits.retention.samples,
        STORE,
        "How long samples are kept, 0 for ever; as `retention` where nothing is said"
    ),
    setting!(
        "limits.retention-rules",
        Option<Vec<RetentionRule>>,
        limits.retention.rules,
        STORE,
        "Series that are kept for times of their own, `7d {job=\"debug\"}; 2y {__name__=~\"slo:.*\"}`: the first rule that matches decides; 0 is for ever, and `[]` says that there are no rules. In the file better a list of `match` and `retention`"
    ),
    setting!(
        "limits.downsample-after-5m",
        Option<Duration>,
        limits.retention.downsample_after_5m,
        STORE,
        "As store.downsample-after-5m, which it is where nothing is said"
    ),
    setting!(
        "limits.downsample-after-1h",
        Option<Duration>,
        limits.retention.downsample_after_1h,
        STORE,
        "As store.downsample-after-1h, which it is where nothing is said"
    ),
    setting!(
        "limits.downsampled-retention-5m",
        Option<Duration>,
        limits.retention.downsampled_5m,
        STORE,
        "As store.downsampled-retention-5m, which it is where nothing is said"
    ),
    setting!(
        "limits.downsampled-retention-1h",
        Option<Duration>,
        limits.retention.downsampled_1h,
        STORE,
        "As store.downsampled-retention-1h, which it is where nothing is said"
    ),
];
