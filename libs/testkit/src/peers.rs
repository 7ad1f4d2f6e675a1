//! Real Prometheus and `node_exporter`, from Debian's packages.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use bytes::Bytes;

use crate::http::HttpClient;
use crate::process::{Process, free_port};

/// Finds a program on the search path.
///
/// # Errors
/// When it is missing; the message says how to get it.
pub fn find(program: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    match std::env::split_paths(&path)
        .map(|d| d.join(program))
        .find(|p| p.is_file())
    {
        Some(found) => Ok(found),
        None => bail!("{program} is not installed: run `cargo xtask test`, or `apt-get install {program}`"),
    }
}

/// A Prometheus that scrapes some targets and remote-writes.
#[derive(Debug)]
pub struct Prometheus {
    /// The process.
    pub process: Process,
    /// Its `host:port`.
    pub addr: String,
    /// Where it keeps its samples.
    data: PathBuf,
}

impl Prometheus {
    /// Starts it in `dir`, scraping itself and `targets` every `interval`, writing to `remote_write`.
    ///
    /// # Errors
    /// When it is not installed or cannot be started.
    pub fn start(dir: &Path, interval: &str, targets: &[(&str, String)], remote_write: &str) -> Result<Self> {
        Self::scraping(dir, (interval, targets), (remote_write, ""), &[])
    }

    /// The same with all that it can send beside floats: exemplars, native histograms, and metadata every second.
    ///
    /// # Errors
    /// When it is not installed or cannot be started.
    pub fn sending_all(
        dir: &Path,
        interval: &str,
        targets: &[(&str, String)],
        remote_write: &str,
    ) -> Result<Self> {
        let more = "  send_exemplars: true\n  send_native_histograms: true\n  metadata_config:\n    send_interval: 1s\n";
        let features = ["--enable-feature=exemplar-storage,native-histograms"];
        Self::scraping(dir, (interval, targets), (remote_write, more), &features)
    }

    fn scraping(
        dir: &Path,
        (interval, targets): (&str, &[(&str, String)]),
        (url, more): (&str, &str),
        flags: &[&str],
    ) -> Result<Self> {
        let program = find("prometheus")?;
        let addr = format!("127.0.0.1:{}", free_port());
        let mut config = format!(
            "global:\n  scrape_interval: {interval}\n  scrape_timeout: {interval}\nscrape_configs:\n\
             - job_name: prometheus\n  static_configs:\n  - targets: ['{addr}']\n"
        );
        for (job, target) in targets {
            config.push_str(&format!(
                "- job_name: {job}\n  static_configs:\n  - targets: ['{target}']\n"
            ));
        }
        config.push_str(&format!(
            "remote_write:\n- url: {url}\n{more}  queue_config:\n    batch_send_deadline: 1s\n    min_backoff: 100ms\n\
             \x20   max_backoff: 1s\n    retry_on_http_429: true\n"
        ));
        Self::start_with(dir, &program, addr, &config, flags)
    }

    /// Starts it in `dir` as a receiver of remote write that scrapes nothing and keeps what it gets, however old.
    ///
    /// # Errors
    /// When it is not installed or cannot be started.
    pub fn receiver(dir: &Path) -> Result<Self> {
        let program = find("prometheus")?;
        let addr = format!("127.0.0.1:{}", free_port());
        let flags = [
            "--web.enable-remote-write-receiver",
            "--web.enable-admin-api",
            "--enable-feature=native-histograms,promql-at-modifier,promql-negative-offset",
            "--storage.tsdb.retention.time=100y",
        ];
        Self::start_with(dir, &program, addr, "global: {}\n", &flags)
    }

    fn start_with(dir: &Path, program: &Path, addr: String, config: &str, flags: &[&str]) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let file = dir.join("prometheus.yml");
        fs::write(&file, config)?;
        let mut args = vec![
            format!("--config.file={}", file.display()),
            format!("--storage.tsdb.path={}", dir.join("prometheus-data").display()),
            format!("--web.listen-address={addr}"),
            "--log.level=warn".to_owned(),
        ];
        args.extend(flags.iter().map(|flag| (*flag).to_owned()));
        let process = Process::start("prometheus", program, &args, dir)?;
        let data = dir.join("prometheus-data");
        Ok(Self { process, addr, data })
    }

    /// Has a receiver write everything it has to blocks; gives their folder.
    ///
    /// # Errors
    /// When it does not.
    pub async fn snapshot(&self, client: &HttpClient) -> Result<PathBuf> {
        let path = "/api/v1/admin/tsdb/snapshot";
        let answer = client.send("POST", &self.addr, path, &[], Bytes::new()).await?;
        let json = answer.json()?;
        match json["data"]["name"].as_str() {
            Some(name) => Ok(self.data.join("snapshots").join(name)),
            None => bail!("{path} answers {json}"),
        }
    }
}

/// Starts `node_exporter` and returns it with its `host:port`.
///
/// # Errors
/// When it is not installed or cannot be started.
pub fn node_exporter(dir: &Path) -> Result<(Process, String)> {
    let program = find("prometheus-node-exporter")?;
    let addr = format!("127.0.0.1:{}", free_port());
    let process = Process::start(
        "node_exporter",
        &program,
        &[format!("--web.listen-address={addr}")],
        dir,
    )?;
    Ok((process, addr))
}
