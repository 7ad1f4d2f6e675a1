//! Measures how fast blocks are written, read whole and read for one series, beside what they take: by what the samples are, by series
//! order and page size, and by the encoding of values and times, rejected ones included. The tables of docs/decisions/0001.
//!
//! usage: `cargo run --release -p koios-block --example layout_speed -- [kinds|orders|encodings] <targets> <series per target>
//! <samples per series> <runs>`
//!
//! Everything is in memory and on one thread, whose CPU time counts: what else runs on the machine takes caches and memory bandwidth
//! away, but no time. Each figure is the median of the runs. More than two hours of samples are written as compaction does, less as they
//! are cut.
#![expect(clippy::print_stdout, reason = "the table is the output")]
#![expect(
    clippy::expect_used,
    reason = "a measurement that fails has nothing better to do"
)]

mod bench;
mod encodings;
#[path = "../fleet/mod.rs"]
mod fleet;

use std::hint::black_box;
use std::sync::Arc;

use bench::{Bench, cpu_time, seconds};
use encodings::encodings;
use fleet::{Counting, Kind, Order, Times, block_bytes, host, labels, metric, time_bytes, value_bytes};
use futures::StreamExt;
use futures::executor::block_on;
use koios_block::{
    BlockCache, BlockId, BlockOptions, BlockParts, BlockReader, BlockWriter, EXEMPLARS_PART, HISTOGRAMS_PART,
    Layout, MemoryBlock, RangeRead, Result, SeriesColumns,
};
use koios_chunk::Chunk;
use koios_model::{Exemplar, Histogram, Labels, Matcher, Matchers, TenantId, TimeRange};

/// Room for all there is.
const CACHE_BYTES: u64 = 1 << 31;
/// Series that are read one by one, so that a figure is of no single one.
const ONE_BY_ONE: usize = 20;
/// Two hours at 15 s.
const AS_CUT: usize = 480;
/// How many there are.
#[derive(Clone, Copy)]
struct Size {
    targets: usize,
    per_target: usize,
    /// Of each series.
    samples: usize,
}

impl Size {
    fn layout(self) -> Layout {
        match self.samples > AS_CUT {
            true => Layout::compacted(),
            false => Layout::default(),
        }
    }
}

/// A series with all it has.
#[derive(Default)]
struct Series {
    labels: Labels,
    times: Vec<i64>,
    values: Vec<f64>,
    histograms: Vec<(i64, Arc<Histogram>)>,
    exemplars: Vec<Exemplar>,
}

/// What the samples of a fleet are.
#[derive(Clone, Copy)]
enum What {
    Fleet,
    Floats(Kind),
    Histograms,
    Exemplars,
}

/// All series of a fleet, in label order.
fn series_of(what: What, order: Order, times: Times, size: Size) -> Vec<Series> {
    let one = |target: usize, number: usize| {
        let mut series = Series {
            labels: labels(order, target, number),
            ..Series::default()
        };
        let times = times.of(target, number, size.samples);
        let kind = match what {
            What::Fleet => Kind::of(number),
            What::Floats(kind) => kind,
            What::Histograms => {
                series.histograms = fleet::histograms(target, number, times.into_iter());
                return series;
            }
            What::Exemplars => {
                series.exemplars = exemplars(target, number, &times);
                return series;
            }
        };
        series.values = kind.values(target, number, times.len());
        series.times = times;
        series
    };
    let numbers = (0..size.targets).flat_map(|t| (0..size.per_target).map(move |s| (t, s)));
    let mut all: Vec<Series> = numbers.map(|(t, s)| one(t, s)).collect();
    all.sort_by(|a, b| a.labels.cmp(&b.labels));
    all
}

/// One each minute: how long a request took, in seconds, and its trace.
fn exemplars(target: usize, series: usize, times: &[i64]) -> Vec<Exemplar> {
    let mut random = fleet::Random((target as u64) << 32 | series as u64);
    let exemplar = |t: &i64| Exemplar {
        t: *t,
        v: random.unit(),
        labels: Labels::from_pairs([(
            "trace_id",
            format!("{:016x}{:016x}", random.next(), random.next()),
        )]),
    };
    times.iter().step_by(4).map(exemplar).collect()
}

