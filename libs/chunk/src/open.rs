//! A run of samples that still grows: byte-packed, appended to with every sample.
//!
//! The first sample is sixteen bytes, little-endian: time, bits of the value. Every other one is a control byte, the
//! change of the time step when that is more than some milliseconds, and the value as the difference of decimal mantissas,
//! usually one or two bytes. The form lives in memory and in snapshots of it; what is stored or sent to another process is
//! encoded as a chunk.

use std::ops::Range;

use koios_model::TimeRange;

use crate::bits::{Cursor, unzigzag, zigzag};
use crate::decimal::{EXPONENT_MAX, exponent_for_run, from_mantissa, to_mantissa};
use crate::{Error, Starts};

/// The value has the bits of the one before.
const SAME: u8 = 0;
/// The difference of mantissas follows.
const DELTA: u8 = 1;
/// A larger exponent and the mantissa follow.
const RAISE: u8 = 2;
/// The eight bytes of the float follow.
const RAW: u8 = 3;
/// Bits of the control byte that tell which of these.
const KIND: u8 = 3;
/// Control bit: the time step is that of the sample before, or changes by more than [`NEAR_MAX`] can tell.
const SAME_STEP: u8 = 0x80;
/// Where in the control byte five bits tell a small change of the time step, which then is not the same; 0 for none.
const NEAR_SHIFT: u32 = 2;
/// The largest number in these bits.
const NEAR_MAX: u64 = 31;
/// The most bytes of an entry, and a little.
const ENTRY_BYTES: usize = 24;

/// What a writer must remember of the samples so far to append the next.
#[derive(Clone, Copy, Debug)]
pub struct OpenState {
    /// Time of the newest sample.
    pub t: i64,
    /// Its value.
    pub v: f64,
    /// The time step before it, as far as it fits.
    pub step: u32,
    /// The decimal exponent of the mantissas that follow.
    pub exponent: u8,
}

impl OpenState {
    /// Starts a run.
    pub fn first(t: i64, v: f64) -> (Self, OpenEntry) {
        let state = Self {
            t,
            v,
            step: 0,
            exponent: exponent_for_run(&[v]),
        };
        let entry = OpenEntry::new(|e| {
            e.extend(&t.to_le_bytes());
            e.extend(&v.to_bits().to_le_bytes());
        });
        (state, entry)
    }

    /// Adds a later sample.
    pub fn append(&mut self, t: i64, v: f64) -> OpenEntry {
        OpenEntry::new(|e| self.append_by(t, v, 2 * NEAR_MAX, e))
    }

    /// The same with the bytes written where they stay, as far as there is room. Gives how many they are: when they are more than
    /// there is room for, the sample must be added again to the state as it was, with more of it.
    pub fn append_to(&mut self, t: i64, v: f64, room: &mut [u8]) -> usize {
        let mut e = Entry { room, len: 0 };
        self.append_by(t, v, 2 * NEAR_MAX, &mut e);
        e.len
    }

    /// As [`Self::append`], in the form of chunks of histograms, whose control bytes tell no small changes.
    pub(crate) fn append_stored(&mut self, t: i64, v: f64) -> OpenEntry {
        OpenEntry::new(|e| self.append_by(t, v, 0, e))
    }

    /// Changes of up to `near_max`, as zigzag, are told by the control byte.
    fn append_by(&mut self, t: i64, v: f64, near_max: u64, e: &mut Entry<'_>) {
        e.push(0);
        let change = t.wrapping_sub(self.t).wrapping_sub(i64::from(self.step));
        let control = match zigzag(change) {
            0 => SAME_STEP,
            near if near <= near_max.min(NEAR_MAX) => (near as u8) << NEAR_SHIFT,
            near if near <= near_max => SAME_STEP | ((near - NEAR_MAX) as u8) << NEAR_SHIFT,
            _ => {
                e.zigzag(change);
                0
            }
        };
        let control = control | self.push_value(e, v);
        if let Some(first) = e.room.first_mut() {
            *first = control;
        }
        self.step = step_between(self.t, t);
        (self.t, self.v) = (t, v);
    }

