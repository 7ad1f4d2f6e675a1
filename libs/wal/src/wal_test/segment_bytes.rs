//! What the bytes of a segment tell, whatever becomes of them.

use bytes::Bytes;
use proptest::prelude::*;

use super::ID;
use crate::format::{Keys, SegmentHeader};
use crate::scan::scan;
use crate::segment::GroupBuffer;
use crate::{DamageKind, Lsn, RecordKind};

/// One segment of groups of records, as bytes.
fn segment_of(groups: &[Vec<Vec<u8>>]) -> (Vec<u8>, Vec<Lsn>) {
    let header = SegmentHeader {
        identity: ID,
        number: 7,
        previous_end: 0,
    };
    let (mut bytes, mut lsns) = (header.to_bytes().to_vec(), Vec::new());
    for group in groups {
        let at = Lsn::new(7, bytes.len() as u32);
        let records = group
            .iter()
            .map(|p| (RecordKind::Batch, p.split_at(p.len() / 3).into()));
        let group = GroupBuffer::build(&Keys::new(ID), at, records);
        bytes.extend(group.bytes);
        lsns.extend(group.lsns);
    }
    (bytes, lsns)
}

/// Segments on disk must stay readable: a change here needs a new version.
#[test]
fn format_is_stable() {
    let (bytes, lsns) = segment_of(&[vec![b"one".to_vec(), Vec::new()], vec![b"three".to_vec()]]);
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(hex, include_str!("../../tests/fixtures/v1.hex").trim());
    let found = scan(&Keys::new(ID), 7, &Bytes::from(bytes));
    assert_eq!(found.records.iter().map(|r| r.lsn).collect::<Vec<_>>(), lsns);
}

fn groups() -> impl Strategy<Value = Vec<Vec<Vec<u8>>>> {
    let payload = proptest::collection::vec(any::<u8>(), 0..40);
    proptest::collection::vec(proptest::collection::vec(payload, 1..4), 1..6)
}

proptest! {
    #[test]
    fn i11_replay_of_any_prefix_is_a_prefix_and_reported_unless_it_ends_a_group(
        groups in groups(), cut in any::<prop::sample::Index>(), zeros in 0usize..100) {
        let (bytes, lsns) = segment_of(&groups);
        let cut = 64 + cut.index(bytes.len() - 63);
        let mut torn = bytes[..cut].to_vec();
        torn.resize(cut + zeros, 0);
        let found = scan(&Keys::new(ID), 7, &Bytes::from(torn));
        let got: Vec<_> = found.records.iter().map(|r| r.lsn).collect();
        prop_assert_eq!(&got[..], &lsns[..got.len()]);
        let mut ends = Vec::new();
        for i in 1..=groups.len() {
            ends.push(segment_of(&groups[..i]).0.len());
        }
        // Zero bytes at the end of a group are the same cut off and reserved: then nothing is lost.
        let whole = ends.iter().position(|&e| e >= cut && bytes[cut..e].iter().all(|&b| b == 0) && e <= cut + zeros);
        if ends.contains(&cut) || whole.is_some() {
            prop_assert!(found.damage.is_empty());
        } else {
            prop_assert_eq!(found.damage.len(), 1);
            // The first group is synced before the segment gets its name.
            let kind = if cut < ends[0] { DamageKind::Middle } else { DamageKind::Tail };
            prop_assert_eq!(found.damage[0].kind, kind);
        }
    }

    #[test]
    fn i11_any_flipped_bit_is_reported_and_costs_one_record_at_most(
        groups in groups(), at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let (mut bytes, lsns) = segment_of(&groups);
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let found = scan(&Keys::new(ID), 7, &Bytes::from(bytes));
        prop_assert_eq!(found.damage.len(), 1);
        let got: Vec<_> = found.records.iter().map(|r| r.lsn).collect();
        prop_assert!(got.len() + 1 >= lsns.len());
        prop_assert!(got.iter().all(|l| lsns.contains(l)));
    }

    #[test]
    fn i12_arbitrary_bytes_scan_without_records(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(scan(&Keys::new(ID), 7, &Bytes::from(bytes)).records.is_empty());
    }
}
