//! Bounded decompression of what clients send.
//!
//! A length that the input declares is checked before a byte is allocated for it; what declares none is decompressed
//! only up to the limit.

use std::io::Read;

use http::HeaderValue;

/// How a request body is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Snappy's block format, as remote write uses it.
    Snappy,
    /// zstd.
    Zstd,
    /// gzip.
    Gzip,
    /// Not at all.
    Identity,
}

/// Why a body cannot be decompressed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecompressError {
    /// An encoding this version does not know.
    #[error("unsupported content encoding {encoding:?}, use {known}")]
    Unsupported {
        /// As sent.
        encoding: String,
        /// What senders of such messages mostly use instead.
        known: &'static str,
    },
    /// The input is not what its encoding says.
    #[error("{format}: corrupt input ({reason})")]
    Corrupt {
        /// The encoding.
        format: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The input says that it becomes too large.
    #[error(
        "declared decoded length {declared} exceeds limit {limit}: send smaller batches or raise limits.max-request-bytes"
    )]
    DeclaredTooLarge {
        /// What it says.
        declared: u64,
        /// The limit, bytes.
        limit: usize,
    },
    /// The input is to be decompressed with more memory than contents within the limit need.
    #[error(
        "zstd: window exceeds {window} bytes: compress with a smaller window, or raise limits.max-request-bytes (limit: {limit})"
    )]
    WindowTooLarge {
        /// The largest, bytes.
        window: u64,
        /// The limit, bytes.
        limit: usize,
    },
    /// The input becomes too large.
    #[error(
        "decompressed size exceeds limit {limit} (actual: more than {limit}): send smaller batches or raise \
         limits.max-request-bytes"
    )]
    TooLarge {
        /// The limit, bytes.
        limit: usize,
    },
}

impl DecompressError {
    /// Whether size is what is wrong (413), not content (400).
    pub fn is_too_large(&self) -> bool {
        matches!(
            self,
            Self::DeclaredTooLarge { .. } | Self::WindowTooLarge { .. } | Self::TooLarge { .. }
        )
    }
}

/// Snappy makes at most 64 bytes out of 3, and needs some for its header.
const SNAPPY_GROWTH_MAX: u64 = 22;

/// log2 of the largest zstd window that is accepted whatever the limit: 32 MiB.
const ZSTD_WINDOW_LOG: u32 = 25;
/// log2 of the largest zstd window there is.
const ZSTD_WINDOW_LOG_MAX: u32 = 31;

impl Compression {
    /// From a `Content-Encoding` header; `absent` when it says nothing.
    ///
    /// # Errors
    /// [`DecompressError::Unsupported`].
    pub fn from_header(header: Option<&HeaderValue>, absent: Self) -> Result<Self, DecompressError> {
        let Some(value) = header else {
            return Ok(absent);
        };
        let text = String::from_utf8_lossy(value.as_bytes());
        match text.trim().to_ascii_lowercase().as_str() {
            "" => Ok(absent),
            "snappy" => Ok(Self::Snappy),
            "zstd" => Ok(Self::Zstd),
            "gzip" => Ok(Self::Gzip),
            "identity" => Ok(Self::Identity),
            _ => Err(DecompressError::Unsupported {
                encoding: text.chars().take(32).collect(),
                // What says nothing is remote write's snappy, and no other endpoint's.
                known: match absent {
                    Self::Snappy => "snappy or zstd",
                    Self::Zstd | Self::Gzip | Self::Identity => "gzip, zstd or snappy",
                },
            }),
        }
    }

    /// Decompresses `input` into `out`, in place of what it holds; it keeps its capacity for the next use.
    ///
    /// # Errors
    /// [`DecompressError`]; `out` then holds nothing of use.
    pub fn decompress(self, input: &[u8], limit: usize, out: &mut Vec<u8>) -> Result<(), DecompressError> {
        match self {
            Self::Snappy => snappy(input, limit, out),
            Self::Zstd => zstd(input, limit, out),
            Self::Gzip => bounded(flate2::read::MultiGzDecoder::new(input), "gzip", limit, out),
            Self::Identity if input.len() > limit => Err(DecompressError::TooLarge { limit }),
            Self::Identity => {
                out.clear();
                out.extend_from_slice(input);
                Ok(())
            }
        }
    }
}

fn corrupt(format: &'static str, reason: &dyn std::fmt::Display) -> DecompressError {
    DecompressError::Corrupt {
        format,
        reason: reason.to_string(),
    }
}

