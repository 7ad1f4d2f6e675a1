//! Processes that hang, as machines that swap or are suspended do: SIGSTOP under load, then SIGCONT.
//!
//! `cargo xtask faults` runs this for long.

mod support;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use koios_runtime::RealNet;
use koios_testkit::http::HttpClient;
use koios_testkit::process::pause;
use rustix::process::Signal;
use support::chance::Chance;
use support::faults::under_load;
use support::{Cluster, INGESTERS, Plan, VOTERS, Writer, all_in_one, client, clock, eventually, now_ms};

/// Longest that a write or a read may take while one of three members hangs.
const HANGING: Duration = Duration::from_secs(30);

/// Each push is acknowledged and each read complete, until it is dropped.
async fn until_stopped(writer: &mut Writer, ask: &str, longest: &std::cell::Cell<Duration>) -> Result<()> {
    let clock = clock();
    loop {
        let begin = clock.elapsed();
        writer.push_acked(1).await?;
        let pushed = clock.elapsed();
        writer.check(ask).await?;
        let took = (pushed - begin).max(clock.elapsed() - pushed);
        longest.set(longest.get().max(took));
    }
}

#[tokio::test]
async fn i7_an_ingester_that_hangs_holds_up_nobody_and_is_repaired() -> Result<()> {
    let mut chance = Chance::new(2)?;
    let cluster = Cluster::start(Plan::default()).await?;
    let (push, ask) = (cluster.push_addr(), cluster.query_addr());
    let mut writers: Vec<Writer> = ["team-a", "team-b"]
        .iter()
        .map(|tenant| Writer::new(&cluster.client, &push, tenant, 10, now_ms() - 3 * 3_600_000))
        .collect();
    for round in 1..=chance.rounds {
        let name = INGESTERS[chance.random.index(INGESTERS.len())];
        let stopped = Duration::from_secs(3) + chance.moment(Duration::from_secs(4));
        hang_under_load(&cluster, &[name], stopped, &mut writers)
            .await
            .with_context(|| format!("round {round}: {name} hung for {stopped:?}"))?;
        for writer in &writers {
            writer.check(&ask).await?;
        }
        eventually("the one that hung to be repaired", || cluster.hold_the_same()).await?;
    }
    Ok(())
}

#[tokio::test]
async fn i8_voters_that_hang_hold_up_nobody() -> Result<()> {
    let mut chance = Chance::new(2)?;
    let mut cluster = Cluster::start(Plan {
        separate_control: true,
        ..Plan::default()
    })
    .await?;
    let (push, ask) = (cluster.push_addr(), cluster.query_addr());
    let mut writers = [Writer::new(
        &cluster.client,
        &push,
        "team-a",
        10,
        now_ms() - 3 * 3_600_000,
    )];
    // What a tenant's first write decides is known from then on.
    writers[0].push_acked(1).await?;
    for round in 1..=chance.rounds {
        let mut names = VOTERS.to_vec();
        for _ in 0..chance.random.index(VOTERS.len()) {
            names.remove(chance.random.index(names.len()));
        }
        let stopped = Duration::from_secs(3) + chance.moment(Duration::from_secs(4));
        hang_under_load(&cluster, &names, stopped, &mut writers)
            .await
            .with_context(|| format!("round {round}: {names:?} hung for {stopped:?}"))?;
        cluster.ready().await?;
        writers[0].check(&ask).await?;
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "how much it held up is worth knowing")]
async fn hang_under_load(
    cluster: &Cluster,
    names: &[&str],
    stopped: Duration,
    writers: &mut [Writer],
) -> Result<()> {
    let signal = |signal| {
        let mut nodes = names.iter().map(|name| &cluster.nodes[*name]);
        nodes.try_for_each(|node| node.process.signal(signal))
    };
    let faults = async {
        pause(Duration::from_millis(500)).await;
        signal(Signal::STOP)?;
        pause(stopped).await;
        signal(Signal::CONT)?;
        pause(Duration::from_millis(500)).await;
        anyhow::Ok(())
    };
    let (ask, longest) = (cluster.query_addr(), std::cell::Cell::default());
    let load = try_join_all(writers.iter_mut().map(|w| until_stopped(w, &ask, &longest)));
    under_load(faults, load).await?;
    println!(
        "{names:?} hung for {stopped:?}; the slowest request took {:?}",
        longest.get()
    );
    ensure!(longest.get() < HANGING, "a request took {:?}", longest.get());
    Ok(())
}

#[tokio::test]
async fn i1_what_a_process_that_hung_acknowledged_is_there() -> Result<()> {
    let mut chance = Chance::new(3)?;
    let dir = tempfile::tempdir()?;
    let mut koios = all_in_one(dir.path(), &["--self-metrics.interval=0s"]).await?;
    let hasty = HttpClient::new(Arc::new(RealNet), clock(), Duration::from_secs(1));
    let mut writers: Vec<Writer> = ["team-a", "team-b", "team-c"]
        .iter()
        .map(|tenant| Writer::new(&hasty, &koios.http, tenant, 10, now_ms() - 3 * 3_600_000))
        .collect();
    for round in 1..=chance.rounds {
        let addr = koios.http.clone();
        let faults = async {
            pause(chance.moment(Duration::from_millis(500))).await;
            koios.process.signal(Signal::STOP)?;
            pause(Duration::from_secs(2) + chance.moment(Duration::from_secs(2))).await;
            koios.process.signal(Signal::CONT)
        };
        let load = try_join_all(writers.iter_mut().map(until_timed_out));
        futures::future::try_join(faults, load).await?;
        for writer in &mut writers {
            // A sender sends again what it got no answer for.
            eventually("it to go on", || check_patiently(writer, &addr)).await?;
            let again = writer.push_again().await?;
            ensure!(again.status < 300, "{}: {}", again.status, again.text());
            check_patiently(writer, &addr).await?;
        }
        if chance.random.percent(50) {
            koios.process.kill();
            koios.process.restart()?;
            koios.ready(&client()).await?;
            for writer in &writers {
                check_patiently(writer, &addr)
                    .await
                    .with_context(|| format!("round {round}"))?;
            }
        }
    }
    koios.log_end()?;
    Ok(())
}

async fn check_patiently(writer: &Writer, addr: &str) -> Result<()> {
    let got = writer.read_by(&client(), addr).await?;
    Ok(writer.oracle.check(&got)?)
}

/// Pushes until there is no answer in time.
async fn until_timed_out(writer: &mut Writer) -> Result<()> {
    loop {
        match writer.push().await {
            Err(_) => return Ok(()),
            Ok(answer) => ensure!(answer.status < 300, "{}: {}", answer.status, answer.text()),
        }
    }
}
