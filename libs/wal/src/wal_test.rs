//! The log against a disk that forgets what was not synced and fails on demand.

mod memory_disk;
mod reserve;
mod segment_bytes;
mod sync_time;

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use koios_model::TenantId;
use koios_runtime::{CancellationToken, Cpu, Disk, DiskHandle, RealClock};
use parking_lot::Mutex;

use crate::{
    Append, Apply, DamageKind, Error, Identity, Lsn, RecordKind, Replay, ReserveUse, SegmentContent, Wal,
    WalSettings,
};

use memory_disk::MemoryDisk;

pub(crate) const ID: Identity = Identity {
    cluster: 1,
    incarnation: 2,
};

/// Collects what is applied, and what else it hears of; its checkpoint says how much was applied.
#[derive(Debug, Default)]
pub(crate) struct Collect(Mutex<Vec<(Lsn, u32)>>, Mutex<Heard>);

#[derive(Debug, Default)]
struct Heard {
    /// Entries that were prepared and are not in the log.
    given_up: Vec<u32>,
    begun: Vec<u32>,
}

/// An entry that is refused.
const REFUSED: u32 = u32::MAX;
/// Entries whose records begin with the number of their segment.
const TAGGED: std::ops::Range<u32> = 1_000_000..2_000_000;

impl Apply for Collect {
    type Entry = u32;
    type Answer = Lsn;
    type Refusal = String;

    fn prepare(&self, segment: u32, entry: &mut u32) -> Result<Vec<u8>, String> {
        match *entry {
            REFUSED => Err(format!("refused in segment {segment}")),
            tagged if TAGGED.contains(&tagged) => Ok(segment.to_le_bytes().to_vec()),
            _ => Ok(Vec::new()),
        }
    }

    fn give_up(&self, entry: u32) {
        self.1.lock().given_up.push(entry);
    }

    fn apply(&self, lsn: Lsn, entry: u32) -> Lsn {
        self.0.lock().push((lsn, entry));
        lsn
    }
    fn checkpoint(&self, _: Lsn) -> Vec<u8> {
        self.0.lock().len().to_string().into_bytes()
    }
    fn begun(&self, segment: u32) {
        self.1.lock().begun.push(segment);
    }
}

pub(crate) fn settings() -> WalSettings {
    WalSettings {
        segment_bytes: 4096,
        reserve_bytes: 0,
        ..WalSettings::new("/wal")
    }
}

pub(crate) struct Running {
    pub(crate) wal: Wal<Collect>,
    apply: Arc<Collect>,
    pub(crate) ended: tokio::task::JoinHandle<crate::Result<()>>,
}

#[expect(clippy::disallowed_methods, reason = "the test owns its one task")]
pub(crate) async fn run(replay: Replay) -> Running {
    let apply = Arc::new(Collect::default());
    let clock = Arc::new(RealClock::new());
    let (wal, committer) = replay
        .start(Arc::clone(&apply), Cpu::inline(), clock)
        .await
        .unwrap();
    let ended = tokio::spawn(committer.run(CancellationToken::new()));
    Running { wal, apply, ended }
}

async fn open(disk: &MemoryDisk) -> (Replay, Vec<SegmentContent>) {
    open_on(DiskHandle::inline(Arc::new(disk.clone()))).await
}

pub(crate) async fn open_on(disk: DiskHandle) -> (Replay, Vec<SegmentContent>) {
    let mut replay = Replay::open(disk, settings(), ID).await.unwrap();
    let mut contents = Vec::new();
    for n in replay.segments().to_vec() {
        contents.push(replay.read(n).await.unwrap());
    }
    (replay, contents)
}

pub(crate) fn batches(contents: &[SegmentContent]) -> Vec<u32> {
    contents
        .iter()
        .flat_map(|c| &c.records)
        .filter(|r| r.kind == RecordKind::Batch)
        .map(|r| u32::from_le_bytes(r.payload[..4].try_into().unwrap()))
        .collect()
}

pub(crate) fn record(n: u32, size: usize) -> Append<u32> {
    let mut payload = n.to_le_bytes().to_vec();
    payload.resize(size.max(4), 0xab);
    Append {
        reserve: ReserveUse::None,
        tenant: Some(TenantId::anonymous()),
        kind: RecordKind::Batch,
        payload: Bytes::from(payload),
        weight: 0,
        entry: n,
    }
}

