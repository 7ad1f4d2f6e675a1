//! The bytes of sealed chunks. Those of one window that the same cut took, or none yet, lie one after the other in pages, which
//! go as a whole when the cut is forgotten: no chunk has an allocation of its own, nor leaves a hole.
//!
//! A page is appended to until it is full or a cut takes it. From then on its bytes are shared with whoever reads them, and a
//! reader who keeps one chunk keeps its page, [`PAGE_BYTES_MAX`] at the most unless one chunk is larger; what lies in a page that is
//! appended to is copied for readers.
//!
//! A chunk that goes by itself, as by a deletion, leaves its bytes in its page. When more than half of all bytes are of such
//! chunks, the others are moved out of the pages that have most of them (`crate::chunks`).

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::series::{CutTag, UNCUT};
use crate::varint;

/// Large enough that a head of many series has few, and little behind the last chunk of each.
pub(crate) const PAGE_BYTES_MAX: usize = 256 << 10;
/// The first pages of a window.
const PAGE_BYTES_MIN: usize = 512;
/// A page is as large as one in so many parts of what its window has already, so that little of it can be unused.
const PAGES_PER_WINDOW: usize = 8;
/// Bytes of chunks that are gone which are never worth the work. Less in tests, which hold little.
const GONE_BYTES_MIN: usize = if cfg!(test) { 1 << 10 } else { 64 << 10 };

/// Where a chunk lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    page: u32,
    offset: u32,
}

/// What the chunks of a page have in common: the start of their window, and the cut that took them.
pub(crate) type Group = (i64, CutTag);

#[derive(Debug)]
enum Content {
    Filling(Vec<u8>),
    Full(Bytes),
}

impl Content {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Filling(bytes) => bytes,
            Self::Full(bytes) => bytes,
        }
    }
}

#[derive(Debug)]
struct Page {
    group: Group,
    content: Content,
    capacity: usize,
    chunks: u32,
    /// Samples of its chunks.
    samples: u64,
    /// Bytes of chunks that are gone.
    gone: usize,
    /// All of it goes, or its chunks are to be moved.
    is_leaving: bool,
}

impl Page {
    /// What is in use of it.
    fn live(&self) -> usize {
        self.content.bytes().len() - self.gone
    }

    /// Ends appending to it.
    fn close(&mut self) {
        if let Content::Filling(bytes) = &mut self.content {
            let mut bytes = std::mem::take(bytes);
            if bytes.capacity() - bytes.len() > bytes.len() / PAGES_PER_WINDOW {
                bytes.shrink_to_fit();
            }
            self.capacity = bytes.capacity();
            self.content = Content::Full(Bytes::from(bytes));
        }
    }
}

/// The page of a group that is appended to.
#[derive(Debug)]
struct Filling {
    page: u32,
    /// Bytes of the pages of this group before.
    before: usize,
}

/// All pages of a head.
#[derive(Debug, Default)]
pub(crate) struct Pages {
    pages: Vec<Option<Page>>,
    free: Vec<u32>,
    filling: BTreeMap<Group, Filling>,
}

impl Pages {
    fn page(&self, id: u32) -> Option<&Page> {
        self.pages.get(id as usize)?.as_ref()
    }

    fn all(&self) -> impl Iterator<Item = &Page> {
        self.pages.iter().flatten()
    }

    fn all_mut(&mut self) -> impl Iterator<Item = &mut Page> {
        self.pages.iter_mut().flatten()
    }

    /// Adds a chunk.
    pub(crate) fn push(&mut self, group: Group, samples: u32, chunk: &[u8]) -> Place {
        let id = self.with_room(group, record_len(samples, chunk));
        let mut offset = 0;
        if let Some(Some(page)) = self.pages.get_mut(id as usize) {
            page.chunks += 1;
            page.samples += u64::from(samples);
            if let Content::Filling(bytes) = &mut page.content {
                offset = bytes.len() as u32;
                varint::push(bytes, samples);
                varint::push(bytes, chunk.len() as u32);
                bytes.extend_from_slice(chunk);
            }
        }
        Place { page: id, offset }
    }

    /// The page of a group that has room for so many bytes.
    fn with_room(&mut self, group: Group, wanted: usize) -> u32 {
        let mut before = 0;
        if let Some(filling) = self.filling.get(&group)
            && let Some(Some(page)) = self.pages.get_mut(filling.page as usize)
        {
            let used = page.content.bytes().len();
            if page.capacity - used >= wanted {
                return filling.page;
            }
            before = filling.before + used;
            page.close();
        }
        let size = (before / PAGES_PER_WINDOW).clamp(PAGE_BYTES_MIN, PAGE_BYTES_MAX);
        let bytes = Vec::with_capacity(size.max(wanted));
        let page = self.add(Page {
            group,
            capacity: bytes.capacity(),
            content: Content::Filling(bytes),
            chunks: 0,
            samples: 0,
            gone: 0,
            is_leaving: false,
        });
        self.filling.insert(group, Filling { page, before });
        page
    }

    fn add(&mut self, page: Page) -> u32 {
        let id = self.free.pop().unwrap_or_else(|| {
            self.pages.push(None);
            (self.pages.len() - 1) as u32
        });
        if let Some(place) = self.pages.get_mut(id as usize) {
            *place = Some(page);
        }
        id
    }

