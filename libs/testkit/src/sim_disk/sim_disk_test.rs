//! What the disk keeps and loses.

use std::io;
use std::path::Path;
use std::sync::Arc;

use koios_runtime::{Disk, DiskFile, OpenMode, RngHandle};

use super::{Fault, FaultPlan, SimDisk};

const SEEDS: u64 = 60;

fn disk(seed: u64) -> SimDisk {
    let disk = SimDisk::new(RngHandle::from_seed(seed));
    disk.create_dir_all(Path::new("d")).unwrap();
    disk.sync_dir(Path::new("")).unwrap();
    disk
}

fn create(disk: &SimDisk, path: &str, bytes: &[u8]) -> Arc<dyn DiskFile> {
    let file = disk.open(Path::new(path), OpenMode::CreateNew).unwrap();
    file.write_at(0, bytes).unwrap();
    file
}

/// A file whose bytes and name are stable.
fn stored(disk: &SimDisk, path: &str, bytes: &[u8]) -> Arc<dyn DiskFile> {
    let file = create(disk, path, bytes);
    file.sync_data().unwrap();
    disk.sync_dir(Path::new("d")).unwrap();
    file
}

/// In how many seeds something holds; it must be some and not all.
fn sometimes(what: &str, holds: impl Fn(u64) -> bool) {
    let times = (0..SEEDS).filter(|&seed| holds(seed)).count() as u64;
    assert!((1..SEEDS).contains(&times), "{what}: {times} of {SEEDS}");
}

#[test]
fn a_synced_file_survives_only_with_its_folder() {
    sometimes("the name is lost", |seed| {
        let disk = disk(seed);
        let file = create(&disk, "d/a", b"x");
        file.sync_data().unwrap();
        disk.crash();
        assert!(file.len().is_err());
        disk.open(Path::new("d/a"), OpenMode::Read).is_err()
    });
}

#[test]
fn a_folder_survives_only_with_the_one_above_and_takes_what_is_in_it_along() {
    sometimes("the folder is lost", |seed| {
        let disk = SimDisk::new(RngHandle::from_seed(seed));
        disk.create_dir_all(Path::new("/d")).unwrap();
        stored(&disk, "/d/a", b"x");
        disk.sync_dir(Path::new("/d")).unwrap();
        disk.crash();
        assert_eq!(disk.read(Path::new("/d/a")).is_ok(), disk.is_dir(Path::new("/d")));
        !disk.is_dir(Path::new("/d"))
    });
}

#[test]
fn synced_bytes_survive_and_later_ones_may_not() {
    sometimes("the end is lost", |seed| {
        let disk = disk(seed);
        let file = stored(&disk, "d/a", &[1; 1000]);
        file.write_at(1000, &[2; 5000]).unwrap();
        disk.crash();
        let bytes = disk.read(Path::new("d/a")).unwrap();
        assert_eq!(&bytes[..1000], [1; 1000]);
        bytes.len() < 6000
    });
}

#[test]
fn sectors_are_torn_and_writes_are_reordered() {
    let after_crash = |seed| {
        let disk = disk(seed);
        let file = stored(&disk, "d/a", &[0; 4096]);
        file.write_at(0, &[1; 2048]).unwrap();
        file.write_at(2048, &[2; 2048]).unwrap();
        disk.crash();
        disk.read(Path::new("d/a")).unwrap()
    };
    sometimes("a later sector without an earlier one", |seed| {
        let bytes = after_crash(seed);
        bytes[0] == 0 && bytes[1536] == 1
    });
    sometimes("a sector in part", |seed| {
        after_crash(seed)
            .chunks(512)
            .any(|sector| sector[0] != 0 && sector[511] == 0)
    });
    sometimes("the second write without the first", |seed| {
        let bytes = after_crash(seed);
        bytes[..2048].iter().all(|&b| b == 0) && bytes[2048..].iter().all(|&b| b == 2)
    });
}

#[test]
fn replace_shows_the_old_or_the_new_content() {
    for seed in 0..SEEDS {
        let disk = disk(seed);
        disk.replace(Path::new("d/a"), b"old").unwrap();
        disk.replace(Path::new("d/a"), b"new").unwrap();
        disk.crash();
        assert_eq!(disk.read(Path::new("d/a")).unwrap(), b"new");
    }
}

#[test]
fn a_rename_is_lost_unless_the_folder_was_synced() {
    sometimes("the rename is lost", |seed| {
        let disk = disk(seed);
        stored(&disk, "d/a", b"old");
        stored(&disk, "d/b", b"new");
        disk.rename(Path::new("d/b"), Path::new("d/a")).unwrap();
        disk.crash();
        let found = disk.read(Path::new("d/a")).unwrap();
        assert_eq!(found == b"old", disk.read(Path::new("d/b")).is_ok());
        found == b"old"
    });
}

