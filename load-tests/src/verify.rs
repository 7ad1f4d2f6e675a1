//! Reads a fleet back and compares every sample.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};

use crate::fleet::Fleet;

/// Checks each host's series; returns how many samples were compared.
pub(crate) async fn verify(fleet: &Fleet, url: &str, tenant: &str) -> Result<u64> {
    let client = reqwest::Client::new();
    let mut checked = 0;
    for host in fleet.host_numbers() {
        let series = fleet.host(host);
        let instance = series[0]
            .labels()
            .iter()
            .find(|(n, _)| n == "instance")
            .map(|(_, v)| v.clone());
        let instance = instance.context("a host's series have an instance")?;
        let window_s = (fleet.end_ms() - fleet.start_ms) / 1000 + 2;
        let query = format!("{{instance=\"{instance}\"}}[{window_s}s]");
        let time = format!("{:.3}", (fleet.end_ms() + 1000) as f64 / 1000.0);
        let answer = client
            .get(format!("{url}/api/v1/query"))
            .query(&[("query", query.as_str()), ("time", time.as_str())])
            .header("x-scope-orgid", tenant)
            .send()
            .await?;
        let json: serde_json::Value = answer.json().await?;
        let got = by_labels(&json).with_context(|| format!("host {host}: {}", json["error"]))?;
        for s in &series {
            let labels: BTreeMap<String, String> = s.labels().iter().cloned().collect();
            let samples = got
                .get(&labels)
                .with_context(|| format!("series {labels:?} is missing"))?;
            if samples.len() != fleet.scrapes as usize {
                bail!(
                    "series {labels:?} has {} samples, sent were {}",
                    samples.len(),
                    fleet.scrapes
                );
            }
            for scrape in 0..fleet.scrapes {
                let (t, v) = samples[scrape as usize];
                let (want_t, want_v) = (fleet.time(host, scrape), s.value(scrape));
                if t != want_t || v.to_bits() != want_v.to_bits() {
                    bail!("series {labels:?}: {v} @{t}, sent was {want_v} @{want_t}");
                }
                checked += 1;
            }
        }
        if got.len() != series.len() {
            bail!(
                "host {host}: {} series returned, sent were {}",
                got.len(),
                series.len()
            );
        }
    }
    Ok(checked)
}

type Matrix = BTreeMap<BTreeMap<String, String>, Vec<(i64, f64)>>;

fn by_labels(json: &serde_json::Value) -> Result<Matrix> {
    let mut out = Matrix::new();
    for series in json["data"]["result"].as_array().context("no result")? {
        let labels = series["metric"].as_object().context("metric")?;
        let labels = labels
            .iter()
            .map(|(n, v)| (n.clone(), v.as_str().unwrap_or_default().to_owned()))
            .collect();
        let mut samples = Vec::new();
        for pair in series["values"].as_array().context("values")? {
            let t = (pair[0].as_f64().context("time")? * 1000.0).round() as i64;
            samples.push((t, pair[1].as_str().context("value")?.parse()?));
        }
        if out.insert(labels, samples).is_some() {
            bail!("series {} is there twice", series["metric"]);
        }
    }
    Ok(out)
}
