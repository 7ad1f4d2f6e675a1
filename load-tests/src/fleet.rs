//! A realistic fleet: every sample is a pure function of the seed, the series and the scrape.

use koios_wire::pb::prometheus as pb;
use prost::Message;

/// A fleet and the stretch of time it is observed for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fleet {
    /// Number of the first host: other numbers are other series.
    pub(crate) first_host: u32,
    /// Hosts.
    pub(crate) hosts: u32,
    /// Hosts whose samples travel together, about a thousand each.
    pub(crate) hosts_per_request: usize,
    /// Scrapes of each series.
    pub(crate) scrapes: u32,
    /// Milliseconds between scrapes.
    pub(crate) interval_ms: i64,
    /// Time of the first scrape.
    pub(crate) start_ms: i64,
    /// Decides everything else.
    pub(crate) seed: u64,
}

/// How a series' values come about.
#[derive(Clone, Copy, Debug)]
enum Shape {
    /// An integer counter growing by about `rate` per scrape.
    Counter { rate: u64 },
    /// Seconds with two decimals, growing.
    Seconds { rate: f64 },
    /// A gauge with `decimals` decimals around `mean`.
    Gauge {
        mean: f64,
        amplitude: f64,
        decimals: i32,
    },
    /// A value that does not change.
    Constant(f64),
    /// Full precision.
    Ratio,
}

/// One series of a host.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    labels: Vec<(String, String)>,
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
    /// The value at a scrape.
    pub(crate) fn value(&self, scrape: u32) -> f64 {
        let (i, noise) = (f64::from(scrape), mix(self.id ^ (u64::from(scrape) << 32)));
        match self.shape {
            Shape::Counter { rate } => {
                (self.id % 100_000 + rate * u64::from(scrape) + noise % rate.max(1)) as f64
            }
            Shape::Seconds { rate } => {
                let total = rate * i + unit(noise) * rate * 0.9;
                (total * 100.0).round() / 100.0
            }
            Shape::Gauge {
                mean,
                amplitude,
                decimals,
            } => {
                let wave = (i / 40.0 + unit(self.id) * 6.3).sin() * amplitude;
                let scale = 10f64.powi(decimals);
                ((mean + wave + unit(noise) * amplitude * 0.2) * scale).round() / scale
            }
            Shape::Constant(v) => v,
            Shape::Ratio => unit(noise),
        }
    }

    /// The labels, sorted by name.
    pub(crate) fn labels(&self) -> &[(String, String)] {
        &self.labels
    }
}

impl Fleet {
    /// The numbers of its hosts.
    pub(crate) fn host_numbers(&self) -> std::ops::Range<u32> {
        self.first_host..self.first_host.saturating_add(self.hosts)
    }

    /// How many series there are.
    pub(crate) fn series_count(&self) -> usize {
        self.host(self.first_host).len() * self.hosts as usize
    }

    /// How many samples there are.
    pub(crate) fn sample_count(&self) -> u64 {
        self.series_count() as u64 * u64::from(self.scrapes)
    }

    /// When a host is scraped: the grid, the host's own offset, and a few milliseconds of jitter.
    pub(crate) fn time(&self, host: u32, scrape: u32) -> i64 {
        let offset = (mix(self.seed ^ u64::from(host)) % self.interval_ms.max(1) as u64) as i64;
        let jitter = (mix(self.seed ^ (u64::from(host) << 32) ^ u64::from(scrape)) % 7) as i64 - 3;
        self.start_ms
            + i64::from(scrape) * self.interval_ms
            + offset.max(3).min(self.interval_ms - 4)
            + jitter
    }

    /// The last time of all.
    pub(crate) fn end_ms(&self) -> i64 {
        self.start_ms + i64::from(self.scrapes) * self.interval_ms
    }

