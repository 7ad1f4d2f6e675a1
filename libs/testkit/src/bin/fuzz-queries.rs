//! Compares Koios with the Prometheus of this machine by random queries; `cargo xtask fuzz-queries` runs it.
#![expect(clippy::print_stdout, reason = "a tool for people at a terminal")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser;
use koios_runtime::{Clock, RealClock};
use koios_testkit::differential::{Peers, Report, Wrong, judge, run};
use koios_testkit::query_gen::data::{floats, histograms};
use koios_testkit::query_gen::{Asked, QueryGenerator, Subject, Times};

/// How many queries lie between two lines that tell how things stand.
const PROGRESS_EVERY: usize = 1_000;
/// Of this many queries one is about native histograms.
const HISTOGRAMS_ONE_IN: usize = 10;

/// Compares Koios with the Prometheus of this machine by random queries.
#[derive(Parser)]
struct Args {
    /// Decides the samples and the queries.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many queries to ask.
    #[arg(long, default_value_t = 10_000)]
    queries: usize,
    /// Ask for this long instead.
    #[arg(long)]
    minutes: Option<u64>,
    /// The koios program; without it the engine is asked in this process.
    #[arg(long)]
    koios: Option<PathBuf>,
    /// Ask this one query instead of random ones.
    #[arg(long, requires = "at")]
    query: Option<String>,
    /// When to ask it, milliseconds: a time, or START..END/STEP.
    #[arg(long, value_parser = parse_times, requires = "query")]
    at: Option<Times>,
    /// Ask it of the native histograms.
    #[arg(long, requires = "query")]
    native: bool,
}

fn parse_times(text: &str) -> Result<Times> {
    let Some((start, rest)) = text.split_once("..") else {
        return Ok(Times::At(text.parse()?));
    };
    let (end, step) = rest.split_once('/').context("a range is START..END/STEP")?;
    Ok(Times::Range {
        start: start.parse()?,
        end: end.parse()?,
        step: step.parse()?,
    })
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let dir = tempfile::tempdir()?;
    let report = match (&args.query, args.at) {
        (Some(query), Some(times)) => {
            let asked = Asked {
                query: query.clone(),
                times,
            };
            let subject = if args.native {
                Subject::NativeHistograms
            } else {
                Subject::Floats
            };
            replay(&args, dir.path(), subject, asked).await?
        }
        _ => {
            let mut report = fuzz(&args, &dir.path().join("floats"), Subject::Floats).await?;
            report.merge(fuzz(&args, &dir.path().join("histograms"), Subject::NativeHistograms).await?);
            report
        }
    };
    println!("{report}");
    if report.wrong.is_empty() {
        Ok(())
    } else {
        bail!("{} differences, seed {}", report.wrong.len(), args.seed)
    }
}

/// Koios keeps no native histograms yet: the engine alone is asked for these.
async fn peers(args: &Args, dir: &Path, subject: Subject) -> Result<Peers> {
    match subject {
        Subject::Floats => Peers::start(dir, args.koios.as_deref(), &floats(args.seed)).await,
        Subject::NativeHistograms => Peers::start(dir, None, &histograms(args.seed)).await,
    }
}

async fn replay(args: &Args, dir: &Path, subject: Subject, asked: Asked) -> Result<Report> {
    let peers = peers(args, dir, subject).await?;
    let (prometheus, koios) = peers.ask(&asked).await?;
    println!("  Prometheus: {prometheus}\n  Koios:      {koios}");
    let report = judge(&peers, asked).await?;
    report.wrong.iter().for_each(|wrong| tell(args, subject, wrong));
    Ok(report)
}

async fn fuzz(args: &Args, dir: &Path, subject: Subject) -> Result<Report> {
    let peers = peers(args, dir, subject).await?;
    let mut generator = QueryGenerator::new(args.seed, subject);
    let share = match subject {
        Subject::Floats => (HISTOGRAMS_ONE_IN - 1, HISTOGRAMS_ONE_IN),
        Subject::NativeHistograms => (1, HISTOGRAMS_ONE_IN),
    };
    let clock = RealClock::new();
    let limit = args.minutes.map(|m| {
        Duration::from_secs(m * 60)
            .mul_f64(share.0 as f64 / share.1 as f64)
            .saturating_add(clock.elapsed())
    });
    let count = if limit.is_some() {
        usize::MAX
    } else {
        args.queries.div_ceil(share.1) * share.0
    };
    let mut told = 0;
    let queries = std::iter::repeat_with(|| generator.asked()).take(count);
    run(&peers, queries, |report| {
        for wrong in report.wrong.iter().skip(told) {
            tell(args, subject, wrong);
        }
        told = report.wrong.len();
        if report.queries.is_multiple_of(PROGRESS_EVERY) {
            println!("seed {}, {subject:?}: {}", args.seed, report.summary());
        }
        limit.is_none_or(|limit| clock.elapsed() < limit)
    })
    .await
}

/// Prints a difference, and the command that shows it again.
fn tell(args: &Args, subject: Subject, wrong: &Wrong) {
    let smallest = wrong.smallest();
    let native = match subject {
        Subject::Floats => "",
        Subject::NativeHistograms => " --native",
    };
    println!(
        "different:\n{wrong}\n  replay:     cargo xtask fuzz-queries --seed {}{native} --at={} --query={}\n",
        args.seed,
        smallest.times,
        quoted(&smallest.query)
    );
}

/// For a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}
