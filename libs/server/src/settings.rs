//! What a process is told at its start: plain typed values, filled by [`crate::config`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use koios_model::{RetentionRule, TenantId};
use koios_tenancy::{Limits, Overrides, rule_text};

use crate::cors::CorsOrigin;

/// Less memory than a process needs to start, bytes.
const MEMORY_LIMIT_MIN: u64 = 64 << 20;

/// Longest name of a zone that the control state takes.
const ZONE_BYTES_MAX: usize = 253;

/// The smallest cache on disk that is of use, bytes.
const CACHE_DISK_MIN: u64 = 64 << 20;

/// How many times its size a write request is held, in whatever format: the message, what is written out of its strings, and the
/// labels that it names by reference.
const REQUEST_HELD_MAX: u64 = 4;

/// An older manifest lists blocks whose bytes may be gone.
const MANIFEST_AGE_MAX: Duration = Duration::from_secs(10 * 60);

/// Everything configurable. Each field's meaning, unit and default stand in the table of [`crate::config`].
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Where the process keeps its files.
    pub data_dir: PathBuf,
    /// Object storage: `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix` or `file:///folder`; empty for the
    /// folder `bucket` in [`Self::data_dir`].
    pub bucket: String,
    /// The zone this process runs in.
    pub zone: String,
    /// How long blocks are kept.
    pub retention: Duration,
    /// HTTP listener.
    pub http: HttpSettings,
    /// gRPC listener.
    pub grpc: GrpcSettings,
    /// `host:port` of a listener for OTLP by gRPC alone; empty for none.
    pub otlp_listen: String,
    /// This process.
    pub node: NodeSettings,
    /// The other processes.
    pub cluster: ClusterSettings,
    /// The control plane.
    pub control: ControlSettings,
    /// Blocks.
    pub blocks: BlockSettings,
    /// Heads and write-ahead log.
    pub ingester: IngesterSettings,
    /// Reads of blocks.
    pub store: StoreSettings,
    /// Requests to object storage.
    pub storage: StorageSettings,
    /// Object storage by the S3 protocol.
    pub s3: S3Settings,
    /// Google Cloud Storage.
    pub gcs: GcsSettings,
    /// Azure Blob Storage.
    pub azure: AzureSettings,
    /// Logging.
    pub log: LogSettings,
    /// Self-monitoring.
    pub self_metrics: SelfMetricsSettings,
    /// Limits of every tenant without exceptions.
    pub limits: Limits,
    /// Exceptions by tenant.
    pub overrides: BTreeMap<TenantId, Limits>,
    /// The keys that were set, to whatever value: what nobody said is to be told from what somebody did.
    pub given: BTreeSet<&'static str>,
}

/// See [`Settings::http`].
#[derive(Clone, Debug, PartialEq)]
pub struct HttpSettings {
    /// `host:port`.
    pub listen: String,
    /// Longest request, headers, body and answer together.
    pub request_timeout: Duration,
    /// Requests in flight beyond which further ones are shed with 503.
    pub max_requests_in_flight: usize,
    /// Compressed and decompressed bytes of write requests held at once; further ones are shed with 503.
    pub max_write_bytes_in_flight: u64,
    /// Origins whose scripts may read answers to queries.
    pub cors_origin: CorsOrigin,
}

/// See [`Settings::grpc`].
#[derive(Clone, Debug, PartialEq)]
pub struct GrpcSettings {
    /// `host:port`.
    pub listen: String,
    /// What other processes dial; empty for [`Self::listen`], with the machine's name in place of an unspecified host.
    pub advertise: String,
    /// Largest message, bytes.
    pub max_message_bytes: u64,
}

/// See [`Settings::node`].
#[derive(Clone, Debug, PartialEq)]
pub struct NodeSettings {
    /// The process' name, unique in the cluster; empty for one derived from the target and kept in the data directory.
    pub name: String,
    /// How long a stop may take before connections are cut.
    pub shutdown_timeout: Duration,
    /// Bytes of memory that the process may use; 0 for what its cgroup or the machine gives it. Near it, work is refused.
    pub memory_limit_bytes: u64,
}

/// See [`Settings::cluster`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClusterSettings {
    /// gRPC addresses of processes to learn the cluster's state from.
    pub seeds: Vec<String>,
}

