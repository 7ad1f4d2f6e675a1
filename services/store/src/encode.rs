//! Rows as they travel: batches of series with compressed chunks.

use bytes::Bytes;
use koios_block::SeriesSamples;
use koios_chunk::Encoder;
use koios_wire::{SeriesChunks, ServiceError};

use crate::window::Row;

/// Samples per chunk: long enough to compress, short enough to decode a part of a series.
const CHUNK_SAMPLES: usize = 1024;

/// Encodes a batch.
pub(crate) fn encode(rows: Vec<Row>) -> Result<Vec<SeriesChunks>, ServiceError> {
    let mut encoder = Encoder::default();
    let one = |(labels, samples): Row| {
        let chunks = chunks(&mut encoder, &samples)
            .map_err(|e| ServiceError::internal(format!("series {labels} cannot be encoded: {e}")))?;
        Ok(SeriesChunks { labels, chunks })
    };
    rows.into_iter().map(one).collect()
}

fn chunks(encoder: &mut Encoder, samples: &SeriesSamples) -> Result<Vec<Bytes>, koios_chunk::Error> {
    let runs = samples
        .timestamps
        .chunks(CHUNK_SAMPLES)
        .zip(samples.values.chunks(CHUNK_SAMPLES));
    runs.map(|(times, values)| encoder.encode_fast(times, values).map(Bytes::from))
        .collect()
}
