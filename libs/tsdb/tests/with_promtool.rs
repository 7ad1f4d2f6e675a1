//! Blocks that a real promtool writes are read as it reads them itself.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::Command;
use std::sync::Arc;

use koios_model::TimeRange;
use koios_runtime::{DiskHandle, RealDisk};
use koios_testkit::peers::find;
use koios_tsdb::{DiskFiles, TsdbBlock};

const SERIES: usize = 120;
const STEP_MS: i64 = 15_000;
const SAMPLES: i64 = 1_300;
const START_MS: i64 = 1_700_000_000_000;

fn value(series: usize, i: i64) -> f64 {
    match series % 5 {
        0 => i as f64,
        1 => (i as f64 * 0.37).sin() * 1e3,
        2 => (i % 7) as f64 / 10.0,
        3 if i % 100 == 50 => f64::INFINITY,
        _ => (i * i) as f64 * 1e-3,
    }
}

#[tokio::test]
async fn blocks_of_promtool_are_read_as_promtool_dumps_them() {
    let promtool = find("promtool").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut text = String::new();
    for m in 0..SERIES / 10 {
        writeln!(text, "# TYPE metric_{m} gauge").unwrap();
        for s in 0..10 {
            let path = if s % 3 == 0 { ",path=\"/a\"" } else { "" };
            for i in 0..SAMPLES {
                let (t, v) = (START_MS + i * STEP_MS + (s as i64 % 3), value(m * 10 + s, i));
                let v = if v.is_infinite() {
                    "+Inf".to_owned()
                } else {
                    v.to_string()
                };
                writeln!(
                    text,
                    "metric_{m}{{instance=\"host-{s}\"{path}}} {v} {}.{:03}",
                    t / 1000,
                    t % 1000
                )
                .unwrap();
            }
        }
    }
    text.push_str("# EOF\n");
    let file = dir.path().join("metrics.txt");
    std::fs::write(&file, text).unwrap();
    let data = dir.path().join("data");
    let run = |args: &[&str]| {
        let done = Command::new(&promtool).args(args).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap()
    };
    let (file, data) = (file.to_str().unwrap(), data.to_str().unwrap());
    run(&["tsdb", "create-blocks-from", "openmetrics", file, data]);

    let disk = DiskHandle::inline(Arc::new(RealDisk));
    let mut got: BTreeMap<(String, i64), u64> = BTreeMap::new();
    let (mut blocks, mut read) = (0, 0);
    for entry in std::fs::read_dir(data).unwrap() {
        let folder = entry.unwrap().path();
        if !folder.join("meta.json").exists() {
            continue;
        }
        blocks += 1;
        let block = TsdbBlock::open(Arc::new(DiskFiles::new(disk.clone(), folder)))
            .await
            .unwrap();
        let range = block.meta().range;
        let series = block.scan_chunks(|chunk| {
            assert!(range.min <= chunk.min && chunk.max <= range.max);
            Ok(())
        });
        assert_eq!(series.await.unwrap(), SERIES as u64);
        let mut reader = block.series(TimeRange::ALL, &BTreeMap::new());
        while let Some(series) = reader.next().await.unwrap() {
            let labels = series.labels.to_string();
            for s in &series.samples {
                assert!(got.insert((labels.clone(), s.t), s.v.to_bits()).is_none());
            }
        }
        assert_eq!(block.meta().samples, Some(reader.stats().samples));
        read += reader.stats().samples;
    }
    assert!(blocks >= 3, "{blocks} blocks");
    assert_eq!(read, SERIES as u64 * SAMPLES as u64);
    // It only reads what looks like the data of a running Prometheus.
    std::fs::create_dir(format!("{data}/wal")).unwrap();
    let dump = run(&["tsdb", "dump", data]);
    let mut dumped = 0;
    for line in dump.lines() {
        let (labels, rest) = line.rsplit_once("} ").unwrap();
        let (v, t) = rest.split_once(' ').unwrap();
        let key = (format!("{labels}}}"), t.parse::<i64>().unwrap());
        let v: f64 = v.parse().unwrap();
        assert_eq!(got.get(&key), Some(&v.to_bits()), "{line}");
        dumped += 1;
    }
    assert_eq!(dumped, got.len());
}
