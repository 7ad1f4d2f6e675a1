//! The sealed chunks of a head: for each series a list of entries, which say where its chunks lie and when.

use bytes::Bytes;
use koios_model::TimeRange;

use crate::head::Head;
use crate::pages::{Group, Pages, Place};
use crate::series::CutTag;
use crate::slab::{Chained, NONE, Slab};

/// The chunks of one series: the last of its entries, from which the first is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChunkList {
    last: u32,
}

impl Default for ChunkList {
    fn default() -> Self {
        Self { last: NONE }
    }
}

impl ChunkList {
    /// Whether it has none.
    pub(crate) fn is_empty(self) -> bool {
        self.last == NONE
    }
}

/// A chunk, and the one after it in its list; after the last comes the first.
#[derive(Clone, Debug)]
struct Entry {
    min: i64,
    /// Milliseconds to the last sample; [`u32::MAX`] where it is as much or more.
    duration: u32,
    place: Place,
    next: u32,
}

impl Entry {
    fn new(range: TimeRange, place: Place) -> Self {
        let duration = range.max.wrapping_sub(range.min) as u64;
        Self {
            min: range.min,
            duration: u32::try_from(duration).unwrap_or(u32::MAX),
            place,
            next: NONE,
        }
    }

    fn range(&self) -> TimeRange {
        let max = match self.duration {
            u32::MAX => i64::MAX,
            duration => self.min.saturating_add(i64::from(duration)),
        };
        TimeRange::new(self.min, max)
    }
}

impl Chained for Entry {
    fn next(&self) -> u32 {
        self.next
    }

    fn set_next(&mut self, next: u32) {
        self.next = next;
    }
}

/// A chunk that is held: an encoded run of samples within one window.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sealed<'a> {
    chunks: &'a Chunks,
    entry: &'a Entry,
    id: u32,
}

impl<'a> Sealed<'a> {
    /// Where its samples lie; wider where they span weeks.
    pub(crate) fn range(&self) -> TimeRange {
        self.entry.range()
    }

    pub(crate) fn samples(&self) -> u32 {
        self.chunks.pages.samples(self.entry.place)
    }

    /// Its window, and the cut that took it.
    pub(crate) fn group(&self) -> Group {
        self.chunks.pages.group(self.entry.place)
    }

    pub(crate) fn cut(&self) -> CutTag {
        self.group().1
    }

    pub(crate) fn bytes(&self) -> &'a [u8] {
        self.chunks.pages.chunk(self.entry.place)
    }

    /// Its bytes, shared where its page is full.
    pub(crate) fn shared(&self) -> Bytes {
        self.chunks.pages.shared(self.entry.place)
    }

    /// What [`Chunks::remove`] takes it out by.
    pub(crate) fn id(&self) -> u32 {
        self.id
    }
}

/// An encoded run of samples within one window, to be held.
#[derive(Clone, Copy, Debug)]
pub(crate) struct New<'a> {
    /// Its window, and the cut that took it.
    pub(crate) group: Group,
    pub(crate) range: TimeRange,
    pub(crate) samples: u32,
    pub(crate) bytes: &'a [u8],
}

/// All of a head.
#[derive(Debug, Default)]
pub(crate) struct Chunks {
    pub(crate) pages: Pages,
    entries: Slab<Entry>,
}

