//! A real server of the S3 protocol over HTTP, for tests of what only a real one shows: moto, in memory.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use koios_runtime::{RealClock, RealNet};

use crate::http::HttpClient;
use crate::process::{Process, pause};

/// How long starting may take on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(180);

/// Runs moto so that conditions on objects hold.
const ONE_AT_A_TIME: &str = include_str!("moto_one_at_a_time.py");

/// A running server with one empty bucket; killed when dropped.
#[derive(Debug)]
pub struct Moto {
    process: Process,
    addr: String,
}

impl Moto {
    /// The bucket that exists from the start.
    pub const BUCKET: &'static str = "koios-test";

    /// Starts a server on a free port, its log in `dir`. The program is `$KOIOS_MOTO_SERVER`, else the one in the
    /// test environment under the target folder, else the one on the path.
    ///
    /// # Errors
    /// When there is none (`cargo xtask test` installs it), or it does not answer.
    pub async fn start(dir: &Path) -> Result<Self> {
        let python = interpreter_of(&find_program()?)?;
        let script = dir.join("moto_one_at_a_time.py");
        std::fs::write(&script, ONE_AT_A_TIME).with_context(|| script.display().to_string())?;
        let args = [&script.display().to_string(), "-H", "127.0.0.1", "-p", "0"].map(str::to_owned);
        let mut process = Process::start("moto", &python, &args, dir)?;
        let addr = wait_for_addr(&mut process).await?;
        let client = HttpClient::new(
            Arc::new(RealNet),
            Arc::new(RealClock::new()),
            Duration::from_secs(20),
        );
        process
            .wait_ready(&client, &addr, "/moto-api/", START_LIMIT)
            .await?;
        let created = client
            .send("PUT", &addr, &format!("/{}", Self::BUCKET), &[], Bytes::new())
            .await?;
        if created.status != 200 {
            bail!(
                "moto did not create a bucket: {} {}",
                created.status,
                created.text()
            );
        }
        Ok(Self { process, addr })
    }

    /// `host:port`.
    pub fn addr(&self) -> &str {
        &self.addr
    }

    /// The environment that points an S3 client at this server.
    pub fn env(&self) -> Vec<(String, String)> {
        [
            ("AWS_ENDPOINT_URL", format!("http://{}", self.addr).as_str()),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
        ]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .to_vec()
    }

    /// The URL of the bucket with a prefix.
    pub fn url(&self, prefix: &str) -> String {
        format!("s3://{}/{prefix}", Self::BUCKET)
    }

    /// The process, to stop, continue or kill it. What it stored is gone with it.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

/// The line with the address comes once the socket listens.
async fn wait_for_addr(process: &mut Process) -> Result<String> {
    for _ in 0..START_LIMIT.as_millis() / 50 {
        let log = process.log();
        if let Some((_, rest)) = log.split_once("Running on http://")
            && let Some(addr) = rest.split_whitespace().next()
        {
            return Ok(addr.to_owned());
        }
        if let Some(code) = process.exit_code() {
            bail!("moto ended with code {code}: {log}");
        }
        pause(Duration::from_millis(50)).await;
    }
    bail!("moto did not start within {START_LIMIT:?}: {}", process.log())
}

/// The Python that a script of moto's names in its first line: the one that has moto.
fn interpreter_of(program: &Path) -> Result<PathBuf> {
    let text = std::fs::read_to_string(program).with_context(|| program.display().to_string())?;
    let first = text.lines().next().and_then(|line| line.strip_prefix("#!"));
    let python = first.and_then(|command| command.split_whitespace().next());
    let python =
        python.with_context(|| format!("{} is no script that names its Python", program.display()))?;
    Ok(PathBuf::from(python))
}

fn find_program() -> Result<PathBuf> {
    let mut candidates = Vec::new();
    if let Some(given) = std::env::var_os("KOIOS_MOTO_SERVER") {
        candidates.push(PathBuf::from(given));
    } else {
        candidates.push(test_environment().join("bin").join("moto_server"));
        let path = std::env::var_os("PATH").unwrap_or_default();
        candidates.extend(std::env::split_paths(&path).map(|p| p.join("moto_server")));
    }
    candidates.into_iter().find(|p| p.is_file()).context(
        "moto_server is not installed: run the tests by `cargo xtask test`, which installs it, or set KOIOS_MOTO_SERVER",
    )
}

/// The Python environment for tests, with moto and pyarrow: `testenv` in the target folder.
pub fn test_environment() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"),
        PathBuf::from,
    );
    target.join("testenv")
}