/// See [`Settings::control`].
#[derive(Clone, Debug, PartialEq)]
pub struct ControlSettings {
    /// The control plane's voters as `[name=]host:port`; empty when the process is a cluster by itself.
    pub voters: Vec<String>,
    /// Members of each partition: 1 or 3; 0 for 1 in a process that is a cluster by itself, else 3.
    pub replication_factor: u32,
    /// Partitions to form at first; 0 for as many as the members allow.
    pub partitions: u32,
}

/// See [`Settings::blocks`].
#[derive(Clone, Debug, PartialEq)]
pub struct BlockSettings {
    /// Time range of a freshly cut block.
    pub range: Duration,
    /// How long queriers go by what they know of a tenant's blocks where heads can answer alone.
    pub manifest_max_age: Duration,
}

/// See [`Settings::ingester`].
#[derive(Clone, Debug, PartialEq)]
pub struct IngesterSettings {
    /// Heads keep samples at least this long, even when they are in listed blocks.
    pub head_retention: Duration,
    /// Free bytes on the disk below which writes are refused.
    pub disk_reserve_bytes: u64,
}

/// See [`Settings::store`].
#[derive(Clone, Debug, PartialEq)]
pub struct StoreSettings {
    /// How many stores share the reads of a block.
    pub replication: u32,
    /// How long a store's stream may be silent, at least, until others go on beside it.
    pub stream_silence: Duration,
    /// Bytes of memory for what was read of blocks, all caches together.
    pub cache_bytes: u64,
    /// Where blocks of a remote bucket are kept on disk; empty for the folder `block-cache` in [`Settings::data_dir`].
    pub cache_dir: String,
    /// Most bytes of them; 0 for none.
    pub cache_disk_bytes: u64,
    /// Whether the process compacts blocks and deletes old ones.
    pub compaction: bool,
    /// How long after the end of a window its blocks are merged.
    pub compaction_delay: Duration,
    /// How often tenants are looked at.
    pub compaction_interval: Duration,
    /// How long bytes of deleted blocks stay.
    pub deletion_delay: Duration,
    /// How long after the end of a day its samples are summarised by 5 minutes; 0 for never.
    pub downsample_after_5m: Duration,
    /// The same by hours.
    pub downsample_after_1h: Duration,
    /// How long summaries of 5 minutes are kept; 0 for ever.
    pub downsampled_retention_5m: Duration,
    /// How long summaries of hours are kept; 0 for ever.
    pub downsampled_retention_1h: Duration,
    /// How long a deletion of samples can be taken back.
    pub undelete_window: Duration,
}

/// See [`Settings::storage`].
#[derive(Clone, Debug, PartialEq)]
pub struct StorageSettings {
    /// When a request that does not answer is given up and sent again; more for large objects.
    pub request_timeout: Duration,
    /// When an operation, with all its requests, is given up; more for large objects.
    pub timeout: Duration,
    /// The first wait before a request is sent again, doubled each time.
    pub backoff_min: Duration,
    /// The longest wait.
    pub backoff_max: Duration,
}

impl StorageSettings {
    fn validate(&self) -> Result<(), String> {
        let least = |key: &str, value: Duration, rule: &str, ok: bool| match ok {
            true => Ok(()),
            false => Err(format!("storage.{key} is {value:?}, must be {rule}")),
        };
        let second = Duration::from_secs(1);
        least(
            "request-timeout",
            self.request_timeout,
            "at least 1s",
            self.request_timeout >= second,
        )?;
        least(
            "timeout",
            self.timeout,
            "at least storage.request-timeout",
            self.timeout >= self.request_timeout,
        )?;
        least(
            "backoff-min",
            self.backoff_min,
            "at least 1ms",
            self.backoff_min >= Duration::from_millis(1),
        )?;
        least(
            "backoff-max",
            self.backoff_max,
            "at least storage.backoff-min and less than storage.timeout",
            (self.backoff_min..self.timeout).contains(&self.backoff_max),
        )
    }
}

/// See [`Settings::s3`].
#[derive(Clone, Default, PartialEq)]
pub struct S3Settings {
    /// URL of an S3-compatible server; empty for AWS.
    pub endpoint: String,
    /// Region.
    pub region: String,
    /// Access key; empty for the environment's or the machine's own credentials.
    pub access_key_id: String,
    /// Secret key.
    pub secret_access_key: String,
    /// How the server encrypts objects; empty for what the bucket says.
    pub encryption: String,
    /// The key in KMS; empty for the account's own.
    pub kms_key_id: String,
    /// Whether one key of KMS's serves many objects.
    pub bucket_key: bool,
    /// The key of `sse-c`, in base64.
    pub customer_key: String,
}

