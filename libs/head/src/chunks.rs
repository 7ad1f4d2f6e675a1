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

/// Fewer free entries are not worth giving back.
const FREE_MIN: usize = 4096;

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
    /// Entries in lists.
    live: usize,
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
        let id = self.add(new);
        self.link(list, id);
    }

    /// Adds a chunk that is in no list before [`Self::link`].
    pub(crate) fn add(&mut self, new: New<'_>) -> u32 {
        let place = self.pages.push(new.group, new.samples, new.bytes);
        self.live += 1;
        self.entries.add(Entry::new(new.range, place))
    }

    pub(crate) fn link(&mut self, list: &mut ChunkList, id: u32) {
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
        self.unlink(list, id);
        self.pages.remove(self.entries.get(id).place);
        self.release(id);
    }

    /// Takes an entry out of its list.
    fn unlink(&mut self, list: &mut ChunkList, id: u32) {
        let mut before = list.last;
        while self.entries.get(before).next != id {
            before = self.entries.get(before).next;
        }
        let next = self.entries.get(id).next;
        self.entries.get_mut(before).next = next;
        if id == list.last {
            list.last = if before == id { NONE } else { before };
        }
    }

    /// Drops the entries of a series that lie in leaving pages.
    pub(crate) fn drop_leaving(&mut self, list: &mut ChunkList) {
        if list.is_empty() {
            return;
        }
        let (mut before, end) = (list.last, list.last);
        let mut id = self.entries.get(end).next;
        loop {
            let Entry { next, place, .. } = *self.entries.get(id);
            if self.pages.is_leaving(place) {
                self.entries.get_mut(before).next = next;
                if id == end {
                    list.last = if before == end { NONE } else { before };
                }
                self.release(id);
            } else {
                before = id;
            }
            if id == end {
                return;
            }
            id = next;
        }
    }

    fn release(&mut self, id: u32) {
        self.entries.release(id, id);
        self.live -= 1;
    }

    /// Whether most entries are free, and some memory is to be had for them.
    pub(crate) fn is_sparse(&self) -> bool {
        self.entries.places() > (2 * self.live).max(FREE_MIN)
    }

    /// Moves chunks together when most of what their pages hold is gone, given all lists there are.
    pub(crate) fn gather(&mut self, lists: impl Iterator<Item = ChunkList>) {
        if self.pages.leave_sparse() {
            lists.for_each(|list| self.move_leaving(list));
        }
    }

    /// Moves the chunks of a series out of leaving pages.
    fn move_leaving(&mut self, list: ChunkList) {
        let mut next = list.last;
        while next != NONE {
            let (id, place) = (next, self.entries.get(next).place);
            if self.pages.is_leaving(place) {
                self.entries.get_mut(id).place = self.pages.move_chunk(place);
            }
            next = self.entries.get(id).next;
            if next == list.last {
                return;
            }
        }
    }

    /// Gives back the memory of entries that are free, given all lists there are.
    pub(crate) fn shrink<'a>(&mut self, lists: impl Iterator<Item = &'a mut ChunkList>) {
        let mut entries = Slab::default();
        for list in lists.filter(|list| !list.is_empty()) {
            let first = self.entries.get(list.last).next;
            let (first, last) = self.entries.copy_chain(first, list.last, &mut entries);
            entries.get_mut(last).next = first;
            list.last = last;
        }
        self.entries = entries;
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
        let cold = &self.series.cold;
        let lists = self.index.all.iter().map(|index| cold[index as usize].sealed);
        self.chunks.gather(lists);
    }
}

#[cfg(test)]
mod tests {
    use koios_model::{BatchColumns, Labels, Matchers, SeriesHash};
    use proptest::prelude::*;

    use super::*;
    use crate::HeadOptions;
    use crate::series::UNCUT;

    #[derive(Clone, Debug)]
    enum Step {
        Insert(usize, i64, usize),
        Remove(usize, usize),
        Cut(i64),
        Abandon(CutTag),
        Forget(CutTag),
        Gather,
        Shrink,
    }

