//! Both sides: a Debian Prometheus, and Koios as a process or as the engine alone.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use koios_promql::{Engine, ParseOptions, Query, Uninterrupted};
use koios_runtime::{RealClock, RealNet};

use super::answer::{Answer, Failure};
use super::wire;
use crate::http::HttpClient;
use crate::peers::Prometheus;
use crate::process::{Process, free_port};
use crate::promqltest::{MemoryStorage, Point};
use crate::query::{encode, seconds};
use crate::query_gen::data::{SPAN_MS, START_MS, SentSeries};
use crate::query_gen::{Asked, Times};

/// Longest wait for either to come up on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(300);
/// Samples are sent in requests of this much time: Prometheus refuses what is an hour older than what it has.
const SLICE_MS: i64 = 5 * 60_000;
/// The data is years old; Koios refuses such unless told otherwise.
const WINDOW: &str = "--limits.out-of-order-time-window=876000h";

/// Koios, as far as queries go.
#[derive(Debug)]
enum Koios {
    /// All-in-one over HTTP.
    Served {
        /// Keeps it running.
        _process: Process,
        addr: String,
    },
    /// The engine over samples in memory.
    Engine { engine: Engine, storage: MemoryStorage },
}

/// Both sides with the same samples.
#[derive(Debug)]
pub struct Peers {
    client: HttpClient,
    prometheus: Prometheus,
    koios: Koios,
}

impl Peers {
    /// Starts both in `dir` and feeds them the same remote write requests. Without a program for Koios, its engine is
    /// asked in this process, over the same samples in memory.
    ///
    /// # Errors
    /// When one does not start or refuses samples.
    pub async fn start(dir: &Path, koios: Option<&Path>, series: &[SentSeries]) -> Result<Self> {
        let client = HttpClient::new(
            Arc::new(RealNet),
            Arc::new(RealClock::new()),
            Duration::from_secs(60),
        );
        let mut prometheus = Prometheus::receiver(dir)?;
        let addr = prometheus.addr.clone();
        let ready = prometheus
            .process
            .wait_ready(&client, &addr, "/-/ready", PATIENCE);
        ready.await?;
        check_version(&client, &addr).await?;
        feed(&client, &addr, "/api/v1/write", series).await?;
        let koios = match koios {
            Some(program) => serve(&client, dir, program, series).await?,
            None => Koios::Engine {
                engine: Engine::default(),
                storage: storage(series),
            },
        };
        Ok(Self {
            client,
            prometheus,
            koios,
        })
    }

    /// Has Prometheus write everything it has to blocks; gives their folder.
    ///
    /// # Errors
    /// When it does not.
    pub async fn snapshot(&self) -> Result<PathBuf> {
        self.prometheus.snapshot(&self.client).await
    }

    /// Both answers, Prometheus' first.
    ///
    /// # Errors
    /// When one gives no answer that is one, as after a crash; names the query.
    pub async fn ask(&self, asked: &Asked) -> Result<(Answer, Answer)> {
        let koios = async {
            let answer = self.ask_koios(asked).await;
            answer.with_context(|| format!("Koios is asked {asked}"))
        };
        futures::try_join!(self.ask_prometheus(asked), koios)
    }

    /// Prometheus' answer alone.
    ///
    /// # Errors
    /// When it gives no answer that is one; names the query.
    pub(super) async fn ask_prometheus(&self, asked: &Asked) -> Result<Answer> {
        let theirs = Asked {
            query: in_their_words(&asked.query),
            times: asked.times,
        };
        let answer = over_http(&self.client, &self.prometheus.addr, &theirs).await;
        answer.with_context(|| format!("Prometheus is asked {asked}"))
    }

    async fn ask_koios(&self, asked: &Asked) -> Result<Answer> {
        match &self.koios {
            Koios::Served { addr, .. } => {
                let ours = Asked {
                    query: in_our_words(&asked.query),
                    times: asked.times,
                };
                over_http(&self.client, addr, &ours).await
            }
            Koios::Engine { engine, storage } => in_process(engine, storage, asked).await,
        }
    }
}