    fn push_value(&mut self, e: &mut Entry<'_>, v: f64) -> u8 {
        if v.to_bits() == self.v.to_bits() {
            return SAME;
        }
        let before = to_mantissa(self.v, self.exponent);
        if let Some(m) = to_mantissa(v, self.exponent) {
            e.zigzag(m.wrapping_sub(before.unwrap_or(0)));
            return DELTA;
        }
        // After a float no larger exponent is tried: series of full precision would pay for the search every time.
        if before.is_some() && v.is_finite() {
            let higher = (self.exponent + 1..=EXPONENT_MAX).find_map(|e| to_mantissa(v, e).map(|m| (e, m)));
            if let Some((exponent, m)) = higher {
                self.exponent = exponent;
                e.push(exponent);
                e.zigzag(m);
                return RAISE;
            }
        }
        e.extend(&v.to_bits().to_le_bytes());
        RAW
    }
}

fn step_between(before: i64, t: i64) -> u32 {
    t.wrapping_sub(before).clamp(0, i64::from(u32::MAX)) as u32
}

/// The bytes that one more sample adds to an open run.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenEntry {
    bytes: [u8; ENTRY_BYTES],
    len: usize,
}

impl OpenEntry {
    /// The bytes, at most 24.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn new(write: impl FnOnce(&mut Entry<'_>)) -> Self {
        let mut new = Self::default();
        let mut entry = Entry {
            room: &mut new.bytes,
            len: 0,
        };
        write(&mut entry);
        new.len = entry.len;
        new
    }
}

/// An entry being written.
struct Entry<'a> {
    room: &'a mut [u8],
    /// Bytes of it, those included that found no room.
    len: usize,
}

impl Entry<'_> {
    fn push(&mut self, b: u8) {
        if let Some(place) = self.room.get_mut(self.len) {
            *place = b;
        }
        self.len += 1;
    }

    fn extend(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&b| self.push(b));
    }

    fn zigzag(&mut self, v: i64) {
        let mut v = zigzag(v);
        while v >= 0x80 {
            self.push((v as u8) | 0x80);
            v >>= 7;
        }
        self.push(v as u8);
    }
}

/// A copy of an open run, as it was at one time. Cheap to make and to keep: a few bytes per sample, decoded by whoever
/// wants the samples.
#[derive(Clone, Debug)]
pub struct OpenRun {
    bytes: Box<[u8]>,
    count: usize,
    range: TimeRange,
    starts: Starts,
}

impl OpenRun {
    /// Takes the bytes of all entries of a run, how many samples they are, and the times of the first and the last.
    pub fn new(bytes: Box<[u8]>, count: usize, range: TimeRange) -> Self {
        Self {
            bytes,
            count,
            range,
            starts: Starts::default(),
        }
    }

    /// Gives the samples start timestamps.
    #[must_use]
    pub fn with_starts(mut self, starts: Starts) -> Self {
        self.starts = starts;
        self
    }

    /// The start timestamps of its samples.
    pub fn starts(&self) -> &Starts {
        &self.starts
    }

    /// How many samples it holds.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Its first and last timestamp.
    pub fn time_range(&self) -> TimeRange {
        self.range
    }

    /// The bytes of its entries.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Appends the samples of a closed range, in strictly ascending time; both columns grow by the same count.
    ///
    /// # Errors
    /// [`Error::Malformed`] when memory is damaged; then nothing has been appended.
    pub fn decode_range(
        &self,
        range: TimeRange,
        timestamps: &mut Vec<i64>,
        values: &mut Vec<f64>,
    ) -> Result<(), Error> {
        if !range.overlaps(&self.range) || range.min > range.max {
            return Ok(());
        }
        let had = timestamps.len();
        decode_open(&self.bytes, self.count, timestamps, values)?;
        let all = timestamps.get(had..).unwrap_or_default();
        let Range { start: from, end: to } = range.places_in(all);
        timestamps.truncate(had + to);
        values.truncate(had + to);
        if from > 0 {
            timestamps.drain(had..had + from);
            values.drain(had..had + from);
        }
        Ok(())
    }
}

