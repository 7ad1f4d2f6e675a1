//! The write-ahead log's reader on any bytes, and on logs of which some bytes were changed.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::executor::block_on;
use futures::future::{join, join_all};
use koios_model::TenantId;
use koios_runtime::{CancellationToken, Cpu, Disk, DiskHandle, OpenMode, RealClock, RngHandle};
use koios_wal::{Append, Apply, Identity, Lsn, RecordKind, Replay, ReserveUse, SegmentContent, WalSettings};

use super::choices::Choices;
use crate::sim_disk::SimDisk;

const DIR: &str = "/wal";
const IDENTITY: Identity = Identity {
    cluster: 1,
    incarnation: 2,
};
/// Bytes before a record's payload.
const HEADER_BYTES: usize = 13;

/// What a run of the target saw, for tests that want to know that it saw something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WalRead {
    /// Records that were recovered.
    pub records: usize,
    /// Places that were reported as damaged.
    pub damage: usize,
}

/// Reads bytes as a log. With an even first byte they are segment files as they stand; with an odd one they decide what
/// is logged and then which bytes of it change.
///
/// # Panics
/// When the reader panics, returns what was not logged, misses a record whose bytes are as they were written, or loses
/// one without a word.
pub fn wal_read(input: &[u8]) -> WalRead {
    let mut choices = Choices::new(input);
    match choices.byte() % 2 {
        0 => read_any(&mut choices),
        _ => read_damaged(&mut choices),
    }
}

/// Nothing is done with records.
struct Ignore;

impl Apply for Ignore {
    type Entry = ();
    type Answer = Lsn;
    type Refusal = std::convert::Infallible;

    fn prepare(&self, _: u32, (): &mut ()) -> Result<Vec<u8>, Self::Refusal> {
        Ok(Vec::new())
    }

    fn give_up(&self, (): ()) {}

    fn apply(&self, lsn: Lsn, (): ()) -> Lsn {
        lsn
    }

    fn checkpoint(&self, _: Lsn) -> Vec<u8> {
        b"{}".to_vec()
    }
}

fn settings() -> WalSettings {
    WalSettings {
        segment_bytes: 600,
        reserve_bytes: 0,
        ..WalSettings::new(DIR)
    }
}

fn disk() -> SimDisk {
    let disk = SimDisk::new(RngHandle::from_seed(0));
    disk.create_dir_all(Path::new(DIR))
        .expect("the simulated disk is in the tester's hand");
    disk
}

fn path_of(number: u32) -> PathBuf {
    Path::new(DIR).join(format!("{number:010}.wal"))
}

fn put(disk: &SimDisk, number: u32, bytes: &[u8]) {
    let file = disk.open(&path_of(number), OpenMode::Create);
    let written = file.map(|f| f.set_len(0).and_then(|()| f.write_at(0, bytes)));
    assert!(matches!(written, Ok(Ok(()))), "the simulated disk takes all");
}

async fn open(disk: &SimDisk) -> koios_wal::Result<(Replay, Vec<SegmentContent>)> {
    let handle = DiskHandle::inline(Arc::new(disk.clone()));
    let mut replay = Replay::open(handle, settings(), IDENTITY).await?;
    let mut contents = Vec::new();
    for number in replay.segments().to_vec() {
        contents.push(replay.read(number).await?);
    }
    Ok((replay, contents))
}

fn seen(contents: &[SegmentContent]) -> WalRead {
    WalRead {
        records: contents.iter().map(|c| c.records.len()).sum(),
        damage: contents.iter().map(|c| c.damage.len()).sum(),
    }
}

/// What is held of a segment is no more than the segment.
fn check_budget(content: &SegmentContent, len: usize) {
    let held: usize = content
        .records
        .iter()
        .map(|r| HEADER_BYTES + r.payload.len())
        .sum();
    assert!(held <= len, "{held} bytes of records in a segment of {len} bytes");
    let damaged = content.damage.len();
    assert!(
        damaged <= len + 2,
        "{damaged} damaged places in a segment of {len} bytes"
    );
}

fn read_any(choices: &mut Choices<'_>) -> WalRead {
    let disk = disk();
    let (count, rest) = (1 + choices.below(3), choices.rest());
    let len = rest.len().div_ceil(count).max(1);
    let parts: Vec<&[u8]> = rest.chunks(len).collect();
    for (number, part) in (1..).zip(&parts) {
        put(&disk, number, part);
    }
    // A segment of somebody else is refused as such.
    let Ok((replay, contents)) = block_on(open(&disk)) else {
        return WalRead::default();
    };
    for (content, part) in contents.iter().zip(&parts) {
        check_budget(content, part.len());
    }
    // The log goes on whatever there was.
    let started = block_on(replay.start(Arc::new(Ignore), Cpu::inline(), Arc::new(RealClock::new())));
    assert!(started.is_ok(), "{:?}", started.err());
    seen(&contents)
}

