//! OpenTelemetry's SDK for Python exports into Koios, by HTTP and by gRPC, totals and deltas.

mod support;

use std::process::Command;

use anyhow::{Context, Result, bail};
use koios_testkit::{process::free_port, query};
use support::{all_in_one, client, eventually, now_ms};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/with_opentelemetry.py");

fn export(protocol: &str, temporality: &str, address: &str) -> Result<()> {
    let python = support::python();
    let done = Command::new(&python)
        .args([SCRIPT, protocol, temporality, address])
        .output()
        .with_context(|| format!("{python} is missing: run `cargo xtask test`, which installs it"))?;
    let said = String::from_utf8_lossy(&done.stderr);
    // The exporters log what they could not deliver, and what was rejected of it.
    if !done.status.success() || !said.is_empty() {
        bail!("{protocol}, {temporality}: {said}");
    }
    Ok(())
}

#[tokio::test]
async fn an_sdk_exports_by_http_and_by_grpc() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let otlp = format!("127.0.0.1:{}", free_port());
    let koios = all_in_one(dir.path(), &["--otlp.listen", &otlp]).await?;
    let client = client();
    for (protocol, temporality, address) in [
        ("http", "CUMULATIVE", &koios.http),
        ("grpc", "CUMULATIVE", &otlp),
        ("http", "DELTA", &koios.http),
        ("grpc", "DELTA", &koios.http),
    ] {
        export(protocol, temporality, address)?;
        let instance = format!("instance=\"{protocol}-{temporality}\"");
        for (wanted, of, value) in [
            (
                "shop_orders_total",
                "job=\"shop/cart\", payment_kind=\"card\"",
                6.0,
            ),
            ("request_duration_seconds_count", "job=\"shop/cart\"", 3.0),
            ("request_duration_seconds_bucket", "le=\"5\"", 3.0),
            ("request_duration_seconds_bucket", "le=\"0\"", 0.0),
            ("basket_items", "", -3.0),
            ("sizes_bytes", "job=\"shop/cart\"", 3.0),
            ("target_info", "deployment_environment=\"test\"", 1.0),
        ] {
            let last = format!("last_over_time({wanted}{{{instance}, {of}}}[5m])");
            let expr = match wanted {
                "sizes_bytes" => format!("histogram_count({last})"),
                _ => last,
            };
            eventually(&expr, || async {
                let got = query::instant(&client, &koios.http, "team", &expr, now_ms()).await?;
                let values: Vec<f64> = got.values().flatten().map(|s| s.v).collect();
                if values != [value] {
                    bail!("wanted {value}, got {got:?}");
                }
                Ok(())
            })
            .await?;
        }
    }
    Ok(())
}
