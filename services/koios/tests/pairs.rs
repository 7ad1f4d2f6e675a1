//! HA pairs with real processes: two senders of the same series, of which one is kept. Most of it waits, beside other tests.

mod support;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use koios_control::{RemoteControl, election_task};
use koios_model::{Labels, Sample, TenantId};
use koios_runtime::RealNet;
use koios_testkit::http::HttpClient;
use koios_testkit::process::pause;
use koios_testkit::query::{self, SeriesMap};
use koios_testkit::remote_write;
use support::{Cluster, Plan, VOTERS, all_in_one, clock, now_ms};

const TENANT: &str = "team-a";
/// How often both send.
const TICK: Duration = Duration::from_millis(500);
/// Longer than a busy machine keeps a sender from sending.
const FAILOVER: Duration = Duration::from_secs(10);
/// A new leader of the voters waits a minute before it elects, and on a busy machine another one may follow it.
const ELECTION: Duration = Duration::from_secs(600);
const FLAGS: [&str; 3] = [
    "--limits.ha-dedup=true",
    "--limits.ha-failover-timeout=10s",
    "--self-metrics.interval=0s",
];

/// Two Prometheus servers with the same targets. A's samples are 1, B's are 2, a little later.
struct Pair {
    client: HttpClient,
    push_addr: String,
    query_addr: String,
    started_ms: i64,
    /// When ticks were, by A's time.
    ticks: Vec<i64>,
}

impl Pair {
    fn new(client: &HttpClient, push_addr: &str, query_addr: &str) -> Self {
        Self {
            client: client.clone(),
            push_addr: push_addr.to_owned(),
            query_addr: query_addr.to_owned(),
            started_ms: now_ms(),
            ticks: Vec::new(),
        }
    }

    async fn push(&self, replica: &str, t: i64) -> Result<u16> {
        let (v, t) = if replica == "a" { (1.0, t) } else { (2.0, t + 20) };
        let series = |i: i32| {
            let labels = [
                ("__name__", "up"),
                ("__replica__", replica),
                ("cluster", "eu"),
                ("instance", &i.to_string()),
            ];
            (Labels::from_pairs(labels), vec![Sample { t, v }])
        };
        let series: Vec<_> = (0..3).map(series).collect();
        let answer = remote_write::push(&self.client, &self.push_addr, TENANT, &series).await?;
        ensure!(answer.status < 300, "{}: {}", answer.status, answer.text());
        Ok(answer.status)
    }

    /// Replicas send once. Gives the statuses.
    async fn tick(&mut self, replicas: &[&str]) -> Result<Vec<u16>> {
        pause(TICK).await;
        let t = now_ms() - 50;
        self.ticks.push(t);
        let mut statuses = Vec::new();
        for replica in replicas {
            statuses.push(self.push(replica, t).await?);
        }
        Ok(statuses)
    }

    /// Ticks until the last of the replicas is answered so.
    async fn tick_until(&mut self, replicas: &[&str], status: u16) -> Result<()> {
        let clock = clock();
        let begin = clock.elapsed();
        while clock.elapsed() - begin < support::PATIENCE {
            if self.tick(replicas).await?.last() == Some(&status) {
                return Ok(());
            }
        }
        bail!("{replicas:?} were never answered {status}");
    }

    /// Only `replica` ticks, until the state that the process at `grpc` knows has it elected.
    async fn tick_until_elected(&mut self, replica: &str, grpc: &str) -> Result<()> {
        let control = RemoteControl::new(Arc::new(RealNet), clock(), grpc);
        let task = election_task(&TenantId::new(TENANT)?, "eu");
        let clock = clock();
        let begin = clock.elapsed();
        while clock.elapsed() - begin < ELECTION {
            self.tick(&[replica]).await?;
            // A machine that stalls answers the next tick.
            let state = control.state().await.ok().flatten().unwrap_or_default();
            if state.assignments.get(&task).is_some_and(|a| a.holder == replica) {
                return Ok(());
            }
        }
        bail!("{replica} was never elected");
    }

    /// Everything stored of three series without the replica's label.
    async fn stored(&self) -> Result<SeriesMap> {
        let now = now_ms();
        let seconds = (now - self.started_ms) / 1000 + 60;
        let addr = &self.query_addr;
        let stored =
            query::instant(&self.client, addr, TENANT, &format!("up[{seconds}s]"), now + 1000).await?;
        ensure!(stored.len() == 3, "{stored:?}");
        for labels in stored.keys() {
            ensure!(labels.get("__replica__").is_none(), "{labels}");
            ensure!(labels.get("cluster") == Some("eu"), "{labels}");
        }
        Ok(stored)
    }

    /// Checks that from the tick `from` on each series has one sample for each tick, of the replica with this value.
    async fn check_once(&self, from: usize, value: f64) -> Result<()> {
        let ticks = &self.ticks[from..];
        for (labels, samples) in self.stored().await? {
            let since = ticks[0] - 10;
            let stored: Vec<_> = samples.iter().filter(|s| s.t >= since).collect();
            ensure!(
                stored.len() == ticks.len(),
                "{labels}: {} samples of {}",
                stored.len(),
                ticks.len()
            );
            ensure!(stored.iter().all(|s| s.v == value), "{labels}: {stored:?}");
        }
        Ok(())
    }

