//! A disk that a test can fill: a tmpfs that only processes started in its mount namespace see.

use std::fs::File;
use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};

/// Mounts and says so, then waits until nobody holds its input any more: the disk goes with the test, however that ends.
const HOLD: &str = r#"mount -t tmpfs -o size="$1" tmpfs "$2" && echo mounted && exec cat"#;

/// A mounted disk. Its data goes when it is dropped and no process uses it any more.
#[derive(Debug)]
pub struct SmallDisk {
    holder: Child,
    path: PathBuf,
    in_user_namespace: bool,
}

impl SmallDisk {
    /// Mounts at `path`, by right or in a user namespace; the error says why neither is possible here.
    pub fn mount(path: &Path, bytes: u64) -> Result<Self> {
        std::fs::create_dir_all(path)?;
        Self::hold(path, bytes, false).or_else(|by_right| {
            Self::hold(path, bytes, true).with_context(|| {
                format!("no disk can be mounted here: {by_right:#}, and in a user namespace")
            })
        })
    }

    fn hold(path: &Path, bytes: u64, in_user_namespace: bool) -> Result<Self> {
        let mut holder = Command::new("unshare")
            .arg(if in_user_namespace { "-rm" } else { "-m" })
            .args(["sh", "-c", HOLD, "sh", &bytes.to_string()])
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("start unshare")?;
        let mut said = String::new();
        let output = holder.stdout.take().context("output")?;
        BufReader::new(output).read_line(&mut said)?;
        if said != "mounted\n" {
            let mut problem = String::new();
            let mut errors = holder.stderr.take().context("errors")?;
            errors.read_to_string(&mut problem)?;
            holder.wait()?;
            bail!("{}", problem.trim());
        }
        Ok(Self {
            holder,
            path: path.to_owned(),
            in_user_namespace,
        })
    }

    /// Where processes started by [`Self::command`] see it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The command that runs a program where the disk is seen.
    pub fn command(&self, program: &Path, args: Vec<String>) -> (PathBuf, Vec<String>) {
        let mut all = vec![format!("--target={}", self.holder.id()), "--mount".to_owned()];
        if self.in_user_namespace {
            all.extend(["--user", "--preserve-credentials"].map(str::to_owned));
        }
        all.extend(["--".to_owned(), program.display().to_string()]);
        all.extend(args);
        (PathBuf::from("nsenter"), all)
    }

    /// The place on the disk, as this process sees it.
    fn seen(&self, name: &str) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.holder.id()));
        root.join(self.path.strip_prefix("/").unwrap_or(&self.path))
            .join(name)
    }

    /// Bytes free.
    pub fn free_bytes(&self) -> Result<u64> {
        let stat = rustix::fs::statvfs(self.seen(""))?;
        Ok(stat.f_bavail * stat.f_frsize)
    }

    /// Something else fills the disk until so many bytes are free. A second call adds to it.
    pub fn fill(&self, name: &str, leave_bytes: u64) -> Result<()> {
        let mut file = File::options().create(true).append(true).open(self.seen(name))?;
        let chunk = vec![0xA5; 1 << 16];
        loop {
            let over = self.free_bytes()?.saturating_sub(leave_bytes);
            let part = usize::try_from(over).unwrap_or(chunk.len()).min(chunk.len());
            match file.write_all(&chunk[..part]) {
                Ok(()) if part > 0 => {}
                Ok(()) => return Ok(()),
                // Someone else took the rest.
                Err(e) if e.kind() == ErrorKind::StorageFull => return Ok(()),
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Takes away what [`Self::fill`] put there.
    pub fn free(&self, name: &str) -> Result<()> {
        Ok(std::fs::remove_file(self.seen(name))?)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        // It ends by itself at the end of its input.
        let _ = self.holder.wait();
    }
}
