//! Sends a fleet by remote write 1.0, each host's scrapes in order.

use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};

use crate::fleet::Fleet;

/// Attempts of one request before giving up.
const ATTEMPTS_MAX: u32 = 30;

/// What sending took.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sent {
    pub(crate) samples: u64,
    pub(crate) retries: u64,
    pub(crate) seconds: f64,
    /// How long each request took until its acknowledgement, milliseconds, shortest first.
    pub(crate) latencies_ms: Vec<f64>,
}

impl Sent {
    /// Samples per second.
    pub(crate) fn rate(&self) -> f64 {
        self.samples as f64 / self.seconds
    }

    /// The latency that a share of the requests did not exceed, milliseconds.
    pub(crate) fn latency_ms(&self, share: f64) -> f64 {
        let last = self.latencies_ms.len().saturating_sub(1);
        let at = (last as f64 * share).round() as usize;
        self.latencies_ms.get(at).copied().unwrap_or(f64::NAN)
    }
}

/// Sends everything as fast as it is taken; every sample is acknowledged when this returns.
pub(crate) async fn send(fleet: &Fleet, url: &str, tenant: &str, concurrency: usize) -> Result<Sent> {
    send_part(fleet, 0..fleet.scrapes, None, url, tenant, concurrency).await
}

/// Sends some scrapes, at most `rate` samples per second, with pauses spread evenly over the requests.
pub(crate) async fn send_part(
    fleet: &Fleet,
    scrapes: Range<u32>,
    rate: Option<f64>,
    url: &str,
    tenant: &str,
    concurrency: usize,
) -> Result<Sent> {
    let client = reqwest::Client::builder()
        .timeout(Duration::from_secs(30))
        .build()?;
    let mut hosts: Vec<_> = fleet.host_numbers().map(|h| fleet.requests(h)).collect();
    let start = Instant::now();
    let mut sent = Sent::default();
    let mut due = start;
    for scrape in scrapes {
        let requests = futures::stream::iter(hosts.chunks_mut(fleet.hosts_per_request).map(|hosts| {
            let client = &client;
            // Messages one after the other are one message with the series of all.
            let mut message = Vec::new();
            for host in hosts.iter_mut() {
                message.extend_from_slice(host.scrape(fleet, scrape));
            }
            let body = snap::raw::Encoder::new().compress_vec(&message);
            let (samples, at) = (hosts.iter().map(|host| host.samples()).sum(), due);
            if let Some(rate) = rate {
                due += Duration::from_secs_f64(samples as f64 / rate);
            }
            async move {
                // Late ones go at once, and count as late: a sender that waits its turn hides what it waits for.
                tokio::time::sleep_until(at.into()).await;
                let begin = if rate.is_some() { at } else { Instant::now() };
                let retries = push(client, url, tenant, body?.into()).await?;
                Ok::<_, anyhow::Error>((samples, retries, begin.elapsed()))
            }
        }));
        let done: Vec<(u64, u64, Duration)> = requests.buffer_unordered(concurrency).try_collect().await?;
        for (samples, retries, took) in done {
            sent.samples += samples;
            sent.retries += retries;
            sent.latencies_ms.push(took.as_secs_f64() * 1e3);
        }
    }
    sent.latencies_ms.sort_unstable_by(f64::total_cmp);
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