/// Appends all samples of an open run's entries. The columns must have the same length.
///
/// # Errors
/// [`Error::Malformed`] when the bytes are not `count` entries; then nothing has been appended.
pub fn decode_open(
    bytes: &[u8],
    count: usize,
    timestamps: &mut Vec<i64>,
    values: &mut Vec<f64>,
) -> Result<(), Error> {
    let had = timestamps.len();
    timestamps.reserve(count);
    values.reserve(count);
    let mut cursor = Cursor::new(bytes);
    if decode_entries(&mut cursor, count, timestamps, values).is_some() && cursor.at_end() {
        return Ok(());
    }
    timestamps.truncate(had);
    values.truncate(had);
    Err(Error::Malformed {
        len: bytes.len(),
        at: cursor.pos(),
        what: "the entries of an open run end early or go on too long",
    })
}

fn decode_entries(
    cursor: &mut Cursor<'_>,
    count: usize,
    timestamps: &mut Vec<i64>,
    values: &mut Vec<f64>,
) -> Option<()> {
    if count == 0 {
        return Some(());
    }
    let mut reader = EntryReader::first(cursor)?;
    timestamps.push(reader.t);
    values.push(reader.v);
    for _ in 1..count {
        reader.next(cursor)?;
        timestamps.push(reader.t);
        values.push(reader.v);
    }
    Some(())
}

/// Reads the entries of a run, one after the other.
pub(crate) struct EntryReader {
    /// Time of the newest sample read.
    pub(crate) t: i64,
    /// Its value.
    pub(crate) v: f64,
    step: u32,
    exponent: u8,
    /// The mantissa of `v`, once it is known: most entries follow one that told it.
    mantissa: Option<i64>,
}

impl EntryReader {
    /// Reads the first entry.
    pub(crate) fn first(cursor: &mut Cursor<'_>) -> Option<Self> {
        let t = i64::from_le_bytes(*cursor.take(8)?.first_chunk()?);
        let v = float(cursor)?;
        Some(Self {
            t,
            v,
            step: 0,
            exponent: exponent_for_run(&[v]),
            mantissa: None,
        })
    }

    /// Reads the next.
    #[inline]
    pub(crate) fn next(&mut self, cursor: &mut Cursor<'_>) -> Option<()> {
        let control = cursor.u8()?;
        let near = u64::from((control & !SAME_STEP) >> NEAR_SHIFT);
        let change = match (control & SAME_STEP != 0, near) {
            (true, 0) => 0,
            (false, 0) => cursor.zigzag()?,
            (false, near) => unzigzag(near),
            (true, near) => unzigzag(near + NEAR_MAX),
        };
        let next = self.t.wrapping_add(i64::from(self.step)).wrapping_add(change);
        match control & KIND {
            SAME => {}
            DELTA => {
                let before = self.mantissa.or_else(|| to_mantissa(self.v, self.exponent));
                let m = before.unwrap_or(0).wrapping_add(cursor.zigzag()?);
                self.v = from_mantissa(m, self.exponent);
                self.mantissa = Some(m);
            }
            RAISE => {
                self.exponent = cursor.u8()?;
                let m = cursor.zigzag()?;
                self.v = from_mantissa(m, self.exponent);
                self.mantissa = Some(m);
            }
            _ => {
                self.v = float(cursor)?;
                self.mantissa = None;
            }
        }
        self.step = step_between(self.t, next);
        self.t = next;
        Some(())
    }
}

pub(crate) fn float(cursor: &mut Cursor<'_>) -> Option<f64> {
    let bits = u64::from_le_bytes(*cursor.take(8)?.first_chunk()?);
    Some(f64::from_bits(bits))
}

#[cfg(test)]
mod tests {
    use koios_model::stale_nan;
    use proptest::prelude::*;

    use super::*;

    fn any_value() -> impl Strategy<Value = f64> {
        prop_oneof![
            any::<u64>().prop_map(f64::from_bits),
            (-100_000i64..100_000).prop_map(|m| m as f64 / 100.0),
            (0i64..1000).prop_map(|m| m as f64),
            Just(stale_nan()),
            Just(-0.0),
        ]
    }

