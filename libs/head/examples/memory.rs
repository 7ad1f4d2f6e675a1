//! What a head takes, in memory and CPU, with series as the hosts of `load-tests` have them.
//!
//! `cargo run --release -p koios-head --example memory -- <hosts> <scrapes> [<more scrapes, with windows cut and forgotten>]`
//!
//! Hosts of 960 series are scraped every 15 s, two hosts to a batch, a few milliseconds off the schedule each time. Then what the
//! parts of the head count is printed, how much the process has grown, and the allocator's holes; with a third number, the same
//! after so many more scrapes, during which each window is cut when it ends and forgotten half an hour later; at last, without
//! any series.

use std::time::Duration;

use koios_head::{Head, HeadOptions};
use koios_model::{BatchColumns, Labels, SeriesHash};

const STEP_MS: i64 = 15_000;
const WINDOW_MS: i64 = 2 * 3600 * 1000;
/// Begins with a window, as no fleet's does; its two hours hold 480 scrapes.
const START_MS: i64 = 1_699_999_200_000;
const KEPT_MS: i64 = 30 * 60 * 1000;
const HOSTS_PER_BATCH: u32 = 2;

/// How the values of a series come about.
#[derive(Clone, Copy)]
enum Shape {
    Counter(u64),
    Seconds(f64),
    Gauge(f64, f64, i32),
    Constant(f64),
    Ratio,
}

struct Series {
    hash: SeriesHash,
    labels: Labels,
    shape: Shape,
    id: u64,
}

/// splitmix64: a well-mixed function of its argument.
fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn unit(z: u64) -> f64 {
    (mix(z) >> 11) as f64 / (1u64 << 53) as f64
}

impl Series {
    fn value(&self, scrape: u32) -> f64 {
        let (i, noise) = (f64::from(scrape), mix(self.id ^ (u64::from(scrape) << 32)));
        match self.shape {
            Shape::Counter(rate) => (self.id % 100_000 + rate * u64::from(scrape) + noise % rate) as f64,
            Shape::Seconds(rate) => ((rate * i + unit(noise) * rate * 0.9) * 100.0).round() / 100.0,
            Shape::Gauge(mean, amplitude, decimals) => {
                let wave = (i / 40.0 + unit(self.id) * 6.3).sin() * amplitude;
                let scale = 10f64.powi(decimals);
                ((mean + wave + unit(noise) * amplitude * 0.2) * scale).round() / scale
            }
            Shape::Constant(v) => v,
            Shape::Ratio => unit(noise),
        }
    }
}

fn time(host: u32, scrape: u32) -> i64 {
    let offset = (mix(u64::from(host)) % STEP_MS as u64) as i64;
    let jitter = (mix((u64::from(host) << 32) ^ u64::from(scrape)) % 7) as i64 - 3;
    START_MS + i64::from(scrape) * STEP_MS + offset.clamp(3, STEP_MS - 4) + jitter
}

/// The series of one host.
struct Host {
    number: u32,
    series: Vec<Series>,
}

impl Host {
    fn new(number: u32) -> Self {
        let series = Vec::with_capacity(960);
        let mut host = Self { number, series };
        host.system();
        host.service();
        host
    }

    fn add(&mut self, name: &str, job: &str, more: &[(&str, &str)], shape: Shape) {
        let id = mix((u64::from(self.number) << 24) ^ self.series.len() as u64);
        let zone = ["a", "b", "c"][self.number as usize % 3];
        let mut pairs = vec![
            ("__name__", name.to_owned()),
            ("availability_zone", format!("eu-west-1{zone}")),
            ("cluster", format!("prod-{}", self.number % 4)),
            (
                "instance",
                format!("host-{:05}.eu-west-1.example.net:9100", self.number),
            ),
            ("job", job.to_owned()),
        ];
        pairs.extend(more.iter().map(|(name, value)| (*name, (*value).to_owned())));
        pairs.sort_unstable();
        let hash = SeriesHash((u128::from(mix(id)) << 64) | u128::from(id));
        let labels = Labels::from_pairs(pairs);
        self.series.push(Series {
            hash,
            labels,
            shape,
            id,
        });
    }

    fn fields(&mut self, count: u32, of: (&str, &str, &str), more: &[(&str, &str)], shape: fn(u32) -> Shape) {
        for field in 0..count {
            self.add(&format!("{}{field:02}{}", of.0, of.1), of.2, more, shape(field));
        }
    }

