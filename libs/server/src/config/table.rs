//! The table: every setting once.

use std::time::Duration;

use koios_model::RetentionRule;
use koios_wire::otlp::TranslationStrategy;

use super::value::{self, Value};
use crate::settings::Settings;

/// What a process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// Everything in one process.
    All,
    /// Receives writes.
    Distributor,
    /// Keeps recent samples.
    Ingester,
    /// Answers queries.
    Querier,
    /// Serves and tends blocks.
    Store,
    /// Votes on the cluster's state.
    Control,
}

impl Target {
    /// Its name, as on the command line; `all` for everything.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Distributor => "distributor",
            Self::Ingester => "ingester",
            Self::Querier => "querier",
            Self::Store => "store",
            Self::Control => "control",
        }
    }
}

/// One setting.
pub struct Setting {
    /// Dotted name.
    pub key: &'static str,
    /// The heading it stands under.
    pub group: &'static str,
    /// What its value is.
    pub kind: &'static str,
    /// Its meaning, as a sentence without a final dot.
    pub help: &'static str,
    /// Who reads it; empty for everyone. All-in-one reads all.
    pub targets: &'static [Target],
    /// Whether its value must not be shown.
    pub secret: bool,
    pub(super) set: fn(&mut Settings, &str) -> Result<(), String>,
    pub(super) show: fn(&Settings) -> String,
}

impl std::fmt::Debug for Setting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Setting").field(&self.key).finish()
    }
}

impl Setting {
    /// Whether a target reads it.
    pub fn applies_to(&self, target: Target) -> bool {
        target == Target::All || self.targets.is_empty() || self.targets.contains(&target)
    }

    /// The environment variable: `KOIOS_` and the key in capitals with underscores.
    pub fn variable(&self) -> String {
        format!("KOIOS_{}", self.key.replace(['.', '-'], "_").to_uppercase())
    }

    /// Its value in `settings`, as text that the flag would take.
    pub fn value_in(&self, settings: &Settings) -> String {
        (self.show)(settings)
    }

    pub(super) fn flag(&self, defaults: &Settings) -> clap::Arg {
        let default = (self.show)(defaults);
        let help = if default.is_empty() {
            self.help.to_owned()
        } else {
            format!("{} [default: {default}]", self.help)
        };
        clap::Arg::new(self.key)
            .long(self.key)
            .value_name(self.kind)
            .help_heading(self.group)
            .allow_hyphen_values(true)
            .help(help)
    }
}

/// A row whose type has one textual form.
macro_rules! setting {
    ($key:literal, $group:literal, $ty:ty, $($field:ident).+, $targets:expr, $help:expr) => {
        Setting {
            key: $key,
            group: $group,
            kind: <$ty as Value>::KIND,
            help: $help,
            targets: $targets,
            secret: false,
            set: |s, text| { s.$($field).+ = <$ty as Value>::parse(text)?; Ok(()) },
            show: |s| s.$($field).+.show(),
        }
    };
}

/// A row of bytes: a number that is written as a size.
macro_rules! bytes {
    ($key:literal, $group:literal, $($field:ident).+, $targets:expr, $help:expr) => {
        Setting {
            key: $key,
            group: $group,
            kind: "SIZE",
            help: $help,
            targets: $targets,
            secret: false,
            set: |s, text| {
                s.$($field).+ = value::parse_bytes(text)?
                    .try_into()
                    .map_err(|_| "larger than this machine can address".to_owned())?;
                Ok(())
            },
            show: |s| value::format_bytes(s.$($field).+ as u64),
        }
    };
}

/// A row of a text that is never shown.
macro_rules! secret {
    ($key:literal, $group:literal, $($field:ident).+, $targets:expr, $help:expr) => {
        Setting {
            key: $key,
            group: $group,
            kind: "TEXT",
            help: $help,
            targets: $targets,
            secret: true,
            set: |s, text| { text.clone_into(&mut s.$($field).+); Ok(()) },
            show: |s| match s.$($field).+.is_empty() {
                true => String::new(),
                false => "<hidden>".to_owned(),
            },
        }
    };
}

/// A row of names.
macro_rules! names {
    ($key:literal, $group:literal, $($field:ident).+, $targets:expr, $help:expr) => {
        Setting {
            key: $key,
            group: $group,
            kind: "NAME,…",
            help: $help,
            targets: $targets,
            secret: false,
            set: |s, text| { s.$($field).+ = value::parse_names(text); Ok(()) },
            show: |s| s.$($field).+.join(","),
        }
    };
}

