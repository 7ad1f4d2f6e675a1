//! Which folder it is that a bucket was opened as.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use koios_block::BlockId;
use koios_runtime::{Disk, DiskError, OpenMode, RealDisk, RngHandle};
use object_store::path::Path as ObjectPath;

use crate::layout::{CLUSTER, SELF_TEST};
use crate::verdict::FOLDER_STORE;

/// In the cluster's own folder: 32 hex digits, which stay what they are as long as the folder is.
const MARKER: &str = "folder";
const MARKER_BYTES: usize = 32;
/// What is wrong with one that is damaged, and what to do. Nothing is guessed: it may be another folder altogether.
const NO_MARKER: &str = "it is not a marker of 32 hex digits; look whether this is the folder that is to be the bucket: if it is, end all \
                         processes that use it, delete that file, and start them anew";

/// A bucket's folder.
#[derive(Debug)]
pub(super) struct Folder {
    root: PathBuf,
    identity: Identity,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Identity {
    /// By the marker in it.
    Marked(Vec<u8>),
    /// By its place on a device, where there is no marker, and none is to be written or can be.
    Unmarked { device: u64, inode: u64 },
}

/// The folder is not what was opened. It may come back: nothing may be concluded from what is there instead.
#[derive(Debug, thiserror::Error)]
#[error(
    "the bucket's folder {} is not there any more, or is another one (unmounted?): {what}; nothing is stored meanwhile, and all goes on when it is \
     back; if it is to be another one from now on, start the process anew", root.display()
)]
struct Gone {
    root: PathBuf,
    what: &'static str,
    source: Option<DiskError>,
}

impl Folder {
    /// As it is, whether there is a marker or not.
    pub(super) fn as_found(root: PathBuf) -> Result<Self, DiskError> {
        let identity = match read_marker(&root)? {
            Some(id) => Identity::Marked(id),
            None => place(&root)?,
        };
        Ok(Self { root, identity })
    }

    /// With a marker, which it gets if it has none and can be written to.
    pub(super) fn marked(root: PathBuf, rng: &RngHandle) -> Result<Self, DiskError> {
        if read_marker(&root)?.is_none()
            && let Err(error) = write_marker(&root, rng)
        {
            tracing::warn!(folder = %root.display(), %error, "the bucket's folder gets no marker and is known by device and inode instead");
        }
        Self::as_found(root)
    }

    /// Whether it is still there, and still the same.
    pub(super) async fn check(self: &Arc<Self>) -> object_store::Result<()> {
        let folder = Arc::clone(self);
        #[expect(
            clippy::disallowed_methods,
            reason = "the client works on real files only, on these threads too"
        )]
        let checked = tokio::task::spawn_blocking(move || folder.check_now()).await;
        checked?.map_err(|gone| object_store::Error::Generic {
            store: FOLDER_STORE,
            source: Box::new(gone),
        })
    }

    /// Removes the directory that an object was deleted from, where nothing can come any more once it is empty: its name is that of a block
    /// or a self-test, which is used once. (To make another one anew that a writer has just seen is not safe: the client syncs the folders that
    /// it made, and would take the one above for older than it is.) Best effort: an empty directory is no object.
    pub(super) async fn tidy_after(self: &Arc<Self>, deleted: &ObjectPath) {
        let parts: Vec<_> = deleted.parts().collect();
        let [top, kind, name, _] = parts.as_slice() else {
            return;
        };
        let is_used_once = match kind.as_ref() {
            "blocks" => name.as_ref().parse::<BlockId>().is_ok(),
            SELF_TEST => top.as_ref() == CLUSTER,
            _ => false,
        };
        if !is_used_once {
            return;
        }
        let directory = self
            .root
            .join(top.as_ref())
            .join(kind.as_ref())
            .join(name.as_ref());
        #[expect(
            clippy::disallowed_methods,
            reason = "the client works on real files only, on these threads too"
        )]
        let removed = tokio::task::spawn_blocking(move || std::fs::remove_dir(directory)).await;
        // Most are not empty, or are gone already.
        if let Ok(Err(error)) = removed
            && !matches!(
                error.kind(),
                io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotFound
            )
        {
            tracing::debug!(object = %deleted, %error, "an empty directory stays");
        }
    }

    fn check_now(&self) -> Result<(), Gone> {
        let gone = |what, source| Gone {
            root: self.root.clone(),
            what,
            source,
        };
        let found = match &self.identity {
            Identity::Marked(_) => read_marker(&self.root).map(|id| id.map(Identity::Marked)),
            Identity::Unmarked { .. } => place(&self.root).map(Some),
        };
        match found {
            Ok(Some(found)) if found == self.identity => Ok(()),
            Ok(Some(_)) => Err(gone("there is another one in its place", None)),
            Ok(None) if self.root.is_dir() => Err(gone("what is there lacks __cluster/folder", None)),
            Ok(None) => Err(gone("there is nothing in its place", None)),
            Err(e) if e.is_not_found() => Err(gone("there is nothing in its place", Some(e))),
            Err(e) => Err(gone("it cannot be looked at", Some(e))),
        }
    }
}

fn marker(root: &Path) -> PathBuf {
    root.join(CLUSTER).join(MARKER)
}

fn read_marker(root: &Path) -> Result<Option<Vec<u8>>, DiskError> {
    let path = marker(root);
    let file = match RealDisk.open(&path, OpenMode::Read) {
        Ok(file) => file,
        Err(e) if e.is_not_found() => return Ok(None),
        Err(e) => return Err(e),
    };
    // One byte more, to see that it is no more than a marker.
    let mut id = vec![0; MARKER_BYTES + 1];
    let read = file.read_at(0, &mut id);
    id.truncate(read.map_err(|e| DiskError::io("read", &path, e))?);
    match id.len() == MARKER_BYTES && id.iter().all(u8::is_ascii_hexdigit) {
        true => Ok(Some(id)),
        false => Err(DiskError::io(
            "read",
            &path,
            io::Error::new(io::ErrorKind::InvalidData, NO_MARKER),
        )),
    }
}

/// Of several processes that write it, the first one's stays.
fn write_marker(root: &Path, rng: &RngHandle) -> Result<(), DiskError> {
    let path = marker(root);
    let folder = root.join(CLUSTER);
    let id = rng.u128();
    // What is named so is no object, should this process end half-way.
    let draft = folder.join(format!("{MARKER}#{}", id as u64));
    RealDisk.create_dir_durably(&folder)?;
    let file = RealDisk.open(&draft, OpenMode::CreateNew)?;
    let written = file
        .write_at(0, format!("{id:032x}").as_bytes())
        .and_then(|()| file.sync_data())
        .map_err(|e| DiskError::io("write", &draft, e));
    let linked = written.and_then(|()| RealDisk.link(&draft, &path));
    let removed = RealDisk.remove_file(&draft);
    match linked {
        Err(e) if !e.is_already_exists() => return Err(e),
        _ => {}
    }
    removed?;
    RealDisk.sync_dir(&folder)
}

fn place(root: &Path) -> Result<Identity, DiskError> {
    let meta = std::fs::metadata(root).map_err(|e| DiskError::io("look at", root, e))?;
    Ok(Identity::Unmarked {
        device: meta.dev(),
        inode: meta.ino(),
    })
}
