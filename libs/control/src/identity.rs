//! Whose data directory it is: node name, incarnation, cluster.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use koios_runtime::{Disk, DiskHandle, RngHandle};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::{ClusterId, Error, Incarnation};

/// The newest format written and read.
const FORMAT: u32 = 1;
const FILE: &str = "identity.json";
const LOCK: &str = "LOCK";

/// What `identity.json` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    format: u32,
    node: String,
    incarnation: Incarnation,
    cluster_id: Option<ClusterId>,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    #[serde(flatten)]
    record: Record,
    crc32c: u32,
}

/// A locked data directory. Cheap to clone; the lock goes with [`Identity::release`] or the last clone.
#[derive(Clone)]
pub struct Identity {
    shared: Arc<Shared>,
}

struct Shared {
    data_dir: PathBuf,
    disk: DiskHandle,
    record: Mutex<Record>,
    writing: Mutex<()>,
    lock: Mutex<Option<Box<dyn Send + Sync>>>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Identity({} {:?})",
            self.shared.data_dir.display(),
            self.shared.record.lock()
        )
    }
}

impl Identity {
    /// Creates or opens the data directory of `node` and locks it.
    ///
    /// # Errors
    /// [`Error::OtherNode`], [`Error::NewerFormat`], [`Error::Corrupt`], [`Error::DataDir`], [`Error::Locked`], or the disk's.
    pub async fn open(
        disk: &DiskHandle,
        data_dir: &Path,
        node: &str,
        rng: &RngHandle,
    ) -> Result<Self, Error> {
        let (dir, node, fresh) = (data_dir.to_owned(), node.to_owned(), Incarnation(rng.u128()));
        let (record, lock) = disk
            .run(move |disk| open_blocking(disk, &dir, &node, fresh))
            .await?;
        Ok(Self {
            shared: Arc::new(Shared {
                data_dir: data_dir.to_owned(),
                disk: disk.clone(),
                record: Mutex::new(record),
                writing: Mutex::default(),
                lock: Mutex::new(Some(lock)),
            }),
        })
    }

    /// The data directory.
    pub fn data_dir(&self) -> &Path {
        &self.shared.data_dir
    }

    /// The node's name.
    pub fn node(&self) -> String {
        self.shared.record.lock().node.clone()
    }

    /// The data directory's incarnation.
    pub fn incarnation(&self) -> Incarnation {
        self.shared.record.lock().incarnation
    }

    /// The cluster the data directory belongs to, once known.
    pub fn cluster_id(&self) -> Option<ClusterId> {
        self.shared.record.lock().cluster_id
    }

    /// Refuses the state of another cluster.
    ///
    /// # Errors
    /// [`Error::OtherCluster`].
    pub fn check_cluster(&self, cluster: ClusterId) -> Result<(), Error> {
        match self.cluster_id() {
            Some(owner) if owner != cluster => Err(Error::OtherCluster {
                path: self.shared.data_dir.clone(),
                node: self.node(),
                owner: owner.to_string(),
                cluster: cluster.to_string(),
            }),
            _ => Ok(()),
        }
    }

    /// Binds the data directory to a cluster, durably.
    ///
    /// # Errors
    /// [`Error::OtherCluster`] when it is bound to another one, or the disk's.
    pub async fn join_cluster(&self, cluster: ClusterId) -> Result<(), Error> {
        self.check_cluster(cluster)?;
        if self.cluster_id().is_some() {
            return Ok(());
        }
        self.update(move |record| record.cluster_id = Some(cluster)).await
    }

    /// Gives the data directory a new incarnation, durably: its holder has lost, or may have lost, something it
    /// acknowledged. It must be registered again before the process takes part in anything.
    ///
    /// # Errors
    /// The disk's.
    pub async fn renew_incarnation(&self, rng: &RngHandle) -> Result<Incarnation, Error> {
        let fresh = Incarnation(rng.u128());
        self.update(move |record| record.incarnation = fresh).await?;
        Ok(fresh)
    }

    /// Gives the data directory free for another process, once nothing writes to it any more.
    pub(crate) fn release(&self) {
        self.shared.lock.lock().take();
    }

