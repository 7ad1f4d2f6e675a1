//! Small things of one size in chains: they have no allocation each, and their memory is used again.

/// Items allocated at a time once there are that many, so that growing never copies.
const SEGMENT_ITEMS: usize = 4096;
/// Items that the first segment begins with: a head of few series needs few.
const FIRST_ITEMS: usize = 16;
/// The end of a chain.
pub(crate) const NONE: u32 = u32::MAX;

/// What knows the next of its chain.
pub(crate) trait Chained {
    fn next(&self) -> u32;
    fn set_next(&mut self, next: u32);
}

/// Items by a dense id.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    /// All are full but the last.
    segments: Vec<Vec<T>>,
    /// The chain of those that are free.
    free: u32,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self {
            segments: Vec::new(),
            free: NONE,
        }
    }
}

impl<T: Chained> Slab<T> {
    pub(crate) fn get(&self, id: u32) -> &T {
        &self.segments[id as usize / SEGMENT_ITEMS][id as usize % SEGMENT_ITEMS]
    }

    pub(crate) fn get_mut(&mut self, id: u32) -> &mut T {
        &mut self.segments[id as usize / SEGMENT_ITEMS][id as usize % SEGMENT_ITEMS]
    }

    /// Takes an item in.
    pub(crate) fn add(&mut self, item: T) -> u32 {
        if self.free == NONE {
            return self.push(item);
        }
        let id = self.free;
        let place = self.get_mut(id);
        let next = place.next();
        *place = item;
        self.free = next;
        id
    }

    fn push(&mut self, item: T) -> u32 {
        if self.segments.last().is_none_or(|s| s.len() == SEGMENT_ITEMS) {
            let room = if self.segments.is_empty() {
                FIRST_ITEMS
            } else {
                SEGMENT_ITEMS
            };
            self.segments.push(Vec::with_capacity(room));
        }
        let before = (self.segments.len() - 1) * SEGMENT_ITEMS;
        let segment = &mut self.segments[before / SEGMENT_ITEMS];
        segment.push(item);
        (before + segment.len() - 1) as u32
    }

    /// Frees a chain from its first item to its last.
    pub(crate) fn release(&mut self, first: u32, last: u32) {
        let free = self.free;
        self.get_mut(last).set_next(free);
        self.free = first;
    }

    /// Copies a chain into another slab; gives its first item there and its last.
    pub(crate) fn copy_chain(&self, first: u32, last: u32, to: &mut Self) -> (u32, u32)
    where
        T: Clone,
    {
        let copied = to.add(self.get(first).clone());
        let (mut from, mut end) = (first, copied);
        while from != last {
            from = self.get(from).next();
            let next = to.add(self.get(from).clone());
            to.get_mut(end).set_next(next);
            end = next;
        }
        (copied, end)
    }

    /// How many items there are, free ones included.
    pub(crate) fn places(&self) -> usize {
        self.segments.iter().map(Vec::len).sum()
    }

    /// Memory held, free items included.
    pub(crate) fn memory_bytes(&self) -> usize {
        let items: usize = self.segments.iter().map(Vec::capacity).sum();
        items * size_of::<T>()
    }
}
