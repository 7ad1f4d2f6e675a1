//! Sealing beside appending: what a head holds then is what it would hold without.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use koios_head::{Head, HeadOptions};
use koios_model::{BatchColumns, Labels, Matchers, Sample, SeriesHash, TimeRange};
use proptest::prelude::*;

fn head() -> Head {
    Head::new(HeadOptions {
        window_ms: 200,
        samples_per_chunk: 8,
        ..HeadOptions::default()
    })
}

/// A batch of samples, by series and time; values repeat mostly.
fn batch(samples: &[(u8, i64, u8)]) -> BatchColumns {
    let mut columns = BatchColumns::default();
    for &(series, t, v) in samples {
        let labels = Labels::from_pairs([("__name__", format!("m{series}"))]);
        columns.push_series(SeriesHash(u128::from(series) + 1), labels.as_ref());
        columns.push_sample(t, f64::from(v) + (t % 5) as f64);
    }
    columns
}

fn held(head: &Head) -> Vec<(Labels, Vec<(i64, u64)>)> {
    let ids = head.select(&Matchers::default(), TimeRange::ALL);
    let series = ids.into_iter().map(|id| {
        let mut samples: Vec<Sample> = Vec::new();
        head.samples(id, TimeRange::ALL, &mut samples).unwrap();
        let samples = samples.iter().map(|s| (s.t, s.v.to_bits())).collect();
        (head.labels(id).unwrap(), samples)
    });
    series.collect()
}

proptest! {
    #[test]
    fn i2_what_is_sealed_beside_appending_is_held_as_ever(
        parts in prop::collection::vec(
            prop::collection::vec(
                prop::collection::vec((0..3u8, 0..40i64, 0..8u8), 1..12), 1..6), 1..12),
    ) {
        let (mut plain, mut deferring) = (head(), head());
        let mut lsn = 0;
        for (n, part) in parts.iter().enumerate() {
            let mut sealing = deferring.begin_deferring();
            for samples in part {
                // Later than nearly all before, as samples are.
                let late = |v: u8| i64::from(v == 0) * 30;
                let samples: Vec<(u8, i64, u8)> =
                    samples.iter().map(|&(s, t, v)| (s, n as i64 * 40 + t - late(v), v / 7)).collect();
                lsn += 1;
                plain.apply(&batch(&samples), 0, lsn);
                deferring.apply(&batch(&samples), 0, lsn);
            }
            sealing.run();
            deferring.end_deferring(sealing);
        }
        deferring.seal_waiting();
        for head in [&mut plain, &mut deferring] {
            head.check_late(usize::MAX);
        }
        prop_assert_eq!(held(&plain), held(&deferring));
        let accounts = |head: &Head| head.windows().iter().map(|w| (w.start, w.uncut_samples)).collect::<Vec<_>>();
        prop_assert_eq!(accounts(&plain), accounts(&deferring));
        let starts: Vec<i64> = plain.windows().iter().map(|w| w.start).collect();
        for start in starts {
            let sizes = [&mut plain, &mut deferring].map(|head| head.cut(start).series.len());
            prop_assert_eq!(sizes[0], sizes[1]);
        }
    }
}