    fn system(&mut self) {
        let modes = [
            "idle", "iowait", "irq", "nice", "softirq", "steal", "system", "user",
        ];
        for cpu in 0..16 {
            for mode in modes {
                let rate = if mode == "idle" { 13.0 } else { 0.3 };
                let more = [("cpu", &*cpu.to_string()), ("mode", mode)];
                self.add("node_cpu_seconds_total", "node", &more, Shape::Seconds(rate));
            }
        }
        self.fields(50, ("node_memory_field", "_bytes", "node"), &[], |field| {
            match (1e9 * f64::from(field + 1), field % 3) {
                (mean, 0) => Shape::Constant(mean),
                (mean, _) => Shape::Gauge(mean, 1e7, 0),
            }
        });
        for load in ["node_load1", "node_load5", "node_load15"] {
            self.add(load, "node", &[], Shape::Gauge(4.0, 2.0, 2));
        }
        self.add("up", "node", &[], Shape::Constant(1.0));
        self.fields(80, ("node_netstat_field", "_total", "node"), &[], |field| {
            Shape::Counter(1 + u64::from(field) * 7)
        });
        for device in ["eth0", "eth1", "lo", "docker0"] {
            let more = [("device", device)];
            self.fields(
                16,
                ("node_network_field", "_total", "node"),
                &more,
                |field| match field < 6 {
                    true => Shape::Counter(1 + u64::from(field) * 20_000),
                    false => Shape::Constant(0.0),
                },
            );
        }
        for device in ["nvme0n1", "nvme1n1", "nvme2n1", "nvme3n1"] {
            let more = [("device", device)];
            self.fields(14, ("node_disk_field", "_total", "node"), &more, |field| {
                match field % 2 {
                    0 => Shape::Counter(40 + u64::from(field) * 300),
                    _ => Shape::Seconds(0.7),
                }
            });
        }
        for mount in ["/", "/var", "/home", "/data/a", "/data/b", "/boot"] {
            for (name, shape) in [
                ("node_filesystem_size_bytes", Shape::Constant(5e11)),
                ("node_filesystem_avail_bytes", Shape::Gauge(3e11, 1e8, 0)),
                ("node_filesystem_files_free", Shape::Gauge(3e11, 1e8, 0)),
            ] {
                self.add(name, "node", &[("fstype", "ext4"), ("mountpoint", mount)], shape);
            }
        }
    }

    fn service(&mut self) {
        let bounds = [
            "0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1", "2.5", "5", "10", "+Inf",
        ];
        for handler in 0..20 {
            let handler = format!("/api/v1/resource{handler:02}");
            for (code, rate) in [("200", 900), ("404", 3), ("500", 3)] {
                let more = [("code", code), ("handler", &*handler)];
                self.add("http_requests_total", "api", &more, Shape::Counter(rate));
            }
            for (le, rate) in bounds.iter().zip(1..) {
                let more = [("handler", &*handler), ("le", *le)];
                self.add(
                    "http_request_duration_seconds_bucket",
                    "api",
                    &more,
                    Shape::Counter(40 * rate),
                );
            }
            let more = [("handler", &*handler)];
            self.add(
                "http_request_duration_seconds_sum",
                "api",
                &more,
                Shape::Seconds(55.0),
            );
            self.add(
                "http_request_duration_seconds_count",
                "api",
                &more,
                Shape::Counter(480),
            );
        }
        for queue in 0..40 {
            let queue = format!("queue-{queue:02}");
            let more = [("queue", &*queue)];
            self.add("queue_depth", "api", &more, Shape::Gauge(120.0, 80.0, 0));
            self.add("queue_wait_ratio", "api", &more, Shape::Ratio);
            self.add("queue_messages_total", "api", &more, Shape::Counter(55));
        }
        for pool in 0..20 {
            let pool = format!("pool-{pool:02}");
            let more = [("pool", &*pool)];
            self.add("pool_open", "api", &more, Shape::Gauge(32.0, 10.7, 0));
            self.add("pool_idle", "api", &more, Shape::Gauge(11.0, 3.7, 0));
            self.add("pool_wait_seconds", "api", &more, Shape::Gauge(0.031, 0.01, 6));
        }
        self.fields(40, ("process_runtime_field", "_bytes", "api"), &[], |_| {
            Shape::Gauge(5e7, 1e7, 0)
        });
    }
}

/// A head that is scraped into, and the CPU time that took.
struct Scraped {
    head: Head,
    hosts: Vec<Host>,
    scrapes: u32,
    samples: u64,
    cpu: Duration,
    resident_before: u64,
}

impl Scraped {
    fn new(hosts: u32) -> Self {
        let hosts: Vec<Host> = (0..hosts).map(Host::new).collect();
        // What the first batch needs for a moment is no growth.
        drop(batch(&hosts, 0));
        let resident_before = resident_bytes();
        Self {
            head: Head::new(HeadOptions {
                window_ms: WINDOW_MS,
                ..HeadOptions::default()
            }),
            hosts,
            scrapes: 0,
            samples: 0,
            cpu: Duration::ZERO,
            resident_before,
        }
    }