impl fmt::Debug for S3Settings {
    /// Leaves the secrets out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Settings")
            .field("endpoint", &self.endpoint)
            .field("region", &self.region)
            .field("access_key_id", &self.access_key_id)
            .field("encryption", &self.encryption)
            .field("kms_key_id", &self.kms_key_id)
            .field("bucket_key", &self.bucket_key)
            .finish_non_exhaustive()
    }
}

impl S3Settings {
    /// The kinds of encryption, as the protocol calls them.
    pub const ENCRYPTIONS: [&'static str; 4] = ["AES256", "aws:kms", "aws:kms:dsse", "sse-c"];

    fn validate(&self) -> Result<(), String> {
        let pairs = [
            ("s3.access-key-id", &self.access_key_id),
            ("s3.secret-access-key", &self.secret_access_key),
        ];
        let [(id, id_value), (secret, secret_value)] = pairs;
        if id_value.is_empty() != secret_value.is_empty() {
            let (has, lacks) = if id_value.is_empty() {
                (secret, id)
            } else {
                (id, secret)
            };
            return Err(format!(
                "{has} is set but {lacks} is missing: set both or neither"
            ));
        }
        let with_kms = self.encryption.starts_with("aws:kms");
        if !self.kms_key_id.is_empty() && !with_kms {
            return Err("s3.kms-key-id is set, so s3.encryption must be aws:kms or aws:kms:dsse".to_owned());
        }
        if self.bucket_key && self.encryption != "aws:kms" {
            return Err("s3.bucket-key is true, so s3.encryption must be aws:kms".to_owned());
        }
        if self.customer_key.is_empty() == (self.encryption == "sse-c") {
            return Err(
                "s3.encryption sse-c and s3.customer-key go together: set both or neither".to_owned(),
            );
        }
        Ok(())
    }
}

/// See [`Settings::gcs`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GcsSettings {
    /// URL of another server than Google's.
    pub endpoint: String,
    /// File with the credentials; empty for the environment's or the machine's own.
    pub credentials_file: String,
}

/// See [`Settings::azure`].
#[derive(Clone, Default, PartialEq)]
pub struct AzureSettings {
    /// The storage account.
    pub account: String,
    /// Its key; empty for the environment's or the machine's own credentials.
    pub account_key: String,
    /// URL of another server than the account's.
    pub endpoint: String,
    /// A key of one's own for all objects, in base64.
    pub customer_key: String,
}