pub(crate) async fn append_all(wal: &Wal<Collect>, range: std::ops::Range<u32>, size: usize) {
    for n in range {
        wal.append(record(n, size)).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn i1_what_was_answered_survives_a_power_loss() {
    let disk = MemoryDisk::default();
    let running = run(open(&disk).await.0).await;
    append_all(&running.wal, 0..100, 300).await;
    assert!(running.wal.segments().len() > 5);

    let (_, contents) = open(&disk.crash(0)).await;

    assert_eq!(batches(&contents), (0..100).collect::<Vec<_>>());
    assert!(contents.iter().all(|c| c.damage.is_empty()), "{contents:?}");
    assert!(
        contents
            .iter()
            .all(|c| c.records[0].kind == RecordKind::Checkpoint)
    );
}

#[tokio::test]
async fn a_checkpoint_states_exactly_what_was_applied_before_its_segment() {
    let disk = MemoryDisk::default();
    let running = run(open(&disk).await.0).await;
    let appends = (0..200).map(|n| running.wal.append(record(n, 100)));
    futures::future::try_join_all(appends).await.unwrap();
    let (_, contents) = open(&disk.crash(0)).await;
    let mut before = 0;
    for c in contents {
        assert_eq!(c.records[0].payload, before.to_string());
        before += c.records.len() - 1;
    }
    let applied = running.apply.0.lock().clone();
    assert!(applied.is_sorted(), "log order");
}

#[tokio::test]
async fn i1_a_failed_sync_poisons_the_log_and_answers_everybody() {
    let disk = MemoryDisk::default();
    let running = run(open(&disk).await.0).await;
    append_all(&running.wal, 0..3, 10).await;
    disk.0.lock().fail_sync = true;
    let failed = futures::future::join_all((3..6).map(|n| running.wal.append(record(n, 10)))).await;
    assert!(failed.iter().all(Result::is_err));
    assert!(running.ended.await.unwrap().is_err());
    assert!(matches!(
        running.wal.append(record(7, 10)).await,
        Err(Error::Poisoned { .. })
    ));
    assert_eq!(running.apply.0.lock().len(), 3);
}

#[tokio::test]
async fn a_record_is_prepared_for_the_segment_it_stands_in() {
    let disk = MemoryDisk::default();
    let running = run(open(&disk).await.0).await;
    for group in 0..12 {
        let entries = TAGGED.skip(group * 5).take(5);
        let appends = entries.map(|n| running.wal.append(record(n, 300)));
        for answer in futures::future::join_all(appends).await {
            answer.unwrap().unwrap();
        }
    }
    let segments = running.wal.segments();
    assert!(segments.len() > 3);
    let mut seen = 0;
    for number in segments {
        let content = running.wal.read_segment(number).await.unwrap().unwrap();
        for record in content.records.iter().filter(|r| r.kind == RecordKind::Batch) {
            assert_eq!(record.payload[..4], number.to_le_bytes());
            assert_eq!(record.payload.len(), 304);
            seen += 1;
        }
    }
    assert_eq!(seen, 60);
}

/// What was prepared for a segment that could not be had is given up, the segment is announced to nobody, and the log goes
/// on in the old one, with records that were prepared for that.
#[tokio::test]
async fn a_segment_that_cannot_be_had_leaves_the_one_before_in_use() {
    let disk = MemoryDisk::default();
    let running = run(open(&disk).await.0).await;
    let mut entries = TAGGED;
    let mut append = |size| running.wal.append(record(entries.next().unwrap(), size));
    disk.0.lock().full = true;
    let mut written = 0;
    let refused = loop {
        match append(700).await {
            Ok(answer) => drop(answer.unwrap()),
            Err(error) => break error,
        }
        written += 1;
    };
    assert!(matches!(refused, Error::Full { .. }), "{refused}");
    let heard = || {
        let heard = running.apply.1.lock();
        (heard.given_up.clone(), heard.begun.clone())
    };
    let given_up = vec![TAGGED.start + written];
    assert_eq!(heard(), (given_up.clone(), vec![1]));
    append(20).await.unwrap().unwrap();
    disk.0.lock().full = false;
    append(700).await.unwrap().unwrap();
    assert_eq!(heard(), (given_up, vec![1, 2]));
    for (segment, records) in [(1_u32, written + 1), (2, 1)] {
        let content = running.wal.read_segment(segment).await.unwrap().unwrap();
        let batches = content.records.iter().filter(|r| r.kind == RecordKind::Batch);
        let tags: Vec<_> = batches.map(|r| r.payload[..4].to_vec()).collect();
        assert_eq!(tags, vec![segment.to_le_bytes().to_vec(); records as usize]);
    }
}

#[tokio::test]
async fn a_refused_record_is_not_written_and_holds_nothing_up() {
    let disk = MemoryDisk::default();
    let running = run(open(&disk).await.0).await;
    let appends = [1, REFUSED, 2].map(|n| running.wal.append(record(n, 10)));
    let answers = futures::future::join_all(appends).await;
    assert!(answers[0].as_ref().unwrap().is_ok() && answers[2].as_ref().unwrap().is_ok());
    assert_eq!(
        answers[1].as_ref().unwrap(),
        &Err("refused in segment 1".to_owned())
    );
    let alone = running.wal.append(record(REFUSED, 10)).await.unwrap();
    assert!(alone.is_err());
    let content = running.wal.read_segment(1).await.unwrap().unwrap();
    assert_eq!(batches(&[content]), [1, 2]);
}

#[tokio::test]
async fn a_full_disk_refuses_before_writing_and_recovers() {
    let disk = MemoryDisk::default();
    let running = run(open(&disk).await.0).await;
    disk.0.lock().full = true;
    let mut refused = 0;
    for n in 0..20 {
        match running.wal.append(record(n, 500)).await {
            Ok(_) => assert_eq!(refused, 0),
            Err(Error::Full { .. }) => refused += 1,
            Err(e) => panic!("{e}"),
        }
    }
    assert!(refused > 10, "{refused}");
    disk.0.lock().full = false;
    running.wal.append(record(99, 500)).await.unwrap().unwrap();
    running.wal.close();
    running.ended.await.unwrap().unwrap();
    let (_, contents) = open(&disk.crash(0)).await;
    let applied: Vec<u32> = running.apply.0.lock().iter().map(|(_, n)| *n).collect();
    assert_eq!(batches(&contents), applied);
    assert!(contents.iter().all(|c| c.damage.is_empty()));
}

#[tokio::test]
async fn i11_a_disk_that_fills_up_while_a_segment_is_marked_is_not_taken_for_damage() {
    // Before the mark names the segment, when the log goes on; and after, when the process ends.
    for (full_at, goes_on) in [("/wal.tmp", true), ("/", false)] {
        let disk = MemoryDisk::default();
        let running = run(open(&disk).await.0).await;
        disk.0.lock().full_at = Some(full_at.into());
        let mut refused = None;
        for n in 0..20 {
            if let Err(error) = running.wal.append(record(n, 500)).await {
                refused = Some(error);
                break;
            }
        }
        let refused = refused.unwrap();
        assert_eq!(matches!(refused, Error::Full { .. }), goes_on, "{refused}");
        disk.0.lock().full_at = None;
        assert_eq!(running.wal.append(record(99, 500)).await.is_ok(), goes_on);
        running.wal.close();
        assert_eq!(running.ended.await.unwrap().is_ok(), goes_on);
        let applied: Vec<u32> = running.apply.0.lock().iter().map(|(_, n)| *n).collect();
        // The process ends, or the power fails.
        for disk in [disk.clone(), disk.crash(0)] {
            let (replay, contents) = open(&disk).await;
            assert_eq!(missing_end(&replay), None);
            assert!(contents.iter().all(|c| c.damage.is_empty()), "{contents:?}");
            assert_eq!(batches(&contents), applied);
        }
    }
}

#[tokio::test]
async fn the_queue_is_bounded() {
    let disk = MemoryDisk::default();
    let replay = open(&disk).await.0;
    let apply = Arc::new(Collect::default());
    let (wal, committer) = replay
        .start(apply, Cpu::inline(), Arc::new(RealClock::new()))
        .await
        .unwrap();
    let mut waiting = Vec::new();
    let full = loop {
        let mut append = Box::pin(wal.append(record(0, 8 << 20)));
        match futures::poll!(append.as_mut()) {
            std::task::Poll::Pending => waiting.push(append),
            std::task::Poll::Ready(answer) => break answer.unwrap_err(),
        }
    };
    assert!(full.to_string().contains("tenant anonymous"), "{full}");
    assert_eq!(waiting.len(), 7);
    drop(committer);
}

#[tokio::test]
async fn a_crash_in_mid_group_is_reported_as_ambiguous_and_stays_readable() {
    let disk = MemoryDisk::default();
    let running = run(open(&disk).await.0).await;
    append_all(&running.wal, 0..3, 100).await;
    disk.0.lock().fail_sync = true;
    assert!(running.wal.append(record(3, 100)).await.is_err());

    let crashed = disk.crash(60);
    let (replay, contents) = open(&crashed).await;

    assert_eq!(batches(&contents), [0, 1, 2]);
    let damage: Vec<_> = contents.iter().flat_map(|c| &c.damage).collect();
    assert_eq!(damage.len(), 1);
    assert_eq!(damage[0].kind, DamageKind::Tail);
    assert_eq!(crashed.list(Path::new("/wal/quarantine")).unwrap().len(), 1);

    // The log goes on in a new segment; the damage is found again, and still as what it was.
    let running = run(replay).await;
    append_all(&running.wal, 4..6, 100).await;
    let (_, contents) = open(&crashed.crash(0)).await;
    assert_eq!(batches(&contents), [0, 1, 2, 4, 5]);
    let damage: Vec<_> = contents.iter().flat_map(|c| &c.damage).collect();
    assert_eq!(damage.len(), 1);
    assert_eq!(damage[0].kind, DamageKind::Tail);
}

#[tokio::test]
async fn restarts_give_unused_space_back() {
    let mut disk = MemoryDisk::default();
    for n in 0..5 {
        let running = run(open(&disk).await.0).await;
        append_all(&running.wal, n..n + 1, 10).await;
        disk = disk.crash(0);
    }
    let (replay, contents) = open(&disk).await;
    assert_eq!(batches(&contents), [0, 1, 2, 3, 4]);
    assert!(contents.iter().all(|c| c.damage.is_empty()));
    run(replay).await;
    let sizes = disk
        .0
        .lock()
        .files
        .values()
        .map(|f| f.lock().now.len())
        .collect::<Vec<_>>();
    assert_eq!(sizes.iter().filter(|s| **s >= 4096).count(), 1, "{sizes:?}");
}

#[tokio::test]
async fn i11_damage_of_synced_records_is_told_from_a_torn_tail() {
    let disk = MemoryDisk::default();
    let running = run(open(&disk).await.0).await;
    append_all(&running.wal, 0..30, 300).await;
    let lsn = running.apply.0.lock()[4].0;
    let path = crate::segment::path_of(Path::new("/wal"), lsn.segment());
    disk.edit(&path, |b| b[lsn.offset() as usize + 20] ^= 1);
    let (_, contents) = open(&disk).await;
    let damage: Vec<_> = contents.iter().flat_map(|c| &c.damage).collect();
    assert_eq!(damage.len(), 1);
    assert_eq!((damage[0].kind, damage[0].lsn), (DamageKind::Middle, lsn));
    assert_eq!(
        batches(&contents),
        (0..30).filter(|&n| n != 4).collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn a_lost_end_of_a_sealed_segment_and_a_missing_segment_are_noticed() {
    let disk = MemoryDisk::default();
    let running = run(open(&disk).await.0).await;
    append_all(&running.wal, 0..60, 300).await;
    let first = crate::segment::path_of(Path::new("/wal"), 1);
    disk.edit(&first, |b| b.truncate(b.len() - 700));
    disk.0
        .lock()
        .files
        .remove(&crate::segment::path_of(Path::new("/wal"), 3));
    let (_, contents) = open(&disk).await;
    let kinds: Vec<_> = contents.iter().flat_map(|c| &c.damage).map(|d| d.kind).collect();
    assert_eq!(kinds, [DamageKind::Middle, DamageKind::Missing]);
}

/// Writes some segments, and gives their numbers.
async fn written(disk: &MemoryDisk) -> Vec<u32> {
    let running = run(open(disk).await.0).await;
    append_all(&running.wal, 0..60, 300).await;
    running.wal.close();
    running.ended.await.unwrap().unwrap();
    running.wal.segments()
}

fn remove(disk: &MemoryDisk, numbers: &[u32]) {
    let mut state = disk.0.lock();
    for &n in numbers {
        let path = crate::segment::path_of(Path::new("/wal"), n);
        state.files.remove(&path).unwrap();
        state.synced_names.remove(&path).unwrap();
    }
}

fn missing_end(replay: &Replay) -> Option<(u32, DamageKind)> {
    replay.missing_end().map(|d| (d.lsn.segment(), d.kind))
}

#[tokio::test]
async fn i11_a_folder_that_lost_its_last_segments_or_all_is_noticed() {
    for kept in [0, 1, 3] {
        let disk = MemoryDisk::default();
        let numbers = written(&disk).await;
        assert_eq!(missing_end(&open(&disk.crash(0)).await.0), None);
        remove(&disk, &numbers[kept..]);
        let (replay, contents) = open(&disk).await;
        assert_eq!(contents.len(), kept);
        let lost = missing_end(&replay);
        assert_eq!(lost, Some((kept as u32 + 1, DamageKind::Missing)));
        // The log goes on where it had been, so that the gap stays, and is reported once.
        let running = run(replay).await;
        let newest = numbers.last().unwrap() + 1;
        assert_eq!(running.wal.segments().last(), Some(&newest));
        let (replay, contents) = open(&disk.crash(0)).await;
        assert_eq!(missing_end(&replay), None);
        let gap = contents.last().unwrap().damage.iter().map(|d| d.kind);
        assert_eq!(
            gap.collect::<Vec<_>>(),
            vec![DamageKind::Missing; usize::from(kept > 0)]
        );
    }
}

#[tokio::test]
async fn i11_a_damaged_mark_is_reported_and_another_directorys_is_not_believed() {
    let disk = MemoryDisk::default();
    let numbers = written(&disk).await;
    let mark = crate::mark::path_of(Path::new("/wal"));
    disk.edit(&mark, |b| b[12] ^= 1);
    let next = numbers.last().unwrap() + 1;
    let (replay, _) = open(&disk).await;
    assert_eq!(missing_end(&replay), Some((next, DamageKind::Tail)));
    remove(&disk, &numbers);
    let (replay, _) = open(&disk).await;
    assert_eq!(missing_end(&replay), Some((1, DamageKind::Missing)));
    let other = Identity { incarnation: 9, ..ID };
    disk.edit(&mark, |b| b[12] ^= 1);
    let handle = DiskHandle::inline(Arc::new(disk.clone()));
    let replay = Replay::open(handle, settings(), other).await.unwrap();
    assert_eq!(missing_end(&replay), None);
}

#[tokio::test]
async fn another_directorys_segment_is_refused() {
    let disk = MemoryDisk::default();
    let running = run(open(&disk).await.0).await;
    append_all(&running.wal, 0..1, 10).await;
    let other = Identity { cluster: 9, ..ID };
    let refused = Replay::open(DiskHandle::inline(Arc::new(disk)), settings(), other).await;
    assert!(refused.unwrap_err().to_string().contains("is of cluster"));
}

#[tokio::test]
async fn reads_back_while_running_and_removes_old_segments() {
    let disk = MemoryDisk::default();
    let running = run(open(&disk).await.0).await;
    append_all(&running.wal, 0..40, 300).await;
    let mut back = Vec::new();
    for n in running.wal.segments() {
        back.push(running.wal.read_segment(n).await.unwrap().unwrap());
    }
    assert_eq!(batches(&back), (0..40).collect::<Vec<_>>());
    assert!(back.iter().all(|c| c.damage.is_empty()));

    assert_eq!(running.wal.remove_below(3).await.unwrap(), 2);
    assert!(running.wal.read_segment(1).await.unwrap().is_none());
    running.wal.remove_below(u32::MAX).await.unwrap();
    assert_eq!(running.wal.segments().len(), 1);
}

#[tokio::test]
async fn starts_on_a_full_disk() {
    let disk = MemoryDisk::default();
    let running = run(open(&disk).await.0).await;
    append_all(&running.wal, 0..3, 10).await;
    let disk = disk.crash(0);
    disk.0.lock().full = true;
    let (replay, contents) = open(&disk).await;
    assert_eq!(batches(&contents), [0, 1, 2]);
    let apply = Arc::new(Collect::default());
    let started = replay
        .start(apply, Cpu::inline(), Arc::new(RealClock::new()))
        .await;
    // This disk reserves nothing at all, so the one thing to check is that it says so.
    assert!(matches!(started, Err(Error::Full { .. })));
}