    /// The series of a host.
    pub(crate) fn host(&self, host: u32) -> Vec<Series> {
        let mut build = HostBuilder {
            seed: self.seed,
            host,
            out: Vec::with_capacity(1000),
        };
        build.system();
        build.devices();
        build.service();
        build.out
    }

    /// The requests of a host.
    pub(crate) fn requests(&self, host: u32) -> HostRequests {
        HostRequests::new(self, host)
    }
}

/// A host's remote-write request, encoded once: from one scrape to the next only fixed-width bytes of it change, so that
/// sending costs the machine that also runs what is measured as little as it can.
#[derive(Debug)]
pub(crate) struct HostRequests {
    host: u32,
    series: Vec<Series>,
    encoded: Vec<u8>,
    /// Where each series' value stands (8 bytes, little endian); its time follows after a tag byte.
    values: Vec<usize>,
}

impl HostRequests {
    fn new(fleet: &Fleet, host: u32) -> Self {
        let series = fleet.host(host);
        let mut encoded = Vec::new();
        let mut values = Vec::with_capacity(series.len());
        for s in &series {
            let message = pb::WriteRequest {
                timeseries: vec![pb::TimeSeries {
                    labels: s
                        .labels
                        .iter()
                        .map(|(name, value)| pb::Label {
                            name: name.clone(),
                            value: value.clone(),
                        })
                        .collect(),
                    samples: vec![pb::Sample {
                        // Not zero, or protobuf would leave it out.
                        value: 1.0,
                        timestamp: TIME_WIDTH_MIN,
                    }],
                }],
                metadata: Vec::new(),
            };
            encoded.extend(message.encode_to_vec());
            values.push(encoded.len() - TIME_BYTES - 1 - 8);
        }
        Self {
            host,
            series,
            encoded,
            values,
        }
    }

    /// How many samples a request holds.
    pub(crate) fn samples(&self) -> u64 {
        self.series.len() as u64
    }

    /// The message of one scrape.
    pub(crate) fn scrape(&mut self, fleet: &Fleet, scrape: u32) -> &[u8] {
        let time = varint(fleet.time(self.host, scrape));
        for (series, &at) in self.series.iter().zip(&self.values) {
            self.encoded[at..at + 8].copy_from_slice(&series.value(scrape).to_le_bytes());
            self.encoded[at + 9..at + 9 + TIME_BYTES].copy_from_slice(&time);
        }
        &self.encoded
    }
}

/// Bytes of a time as varint, for any time from 2005 to 2109.
const TIME_BYTES: usize = 6;
/// The least number whose varint is that long, 2005 as a time.
const TIME_WIDTH_MIN: i64 = 1 << 40;

fn varint(time: i64) -> [u8; TIME_BYTES] {
    let mut bytes = [0; TIME_BYTES];
    for (i, byte) in bytes.iter_mut().enumerate() {
        let more = if i + 1 < TIME_BYTES { 0x80 } else { 0 };
        *byte = ((time >> (7 * i)) & 0x7f) as u8 | more;
    }
    bytes
}

struct HostBuilder {
    seed: u64,
    host: u32,
    out: Vec<Series>,
}