#[test]
fn a_full_disk_refuses_and_part_of_the_write_is_done() {
    let disk = disk(1);
    disk.set_capacity(Some(10));
    let file = create(&disk, "d/a", b"");
    assert!(file.allocate(8).is_ok());
    let full = file.write_at(4, &[7; 8]).unwrap_err();
    assert_eq!(full.kind(), io::ErrorKind::StorageFull);
    assert_eq!(
        disk.read(Path::new("d/a")).unwrap(),
        [0, 0, 0, 0, 7, 7, 7, 7, 7, 7]
    );
}

#[test]
fn what_a_failed_sync_did_not_store_is_lost_whatever_the_next_one_says() {
    let after = |seed: u64, power_loss: bool| {
        let disk = disk(seed);
        stored(&disk, "d/a", b"old");
        let mount = disk.mount();
        let file = mount.open(Path::new("d/a"), OpenMode::ReadWrite).unwrap();
        disk.set_faults(FaultPlan::default().with(2, Fault::SyncError));
        file.write_at(0, b"new").unwrap();
        file.sync_data().unwrap_err();
        file.sync_data().unwrap();
        assert_eq!(disk.failed_syncs(), [Path::new("d/a")]);
        if power_loss {
            disk.crash();
        }
        disk.read(Path::new("d/a")).unwrap()
    };
    sometimes("it is dropped from memory", |seed| after(seed, false) == b"old");
    sometimes("it is in memory only", |seed| {
        after(seed, false) == b"new" && after(seed, true) == b"old"
    });
}

#[test]
fn a_fault_strikes_a_mount_once_and_the_testers_hand_never() {
    let disk = disk(3);
    let mount = disk.mount();
    disk.set_faults(
        FaultPlan::default()
            .with(2, Fault::WriteError)
            .with(3, Fault::ReadError),
    );
    create(&disk, "d/testers", b"x").sync_data().unwrap();
    let file = mount.open(Path::new("d/a"), OpenMode::CreateNew).unwrap();
    assert!(file.write_at(0, &[1; 10]).is_err());
    assert!(file.write_at(0, &[1; 10]).is_ok());
    assert!(file.read_at(0, &mut [0; 10]).is_err());
    assert!(file.read_at(0, &mut [0; 10]).is_ok());
    let struck = disk.take_struck();
    assert_eq!(
        struck,
        [
            "WriteError at operation 2: Write d/a",
            "ReadError at operation 4: Read d/a"
        ]
    );
    assert_eq!(disk.operations(), 5);
}

#[test]
fn after_a_power_loss_in_mid_operation_nothing_more_is_done() {
    sometimes("the operation was done", |seed| {
        let disk = disk(seed);
        let mount = disk.mount();
        disk.set_faults(FaultPlan::default().with(4, Fault::PowerLoss));
        let file = create(&mount, "d/a", b"x");
        file.sync_data().unwrap();
        mount.sync_dir(Path::new("d")).unwrap_err();
        assert!(file.len().is_err());
        assert!(mount.list(Path::new("d")).is_err());
        assert!(mount.free_bytes(Path::new("d")).is_err());
        disk.read(Path::new("d/a")).is_ok()
    });
}

#[test]
fn i15_equal_runs_have_equal_digests() {
    let run = |byte: u8| {
        let disk = disk(5);
        create(&disk.mount(), "d/a", &[byte]);
        disk.digest()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[test]
fn a_folder_created_durably_outlasts_a_power_loss_whoever_made_it() {
    let path = Path::new("/srv/koios/data");
    let mut lost = 0;
    for seed in 0..32 {
        let disk = SimDisk::new(RngHandle::from_seed(seed));
        disk.mount().create_dir_all(path).unwrap();
        disk.kill();
        let killed = SimDisk::new(RngHandle::from_seed(seed));
        killed.mount().create_dir_all(path).unwrap();
        killed.crash();
        lost += usize::from(!killed.is_dir(path));
        disk.mount().create_dir_durably(path).unwrap();
        disk.crash();
        assert!(disk.is_dir(path), "seed {seed}");
    }
    assert!(lost > 0, "the simulation must be able to lose folders");
}

#[test]
fn a_kill_ends_a_run_and_leaves_what_was_not_stable() {
    let disk = SimDisk::new(RngHandle::from_seed(1));
    let run = disk.mount();
    let file = run.open(Path::new("/file"), OpenMode::CreateNew).unwrap();
    file.write_at(0, b"written").unwrap();
    disk.set_faults(FaultPlan::default().with(1, Fault::Kill));
    assert!(run.list(Path::new("/")).is_err());
    assert!(file.write_at(0, b"after").is_err(), "the run is over");
    assert!(run.list(Path::new("/")).is_err());
    assert_eq!(disk.mount().read(Path::new("/file")).unwrap(), b"written");
}