fn snappy(input: &[u8], limit: usize, out: &mut Vec<u8>) -> Result<(), DecompressError> {
    if input.is_empty() {
        return Err(corrupt("snappy", &"empty body"));
    }
    let declared = match snap::raw::decompress_len(input) {
        Ok(declared) => declared as u64,
        Err(snap::Error::TooBig { given, .. }) => given,
        Err(e) => return Err(corrupt("snappy", &snappy_reason(&e))),
    };
    if declared > limit as u64 {
        return Err(DecompressError::DeclaredTooLarge { declared, limit });
    }
    if declared > (input.len() as u64).saturating_mul(SNAPPY_GROWTH_MAX) {
        let reason = format!("{} bytes cannot hold {declared}", input.len());
        return Err(corrupt("snappy", &reason));
    }
    // What is there from another message is written over, as far as it is kept: zeroing it costs a quarter of decompressing.
    out.resize(declared as usize, 0);
    let written = snap::raw::Decoder::new()
        .decompress(input, out)
        .map_err(|e| corrupt("snappy", &snappy_reason(&e)))?;
    out.truncate(written);
    Ok(())
}

/// The library says first what is said anyway.
fn snappy_reason(error: &snap::Error) -> String {
    let text = error.to_string();
    let reason = text.strip_prefix("snappy: ").unwrap_or(&text);
    let inner = reason.strip_prefix("corrupt input (");
    let inner = inner.and_then(|inner| inner.strip_suffix(')'));
    inner.unwrap_or(reason).to_owned()
}

fn zstd(input: &[u8], limit: usize, out: &mut Vec<u8>) -> Result<(), DecompressError> {
    if input.is_empty() {
        return Err(corrupt("zstd", &"empty body"));
    }
    let mut decoder = ::zstd::stream::read::Decoder::with_buffer(input).map_err(|e| corrupt("zstd", &e))?;
    decoder
        .window_log_max(zstd_window_log(limit))
        .map_err(|e| corrupt("zstd", &e))?;
    bounded(decoder, "zstd", limit, out)
}

/// log2 of the largest window that contents within the limit need.
fn zstd_window_log(limit: usize) -> u32 {
    let needed = limit
        .checked_next_power_of_two()
        .map_or(usize::BITS, usize::ilog2);
    needed.clamp(ZSTD_WINDOW_LOG, ZSTD_WINDOW_LOG_MAX)
}

