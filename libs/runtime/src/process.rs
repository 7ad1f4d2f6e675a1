//! What the operating system says of this process.

/// Resources the process has used. Zero where the system does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ProcessStats {
    /// Resident memory, bytes.
    pub resident_bytes: u64,
    /// CPU time in user and system mode, seconds.
    pub cpu_seconds: f64,
    /// Open file descriptors.
    pub open_files: u64,
}

/// Ticks per second of the CPU times in `/proc`: fixed for user space on every Linux architecture.
const TICKS_PER_SECOND: f64 = 100.0;

impl ProcessStats {
    /// Reads them now. Differs from run to run, so it may feed metrics but no decision.
    pub fn read() -> Self {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let open_files = std::fs::read_dir("/proc/self/fd").map_or(0, |d| d.count() as u64);
        Self {
            resident_bytes: Self::read_resident_bytes(),
            open_files,
            ..Self::parse(&stat)
        }
    }

    /// Resident memory alone, bytes; 0 where the system does not tell. What differs from run to run may decide only through
    /// an injected handle.
    pub(crate) fn read_resident_bytes() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
        let kib = line.and_then(|l| l.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
        kib.unwrap_or(0).saturating_mul(1 << 10)
    }

    /// The CPU time, from the line of `/proc/self/stat`; the second field may hold spaces and ends with the last `)`.
    fn parse(stat: &str) -> Self {
        let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        let field = |number: usize| -> u64 {
            after_name
                .split(' ')
                .nth(number.saturating_sub(3))
                .and_then(|f| f.trim().parse().ok())
                .unwrap_or(0)
        };
        Self {
            resident_bytes: 0,
            cpu_seconds: (field(14).saturating_add(field(15))) as f64 / TICKS_PER_SECOND,
            open_files: 0,
        }
    }
}

/// Lets the C library's allocator keep no more than one arena for each core, and two at least; by itself it keeps up to
/// eight. What threads have freed in an arena stays there, so that every arena more is memory that others cannot use.
/// Before other threads are started. Does nothing with other C libraries, whose allocators differ.
pub(crate) fn bound_arenas(cores: usize) {
    let arenas = i32::try_from(cores.max(2)).unwrap_or(i32::MAX);
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: sets a number that the allocator reads when it makes an arena; no memory is looked at.
        #[expect(unsafe_code, reason = "the C library has no other interface for it")]
        let done = unsafe { libc::mallopt(libc::M_ARENA_MAX, arenas) };
        if done == 0 {
            tracing::warn!(
                arenas,
                "the allocator did not take a bound on its arenas: more memory may be used"
            );
        }
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    let _ = arenas;
}

/// Gives memory that was freed, and that the C library's allocator holds for later use, back to the system. Takes some
/// milliseconds for each gigabyte. Does nothing with other C libraries.
pub(crate) fn release_free_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: touches free memory of the allocator alone, under its own locks.
        #[expect(unsafe_code, reason = "the C library has no other interface for it")]
        unsafe {
            libc::malloc_trim(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_fields_behind_a_name_with_spaces() {
        let line = "7 (a) b c) S 1 7 7 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 9 0 100 99999 3 18446744073709551615 1\n";
        let got = ProcessStats::parse(line);
        assert_eq!(got.cpu_seconds, 2.0);
        assert!(ProcessStats::read_resident_bytes() > 0);
        assert_eq!(ProcessStats::parse("nonsense"), ProcessStats::default());
    }
}
