//! The process as a whole.

use std::path::PathBuf;
use std::time::Duration;

use super::{BUCKET, Setting, Target};

const HEADING: &str = "General";

pub(super) const SETTINGS: &[Setting] = &[
    setting!(
        "data-dir",
        PathBuf,
        data_dir,
        &[],
        "Folder for everything the process keeps"
    ),
    setting!(
        "bucket",
        String,
        bucket,
        BUCKET,
        "Object storage: s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or file:///folder; `bucket` in the data directory when empty"
    ),
    setting!(
        "zone",
        String,
        zone,
        &[],
        "Zone of this process; the members of a partition are in different zones"
    ),
    setting!(
        "retention",
        Duration,
        retention,
        &[Target::Store],
        "How long samples are kept in object storage; 0 for ever. What is downsampled of them has retentions of its own"
    ),
    setting!(
        "node.name",
        String,
        node.name,
        &[],
        "Name of this process, unique in the cluster; made up and kept in the data directory when empty"
    ),
    setting!(
        "node.shutdown-timeout",
        Duration,
        node.shutdown_timeout,
        &[],
        "How long a stop waits for requests in flight before it cuts them"
    ),
    bytes!(
        "node.memory-limit-bytes",
        node.memory_limit_bytes,
        &[],
        "Memory the process may use, 0 for all that its cgroup or machine has; from 90% of it writes and queries get 503"
    ),
];
