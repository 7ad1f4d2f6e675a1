//! Rows as they travel: batches of series, plain within one process and as compressed chunks beyond it.

use koios_chunk::{Encoder, PlainRun, Run};
use koios_wire::{SeriesRuns, ServiceError, ServiceErrorCode};

use crate::window::Row;

/// A row as it is.
pub(crate) fn in_runs((labels, samples): Row) -> Result<SeriesRuns, ServiceError> {
    let mut runs = Vec::new();
    if !samples.timestamps.is_empty() {
        let run = PlainRun::new(samples.timestamps, samples.values).map_err(|e| {
            let text = format!("stored samples of series {labels}: {e}");
            ServiceError::new(ServiceErrorCode::Corruption, text)
        })?;
        runs.push(Run::Plain(run));
    }
    Ok(SeriesRuns { labels, runs })
}

/// Encodes a batch.
pub(crate) fn encode(series: Vec<SeriesRuns>) -> Result<Vec<SeriesRuns>, ServiceError> {
    let mut encoder = Encoder::default();
    series.into_iter().map(|s| s.encode(&mut encoder)).collect()
}
