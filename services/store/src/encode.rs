//! Rows as they travel: batches of series, plain within one process and as compressed chunks beyond it.

use koios_block::SeriesSamples;
use koios_chunk::{Encoder, PlainRun, Run};
use koios_wire::{SeriesRuns, ServiceError, ServiceErrorCode};

use crate::window::Row;

/// A row as it is.
pub(crate) fn in_runs((labels, samples): Row) -> Result<SeriesRuns, ServiceError> {
    let run = |samples: SeriesSamples| PlainRun::new(samples.timestamps, samples.values).map(Run::Plain);
    let runs: Result<_, _> = samples.into_iter().map(run).collect();
    let runs = runs.map_err(|e| {
        let text = format!("stored samples of series {labels}: {e}");
        ServiceError::new(ServiceErrorCode::Corruption, text)
    })?;
    Ok(SeriesRuns { labels, runs })
}

/// Encodes a batch.
pub(crate) fn encode(series: Vec<SeriesRuns>) -> Result<Vec<SeriesRuns>, ServiceError> {
    let mut encoder = Encoder::default();
    series.into_iter().map(|s| s.encode(&mut encoder)).collect()
}