    /// Whole even when the future is dropped: the submitted work runs to its end, one change at a time.
    async fn update(&self, change: impl FnOnce(&mut Record) + Send + 'static) -> Result<(), Error> {
        let shared = Arc::clone(&self.shared);
        let work = move |disk: &dyn Disk| {
            let _one_at_a_time = shared.writing.lock();
            let mut record = shared.record.lock().clone();
            change(&mut record);
            write(disk, &shared.data_dir.join(FILE), &record)?;
            *shared.record.lock() = record;
            Ok(())
        };
        self.shared.disk.run(work).await
    }
}

fn open_blocking(
    disk: &dyn Disk,
    dir: &Path,
    node: &str,
    fresh: Incarnation,
) -> Result<(Record, Box<dyn Send + Sync>), Error> {
    disk.create_dir_durably(dir).map_err(|source| Error::DataDir {
        path: dir.to_owned(),
        source,
    })?;
    let lock = disk.lock(&dir.join(LOCK)).map_err(|source| Error::Locked {
        path: dir.to_owned(),
        source,
    })?;
    let path = dir.join(FILE);
    let record = match disk.read(&path) {
        Ok(bytes) => {
            // A run before may have been killed between giving it its name and making that stable.
            disk.sync_dir(dir)?;
            parse(dir, &path, &bytes)?
        }
        Err(e) if e.is_not_found() => {
            let record = Record {
                format: FORMAT,
                node: node.to_owned(),
                incarnation: fresh,
                cluster_id: None,
            };
            write(disk, &path, &record)?;
            record
        }
        Err(e) => return Err(e.into()),
    };
    if record.node != node {
        return Err(Error::OtherNode {
            path: dir.to_owned(),
            owner: record.node,
            node: node.to_owned(),
        });
    }
    Ok((record, lock))
}

fn parse(dir: &Path, path: &Path, bytes: &[u8]) -> Result<Record, Error> {
    #[derive(Deserialize)]
    struct Probe {
        format: u32,
    }
    let corrupt = |detail: String| Error::Corrupt {
        path: path.to_owned(),
        detail,
    };
    // The format comes first: what a newer one adds is none of our business.
    let probe: Probe = serde_json::from_slice(bytes).map_err(|e| corrupt(e.to_string()))?;
    if probe.format > FORMAT {
        return Err(Error::NewerFormat {
            path: dir.to_owned(),
            got: probe.format,
            supported: FORMAT,
        });
    }
    let stored: Stored = serde_json::from_slice(bytes).map_err(|e| corrupt(e.to_string()))?;
    let crc32c = checksum(&stored.record).map_err(|e| corrupt(e.to_string()))?;
    if crc32c != stored.crc32c {
        return Err(corrupt(format!(
            "crc32c is {crc32c}, the file says {}",
            stored.crc32c
        )));
    }
    Ok(stored.record)
}

fn write(disk: &dyn Disk, path: &Path, record: &Record) -> Result<(), Error> {
    let stored = checksum(record).and_then(|crc32c| {
        serde_json::to_vec(&Stored {
            record: record.clone(),
            crc32c,
        })
    });
    let bytes = stored.map_err(|e| Error::Storage(format!("identity does not serialise: {e}")))?;
    Ok(disk.replace(path, &bytes)?)
}

