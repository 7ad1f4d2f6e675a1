//! What is written.

use std::sync::Arc;

use koios_model::merge::winner;
use koios_model::{BatchColumns, Exemplar, Histogram, Labels, Metadata, SeriesHash, StreamId, TenantSeed};
use koios_wire::{Batch, BatchHeader, IngesterService};

use super::samples::{put_start, start_of};
use super::{PARTITION, World, tenant};

impl World {
    /// A batch of samples under the current epoch, each of its own stream. Series that begin with "hist" are of histograms
    /// with such sums, and an exemplar for each.
    pub(crate) fn batch(&mut self, samples: &[(&str, i64, f64)]) -> Arc<Batch> {
        self.next += 1;
        let seed = TenantSeed::new(b"", &tenant());
        let mut columns = BatchColumns::default();
        for &(series, t, v) in samples {
            let labels = Labels::from_pairs([("__name__", series)]);
            columns.push_series(SeriesHash::new(seed, labels.as_ref()), labels.as_ref());
            if series.starts_with("hist") {
                columns.push_started_histogram(
                    t,
                    start_of(series, t),
                    Histogram {
                        sum: v,
                        ..Histogram::default()
                    },
                );
                let labels = Labels::from_pairs([("trace_id", "a")]);
                columns.push_exemplar(Exemplar { t, v, labels });
            } else {
                columns.push_sample(t, v);
                columns.set_last_start(start_of(series, t));
            }
            if start_of(series, t) != 0 {
                let bits = start_of(series, t).cast_unsigned();
                self.sent
                    .entry((format!("{series} start"), t))
                    .or_default()
                    .push(bits);
            }
            self.sent
                .entry((series.to_owned(), t))
                .or_default()
                .push(v.to_bits());
        }
        Arc::new(Batch::new(self.header(), columns))
    }

    /// Of the batch that was begun last.
    fn header(&self) -> BatchHeader {
        BatchHeader {
            tenant: tenant(),
            stream: StreamId(self.stream),
            sequence: self.next - 1,
            settled_below: self.settled_below,
            partition: PARTITION,
            epoch: self.epoch(),
            admission_ms: self.clock.now_ms(),
        }
    }

    /// A batch of some content, under the current epoch.
    pub(crate) fn batch_with(&mut self, columns: BatchColumns) -> Arc<Batch> {
        self.next += 1;
        Arc::new(Batch::new(self.header(), columns))
    }

    /// A batch of metadata alone.
    pub(crate) fn metadata_batch(&mut self, metrics: &[&str]) -> Arc<Batch> {
        let described = |metric: &&str| {
            let kind = "gauge".to_owned();
            let metadata = Metadata {
                kind,
                ..Metadata::default()
            };
            ((*metric).to_owned(), metadata)
        };
        self.batch_with(BatchColumns {
            metadata: metrics.iter().map(described).collect(),
            ..BatchColumns::default()
        })
    }

    /// Pushes an exemplar without any sample to a member.
    pub(crate) async fn push_exemplar(&mut self, i: usize, series: &str, t: i64) {
        let mut columns = BatchColumns::default();
        let labels = Labels::from_pairs([("__name__", series)]);
        let seed = TenantSeed::new(b"", &tenant());
        columns.push_series(SeriesHash::new(seed, labels.as_ref()), labels.as_ref());
        let labels = Labels::from_pairs([("trace_id", "late")]);
        columns.push_exemplar(Exemplar { t, v: 1.0, labels });
        let batch = self.batch_with(columns);
        self.node(i).push(batch).await.unwrap();
    }

    /// Pushes to all members; acknowledged when a majority synced it.
    pub(crate) async fn write(&mut self, samples: &[(&str, i64, f64)]) -> bool {
        let to: Vec<usize> = (0..self.nodes.len()).collect();
        self.write_to(&to, samples).await
    }

    pub(crate) async fn write_to(&mut self, to: &[usize], samples: &[(&str, i64, f64)]) -> bool {
        self.write_while(to, samples, async {}).await
    }

    /// Pushes while something else happens.
    pub(crate) async fn write_while(
        &mut self,
        to: &[usize],
        samples: &[(&str, i64, f64)],
        meanwhile: impl Future<Output = ()>,
    ) -> bool {
        let batch = self.batch(samples);
        let pushes = to
            .iter()
            .filter_map(|&i| self.nodes[i].ingester.clone())
            .map(|m| {
                let batch = Arc::clone(&batch);
                async move { m.push(batch).await }
            });
        let (acks, ()) = futures::join!(futures::future::join_all(pushes), meanwhile);
        let acked = acks.iter().filter(|a| a.is_ok()).count() > self.nodes.len() / 2;
        if acked {
            self.acknowledged(samples);
        }
        acked
    }

    /// Notes what has been acknowledged.
    pub(crate) fn acknowledged(&mut self, samples: &[(&str, i64, f64)]) {
        for &(series, t, v) in samples {
            let kept = self
                .acked
                .entry((series.to_owned(), t))
                .or_insert_with(|| v.to_bits());
            *kept = winner(f64::from_bits(*kept), v).to_bits();
            put_start(&mut self.acked, series, (t, start_of(series, t)));
        }
    }
}