    const WINDOW_MS: i64 = 25;

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => (0..4usize, 0i64..100, 1..3000usize).prop_map(|(of, t, len)| Step::Insert(of, t, len)),
            3 => (0..4usize, 0..20usize).prop_map(|(of, at)| Step::Remove(of, at)),
            1 => (0i64..4).prop_map(|w| Step::Cut(w * WINDOW_MS)),
            1 => (1u32..10).prop_map(Step::Abandon),
            1 => (1u32..10).prop_map(Step::Forget),
            1 => Just(Step::Gather),
            1 => Just(Step::Shrink),
        ]
    }

    /// First time, window, cut, samples and bytes.
    type Known = (i64, Group, u32, Vec<u8>);

    fn held(chunks: &Chunks, list: ChunkList) -> Vec<Known> {
        let all = chunks.of(list);
        all.map(|s| {
            assert_eq!(s.shared(), s.bytes());
            (s.range().min, s.group(), s.samples(), s.bytes().to_vec())
        })
        .collect()
    }

    fn new(t: i64, samples: u32, bytes: &[u8]) -> New<'_> {
        New {
            group: (t - t % WINDOW_MS, UNCUT),
            range: TimeRange::new(t, t),
            samples,
            bytes,
        }
    }

    proptest! {
        #[test]
        fn lists_hold_what_a_plain_list_would(steps in prop::collection::vec(step(), 1..150)) {
            let (mut chunks, mut lists) = (Chunks::default(), [ChunkList::default(); 4]);
            let mut wanted: [Vec<Known>; 4] = Default::default();
            let (mut cuts, mut kept) = (0, Vec::new());
            for (n, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Insert(of, t, len) => {
                        let bytes = vec![n as u8; len];
                        chunks.insert(&mut lists[of], new(t, n as u32, &bytes));
                        let at = wanted[of].partition_point(|k| k.0 <= t);
                        wanted[of].insert(at, (t, new(t, 0, &[]).group, n as u32, bytes));
                    }
                    Step::Remove(of, at) => {
                        let found = chunks.of(lists[of]).nth(at).map(|s| (s.id(), s.shared()));
                        if let Some((id, bytes)) = found {
                            chunks.remove(&mut lists[of], id);
                            kept.push((bytes, wanted[of].remove(at).3));
                        }
                    }
                    Step::Cut(window) => {
                        cuts += 1;
                        let goes = |group| (group == (window, UNCUT)).then_some((window, cuts));
                        chunks.pages.regroup(goes);
                        for k in wanted.iter_mut().flatten() {
                            k.1 = goes(k.1).unwrap_or(k.1);
                        }
                    }
                    Step::Abandon(cut) => {
                        let goes = |(window, of): Group| (of == cut).then_some((window, UNCUT));
                        chunks.pages.regroup(goes);
                        for k in wanted.iter_mut().flatten() {
                            k.1 = goes(k.1).unwrap_or(k.1);
                        }
                    }
                    Step::Forget(cut) => {
                        chunks.pages.leave(&[cut]);
                        for list in &mut lists {
                            chunks.drop_leaving(list);
                        }
                        let goes = |k: &Known| k.1.1 == cut;
                        let samples = wanted.iter().flatten().filter(|k| goes(k)).map(|k| u64::from(k.2));
                        prop_assert_eq!(chunks.pages.drop_leaving(), samples.sum::<u64>());
                        wanted.iter_mut().for_each(|all| all.retain(|k| !goes(k)));
                    }
                    Step::Gather => chunks.gather(lists.into_iter()),
                    Step::Shrink => chunks.shrink(lists.iter_mut()),
                }
                for (list, wanted) in lists.iter().zip(&wanted) {
                    prop_assert_eq!(&held(&chunks, *list), wanted);
                }
            }
            // What readers kept is as it was.
            for (bytes, wanted) in kept {
                prop_assert_eq!(bytes, wanted);
            }
        }
    }

    /// Chunks of one window for some series.
    fn filled(series: usize, chunks_each: usize, len: usize) -> (Chunks, Vec<ChunkList>) {
        let (mut chunks, mut lists) = (Chunks::default(), vec![ChunkList::default(); series]);
        for t in 0..chunks_each {
            for list in &mut lists {
                chunks.insert(list, new(t as i64, 1, &vec![7; len]));
            }
        }
        (chunks, lists)
    }

    #[test]
    fn pages_are_as_small_as_what_is_in_them() {
        let (few, _) = filled(3, 2, 200);
        assert!(few.memory_bytes() < 3 * 1024, "{}", few.memory_bytes());
        let (many, _) = filled(4000, 2, 200);
        let most = 4000 * 2 * (200 + 24) * 8 / 7;
        assert!(many.memory_bytes() < most, "{} {most}", many.memory_bytes());
    }

    #[test]
    fn chunks_that_are_replaced_again_and_again_do_not_pile_up() {
        let (mut chunks, mut lists) = filled(500, 2, 1000);
        let full = chunks.memory_bytes();
        for round in 0..20 {
            for list in lists.iter_mut().skip(round % 2).step_by(2) {
                let id = chunks.of(*list).next().unwrap().id();
                chunks.remove(list, id);
                chunks.insert(list, new(0, 1, &[8; 1000]));
                chunks.gather(std::iter::empty());
            }
            chunks.gather(lists.iter().copied());
            assert!(
                chunks.memory_bytes() < full * 5 / 2,
                "{} {full}",
                chunks.memory_bytes()
            );
        }
        for list in &lists {
            assert_eq!(chunks.of(*list).count(), 2);
        }
    }

    #[test]
    fn i3_chunks_that_are_moved_keep_their_bytes() {
        let bytes = |series: usize, t: i64| vec![(series * 7 + t as usize * 31) as u8; 100 + series % 50];
        let (mut chunks, mut lists) = (Chunks::default(), vec![ChunkList::default(); 600]);
        for t in 0..8 {
            for (series, list) in lists.iter_mut().enumerate() {
                chunks.insert(list, new(t, 1, &bytes(series, t)));
            }
        }
        let full = chunks.memory_bytes();
        // One in eight stays, another one of each series.
        for (series, list) in lists.iter_mut().enumerate() {
            let stays = series as i64 % 8;
            let ids: Vec<(u32, i64)> = chunks.of(*list).map(|s| (s.id(), s.range().min)).collect();
            for (id, _) in ids.into_iter().filter(|(_, t)| *t != stays) {
                chunks.remove(list, id);
            }
        }
        chunks.gather(lists.iter().copied());
        chunks.pages.drop_leaving();
        assert!(chunks.pages.memory_bytes() < full / 4, "nothing was moved");
        for (series, list) in lists.iter().enumerate() {
            let t = series as i64 % 8;
            let held: Vec<_> = chunks
                .of(*list)
                .map(|s| (s.range().min, s.shared().to_vec()))
                .collect();
            assert_eq!(held, [(t, bytes(series, t))]);
        }
        assert!(chunks.is_sparse());
        chunks.shrink(lists.iter_mut());
        assert!(!chunks.is_sparse());
        for (series, list) in lists.iter().enumerate() {
            let t = series as i64 % 8;
            let held: Vec<_> = chunks.of(*list).map(|s| s.shared().to_vec()).collect();
            assert_eq!(held, [bytes(series, t)]);
        }
    }

    #[test]
    fn lists_of_many_chunks_let_go_of_what_leaves() {
        let mut chunks = Chunks::default();
        for leaving in [0..20, 0..1, 19..20, 0..19, 1..20, 5..9] {
            let mut list = ChunkList::default();
            for t in 0..20 {
                let group = (0, if leaving.contains(&t) { 1 } else { UNCUT });
                chunks.insert(
                    &mut list,
                    New {
                        group,
                        ..new(t, 1, &[t as u8])
                    },
                );
            }
            chunks.pages.leave(&[1]);
            chunks.drop_leaving(&mut list);
            chunks.pages.drop_leaving();
            let times: Vec<i64> = chunks.of(list).map(|s| s.range().min).collect();
            assert_eq!(
                times,
                (0..20).filter(|t| !leaving.contains(t)).collect::<Vec<_>>()
            );
            assert_eq!(list.is_empty(), leaving == (0..20));
        }
    }

    #[test]
    fn deletions_of_a_sample_at_a_time_do_not_pile_up() {
        let mut head = Head::new(HeadOptions::default());
        for t in 0..100i64 {
            let mut batch = BatchColumns::default();
            for i in 0..300u32 {
                let labels = Labels::from_pairs([("__name__", format!("m{i}"))]);
                batch.push_series(SeriesHash(u128::from(i) + 1), labels.as_ref());
                // Of full precision, which does not compress.
                batch.push_sample(t, (f64::from(i) + t as f64 * 0.731).sin());
            }
            head.apply(&batch, 0, 1);
        }
        head.delete(&Matchers::default(), TimeRange::new(0, 0));
        let full = head.memory().sealed;
        for t in 1..50 {
            head.delete(&Matchers::default(), TimeRange::new(t, t));
            assert!(
                head.memory().sealed < full * 5 / 2,
                "{} {full}",
                head.memory().sealed
            );
        }
        let mut samples = Vec::new();
        for id in head.select(&Matchers::default(), TimeRange::ALL) {
            head.samples(id, TimeRange::ALL, &mut samples).unwrap();
            assert!(samples.iter().map(|s| s.t).eq(50..100));
        }
    }

    #[test]
    fn a_forgotten_window_leaves_no_pages() {
        let (mut chunks, mut lists) = filled(500, 2, 1000);
        chunks.pages.regroup(|(window, _)| Some((window, 1)));
        chunks.pages.leave(&[1]);
        lists.iter_mut().for_each(|list| chunks.drop_leaving(list));
        assert_eq!(chunks.pages.drop_leaving(), 1000);
        assert_eq!(chunks.pages.memory_bytes(), 0);
        assert!(lists.iter().all(|list| list.is_empty()));
    }
}
