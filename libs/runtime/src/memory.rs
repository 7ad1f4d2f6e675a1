//! Whether the process is about to run out of memory, so that it can refuse work before the system ends it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::process::{ProcessStats, release_free_memory};

/// How old an answer about used memory may be.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Shortest time between two attempts to give free memory back to the system: each walks all that the allocator holds, some
/// milliseconds for each gigabyte. What a cut took is half as much again as the head, so it is not left lying for long.
const RELEASE_INTERVAL: Duration = Duration::from_secs(5);
/// Share of the limit from which work is refused, percent. The rest is for what was admitted before.
const SHED_FROM_PERCENT: u64 = 90;
/// Share of the limit below which work is taken again, percent: apart, so that it does not go to and fro.
const TAKE_BELOW_PERCENT: u64 = 85;

/// Most that a process may use, and what it uses.
pub trait Memory: Send + Sync + std::fmt::Debug + 'static {
    /// Resident bytes now.
    fn used_bytes(&self) -> u64;

    /// Gives what was freed, and is held for later use, back to the system. May take a while, and may go on after it returns.
    fn release(&self);
}

/// Watches the memory that the process uses. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct MemoryWatch(Option<Arc<Watched>>);

#[derive(Debug)]
struct Watched {
    memory: Box<dyn Memory>,
    limit: u64,
    used: AtomicU64,
    /// When it was looked at and released, milliseconds of the monotonic clock; 0 for never.
    looked_ms: AtomicU64,
    released_ms: AtomicU64,
    short: AtomicBool,
    /// Much was freed since it was released.
    freed: AtomicBool,
}

/// The process uses nearly all the memory that it may use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "memory is short: {} of {} MiB in use, work is refused from {SHED_FROM_PERCENT}%: try again later; give this process more \
     memory (node.memory-limit-bytes where that is set), or fewer series and queries",
    .used >> 20, .limit >> 20
)]
pub struct MemoryShort {
    /// Resident bytes.
    pub used: u64,
    /// Most bytes it may use.
    pub limit: u64,
}

impl MemoryWatch {
    /// Watches this process. `limit` in bytes, 0 for what its cgroup allows it or else what the machine has. Where the system
    /// tells neither, nothing is watched.
    pub fn of_process(limit: u64) -> Self {
        let limit = match limit {
            0 => system_limit(),
            limit => Some(limit),
        };
        limit.map_or_else(Self::default, |limit| Self::new(Box::new(ProcessMemory), limit))
    }

    /// Watches `memory`, of which `limit` bytes may be used.
    pub fn new(memory: Box<dyn Memory>, limit: u64) -> Self {
        Self(Some(Arc::new(Watched {
            memory,
            limit,
            used: AtomicU64::new(0),
            looked_ms: AtomicU64::new(0),
            released_ms: AtomicU64::new(0),
            short: AtomicBool::new(false),
            freed: AtomicBool::new(false),
        })))
    }

    /// Most bytes that the process may use; none when nothing is watched.
    pub fn limit_bytes(&self) -> Option<u64> {
        self.0.as_ref().map(|w| w.limit)
    }

    /// Has what was freed given back to the system, once a piece of work ended at the monotonic time `now` that took much
    /// for a while: the allocator would keep it for the next, hours later. Soon, for it is done at most once in some seconds.
    pub fn freed(&self, now: Duration) {
        if let Some(watched) = &self.0 {
            watched.freed.store(true, Ordering::Relaxed);
            watched.release_if_due(since_start_ms(now));
        }
    }

    /// Says whether more work may be taken at the monotonic time `now`. Cheap: looks no more than ten times a second.
    ///
    /// # Errors
    /// [`MemoryShort`] when it may not.
    pub fn check(&self, now: Duration) -> Result<(), MemoryShort> {
        let Some(watched) = &self.0 else { return Ok(()) };
        let now_ms = since_start_ms(now);
        if due(&watched.looked_ms, now_ms, LOOK_INTERVAL) {
            watched.look(now_ms);
        }
        if !watched.short.load(Ordering::Relaxed) {
            return Ok(());
        }
        Err(MemoryShort {
            used: watched.used.load(Ordering::Relaxed),
            limit: watched.limit,
        })
    }
}

/// Milliseconds of the monotonic clock, from 1, as 0 is never.
fn since_start_ms(now: Duration) -> u64 {
    u64::try_from(now.as_millis())
        .unwrap_or(u64::MAX)
        .saturating_add(1)
}

/// Whether `at` is longer ago than `interval`; true for one caller only.
fn due(at: &AtomicU64, now_ms: u64, interval: Duration) -> bool {
    let last = at.load(Ordering::Relaxed);
    let old = last == 0 || u128::from(now_ms.saturating_sub(last)) >= interval.as_millis();
    old && at
        .compare_exchange(last, now_ms, Ordering::Relaxed, Ordering::Relaxed)
        .is_ok()
}

impl Watched {
    fn look(&self, now_ms: u64) {
        let used = self.memory.used_bytes();
        let was_short = self.short.load(Ordering::Relaxed);
        let percent = if was_short {
            TAKE_BELOW_PERCENT
        } else {
            SHED_FROM_PERCENT
        };
        let short = u128::from(used) * 100 >= u128::from(self.limit) * u128::from(percent);
        self.used.store(used, Ordering::Relaxed);
        self.short.store(short, Ordering::Relaxed);
        let (used_mib, limit_mib) = (used >> 20, self.limit >> 20);
        if short && !was_short {
            tracing::warn!(
                used_mib,
                limit_mib,
                "memory is short: refusing writes and queries"
            );
        }
        if !short && was_short {
            tracing::info!(used_mib, limit_mib, "memory suffices again");
        }
        self.release_if_due(now_ms);
    }