fn written(all: &[Series], layout: Layout) -> BlockParts {
    let mut options = BlockOptions::new(BlockId::new(0, 1), TenantId::anonymous(), TimeRange::ALL);
    options.layout = layout;
    let mut writer = BlockWriter::new(options).expect("the layout is possible");
    for series in all {
        let columns = SeriesColumns {
            timestamps: &series.times,
            values: &series.values,
            histograms: &series.histograms,
            starts: &[],
        };
        let pushed = writer.push_columns(&series.labels, None, columns);
        pushed
            .and_then(|()| writer.push_exemplars(&series.labels, &series.exemplars))
            .expect("series come in order");
    }
    writer.finish().expect("it encodes").expect("it has samples")
}

/// Nothing of it is cached.
fn opened(block: &BlockParts, source: Arc<dyn RangeRead>) -> BlockReader {
    let cache = BlockCache::new(CACHE_BYTES, CACHE_BYTES).with_series_and_samples(CACHE_BYTES, CACHE_BYTES);
    let opened = BlockReader::open(source, Arc::new(block.meta.clone()), Arc::new(cache));
    opened.expect("the block is readable")
}

fn opened_in_memory(block: &BlockParts) -> BlockReader {
    opened(block, Arc::new(MemoryBlock::new(block)))
}

/// Where what is decoded goes, to be used again.
#[derive(Default)]
struct Columns {
    times: Vec<i64>,
    values: Vec<f64>,
    histograms: Vec<(i64, Arc<Histogram>)>,
}

impl Columns {
    /// Decodes series by series: how many samples there were.
    fn decode(&mut self, all: &[Vec<Chunk>]) -> usize {
        let mut samples = 0;
        for chunks in all {
            self.times.clear();
            self.values.clear();
            self.histograms.clear();
            for chunk in chunks {
                let decoded = match chunk.has_histograms() {
                    true => chunk.decode_histograms(TimeRange::ALL, &mut self.histograms),
                    false => chunk.decode(&mut self.times, &mut self.values),
                };
                decoded.expect("what was written can be decoded");
            }
            black_box((&self.times, &self.values, &self.histograms));
            samples += self.times.len() + self.histograms.len();
        }
        samples
    }
}

/// All of a block with nothing cached, to columns: how many samples or exemplars.
async fn read_whole(block: &BlockReader, what: What) -> Result<usize> {
    let mut samples = 0;
    match what {
        What::Fleet | What::Floats(_) => {
            let series = block.select(&Matchers::default(), TimeRange::ALL).await?;
            let mut stream = block.stream_samples(series, TimeRange::ALL);
            while let Some(next) = stream.next().await {
                samples += black_box(next?).values.len();
            }
        }
        What::Histograms => {
            let series = block.select(&Matchers::default(), TimeRange::ALL).await?;
            let chunks = block.read_chunks(&series, TimeRange::ALL).await?;
            samples = Columns::default().decode(&chunks);
        }
        What::Exemplars => {
            let mut stream = block.scan_exemplars(Matchers::default(), TimeRange::ALL);
            while let Some(next) = stream.next().await {
                samples += black_box(next?).iter().map(|(_, e)| e.len()).sum::<usize>();
            }
        }
    }
    Ok(samples)
}

/// The samples or exemplars of what matches, and the seconds it took to find its series.
async fn read_some(block: &BlockReader, what: What, matchers: Matchers) -> Result<(usize, f64)> {
    if matches!(what, What::Exemplars) {
        let mut stream = block.scan_exemplars(matchers, TimeRange::ALL);
        let mut samples = 0;
        while let Some(next) = stream.next().await {
            samples += black_box(next?).iter().map(|(_, e)| e.len()).sum::<usize>();
        }
        return Ok((samples, f64::NAN));
    }
    let before = cpu_time();
    let series = block.select(&matchers, TimeRange::ALL).await?;
    let finding = (cpu_time() - before).as_secs_f64();
    let chunks = block.read_chunks(&series, TimeRange::ALL).await?;
    Ok((Columns::default().decode(&chunks), finding))
}

/// What reading something with nothing cached costs.
#[derive(Clone, Copy)]
struct Cost {
    micros: f64,
    /// Of them to find the series.
    finding_micros: f64,
    requests: f64,
    kilobytes: f64,
}

