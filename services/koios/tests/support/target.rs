//! A small endpoint that is scraped.

use std::sync::Arc;

use anyhow::Result;
use koios_runtime::{CancellationToken, NetHandle, RealNet, TaskGroup};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Serves what it is told by HTTP until it is dropped or stopped.
pub struct Target {
    pub addr: String,
    pub tasks: TaskGroup,
}

impl Target {
    /// Answers every request with what `expose` gives: a content type and a body.
    pub async fn start(
        addr: &str,
        mut expose: impl FnMut() -> (&'static str, Vec<u8>) + Send + 'static,
    ) -> Result<Self> {
        let net: NetHandle = Arc::new(RealNet);
        let mut listener = net.bind(addr).await?;
        let addr = listener.local_addr()?.to_string();
        let tasks = TaskGroup::new(CancellationToken::new());
        tasks.spawn_cancelled("target", async move {
            while let Ok((mut connection, _)) = listener.accept().await {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    match connection.read_u8().await {
                        Ok(byte) => request.push(byte),
                        Err(_) => break,
                    }
                }
                let (content_type, body) = expose();
                let head = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                    body.len()
                );
                // Who asked may have gone.
                let _ = connection.write_all(&[head.as_bytes(), &body].concat()).await;
                let _ = connection.shutdown().await;
            }
        });
        Ok(Self { addr, tasks })
    }
}
