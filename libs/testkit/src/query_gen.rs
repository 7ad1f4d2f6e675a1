//! Random queries, and samples for them to find: the same for the same seed.
//!
//! The queries avoid what engines may rightly answer differently: ties in `topk`, values near the edge of a comparison,
//! what changed between Prometheus 2 and 3 (ranges that start at a sample, extrapolation towards zero, `@` below
//! functions of the evaluation time).

use koios_model::Labels;

use crate::random::Random;

/// Where the samples of [`fleet`] start, milliseconds.
pub const FLEET_START_MS: i64 = 1_700_000_000_000;
/// How long they go on, milliseconds.
pub const FLEET_SPAN_MS: i64 = 2 * 3_600_000;
const INTERVAL_MS: i64 = 15_000;
/// No sample lies on a whole second, so that none lies on the edge of a range.
const SAMPLE_OFFSET_MS: i64 = 7;

/// A series and its samples, times in milliseconds.
pub type FleetSeries = (Labels, Vec<(i64, f64)>);

/// Counters with resets, gauges and classic histograms of a few jobs, with gaps.
pub fn fleet() -> Vec<FleetSeries> {
    let mut random = Random::new(7);
    let mut series = Vec::new();
    for job in ["api", "db", "web"] {
        for instance in ["a", "b"] {
            for name in ["reqs_total", "errs_total", "mem", "temp"] {
                let labels = Labels::from_pairs([("__name__", name), ("job", job), ("instance", instance)]);
                series.push((labels, samples(&mut random, name)));
            }
            series.extend(histogram(&mut random, job, instance));
        }
    }
    for (job, tier, value) in [("api", "gold", 100.0), ("db", "tin", 5.5)] {
        let labels = Labels::from_pairs([("__name__", "quota"), ("job", job), ("tier", tier)]);
        series.push((labels, times().map(|t| (t, value)).collect()));
    }
    series
}

fn times() -> impl Iterator<Item = i64> {
    (0..FLEET_SPAN_MS / INTERVAL_MS).map(|i| FLEET_START_MS + i * INTERVAL_MS + SAMPLE_OFFSET_MS)
}

fn samples(random: &mut Random, name: &str) -> Vec<(i64, f64)> {
    // Counters stay far from zero, towards which engines extrapolate differently.
    let mut value = 1e6;
    let mut skip = 0;
    let mut samples = Vec::new();
    for t in times() {
        value = match name {
            "mem" => value + (random.unit() - 0.5) * 1e4,
            "temp" => random.unit() * 40.0 - 10.0,
            _ if random.below(60) == 0 => 1e5,
            _ => value + random.unit() * 10.0,
        };
        if skip > 0 {
            skip -= 1;
            continue;
        }
        samples.push((t, value));
        if random.below(40) == 0 {
            skip = random.below(30);
        }
    }
    samples
}

fn histogram(random: &mut Random, job: &str, instance: &str) -> Vec<FleetSeries> {
    const BOUNDS: [&str; 6] = ["0.1", "0.5", "1", "2.5", "10", "+Inf"];
    let mut series: Vec<FleetSeries> = BOUNDS
        .iter()
        .map(|le| {
            let name = [
                ("__name__", "lat_bucket"),
                ("job", job),
                ("instance", instance),
                ("le", le),
            ];
            (Labels::from_pairs(name), Vec::new())
        })
        .collect();
    let mut counts = [1e5, 2e5, 3e5, 4e5, 5e5, 6e5];
    for t in times() {
        for _ in 0..random.below(5) {
            let bucket = usize::try_from(random.below(6)).unwrap_or(0);
            counts.iter_mut().skip(bucket).for_each(|count| *count += 1.0);
        }
        for ((_, samples), count) in series.iter_mut().zip(counts) {
            samples.push((t, count));
        }
    }
    series
}

/// Makes queries over [`fleet`].
#[derive(Debug)]
pub struct QueryGenerator {
    random: Random,
}