    fn run(samples: &[(i64, f64)]) -> OpenRun {
        let mut bytes = Vec::new();
        let mut open: Option<OpenState> = None;
        for &(t, v) in samples {
            let entry = match &mut open {
                Some(state) => state.append(t, v),
                none => {
                    let (state, entry) = OpenState::first(t, v);
                    *none = Some(state);
                    entry
                }
            };
            bytes.extend_from_slice(entry.bytes());
        }
        let range = TimeRange::new(samples[0].0, samples[samples.len() - 1].0);
        OpenRun::new(bytes.into(), samples.len(), range)
    }

    #[test]
    fn a_few_milliseconds_off_the_schedule_take_no_byte() {
        let schedule = [0, 15_000, 30_003, 45_000, 59_997, 75_000, 90_003];
        let samples: Vec<(i64, f64)> = schedule.map(|t| (t, 1.0)).to_vec();
        // The first sample, and the first step.
        assert_eq!(run(&samples).bytes().len(), 16 + 4 + 5);
    }

    proptest! {
        #[test]
        fn open_samples_read_back_bit_for_bit(
            samples in proptest::collection::btree_map(prop_oneof![any::<i64>(), 0i64..100_000], any_value(), 1..100),
            min in 0i64..100_000, len in 0i64..100_000,
        ) {
            let samples: Vec<_> = samples.into_iter().collect();
            let open = run(&samples);
            for range in [TimeRange::ALL, TimeRange::new(min, min + len)] {
                let (mut ts, mut vs) = (vec![7], vec![7.0]);
                open.decode_range(range, &mut ts, &mut vs).unwrap();
                let got: Vec<_> = ts.iter().zip(&vs).skip(1).map(|(t, v)| (*t, v.to_bits())).collect();
                let wanted = samples.iter().filter(|(t, _)| range.contains(*t));
                prop_assert_eq!(got, wanted.map(|(t, v)| (*t, v.to_bits())).collect::<Vec<_>>());
            }
        }

        #[test]
        fn both_forms_read_back_and_the_stored_one_tells_no_small_changes(
            steps in proptest::collection::vec(prop_oneof![1i64..100, 14_980i64..15_020], 1..100),
        ) {
            let mut t = 0;
            let (mut state, first) = OpenState::first(t, 1.0);
            let mut stored = state;
            let (mut near, mut far) = (first.bytes().to_vec(), first.bytes().to_vec());
            let mut times = vec![t];
            for step in steps {
                t += step;
                times.push(t);
                near.extend_from_slice(state.append(t, 1.0).bytes());
                let entry = stored.append_stored(t, 1.0);
                prop_assert!(entry.bytes()[0] & !(KIND | SAME_STEP) == 0);
                far.extend_from_slice(entry.bytes());
            }
            for bytes in [near, far] {
                let (mut ts, mut vs) = (Vec::new(), Vec::new());
                decode_open(&bytes, times.len(), &mut ts, &mut vs).unwrap();
                prop_assert_eq!(&ts, &times);
            }
        }

        #[test]
        fn an_entry_written_in_place_has_the_same_bytes_and_none_beyond_its_room(
            samples in proptest::collection::btree_map(prop_oneof![any::<i64>(), 0i64..100_000], any_value(), 1..50),
            room in 0usize..30,
        ) {
            let mut samples = samples.into_iter();
            let (t, v) = samples.next().unwrap();
            let (mut state, _) = OpenState::first(t, v);
            for (t, v) in samples {
                let (mut small, mut bytes) = (state, [0xee; 30]);
                let entry = state.append(t, v);
                let written = entry.bytes();
                prop_assert_eq!(small.append_to(t, v, &mut bytes[..room]), written.len());
                let fits = written.len().min(room);
                prop_assert_eq!(&bytes[..fits], &written[..fits]);
                prop_assert!(bytes[fits..].iter().all(|b| *b == 0xee));
            }
        }

        #[test]
        fn i12_arbitrary_bytes_are_refused_or_give_as_many_samples(
            bytes in proptest::collection::vec(any::<u8>(), 0..200), count in 0usize..50,
        ) {
            let (mut ts, mut vs) = (Vec::new(), Vec::new());
            let all = match decode_open(&bytes, count, &mut ts, &mut vs) {
                Ok(()) => count,
                Err(_) => 0,
            };
            prop_assert_eq!((ts.len(), vs.len()), (all, all));
        }
    }
}
