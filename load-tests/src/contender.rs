//! Koios and its peers as processes of this machine.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::fleet::Fleet;
use crate::measure;

/// Longest start that is waited for.
const READY_MAX: Duration = Duration::from_secs(300);

/// One contender.
#[derive(Clone, Debug)]
pub(crate) struct Contender {
    pub(crate) name: &'static str,
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<String>,
    pub(crate) base: String,
    pub(crate) push: &'static str,
    pub(crate) ready: &'static str,
    /// All that it has on disk.
    pub(crate) data: PathBuf,
    /// Asked after the load, so that everything is on disk in its final form.
    pub(crate) flush: Vec<&'static str>,
    /// Where the final form lies.
    pub(crate) stored: PathBuf,
}

impl Contender {
    /// Starts it.
    pub(crate) fn start(&self) -> Result<Running> {
        Running::start(&self.program, &self.args)
    }

    /// Where samples are sent.
    pub(crate) fn push_url(&self) -> String {
        format!("{}{}", self.base, self.push)
    }

    /// Waits until it says that it is ready; gives how long that took.
    pub(crate) async fn wait_ready(&self) -> Result<Duration> {
        wait_until_ok(&format!("{}{}", self.base, self.ready)).await
    }
}

/// Asks until the answer is good; gives how long that took.
pub(crate) async fn wait_until_ok(url: &str) -> Result<Duration> {
    let begin = Instant::now();
    while begin.elapsed() < READY_MAX {
        if reqwest::get(url).await.is_ok_and(|a| a.status().is_success()) {
            return Ok(begin.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    bail!("{url} does not answer well after {READY_MAX:?}")
}

/// A free port.
pub(crate) fn port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Koios, Prometheus and VictoriaMetrics with data below `dir`, ready for the fleet's samples.
pub(crate) fn contenders(dir: &Path, koios: &Path, fleet: &Fleet) -> Result<Vec<Contender>> {
    let (k, g, p, v) = (port()?, port()?, port()?, port()?);
    let data = |name: &str| dir.join(name);
    // The load is a part of the past, and the run takes hours at most; the others take samples of any age that come in
    // order.
    let age_hours = (measure::now_ms() - fleet.start_ms) / 3_600_000 + 6;
    Ok(vec![
        Contender {
            name: "Koios",
            program: koios.to_owned(),
            args: vec![
                format!("--http.listen=127.0.0.1:{k}"),
                format!("--grpc.listen=127.0.0.1:{g}"),
                format!("--data-dir={}", data("koios").display()),
                "--self-metrics.interval=0s".to_owned(),
                format!("--limits.out-of-order-time-window={age_hours}h"),
            ],
            base: format!("http://127.0.0.1:{k}"),
            push: "/api/v1/push",
            ready: "/ready",
            data: data("koios"),
            flush: vec!["/ingester/flush?wait=true"],
            stored: data("koios").join("bucket"),
        },
        Contender {
            name: "Prometheus",
            program: "prometheus".into(),
            args: vec![
                "--config.file=/dev/null".to_owned(),
                format!("--web.listen-address=127.0.0.1:{p}"),
                format!("--storage.tsdb.path={}", data("prometheus").display()),
                "--web.enable-remote-write-receiver".to_owned(),
                "--web.enable-admin-api".to_owned(),
                "--log.level=error".to_owned(),
            ],
            base: format!("http://127.0.0.1:{p}"),
            push: "/api/v1/write",
            ready: "/-/ready",
            data: data("prometheus"),
            flush: vec!["/api/v1/admin/tsdb/snapshot"],
            stored: data("prometheus").join("snapshots"),
        },
        Contender {
            name: "VictoriaMetrics",
            program: "victoria-metrics".into(),
            args: vec![
                format!("-httpListenAddr=127.0.0.1:{v}"),
                format!("-storageDataPath={}", data("victoria").display()),
                "-retentionPeriod=100y".to_owned(),
                "-search.disableCache".to_owned(),
                "-loggerLevel=ERROR".to_owned(),
            ],
            base: format!("http://127.0.0.1:{v}"),
            push: "/api/v1/write",
            ready: "/health",
            data: data("victoria"),
            flush: vec!["/internal/force_flush", "/internal/force_merge"],
            stored: data("victoria").join("data"),
        },
    ])
}

/// A started process, which ends with this.
pub(crate) struct Running(Child);

impl Running {
    /// Starts a program whose output is thrown away.
    pub(crate) fn start(program: &Path, args: &[String]) -> Result<Self> {
        let child = Command::new(program)
            .args(args)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        child
            .map(Self)
            .with_context(|| format!("start {}", program.display()))
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// `kill -9`.
    pub(crate) fn kill(mut self) -> Result<()> {
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself; either way it is gone afterwards.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
