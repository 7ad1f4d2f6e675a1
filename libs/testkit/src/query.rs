//! Queries over HTTP and their answers in comparable form.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use koios_model::{Labels, Sample};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::http::HttpClient;

/// Series by label set with their samples; an instant vector has one sample each.
pub type SeriesMap = BTreeMap<Labels, Vec<Sample>>;

/// Percent-encodes a query parameter.
pub fn encode(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// Asks an instant query at `t_ms`.
///
/// # Errors
/// When the answer is not a success.
pub async fn instant(
    client: &HttpClient,
    addr: &str,
    tenant: &str,
    expr: &str,
    t_ms: i64,
) -> Result<SeriesMap> {
    let path = format!("/api/v1/query?query={}&time={}", encode(expr), seconds(t_ms));
    ask(client, addr, tenant, &path).await
}

/// Asks a range query.
///
/// # Errors
/// When the answer is not a success.
pub async fn range(
    client: &HttpClient,
    addr: &str,
    tenant: &str,
    expr: &str,
    (start_ms, end_ms, step_ms): (i64, i64, i64),
) -> Result<SeriesMap> {
    let (start, end, step) = (seconds(start_ms), seconds(end_ms), seconds(step_ms));
    let path = format!(
        "/api/v1/query_range?query={}&start={start}&end={end}&step={step}",
        encode(expr)
    );
    ask(client, addr, tenant, &path).await
}

/// Milliseconds as the API takes times and durations.
pub(crate) fn seconds(ms: i64) -> String {
    let sign = if ms < 0 { "-" } else { "" };
    let ms = ms.unsigned_abs();
    format!("{sign}{}.{:03}", ms / 1000, ms % 1000)
}

async fn ask(client: &HttpClient, addr: &str, tenant: &str, path: &str) -> Result<SeriesMap> {
    let answer = client
        .send(
            "GET",
            addr,
            path,
            &[("x-scope-orgid", tenant)],
            bytes::Bytes::new(),
        )
        .await?;
    if answer.status != 200 {
        bail!("status {}: {}", answer.status, answer.text());
    }
    parse(&answer.json()?)
}

/// Reads a query API answer.
///
/// # Errors
/// When it is no success of a known result type.
pub fn parse(json: &serde_json::Value) -> Result<SeriesMap> {
    let data = &json["data"];
    let result = &data["result"];
    let mut out = SeriesMap::new();
    match data["resultType"].as_str() {
        Some("scalar") => {
            out.insert(Labels::empty(), vec![sample(result)?]);
        }
        Some("vector") => {
            for s in result.as_array().context("vector")? {
                if out
                    .insert(labels(&s["metric"])?, vec![sample(&s["value"])?])
                    .is_some()
                {
                    bail!("series {} is there twice", s["metric"]);
                }
            }
        }
        Some("matrix") => {
            for s in result.as_array().context("matrix")? {
                let samples = s["values"]
                    .as_array()
                    .context("values")?
                    .iter()
                    .map(sample)
                    .collect::<Result<_>>()?;
                if out.insert(labels(&s["metric"])?, samples).is_some() {
                    bail!("series {} is there twice", s["metric"]);
                }
            }
        }
        other => bail!("result type {other:?} in {json}"),
    }
    Ok(out)
}

fn labels(json: &serde_json::Value) -> Result<Labels> {
    let map = json.as_object().context("metric")?;
    Ok(Labels::from_pairs(
        map.iter()
            .map(|(n, v)| (n.as_str(), v.as_str().unwrap_or_default())),
    ))
}

fn sample(json: &serde_json::Value) -> Result<Sample> {
    let t = json[0].as_f64().context("timestamp")?;
    let v = match json[1].as_str().context("value")? {
        "+Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        other => other.parse()?,
    };
    Ok(Sample {
        t: (t * 1000.0).round() as i64,
        v,
    })
}

/// The first difference between two answers: labels must be equal, values equal or within `relative`.
pub fn difference(want: &SeriesMap, got: &SeriesMap, relative: f64) -> Option<String> {
    for (labels, want) in want {
        let Some(got) = got.get(labels) else {
            return Some(format!("{labels} is missing"));
        };
        if want.len() != got.len() {
            return Some(format!(
                "{labels}: {} samples, expected {}",
                got.len(),
                want.len()
            ));
        }
        for (w, g) in want.iter().zip(got) {
            let same = w.v == g.v
                || (w.v.is_nan() && g.v.is_nan())
                || (w.v - g.v).abs() <= relative * w.v.abs().max(g.v.abs());
            if w.t != g.t || !same {
                return Some(format!("{labels}: {} @{}, expected {} @{}", g.v, g.t, w.v, w.t));
            }
        }
    }
    got.keys()
        .find(|l| !want.contains_key(*l))
        .map(|l| format!("{l} is too much"))
}
