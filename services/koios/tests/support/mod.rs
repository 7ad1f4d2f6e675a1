//! What end-to-end tests share: a cluster of real processes on this machine.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    reason = "each test file uses its part"
)]

pub mod chance;
pub mod faults;
pub mod load;
pub mod small_disk;
pub mod target;

use std::collections::BTreeMap;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use koios_model::{Labels, Sample};
use koios_runtime::{Clock, ClockHandle, RealClock, RealNet};
use koios_testkit::http::{Answer, HttpClient};
use koios_testkit::oracle::Oracle;
use koios_testkit::process::{Process, free_port, pause};
use koios_testkit::query::{self, SeriesMap};
use koios_testkit::remote_write;
use small_disk::SmallDisk;

/// Longest wait for anything to come up on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(300);
/// Longest that a request takes anywhere: a flush of many windows waits for each of their syncs.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(150);

pub fn program() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_koios"))
}

/// The Python of the test environment.
pub fn python() -> String {
    std::env::var("KOIOS_PYTHON").unwrap_or_else(|_| {
        concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/testenv/bin/python").to_owned()
    })
}

pub fn clock() -> ClockHandle {
    Arc::new(RealClock::new())
}

pub fn now_ms() -> i64 {
    RealClock::new().now_ms()
}

pub fn client() -> HttpClient {
    HttpClient::new(Arc::new(RealNet), clock(), REQUEST_TIMEOUT)
}

/// One process of a cluster.
#[derive(Debug)]
pub struct Koios {
    pub process: Process,
    pub http: String,
    pub grpc: String,
    pub data_dir: PathBuf,
}

impl Koios {
    pub async fn ready(&mut self, client: &HttpClient) -> Result<()> {
        self.process
            .wait_ready(client, &self.http, "/ready", PATIENCE)
            .await
    }

    /// The end of what it logged, for whoever looks into a failure; an error when it panicked.
    pub fn log_end(&self) -> Result<String> {
        let log = self.process.log();
        let lines: Vec<&str> = log.lines().collect();
        let end = lines[lines.len().saturating_sub(40)..].join("\n");
        ensure!(!log.contains("panicked at"), "the process panicked: {end}");
        Ok(end)
    }

    /// The sum of a metric over its labels.
    pub async fn metric(&self, client: &HttpClient, name: &str) -> Result<f64> {
        let text = client.get(&self.http, "/metrics").await?.text();
        let values = text.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            rest.starts_with([' ', '{'])
                .then(|| rest.rsplit(' ').next()?.parse::<f64>().ok())?
        });
        Ok(values.sum())
    }

    /// kill -9 and an empty disk.
    pub fn wipe(&mut self) -> Result<()> {
        self.process.kill();
        std::fs::remove_dir_all(&self.data_dir)?;
        Ok(())
    }
}

/// Starts all-in-one in `dir`.
pub async fn all_in_one(dir: &Path, flags: &[&str]) -> Result<Koios> {
    let mut koios = starting_all_in_one(dir, flags, None)?;
    koios.ready(&client()).await?;
    Ok(koios)
}

/// Starts all-in-one in `dir`, or with its data on a disk of its own, and waits for nothing.
pub fn starting_all_in_one(dir: &Path, flags: &[&str], disk: Option<&SmallDisk>) -> Result<Koios> {
    let (http, grpc) = (
        format!("127.0.0.1:{}", free_port()),
        format!("127.0.0.1:{}", free_port()),
    );
    let data_dir = disk.map_or(dir, SmallDisk::path).join("data");
    let mut args = vec![
        format!("--http.listen={http}"),
        format!("--grpc.listen={grpc}"),
        format!("--data-dir={}", data_dir.display()),
    ];
    args.extend(flags.iter().map(|f| (*f).to_owned()));
    let (program, args) = command(disk, args);
    Ok(Koios {
        process: Process::start("koios", &program, &args, dir)?,
        http,
        grpc,
        data_dir,
    })
}

/// What starts Koios where its disk is seen.
fn command(disk: Option<&SmallDisk>, args: Vec<String>) -> (PathBuf, Vec<String>) {
    match disk {
        Some(disk) => disk.command(&program(), args),
        None => (program(), args),
    }
}

/// How a cluster is built.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Three voters in processes of their own instead of in the ingesters.
    pub separate_control: bool,
    /// A bucket URL instead of a folder.
    pub bucket: Option<String>,
    /// Added to every process.
    pub flags: Vec<String>,
    /// Environment of every process.
    pub env: Vec<(String, String)>,
    /// Stores beside the first.
    pub more_stores: Vec<&'static str>,
    /// A process whose data is on a disk of its own.
    pub small_disk: Option<(&'static str, Arc<SmallDisk>)>,
}