impl fmt::Debug for AzureSettings {
    /// Leaves the secrets out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AzureSettings")
            .field("account", &self.account)
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

/// See [`Settings::log`].
#[derive(Clone, Debug, PartialEq)]
pub struct LogSettings {
    /// `error`, `warn`, `info`, `debug`, `trace`, or directives such as `info,koios_wal=debug`.
    pub level: String,
    /// The form of a line.
    pub format: LogFormat,
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// See [`Settings::self_metrics`].
#[derive(Clone, Debug, PartialEq)]
pub struct SelfMetricsSettings {
    /// How often all-in-one writes its own metrics into itself; 0 for never.
    pub interval: Duration,
    /// The tenant that gets them.
    pub tenant: String,
}

impl Default for Settings {
    fn default() -> Self {
        const HOUR: Duration = Duration::from_secs(3600);
        Self {
            data_dir: PathBuf::from("koios-data"),
            bucket: String::new(),
            zone: "zone-a".to_owned(),
            retention: HOUR * 24 * 150,
            http: HttpSettings {
                listen: "127.0.0.1:9009".to_owned(),
                request_timeout: Duration::from_secs(150),
                max_requests_in_flight: 1024,
                max_write_bytes_in_flight: 256 << 20,
                cors_origin: CorsOrigin::default(),
            },
            otlp_listen: String::new(),
            grpc: GrpcSettings {
                listen: "127.0.0.1:9095".to_owned(),
                advertise: String::new(),
                max_message_bytes: 64 << 20,
            },
            node: NodeSettings {
                name: String::new(),
                shutdown_timeout: Duration::from_secs(30),
                memory_limit_bytes: 0,
            },
            cluster: ClusterSettings::default(),
            control: ControlSettings {
                voters: Vec::new(),
                replication_factor: 0,
                partitions: 0,
            },
            blocks: BlockSettings {
                range: HOUR * 2,
                manifest_max_age: Duration::from_secs(60),
            },
            ingester: IngesterSettings {
                head_retention: HOUR * 3,
                disk_reserve_bytes: 256 << 20,
            },
            store: StoreSettings {
                replication: 2,
                stream_silence: Duration::from_secs(2),
                cache_bytes: 640 << 20,
                cache_dir: String::new(),
                cache_disk_bytes: 4 << 30,
                compaction: true,
                compaction_delay: Duration::from_secs(45 * 60),
                compaction_interval: Duration::from_secs(60),
                deletion_delay: HOUR,
                downsample_after_5m: HOUR * 40,
                downsample_after_1h: HOUR * 40,
                downsampled_retention_5m: HOUR * 24 * 366,
                downsampled_retention_1h: HOUR * 24 * 365 * 5,
                undelete_window: HOUR,
            },
            storage: StorageSettings {
                request_timeout: Duration::from_secs(20),
                timeout: Duration::from_secs(60),
                backoff_min: Duration::from_millis(50),
                backoff_max: Duration::from_secs(5),
            },
            s3: S3Settings::default(),
            gcs: GcsSettings::default(),
            azure: AzureSettings::default(),
            log: LogSettings {
                level: "info".to_owned(),
                format: LogFormat::Text,
            },
            self_metrics: SelfMetricsSettings {
                interval: Duration::from_secs(15),
                tenant: koios_model::DEFAULT_TENANT.to_owned(),
            },
            limits: Limits::default(),
            overrides: BTreeMap::new(),
            given: BTreeSet::new(),
        }
    }
}

impl Settings {
    /// The limits of all tenants.
    pub fn tenant_limits(&self) -> Overrides {
        Overrides::new(self.limits.clone(), self.overrides.clone())
    }

    /// Checks that the values can be met together.
    ///
    /// # Errors
    /// A sentence naming the key, its value and what it must be.
    pub fn validate(&self) -> Result<(), String> {
        let wrong = |key: &str, value: &dyn fmt::Display, rule: &str| {
            Err(format!("{key} is {value}, must be {rule}"))
        };
        if !matches!(self.control.replication_factor, 0 | 1 | 3) {
            return wrong(
                "control.replication-factor",
                &self.control.replication_factor,
                "1 or 3 (or 0 to choose by target)",
            );
        }
        if (1..MEMORY_LIMIT_MIN).contains(&self.node.memory_limit_bytes) {
            let rule = format!("0, or at least {MEMORY_LIMIT_MIN}");
            return wrong("node.memory-limit-bytes", &self.node.memory_limit_bytes, &rule);
        }
        if self.blocks.range < Duration::from_secs(1) {
            return wrong(
                "blocks.range",
                &format_args!("{:?}", self.blocks.range),
                "at least 1s",
            );
        }
        if self.blocks.manifest_max_age > MANIFEST_AGE_MAX {
            let rule = format!("at most {MANIFEST_AGE_MAX:?}");
            return wrong(
                "blocks.manifest-max-age",
                &format_args!("{:?}", self.blocks.manifest_max_age),
                &rule,
            );
        }
        if self.store.replication == 0 {
            return wrong("store.replication", &self.store.replication, "at least 1");
        }
        if self.store.stream_silence < Duration::from_millis(100) {
            return wrong(
                "store.stream-silence",
                &format_args!("{:?}", self.store.stream_silence),
                "at least 100ms",
            );
        }
        if (1..CACHE_DISK_MIN).contains(&self.store.cache_disk_bytes) {
            let rule = format!("0, or at least {CACHE_DISK_MIN}");
            return wrong("store.cache-disk-bytes", &self.store.cache_disk_bytes, &rule);
        }
        if self.store.compaction_interval < Duration::from_millis(100) {
            return wrong(
                "store.compaction-interval",
                &format_args!("{:?}", self.store.compaction_interval),
                "at least 100ms",
            );
        }
        if self.store.deletion_delay < Duration::from_secs(1) {
            return wrong(
                "store.deletion-delay",
                &format_args!("{:?}", self.store.deletion_delay),
                "at least 1s",
            );
        }
        self.storage.validate()?;
        self.s3.validate()?;
        if let Err(e) = TenantId::new(&self.self_metrics.tenant) {
            return Err(format!("self-metrics.tenant: {e}"));
        }
        if !self.node.name.is_empty()
            && let Err(e) = TenantId::new(&self.node.name)
        {
            let reason = e.to_string().replace("tenant ID", "name");
            return Err(format!("node.name: {reason}"));
        }
        let zone = &self.zone;
        if zone.is_empty() || zone.len() > ZONE_BYTES_MAX || zone.chars().any(char::is_control) {
            let rule = format!("1 to {ZONE_BYTES_MAX} bytes without control characters");
            return wrong("zone", &format_args!("{zone:?}"), &rule);
        }
        self.validate_request_bytes()?;
        self.limits.validate().map_err(|e| e.to_string())?;
        for (tenant, limits) in &self.overrides {
            limits
                .validate()
                .map_err(|e| format!("overrides.{tenant}: {e}"))?;
        }
        Ok(())
    }

