//! Labels that were left in the message because their series are known, for members that do not know them after all.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use koios_model::{BatchColumns, LabelsRef, SeriesHash, TenantSeed, write_packed_bytes};
use koios_wire::compression::Compression;
use koios_wire::remote_write::decode_labels;

use crate::Error;

/// A compressed message, kept until what was taken of it is acknowledged.
#[derive(Clone, Debug)]
pub(crate) struct SentMessage {
    pub(crate) body: Bytes,
    pub(crate) compression: Compression,
    pub(crate) bytes_max: usize,
    pub(crate) seed: TenantSeed,
}

/// Where one batch's labels are.
#[derive(Clone, Debug, Default)]
pub(crate) struct LeftOut {
    message: Option<Arc<SentMessage>>,
    /// By series, as in [`crate::intake::Part::left_out`].
    places: Vec<Range<u32>>,
}

impl LeftOut {
    /// Labels at `places` of a message; without places nothing is kept.
    pub(crate) fn new(message: &Arc<SentMessage>, places: Vec<Range<u32>>) -> Self {
        Self {
            message: (!places.is_empty()).then(|| Arc::clone(message)),
            places,
        }
    }

    /// Bytes that are kept for it.
    pub(crate) fn bytes(&self) -> usize {
        let body = self.message.as_ref().map_or(0, |m| m.body.len());
        body + self.places.len() * size_of::<Range<u32>>()
    }

    /// The columns with all labels; none when they have them already.
    ///
    /// # Errors
    /// [`Error::Internal`] when what was decoded before does not decode to the same: a bug.
    pub(crate) fn put_back(&self, columns: &BatchColumns) -> Result<Option<BatchColumns>, Error> {
        let Some(sent) = &self.message else {
            return Ok(None);
        };
        let bug = |what: &str| Error::Internal(format!("labels left in a message {what}"));
        let mut message = Vec::new();
        sent.compression
            .decompress(&sent.body, sent.bytes_max, &mut message)
            .map_err(|_| bug("cannot be decompressed again"))?;
        let mut out = BatchColumns {
            label_ends: Vec::with_capacity(columns.series_count()),
            label_bytes: Vec::new(),
            ..columns.clone()
        };
        for (at, hash) in columns.hashes.iter().enumerate() {
            match columns.labels_at(at) {
                Some(labels) => out.label_bytes.extend_from_slice(labels.packed()),
                None => {
                    let range = self.places.get(at).cloned().unwrap_or_default();
                    let encoded = message.get(range.start as usize..range.end as usize);
                    let from = out.label_bytes.len();
                    pack(encoded.unwrap_or_default(), &mut out.label_bytes);
                    let packed = LabelsRef::from_trusted(out.label_bytes.get(from..).unwrap_or_default());
                    if SeriesHash::new(sent.seed, packed) != *hash {
                        return Err(bug("are others now"));
                    }
                }
            }
            out.label_ends.push(out.label_bytes.len() as u32);
        }
        Ok(Some(out))
    }
}

/// Packs labels that were checked before.
pub(crate) fn pack(encoded: &[u8], out: &mut Vec<u8>) {
    let mut labels = decode_labels(encoded).unwrap_or_default();
    labels.retain(|(_, value)| !value.is_empty());
    labels.sort_by_key(|(name, _)| *name);
    for (name, value) in labels {
        write_packed_bytes(out, name, value);
    }
}
