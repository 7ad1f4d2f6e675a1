//! From a request's body to what is taken of it, on a CPU thread.

use std::cell::Cell;

use bytes::Bytes;
use koios_wire::compression::Compression;
use koios_wire::remote_write::{DecodeLimits, Version, decode};

use crate::Error;
use crate::active_series::SeriesGate;
use crate::admission::HeldBytes;
use crate::intake::{Intake, Rules, Taken, label_bytes_max};

/// Largest decompression buffer that a thread keeps for its next request.
const BUFFER_BYTES_MAX: usize = 4 << 20;

thread_local! {
    /// Decompressing into memory that is mapped already saves as much as decompressing costs.
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A message before it is decoded.
pub(crate) struct Message {
    pub(crate) gate: Option<SeriesGate>,
    pub(crate) version: Version,
    pub(crate) compression: Compression,
    pub(crate) body: Bytes,
    pub(crate) held: HeldBytes,
}

impl Message {
    /// Decompresses, decodes, validates and routes.
    pub(crate) fn take_in(mut self, rules: &Rules) -> Result<(Taken, HeldBytes), Error> {
        let mut message = BUFFER.take();
        let taken = self.decode_into(rules, &mut message);
        if message.capacity() <= BUFFER_BYTES_MAX {
            BUFFER.set(message);
        }
        Ok((taken?, self.held))
    }

    fn decode_into(&mut self, rules: &Rules, message: &mut Vec<u8>) -> Result<Taken, Error> {
        let limits = &rules.limits;
        let bytes_max = usize::try_from(limits.max_request_bytes).unwrap_or(usize::MAX);
        self.compression.decompress(&self.body, bytes_max, message)?;
        self.held.grow(message.len() as u64)?;
        let decode_limits = DecodeLimits {
            series: limits.max_series_per_request,
            samples: limits.max_samples_per_request,
            labels_per_series: limits.max_labels_per_series,
        };
        let mut intake = Intake::new(rules, self.gate.take());
        decode(self.version, message, decode_limits, &mut intake)?;
        let taken = intake.finish();
        if taken.label_bytes_exceeded {
            let limit = label_bytes_max(limits);
            return Err(Error::LabelBytes { limit });
        }
        Ok(taken)
    }
}