    /// Applies one scrape of all hosts.
    fn scrape(&mut self) {
        for hosts in self.hosts.chunks(HOSTS_PER_BATCH as usize) {
            let batch = batch(hosts, self.scrapes);
            let begun = cpu_time();
            self.head.apply(&batch, 0, u64::from(self.scrapes) + 1);
            self.cpu += cpu_time().saturating_sub(begun);
            self.samples += batch.timestamps.len() as u64;
        }
        self.scrapes += 1;
    }

    /// Cuts the windows that have ended, and forgets them some time after.
    fn cut_and_forget(&mut self) {
        let now = time(0, self.scrapes);
        let windows = self.head.windows();
        let ended = windows
            .iter()
            .filter(|w| w.range.max < now - 60_000 && w.uncut_samples > 0);
        for window in ended {
            let cut = self.head.cut(window.start);
            self.head.cut_listed(cut.id);
        }
        self.head.forget(now - KEPT_MS);
    }

    fn print(&self, title: &str) {
        let series = self.head.series_count().max(1) as u64;
        let of_series =
            |bytes: u64| format!("{bytes:>12} B {:>8.1} per series", bytes as f64 / series as f64);
        let parts = self.head.memory();
        say(&format!(
            "{title}: {series} series, {} scrapes, {:.4} CPU s per million samples",
            self.scrapes,
            self.cpu.as_secs_f64() * 1e6 / self.samples.max(1) as f64
        ));
        for (part, bytes) in parts.parts() {
            say(&format!("  {part:<18}{}", of_series(bytes as u64)));
        }
        say(&format!("  {:<18}{}", "counted", of_series(parts.total() as u64)));
        let grown = resident_bytes().saturating_sub(self.resident_before);
        say(&format!("  {:<18}{}", "resident, grown", of_series(grown)));
        let (holes, top) = free_bytes();
        say(&format!("  {:<18}{}", "holes", of_series(holes - top)));
        say(&format!("  {:<18}{}", "free on top", of_series(top)));
        trim();
        let left = resident_bytes().saturating_sub(self.resident_before);
        say(&format!("  {:<18}{}", "resident, trimmed", of_series(left)));
    }
}

/// A scrape of some hosts; the first brings labels.
fn batch(hosts: &[Host], scrape: u32) -> BatchColumns {
    let mut batch = BatchColumns::default();
    for host in hosts {
        let t = time(host.number, scrape);
        for series in &host.series {
            match scrape {
                0 => batch.push_series(series.hash, series.labels.as_ref()),
                _ => batch.push_reference(series.hash),
            }
            batch.push_sample(t, series.value(scrape));
        }
    }
    batch
}

#[expect(clippy::print_stdout, reason = "its figures are for who runs it")]
fn say(line: &str) {
    println!("{line}");
}

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// User and system time of this thread.
#[expect(unsafe_code, reason = "the standard library does not tell it")]
fn cpu_time() -> Duration {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes one timespec, which is there.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut now) };
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// What the allocator holds that nothing uses: all of it, and the part of it that could be given back.
#[expect(unsafe_code, reason = "the C library has no other interface for it")]
fn free_bytes() -> (u64, u64) {
    // SAFETY: reads the allocator's accounts, under its own locks.
    let info = unsafe { libc::mallinfo2() };
    (info.fordblks as u64, info.keepcost as u64)
}

/// Gives back what can be, as the program does from time to time.
#[expect(unsafe_code, reason = "the C library has no other interface for it")]
fn trim() {
    // SAFETY: touches free memory of the allocator alone, under its own locks.
    unsafe { libc::malloc_trim(0) };
}

/// As the program does.
#[expect(unsafe_code, reason = "the C library has no other interface for it")]
fn bound_arenas() {
    // SAFETY: sets a number that the allocator reads when it makes an arena; no memory is looked at.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 2) };
}

fn main() {
    bound_arenas();
    let mut numbers = std::env::args().skip(1).filter_map(|arg| arg.parse::<u32>().ok());
    let (hosts, scrapes) = (numbers.next().unwrap_or(100), numbers.next().unwrap_or(240));
    let more = numbers.next().unwrap_or(0);
    let mut scraped = Scraped::new(hosts);
    (0..scrapes).for_each(|_| scraped.scrape());
    scraped.print("scraped");
    if more > 0 {
        for _ in 0..more {
            scraped.scrape();
            scraped.cut_and_forget();
        }
        scraped.print("cut and forgotten on the way");
    }
    for window in scraped.head.windows() {
        let cut = scraped.head.cut(window.start);
        scraped.head.cut_listed(cut.id);
    }
    scraped.head.forget(i64::MAX);
    scraped.print("all forgotten");
}