/// The list of known differences is about this version alone.
async fn check_version(client: &HttpClient, addr: &str) -> Result<()> {
    let answer = client.get(addr, "/api/v1/status/buildinfo").await?.json()?;
    let version = answer["data"]["version"].as_str().context("buildinfo")?;
    ensure!(
        version.starts_with("2.42."),
        "this Prometheus is {version}: queries are compared with 2.42, which Debian 12 packages"
    );
    Ok(())
}

/// The one function that was renamed since.
const THEIR_SMOOTHING: &str = "holt_winters(";
const OUR_SMOOTHING: &str = "double_exponential_smoothing(";

fn in_their_words(query: &str) -> String {
    query.replace(OUR_SMOOTHING, THEIR_SMOOTHING)
}

/// A query as Koios knows its functions.
pub(super) fn in_our_words(query: &str) -> String {
    query.replace(THEIR_SMOOTHING, OUR_SMOOTHING)
}

async fn serve(client: &HttpClient, dir: &Path, program: &Path, series: &[SentSeries]) -> Result<Koios> {
    let addr = format!("127.0.0.1:{}", free_port());
    let args = [
        format!("--http.listen={addr}"),
        format!("--grpc.listen=127.0.0.1:{}", free_port()),
        format!("--data-dir={}", dir.join("koios-data").display()),
        "--self-metrics.interval=0s".to_owned(),
        WINDOW.to_owned(),
    ];
    let mut process = Process::start("koios", program, &args, dir)?;
    process.wait_ready(client, &addr, "/ready", PATIENCE).await?;
    feed(client, &addr, "/api/v1/push", series).await?;
    Ok(Koios::Served {
        _process: process,
        addr,
    })
}

async fn feed(client: &HttpClient, addr: &str, path: &str, series: &[SentSeries]) -> Result<()> {
    let headers = [
        ("content-type", "application/x-protobuf"),
        ("content-encoding", "snappy"),
        ("x-prometheus-remote-write-version", "0.1.0"),
    ];
    for slice in 0..=SPAN_MS / SLICE_MS {
        let from = START_MS + slice * SLICE_MS;
        let Some(body) = wire::body(series, from, from + SLICE_MS - 1) else {
            continue;
        };
        let answer = client.send("POST", addr, path, &headers, body).await?;
        ensure!(
            answer.status < 300,
            "{path} answers {}: {}",
            answer.status,
            answer.text()
        );
    }
    Ok(())
}

fn storage(series: &[SentSeries]) -> MemoryStorage {
    let mut storage = MemoryStorage::default();
    for series in series {
        let points = series.samples.iter().map(|(t_ms, value)| Point {
            t_ms: *t_ms,
            start_ms: 0,
            value: value.clone(),
        });
        storage.insert(&series.stored_labels(), &points.collect::<Vec<_>>());
    }
    storage
}

async fn over_http(client: &HttpClient, addr: &str, asked: &Asked) -> Result<Answer> {
    let query = encode(&asked.query);
    let path = match asked.times {
        Times::At(t) => format!("/api/v1/query?query={query}&time={}", seconds(t)),
        Times::Range { start, end, step } => format!(
            "/api/v1/query_range?query={query}&start={}&end={}&step={}",
            seconds(start),
            seconds(end),
            seconds(step)
        ),
    };
    let answer = client.send("GET", addr, &path, &[], Bytes::new()).await?;
    Answer::from_json(answer.status, &answer.json()?)
}

async fn in_process(engine: &Engine, storage: &MemoryStorage, asked: &Asked) -> Result<Answer> {
    let query = match Query::parse(&in_our_words(&asked.query), &ParseOptions::default()) {
        Ok(query) => query,
        Err(e) => {
            return Ok(Answer::Failure(Failure {
                status: None,
                kind: "bad_data".to_owned(),
                message: e.to_string(),
            }));
        }
    };
    let output = match asked.times {
        Times::At(t) => engine.instant(storage, &query, t, &Uninterrupted).await,
        Times::Range { start, end, step } => {
            engine
                .range(storage, &query, (start, end, step), &Uninterrupted)
                .await
        }
    };
    Answer::from_engine(output.map(|output| output.value))
}