type Logged = BTreeMap<Lsn, (RecordKind, Bytes)>;

/// Logs records in groups, as the choices say.
async fn write(disk: &SimDisk, choices: &mut Choices<'_>) -> koios_wal::Result<()> {
    let (replay, _) = open(disk).await?;
    let clock = Arc::new(RealClock::new());
    let (wal, committer) = replay.start(Arc::new(Ignore), Cpu::inline(), clock).await?;
    let groups: Vec<Vec<usize>> = (0..1 + choices.below(6))
        .map(|_| (0..1 + choices.below(4)).map(|_| choices.below(120)).collect())
        .collect();
    let appends = async {
        for (number, group) in (1u8..).zip(groups) {
            let append = |bytes: usize| Append {
                tenant: Some(TenantId::anonymous()),
                reserve: ReserveUse::None,
                kind: RecordKind::Batch,
                payload: Bytes::from(vec![number; bytes]),
                weight: 0,
                entry: (),
            };
            let answers = join_all(group.into_iter().map(|n| wal.append(append(n)))).await;
            assert!(answers.iter().all(Result::is_ok), "{answers:?}");
        }
        wal.close();
    };
    join(appends, committer.run(CancellationToken::new())).await.1
}

fn read_damaged(choices: &mut Choices<'_>) -> WalRead {
    let disk = disk();
    let written = block_on(write(&disk, choices));
    assert!(written.is_ok(), "{written:?}");
    let Ok((_, whole)) = block_on(open(&disk)) else {
        panic!("an intact log cannot be read");
    };
    assert_eq!(
        seen(&whole).damage,
        0,
        "an intact log counts as damaged: {whole:?}"
    );
    let records = whole.iter().flat_map(|c| &c.records);
    let logged: Logged = records.map(|r| (r.lsn, (r.kind, r.payload.clone()))).collect();
    let mut changed: Vec<Lsn> = Vec::new();
    while !choices.is_empty() && changed.len() < 16 {
        changed.extend(change(&disk, whole.len(), choices));
    }
    let Ok((_, contents)) = block_on(open(&disk)) else {
        // Changed so that it is whole and somebody else's: its checksum is no secret.
        return WalRead::default();
    };
    for content in &contents {
        let len = disk.read(&path_of(content.number)).map_or(0, |b| b.len());
        check_budget(content, len);
    }
    check_recovered(&logged, &contents, &changed);
    seen(&contents)
}

/// Changes a byte of a segment; gives its place unless it stays what it is.
fn change(disk: &SimDisk, segments: usize, choices: &mut Choices<'_>) -> Option<Lsn> {
    let number = 1 + u32::try_from(choices.below(segments)).unwrap_or(0);
    let bytes = disk.read(&path_of(number)).ok()?;
    let at = (choices.below(256) * 256 + choices.below(256)) % bytes.len().max(1);
    let by = choices.byte();
    let old = bytes.get(at)?;
    put_byte(disk, number, at, old ^ by);
    (by != 0).then(|| Lsn::new(number, u32::try_from(at).unwrap_or(u32::MAX)))
}

fn put_byte(disk: &SimDisk, number: u32, at: usize, byte: u8) {
    let file = disk.open(&path_of(number), OpenMode::ReadWrite);
    let written = file.map(|f| f.write_at(at as u64, &[byte]));
    assert!(matches!(written, Ok(Ok(()))), "the simulated disk takes all");
}

fn check_recovered(logged: &Logged, contents: &[SegmentContent], changed: &[Lsn]) {
    let found: Logged = contents
        .iter()
        .flat_map(|c| &c.records)
        .map(|r| (r.lsn, (r.kind, r.payload.clone())))
        .collect();
    for (lsn, record) in &found {
        assert_eq!(logged.get(lsn), Some(record), "{lsn} was not logged so");
    }
    for (lsn, (_, payload)) in logged {
        let bytes = span(*lsn, payload);
        let intact = changed.iter().all(|c| !bytes.contains(&c.0));
        assert!(
            !intact || found.contains_key(lsn),
            "the intact record at {lsn} is not recovered"
        );
    }
    let damage = contents.iter().map(|c| c.damage.len()).sum::<usize>();
    assert!(
        found.len() == logged.len() || damage > 0,
        "{} of {} records are lost without a word",
        logged.len() - found.len(),
        logged.len()
    );
}

/// The places of a record's bytes.
fn span(lsn: Lsn, payload: &Bytes) -> Range<u64> {
    lsn.0..lsn.0 + (HEADER_BYTES + payload.len()) as u64
}
