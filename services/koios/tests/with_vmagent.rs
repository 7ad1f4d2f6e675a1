//! A real vmagent scrapes a small endpoint and writes into Koios, which is killed meanwhile.

mod support;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use bytes::{BufMut as _, Bytes, BytesMut};
use koios_model::{Labels, Sample};
use koios_testkit::http::HttpClient;
use koios_testkit::peers;
use koios_testkit::process::{Process, free_port, pause};
use koios_testkit::query::{self, SeriesMap};
use koios_testkit::remote_write;
use parking_lot::Mutex;
use rustix::process::Signal;
use support::target::Target;
use support::{Koios, all_in_one, client, eventually, now_ms};

const TENANT: &str = "team-vm";

/// What is exposed, and how often it was asked for.
#[derive(Debug, Default)]
struct Exposed {
    scrapes: u32,
    without_vanishing: bool,
}

impl Exposed {
    fn scrape(&mut self) -> String {
        self.scrapes += 1;
        let n = self.scrapes;
        let mut text = format!(
            "# HELP demo_total Scrapes, three times.\n# TYPE demo_total counter\n\
             demo_total{{path=\"C:\\\\dir \\\"größe\\\"\\nline\"}} {}\n\
             demo_gauge {}\n\
             demo_odd{{is=\"nan\"}} NaN\ndemo_odd{{is=\"inf\"}} +Inf\ndemo_odd{{is=\"tiny\"}} 5e-324\n\
             demo_seconds_bucket{{le=\"0.5\"}} {n}\ndemo_seconds_bucket{{le=\"+Inf\"}} {}\n",
            3 * n,
            f64::from(n) - 10.5,
            2 * n,
        );
        if !self.without_vanishing {
            // Writing to a string does not fail.
            let _ = writeln!(text, "demo_vanishing {n}");
        }
        text
    }
}

/// Serves them.
async fn serve(addr: &str, exposed: &Arc<Mutex<Exposed>>) -> Result<Target> {
    let exposed = Arc::clone(exposed);
    let expose = move || ("text/plain; version=0.0.4", exposed.lock().scrape().into_bytes());
    Target::start(addr, expose).await
}

/// Writes vmagent's file.
fn configure(dir: &Path, targets: &str) -> Result<PathBuf> {
    let file = dir.join("vmagent.yml");
    let config = format!(
        "global:\n  scrape_interval: 1s\n  scrape_timeout: 1s\nscrape_configs:\n- job_name: demo\n  static_configs:\n\
         \x20 - targets: [{targets}]\n"
    );
    std::fs::write(&file, config)?;
    Ok(file)
}

fn vmagent(dir: &Path, target: &str, koios: &Koios) -> Result<Process> {
    let program = peers::find("vmagent")?;
    let config = configure(dir, &format!("'{target}'"))?;
    let args = [
        format!("-promscrape.config={}", config.display()),
        format!("-remoteWrite.url=http://{}/api/v1/push", koios.http),
        format!("-remoteWrite.headers=X-Scope-OrgID:{TENANT}"),
        format!("-remoteWrite.tmpDataPath={}", dir.join("vmagent-data").display()),
        format!("-httpListenAddr=127.0.0.1:{}", free_port()),
        "-loggerLevel=WARN".to_owned(),
    ];
    Process::start("vmagent", &program, &args, dir)
}

/// Asks now.
async fn ask(client: &HttpClient, addr: &str, expr: &str) -> Result<SeriesMap> {
    query::instant(client, addr, TENANT, expr, now_ms()).await
}

