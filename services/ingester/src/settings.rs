//! How an ingester behaves.

use std::path::PathBuf;
use std::time::Duration;

/// Settings of an ingester. Durations count by the injected clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Folder of the write-ahead log.
    pub wal_dir: PathBuf,
    /// Size of a log segment, bytes, beside what it begins with. Default 32 MiB: some eight million samples, which a restart applies in about two seconds.
    pub wal_segment_bytes: u64,
    /// Segments whose samples are all in listed blocks are kept this long for peers' repair. Default 6 h.
    pub wal_keep: Duration,
    /// Such segments go earlier when the log is larger than this, bytes. Default 8 GiB.
    pub wal_keep_bytes: u64,
    /// Pushes are refused when a new segment would leave less than this free on the disk, bytes. Default 1 GiB.
    pub disk_reserve_bytes: u64,
    /// Most memory of pushes waiting for the log, bytes. Default 128 MiB; one tenant may take half of it.
    pub push_queue_bytes: usize,
    /// Samples that a deletion leaves are logged with it in records of about so many bytes at most; what is late of it is uploaded or put
    /// back in portions of as many. Default 16 MiB.
    pub deletion_record_bytes: usize,
    /// Width of the windows that blocks are cut for. Default 2 h.
    pub block_window: Duration,
    /// Samples younger than this stay in the head although they are in listed blocks. Default 3 h.
    pub head_keep: Duration,
    /// A window is cut when no samples of it came for this long. One that keeps the log waiting is cut so much later than the
    /// width of a window even if some come. Default 30 min.
    pub quiet_after: Duration,
    /// How often windows are looked at. Default 15 s.
    pub cut_interval: Duration,
    /// How much later than a window's end the newest sample is when the window is cut, so that what is on its way finds it
    /// uncut, such as exemplars, which are older than the scrape that brings them: what comes later costs a block of its
    /// own. A tenth of the window at most. Default 1 min.
    pub cut_settle: Duration,
    /// Late samples of a window that was cut before wait this long for others, as do exemplars without samples. Default
    /// 30 min.
    pub late_cut_interval: Duration,
    /// How much longer each further member of a partition waits for the block of the members before it. Default 10 min.
    pub cut_stagger: Duration,
    /// First and longest wait after the bucket failed. Default 1 s and 1 min.
    pub bucket_backoff: (Duration, Duration),
    /// How often batch sets are compared with peers. Default 30 s.
    pub repair_interval: Duration,
    /// The same while this member does not count for reads. Default 1 s.
    pub repair_retry: Duration,
    /// Deadline of a call to a peer. Default 10 s.
    pub peer_deadline: Duration,
    /// How long a request waits for the replay of the log. Less than the deadline of a call to a member, so that it is the
    /// ingester that says why. Default 8 s.
    pub replay_patience: Duration,
    /// How long a request under a newer epoch waits for that epoch to arrive here. Default 2 s.
    pub adopt_deadline: Duration,
}

impl Settings {
    /// The defaults, with the log in `wal_dir`.
    pub fn new(wal_dir: impl Into<PathBuf>) -> Self {
        const MINUTE: Duration = Duration::from_secs(60);
        const HOUR: Duration = Duration::from_secs(3600);
        Self {
            wal_dir: wal_dir.into(),
            wal_segment_bytes: 32 << 20,
            wal_keep: 6 * HOUR,
            wal_keep_bytes: 8 << 30,
            disk_reserve_bytes: 1 << 30,
            push_queue_bytes: 128 << 20,
            deletion_record_bytes: 16 << 20,
            block_window: 2 * HOUR,
            head_keep: 3 * HOUR,
            quiet_after: 30 * MINUTE,
            cut_interval: Duration::from_secs(15),
            cut_settle: MINUTE,
            late_cut_interval: 30 * MINUTE,
            cut_stagger: 10 * MINUTE,
            bucket_backoff: (Duration::from_secs(1), MINUTE),
            repair_interval: Duration::from_secs(30),
            repair_retry: Duration::from_secs(1),
            peer_deadline: Duration::from_secs(10),
            replay_patience: Duration::from_secs(8),
            adopt_deadline: Duration::from_secs(2),
        }
    }

    pub(crate) fn window_ms(&self) -> i64 {
        millis(self.block_window).max(1)
    }
}

/// A duration in milliseconds.
pub(crate) fn millis(d: Duration) -> i64 {
    i64::try_from(d.as_millis()).unwrap_or(i64::MAX)
}
