//! Listings, page by page: each has the time of a request of its own, and what fails costs one page.

use std::sync::Arc;

use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore};
use tokio::sync::Mutex;

use crate::retry::{Retry, unavailable};
use crate::{Error, Result};

/// Objects taken at a time, at most: as many as storages put on a page, or more.
const PAGE_MAX: usize = 1024;
/// How often a listing begins anew that cannot be gone on with because its storage does not sort.
const RESTARTS_MAX: u32 = 3;

type Pages = BoxStream<'static, Vec<object_store::Result<ObjectMeta>>>;

/// The objects under a folder, by name.
pub(crate) async fn list(store: &Arc<dyn ObjectStore>, folder: &Path, retry: &Retry) -> Result<Vec<Path>> {
    let listing = Mutex::new(Listing {
        store: Arc::clone(store),
        folder,
        pages: None,
        found: Vec::new(),
        is_ascending: true,
        restarts: 0,
    });
    loop {
        let page = || async { listing.lock().await.next().await };
        match retry.run(folder, page).await {
            Ok(true) => {}
            Ok(false) => break,
            Err(Error::NotFound { .. }) if listing.lock().await.found.is_empty() => return Ok(Vec::new()),
            Err(e) => return Err(e),
        }
        let restarts = listing.lock().await.restarts;
        if restarts > RESTARTS_MAX {
            return Err(unavailable(folder, restarts, None));
        }
    }
    let mut found = listing.into_inner().found;
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// The folders in a folder, page by page.
pub(crate) async fn folders(
    store: &dyn PaginatedListStore,
    folder: &Path,
    retry: &Retry,
) -> Result<Vec<Path>> {
    let within = (!folder.as_ref().is_empty()).then(|| format!("{folder}/"));
    let (mut found, mut token) = (Vec::new(), None);
    loop {
        let page = || {
            let options = PaginatedListOptions {
                delimiter: Some("/".into()),
                page_token: token.clone(),
                ..PaginatedListOptions::default()
            };
            store.list_paginated(within.as_deref(), options)
        };
        let page = match retry.run(folder, page).await {
            Ok(page) => page,
            Err(Error::NotFound { .. }) if found.is_empty() => return Ok(found),
            Err(e) => return Err(e),
        };
        found.extend(page.result.common_prefixes);
        token = page.page_token;
        if token.is_none() {
            return Ok(found);
        }
    }
}

/// The same of a store that has no pages, which is none that is far away.
pub(crate) async fn folders_at_once(
    store: &dyn ObjectStore,
    folder: &Path,
    retry: &Retry,
) -> Result<Vec<Path>> {
    match retry
        .run(folder, || store.list_with_delimiter(Some(folder)))
        .await
    {
        Ok(listed) => Ok(listed.common_prefixes),
        Err(Error::NotFound { .. }) => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

/// A listing on its way.
struct Listing<'a> {
    store: Arc<dyn ObjectStore>,
    folder: &'a Path,
    /// What is still to come; none before the first page and after a failure.
    pages: Option<Pages>,
    found: Vec<Path>,
    /// Whether the storage sorts: then what is still to come is what comes after the last one found.
    is_ascending: bool,
    restarts: u32,
}

impl Listing<'_> {
    /// Takes a page; false when there is none left.
    async fn next(&mut self) -> object_store::Result<bool> {
        // Not there again unless the page is whole: what failed, or was given up, is asked for anew.
        let mut pages = match self.pages.take() {
            Some(pages) => pages,
            None => self.open(),
        };
        let Some(page) = pages.next().await else {
            return Ok(false);
        };
        for object in page {
            let path = object?.location;
            self.is_ascending &= self.found.last().is_none_or(|last| *last < path);
            self.found.push(path);
        }
        self.pages = Some(pages);
        Ok(true)
    }

    fn open(&mut self) -> Pages {
        let objects = match self.found.last() {
            Some(last) if self.is_ascending => self.store.list_with_offset(Some(self.folder), last),
            Some(_) => {
                self.found.clear();
                self.is_ascending = true;
                self.restarts += 1;
                self.store.list(Some(self.folder))
            }
            None => self.store.list(Some(self.folder)),
        };
        objects.ready_chunks(PAGE_MAX).boxed()
    }
}