fn bounded(
    decoder: impl Read,
    format: &'static str,
    limit: usize,
    out: &mut Vec<u8>,
) -> Result<(), DecompressError> {
    out.clear();
    let mut one_more = decoder.take((limit as u64).saturating_add(1));
    match one_more.read_to_end(out) {
        Ok(_) if out.len() > limit => Err(DecompressError::TooLarge { limit }),
        Ok(_) => Ok(()),
        // The frame asks for a window that only contents beyond the limit need.
        Err(e) if e.to_string().contains("requires too much memory") => {
            Err(DecompressError::WindowTooLarge {
                window: 1 << zstd_window_log(limit),
                limit,
            })
        }
        Err(e) => Err(corrupt(format, &e)),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    const LIMIT: usize = 33_554_432;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn refuse(c: Compression, input: &[u8]) -> DecompressError {
        let mut out = Vec::new();
        let error = c.decompress(input, LIMIT, &mut out).unwrap_err();
        assert!(
            out.capacity() <= LIMIT * 2 + (1 << 20),
            "allocated {}",
            out.capacity()
        );
        error
    }

    #[test]
    fn i12_a_declared_length_is_checked_before_it_is_allocated() {
        // 2.5 GiB in 47 bytes.
        let mut bomb = vec![0x80, 0x80, 0x80, 0x80, 0x0a];
        bomb.resize(47, 0);
        assert_eq!(
            refuse(Compression::Snappy, &bomb).to_string(),
            "declared decoded length 2684354560 exceeds limit 33554432: send smaller batches or raise limits.max-request-bytes"
        );
        let mut within_limit = vec![0x80, 0x80, 0x80, 0x10];
        within_limit.resize(47, 0);
        let mut out = Vec::new();
        let error = Compression::Snappy
            .decompress(&within_limit, LIMIT, &mut out)
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "snappy: corrupt input (47 bytes cannot hold 33554432)"
        );
        assert_eq!(out.capacity(), 0);
    }

    #[test]
    fn i12_bombs_stop_at_the_limit() {
        let zeros = vec![0; LIMIT + 1];
        for (c, bomb) in [
            (Compression::Zstd, ::zstd::bulk::compress(&zeros, 19).unwrap()),
            (
                Compression::Zstd,
                ::zstd::stream::encode_all(&zeros[..], 3).unwrap(),
            ),
            (Compression::Gzip, gzip(&zeros)),
        ] {
            let error = refuse(c, &bomb);
            assert_eq!(
                error.to_string(),
                "decompressed size exceeds limit 33554432 (actual: more than 33554432): send smaller batches or raise \
                 limits.max-request-bytes"
            );
            assert!(error.is_too_large());
        }
    }

    #[test]
    fn a_higher_limit_takes_contents_whose_window_is_larger() {
        let zeros = vec![0; LIMIT + (1 << 20)];
        let packed = ::zstd::bulk::compress(&zeros, 3).unwrap();
        let mut out = Vec::new();
        Compression::Zstd
            .decompress(&packed, 2 * LIMIT, &mut out)
            .unwrap();
        assert_eq!(out.len(), zeros.len());
    }

    #[test]
    fn i12_a_window_beyond_the_limit_is_named() {
        let mut encoder = ::zstd::stream::Encoder::new(Vec::new(), 3).unwrap();
        encoder.window_log(27).unwrap();
        encoder.include_contentsize(false).unwrap();
        encoder.write_all(b"up 1").unwrap();
        let error = refuse(Compression::Zstd, &encoder.finish().unwrap());
        assert_eq!(
            error.to_string(),
            "zstd: window exceeds 33554432 bytes: compress with a smaller window, or raise limits.max-request-bytes (limit: \
             33554432)"
        );
        assert!(error.is_too_large());
    }

    #[test]
    fn refuses_nothing_and_nonsense() {
        assert_eq!(
            refuse(Compression::Snappy, &[]).to_string(),
            "snappy: corrupt input (empty body)"
        );
        for (c, name) in [
            (Compression::Snappy, "snappy"),
            (Compression::Zstd, "zstd"),
            (Compression::Gzip, "gzip"),
        ] {
            let said = refuse(c, b"\x05nonsense").to_string();
            assert_eq!(said.matches("corrupt input").count(), 1, "{said}");
            assert_eq!(said.matches(name).count(), 1, "{said}");
        }
    }

    #[test]
    fn headers_name_what_is_supported() {
        let of = |v: &'static str| {
            Compression::from_header(Some(&HeaderValue::from_static(v)), Compression::Snappy)
        };
        assert_eq!(
            Compression::from_header(None, Compression::Snappy),
            Ok(Compression::Snappy)
        );
        assert_eq!(
            Compression::from_header(None, Compression::Identity),
            Ok(Compression::Identity)
        );
        assert_eq!(of("Snappy"), Ok(Compression::Snappy));
        assert_eq!(
            of("br").unwrap_err().to_string(),
            "unsupported content encoding \"br\", use snappy or zstd"
        );
        let other = Compression::from_header(Some(&HeaderValue::from_static("br")), Compression::Identity);
        assert_eq!(
            other.unwrap_err().to_string(),
            "unsupported content encoding \"br\", use gzip, zstd or snappy"
        );
    }

    proptest! {
        #[test]
        fn i12_random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut out = Vec::new();
            for c in [Compression::Snappy, Compression::Zstd, Compression::Gzip] {
                let _ = c.decompress(&bytes, 4096, &mut out);
            }
        }

        #[test]
        fn gives_back_what_was_compressed(data in proptest::collection::vec(any::<u8>(), 1..5000)) {
            let mut out = b"left over".to_vec();
            for (c, packed) in [
                (Compression::Snappy, snap::raw::Encoder::new().compress_vec(&data).unwrap()),
                (Compression::Zstd, ::zstd::bulk::compress(&data, 1).unwrap()),
                (Compression::Gzip, gzip(&data)),
                (Compression::Identity, data.clone()),
            ] {
                c.decompress(&packed, 5000, &mut out).unwrap();
                prop_assert_eq!(&out, &data);
            }
        }
    }

    #[test]
    fn nothing_is_left_of_what_the_buffer_held() {
        let short = snap::raw::Encoder::new().compress_vec(b"up 1").unwrap();
        let zstd = ::zstd::encode_all(&b"up 1"[..], 1).unwrap();
        let bodies = [
            (Compression::Snappy, short),
            (Compression::Zstd, zstd),
            (Compression::Gzip, gzip(b"up 1")),
            (Compression::Identity, b"up 1".to_vec()),
        ];
        for (compression, body) in bodies {
            let mut out = b"another tenant's message".to_vec();
            compression.decompress(&body, LIMIT, &mut out).unwrap();
            assert_eq!(out, b"up 1", "{compression:?}");
        }
    }
}