    /// Half of the bytes in flight may be one tenant's, and its largest request must fit into them: whatever the format, it takes up
    /// to [`REQUEST_HELD_MAX`] times its size. What expands to more, as histograms may, gets 413.
    fn validate_request_bytes(&self) -> Result<(), String> {
        let in_flight = self.http.max_write_bytes_in_flight;
        let of_all = ("limits.max-request-bytes".to_owned(), &self.limits);
        let own = self.overrides.iter();
        let own = own.map(|(tenant, limits)| (format!("overrides.{tenant}.max-request-bytes"), limits));
        for (limit, limits) in std::iter::once(of_all).chain(own) {
            let largest = limits.max_request_bytes.saturating_mul(2 * REQUEST_HELD_MAX);
            if in_flight < largest {
                return Err(format!(
                    "http.max-write-bytes-in-flight is {in_flight}, must be at least {largest}, {} times {limit}",
                    2 * REQUEST_HELD_MAX
                ));
            }
        }
        Ok(())
    }

    /// Has nothing go by rules of retention that every series with a name matches, which versions before accepted: a start that refused
    /// them would stop a process because of its upgrade. Gives them, to be warned of.
    pub fn disarm_retention(&mut self) -> Vec<DisarmedRule> {
        let of_all = self.limits.retention.disarm();
        let mut disarmed: Vec<DisarmedRule> =
            of_all.iter().map(|rule| DisarmedRule::new(None, rule)).collect();
        for (tenant, limits) in &mut self.overrides {
            let own = &mut limits.retention;
            if own.rules.is_none() && of_all.is_some() {
                // The rules of all are its, too: what they kept would go by its own retention.
                own.samples = own.samples.map(|_| Duration::ZERO);
            }
            disarmed.extend(own.disarm().map(|rule| DisarmedRule::new(Some(tenant), &rule)));
        }
        disarmed
    }
}

/// A rule of retention that every series with a name matches, and by which nothing goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DisarmedRule {
    /// Whose it is; `None` for that of all tenants.
    pub tenant: Option<TenantId>,
    /// Its selector.
    pub rule: String,
    /// How long it is to keep what it matches; `None` for ever.
    pub kept: Option<Duration>,
}

impl DisarmedRule {
    fn new(tenant: Option<&TenantId>, rule: &RetentionRule) -> Self {
        Self {
            tenant: tenant.cloned(),
            rule: rule_text(&rule.matchers),
            kept: rule.kept_ms.map(|ms| Duration::from_millis(ms.unsigned_abs())),
        }
    }
}

impl fmt::Display for DisarmedRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = match &self.tenant {
            Some(tenant) => format!("overrides.{tenant}"),
            None => "limits".to_owned(),
        };
        let kept = self
            .kept
            .map_or_else(|| "0".to_owned(), |kept| format!("{}s", kept.as_secs()));
        write!(
            f,
            "{of}.retention-rules has {}, which every series with a name matches: NOTHING IS DELETED by it, nor by the rules behind it, \
             and what it matches is kept for ever; leave it out, and say {of}.retention: {kept} if that is meant",
            self.rule
        )
    }
}