const BY: [&str; 6] = [
    "",
    " by (job)",
    " without (instance)",
    " by (job, instance)",
    " by (nope)",
    " without (job, le)",
];

impl QueryGenerator {
    /// A generator whose queries depend on the seed alone.
    pub fn new(seed: u64) -> Self {
        Self {
            random: Random::new(seed),
        }
    }

    /// A time to evaluate at, milliseconds: neither a sample's nor a subquery's.
    pub fn time_ms(&mut self) -> i64 {
        let seconds = i64::try_from(self.random.below(6_000)).unwrap_or(0);
        FLEET_START_MS + 600_000 + seconds * 1_000 + 3
    }

    /// Start, end and step of a range, milliseconds.
    pub fn range_ms(&mut self) -> (i64, i64, i64) {
        let start = self.time_ms();
        let steps = i64::try_from(self.random.below(40)).unwrap_or(0);
        let step = [15_000, 60_000, 77_000, 300_000][usize::try_from(self.random.below(4)).unwrap_or(0)];
        (start, start + steps * step, step)
    }

    /// A query for an instant vector with up to `depth` levels.
    pub fn vector(&mut self, depth: u32) -> String {
        let Some(depth) = depth.checked_sub(1) else {
            return self.selector();
        };
        match self.random.below(14) {
            0 | 1 => self.over_time(depth),
            2 => self.rate(),
            3..=5 => {
                let op = self.random.pick(&["sum", "avg", "min", "max", "count", "group"]);
                let by = self.random.pick(&BY);
                format!("{op}{by} ({})", self.vector(depth))
            }
            6 => self.ranked(),
            7 | 8 => self.binary(depth),
            9 => self.with_scalar(depth),
            10 => self.function(depth),
            11 => self.quantile(),
            12 => self.relabelled(depth),
            _ => format!("vector({})", self.scalar()),
        }
    }

    fn selector(&mut self) -> String {
        let name = self.random.pick(&[
            "reqs_total",
            "errs_total",
            "mem",
            "temp",
            "quota",
            "lat_bucket",
            "nosuch",
        ]);
        let (matchers, modifier) = (self.matchers(), self.modifier());
        format!("{name}{matchers}{modifier}")
    }