impl HostBuilder {
    fn add(&mut self, name: &str, job: &str, more: &[(&str, &str)], shape: Shape) {
        let id = mix(self.seed ^ (u64::from(self.host) << 24) ^ self.out.len() as u64);
        let mut labels = vec![
            ("__name__".to_owned(), name.to_owned()),
            ("job".to_owned(), job.to_owned()),
            (
                "instance".to_owned(),
                format!("host-{:05}.eu-west-1.example.net:9100", self.host),
            ),
            ("cluster".to_owned(), format!("prod-{}", self.host % 4)),
            (
                "availability_zone".to_owned(),
                format!("eu-west-1{}", ['a', 'b', 'c'][self.host as usize % 3]),
            ),
        ];
        labels.extend(more.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())));
        labels.sort();
        self.out.push(Series { labels, shape, id });
    }

    fn system(&mut self) {
        for cpu in 0..16 {
            for mode in [
                "idle", "iowait", "irq", "nice", "softirq", "steal", "system", "user",
            ] {
                let rate = if mode == "idle" { 13.0 } else { 0.3 };
                self.add(
                    "node_cpu_seconds_total",
                    "node",
                    &[("cpu", &cpu.to_string()), ("mode", mode)],
                    Shape::Seconds { rate },
                );
            }
        }
        for field in 0..50 {
            let name = format!("node_memory_field{field:02}_bytes");
            let mean = 1e9 * f64::from(field + 1);
            let shape = match field % 3 {
                0 => Shape::Constant(mean),
                _ => Shape::Gauge {
                    mean,
                    amplitude: 1e7,
                    decimals: 0,
                },
            };
            self.add(&name, "node", &[], shape);
        }
        for load in ["node_load1", "node_load5", "node_load15"] {
            self.add(
                load,
                "node",
                &[],
                Shape::Gauge {
                    mean: 4.0,
                    amplitude: 2.0,
                    decimals: 2,
                },
            );
        }
        self.add("up", "node", &[], Shape::Constant(1.0));
        for field in 0..80 {
            self.add(
                &format!("node_netstat_field{field:02}_total"),
                "node",
                &[],
                Shape::Counter { rate: 1 + field * 7 },
            );
        }
    }

    fn devices(&mut self) {
        for device in ["eth0", "eth1", "lo", "docker0"] {
            for field in 0..16 {
                let shape = if field < 6 {
                    Shape::Counter {
                        rate: 1 + field * 20_000,
                    }
                } else {
                    Shape::Constant(0.0)
                };
                self.add(
                    &format!("node_network_field{field:02}_total"),
                    "node",
                    &[("device", device)],
                    shape,
                );
            }
        }
        for device in ["nvme0n1", "nvme1n1", "nvme2n1", "nvme3n1"] {
            for field in 0..14 {
                let shape = if field % 2 == 0 {
                    Shape::Counter {
                        rate: 40 + field * 300,
                    }
                } else {
                    Shape::Seconds { rate: 0.7 }
                };
                self.add(
                    &format!("node_disk_field{field:02}_total"),
                    "node",
                    &[("device", device)],
                    shape,
                );
            }
        }
        for mount in ["/", "/var", "/home", "/data/a", "/data/b", "/boot"] {
            for name in [
                "node_filesystem_size_bytes",
                "node_filesystem_avail_bytes",
                "node_filesystem_files_free",
            ] {
                let shape = if name.ends_with("size_bytes") {
                    Shape::Constant(5e11)
                } else {
                    Shape::Gauge {
                        mean: 3e11,
                        amplitude: 1e8,
                        decimals: 0,
                    }
                };
                self.add(name, "node", &[("fstype", "ext4"), ("mountpoint", mount)], shape);
            }
        }
    }

    fn service(&mut self) {
        for handler in 0..20 {
            let handler = format!("/api/v1/resource{handler:02}");
            for code in ["200", "404", "500"] {
                let rate = if code == "200" { 900 } else { 3 };
                let labels = [("code", code), ("handler", handler.as_str())];
                self.add("http_requests_total", "api", &labels, Shape::Counter { rate });
            }
            // Cumulative buckets stay cumulative: the rates grow by more than a bucket's noise.
            let bounds = [
                "0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1", "2.5", "5", "10", "+Inf",
            ];
            let id_base = self.out.len() as u64;
            for (i, le) in bounds.iter().enumerate() {
                let labels = [("handler", handler.as_str()), ("le", *le)];
                let name = "http_request_duration_seconds_bucket";
                self.add(
                    name,
                    "api",
                    &labels,
                    Shape::Counter {
                        rate: 40 * (i as u64 + 1),
                    },
                );
                if let Some(series) = self.out.last_mut() {
                    series.id = mix(self.seed ^ (u64::from(self.host) << 24) ^ id_base) % 1_000_000;
                }
            }
            self.add(
                "http_request_duration_seconds_sum",
                "api",
                &[("handler", &handler)],
                Shape::Seconds { rate: 55.0 },
            );
            let count = Shape::Counter { rate: 40 * 12 };
            self.add(
                "http_request_duration_seconds_count",
                "api",
                &[("handler", &handler)],
                count,
            );
        }
        for queue in 0..40 {
            let queue = format!("queue-{queue:02}");
            let gauge = Shape::Gauge {
                mean: 120.0,
                amplitude: 80.0,
                decimals: 0,
            };
            self.add("queue_depth", "api", &[("queue", &queue)], gauge);
            self.add("queue_wait_ratio", "api", &[("queue", &queue)], Shape::Ratio);
            self.add(
                "queue_messages_total",
                "api",
                &[("queue", &queue)],
                Shape::Counter { rate: 55 },
            );
        }
        for pool in 0..20 {
            let pool = format!("pool-{pool:02}");
            for (name, mean) in [
                ("pool_open", 32.0),
                ("pool_idle", 11.0),
                ("pool_wait_seconds", 0.031),
            ] {
                let decimals = if name.ends_with("seconds") { 6 } else { 0 };
                self.add(
                    name,
                    "api",
                    &[("pool", &pool)],
                    Shape::Gauge {
                        mean,
                        amplitude: mean / 3.0,
                        decimals,
                    },
                );
            }
        }
        for gc in 0..40 {
            let field = Shape::Gauge {
                mean: 5e7,
                amplitude: 1e7,
                decimals: 0,
            };
            self.add(&format!("process_runtime_field{gc:02}_bytes"), "api", &[], field);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLEET: Fleet = Fleet {
        first_host: 0,
        hosts: 2,
        hosts_per_request: 2,
        scrapes: 50,
        interval_ms: 15_000,
        start_ms: 1_000_000,
        seed: 7,
    };

    #[test]
    fn a_host_has_about_a_thousand_distinct_series() {
        let series = FLEET.host(0);
        assert!((900..1100).contains(&series.len()), "{}", series.len());
        let distinct: std::collections::BTreeSet<_> = series.iter().map(|s| s.labels.clone()).collect();
        assert_eq!(distinct.len(), series.len());
    }

    #[test]
    fn a_request_holds_each_series_once_at_the_time_and_value_of_the_scrape() {
        let fleet = Fleet {
            start_ms: 1_700_000_000_000,
            ..FLEET
        };
        let (mut requests, series) = (fleet.requests(1), fleet.host(1));
        for scrape in [0, 3, 49] {
            let message = pb::WriteRequest::decode(requests.scrape(&fleet, scrape));
            let got = message.map(|m| m.timeseries).unwrap_or_default();
            assert_eq!(got.len(), series.len());
            for (got, sent) in got.iter().zip(&series) {
                let labels = got.labels.iter().map(|l| (l.name.clone(), l.value.clone()));
                assert_eq!(labels.collect::<Vec<_>>(), sent.labels);
                assert_eq!(got.samples.len(), 1);
                assert_eq!(got.samples[0].value.to_bits(), sent.value(scrape).to_bits());
                assert_eq!(got.samples[0].timestamp, fleet.time(1, scrape));
            }
        }
    }

    #[test]
    fn times_ascend_and_counters_never_fall() {
        let series = FLEET.host(1);
        for scrape in 1..FLEET.scrapes {
            assert!(FLEET.time(1, scrape) > FLEET.time(1, scrape - 1));
            for s in series
                .iter()
                .filter(|s| matches!(s.shape, Shape::Counter { .. } | Shape::Seconds { .. }))
            {
                assert!(s.value(scrape) >= s.value(scrape - 1), "{:?}", s.labels);
            }
        }
    }
}