impl Bench {
    /// On average over some reads.
    fn cost(&mut self, measured: &'static str, parts: &BlockParts, what: What, all: &[Vec<Matcher>]) -> Cost {
        let (mut requests, mut bytes, mut finding) = (0, 0, Vec::new());
        let seconds = self.median(measured, || {
            (requests, bytes) = (0, 0);
            let (mut seconds_in_all, mut finding_in_all) = (0.0, 0.0);
            for matchers in all {
                let source = Arc::new(Counting::new(parts, true));
                let reader: Arc<dyn RangeRead> = Arc::<Counting>::clone(&source);
                let (seconds, found) = seconds(|| {
                    let block = opened(parts, reader);
                    block_on(read_some(&block, what, Matchers(matchers.clone())))
                });
                let (samples, finding) = found.expect("the block is readable");
                assert!(samples > 0, "the query finds something");
                finding_in_all += finding;
                seconds_in_all += seconds;
                let read = source.read_so_far();
                (requests, bytes) = (requests + read.0, bytes + read.1);
            }
            finding.push(finding_in_all);
            seconds_in_all
        });
        finding.sort_by(f64::total_cmp);
        let each = all.len() as f64;
        Cost {
            micros: seconds * 1e6 / each,
            finding_micros: finding[finding.len() / 2] * 1e6 / each,
            requests: requests as f64 / each,
            kilobytes: bytes as f64 / 1e3 / each,
        }
    }

    /// Million samples a second: written, read whole with nothing cached, and read whole from the chunks that a store keeps.
    fn speeds(&mut self, all: &[Series], parts: &BlockParts, layout: Layout, what: What) -> [f64; 3] {
        let samples = match what {
            What::Exemplars => all.iter().map(|s| s.exemplars.len() as u64).sum(),
            _ => parts.meta.samples,
        };
        let write = self.rate("written", samples, || {
            let (seconds, parts) = seconds(|| written(all, layout));
            black_box(parts);
            seconds
        });
        let cold = self.rate("read whole, cold", samples, || {
            let block = opened_in_memory(parts);
            let (seconds, read) = seconds(|| block_on(read_whole(&block, what)));
            assert_eq!(read.expect("the block is readable") as u64, samples);
            seconds
        });
        if matches!(what, What::Exemplars) {
            return [write, cold, f64::NAN];
        }
        let block = opened_in_memory(parts);
        let mut columns = Columns::default();
        let mut warm_read = || {
            let series = block_on(block.select(&Matchers::default(), TimeRange::ALL));
            let series = series.expect("the block is readable");
            let chunks = block_on(block.read_chunks(&series, TimeRange::ALL));
            columns.decode(&chunks.expect("the block is readable"))
        };
        warm_read();
        let warm = self.rate("read whole, warm", samples, || {
            let (seconds, read) = seconds(&mut warm_read);
            assert_eq!(read as u64, samples);
            seconds
        });
        [write, cold, warm]
    }
}

/// Some of the series, spread over the block.
fn one_by_one(all: &[Series]) -> Vec<Vec<Matcher>> {
    let places = (0..ONE_BY_ONE).map(|i| (i * all.len() + all.len() / 2) / ONE_BY_ONE);
    places
        .filter_map(|place| all.get(place))
        .map(|series| series.labels.iter().map(|(n, v)| Matcher::equal(n, v)).collect())
        .collect()
}

/// A figure, or a dash where there is none.
fn or_dash(figure: f64, decimals: usize) -> String {
    match figure.is_finite() {
        true => format!("{figure:.decimals$}"),
        false => "–".to_owned(),
    }
}

