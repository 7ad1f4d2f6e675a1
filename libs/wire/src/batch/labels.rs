//! The labels of some series: `label lengths` and `label bytes`, a length of 0 for a series without.

use koios_model::LabelsRef;

use super::BatchError;
use super::bytes::{Reader, section, write_varint};

const TAG_LENS: u8 = 1;
const TAG_BYTES: u8 = 2;

/// Writes the labels of `count` series; `labels` gives each one's, which are empty where they don't travel. Nothing is
/// written when none travel.
pub(super) fn encode<'a>(labels: impl Iterator<Item = &'a [u8]> + Clone, out: &mut Vec<u8>) {
    if labels.clone().all(<[u8]>::is_empty) {
        return;
    }
    section(out, TAG_LENS, |o| {
        labels.clone().for_each(|l| write_varint(o, l.len() as u64));
    });
    section(out, TAG_BYTES, |o| labels.for_each(|l| o.extend_from_slice(l)));
}

/// The ends of each series' labels, and the labels; checked to be label sets in canonical form.
pub(super) fn decode(raw: &[u8]) -> Result<(Vec<u32>, Vec<u8>), BatchError> {
    let (mut ends, mut bytes) = (Vec::new(), Vec::new());
    let mut r = Reader::new(raw);
    while !r.done() {
        match r.section()? {
            (TAG_LENS, mut s) => {
                let mut end = 0u64;
                while !s.done() {
                    end = end.saturating_add(s.varint()?);
                    ends.push(u32::try_from(end).map_err(|_| BatchError::Truncated { at: s.at() })?);
                }
            }
            (TAG_BYTES, mut s) => bytes = s.rest().to_vec(),
            (tag, _) => return Err(BatchError::unknown_section(tag)),
        }
    }
    check(&ends, &bytes)?;
    Ok((ends, bytes))
}

fn check(ends: &[u32], bytes: &[u8]) -> Result<(), BatchError> {
    let fail = |reason| BatchError::Column {
        column: "labels",
        reason,
    };
    let mut start = 0usize;
    for &end in ends {
        let packed = bytes.get(start..end as usize);
        let packed = packed.ok_or_else(|| fail("lengths pass the end".to_owned()))?;
        LabelsRef::from_packed(packed).map_err(|e| fail(e.to_string()))?;
        start = end as usize;
    }
    Ok(())
}
