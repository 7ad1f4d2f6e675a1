//! Processes die by kill -9 at any moment, under load and while they start; what was acknowledged is there, once.
//!
//! `cargo xtask faults` runs this for long.

mod support;

use std::time::Duration;

use anyhow::{Context, Result};
use futures::future::{Either, select, try_join_all};
use koios_testkit::http::Answer;
use koios_testkit::process::pause;
use support::chance::Chance;
use support::faults::Outage;
use support::load::Load;
use support::{
    Cluster, INGESTERS, Koios, Plan, Writer, all_in_one, client, clock, eventually, now_ms,
    starting_all_in_one,
};

const FLAGS: [&str; 1] = ["--self-metrics.interval=0s"];
/// Kills until a test begins anew with an empty disk: reading everything back takes the longer the more there is.
const KILLS_PER_DISK: u32 = 8;

/// What a failure of a process is told with.
fn told<T>(koios: &Koios, result: Result<T>) -> Result<T> {
    let end = koios.log_end()?;
    result.with_context(|| format!("the log ends: {end}"))
}

#[tokio::test]
async fn i1_a_process_killed_under_load_again_and_again_loses_nothing() -> Result<()> {
    let mut chance = Chance::new(6)?;
    let mut kills = 0;
    while kills < chance.rounds {
        let dir = tempfile::tempdir()?;
        let mut koios = all_in_one(dir.path(), &FLAGS).await?;
        let mut load = Load::new(&client(), &koios.http, &mut chance.random);
        let last = (kills + KILLS_PER_DISK).min(chance.rounds);
        while kills < last {
            kills += 1;
            let result = kill_and_check(&mut koios, &mut load, &mut chance).await;
            told(&koios, result.with_context(|| format!("kill {kills}")))?;
        }
    }
    Ok(())
}

async fn kill_and_check(koios: &mut Koios, load: &mut Load, chance: &mut Chance) -> Result<()> {
    let delay = Duration::from_millis(100) + chance.moment(Duration::from_secs(3));
    load.kill_under_load(koios, delay, chance.random.percent(50))
        .await?;
    koios.process.restart()?;
    load.ask_until_ready(koios).await?;
    load.check_and_tell(koios).await?;
    if chance.random.percent(30) {
        load.flush(&koios.http).await.context("flush")?;
        load.check_and_tell(koios).await.context("flushed")?;
    }
    Ok(())
}

#[tokio::test]
async fn i1_a_process_killed_while_it_starts_loses_nothing() -> Result<()> {
    let mut chance = Chance::new(6)?;
    let mut kills = 0;
    while kills < chance.rounds {
        let dir = tempfile::tempdir()?;
        let last = (kills + KILLS_PER_DISK).min(chance.rounds);
        let mut koios = killed_at_first(dir.path(), &mut chance).await?;
        let mut load = Load::new(&client(), &koios.http, &mut chance.random);
        load.kill_under_load(&mut koios, Duration::from_secs(3), false)
            .await?;
        let took = start(&mut koios).await?;
        load.check(&koios.http).await?;
        while kills < last {
            kills += 1;
            let result = kill_starting_and_check(&mut koios, &mut load, took, &mut chance).await;
            told(
                &koios,
                result.with_context(|| format!("kill {kills}, a start takes {took:?}")),
            )?;
        }
    }
    Ok(())
}

/// Restarts it and gives how long that takes.
async fn start(koios: &mut Koios) -> Result<Duration> {
    let (clock, client) = (clock(), client());
    koios.process.restart()?;
    let begin = clock.elapsed();
    koios.ready(&client).await?;
    Ok(clock.elapsed() - begin)
}

/// One that was killed some times while it made its data directory.
async fn killed_at_first(dir: &std::path::Path, chance: &mut Chance) -> Result<Koios> {
    let mut koios = starting_all_in_one(dir, &FLAGS, None)?;
    for _ in 0..6 {
        pause(chance.moment(Duration::from_millis(400))).await;
        koios.process.kill();
        koios.process.restart()?;
    }
    let ready = koios.ready(&client()).await;
    told(&koios, ready.context("after kills during its first start"))?;
    Ok(koios)
}

