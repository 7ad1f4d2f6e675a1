//! What all encodings of batches are made of: varints, sections, compressed frames.

use std::cell::RefCell;

use koios_model::{Exemplar, LabelsRef};

use super::{BatchError, BatchExemplar, DECODED_BYTES_MAX};

const ZSTD_LEVEL: i32 = 1;

thread_local! {
    /// A compressor's tables take longer to set up than a small batch takes to compress.
    static COMPRESSOR: RefCell<Option<zstd::bulk::Compressor<'static>>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
}

pub(super) fn zigzag(v: i64) -> u64 {
    ((v << 1) ^ (v >> 63)) as u64
}

pub(super) fn unzigzag(v: u64) -> i64 {
    ((v >> 1) as i64) ^ -((v & 1) as i64)
}

pub(super) fn write_varint(out: &mut Vec<u8>, mut v: u64) {
    while v >= 0x80 {
        out.push((v as u8) | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
}

/// Writes `tag:u8 len:u32 bytes`.
pub(super) fn section(out: &mut Vec<u8>, tag: u8, write: impl FnOnce(&mut Vec<u8>)) {
    out.push(tag);
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    write(out);
    let len = (out.len() - at - 4) as u32;
    out[at..at + 4].copy_from_slice(&len.to_le_bytes());
}

/// Writes `raw_len:u32 packed_len:u32 zstd`, of nothing two zeros.
pub(super) fn write_frame(out: &mut Vec<u8>, raw: &[u8]) {
    let packed = if raw.is_empty() { Vec::new() } else { compress(raw) };
    out.reserve(8 + packed.len());
    out.extend_from_slice(&(raw.len() as u32).to_le_bytes());
    out.extend_from_slice(&(packed.len() as u32).to_le_bytes());
    out.extend_from_slice(&packed);
}

fn compress(raw: &[u8]) -> Vec<u8> {
    COMPRESSOR.with_borrow_mut(|kept| {
        if kept.is_none() {
            *kept = zstd::bulk::Compressor::new(ZSTD_LEVEL).ok();
        }
        // Compression to memory fails only for lack of memory, and then nothing else goes on either.
        let packed = kept.as_mut().and_then(|c| c.compress(raw).ok());
        packed.unwrap_or_default()
    })
}

fn decompress(packed: &[u8], raw_len: usize) -> Result<Vec<u8>, BatchError> {
    let failed = |e: std::io::Error| BatchError::Column {
        column: "zstd",
        reason: e.to_string(),
    };
    DECOMPRESSOR.with_borrow_mut(|kept| {
        let decompressor = match kept {
            Some(decompressor) => decompressor,
            none => none.insert(zstd::bulk::Decompressor::new().map_err(failed)?),
        };
        decompressor.decompress(packed, raw_len).map_err(failed)
    })
}

/// Reads from the front.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// How far it has read.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// How many bytes it has not read.
    pub(super) fn left(&self) -> usize {
        self.bytes.len().saturating_sub(self.at)
    }

    pub(super) fn take(&mut self, n: usize) -> Result<&'a [u8], BatchError> {
        let end = self
            .at
            .checked_add(n)
            .ok_or(BatchError::Truncated { at: self.at })?;
        let out = self
            .bytes
            .get(self.at..end)
            .ok_or(BatchError::Truncated { at: self.at })?;
        self.at = end;
        Ok(out)
    }

    pub(super) fn rest(&mut self) -> &'a [u8] {
        let out = self.bytes.get(self.at..).unwrap_or(&[]);
        self.at = self.bytes.len();
        out
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], BatchError> {
        let at = self.at;
        self.take(N)?.try_into().map_err(|_| BatchError::Truncated { at })
    }

    pub(super) fn u32(&mut self) -> Result<u32, BatchError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, BatchError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    #[inline]
    pub(super) fn varint(&mut self) -> Result<u64, BatchError> {
        // Nearly all are of one byte: counts, and distances between times of one scrape.
        match self.bytes.get(self.at) {
            Some(&b) if b < 0x80 => {
                self.at += 1;
                Ok(u64::from(b))
            }
            _ => self.long_varint(),
        }
    }

    fn long_varint(&mut self) -> Result<u64, BatchError> {
        let mut v = 0u64;
        for shift in (0..64).step_by(7) {
            let [b] = self.array()?;
            v |= u64::from(b & 0x7f) << shift;
            if b < 0x80 {
                return Ok(v);
            }
        }
        Err(BatchError::Truncated { at: self.at })
    }

    /// A varint of at most 32 bits, such as the place of a series.
    #[inline]
    pub(super) fn varint_u32(&mut self) -> Result<u32, BatchError> {
        let v = self.varint()?;
        u32::try_from(v).map_err(|_| BatchError::Truncated { at: self.at })
    }

    pub(super) fn string(&mut self, column: &'static str) -> Result<String, BatchError> {
        let len = usize::try_from(self.varint()?).map_err(|_| BatchError::Truncated { at: self.at })?;
        let bytes = self.take(len)?;
        String::from_utf8(bytes.to_vec()).map_err(|e| BatchError::Column {
            column,
            reason: e.to_string(),
        })
    }

    pub(super) fn exemplar(&mut self) -> Result<BatchExemplar, BatchError> {
        let series = self.varint_u32()?;
        let (t, v) = (unzigzag(self.varint()?), f64::from_bits(self.u64()?));
        let len = usize::try_from(self.varint()?).map_err(|_| BatchError::Truncated { at: self.at })?;
        let labels = LabelsRef::from_packed(self.take(len)?).map_err(|e| BatchError::Column {
            column: "exemplars",
            reason: e.to_string(),
        })?;
        let labels = labels.to_labels();
        Ok(BatchExemplar {
            series,
            exemplar: Exemplar { t, v, labels },
        })
    }

    /// The next section's tag and content.
    pub(super) fn section(&mut self) -> Result<(u8, Reader<'a>), BatchError> {
        let [tag] = self.array()?;
        let len = self.u32()? as usize;
        Ok((tag, Reader::new(self.take(len)?)))
    }

    /// Skips a frame.
    pub(super) fn frame_bytes(&mut self) -> Result<&'a [u8], BatchError> {
        let from = self.at;
        let (_, packed_len) = (self.u32()?, self.u32()? as usize);
        self.take(packed_len)?;
        Ok(self.bytes.get(from..self.at).unwrap_or(&[]))
    }

    /// Decompresses a frame of at most [`DECODED_BYTES_MAX`].
    pub(super) fn frame(&mut self) -> Result<Vec<u8>, BatchError> {
        let (raw_len, packed_len) = (self.u32()? as usize, self.u32()? as usize);
        if raw_len > DECODED_BYTES_MAX {
            return Err(BatchError::TooLarge { declared: raw_len });
        }
        let packed = self.take(packed_len)?;
        if packed.is_empty() && raw_len == 0 {
            return Ok(Vec::new());
        }
        decompress(packed, raw_len)
    }

    pub(super) fn done(&self) -> bool {
        self.at >= self.bytes.len()
    }
}