/// What each kind of data takes.
fn kinds(bench: &mut Bench, size: Size) {
    println!(
        "| Samples | Times | B/sample | times | values | written | read whole, cold | warm | one series, µs | of it to find it | kB | requests |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|");
    let floats = Kind::ALL.map(|kind| (kind.name(), What::Floats(kind), size));
    // A native histogram takes as much as dozens of floats, and few series have exemplars.
    let fewer = Size {
        per_target: size.per_target.div_ceil(10),
        ..size
    };
    let fleet = [("the fleet", What::Fleet, size)];
    let others = [
        ("native histograms", What::Histograms, fewer),
        ("exemplars", What::Exemplars, fewer),
    ];
    for (name, what, size) in fleet.into_iter().chain(floats).chain(others) {
        for times in [Times::Jittered, Times::Regular, Times::NothingShared] {
            let (order, layout) = (Order::MetricFirst, size.layout());
            let all = series_of(what, order, times, size);
            let parts = written(&all, layout);
            let [write, cold, warm] = bench.speeds(&all, &parts, layout, what);
            let one = bench.cost("one series", &parts, what, &one_by_one(&all));
            let samples = match what {
                What::Exemplars => all.iter().map(|s| s.exemplars.len() as u64).sum(),
                _ => parts.meta.samples,
            };
            let per_sample = |bytes: u64| bytes as f64 / samples as f64;
            let of_part = |name: &str| parts.meta.part(name).map_or(0, |part| part.bytes);
            let (times_bytes, values_bytes) = match what {
                What::Fleet | What::Floats(_) => {
                    (per_sample(time_bytes(&parts)), per_sample(value_bytes(&parts)))
                }
                What::Histograms => (f64::NAN, per_sample(of_part(HISTOGRAMS_PART))),
                What::Exemplars => (f64::NAN, per_sample(of_part(EXEMPLARS_PART))),
            };
            println!(
                "| {name} | {} | {:.3} | {} | {values_bytes:.3} | {write:.1} | {cold:.1} | {} | {:.0} | {} | {:.0} | {:.1} |",
                times.name(),
                per_sample(block_bytes(&parts)),
                or_dash(times_bytes, 3),
                or_dash(warm, 1),
                one.micros,
                or_dash(one.finding_micros, 0),
                one.kilobytes,
                one.requests,
            );
        }
    }
}

/// The fleet in both orders, with pages of some sizes, its times stored once or with each sample.
fn orders(bench: &mut Bench, size: Size) {
    println!(
        "| Times stored | Order | Page rows | B/sample | written | read whole, cold | one series, µs / kB | one metric, all targets, ms / kB | one target, all metrics, ms / kB |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for shared_times in [true, false] {
        for order in [Order::MetricFirst, Order::TargetFirst] {
            let all = series_of(What::Fleet, order, Times::Jittered, size);
            for page_rows in [4096, 16_384, 65_536] {
                let layout = Layout {
                    page_rows,
                    shared_times,
                    ..size.layout()
                };
                let what = What::Fleet;
                let parts = written(&all, layout);
                let [write, cold, _] = bench.speeds(&all, &parts, layout, what);
                let one = bench.cost("one series", &parts, what, &one_by_one(&all));
                let metrics = [3, 5, 7].map(|n| size.per_target.saturating_sub(n));
                let metrics = metrics.map(|n| vec![Matcher::equal("__name__", metric(n))]);
                let of_metric = bench.cost("one metric", &parts, what, &metrics);
                let hosts = [3, 5, 7].map(|n| size.targets.saturating_sub(n));
                let hosts = hosts.map(|n| vec![Matcher::equal(order.target_label(), host(n))]);
                let of_target = bench.cost("one target", &parts, what, &hosts);
                println!(
                    "| {} | {} | {page_rows} | {:.3} | {write:.1} | {cold:.1} | {:.0} / {:.0} | {:.1} / {:.0} | {:.1} / {:.0} |",
                    if shared_times { "once" } else { "with each sample" },
                    order.name(),
                    block_bytes(&parts) as f64 / parts.meta.samples as f64,
                    one.micros,
                    one.kilobytes,
                    of_metric.micros / 1e3,
                    of_metric.kilobytes,
                    of_target.micros / 1e3,
                    of_target.kilobytes,
                );
            }
        }
    }
}

fn main() {
    let of_tables = |arg: &String| arg.parse::<usize>().is_err();
    let (tables, numbers): (Vec<String>, Vec<String>) = std::env::args().skip(1).partition(of_tables);
    let mut numbers = numbers.iter().filter_map(|n| n.parse().ok());
    let size = Size {
        targets: numbers.next().unwrap_or(40),
        per_target: numbers.next().unwrap_or(30),
        // A day at 15 s.
        samples: numbers.next().unwrap_or(5760),
    };
    let mut bench = Bench::new(numbers.next().unwrap_or(5));
    println!(
        "{} targets x {} series x {} samples, zstd level {}; million samples a second of CPU",
        size.targets,
        size.per_target,
        size.samples,
        size.layout().zstd_level
    );
    let is_wanted = |name: &str| tables.is_empty() || tables.iter().any(|wanted| wanted == name);
    if is_wanted("kinds") {
        println!();
        kinds(&mut bench, size);
    }
    if is_wanted("orders") {
        println!();
        orders(&mut bench, size);
    }
    if is_wanted("encodings") {
        println!();
        encodings(&mut bench, size);
    }
    bench.tell_ranges();
}
