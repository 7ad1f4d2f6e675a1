//! What the bucket holds.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use bytes::{Bytes, BytesMut};

/// Keys on a page of a list: few, so that lists have several.
const PAGE_KEYS: usize = 7;

#[derive(Clone, Debug)]
pub(super) struct Object {
    pub(super) bytes: Bytes,
    pub(super) etag: String,
    /// The key it was encrypted with, where the client brought one.
    pub(super) key: Option<String>,
}

/// An upload in pieces.
#[derive(Debug, Default)]
struct Upload {
    name: String,
    key: Option<String>,
    pieces: BTreeMap<String, Bytes>,
}

#[derive(Debug, Default)]
pub(super) struct Objects {
    live: BTreeMap<String, Object>,
    /// What was there before the last change.
    before: BTreeMap<String, Option<Object>>,
    uploads: BTreeMap<String, Upload>,
    changes: u64,
}

/// A page of a list.
#[derive(Debug, Default)]
pub(super) struct Page {
    pub(super) objects: Vec<(String, Object)>,
    pub(super) folders: BTreeSet<String>,
    /// Where the next page begins.
    pub(super) next: Option<String>,
}

impl Objects {
    pub(super) fn names(&self) -> Vec<String> {
        self.live.keys().cloned().collect()
    }

    pub(super) fn open_uploads(&self) -> usize {
        self.uploads.len()
    }

    pub(super) fn get(&self, name: &str, stale: bool) -> Option<&Object> {
        match self.before.get(name) {
            Some(before) if stale => before.as_ref(),
            _ => self.live.get(name),
        }
    }

    fn change_id(&mut self) -> String {
        self.changes += 1;
        format!("\"{:x}\"", self.changes)
    }

    pub(super) fn put(&mut self, name: &str, bytes: Bytes, key: Option<String>) -> String {
        let etag = self.change_id();
        let object = Object {
            bytes,
            etag: etag.clone(),
            key,
        };
        let before = self.live.insert(name.to_owned(), object);
        self.before.insert(name.to_owned(), before);
        etag
    }

    /// Whether it was there.
    pub(super) fn delete(&mut self, name: &str) -> bool {
        let before = self.live.remove(name);
        let there = before.is_some();
        self.before.insert(name.to_owned(), before);
        there
    }

    pub(super) fn begin(&mut self, name: &str, key: Option<String>) -> String {
        let id = self.change_id().trim_matches('"').to_owned();
        let upload = Upload {
            name: name.to_owned(),
            key,
            pieces: BTreeMap::new(),
        };
        self.uploads.insert(id.clone(), upload);
        id
    }

    /// Takes a piece of an upload; `None` when there is no such upload.
    pub(super) fn put_piece(&mut self, upload: &str, piece: &str, bytes: Bytes) -> Option<String> {
        let etag = self.change_id();
        let upload = self.uploads.get_mut(upload)?;
        upload.pieces.insert(piece.to_owned(), bytes);
        Some(etag)
    }

    /// Takes a piece of the one upload of an object that there is, as Azure has it.
    pub(super) fn put_block(&mut self, name: &str, key: Option<String>, block: &str, bytes: Bytes) {
        let upload = self.uploads.entry(name.to_owned()).or_default();
        name.clone_into(&mut upload.name);
        upload.key = key;
        upload.pieces.insert(block.to_owned(), bytes);
    }

    /// Makes the object of the named pieces; `None` when one of them is not there or smaller than `piece_bytes_min` without
    /// being the last.
    pub(super) fn complete(
        &mut self,
        upload: &str,
        pieces: &[String],
        piece_bytes_min: usize,
    ) -> Option<String> {
        let found = self.uploads.get(upload)?;
        let mut bytes = BytesMut::new();
        for (i, piece) in pieces.iter().enumerate() {
            let piece = found.pieces.get(piece)?;
            if piece.len() < piece_bytes_min && i + 1 < pieces.len() {
                return None;
            }
            bytes.extend_from_slice(piece);
        }
        let Upload { name, key, .. } = self.uploads.remove(upload)?;
        Some(self.put(&name, bytes.freeze(), key))
    }

    pub(super) fn drop_upload(&mut self, upload: &str) {
        self.uploads.remove(upload);
    }

    pub(super) fn list(&self, prefix: &str, delimiter: Option<&str>, after: Option<&str>) -> Page {
        let mut page = Page::default();
        let start = Bound::Excluded(after.unwrap_or_default());
        for (name, object) in self.live.range::<str, _>((start, Bound::Unbounded)) {
            let Some(below) = name.strip_prefix(prefix) else {
                continue;
            };
            let folder = delimiter.and_then(|d| below.find(d).map(|at| &name[..prefix.len() + at + d.len()]));
            if folder.is_some_and(|f| page.folders.contains(f) || after.is_some_and(|a| a.starts_with(f))) {
                continue;
            }
            if page.objects.len() + page.folders.len() == PAGE_KEYS {
                let last = page.objects.last().map(|(name, _)| name.clone());
                page.next = last.max(page.folders.last().map(|f| format!("{f}\u{10FFFF}")));
                break;
            }
            match folder {
                Some(folder) => {
                    page.folders.insert(folder.to_owned());
                }
                None => page.objects.push((name.clone(), object.clone())),
            }
        }
        page
    }
}
