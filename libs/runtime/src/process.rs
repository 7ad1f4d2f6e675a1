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
const PAGE_BYTES: u64 = 4096;

impl ProcessStats {
    /// Reads them now. Differs from run to run, so it may feed metrics but no decision.
    pub fn read() -> Self {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let open_files = std::fs::read_dir("/proc/self/fd").map_or(0, |d| d.count() as u64);
        Self {
            open_files,
            ..Self::parse(&stat)
        }
    }

    /// From the line of `/proc/self/stat`; the second field may hold spaces and ends with the last `)`.
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
            resident_bytes: field(24).saturating_mul(PAGE_BYTES),
            cpu_seconds: (field(14).saturating_add(field(15))) as f64 / TICKS_PER_SECOND,
            open_files: 0,
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
        assert_eq!(got.resident_bytes, 3 * 4096);
        assert_eq!(got.cpu_seconds, 2.0);
        assert_eq!(ProcessStats::parse("nonsense"), ProcessStats::default());
    }
}
