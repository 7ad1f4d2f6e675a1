//! Start timestamps of a run of samples: when what a sample counts began.
//!
//! A counter keeps its start until it begins anew, so starts are kept as steps: from some time on, all samples of the run
//! have this one. They say nothing of samples that are not in the run.

use koios_model::TimeRange;

use crate::bits::{Cursor, write_varint, write_zigzag};

/// The start timestamps of a run, in milliseconds; 0 is none. Without any it takes no memory beside itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Starts {
    /// The time of the first sample that has a start, and the start; strictly ascending, no two neighbours alike.
    steps: Vec<(i64, i64)>,
}

impl Starts {
    /// Those of a run with samples at `times`, out of starts that are given with the times of their samples. Both ascend
    /// strictly.
    pub fn of(times: &[i64], starts: &[(i64, i64)]) -> Self {
        let (mut out, mut at) = (Self::default(), 0);
        if starts.is_empty() {
            return out;
        }
        for &t in times {
            while starts.get(at).is_some_and(|start| start.0 < t) {
                at += 1;
            }
            let start = starts.get(at).filter(|start| start.0 == t);
            out.push(t, start.map_or(0, |start| start.1));
        }
        out
    }

    /// Whether no sample has a start.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Appends the start of a sample later than all before.
    pub fn push(&mut self, t: i64, start: i64) {
        let newest = self.steps.last().map_or(0, |step| step.1);
        if newest != start {
            self.steps.push((t, start));
        }
    }

    /// Those of the part of the run inside a closed range.
    #[must_use]
    pub fn within(&self, range: TimeRange) -> Self {
        let mut out = Self::default();
        let first = self.steps.partition_point(|step| step.0 <= range.min);
        let before = first.checked_sub(1).and_then(|at| self.steps.get(at));
        out.push(range.min, before.map_or(0, |step| step.1));
        for &(t, start) in self.steps.iter().skip(first) {
            if t > range.max {
                break;
            }
            out.push(t, start);
        }
        out
    }

    /// Appends the starts of samples of the run, which ascend in time, each with the time of its sample.
    pub fn append_at(&self, times: &[i64], out: &mut Vec<(i64, i64)>) {
        let (mut steps, mut start) = (self.steps.iter().peekable(), 0);
        for &t in times {
            while let Some(step) = steps.next_if(|step| step.0 <= t) {
                start = step.1;
            }
            if start != 0 {
                out.push((t, start));
            }
        }
    }

    /// The time of the first sample of each start, and the start; times strictly ascend.
    pub fn steps(&self) -> &[(i64, i64)] {
        &self.steps
    }

    /// What it occupies on the heap.
    pub fn heap_bytes(&self) -> usize {
        self.steps.capacity() * size_of::<(i64, i64)>()
    }

    /// Writes the steps of a run whose first sample is at `first`, after their length.
    pub(crate) fn write(&self, first: i64, out: &mut Vec<u8>) {
        let mut section = Vec::with_capacity(self.steps.len() * 4 + 12);
        let (mut last_t, mut last) = (first, first);
        for &(t, start) in &self.steps {
            write_varint(&mut section, t.wrapping_sub(last_t) as u64);
            write_zigzag(&mut section, start.wrapping_sub(last));
            (last_t, last) = (t, start);
        }
        write_varint(out, section.len() as u64);
        out.extend_from_slice(&section);
    }

    /// Reads what [`Self::write`] wrote after the length, for so many samples, of which each begins one step at most; nothing
    /// when it is no such thing.
    pub(crate) fn read(section: &[u8], range: TimeRange, samples: usize) -> Option<Self> {
        let mut cursor = Cursor::new(section);
        let mut steps: Vec<(i64, i64)> = Vec::new();
        let (mut last_t, mut last) = (range.min, range.min);
        while !cursor.at_end() {
            let t = last_t.checked_add_unsigned(cursor.varint()?)?;
            let start = last.wrapping_add(cursor.zigzag()?);
            let before = steps.last();
            let follows = before.is_none_or(|before| before.0 < t);
            if !follows
                || steps.len() >= samples
                || t > range.max
                || before.map_or(0, |before| before.1) == start
            {
                return None;
            }
            steps.push((t, start));
            (last_t, last) = (t, start);
        }
        (!steps.is_empty()).then_some(Self { steps })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_starts() -> impl Strategy<Value = Vec<(i64, i64)>> {
        let start = prop_oneof![Just(0), Just(5), -3i64..9, any::<i64>()];
        proptest::collection::btree_map(-40i64..40, start, 1..60).prop_map(|map| map.into_iter().collect())
    }

    proptest! {
        #[test]
        fn each_sample_has_its_own_start(all in any_starts(), min in -45i64..45, len in 0i64..90) {
            let times: Vec<i64> = all.iter().map(|s| s.0).collect();
            let set: Vec<_> = all.into_iter().filter(|s| s.1 != 0).collect();
            let starts = Starts::of(&times, &set);
            prop_assert_eq!(starts.is_empty(), set.is_empty());
            let mut back = Vec::new();
            starts.append_at(&times, &mut back);
            prop_assert_eq!(&back, &set);
            let range = TimeRange::new(min, min + len);
            let inside: Vec<i64> = times.iter().copied().filter(|t| range.contains(*t)).collect();
            back.clear();
            starts.within(range).append_at(&inside, &mut back);
            let wanted: Vec<_> = set.iter().copied().filter(|s| range.contains(s.0)).collect();
            prop_assert_eq!(back, wanted);
        }

        #[test]
        fn steps_read_back(all in any_starts()) {
            let mut starts = Starts::default();
            all.iter().for_each(|&(t, start)| starts.push(t, start));
            let range = TimeRange::new(all[0].0, all[all.len() - 1].0);
            let mut bytes = Vec::new();
            starts.write(range.min, &mut bytes);
            let mut cursor = Cursor::new(&bytes);
            prop_assert_eq!(cursor.varint(), Some(bytes.len() as u64 - cursor.pos() as u64));
            let read = Starts::read(&bytes[cursor.pos()..], range, all.len());
            prop_assert_eq!(read, (!starts.is_empty()).then_some(starts));
        }

        #[test]
        fn i12_arbitrary_bytes_are_steps_or_nothing(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let range = TimeRange::new(-1000, 1000);
            if let Some(starts) = Starts::read(&bytes, range, 3) {
                prop_assert!(!starts.is_empty() && starts.steps.len() <= 3);
                prop_assert!(starts.steps.iter().all(|step| range.contains(step.0)));
            }
        }
    }

    #[test]
    fn a_counter_that_runs_on_takes_one_step() {
        let mut starts = Starts::default();
        (0..1000).for_each(|i| starts.push(1_700_000_000_000 + i * 15_000, 1_699_990_000_000));
        let mut bytes = Vec::new();
        starts.write(1_700_000_000_000, &mut bytes);
        assert!(bytes.len() <= 6, "{}", bytes.len());
    }
}
