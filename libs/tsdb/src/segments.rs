//! The files of chunks.

use std::sync::Arc;

use bytes::Bytes;

use crate::files::{Ahead, TsdbFiles};
use crate::parse::Parser;
use crate::{Error, Result};

const MAGIC: u32 = 0x85bd_40dd;
const VERSION: u8 = 1;
const HEADER_BYTES: u64 = 8;
/// Largest chunk: a thousand times what Prometheus aims at, and more than its largest histograms take.
const CHUNK_BYTES_MAX: u64 = 2 << 20;
/// What is read of a chunk before its size is known, where nothing follows it.
const CHUNK_BYTES_USUAL: u64 = 4 << 10;
/// Most bytes of chunks read at once.
const RUN_BYTES_MAX: u64 = 4 << 20;

/// A chunk as it is in its file, its checksum right.
#[derive(Clone, Debug)]
pub(crate) struct RawChunk {
    pub(crate) encoding: u8,
    pub(crate) data: Bytes,
}

/// The name of the file that a reference points into, and the place in it.
pub(crate) fn place_of(reference: u64) -> (String, u64) {
    let (segment, offset) = (reference >> 32, reference & 0xffff_ffff);
    (format!("chunks/{:06}", segment + 1), offset)
}

/// Reads chunks in the order of their references, mostly.
#[derive(Debug)]
pub(crate) struct Segments {
    files: Arc<dyn TsdbFiles>,
    open: Option<Segment>,
}

#[derive(Debug)]
struct Segment {
    number: u64,
    file: Arc<str>,
    size: u64,
    ahead: Ahead,
}

impl Segments {
    pub(crate) fn new(files: Arc<dyn TsdbFiles>) -> Self {
        Self { files, open: None }
    }

    async fn segment(&mut self, number: u64) -> Result<&mut Segment> {
        let open = match self.open.take() {
            Some(open) if open.number == number => open,
            _ => Segment::open(&*self.files, number).await?,
        };
        Ok(self.open.insert(open))
    }

    /// The chunk at `reference`; the series' chunks that are wanted go on to the one at `last`.
    pub(crate) async fn chunk(&mut self, reference: u64, last: u64) -> Result<RawChunk> {
        let files = Arc::clone(&self.files);
        let segment = self.segment(reference >> 32).await?;
        let at = reference & 0xffff_ffff;
        let run = match last >> 32 == reference >> 32 {
            true => (last & 0xffff_ffff).saturating_sub(at),
            false => 0,
        };
        let name = Arc::clone(&segment.file);
        let corrupt = |reason: &str| Error::corrupt(&name, at, reason);
        if at < HEADER_BYTES || at >= segment.size {
            return Err(corrupt("the index names a chunk that is not there"));
        }
        // A length and an encoding.
        let head = match segment.ahead.get(at, 11) {
            Some(bytes) => bytes,
            None => {
                let wanted = run.min(RUN_BYTES_MAX) + CHUNK_BYTES_USUAL;
                let Segment {
                    file, size, ahead, ..
                } = &mut *segment;
                ahead.fill(&*files, file, at, wanted, *size).await?
            }
        };
        let mut parser = Parser::new(&head);
        let len = parser.uvarint().ok_or_else(|| corrupt("a chunk is cut short"))?;
        if len > CHUNK_BYTES_MAX {
            return Err(Error::too_large(&name, at, "a chunk", len, CHUNK_BYTES_MAX));
        }
        let from = parser.position();
        let whole = from as u64 + 1 + len + 4;
        if at + whole > segment.size {
            return Err(corrupt("a chunk ends outside of its file"));
        }
        let bytes = match segment.ahead.get(at, whole) {
            Some(bytes) => bytes,
            None => {
                let Segment {
                    file, size, ahead, ..
                } = &mut *segment;
                ahead.fill(&*files, file, at, whole, *size).await?
            }
        };
        let mut parser = Parser::new(bytes.get(from..).unwrap_or_default());
        let (Some(checked), Some(crc)) = (parser.take(1 + len as usize), parser.be32()) else {
            return Err(corrupt("a chunk is cut short"));
        };
        if crc32c::crc32c(checked) != crc {
            return Err(Error::corrupt(&segment.file, at, "a chunk failed its checksum"));
        }
        Ok(RawChunk {
            encoding: checked.first().copied().unwrap_or_default(),
            data: bytes.slice(from + 1..from + checked.len()),
        })
    }
}

impl Segment {
    async fn open(files: &dyn TsdbFiles, number: u64) -> Result<Self> {
        let (file, _) = place_of(number << 32);
        let Some(size) = files.size(&file).await? else {
            return Err(Error::Missing { file });
        };
        if size < HEADER_BYTES {
            return Err(Error::corrupt(&file, size, "it ends before its first chunk"));
        }
        let header = files.read(&file, 0..HEADER_BYTES).await?;
        let mut parser = Parser::new(&header);
        if parser.be32() != Some(MAGIC) || parser.take(1) != Some(&[VERSION]) {
            return Err(Error::corrupt(
                &file,
                0,
                "it does not begin as chunks of version 1 do",
            ));
        }
        Ok(Self {
            number,
            file: file.into(),
            size,
            ahead: Ahead::default(),
        })
    }
}