    /// Checks that from the tick `from` on no tick is lost: each has a sample of one replica at least.
    async fn check_none_lost(&self, from: usize) -> Result<()> {
        for (labels, samples) in self.stored().await? {
            for t in &self.ticks[from..] {
                let held = samples.iter().any(|s| (s.t - t) == 0 || (s.t - t) == 20);
                ensure!(held, "{labels}: tick {t} is lost");
            }
        }
        Ok(())
    }
}

#[tokio::test]
async fn the_elected_replica_is_kept_until_it_goes_away() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut koios = all_in_one(dir.path(), &FLAGS).await?;
    let client = support::client();
    let mut pair = Pair::new(&client, &koios.http, &koios.http);

    // The first to send is elected, and the other one dropped.
    pair.tick(&["a"]).await?;
    pair.tick_until(&["a", "b"], 202).await?;
    pair.check_none_lost(0).await?;
    let from = pair.ticks.len();
    let clock = clock();
    let mut last_seen = clock.elapsed();
    for _ in 0..10 {
        last_seen = clock.elapsed();
        assert_eq!(pair.tick(&["a", "b"]).await?, [204, 202]);
    }
    pair.check_once(from, 1.0).await?;

    // It goes away: after the timeout the other one is kept.
    let away_since = pair.ticks.len();
    pair.tick_until(&["b"], 204).await?;
    let took = clock.elapsed() - last_seen;
    assert!(took > FAILOVER, "{took:?} since it was seen");
    let kept_since = pair.ticks.len();
    pair.tick(&["b"]).await?;
    pair.check_once(kept_since, 2.0).await?;

    pair.tick_until_elected("b", &koios.grpc).await?;

    // It is back with its queue, which fills the gap, and is not kept any more.
    for t in pair.ticks[away_since..].iter().copied() {
        pair.push("a", t).await?;
    }
    pair.check_none_lost(0).await?;
    pair.tick_until(&["b", "a"], 202).await?;
    let from = pair.ticks.len();
    for _ in 0..5 {
        assert_eq!(pair.tick(&["b", "a"]).await?, [204, 202]);
    }
    pair.check_once(from, 2.0).await?;

    // After a restart the election is known; who sends has to be seen again.
    let from = pair.ticks.len();
    koios.process.kill();
    koios.process.restart()?;
    koios.ready(&client).await?;
    pair.tick_until(&["b", "a"], 202).await?;
    pair.check_none_lost(from).await
}

#[tokio::test]
async fn i8_without_any_voter_nothing_is_lost() -> Result<()> {
    let mut cluster = Cluster::start(Plan {
        separate_control: true,
        env: vec![
            ("KOIOS_LIMITS_HA_DEDUP".to_owned(), "true".to_owned()),
            (
                "KOIOS_LIMITS_HA_FAILOVER_TIMEOUT".to_owned(),
                format!("{}s", FAILOVER.as_secs()),
            ),
        ],
        ..Plan::default()
    })
    .await?;
    let client = cluster.client.clone();
    let mut pair = Pair::new(&client, &cluster.push_addr(), &cluster.query_addr());
    pair.tick(&["a"]).await?;
    pair.tick_until(&["a", "b"], 202).await?;
    for voter in VOTERS {
        cluster.node(voter).process.kill();
    }
    // The election that is known holds while its replica is seen.
    let from = pair.ticks.len();
    for _ in 0..20 {
        assert_eq!(pair.tick(&["a", "b"]).await?, [204, 202]);
    }
    pair.check_once(from, 1.0).await?;
    // When it is not, nobody can elect another one: all that comes is kept.
    pair.tick_until(&["b"], 204).await?;
    let from = pair.ticks.len();
    for _ in 0..10 {
        assert_eq!(pair.tick(&["b"]).await?, [204]);
    }
    pair.check_none_lost(from).await?;
    // A distributor that starts now knows the election, but not who sends.
    let distributor = cluster.node("distributor");
    distributor.process.restart()?;
    distributor.ready(&client).await?;
    assert_eq!(pair.tick(&["b", "a"]).await?, [204, 204]);
    pair.tick_until(&["a", "b"], 202).await?;
    pair.check_none_lost(from).await?;
    // The voters are back: now another one can be elected.
    for voter in VOTERS {
        cluster.node(voter).process.restart()?;
    }
    pair.tick_until_elected("b", &cluster.nodes["distributor"].grpc)
        .await?;
    pair.tick_until(&["b", "a"], 202).await?;
    let from = pair.ticks.len();
    for _ in 0..5 {
        assert_eq!(pair.tick(&["b", "a"]).await?, [204, 202]);
    }
    pair.check_once(from, 2.0).await
}