async fn kill_starting_and_check(
    koios: &mut Koios,
    load: &mut Load,
    took: Duration,
    chance: &mut Chance,
) -> Result<()> {
    for _ in 0..=chance.random.below(2) {
        koios.process.restart()?;
        let moment = std::pin::pin!(pause(chance.moment(took)));
        let asked = {
            let asking = std::pin::pin!(load.ask_until_ready(koios));
            match select(moment, asking).await {
                Either::Left(_) => Ok(()),
                Either::Right((asked, _)) => asked,
            }
        };
        asked?;
        koios.process.kill();
    }
    koios.process.restart()?;
    load.ask_until_ready(koios).await?;
    load.check_and_tell(koios).await?;
    // The next start has something new to replay.
    load.kill_under_load(koios, chance.moment(Duration::from_millis(500)), false)
        .await
}

#[tokio::test]
async fn i7_ingesters_killed_in_turn_fail_nothing() -> Result<()> {
    let mut chance = Chance::new(5)?;
    let mut cluster = Cluster::start(Plan::default()).await?;
    let client = cluster.client.clone();
    let (push, ask) = (cluster.push_addr(), cluster.query_addr());
    let mut writers: Vec<Writer> = ["team-a", "team-b"]
        .iter()
        .map(|tenant| Writer::new(&client, &push, tenant, 10, now_ms() - 3 * 3_600_000))
        .collect();
    for kill in 1..=chance.rounds {
        let name = INGESTERS[chance.random.index(INGESTERS.len())];
        let load = try_join_all(writers.iter_mut().map(|w| until_stopped(w, &ask)));
        let result = cluster
            .kill_and_restart(name, Outage::new(&mut chance), load)
            .await;
        told(
            &cluster.nodes[name],
            result.with_context(|| format!("kill {kill}: {name}")),
        )?;
        // No second one before what it missed is repaired.
        for writer in &writers {
            eventually("all to be read", || writer.check(&ask)).await?;
        }
    }
    Ok(())
}

/// Each push is acknowledged and each read complete, until it is dropped.
async fn until_stopped(writer: &mut Writer, ask: &str) -> Result<()> {
    loop {
        writer.push_acked(5).await?;
        writer.check(ask).await?;
    }
}

/// Where a sender's requests meet a process that is gone: the services that hold no samples.
const BETWEEN: [&str; 3] = ["distributor", "querier", "store"];

#[tokio::test]
async fn i4_a_distributor_querier_or_store_that_is_killed_costs_errors_and_no_sample() -> Result<()> {
    let mut chance = Chance::new(6)?;
    let mut cluster = Cluster::start(Plan::default()).await?;
    let client = cluster.client.clone();
    let (push, ask) = (cluster.push_addr(), cluster.query_addr());
    // Older than what heads keep of what blocks hold, so that reads need the store.
    let start_ms = now_ms() - 5 * 3_600_000;
    let mut writers: Vec<Writer> = ["team-a", "team-b"]
        .iter()
        .map(|tenant| Writer::new(&client, &push, tenant, 10, start_ms))
        .collect();
    for kill in 1..=chance.rounds {
        let name = BETWEEN[chance.random.index(BETWEEN.len())];
        let load = try_join_all(writers.iter_mut().map(|w| trying_until_stopped(w, &ask)));
        let result = cluster
            .kill_and_restart(name, Outage::new(&mut chance), load)
            .await;
        let result = result.with_context(|| format!("kill {kill}: {name}"));
        told(&cluster.nodes[name], result)?;
        for writer in &mut writers {
            again_until_acked(writer).await;
            eventually("all to be read", || writer.check(&ask)).await?;
        }
        cluster.flush().await?;
        for writer in &writers {
            writer.check(&ask).await.context("flushed")?;
        }
    }
    Ok(())
}

async fn acked(push: impl Future<Output = Result<Answer>>) -> Result<()> {
    let answer = push.await?;
    anyhow::ensure!(answer.status < 300, "{}: {}", answer.status, answer.text());
    Ok(())
}

/// Sends the last step again until it is acknowledged, as a sender does.
async fn again_until_acked(writer: &mut Writer) {
    while acked(writer.push_again()).await.is_err() {
        pause(Duration::from_millis(50)).await;
    }
}

/// Sends each step until it is acknowledged; a read may fail, but one that is answered is complete.
async fn trying_until_stopped(writer: &mut Writer, ask: &str) -> Result<()> {
    loop {
        if acked(writer.push()).await.is_err() {
            again_until_acked(writer).await;
        }
        if let Ok(got) = writer.read(ask).await {
            writer.oracle.check(&got)?;
        }
    }
}