/// Ingesters a, b and c in three zones, a distributor, a querier, a store, and where asked for more stores and three voters.
pub struct Cluster {
    pub dir: tempfile::TempDir,
    pub nodes: BTreeMap<String, Koios>,
    pub client: HttpClient,
}

pub const INGESTERS: [&str; 3] = ["ingester-a", "ingester-b", "ingester-c"];
pub const VOTERS: [&str; 3] = ["control-1", "control-2", "control-3"];

impl Cluster {
    pub async fn start(plan: Plan) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let bucket = plan
            .bucket
            .clone()
            .unwrap_or_else(|| format!("file://{}", dir.path().join("bucket").display()));
        let mut names: Vec<&str> = INGESTERS.to_vec();
        names.extend(["distributor", "querier", "store"]);
        names.extend(&plan.more_stores);
        if plan.separate_control {
            names.extend(VOTERS);
        }
        let grpc: BTreeMap<&str, String> = names
            .iter()
            .map(|n| (*n, format!("127.0.0.1:{}", free_port())))
            .collect();
        let voters = if plan.separate_control { VOTERS } else { INGESTERS };
        let voters: Vec<String> = voters.iter().map(|v| format!("{v}={}", grpc[v])).collect();
        let mut nodes = BTreeMap::new();
        for name in names {
            let http = format!("127.0.0.1:{}", free_port());
            let disk = plan.small_disk.as_ref().filter(|(of, _)| *of == name);
            let disk = disk.map(|(_, disk)| disk.as_ref());
            let data_dir = disk.map_or_else(|| dir.path(), SmallDisk::path).join(name);
            let service = name.split('-').next().unwrap_or(name);
            let mut args = vec![
                service.to_owned(),
                format!("--node.name={name}"),
                format!("--http.listen={http}"),
                format!("--grpc.listen={}", grpc[name]),
                format!("--data-dir={}", data_dir.display()),
                format!("--control.voters={}", voters.join(",")),
            ];
            if service != "distributor" {
                args.push(format!("--bucket={bucket}"));
            }
            if let Some(zone) = name.strip_prefix("ingester-") {
                args.push(format!("--zone={zone}"));
            }
            args.extend(plan.flags.iter().cloned());
            let (program, args) = command(disk, args);
            let process = Process::start_with_env(name, &program, &args, dir.path(), &plan.env)?;
            nodes.insert(
                name.to_owned(),
                Koios {
                    process,
                    http,
                    grpc: grpc[name].clone(),
                    data_dir,
                },
            );
        }
        let mut cluster = Self {
            dir,
            nodes,
            client: client(),
        };
        cluster.ready().await?;
        Ok(cluster)
    }

    pub fn node(&mut self, name: &str) -> &mut Koios {
        self.nodes
            .get_mut(name)
            .unwrap_or_else(|| panic!("the cluster has no node {name}"))
    }

    /// Waits until every process is ready.
    pub async fn ready(&mut self) -> Result<()> {
        for koios in self.nodes.values_mut() {
            koios.ready(&self.client).await?;
        }
        Ok(())
    }

    pub fn push_addr(&self) -> String {
        self.nodes["distributor"].http.clone()
    }

    pub fn query_addr(&self) -> String {
        self.nodes["querier"].http.clone()
    }

    /// Flushes every ingester that lives.
    pub async fn flush(&self) -> Result<()> {
        for name in INGESTERS {
            let answer = self
                .client
                .send(
                    "POST",
                    &self.nodes[name].http,
                    "/ingester/flush?wait=true",
                    &[],
                    Default::default(),
                )
                .await?;
            if answer.status >= 300 {
                bail!("flush of {name}: {}: {}", answer.status, answer.text());
            }
        }
        Ok(())
    }

    /// Whether all three have applied the same number of samples: where none of them was restarted, and there is one partition.
    pub async fn hold_the_same(&self) -> Result<()> {
        let mut held = Vec::new();
        for name in INGESTERS {
            let koios = &self.nodes[name];
            held.push(
                koios
                    .metric(&self.client, "koios_ingester_samples_applied_total")
                    .await?,
            );
        }
        ensure!(held[0] > 0.0, "no samples are counted");
        ensure!(held.iter().all(|n| *n == held[0]), "samples applied: {held:?}");
        Ok(())
    }

    /// Runs `koios ctl` with a node's address.
    pub fn ctl(&self, args: &[&str], via: &str) -> Result<String> {
        ctl(args, &self.nodes[via].grpc)
    }
}

