//! A real server of the S3 protocol over HTTP, for tests of what only a real one shows: moto, which may be killed at any
//! moment and returns with what it had.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use koios_runtime::{RealClock, RealNet};

use crate::http::HttpClient;
use crate::process::{Process, free_port};

/// How long starting may take on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(180);

/// Runs moto so that conditions on objects hold, and what it was told outlives it.
const SERVER: &str = include_str!("moto_server.py");

/// A server with one bucket, empty at first; killed when dropped.
#[derive(Debug)]
pub struct Moto {
    process: Process,
    addr: String,
    client: HttpClient,
}

impl Moto {
    /// The bucket that exists from the start.
    pub const BUCKET: &'static str = "koios-test";

    /// Starts a server on a free port, its log and what it stores in `dir`. The program is `$KOIOS_MOTO_SERVER`, else the
    /// one in the test environment under the target folder, else the one on the path.
    ///
    /// # Errors
    /// When there is none (`cargo xtask test` installs it), or it does not answer.
    pub async fn start(dir: &Path) -> Result<Self> {
        let python = interpreter_of(&find_program()?)?;
        let script = dir.join("moto_server.py");
        std::fs::write(&script, SERVER).with_context(|| script.display().to_string())?;
        // It returns where it was.
        let port = free_port().to_string();
        let args = [&script.display().to_string(), "-H", "127.0.0.1", "-p", &port].map(str::to_owned);
        let mut moto = Self {
            process: Process::start("moto", &python, &args, dir)?,
            addr: format!("127.0.0.1:{port}"),
            client: HttpClient::new(
                Arc::new(RealNet),
                Arc::new(RealClock::new()),
                Duration::from_secs(20),
            ),
        };
        moto.ready().await?;
        moto.create_bucket().await?;
        Ok(moto)
    }

    async fn ready(&mut self) -> Result<()> {
        self.process
            .wait_ready(&self.client, &self.addr, "/moto-api/", START_LIMIT)
            .await
    }

    async fn create_bucket(&self) -> Result<()> {
        let path = format!("/{}", Self::BUCKET);
        let created = self
            .client
            .send("PUT", &self.addr, &path, &[], Bytes::new())
            .await?;
        if created.status != 200 {
            bail!(
                "moto did not create a bucket: {} {}",
                created.status,
                created.text()
            );
        }
        Ok(())
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

    /// Has it answer nothing more; connections stay.
    ///
    /// # Errors
    /// When it is gone.
    pub fn hang(&self) -> Result<()> {
        self.process.signal(rustix::process::Signal::STOP)
    }

    /// kill -9: connections break, whatever is on its way on them.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again, with all that it had stored, at the same address, and waits until it answers.
    ///
    /// # Errors
    /// When it does not.
    pub async fn restart(&mut self) -> Result<()> {
        self.process.restart()?;
        self.ready().await
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Answer;
    use crate::process::pause;

    /// Sends a request as one that is signed, which moto takes without a look at the signature.
    async fn send(
        moto: &Moto,
        method: &str,
        path: &str,
        condition: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Answer> {
        let mut headers = vec![(
            "authorization",
            "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0",
        )];
        headers.extend(condition);
        let path = format!("/{}{path}", Moto::BUCKET);
        moto.client.send(method, moto.addr(), &path, &headers, body).await
    }

    /// What is there, of which size, content and time.
    async fn listed(moto: &Moto) -> Result<String> {
        let answer = send(moto, "GET", "?list-type=2", &[], Bytes::new()).await?;
        Ok(answer.text())
    }

    async fn killed_and_restarted(moto: &mut Moto) -> Result<()> {
        let before = listed(moto).await?;
        moto.kill();
        assert!(listed(moto).await.is_err());
        // LastModified tells seconds.
        pause(Duration::from_millis(1100)).await;
        moto.restart().await?;
        assert_eq!(listed(moto).await?, before);
        Ok(())
    }

    async fn put_part(moto: &Moto, upload: &str, number: u32, body: Bytes) -> Result<String> {
        let path = format!("/pieces?partNumber={number}&uploadId={upload}");
        let part = send(moto, "PUT", &path, &[], body).await?;
        Ok(format!(
            "<Part><PartNumber>{number}</PartNumber><ETag>{}</ETag></Part>",
            part.header("etag").context("etag")?
        ))
    }

    #[tokio::test]
    async fn what_it_was_told_outlives_a_kill() -> Result<()> {
        const PIECE: usize = 5 << 20;
        let new = [("if-none-match", "*")];
        let dir = tempfile::tempdir()?;
        let mut moto = Moto::start(dir.path()).await?;
        for (path, status) in [("/a/1", 200), ("/a/2", 200), ("/a/1", 412)] {
            let put = send(&moto, "PUT", path, &new, Bytes::from(format!("{path} {status}"))).await?;
            assert_eq!(put.status, status, "{path}: {}", put.text());
        }
        send(&moto, "DELETE", "/a/2", &[], Bytes::new()).await?;
        let begun = send(&moto, "POST", "/pieces?uploads", &[], Bytes::new())
            .await?
            .text();
        let (_, rest) = begun.split_once("<UploadId>").context("an id")?;
        let (upload, _) = rest.split_once('<').context("an id")?;
        let first = put_part(&moto, upload, 1, Bytes::from(vec![1; PIECE])).await?;
        killed_and_restarted(&mut moto).await?;

        // An upload goes on, and an object is still there: what puts it again is refused.
        let second = put_part(&moto, upload, 2, Bytes::from_static(b"end")).await?;
        let parts = format!("<CompleteMultipartUpload>{first}{second}</CompleteMultipartUpload>");
        let path = format!("/pieces?uploadId={upload}");
        let done = send(&moto, "POST", &path, &new, Bytes::from(parts)).await?;
        assert_eq!(done.status, 200, "{}", done.text());
        for (path, status) in [("/a/1", 412), ("/a/2", 200)] {
            let put = send(&moto, "PUT", path, &new, Bytes::from_static(b"again")).await?;
            assert_eq!(put.status, status, "{path}");
        }
        // What a kill left of an entry is none.
        let mut journal = std::fs::OpenOptions::new()
            .append(true)
            .open(dir.path().join("moto.journal"))?;
        std::io::Write::write_all(&mut journal, &[0, 0, 0, 0, 0, 0, 0, 9, 0])?;
        killed_and_restarted(&mut moto).await?;
        send(&moto, "DELETE", "/a/2", &[], Bytes::new()).await?;
        killed_and_restarted(&mut moto).await?;
        let read = send(&moto, "GET", "/a/1", &[], Bytes::new()).await?;
        assert_eq!(read.text(), "/a/1 200");
        let read = send(&moto, "GET", "/pieces", &[], Bytes::new()).await?;
        assert_eq!(read.body.len(), PIECE + 3);
        Ok(())
    }
}
