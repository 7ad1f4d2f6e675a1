//! Real processes: started, watched, killed by their id, their logs kept.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::http::HttpClient;

/// A free port of 127.0.0.1, another one each time. Another process could take it before it is used; tests that must not race
/// pass port 0.
///
/// # Panics
/// When the machine has no free port.
pub fn free_port() -> u16 {
    static HANDED_OUT: AtomicU32 = AtomicU32::new(0);
    // Tests that run at the same time are processes of their own, and begin at different places.
    let begin = std::process::id().wrapping_mul(PORTS_PER_PROCESS);
    (0..PORTS)
        .find_map(|_| {
            let next = begin.wrapping_add(HANDED_OUT.fetch_add(1, Ordering::Relaxed));
            let port = u16::try_from(u32::from(FIRST_PORT) + next % PORTS).ok()?;
            TcpListener::bind(("127.0.0.1", port)).ok().map(|_| port)
        })
        .expect("a free port")
}

/// Ports from here on are handed out: below those that systems give to connections that go out, which would take one
/// before its server listens.
const FIRST_PORT: u16 = 10_240;
/// How many there are.
const PORTS: u32 = 20_000;
/// More than most tests need.
const PORTS_PER_PROCESS: u32 = 41;

/// A started process; killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    program: PathBuf,
    args: Vec<String>,
    log: PathBuf,
    env: Vec<(String, String)>,
    child: Child,
}

impl Process {
    /// Starts `program` with its output in `<dir>/<name>.log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(name: &str, program: &Path, args: &[String], dir: &Path) -> Result<Self> {
        Self::start_with_env(name, program, args, dir, &[])
    }

    /// As [`Self::start`], with environment variables added.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_with_env(
        name: &str,
        program: &Path,
        args: &[String],
        dir: &Path,
        env: &[(String, String)],
    ) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let log = dir.join(format!("{name}.log"));
        let child = spawn(program, args, &log, env)?;
        Ok(Self {
            name: name.to_owned(),
            program: program.to_owned(),
            args: args.to_vec(),
            log,
            env: env.to_vec(),
            child,
        })
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it printed so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// kill -9.
    pub fn kill(&mut self) {
        // It may have ended by itself; either way it is gone afterwards.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM, then waits up to `limit`; says whether it ended with code 0.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn terminate(&mut self, limit: Duration) -> Result<bool> {
        self.signal(rustix::process::Signal::TERM)?;
        let rounds = limit.as_millis() / 20;
        for _ in 0..rounds {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status.success());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        bail!(
            "{} did not end within {limit:?} of SIGTERM; its log ends: {}",
            self.name,
            self.log_end()
        )
    }

    /// Sends a signal such as STOP or CONT.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn signal(&self, signal: rustix::process::Signal) -> Result<()> {
        let pid = i32::try_from(self.id())
            .ok()
            .and_then(rustix::process::Pid::from_raw)
            .context("process id")?;
        rustix::process::kill_process(pid, signal).with_context(|| format!("signal {}", self.name))
    }

    /// Starts it again with the same arguments, its log appended to.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn restart(&mut self) -> Result<()> {
        self.kill();
        self.child = spawn(&self.program, &self.args, &self.log, &self.env)?;
        Ok(())
    }

    /// The exit code, if it has ended.
    pub fn exit_code(&mut self) -> Option<i32> {
        self.child.try_wait().ok().flatten().and_then(|s| s.code())
    }

    /// Waits until GET `path` answers 200.
    ///
    /// # Errors
    /// When it ends or does not within `limit`; the message holds the end of its log.
    pub async fn wait_ready(
        &mut self,
        client: &HttpClient,
        addr: &str,
        path: &str,
        limit: Duration,
    ) -> Result<()> {
        let rounds = limit.as_millis() / 50;
        let mut last = String::from("no answer");
        for _ in 0..rounds {
            match client.get(addr, path).await {
                Ok(answer) if answer.status == 200 => return Ok(()),
                Ok(answer) => last = answer.text(),
                Err(e) => last = format!("{e:#}"),
            }
            if let Some(status) = self.child.try_wait()? {
                bail!(
                    "{} ended with {status}; its log ends: {}",
                    self.name,
                    self.log_end()
                );
            }
            pause(Duration::from_millis(50)).await;
        }
        bail!(
            "{} is not ready after {limit:?}: {last}; its log ends: {}",
            self.name,
            self.log_end()
        )
    }

    fn log_end(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().rev().take(15).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn spawn(program: &Path, args: &[String], log: &Path, env: &[(String, String)]) -> Result<Child> {
    let log = fs::OpenOptions::new().create(true).append(true).open(log)?;
    Command::new(program)
        .args(args)
        .envs(env.iter().map(|(k, v)| (k, v)))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("start {}", program.display()))
}

/// Waits a moment between two looks at a real process.
#[expect(clippy::disallowed_methods, reason = "real processes live in real time")]
pub async fn pause(duration: Duration) {
    tokio::time::sleep(duration).await;
}