/// Runs `koios ctl` with a node's address.
pub fn ctl(args: &[&str], addr: &str) -> Result<String> {
    run_ctl(args, ["--addr", addr], &[])
}

/// Runs `koios ctl` with a bucket's URL and the environment of its client.
pub fn ctl_of_bucket(args: &[&str], url: &str, env: &[(String, String)]) -> Result<String> {
    run_ctl(args, ["--bucket-url", url], env)
}

fn run_ctl(args: &[&str], of: [&str; 2], env: &[(String, String)]) -> Result<String> {
    let output = std::process::Command::new(program())
        .arg("ctl")
        .args(args)
        .args(of)
        .envs(env.iter().cloned())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let problem = String::from_utf8_lossy(&output.stderr);
        bail!("koios ctl {args:?}: {text}{problem}");
    }
    Ok(text)
}

/// Writes numbered samples and remembers what was acknowledged.
pub struct Writer {
    pub oracle: Oracle,
    client: HttpClient,
    addr: String,
    tenant: String,
    series: u32,
    next: i64,
    start_ms: i64,
}

impl Writer {
    /// Samples of `series` series, one a step, the steps a second apart from `start_ms` on.
    pub fn new(client: &HttpClient, addr: &str, tenant: &str, series: u32, start_ms: i64) -> Self {
        Self {
            oracle: Oracle::default(),
            client: client.clone(),
            addr: addr.to_owned(),
            tenant: tenant.to_owned(),
            series,
            next: 0,
            start_ms,
        }
    }

    /// Sends to another distributor from now on.
    pub fn set_addr(&mut self, addr: &str) {
        addr.clone_into(&mut self.addr);
    }

    fn batch(&self, step: i64) -> Vec<(Labels, Vec<Sample>)> {
        (0..self.series)
            .map(|i| {
                let labels = Labels::from_pairs([("__name__", "oracle_total"), ("series", &i.to_string())]);
                let v = step as f64 * 10.0 + f64::from(i);
                (
                    labels,
                    vec![Sample {
                        t: self.start_ms + step * 1000,
                        v,
                    }],
                )
            })
            .collect()
    }

    /// Sends the next step once; the oracle learns of it either way.
    pub async fn push(&mut self) -> Result<Answer> {
        self.next += 1;
        self.push_again().await
    }

    /// Sends the last step once more, as a sender does that got no answer.
    pub async fn push_again(&mut self) -> Result<Answer> {
        let batch = self.batch(self.next - 1);
        self.oracle.sent(&batch);
        let answer = remote_write::push(&self.client, &self.addr, &self.tenant, &batch).await?;
        if answer.status < 300 {
            self.oracle.acknowledged(&batch);
        }
        Ok(answer)
    }

    /// Sends `steps` steps, each of which must be acknowledged.
    pub async fn push_acked(&mut self, steps: u32) -> Result<()> {
        for _ in 0..steps {
            let answer = self.push().await?;
            if answer.status >= 300 {
                bail!("push answered {}: {}", answer.status, answer.text());
            }
        }
        Ok(())
    }

    /// Reads everything back and lets the oracle judge.
    pub async fn check(&self, query_addr: &str) -> Result<u64> {
        let got = self.read(query_addr).await?;
        self.oracle.check(&got)?;
        Ok(self.oracle.acknowledged_count())
    }

    /// All samples of all series.
    pub async fn read(&self, query_addr: &str) -> Result<SeriesMap> {
        self.read_by(&self.client, query_addr).await
    }

    /// The same with another client than the one that writes.
    pub async fn read_by(&self, client: &HttpClient, query_addr: &str) -> Result<SeriesMap> {
        let (start, end) = self.oracle.range().context("nothing was sent")?;
        let window_s = (end - start) / 1000 + 10;
        let expr = format!("oracle_total[{window_s}s]");
        query::instant(client, query_addr, &self.tenant, &expr, end + 1).await
    }
}

/// Waits until `check` succeeds.
pub async fn eventually<T, F>(what: &str, mut check: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let clock = clock();
    let begin = clock.elapsed();
    loop {
        match check().await {
            Ok(value) => return Ok(value),
            Err(e) if clock.elapsed() - begin > PATIENCE => {
                return Err(e.context(format!("waited for {what}")));
            }
            Err(_) => pause(Duration::from_millis(200)).await,
        }
    }
}

/// Whether something listens.
pub fn listens(addr: &str) -> bool {
    TcpStream::connect(addr).is_ok()
}