impl Chunks {
    /// The chunks of a series by first time; those sealed from side buffers may overlap others.
    pub(crate) fn of(&self, list: ChunkList) -> impl Iterator<Item = Sealed<'_>> {
        let first = (list.last != NONE).then(|| self.entries.get(list.last).next);
        let ids = std::iter::successors(first, move |&id| {
            (id != list.last).then(|| self.entries.get(id).next)
        });
        ids.map(|id| Sealed {
            chunks: self,
            entry: self.entries.get(id),
            id,
        })
    }

    /// Adds a chunk in its place.
    pub(crate) fn insert(&mut self, list: &mut ChunkList, new: New<'_>) {
        let place = self.pages.push(new.group, new.samples, new.bytes);
        let id = self.entries.add(Entry::new(new.range, place));
        self.link(list, id);
    }

    fn link(&mut self, list: &mut ChunkList, id: u32) {
        let min = self.entries.get(id).min;
        if list.last == NONE {
            self.entries.get_mut(id).next = id;
            list.last = id;
            return;
        }
        let is_last = self.entries.get(list.last).min <= min;
        let mut before = list.last;
        if !is_last {
            // Ends at the latest before the last one, which is later.
            while self.entries.get(self.entries.get(before).next).min <= min {
                before = self.entries.get(before).next;
            }
        }
        let next = self.entries.get(before).next;
        self.entries.get_mut(id).next = next;
        self.entries.get_mut(before).next = id;
        if is_last {
            list.last = id;
        }
    }

    /// Removes a chunk of a series.
    pub(crate) fn remove(&mut self, list: &mut ChunkList, id: u32) {
        self.unlink(list, |_, at| at == id);
        self.pages.remove(self.entries.get(id).place);
        self.entries.release(id, id);
    }

    /// Takes the first entry that is looked for out of a list.
    fn unlink(&mut self, list: &mut ChunkList, is_it: impl Fn(&Self, u32) -> bool) -> Option<u32> {
        if list.last == NONE {
            return None;
        }
        let mut before = list.last;
        loop {
            let id = self.entries.get(before).next;
            if is_it(self, id) {
                let next = self.entries.get(id).next;
                self.entries.get_mut(before).next = next;
                if id == list.last {
                    list.last = if before == id { NONE } else { before };
                }
                return Some(id);
            }
            if id == list.last {
                return None;
            }
            before = id;
        }
    }

    /// Drops the entries of a series that lie in leaving pages.
    pub(crate) fn drop_leaving(&mut self, list: &mut ChunkList) {
        let is_leaving = |this: &Self, id| this.pages.is_leaving(this.entries.get(id).place);
        while let Some(id) = self.unlink(list, is_leaving) {
            self.entries.release(id, id);
        }
    }

    /// Moves the chunks of a series out of leaving pages.
    fn move_leaving(&mut self, list: ChunkList) {
        let mut next = list.last;
        while next != NONE {
            let (id, place) = (next, self.entries.get(next).place);
            if self.pages.is_leaving(place) {
                let (group, samples) = (self.pages.group(place), self.pages.samples(place));
                let bytes = self.pages.shared(place);
                self.entries.get_mut(id).place = self.pages.push(group, samples, &bytes);
                self.pages.remove(place);
            }
            next = self.entries.get(id).next;
            if next == list.last {
                return;
            }
        }
    }

    /// Memory held.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.pages.memory_bytes() + self.entries.memory_bytes()
    }
}

impl Head {
    /// The sealed chunks of a series that may have samples in a closed range, by first time.
    pub(crate) fn sealed(&self, index: u32, range: TimeRange) -> impl Iterator<Item = Sealed<'_>> {
        let list = self.series.cold.get(index as usize).map(|cold| cold.sealed);
        let sealed = self.chunks.of(list.unwrap_or_default());
        sealed.filter(move |s| s.range().overlaps(&range))
    }

    /// Adds a sealed chunk that a cut took, or none.
    pub(crate) fn insert_sealed(&mut self, index: u32, new: New<'_>) {
        let list = &mut self.series.cold[index as usize].sealed;
        self.chunks.insert(list, new);
    }

    /// Removes a sealed chunk of a series.
    pub(crate) fn remove_sealed(&mut self, index: u32, id: u32) {
        let list = &mut self.series.cold[index as usize].sealed;
        self.chunks.remove(list, id);
    }

    /// Moves chunks together when most of what their pages hold is gone, so that what is gone is never more than what is held,
    /// and a little. After chunks went by themselves.
    pub(crate) fn gather_chunks(&mut self) {
        if self.chunks.pages.leave_sparse() {
            for index in &self.index.all {
                self.chunks.move_leaving(self.series.cold[index as usize].sealed);
            }
        }
    }
}