    fn release_if_due(&self, now_ms: u64) {
        let wanted = self.short.load(Ordering::Relaxed) || self.freed.load(Ordering::Relaxed);
        if wanted && due(&self.released_ms, now_ms, RELEASE_INTERVAL) {
            self.freed.store(false, Ordering::Relaxed);
            self.memory.release();
        }
    }
}

#[derive(Debug)]
struct ProcessMemory;

impl Memory for ProcessMemory {
    fn used_bytes(&self) -> u64 {
        ProcessStats::read_resident_bytes()
    }

    fn release(&self) {
        // On a thread of its own: the allocator walks all that it holds.
        let thread = std::thread::Builder::new().name("release-memory".to_owned());
        if let Err(error) = thread.spawn(release_free_memory) {
            tracing::warn!(%error, "no thread could be started to release memory");
        }
    }
}

/// What the process may use: the least bound of the cgroups it is in, or the machine's memory.
fn system_limit() -> Option<u64> {
    let machine = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|m| total(&m));
    let cgroups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let bounds = bound_files(&cgroups).filter_map(|file| std::fs::read_to_string(file).ok());
    bounds
        .filter_map(|text| text.trim().parse().ok())
        .chain(machine)
        .min()
}

/// `MemTotal` of `/proc/meminfo`, bytes.
fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1 << 10)
}

/// The files with a bound on the memory of a cgroup or one above it, of version 2 and 1. In a container the path is the
/// host's or `/`, of which the root is what is mounted.
fn bound_files(cgroups: &str) -> impl Iterator<Item = std::path::PathBuf> + '_ {
    let of_line = |line: &str| -> Vec<std::path::PathBuf> {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
            return Vec::new();
        };
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            c if c.split(',').any(|c| c == "memory") => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            _ => return Vec::new(),
        };
        let path = Path::new(path.trim_start_matches('/'));
        path.ancestors()
            .map(|p| Path::new(root).join(p).join(file))
            .collect()
    };
    cgroups.lines().flat_map(of_line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default)]
    struct Pretended {
        used: AtomicU64,
        released: AtomicU64,
    }

    impl Memory for Arc<Pretended> {
        fn used_bytes(&self) -> u64 {
            self.used.load(Ordering::Relaxed)
        }

        fn release(&self) {
            self.released.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn i12_work_is_refused_while_memory_is_short() {
        let memory = Arc::<Pretended>::default();
        let watch = MemoryWatch::new(Box::new(Arc::clone(&memory)), 1000 << 20);
        let at = |ms| watch.check(Duration::from_millis(ms));
        let uses = |mib: u64| memory.used.store(mib << 20, Ordering::Relaxed);
        uses(899);
        assert_eq!(at(0), Ok(()));
        uses(900);
        // It was looked at a moment ago.
        assert_eq!(at(99), Ok(()));
        let short = at(100).unwrap_err();
        assert_eq!((short.used, short.limit), (900 << 20, 1000 << 20));
        assert!(
            short.to_string().starts_with("memory is short: 900 of 1000 MiB"),
            "{short}"
        );
        assert!(at(200).is_err() && at(5_000).is_err());
        assert_eq!(memory.released.load(Ordering::Relaxed), 1);
        assert!(at(5_100).is_err());
        assert_eq!(memory.released.load(Ordering::Relaxed), 2);
        uses(850);
        assert!(at(5_200).is_err(), "not for a little less");
        uses(849);
        assert_eq!(at(5_300), Ok(()));
        uses(899);
        assert_eq!(at(5_400), Ok(()));
        assert_eq!(MemoryWatch::default().check(Duration::ZERO), Ok(()));
    }

    #[test]
    fn what_was_freed_is_given_back_soon_and_rarely() {
        let memory = Arc::<Pretended>::default();
        let watch = MemoryWatch::new(Box::new(Arc::clone(&memory)), 1000 << 20);
        let released = || memory.released.load(Ordering::Relaxed);
        let check = |s| watch.check(Duration::from_secs(s)).unwrap();
        check(1);
        assert_eq!(released(), 0);
        watch.freed(Duration::from_secs(2));
        assert_eq!(released(), 1);
        watch.freed(Duration::from_secs(4));
        check(6);
        assert_eq!(released(), 1, "not twice within seconds");
        check(7);
        assert_eq!(released(), 2, "but not forgotten");
        check(200);
        assert_eq!(released(), 2, "nothing was freed since");
    }

    #[test]
    fn bounds_are_those_of_all_groups_above() {
        let files = |text| {
            bound_files(text)
                .map(|p| p.display().to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            files("0::/a/b\n"),
            ["a/b/", "a/", ""].map(|p| format!("/sys/fs/cgroup/{p}memory.max"))
        );
        let old = "5:cpu,cpuacct:/x\n4:memory:/x\nnonsense\n";
        assert_eq!(
            files(old),
            ["x/", ""].map(|p| format!("/sys/fs/cgroup/memory/{p}memory.limit_in_bytes"))
        );
        assert_eq!(
            total("MemFree: 1 kB\nMemTotal:       2048 kB\n"),
            Some(2048 << 10)
        );
        assert_eq!(total("nonsense"), None);
    }
}
