//! Small files with a checksum: one line of JSON that describes the body, then the body.
//!
//! The format is described in `docs/formats/control.md`.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{ClusterState, Error};

/// The newest format written and read.
const FORMAT: u32 = 1;
/// Longest first line, bytes.
const HEADER_BYTES_MAX: usize = 256;
/// The kind of a copy of the state.
pub(crate) const STATE_KIND: &str = "koios-control-state";

#[derive(Serialize, Deserialize)]
struct Header {
    kind: String,
    format: u32,
    bytes: u64,
    crc32c: u32,
}

/// Seals a body.
///
/// # Errors
/// Only when serialisation fails, which is a bug.
pub(crate) fn seal(kind: &str, body: &[u8]) -> Result<Vec<u8>, serde_json::Error> {
    let header = Header {
        kind: kind.to_owned(),
        format: FORMAT,
        bytes: body.len() as u64,
        crc32c: crc32c::crc32c(body),
    };
    let mut sealed = serde_json::to_vec(&header)?;
    sealed.push(b'\n');
    sealed.extend_from_slice(body);
    Ok(sealed)
}

/// Checks a sealed file and gives its body.
///
/// # Errors
/// [`Error::Corrupt`] when it is not exactly what [`seal`] wrote.
pub(crate) fn unseal<'a>(kind: &str, path: &Path, sealed: &'a [u8]) -> Result<&'a [u8], Error> {
    let corrupt = |detail: String| Error::Corrupt {
        path: path.to_owned(),
        detail,
    };
    let line = sealed
        .iter()
        .take(HEADER_BYTES_MAX)
        .position(|b| *b == b'\n')
        .and_then(|end| Some((sealed.get(..end)?, sealed.get(end + 1..)?)));
    let Some((line, body)) = line else {
        return Err(corrupt("its first line is missing".to_owned()));
    };
    let header: Header = serde_json::from_slice(line).map_err(|e| corrupt(format!("first line: {e}")))?;
    if header.kind != kind || header.format != FORMAT {
        return Err(corrupt(format!(
            "it is {} format {}, expected {kind} format {FORMAT}",
            header.kind, header.format
        )));
    }
    if header.bytes != body.len() as u64 {
        let detail = format!(
            "{} bytes follow the first line, it says {}",
            body.len(),
            header.bytes
        );
        return Err(corrupt(detail));
    }
    let crc32c = crc32c::crc32c(body);
    if crc32c != header.crc32c {
        let detail = format!("crc32c is {crc32c}, the first line says {}", header.crc32c);
        return Err(corrupt(detail));
    }
    Ok(body)
}

/// A copy of a state, sealed.
///
/// # Errors
/// Only when serialisation fails, which is a bug.
pub(crate) fn seal_state(state: &ClusterState) -> Result<Vec<u8>, serde_json::Error> {
    seal(STATE_KIND, &serde_json::to_vec(state)?)
}

/// The state in a sealed copy.
///
/// # Errors
/// [`Error::Corrupt`].
pub(crate) fn unseal_state(path: &Path, sealed: &[u8]) -> Result<ClusterState, Error> {
    let body = unseal(STATE_KIND, path, sealed)?;
    serde_json::from_slice(body).map_err(|e| Error::Corrupt {
        path: path.to_owned(),
        detail: e.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn i11_any_changed_byte_and_any_cut_is_detected(body in prop::collection::vec(any::<u8>(), 0..200), at: prop::sample::Index, flip in 1..=255_u8) {
            let sealed = seal("kind", &body).unwrap();
            prop_assert_eq!(unseal("kind", Path::new("f"), &sealed).unwrap(), &body[..]);
            let at = at.index(sealed.len());
            let mut damaged = sealed.clone();
            damaged[at] ^= flip;
            // White space inside the first line may change without changing what it says.
            if let Ok(read) = unseal("kind", Path::new("f"), &damaged) {
                prop_assert_eq!(read, &body[..]);
            }
            prop_assert!(unseal("kind", Path::new("f"), &sealed[..at]).is_err());
        }

        #[test]
        fn i12_arbitrary_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(unseal("kind", Path::new("f"), &bytes).is_err());
        }
    }
}