    /// The samples and the bytes of a chunk with what lies before it; nothing of a place that was none.
    fn record(&self, at: Place) -> Option<(u32, &[u8])> {
        let mut rest = self.page(at.page)?.content.bytes().get(at.offset as usize..)?;
        let samples = varint::take(&mut rest)?;
        let len = varint::take(&mut rest)?;
        Some((samples, rest.get(..len as usize)?))
    }

    /// How many samples a chunk has.
    pub(crate) fn samples(&self, at: Place) -> u32 {
        self.record(at).map_or(0, |(samples, _)| samples)
    }

    /// The bytes of a chunk; none of a place that was none, which no chunk has.
    pub(crate) fn chunk(&self, at: Place) -> &[u8] {
        self.record(at).map_or(&[], |(_, chunk)| chunk)
    }

    /// The same, to keep.
    pub(crate) fn shared(&self, at: Place) -> Bytes {
        let chunk = self.chunk(at);
        match self.page(at.page).map(|page| &page.content) {
            Some(Content::Full(bytes)) => bytes.slice_ref(chunk),
            _ => Bytes::copy_from_slice(chunk),
        }
    }

    /// What the chunk there has in common with others.
    pub(crate) fn group(&self, at: Place) -> Group {
        self.page(at.page).map_or((0, UNCUT), |page| page.group)
    }

    /// Whether the chunk there goes or is to be moved.
    pub(crate) fn is_leaving(&self, at: Place) -> bool {
        self.page(at.page).is_some_and(|page| page.is_leaving)
    }

    /// Gives a chunk up.
    pub(crate) fn remove(&mut self, at: Place) {
        let Some((samples, chunk)) = self.record(at) else {
            return;
        };
        let len = record_len(samples, chunk);
        let Some(Some(page)) = self.pages.get_mut(at.page as usize) else {
            return;
        };
        page.chunks = page.chunks.saturating_sub(1);
        page.samples = page.samples.saturating_sub(u64::from(samples));
        page.gone += len;
        if page.chunks == 0 {
            self.drop_empty(at.page);
        }
    }

    /// Adds a chunk anew and gives up the one that was.
    pub(crate) fn move_chunk(&mut self, at: Place) -> Place {
        let (group, samples, bytes) = (self.group(at), self.samples(at), self.shared(at));
        let moved = self.push(group, samples, &bytes);
        self.remove(at);
        moved
    }

    fn drop_empty(&mut self, id: u32) {
        let page = self.pages.get_mut(id as usize).and_then(Option::take);
        let Some(page) = page else { return };
        self.free.push(id);
        if self.filling.get(&page.group).is_some_and(|f| f.page == id) {
            self.filling.remove(&page.group);
        }
    }

    /// Gives the chunks of one group to another.
    pub(crate) fn regroup(&mut self, goes: impl Fn(Group) -> Option<Group>) {
        for page in self.all_mut() {
            if let Some(group) = goes(page.group) {
                page.group = group;
                page.close();
            }
        }
        self.filling.retain(|group, _| goes(*group).is_none());
    }

    /// Marks the chunks of cuts as leaving.
    pub(crate) fn leave(&mut self, cuts: &[CutTag]) {
        for page in self.all_mut() {
            page.is_leaving = cuts.binary_search(&page.group.1).is_ok();
        }
    }

    /// Drops what leaves; gives the samples.
    pub(crate) fn drop_leaving(&mut self) -> u64 {
        let mut samples = 0;
        for (id, place) in self.pages.iter_mut().enumerate() {
            if let Some(page) = place.take_if(|page| page.is_leaving) {
                samples += page.samples;
                self.free.push(id as u32);
            }
        }
        self.forget_filling(|place| place.is_some());
        if self.pages.iter().all(Option::is_none) {
            *self = Self::default();
        }
        samples
    }

    fn forget_filling(&mut self, is_filling: impl Fn(&Option<Page>) -> bool) {
        let pages = &self.pages;
        self.filling
            .retain(|_, filling| pages.get(filling.page as usize).is_some_and(&is_filling));
    }

    /// When most bytes are of chunks that are gone: marks the chunks of such pages as leaving. They are to be moved.
    pub(crate) fn leave_sparse(&mut self) -> bool {
        let gone: usize = self.all().map(|page| page.gone).sum();
        let live: usize = self.all().map(Page::live).sum();
        if gone <= live.max(GONE_BYTES_MIN) {
            return false;
        }
        for page in self.all_mut() {
            page.is_leaving = page.gone > page.live();
            if page.is_leaving {
                page.close();
            }
        }
        self.forget_filling(|place| place.as_ref().is_some_and(|page| !page.is_leaving));
        true
    }

    /// Memory held, with what chunks that are gone have left in it.
    pub(crate) fn memory_bytes(&self) -> usize {
        let pages: usize = self.all().map(|page| page.capacity).sum();
        pages + self.pages.capacity() * size_of::<Option<Page>>()
    }
}

/// Bytes that a chunk takes, with what lies before it.
fn record_len(samples: u32, chunk: &[u8]) -> usize {
    varint::len(samples) + varint::len(chunk.len() as u32) + chunk.len()
}