/// The values of the only series, in order.
async fn values(client: &HttpClient, addr: &str, expr: &str) -> Result<Vec<f64>> {
    let got = ask(client, addr, expr).await?;
    ensure!(got.len() == 1, "{expr}: {got:?}");
    Ok(got.into_values().flatten().map(|s| s.v).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_vmagent_scrapes_is_stored_whole_and_goes_stale_with_its_source() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut koios = all_in_one(dir.path(), &["--self-metrics.interval=0s"]).await?;
    let client = client();
    let exposed = Arc::<Mutex<Exposed>>::default();
    let target = serve("127.0.0.1:0", &exposed).await?;
    let vmagent = vmagent(dir.path(), &target.addr, &koios)?;
    let addr = koios.http.clone();
    eventually("first scrapes", || async {
        let got = values(&client, &addr, "demo_total[1h]").await?;
        ensure!(got.len() >= 3, "{got:?}");
        Ok(())
    })
    .await?;

    // What it cannot deliver it keeps, and delivers later.
    koios.process.kill();
    pause(Duration::from_secs(3)).await;
    koios.process.restart()?;
    koios.ready(&client).await?;
    let scraped = exposed.lock().scrapes;
    eventually("what was scraped meanwhile", || {
        stored_whole(&client, &addr, scraped)
    })
    .await?;
    odd_values_are_right(&client, &addr).await?;

    // A series that is not exposed any more ends now, not five minutes later; what it had stays.
    ensure!(
        !ask(&client, &addr, "demo_vanishing").await?.is_empty(),
        "not there yet"
    );
    exposed.lock().without_vanishing = true;
    ends(&client, &addr, "demo_vanishing").await?;
    eventually("what is still exposed", || async {
        ensure!(
            !ask(&client, &addr, "demo_gauge").await?.is_empty(),
            "all is stale"
        );
        Ok(())
    })
    .await?;
    let vanished = values(&client, &addr, "demo_vanishing[1h]").await?;
    ensure!(
        vanished.len() >= 3 && vanished.iter().all(|v| v.is_finite()),
        "{vanished:?}"
    );

    // So does all of a target that does not answer.
    target.tasks.stop().await;
    ends(&client, &addr, "demo_gauge").await?;
    up_is(&client, &addr, 0.0).await?;
    let scraped = exposed.lock().scrapes;
    eventually("what was scraped to the end", || {
        stored_whole(&client, &addr, scraped)
    })
    .await?;

    // And all that it is to scrape no more.
    let _again = serve(&target.addr, &Arc::default()).await?;
    up_is(&client, &addr, 1.0).await?;
    configure(dir.path(), "")?;
    vmagent.signal(Signal::HUP)?;
    for name in ["up", "demo_gauge"] {
        ends(&client, &addr, name).await?;
    }
    koios.log_end()?;
    Ok(())
}

async fn up_is(client: &HttpClient, addr: &str, wanted: f64) -> Result<()> {
    eventually(&format!("up to be {wanted}"), || async {
        let up = values(client, addr, "up").await?;
        ensure!(up == [wanted], "up is {up:?}");
        Ok(())
    })
    .await
}

/// Waits until an instant query finds nothing, which takes five minutes without a stale marker.
async fn ends(client: &HttpClient, addr: &str, name: &str) -> Result<()> {
    eventually(&format!("{name} to end"), || async {
        let got = ask(client, addr, name).await?;
        ensure!(got.is_empty(), "{got:?}");
        Ok(())
    })
    .await
}

/// Every scrape is there once, with the values that were exposed, but for those whose answer came too late for vmagent, which says so.
async fn stored_whole(client: &HttpClient, addr: &str, scrapes: u32) -> Result<()> {
    let up = values(client, addr, "up[1h]").await?;
    let failed = up.iter().filter(|up| **up == 0.0).count();
    for (expr, value_of) in [
        ("demo_total[1h]", (|n| 3.0 * n) as fn(f64) -> f64),
        ("demo_gauge[1h]", |n| n - 10.5),
        (r#"demo_seconds_bucket{le="+Inf"}[1h]"#, |n| 2.0 * n),
    ] {
        let got = values(client, addr, expr).await?;
        ensure!(
            got.len() + failed >= scrapes as usize,
            "{expr}: {} of {scrapes}, {failed} failed",
            got.len()
        );
        let exposed: Vec<f64> = (1..=got.len() + failed).map(|n| value_of(n as f64)).collect();
        ensure!(
            got.is_sorted_by(|a, b| a < b) && got.iter().all(|v| exposed.contains(v)),
            "{expr}: {got:?}"
        );
    }
    Ok(())
}

async fn odd_values_are_right(client: &HttpClient, addr: &str) -> Result<()> {
    let labels = ask(client, addr, "demo_total").await?;
    let path = labels.keys().next().and_then(|l| l.get("path"));
    ensure!(path == Some("C:\\dir \"größe\"\nline"), "{labels:?}");
    for (is, wanted) in [("nan", f64::NAN), ("inf", f64::INFINITY), ("tiny", 5e-324)] {
        let expr = format!("last_over_time(demo_odd{{is={is:?}}}[1h])");
        let got = values(client, addr, &expr).await?;
        if got.len() != 1 || got[0].total_cmp(&wanted).is_ne() {
            bail!("{expr}: {got:?}");
        }
    }
    Ok(())
}

/// A frame of zstd that stores its content as it is.
fn zstd_frame(content: &[u8]) -> Bytes {
    let mut frame = BytesMut::new();
    frame.put_u32_le(0xFD2F_B528);
    // One segment, whose length follows in four bytes; then the last block, stored.
    frame.put_u8(0xA0);
    frame.put_u32_le(content.len() as u32);
    frame.put_uint_le((content.len() as u64) << 3 | 1, 3);
    frame.put_slice(content);
    frame.freeze()
}

/// Newer vmagents ask first whether the receiver speaks their own protocol, or send it and change to Prometheus' when refused.
/// That is Prometheus' message by zstd, so both ways must end with the data stored.
#[tokio::test]
async fn what_newer_vmagents_begin_with_is_taken_or_refused_such_that_they_fall_back() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let koios = all_in_one(dir.path(), &["--self-metrics.interval=0s"]).await?;
    let client = client();
    let probe = client
        .get(&koios.http, "/api/v1/push?get_vm_proto_version=1")
        .await?;
    ensure!(
        probe.status == 405 || probe.text() == "1",
        "{}: {}",
        probe.status,
        probe.text()
    );
    let t = now_ms();
    let labels = Labels::from_pairs([("__name__", "demo_zstd")]);
    let message = remote_write::request(&[(labels, vec![Sample { t, v: 4.5 }])]);
    let headers = [
        ("content-type", "application/x-protobuf"),
        ("content-encoding", "zstd"),
        ("x-victoriametrics-remote-write-version", "1"),
        ("x-scope-orgid", TENANT),
    ];
    let message = snap::raw::Decoder::new().decompress_vec(&remote_write::body(&message))?;
    let body = zstd_frame(&message);
    let answer = client
        .send("POST", &koios.http, "/api/v1/push", &headers, body)
        .await?;
    ensure!(answer.status < 300, "{}: {}", answer.status, answer.text());
    ensure!(
        values(&client, &koios.http, "demo_zstd").await? == [4.5],
        "what was sent by zstd"
    );
    Ok(())
}
