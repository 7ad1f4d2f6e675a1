//! `meta.json`: what a block says of itself.

use std::collections::BTreeMap;

use koios_model::TimeRange;
use ulid::Ulid;

use crate::{Error, Result};

/// The name of the file.
pub const META_FILE: &str = "meta.json";
/// Larger ones are nonsense: Thanos lists every file of a block, and blocks have some thousands at most.
pub const META_BYTES_MAX: u64 = 4 << 20;
/// Most external labels.
const EXTERNAL_MAX: usize = 64;

/// What a block says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TsdbMeta {
    /// Its name.
    pub ulid: Ulid,
    /// When its samples are, closed.
    pub range: TimeRange,
    /// How many series it has, if it says so.
    pub series: Option<u64>,
    /// How many samples, if it says so.
    pub samples: Option<u64>,
    /// Labels that all series have and the index does not show: of Thanos and Mimir.
    pub external: BTreeMap<String, String>,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Json {
    ulid: String,
    min_time: i64,
    max_time: i64,
    #[serde(default)]
    stats: Stats,
    version: u32,
    #[serde(default)]
    thanos: Option<Thanos>,
}

#[derive(Default, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stats {
    num_samples: Option<u64>,
    num_series: Option<u64>,
}

#[derive(Default, serde::Deserialize)]
struct Thanos {
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
    #[serde(default)]
    downsample: Downsample,
}

#[derive(Default, serde::Deserialize)]
struct Downsample {
    #[serde(default)]
    resolution: i64,
}

impl TsdbMeta {
    /// Reads `meta.json`.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when it is none, [`Error::Unsupported`] when it describes downsampled data or an unknown version.
    pub fn from_json(json: &[u8]) -> Result<Self> {
        if json.len() as u64 > META_BYTES_MAX {
            return Err(Error::too_large(
                META_FILE,
                0,
                "a length",
                json.len() as u64,
                META_BYTES_MAX,
            ));
        }
        let parsed: Json = serde_json::from_slice(json).map_err(|e| Error::corrupt(META_FILE, 0, e))?;
        if parsed.version != 1 {
            let reason = format!("its version is {}, only version 1 is known", parsed.version);
            return Err(Error::unsupported(META_FILE, reason));
        }
        let ulid = Ulid::from_string(&parsed.ulid)
            .map_err(|e| Error::corrupt(META_FILE, 0, format!("ulid {:?}: {e}", parsed.ulid)))?;
        if parsed.min_time > parsed.max_time {
            let reason = format!("minTime {} is after maxTime {}", parsed.min_time, parsed.max_time);
            return Err(Error::corrupt(META_FILE, 0, reason));
        }
        let thanos = parsed.thanos.unwrap_or_default();
        let resolution = thanos.downsample.resolution;
        if resolution != 0 {
            let reason = format!(
                "it is downsampled (one aggregate for each {} s): only blocks of samples as scraped can be imported, \
                 whose thanos.downsample.resolution is 0",
                resolution / 1000
            );
            return Err(Error::unsupported(META_FILE, reason));
        }
        let external = thanos.labels.unwrap_or_default();
        if external.len() > EXTERNAL_MAX {
            return Err(Error::too_large(
                META_FILE,
                0,
                "a number of external labels",
                external.len() as u64,
                EXTERNAL_MAX as u64,
            ));
        }
        Ok(Self {
            ulid,
            // What it writes as maxTime is the first time after the block.
            range: TimeRange::new(
                parsed.min_time,
                parsed.max_time.saturating_sub(1).max(parsed.min_time),
            ),
            series: parsed.stats.num_series,
            samples: parsed.stats.num_samples,
            external,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ULID: &str = "01BKGTZQ1SYQJTR4PB43C8PD98";

    #[test]
    fn blocks_of_all_three_are_understood() {
        let json = format!(
            r#"{{"ulid":"{ULID}","minTime":0,"maxTime":7200000,"stats":{{"numSamples":4,"numSeries":2}},"compaction":{{"level":1}},
               "version":1,"thanos":{{"labels":{{"cluster":"a"}},"downsample":{{"resolution":0}},"source":"sidecar"}}}}"#
        );
        let meta = TsdbMeta::from_json(json.as_bytes()).unwrap();
        assert_eq!(meta.ulid.to_string(), ULID);
        assert_eq!(
            (meta.range, meta.samples),
            (TimeRange::new(0, 7_199_999), Some(4))
        );
        assert_eq!(meta.external.get("cluster").map(String::as_str), Some("a"));
        let json =
            format!(r#"{{"ulid":"{ULID}","minTime":5,"maxTime":5,"version":1,"thanos":{{"labels":null}}}}"#);
        assert_eq!(
            TsdbMeta::from_json(json.as_bytes()).unwrap().range,
            TimeRange::new(5, 5)
        );
    }

    #[test]
    fn what_is_not_samples_as_scraped_is_refused() {
        let with = |rest: &str| {
            let json = format!(r#"{{"ulid":"{ULID}","minTime":0,"maxTime":9,{rest}}}"#);
            TsdbMeta::from_json(json.as_bytes()).unwrap_err().to_string()
        };
        let text = with(r#""version":1,"thanos":{"downsample":{"resolution":300000}}"#);
        assert!(
            text.contains("downsampled (one aggregate for each 300 s)"),
            "{text}"
        );
        assert!(with(r#""version":2"#).contains("only version 1 is known"));
        assert!(
            TsdbMeta::from_json(b"{}")
                .unwrap_err()
                .to_string()
                .contains("meta.json is corrupt")
        );
    }
}
