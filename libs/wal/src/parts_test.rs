//! Reading again what a replay found.

use std::path::Path;
use std::sync::Arc;

use koios_runtime::{Disk, DiskHandle, OpenMode, RngHandle};
use koios_testkit::sim_disk::SimDisk;

use crate::wal_test::{append_all, open_on, run};
use crate::{Error, Record, RecordKind};

/// A disk with a log of some segments.
async fn written() -> (SimDisk, DiskHandle) {
    let disk = SimDisk::new(RngHandle::from_seed(1));
    let handle = DiskHandle::inline(Arc::new(disk.mount()));
    let running = run(open_on(handle.clone()).await.0).await;
    append_all(&running.wal, 0..40, 300).await;
    running.wal.close();
    running.ended.await.unwrap().unwrap();
    (disk, handle)
}

fn flip(disk: &SimDisk, number: u32, at: usize) {
    let path = format!("/wal/{number:010}.wal");
    assert!(disk.flip_bit(Path::new(&path), at, 1));
}

#[tokio::test]
async fn parts_are_what_the_whole_segment_has() {
    let (_disk, handle) = written().await;
    let (replay, contents) = open_on(handle).await;
    assert!(contents.len() > 2);
    let parts = replay.parts();
    for content in &contents {
        let at: Vec<_> = content.records.iter().map(Record::at).collect();
        for len in [1, 3, at.len()] {
            let mut read = Vec::new();
            for part in at.chunks(len) {
                read.extend(parts.read(part).await.unwrap());
            }
            assert_eq!(read, content.records);
        }
        let first = parts.checkpoint(content.number).await.unwrap();
        assert_eq!(first.as_ref(), content.records.first());
    }
    assert_eq!(parts.read(&[]).await.unwrap(), []);
}

#[tokio::test]
async fn i11_a_record_that_is_not_intact_any_more_is_not_given() {
    let (disk, handle) = written().await;
    let (_, contents) = open_on(handle).await;
    let at: Vec<_> = contents[1].records.iter().map(Record::at).collect();
    flip(&disk, contents[1].number, at[3].lsn.offset() as usize + 20);
    let handle = DiskHandle::inline(Arc::new(disk.mount()));
    let parts = open_on(handle).await.0.parts();
    let refused = parts.read(&at[2..5]).await.unwrap_err();
    assert!(
        matches!(refused, Error::Changed { lsn, .. } if lsn == at[3].lsn),
        "{refused}"
    );
    assert_eq!(parts.read(&at[4..5]).await.unwrap(), contents[1].records[4..5]);
}

#[tokio::test]
async fn a_checkpoint_is_found_without_the_group_before_it_and_not_where_it_is_damaged() {
    for (at, is_found) in [(64 + 13, true), (64 + 29 + 13, false)] {
        let (disk, _) = written().await;
        flip(&disk, 2, at);
        let (replay, contents) = open_on(DiskHandle::inline(Arc::new(disk.mount()))).await;
        let first = contents[1].records.first().cloned();
        let first = first.filter(|r| r.kind == RecordKind::Checkpoint);
        let found = replay.parts().checkpoint(2).await.unwrap();
        assert_eq!((found.is_some(), &found), (is_found, &first));
    }
}

#[tokio::test]
async fn a_segment_that_ends_early_has_no_more_than_it_has() {
    let (_disk, handle) = written().await;
    let (replay, contents) = open_on(handle.clone()).await;
    let last = contents[0].records.last().unwrap().at();
    let cut = move |d: &dyn Disk| -> Result<(), Error> {
        let file = d.open(Path::new("/wal/0000000001.wal"), OpenMode::ReadWrite)?;
        file.set_len(u64::from(last.lsn.offset()) + 5).unwrap();
        Ok(())
    };
    handle.run(cut).await.unwrap();
    let refused = replay.parts().read(&[last]).await.unwrap_err();
    assert!(matches!(refused, Error::Changed { .. }), "{refused}");
}