/// Over the record's own JSON, which is deterministic.
fn checksum(record: &Record) -> Result<u32, serde_json::Error> {
    Ok(crc32c::crc32c(&serde_json::to_vec(record)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use koios_runtime::RealDisk;
    use koios_testkit::sim_disk::{Fault, FaultPlan, SimDisk};

    fn disk() -> DiskHandle {
        DiskHandle::inline(Arc::new(RealDisk))
    }

    async fn open(dir: &Path, node: &str) -> Result<Identity, Error> {
        Identity::open(&disk(), dir, node, &RngHandle::from_seed(1)).await
    }

    #[tokio::test]
    async fn identity_survives_restarts_and_changes_when_renewed() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(dir.path(), "a").await.unwrap();
        let incarnation = first.incarnation();
        first.join_cluster(ClusterId(5)).await.unwrap();
        drop(first);
        let again = open(dir.path(), "a").await.unwrap();
        assert_eq!(
            (again.incarnation(), again.cluster_id()),
            (incarnation, Some(ClusterId(5)))
        );
        let renewed = again.renew_incarnation(&RngHandle::from_seed(2)).await.unwrap();
        drop(again);
        assert_ne!(renewed, incarnation);
        assert_eq!(open(dir.path(), "a").await.unwrap().incarnation(), renewed);
    }

    #[tokio::test]
    async fn another_nodes_or_clusters_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let owner = open(dir.path(), "ingester-b-1").await.unwrap();
        owner.join_cluster(ClusterId(5)).await.unwrap();
        let other = owner.join_cluster(ClusterId(6)).await.unwrap_err();
        assert!(matches!(other, Error::OtherCluster { .. }), "{other}");
        drop(owner);
        let refused = open(dir.path(), "ingester-a-1").await.unwrap_err().to_string();
        assert!(
            refused.starts_with("data dir belongs to node ingester-b-1"),
            "{refused}"
        );
        assert!(refused.ends_with("check data-dir and node.name"), "{refused}");
    }

    #[tokio::test]
    async fn a_directory_that_cannot_be_made_is_told_with_its_setting() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let refused = open(&file, "a").await.unwrap_err().to_string();
        let wanted = format!("data-dir {} cannot be used: create folder", file.display());
        assert!(refused.starts_with(&wanted), "{refused}");
    }

    #[tokio::test]
    async fn a_directory_in_use_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let _owner = open(dir.path(), "a").await.unwrap();
        assert!(matches!(open(dir.path(), "a").await, Err(Error::Locked { .. })));
    }

    #[tokio::test]
    async fn i11_damage_and_newer_formats_are_detected() {
        let dir = tempfile::tempdir().unwrap();
        drop(open(dir.path(), "a").await.unwrap());
        let path = dir.path().join(FILE);
        let good = RealDisk.read(&path).unwrap();
        let text = String::from_utf8(good.clone()).unwrap();
        RealDisk
            .replace(&path, text.replace("\"node\":\"a\"", "\"node\":\"b\"").as_bytes())
            .unwrap();
        assert!(matches!(open(dir.path(), "b").await, Err(Error::Corrupt { .. })));
        RealDisk
            .replace(&path, text.replace("\"format\":1", "\"format\":2").as_bytes())
            .unwrap();
        assert!(matches!(
            open(dir.path(), "a").await,
            Err(Error::NewerFormat { got: 2, .. })
        ));
        for cut in 0..good.len() {
            RealDisk.replace(&path, &good[..cut]).unwrap();
            assert!(matches!(open(dir.path(), "a").await, Err(Error::Corrupt { .. })));
        }
    }

    async fn open_simulated(disk: &SimDisk, seed: u64) -> Result<Identity, Error> {
        let disk = DiskHandle::inline(Arc::new(disk.mount()));
        Identity::open(
            &disk,
            Path::new("/srv/koios/data"),
            "a",
            &RngHandle::from_seed(seed),
        )
        .await
    }

    #[tokio::test]
    async fn i1_a_data_directory_that_was_opened_outlasts_a_power_loss_wherever_a_run_before_was_killed() {
        for n in 1..24 {
            for seed in 0..16 {
                let disk = SimDisk::new(RngHandle::from_seed(seed));
                disk.set_faults(FaultPlan::default().with(n, Fault::Kill));
                drop(open_simulated(&disk, 1).await);
                disk.set_faults(FaultPlan::default());
                let before = open_simulated(&disk, 2).await.unwrap().incarnation();
                disk.crash();
                let after = open_simulated(&disk, 3).await.unwrap().incarnation();
                assert_eq!(after, before, "killed at operation {n}, seed {seed}");
            }
        }
    }

    #[tokio::test]
    async fn i14_an_incarnation_that_was_given_up_does_not_come_back() {
        for n in 1..24 {
            for seed in 0..16 {
                let disk = SimDisk::new(RngHandle::from_seed(seed));
                let first = open_simulated(&disk, 1).await.unwrap();
                disk.set_faults(FaultPlan::default().with(n, Fault::Kill));
                // Killed or not.
                let _ = first.renew_incarnation(&RngHandle::from_seed(2)).await;
                drop(first);
                disk.set_faults(FaultPlan::default());
                let before = open_simulated(&disk, 3).await.unwrap().incarnation();
                disk.crash();
                let after = open_simulated(&disk, 4).await.unwrap().incarnation();
                assert_eq!(after, before, "killed at operation {n}, seed {seed}");
            }
        }
    }
}
