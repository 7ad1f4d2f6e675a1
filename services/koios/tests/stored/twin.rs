//! Two storages that must give the same, bit for bit.

use async_trait::async_trait;
use futures::StreamExt;
use koios_model::{Labels, TimeRange};
use koios_promql::{
    Columns, Completeness, QueryError, Queryable, SelectRequest, Series, SeriesStream, StreamItem, stream_of,
};

/// Answers with what `real` gives, if that is what `model` gives.
#[derive(Debug)]
pub(crate) struct Twin<M, R> {
    pub(crate) model: M,
    pub(crate) real: R,
}

/// A sample: its time, the bits of its value, and its histogram and its start in words.
type Sample = (i64, u64, Option<String>);
/// A series' labels and its samples.
type Samples = (Labels, Vec<Sample>);

#[async_trait]
impl<M: Queryable, R: Queryable> Queryable for Twin<M, R> {
    async fn select(&self, request: SelectRequest) -> Result<SeriesStream, QueryError> {
        let want = collect(self.model.select(request.clone()).await?).await?;
        let got = collect(self.real.select(request.clone()).await?).await?;
        let (mut want, samples) = (decode(&want, request.range)?, decode(&got, request.range)?);
        if request.hints.limit > 0 {
            // The model does not know limits.
            want.truncate(samples.len().max(request.hints.limit));
        }
        if want != samples {
            let message = format!(
                "{:?} in {:?}: {}",
                request.matchers,
                request.range,
                difference(&want, &samples)
            );
            return Err(QueryError::Internal {
                message,
                source: None,
            });
        }
        Ok(stream_of(got, Completeness::Complete))
    }
}

async fn collect(mut stream: SeriesStream) -> Result<Vec<Series>, QueryError> {
    let mut all = Vec::new();
    while let Some(item) = stream.next().await {
        match item? {
            StreamItem::Series(series) => all.extend(series),
            StreamItem::End(Completeness::Complete) => return Ok(all),
            other => panic!("unexpected {other:?}"),
        }
    }
    panic!("the stream has no end");
}

/// The samples of a range; series without any are left out.
fn decode(series: &[Series], range: TimeRange) -> Result<Vec<Samples>, QueryError> {
    let mut all = Vec::new();
    for series in series {
        let mut columns = Columns::default();
        series.data.decode(range, &mut columns)?;
        let histogram = |at: usize| {
            let mut histogram = columns.histograms()?.get(at)?.as_deref()?.clone();
            histogram.make_canonical();
            Some(format!("{histogram:?}"))
        };
        let start = |at: usize| {
            let start = columns.start_timestamps()?.get(at).filter(|start| **start != 0)?;
            Some(format!("since {start}"))
        };
        let told = |at: usize| {
            let words = [histogram(at), start(at)];
            let words: Vec<String> = words.into_iter().flatten().collect();
            (!words.is_empty()).then(|| words.join(" "))
        };
        let samples = columns.timestamps().iter().zip(columns.values()).enumerate();
        let samples: Vec<Sample> = samples.map(|(at, (t, v))| (*t, v.to_bits(), told(at))).collect();
        if !samples.is_empty() {
            all.push((series.labels.clone(), samples));
        }
    }
    Ok(all)
}

fn difference(want: &[Samples], got: &[Samples]) -> String {
    for (want, got) in want.iter().zip(got) {
        if want.0 != got.0 {
            return format!("expected series {}, read {}", want.0, got.0);
        }
        let pair = want.1.iter().zip(&got.1).find(|(want, got)| want != got);
        if let Some(((t, v, h), (read_t, read_v, read_h))) = pair {
            return format!(
                "{}: expected {:e} ({v:#x}) {h:?} at {t}, read {:e} ({read_v:#x}) {read_h:?} at {read_t}",
                want.0,
                f64::from_bits(*v),
                f64::from_bits(*read_v)
            );
        }
        if want.1.len() != got.1.len() {
            return format!(
                "{}: expected {} samples, read {}",
                want.0,
                want.1.len(),
                got.1.len()
            );
        }
    }
    format!("expected {} series, read {}", want.len(), got.len())
}