    fn matchers(&mut self) -> &'static str {
        self.random.pick(&[
            "",
            "",
            "{job=\"api\"}",
            "{job=~\"a.*|db\"}",
            "{instance!=\"a\"}",
            "{job!~\"web|x\",instance=\"b\"}",
            "{tier=\"\"}",
        ])
    }

    fn modifier(&mut self) -> String {
        match self.random.below(9) {
            0 => format!(" offset {}", self.random.pick(&["3m", "-2m", "20m", "1h"])),
            1 => format!(" @ {}", self.time_ms() / 1_000),
            2 => " @ end()".to_owned(),
            3 => " @ start() offset 1m".to_owned(),
            _ => String::new(),
        }
    }

    fn duration(&mut self) -> &'static str {
        self.random.pick(&["40s", "1m", "2m", "5m", "13m", "1h"])
    }

    fn scalar(&mut self) -> String {
        match self.random.below(6) {
            0 => "time()".to_owned(),
            1 => "scalar(quota{job=\"api\"})".to_owned(),
            2 => "scalar(nosuch)".to_owned(),
            3 => "-Inf".to_owned(),
            _ => format!("{}", (self.random.unit() * 40.0).round() / 2.0 - 5.0),
        }
    }

    fn range(&mut self, depth: u32) -> String {
        if depth > 0 && self.random.below(4) == 0 {
            let inner = self.vector(depth - 1);
            let step = self.random.pick(&["", "30s", "1m", "47s"]);
            return format!("({inner})[{}:{step}]", self.duration());
        }
        let name = self
            .random
            .pick(&["reqs_total", "errs_total", "mem", "temp", "quota"]);
        format!(
            "{name}{}[{}]{}",
            self.matchers(),
            self.duration(),
            self.modifier()
        )
    }

    fn over_time(&mut self, depth: u32) -> String {
        let function = self.random.pick(&[
            "delta",
            "idelta",
            "deriv",
            "changes",
            "resets",
            "avg_over_time",
            "min_over_time",
            "max_over_time",
            "sum_over_time",
            "count_over_time",
            "last_over_time",
            "present_over_time",
            "absent_over_time",
        ]);
        format!("{function}({})", self.range(depth))
    }

    fn rate(&mut self) -> String {
        let function = self.random.pick(&["rate", "increase", "irate"]);
        let name = self.random.pick(&["reqs_total", "errs_total", "lat_bucket"]);
        format!(
            "{function}({name}{}[{}]{})",
            self.matchers(),
            self.duration(),
            self.modifier()
        )
    }

    /// Only over values that are never equal.
    fn ranked(&mut self) -> String {
        let op = self.random.pick(&[
            "topk(2,",
            "bottomk(1,",
            "topk by (job) (1,",
            "quantile(0.9,",
            "quantile by (job) (0.3,",
        ]);
        format!("{op} mem{}{})", self.matchers(), self.modifier())
    }

    fn binary(&mut self, depth: u32) -> String {
        let (left, right) = (self.vector(depth), self.vector(depth));
        if self.random.below(3) == 0 {
            let op = self.random.pick(&["and", "or", "unless"]);
            let matching = self.random.pick(&["", " on (job)", " ignoring (instance)"]);
            return format!("({left}) {op}{matching} ({right})");
        }
        let op = self.random.pick(&["+", "-", "*", "/", "%", ">", "<", "> bool"]);
        let matching = self.random.pick(&[
            "",
            "",
            " on (job, instance)",
            " on (job) group_left ()",
            " ignoring (instance) group_right ()",
        ]);
        format!("({left}) {op}{matching} ({right})")
    }

    fn with_scalar(&mut self, depth: u32) -> String {
        let (vector, scalar) = (self.vector(depth), self.scalar());
        let op = self.random.pick(&["+", "-", "*", "/", "%", ">", "<", ">= bool"]);
        match self.random.below(2) {
            0 => format!("({vector}) {op} {scalar}"),
            _ => format!("{scalar} {op} ({vector})"),
        }
    }

    fn function(&mut self, depth: u32) -> String {
        let inner = self.vector(depth);
        match self.random.below(4) {
            0 => format!("-({inner})"),
            1 => format!("clamp({inner}, {}, {})", self.scalar(), self.scalar()),
            _ => {
                let function = self
                    .random
                    .pick(&["abs", "exp", "ln", "sqrt", "sgn", "absent", "sin", "log2", "deg"]);
                format!("{function}({inner})")
            }
        }
    }

    fn quantile(&mut self) -> String {
        let q = self.random.pick(&["0.5", "0.9", "0.99", "0", "1", "1.5", "-1"]);
        let buckets = self.random.pick(&[
            "lat_bucket",
            "rate(lat_bucket[5m])",
            "sum by (le) (rate(lat_bucket[2m]))",
            "sum by (job, le) (lat_bucket)",
            "lat_bucket{le!=\"+Inf\"}",
        ]);
        format!("histogram_quantile({q}, {buckets})")
    }

    fn relabelled(&mut self, depth: u32) -> String {
        let inner = self.vector(depth);
        match self.random.below(2) {
            0 => format!("label_replace({inner}, \"new\", \"x-$1\", \"job\", \"(.)(.*)\")"),
            _ => format!("label_join({inner}, \"both\", \"-\", \"job\", \"instance\")"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_valid_queries() {
        let (mut a, mut b) = (QueryGenerator::new(3), QueryGenerator::new(3));
        for _ in 0..500 {
            let query = a.vector(4);
            assert_eq!(query, b.vector(4));
            assert!(koios_promql::parse(&query).is_ok(), "{query}");
        }
    }
}
