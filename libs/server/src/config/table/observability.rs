//! Logs, and the process' own metrics.

use std::time::Duration;

use super::{Setting, WRITE};
use crate::settings::LogFormat;

const HEADING: &str = "Observability";

pub(super) const SETTINGS: &[Setting] = &[
    setting!(
        "log.level",
        String,
        log.level,
        &[],
        "error, warn, info, debug, trace, or directives such as info,koios_wal=debug"
    ),
    setting!(
        "log.format",
        LogFormat,
        log.format,
        &[],
        "Form of log lines on standard error"
    ),
    setting!(
        "self-metrics.interval",
        Duration,
        self_metrics.interval,
        WRITE,
        "How often the process stores its own metrics in itself, all-in-one only; 0 for never"
    ),
    setting!(
        "self-metrics.tenant",
        String,
        self_metrics.tenant,
        WRITE,
        "Tenant that gets the process' own metrics"
    ),
];
