//! A small HTTP client over an injected network, so that the same test code talks to real and simulated servers.

use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use koios_runtime::{ClockHandle, NetHandle};

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The whole body.
    pub body: Bytes,
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// When it is not JSON; the message holds its start.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_slice(&self.body).with_context(|| {
            format!(
                "status {}: {:?}",
                self.status,
                self.text().chars().take(300).collect::<String>()
            )
        })
    }

    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    }
}

/// One connection per request: simple, and right under faults.
#[derive(Clone, Debug)]
pub struct HttpClient {
    net: NetHandle,
    clock: ClockHandle,
    timeout: Duration,
}

impl HttpClient {
    /// A client whose requests take at most `timeout`.
    pub fn new(net: NetHandle, clock: ClockHandle, timeout: Duration) -> Self {
        Self { net, clock, timeout }
    }

    /// GET.
    ///
    /// # Errors
    /// When no answer comes in time.
    pub async fn get(&self, addr: &str, path: &str) -> Result<Answer> {
        self.send("GET", addr, path, &[], Bytes::new()).await
    }

    /// Any request.
    ///
    /// # Errors
    /// When no answer comes in time.
    pub async fn send(
        &self,
        method: &str,
        addr: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Answer> {
        let exchange = self.exchange(method, addr, path, headers, body);
        let answer = self.clock.timeout(self.timeout, exchange).await;
        answer
            .with_context(|| format!("{method} http://{addr}{path}"))?
            .with_context(|| format!("{method} http://{addr}{path}"))
    }

    async fn exchange(
        &self,
        method: &str,
        addr: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Answer> {
        let io = self.net.connect(addr).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await?;
        let mut request = ::http::Request::builder()
            .method(method)
            .uri(path)
            .header("host", addr);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body))?;
        let exchange = async {
            let response = sender.send_request(request).await?;
            let status = response.status().as_u16();
            let headers = response
                .headers()
                .iter()
                .map(|(n, v)| (n.to_string(), String::from_utf8_lossy(v.as_bytes()).into_owned()))
                .collect();
            let body = response.into_body().collect().await?.to_bytes();
            anyhow::Ok(Answer {
                status,
                headers,
                body,
            })
        };
        let mut exchange = std::pin::pin!(exchange);
        let mut connection = std::pin::pin!(connection);
        // The connection future drives the exchange; it may end first, with the answer already buffered.
        tokio::select! {
            answer = &mut exchange => answer,
            _ = &mut connection => exchange.await,
        }
    }
}
