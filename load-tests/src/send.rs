//! Sends a fleet by remote write 1.0, each host's scrapes in order.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};

use crate::fleet::Fleet;

/// Attempts of one request before giving up.
const ATTEMPTS_MAX: u32 = 30;

/// What sending took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sent {
    pub(crate) samples: u64,
    pub(crate) retries: u64,
    pub(crate) seconds: f64,
}

/// Sends everything; every sample is acknowledged when this returns.
pub(crate) async fn send(fleet: &Fleet, url: &str, tenant: &str, concurrency: usize) -> Result<Sent> {
    let client = reqwest::Client::builder()
        .timeout(Duration::from_secs(30))
        .build()?;
    let mut hosts: Vec<_> = (0..fleet.hosts).map(|h| fleet.requests(h)).collect();
    let start = Instant::now();
    let mut sent = Sent::default();
    for scrape in 0..fleet.scrapes {
        let requests = futures::stream::iter(hosts.iter_mut().map(|host| {
            let client = &client;
            async move {
                let body = snap::raw::Encoder::new().compress_vec(host.scrape(fleet, scrape))?;
                Ok::<_, anyhow::Error>((host.samples(), push(client, url, tenant, body.into()).await?))
            }
        }));
        let done: Vec<(u64, u64)> = requests.buffer_unordered(concurrency).try_collect().await?;
        for (samples, retries) in done {
            sent.samples += samples;
            sent.retries += retries;
        }
    }
    sent.seconds = start.elapsed().as_secs_f64();
    Ok(sent)
}

/// Pushes one request until it is acknowledged; returns how many attempts failed.
async fn push(client: &reqwest::Client, url: &str, tenant: &str, body: Bytes) -> Result<u64> {
    for attempt in 0..ATTEMPTS_MAX {
        let answer = client
            .post(url)
            .header("content-type", "application/x-protobuf")
            .header("content-encoding", "snappy")
            .header("x-prometheus-remote-write-version", "0.1.0")
            .header("x-scope-orgid", tenant)
            .body(body.clone())
            .send()
            .await;
        match answer {
            Ok(a) if a.status().is_success() => return Ok(u64::from(attempt)),
            Ok(a) if a.status().is_client_error() && a.status().as_u16() != 429 => {
                bail!(
                    "push refused with {}: {}",
                    a.status(),
                    a.text().await.unwrap_or_default()
                );
            }
            _ => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
    bail!("push to {url} not acknowledged after {ATTEMPTS_MAX} attempts")
}