/// A row of one address.
macro_rules! address {
    ($key:literal, $group:literal, $($field:ident).+, $help:expr) => {
        Setting {
            key: $key,
            group: $group,
            kind: "HOST:PORT",
            help: $help,
            targets: &[],
            secret: false,
            set: |s, text| { value::check_address(text)?; s.$($field).+ = text.to_owned(); Ok(()) },
            show: |s| s.$($field).+.clone(),
        }
    };
}

const WRITE: &[Target] = &[Target::Distributor];
const READ: &[Target] = &[Target::Querier];
const BUCKET: &[Target] = &[Target::Ingester, Target::Querier, Target::Store, Target::Control];
const VOTE: &[Target] = &[Target::Ingester, Target::Control];
const HEAD: &[Target] = &[Target::Ingester];
const STORE: &[Target] = &[Target::Store];

/// Every setting, grouped.
pub const SETTINGS: &[Setting] = &[
    setting!(
        "data-dir",
        "General",
        std::path::PathBuf,
        data_dir,
        &[],
        "Folder for everything the process keeps"
    ),
    setting!(
        "bucket",
        "General",
        String,
        bucket,
        BUCKET,
        "Object storage: s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or file:///folder; `bucket` in the data directory when empty"
    ),
    setting!(
        "zone",
        "General",
        String,
        zone,
        &[],
        "Zone of this process; the members of a partition are in different zones"
    ),
    setting!(
        "retention",
        "General",
        Duration,
        retention,
        &[Target::Store],
        "How long samples are kept in object storage; 0 for ever. What is downsampled of them has retentions of its own"
    ),
    setting!(
        "node.name",
        "General",
        String,
        node.name,
        &[],
        "Name of this process, unique in the cluster; made up and kept in the data directory when empty"
    ),
    setting!(
        "node.shutdown-timeout",
        "General",
        Duration,
        node.shutdown_timeout,
        &[],
        "How long a stop waits for requests in flight before it cuts them"
    ),
    bytes!(
        "node.memory-limit-bytes",
        "General",
        node.memory_limit_bytes,
        &[],
        "Memory the process may use, 0 for all that its cgroup or machine has; from 90% of it writes and queries get 503"
    ),
    address!("http.listen", "Listeners", http.listen, "Address of the HTTP API"),
    address!(
        "grpc.listen",
        "Listeners",
        grpc.listen,
        "Address for the other processes of the cluster"
    ),
    setting!(
        "grpc.advertise",
        "Listeners",
        String,
        grpc.advertise,
        &[],
        "Address at which other processes reach grpc.listen; the same when empty"
    ),
    bytes!(
        "grpc.max-message-bytes",
        "Listeners",
        grpc.max_message_bytes,
        &[],
        "Largest message between processes"
    ),
    setting!(
        "http.request-timeout",
        "Listeners",
        Duration,
        http.request_timeout,
        &[],
        "Longest HTTP request, from its first byte to the last of the answer's head"
    ),
    setting!(
        "http.max-requests-in-flight",
        "Listeners",
        usize,
        http.max_requests_in_flight,
        &[],
        "HTTP requests at once; further ones get 503 with Retry-After"
    ),
    bytes!(
        "http.max-write-bytes-in-flight",
        "Listeners",
        http.max_write_bytes_in_flight,
        WRITE,
        "Bytes of write requests held at once; further ones get 503 with Retry-After"
    ),
    setting!(
        "cluster.seeds",
        "Cluster",
        Vec<String>,
        cluster.seeds,
        &[],
        "gRPC addresses of processes from which to learn the cluster's state, separated by commas; the voters when empty"
    ),
    setting!(
        "control.voters",
        "Cluster",
        Vec<String>,
        control.voters,
        &[],
        "gRPC addresses of the control plane's voters, [name=]host:port, separated by commas; a cluster by itself when empty"
    ),
    setting!(
        "control.replication-factor",
        "Cluster",
        u32,
        control.replication_factor,
        VOTE,
        "Members of each partition, 1 or 3; 0 for 3, or 1 when everything runs in one process"
    ),
    setting!(
        "control.partitions",
        "Cluster",
        u32,
        control.partitions,
        VOTE,
        "Partitions formed at first; 0 for as many as the ingesters allow"
    ),
    setting!(
        "blocks.range",
        "Storage",
        Duration,
        blocks.range,
        HEAD,
        "Time range of a block when it is cut from the heads; stores merge blocks to 6 and 12 times as much"
    ),
    setting!(
        "ingester.head-retention",
        "Storage",
        Duration,
        ingester.head_retention,
        HEAD,
        "How long recent samples stay in memory, even when they are in object storage"
    ),
    bytes!(
        "ingester.disk-reserve-bytes",
        "Storage",
        ingester.disk_reserve_bytes,
        HEAD,
        "Free bytes on the disk below which writes get 503"
    ),
    setting!(
        "store.replication",
        "Storage",
        u32,
        store.replication,
        READ,
        "How many stores share the reads of a block: one as long as it answers, the others in its place; with 1 none is asked beside a store that lags"
    ),
    setting!(
        "store.stream-silence",
        "Storage",
        Duration,
        store.stream_silence,
        READ,
        "How long a store may send nothing more, at least, until others go on beside it; longer where stores usually take longer"
    ),
    bytes!(
        "store.cache-bytes",
        "Storage",
        store.cache_bytes,
        STORE,
        "Memory for what was read of blocks, all caches of it together"
    ),
    setting!(
        "store.cache-dir",
        "Storage",
        String,
        store.cache_dir,
        STORE,
        "Folder on a local disk for what was read of blocks of a remote bucket; block-cache in data-dir when empty. It may be deleted while the process is down"
    ),
    bytes!(
        "store.cache-disk-bytes",
        "Storage",
        store.cache_disk_bytes,
        STORE,
        "Disk for it; 0 for none. Whatever it says a gigabyte of the disk stays free, or a tenth of a small one, and in one process with an ingester its reserve beside"
    ),
    setting!(
        "store.compaction",
        "Storage",
        bool,
        store.compaction,
        STORE,
        "Whether the process merges blocks and deletes those that are replaced or older than retention; the same for all stores"
    ),
    setting!(
        "store.compaction-delay",
        "Storage",
        Duration,
        store.compaction_delay,
        STORE,
        "How long after the end of a window its blocks are merged: late blocks should be there"
    ),
    setting!(
        "store.compaction-interval",
        "Storage",
        Duration,
        store.compaction_interval,
        STORE,
        "How often it is looked for blocks to merge"
    ),
    setting!(
        "store.deletion-delay",
        "Storage",
        Duration,
        store.deletion_delay,
        STORE,
        "How long bytes of deleted blocks stay: longer than any query takes"
    ),
    setting!(
        "store.downsample-after-5m",
        "Storage",
        Duration,
        store.downsample_after_5m,
        STORE,
        "How long after its end a day is summarised by 5 minutes, beside its samples; 0 for never. A day whose samples are about to go is summarised at once"
    ),
    setting!(
        "store.downsample-after-1h",
        "Storage",
        Duration,
        store.downsample_after_1h,
        STORE,
        "The same by hours"
    ),
    setting!(
        "store.downsampled-retention-5m",
        "Storage",
        Duration,
        store.downsampled_retention_5m,
        STORE,
        "How long summaries of 5 minutes are kept; 0 for ever. Beyond retention they are all that is left"
    ),
    setting!(
        "store.downsampled-retention-1h",
        "Storage",
        Duration,
        store.downsampled_retention_1h,
        STORE,
        "How long summaries of hours are kept; 0 for ever"
    ),
    setting!(
        "store.undelete-window",
        "Storage",
        Duration,
        store.undelete_window,
        STORE,
        "How long a deletion of samples can be taken back, before they are removed from blocks"
    ),
    setting!(
        "s3.endpoint",
        "Object storage",
        String,
        s3.endpoint,
        BUCKET,
        "URL of an S3-compatible server; AWS when empty"
    ),
    setting!(
        "s3.region",
        "Object storage",
        String,
        s3.region,
        BUCKET,
        "Region of the bucket"
    ),
    setting!(
        "s3.access-key-id",
        "Object storage",
        String,
        s3.access_key_id,
        BUCKET,
        "Access key; AWS_ACCESS_KEY_ID or the machine's role when empty"
    ),
    secret!(
        "s3.secret-access-key",
        "Object storage",
        s3.secret_access_key,
        BUCKET,
        "Secret key of s3.access-key-id; better set by KOIOS_S3_SECRET_ACCESS_KEY than by flag"
    ),
    Setting {
        key: "s3.encryption",
        group: "Object storage",
        kind: "KIND",
        help: "How the server encrypts objects: AES256, aws:kms, aws:kms:dsse or sse-c; as the bucket says when empty",
        targets: BUCKET,
        secret: false,
        set: |s, text| {
            let known = crate::settings::S3Settings::ENCRYPTIONS;
            if !text.is_empty() && !known.contains(&text) {
                return Err(format!("must be one of {}", known.join(", ")));
            }
            text.clone_into(&mut s.s3.encryption);
            Ok(())
        },
        show: |s| s.s3.encryption.clone(),
    },
    setting!(
        "s3.kms-key-id",
        "Object storage",
        String,
        s3.kms_key_id,
        BUCKET,
        "Key of s3.encryption aws:kms and aws:kms:dsse; the account's own when empty"
    ),
    setting!(
        "s3.bucket-key",
        "Object storage",
        bool,
        s3.bucket_key,
        BUCKET,
        "Whether objects share a key of the bucket's, which asks KMS less often; for aws:kms"
    ),
    secret!(
        "s3.customer-key",
        "Object storage",
        s3.customer_key,
        BUCKET,
        "Key of s3.encryption sse-c, base64 of 32 bytes. Whoever loses it loses all objects"
    ),
    setting!(
        "gcs.endpoint",
        "Object storage",
        String,
        gcs.endpoint,
        BUCKET,
        "URL of another server than Google's, such as a private endpoint"
    ),
    setting!(
        "gcs.credentials-file",
        "Object storage",
        String,
        gcs.credentials_file,
        BUCKET,
        "JSON file with the key of a service account; GOOGLE_APPLICATION_CREDENTIALS or the machine's service account when empty"
    ),
    setting!(
        "azure.account",
        "Object storage",
        String,
        azure.account,
        BUCKET,
        "Storage account; AZURE_STORAGE_ACCOUNT_NAME, or the one in the bucket's URL, when empty"
    ),
    secret!(
        "azure.account-key",
        "Object storage",
        azure.account_key,
        BUCKET,
        "Key of the storage account; the environment's credentials or the machine's identity when empty"
    ),
    setting!(
        "azure.endpoint",
        "Object storage",
        String,
        azure.endpoint,
        BUCKET,
        "URL of another server than the account's own"
    ),
    secret!(
        "azure.customer-key",
        "Object storage",
        azure.customer_key,
        BUCKET,
        "Key of one's own for all objects, base64 of 32 bytes. Whoever loses it loses all objects"
    ),
    setting!(
        "storage.request-timeout",
        "Object storage",
        Duration,
        storage.request_timeout,
        BUCKET,
        "When a request that is not answered is given up and sent again; a second more for each MiB it carries"
    ),
    setting!(
        "storage.timeout",
        "Object storage",
        Duration,
        storage.timeout,
        BUCKET,
        "When an operation is given up, with all requests that it was tried by; two seconds more for each MiB"
    ),
    setting!(
        "storage.backoff-min",
        "Object storage",
        Duration,
        storage.backoff_min,
        BUCKET,
        "Wait before a request is sent again, doubled each time; a random half of it is left out"
    ),
    setting!(
        "storage.backoff-max",
        "Object storage",
        Duration,
        storage.backoff_max,
        BUCKET,
        "Longest wait before a request is sent again"
    ),
    setting!(
        "log.level",
        "Observability",
        String,
        log.level,
        &[],
        "error, warn, info, debug, trace, or directives such as info,koios_wal=debug"
    ),
    setting!(
        "log.format",
        "Observability",
        crate::settings::LogFormat,
        log.format,
        &[],
        "Form of log lines on standard error"
    ),
    setting!(
        "self-metrics.interval",
        "Observability",
        Duration,
        self_metrics.interval,
        WRITE,
        "How often the process stores its own metrics in itself, all-in-one only; 0 for never"
    ),
    setting!(
        "self-metrics.tenant",
        "Observability",
        String,
        self_metrics.tenant,
        WRITE,
        "Tenant that gets the process' own metrics"
    ),
    setting!(
        "limits.out-of-order-time-window",
        "Limits on writes",
        Duration,
        limits.out_of_order_time_window,
        &[],
        "How old a sample may be when it arrives"
    ),
    setting!(
        "limits.too-far-in-future",
        "Limits on writes",
        Duration,
        limits.too_far_in_future,
        WRITE,
        "How far ahead of this machine's clock a sample may be"
    ),
    setting!(
        "limits.max-labels-per-series",
        "Limits on writes",
        usize,
        limits.max_labels_per_series,
        WRITE,
        "Most labels of a series"
    ),
    bytes!(
        "limits.max-label-name-bytes",
        "Limits on writes",
        limits.max_label_name_bytes,
        WRITE,
        "Longest label name"
    ),
    bytes!(
        "limits.max-label-value-bytes",
        "Limits on writes",
        limits.max_label_value_bytes,
        WRITE,
        "Longest label value"
    ),
    bytes!(
        "limits.max-label-set-bytes",
        "Limits on writes",
        limits.max_label_set_bytes,
        WRITE,
        "Most bytes of all label names and values of a series together"
    ),
    setting!(
        "limits.max-series-per-request",
        "Limits on writes",
        usize,
        limits.max_series_per_request,
        WRITE,
        "Most series in one write request"
    ),
    setting!(
        "limits.max-samples-per-request",
        "Limits on writes",
        usize,
        limits.max_samples_per_request,
        WRITE,
        "Most samples in one write request"
    ),
    bytes!(
        "limits.max-request-bytes",
        "Limits on writes",
        limits.max_request_bytes,
        WRITE,
        "Largest write request, compressed and decompressed alike"
    ),
    setting!(
        "limits.max-series",
        "Limits on writes",
        u64,
        limits.max_series,
        WRITE,
        "Most active series of a tenant; samples of further ones get 400; 0 for no limit"
    ),
    setting!(
        "limits.ingestion-rate",
        "Limits on writes",
        u64,
        limits.ingestion_rate,
        WRITE,
        "Samples per second that each distributor admits for a tenant; 0 for no limit"
    ),
    setting!(
        "limits.ingestion-burst",
        "Limits on writes",
        u64,
        limits.ingestion_burst,
        WRITE,
        "Samples that may come at once above limits.ingestion-rate"
    ),
    setting!(
        "limits.ha-dedup",
        "HA pairs",
        bool,
        limits.ha_dedup,
        WRITE,
        "Whether one of several senders of the same series is elected and the others' samples are dropped (Mimir's accept_ha_samples); series without both of the labels below are taken as they are"
    ),
    setting!(
        "limits.ha-cluster-label",
        "HA pairs",
        String,
        limits.ha_cluster_label,
        WRITE,
        "Label that names the pair: equal for all replicas, kept on the series"
    ),
    setting!(
        "limits.ha-replica-label",
        "HA pairs",
        String,
        limits.ha_replica_label,
        WRITE,
        "Label that names the replica: another one for each, taken off the series"
    ),
    setting!(
        "limits.ha-failover-timeout",
        "HA pairs",
        Duration,
        limits.ha_failover_timeout,
        WRITE,
        "How long the elected replica may be away, or its newest samples behind the others', before another one is elected; longer than the longest scrape interval, 5s to 10m"
    ),
    setting!(
        "limits.ha-max-clusters",
        "HA pairs",
        usize,
        limits.ha_max_clusters,
        WRITE,
        "Most pairs of a tenant; of further ones the samples of all replicas are kept"
    ),
    setting!(
        "limits.retention",
        "Retention of tenants",
        Option<Duration>,
        limits.retention.samples,
        STORE,
        "How long samples are kept, 0 for ever; as `retention` where nothing is said"
    ),
    setting!(
        "limits.retention-rules",
        "Retention of tenants",
        Option<Vec<RetentionRule>>,
        limits.retention.rules,
        STORE,
        "Series that are kept for times of their own, `7d {job=\"debug\"}; 2y {__name__=~\"slo:.*\"}`: the first rule that matches decides; 0 is for ever, and `[]` says that there are no rules. In the file better a list of `match` and `retention`"
    ),
    setting!(
        "limits.downsample-after-5m",
        "Retention of tenants",
        Option<Duration>,
        limits.retention.downsample_after_5m,
        STORE,
        "As store.downsample-after-5m, which it is where nothing is said"
    ),
    setting!(
        "limits.downsample-after-1h",
        "Retention of tenants",
        Option<Duration>,
        limits.retention.downsample_after_1h,
        STORE,
        "As store.downsample-after-1h, which it is where nothing is said"
    ),
    setting!(
        "limits.downsampled-retention-5m",
        "Retention of tenants",
        Option<Duration>,
        limits.retention.downsampled_5m,
        STORE,
        "As store.downsampled-retention-5m, which it is where nothing is said"
    ),
    setting!(
        "limits.downsampled-retention-1h",
        "Retention of tenants",
        Option<Duration>,
        limits.retention.downsampled_1h,
        STORE,
        "As store.downsampled-retention-1h, which it is where nothing is said"
    ),
    setting!(
        "limits.otlp-translation-strategy",
        "OpenTelemetry",
        TranslationStrategy,
        limits.otlp.translation_strategy,
        WRITE,
        "What becomes of the names of metrics and attributes; as Prometheus' otlp.translation_strategy, and so on below"
    ),
    names!(
        "limits.otlp-promote-resource-attributes",
        "OpenTelemetry",
        limits.otlp.promote_resource_attributes,
        WRITE,
        "Resource attributes that become labels of every series"
    ),
    setting!(
        "limits.otlp-promote-all-resource-attributes",
        "OpenTelemetry",
        bool,
        limits.otlp.promote_all_resource_attributes,
        WRITE,
        "Whether all resource attributes become labels of every series"
    ),
    names!(
        "limits.otlp-ignore-resource-attributes",
        "OpenTelemetry",
        limits.otlp.ignore_resource_attributes,
        WRITE,
        "Resource attributes that do not, when all others do"
    ),
    setting!(
        "limits.otlp-keep-identifying-resource-attributes",
        "OpenTelemetry",
        bool,
        limits.otlp.keep_identifying_resource_attributes,
        WRITE,
        "Whether target_info also has service.name, service.namespace and service.instance.id"
    ),
    setting!(
        "limits.otlp-convert-histograms-to-nhcb",
        "OpenTelemetry",
        bool,
        limits.otlp.convert_histograms_to_nhcb,
        WRITE,
        "Whether explicit histograms become native ones with custom buckets instead of classic ones"
    ),
    setting!(
        "limits.otlp-promote-scope-metadata",
        "OpenTelemetry",
        bool,
        limits.otlp.promote_scope_metadata,
        WRITE,
        "Whether name, version, schema and attributes of the scope become labels otel_scope_…"
    ),
    setting!(
        "limits.otlp-label-name-underscore-sanitization",
        "OpenTelemetry",
        bool,
        limits.otlp.label_name_underscore_sanitization,
        WRITE,
        "Whether label names that begin with one underscore get `key` before it, where names are escaped"
    ),
    setting!(
        "limits.otlp-label-name-preserve-multiple-underscores",
        "OpenTelemetry",
        bool,
        limits.otlp.label_name_preserve_multiple_underscores,
        WRITE,
        "Whether several underscores in a row stay in label names, where names are escaped"
    ),
    bytes!(
        "limits.max-query-bytes",
        "Limits on queries",
        limits.max_query_bytes,
        READ,
        "Longest query text"
    ),
    setting!(
        "limits.max-query-samples",
        "Limits on queries",
        u64,
        limits.max_query_samples,
        READ,
        "Most samples a query may hold at once"
    ),
    setting!(
        "limits.max-query-series",
        "Limits on queries",
        u64,
        limits.max_query_series,
        READ,
        "Most series a query may fetch"
    ),
    bytes!(
        "limits.max-query-memory-bytes",
        "Limits on queries",
        limits.max_query_memory_bytes,
        READ,
        "Most memory a query may hold, its result included; series that wait to be merged may take as much again"
    ),
    setting!(
        "limits.max-query-points",
        "Limits on queries",
        u64,
        limits.max_query_points,
        READ,
        "Most points per series of a range query"
    ),
    setting!(
        "limits.query-timeout",
        "Limits on queries",
        Duration,
        limits.query_timeout,
        READ,
        "Longest run of a query"
    ),
    setting!(
        "limits.lookback-delta",
        "Limits on queries",
        Duration,
        limits.lookback_delta,
        READ,
        "How far back an instant looks for a sample"
    ),
    setting!(
        "limits.max-concurrent-queries",
        "Limits on queries",
        usize,
        limits.max_concurrent_queries,
        READ,
        "Queries of a tenant that run at once in one querier"
    ),
    setting!(
        "limits.experimental-promql",
        "Limits on queries",
        bool,
        limits.experimental_promql,
        READ,
        "Whether queries may use experimental functions and aggregations, duration expressions, anchored, smoothed and fill"
    ),
];
