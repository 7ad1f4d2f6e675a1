//! Samples: in memory, in blocks, and how long.

use std::time::Duration;

use super::{HEAD, READ, STORE, Setting};

const HEADING: &str = "Storage";

pub(super) const SETTINGS: &[Setting] = &[
    setting!(
        "blocks.range",
        Duration,
        blocks.range,
        HEAD,
        "Time range of a block when it is cut from the heads; stores merge blocks to 6 and 12 times as much"
    ),
    setting!(
        "blocks.manifest-max-age",
        Duration,
        blocks.manifest_max_age,
        READ,
        "How long a querier goes by what it knows of a tenant's blocks and of what is too old, where memory has all that is asked for; where it has not, 10s at most"
    ),
    setting!(
        "ingester.head-retention",
        Duration,
        ingester.head_retention,
        HEAD,
        "How long recent samples stay in memory, even when they are in object storage"
    ),
    bytes!(
        "ingester.disk-reserve-bytes",
        ingester.disk_reserve_bytes,
        HEAD,
        "Free bytes on the disk below which writes get 503"
    ),
    setting!(
        "store.replication",
        u32,
        store.replication,
        READ,
        "How many stores share the reads of a block: one as long as it answers, the others in its place; with 1 none is asked beside a store that lags"
    ),
    setting!(
        "store.stream-silence",
        Duration,
        store.stream_silence,
        READ,
        "How long a store may send nothing more, at least, until others go on beside it; longer where stores usually take longer"
    ),
    bytes!(
        "store.cache-bytes",
        store.cache_bytes,
        STORE,
        "Memory for what was read of blocks, all caches of it together"
    ),
    setting!(
        "store.cache-dir",
        String,
        store.cache_dir,
        STORE,
        "Folder on a local disk for what was read of blocks of a remote bucket; block-cache in data-dir when empty. It may be deleted while the process is down"
    ),
    bytes!(
        "store.cache-disk-bytes",
        store.cache_disk_bytes,
        STORE,
        "Disk for it; 0 for none. Whatever it says a gigabyte of the disk stays free, or a tenth of a small one, and in one process with an ingester its reserve beside"
    ),
    setting!(
        "store.compaction",
        bool,
        store.compaction,
        STORE,
        "Whether the process merges blocks and deletes those that are replaced or older than retention. A store that does not gives its tenants on to one that does; while none does, nothing is merged or removed"
    ),
    setting!(
        "store.compaction-delay",
        Duration,
        store.compaction_delay,
        STORE,
        "How long after the end of a window its blocks are merged: late blocks should be there"
    ),
    setting!(
        "store.compaction-interval",
        Duration,
        store.compaction_interval,
        STORE,
        "How often it is looked for blocks to merge"
    ),
    setting!(
        "store.deletion-delay",
        Duration,
        store.deletion_delay,
        STORE,
        "How long bytes of deleted blocks stay: longer than any query takes (`limits.query-timeout`; the log warns at the start if it is shorter)"
    ),
    setting!(
        "store.downsample-after-5m",
        Duration,
        store.downsample_after_5m,
        STORE,
        "How long after its end a day is summarised by 5 minutes, beside its samples; 0 for never. A day whose samples are about to go is summarised at once"
    ),
    setting!(
        "store.downsample-after-1h",
        Duration,
        store.downsample_after_1h,
        STORE,
        "The same by hours"
    ),
    setting!(
        "store.downsampled-retention-5m",
        Duration,
        store.downsampled_retention_5m,
        STORE,
        "How long summaries of 5 minutes are kept; 0 for ever. Beyond retention they are all that is left"
    ),
    setting!(
        "store.downsampled-retention-1h",
        Duration,
        store.downsampled_retention_1h,
        STORE,
        "How long summaries of hours are kept; 0 for ever"
    ),
    setting!(
        "store.undelete-window",
        Duration,
        store.undelete_window,
        STORE,
        "How long a deletion of samples can be taken back, before they are removed from blocks"
    ),
];
