//! Medians of seconds of CPU.

use std::collections::BTreeMap;
use std::time::Duration;

/// User and system time of this thread.
#[expect(unsafe_code, reason = "the standard library does not tell it")]
pub(crate) fn cpu_time() -> Duration {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes one timespec, which is there.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut now) };
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// Seconds of CPU that something takes.
pub(crate) fn seconds<T>(work: impl FnOnce() -> T) -> (f64, T) {
    let before = cpu_time();
    let done = work();
    ((cpu_time() - before).as_secs_f64(), done)
}

/// Measures each thing some times, and keeps how far the runs lay apart.
pub(crate) struct Bench {
    runs: usize,
    /// By what was measured: the range of the runs as a share of the median, of each figure.
    ranges: BTreeMap<&'static str, Vec<f64>>,
}

impl Bench {
    pub(crate) fn new(runs: usize) -> Self {
        Self {
            runs: runs.max(1),
            ranges: BTreeMap::new(),
        }
    }

    /// The median of what the runs say.
    pub(crate) fn median(&mut self, what: &'static str, mut run: impl FnMut() -> f64) -> f64 {
        let mut all: Vec<f64> = (0..self.runs).map(|_| run()).collect();
        all.sort_by(f64::total_cmp);
        let median = all[all.len() / 2];
        let range = (all[all.len() - 1] - all[0]) / median;
        self.ranges.entry(what).or_default().push(range);
        median
    }

    /// Million samples a second of CPU, of `samples` at a time.
    pub(crate) fn rate(&mut self, what: &'static str, samples: u64, mut work: impl FnMut() -> f64) -> f64 {
        let seconds = self.median(what, &mut work);
        samples as f64 / seconds / 1e6
    }

    pub(crate) fn tell_ranges(&self) {
        println!();
        for (what, ranges) in &self.ranges {
            let mut sorted = ranges.clone();
            sorted.sort_by(f64::total_cmp);
            println!(
                "{what}: {} runs of each figure lay within {:.0}% of it (median figure), {:.0}% (worst)",
                self.runs,
                100.0 * sorted[sorted.len() / 2],
                100.0 * sorted[sorted.len() - 1]
            );
        }
    }
}
