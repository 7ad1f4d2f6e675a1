//! Blocks that a real Prometheus writes, native histograms among them, hold what was sent to it.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::sync::Arc;

use koios_model::{Histogram, TimeRange};
use koios_promql::SampleValue;
use koios_runtime::{DiskHandle, RealDisk};
use koios_testkit::differential::Peers;
use koios_testkit::query_gen::data;
use koios_tsdb::{DiskFiles, TsdbBlock};

/// As bits, to be equal to the last one.
fn shown(value: &SampleValue) -> String {
    match value {
        SampleValue::Float(v) => format!("{:016x}", v.to_bits()),
        SampleValue::Histogram(h) if h.is_stale() => "stale".to_owned(),
        SampleValue::Histogram(h) => {
            let mut canonical = Histogram::clone(h);
            canonical.make_canonical();
            format!("{canonical:?}")
        }
    }
}

#[tokio::test]
async fn blocks_of_prometheus_hold_what_was_sent_to_it() {
    let dir = tempfile::tempdir().unwrap();
    let sent = [data::floats(11), data::histograms(11)].concat();
    let peers = Peers::start(dir.path(), None, &sent).await.unwrap();
    let folder = peers.snapshot().await.unwrap();
    let mut expected = BTreeMap::new();
    for series in &sent {
        for (t, value) in &series.samples {
            expected.insert((series.stored_labels().to_string(), *t), shown(value));
        }
    }
    let disk = DiskHandle::inline(Arc::new(RealDisk));
    let (mut got, mut histograms) = (BTreeMap::new(), 0);
    for block in std::fs::read_dir(folder).unwrap() {
        let files = DiskFiles::new(disk.clone(), block.unwrap().path());
        let block = TsdbBlock::open(Arc::new(files)).await.unwrap();
        block.scan_chunks(|_| Ok(())).await.unwrap();
        let mut reader = block.series(TimeRange::ALL, &BTreeMap::new());
        while let Some(series) = reader.next().await.unwrap() {
            let labels = series.labels.to_string();
            histograms += series.histograms.len();
            let floats = series.samples.iter().map(|s| (s.t, SampleValue::Float(s.v)));
            let of_histograms = series
                .histograms
                .iter()
                .map(|(t, h)| (*t, SampleValue::Histogram(Arc::clone(h))));
            for (t, value) in floats.chain(of_histograms) {
                assert!(
                    got.insert((labels.clone(), t), shown(&value)).is_none(),
                    "{labels} @{t} twice"
                );
            }
        }
        assert_eq!(block.meta().samples, Some(reader.stats().samples));
    }
    assert!(histograms > 1000, "{histograms} histograms");
    let wrong = expected.iter().find(|(key, value)| got.get(*key) != Some(*value));
    assert!(
        wrong.is_none(),
        "{wrong:?} was read as {:?}",
        wrong.map(|(key, _)| got.get(key))
    );
    assert_eq!(got.len(), expected.len());
}
