//! Deltas, added up to what is kept: totals since a start.
//!
//! State is this process' own, by tenant and series. A sender whose deltas of a series go to several processes gets several
//! totals that contradict each other, so it should stick to one; what a process has forgotten, or never saw, starts anew.
//! A delta that begins where the last one ended is added. One that was seen already, because its request failed and came
//! again, gives the same total again. Any other later one starts a new total, which a zero just after its start makes
//! visible as a reset; an earlier one cannot be added to what is stored already, and is refused.
//!
//! Bounded: all state together, and half of that for a tenant; beyond it new series are refused. A series that nothing came
//! for in [`FORGOTTEN_AFTER`] is forgotten. **Source**: the rules for intervals are OpenTelemetry's data model,
//! "Sums: Delta-to-Cumulative".

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use koios_model::TenantId;
use parking_lot::Mutex;

use super::PointFault;
use super::native::indexed;
use super::point::{BUCKETS_MAX, Explicit, Exponential, Number, Side, millis};

/// How long a series is remembered after its last delta.
pub const FORGOTTEN_AFTER: Duration = Duration::from_secs(3600);
/// Bytes of all state of a process.
const BYTES_MAX: usize = 128 << 20;
/// How often what is to be forgotten is looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// What a series occupies beside its buckets.
const SERIES_BYTES: usize = 256;
/// Clocks are read twice, for the end of one interval and the start of the next.
const TOUCHING_NANOS: u64 = 1_000_000;

/// The totals of all tenants.
#[derive(Debug)]
pub struct Deltas {
    tenants: Mutex<Tenants>,
    bytes: Arc<AtomicUsize>,
    bytes_max: usize,
}

#[derive(Debug, Default)]
struct Tenants {
    totals: BTreeMap<TenantId, Arc<Mutex<Totals>>>,
    swept: Duration,
}

/// The totals of one tenant, by the hash of the series.
#[derive(Debug, Default)]
struct Totals {
    series: HashMap<u128, Series>,
    bytes: usize,
}

#[derive(Debug)]
struct Series {
    /// Start of the total, and of what was added last; end of that. Nanoseconds since the Unix epoch.
    began: u64,
    /// Where its zero is, milliseconds.
    zero_ms: Option<i64>,
    last_start: u64,
    end: u64,
    touched: Duration,
    total: Total,
}

/// What was added up.
#[derive(Clone, Debug)]
pub(super) enum Total {
    /// Whole numbers and others apart, so that the former stay exact.
    Number(i64, f64),
    Explicit(Explicit),
    Exponential(Exponential),
}

/// One request's view of its tenant's totals.
#[derive(Debug)]
pub struct TenantDeltas {
    totals: Arc<Mutex<Totals>>,
    all_bytes: Arc<AtomicUsize>,
    bytes_max: usize,
    now: Duration,
}

/// From when to when a delta was counted, nanoseconds since the Unix epoch; the start may be 0 for unknown.
#[derive(Clone, Copy, Debug)]
pub(super) struct Interval {
    pub(super) start: u64,
    pub(super) end: u64,
}

/// What a delta makes of its series.
#[derive(Debug)]
pub(super) struct Added {
    pub(super) total: Total,
    /// When a zero must be written first, milliseconds: the total starts anew.
    pub(super) zero_ms: Option<i64>,
}

impl Default for Deltas {
    fn default() -> Self {
        Self::within(BYTES_MAX)
    }
}

impl Deltas {
    fn within(bytes_max: usize) -> Self {
        Self {
            tenants: Mutex::default(),
            bytes: Arc::default(),
            bytes_max,
        }
    }

    /// A tenant's totals at the monotonic time `now`; forgets what is to be forgotten.
    pub fn of(&self, tenant: &TenantId, now: Duration) -> TenantDeltas {
        let mut tenants = self.tenants.lock();
        if now.saturating_sub(tenants.swept) >= SWEEP_EVERY {
            tenants.swept = now;
            tenants.totals.retain(|_, totals| {
                // Whoever holds it elsewhere works on it right now.
                Arc::strong_count(totals) > 1 || totals.lock().forget(now, &self.bytes)
            });
        }
        let totals = Arc::clone(tenants.totals.entry(tenant.clone()).or_default());
        TenantDeltas {
            totals,
            all_bytes: Arc::clone(&self.bytes),
            bytes_max: self.bytes_max,
            now,
        }
    }
}

impl Totals {
    /// Whether anything is left.
    fn forget(&mut self, now: Duration, all_bytes: &AtomicUsize) -> bool {
        let before = self.bytes;
        let bytes = &mut self.bytes;
        self.series.retain(|_, series| {
            let stays = now.saturating_sub(series.touched) < FORGOTTEN_AFTER;
            if !stays {
                *bytes = bytes.saturating_sub(series.total.bytes());
            }
            stays
        });
        all_bytes.fetch_sub(before - self.bytes, Ordering::Relaxed);
        !self.series.is_empty()
    }
}

impl TenantDeltas {
    /// Adds a delta to its series.
    pub(super) fn add(&self, series: u128, interval: Interval, delta: Total) -> Result<Added, PointFault> {
        let Interval { start, end } = interval;
        if end == 0 || start > end {
            return Err(PointFault::DeltaInterval);
        }
        let mut totals = self.totals.lock();
        let Totals { series: all, bytes } = &mut *totals;
        let Some(known) = all.get_mut(&series) else {
            self.take_room(bytes, delta.bytes())?;
            all.insert(series, Series::new(interval, self.now, delta.clone()));
            let zero_ms = zero_after(start, end);
            return Ok(Added {
                total: delta,
                zero_ms,
            });
        };
        if end == known.end && start == known.last_start {
            // It came again.
            known.touched = self.now;
            let zero_ms = (known.began == start).then_some(known.zero_ms).flatten();
            let total = known.total.clone();
            return Ok(Added { total, zero_ms });
        }
        if end <= known.end {
            return Err(PointFault::DeltaOrder);
        }
        let follows = start == 0 || start.abs_diff(known.end) <= TOUCHING_NANOS;
        let sum = follows.then(|| known.total.plus(&delta)).flatten();
        let restarts = sum.is_none();
        let total = sum.unwrap_or(delta);
        let (before, after) = (known.total.bytes(), total.bytes());
        self.take_room(bytes, after.saturating_sub(before))?;
        self.give_room(bytes, before.saturating_sub(after));
        let zero_ms = match restarts {
            true => zero_after(start.max(known.end), end),
            false => None,
        };
        if restarts {
            (known.began, known.zero_ms) = (start, zero_ms);
        }
        (known.last_start, known.end, known.touched) = (start, end, self.now);
        known.total = total.clone();
        Ok(Added { total, zero_ms })
    }

    /// Forgets a series whose sender says that it has ended.
    pub(super) fn end(&self, series: u128) {
        let mut totals = self.totals.lock();
        let Totals { series: all, bytes } = &mut *totals;
        if let Some(ended) = all.remove(&series) {
            self.give_room(bytes, ended.total.bytes());
        }
    }

    /// Counts `more` bytes of the tenant, if there is room for them.
    fn take_room(&self, bytes: &mut usize, more: usize) -> Result<(), PointFault> {
        let own = bytes.saturating_add(more);
        let all = self.all_bytes.load(Ordering::Relaxed).saturating_add(more);
        if more > 0 && (own > self.bytes_max / 2 || all > self.bytes_max) {
            return Err(PointFault::DeltaRoom);
        }
        *bytes = own;
        self.all_bytes.fetch_add(more, Ordering::Relaxed);
        Ok(())
    }

    fn give_room(&self, bytes: &mut usize, less: usize) {
        let less = less.min(*bytes);
        *bytes -= less;
        self.all_bytes.fetch_sub(less, Ordering::Relaxed);
    }
}

impl Series {
    fn new(interval: Interval, now: Duration, total: Total) -> Self {
        Self {
            began: interval.start,
            zero_ms: zero_after(interval.start, interval.end),
            last_start: interval.start,
            end: interval.end,
            touched: now,
            total,
        }
    }
}

/// Just after a start, as the last total may be stored at the start itself; none where there is no room before the end.
fn zero_after(start: u64, end: u64) -> Option<i64> {
    let zero = millis(start).saturating_add(1);
    (start != 0 && zero < millis(end)).then_some(zero)
}

impl From<Number> for Total {
    fn from(number: Number) -> Self {
        match number {
            Number::Int(n) => Self::Number(n, 0.0),
            Number::Double(v) => Self::Number(0, v),
        }
    }
}

impl Total {
    fn bytes(&self) -> usize {
        let of = |counts: &Vec<u64>| counts.len() * size_of::<u64>();
        SERIES_BYTES
            + match self {
                Self::Number(..) => 0,
                Self::Explicit(e) => of(&e.counts) + e.bounds.len() * size_of::<f64>(),
                Self::Exponential(e) => of(&e.positive.counts) + of(&e.negative.counts),
            }
    }

    /// The same with nothing in it.
    pub(super) fn zero(&self) -> Self {
        match self {
            Self::Number(..) => Self::Number(0, 0.0),
            Self::Explicit(e) => Self::Explicit(Explicit {
                count: 0,
                sum: e.sum.map(|_| 0.0),
                counts: vec![0; e.counts.len()],
                bounds: e.bounds.clone(),
            }),
            Self::Exponential(e) => Self::Exponential(Exponential {
                sum: e.sum.map(|_| 0.0),
                scale: e.scale,
                ..Exponential::default()
            }),
        }
    }

    /// The sum with what has the same form.
    fn plus(&self, delta: &Self) -> Option<Self> {
        let mut sum = self.clone();
        sum.add(delta).then_some(sum)
    }

    /// Adds what has the same form; tells whether it does.
    fn add(&mut self, delta: &Self) -> bool {
        match (self, delta) {
            (Self::Number(n, v), Self::Number(more_n, more_v)) => {
                match n.checked_add(*more_n) {
                    Some(sum) => *n = sum,
                    None => *v += *more_n as f64,
                }
                *v += *more_v;
                true
            }
            (Self::Explicit(total), Self::Explicit(delta)) => total.add(delta),
            (Self::Exponential(total), Self::Exponential(delta)) => total.add(delta),
            _ => false,
        }
    }
}

/// Unknown if either is.
fn add_sums(total: Option<f64>, delta: Option<f64>) -> Option<f64> {
    total.zip(delta).map(|(total, delta)| total + delta)
}

impl Explicit {
    fn add(&mut self, delta: &Self) -> bool {
        let bits = |bounds: &[f64]| -> Vec<u64> { bounds.iter().map(|b| b.to_bits()).collect() };
        if self.counts.len() != delta.counts.len() || bits(&self.bounds) != bits(&delta.bounds) {
            return false;
        }
        self.count = self.count.saturating_add(delta.count);
        self.sum = add_sums(self.sum, delta.sum);
        for (count, more) in self.counts.iter_mut().zip(&delta.counts) {
            *count = count.saturating_add(*more);
        }
        true
    }
}

impl Exponential {
    /// The total gets as coarse as the coarser of the two, and as its number of buckets demands.
    fn add(&mut self, delta: &Self) -> bool {
        let mut scale = self.scale.min(delta.scale);
        let (positive, negative) = loop {
            let sides = (
                united(
                    (&self.positive, self.scale),
                    (&delta.positive, delta.scale),
                    scale,
                ),
                united(
                    (&self.negative, self.scale),
                    (&delta.negative, delta.scale),
                    scale,
                ),
            );
            match sides {
                (Some(positive), Some(negative)) => break (positive, negative),
                _ => match scale.checked_sub(1) {
                    Some(coarser) => scale = coarser,
                    None => return false,
                },
            }
        };
        self.scale = scale;
        (self.positive, self.negative) = (positive, negative);
        self.count = self.count.saturating_add(delta.count);
        self.zero_count = self.zero_count.saturating_add(delta.zero_count);
        self.sum = add_sums(self.sum, delta.sum);
        true
    }
}

/// The buckets of both at a scale that is no finer than theirs; none if these are too many.
fn united(a: (&Side, i32), b: (&Side, i32), scale: i32) -> Option<Side> {
    let at_scale = |(side, from): (&Side, i32)| -> Vec<(i64, u64)> {
        indexed(side, from.saturating_sub(scale)).collect()
    };
    let (a, b) = (at_scale(a), at_scale(b));
    let all = || a.iter().chain(&b);
    let Some(first) = all().map(|(index, _)| *index).min() else {
        return Some(Side::default());
    };
    let last = all().map(|(index, _)| *index).max().unwrap_or(first);
    let width = usize::try_from(last - first).ok()?.checked_add(1)?;
    if width > BUCKETS_MAX {
        return None;
    }
    let mut counts = vec![0u64; width];
    for (index, count) in all() {
        let at = usize::try_from(index - first).ok()?;
        let slot = counts.get_mut(at)?;
        *slot = slot.saturating_add(*count);
    }
    let offset = i32::try_from(first).ok()?;
    Some(Side { offset, counts })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn of(deltas: &Deltas, seconds: u64) -> TenantDeltas {
        deltas.of(&TenantId::anonymous(), Duration::from_secs(seconds))
    }

    fn add(tenant: &TenantDeltas, start: u64, end: u64, n: i64) -> Result<(i64, Option<i64>), PointFault> {
        let interval = Interval {
            start: start * SECOND,
            end: end * SECOND,
        };
        let added = tenant.add(7, interval, Total::Number(n, 0.0))?;
        let Total::Number(n, _) = added.total else {
            panic!("{added:?}")
        };
        Ok((n, added.zero_ms))
    }

    #[test]
    fn what_follows_is_added() {
        let deltas = Deltas::default();
        let tenant = of(&deltas, 0);
        assert_eq!(add(&tenant, 10, 20, 5), Ok((5, Some(10_001))));
        assert_eq!(add(&tenant, 20, 30, 2), Ok((7, None)));
        assert_eq!(add(&tenant, 0, 40, 1), Ok((8, None)), "an unknown start follows");
        let other = deltas.of(&TenantId::new("other").unwrap(), Duration::ZERO);
        assert_eq!(add(&other, 40, 50, 1), Ok((1, Some(40_001))));
    }

    #[test]
    fn i2_a_delta_that_comes_again_is_not_added_again() {
        let deltas = Deltas::default();
        let tenant = of(&deltas, 0);
        for _ in 0..3 {
            assert_eq!(add(&tenant, 10, 20, 5), Ok((5, Some(10_001))));
        }
        for _ in 0..3 {
            assert_eq!(add(&tenant, 20, 30, 2), Ok((7, None)));
        }
        assert_eq!(add(&tenant, 10, 20, 5), Err(PointFault::DeltaOrder));
        assert_eq!(add(&tenant, 25, 30, 5), Err(PointFault::DeltaOrder));
        assert_eq!(add(&tenant, 31, 30, 5), Err(PointFault::DeltaInterval));
        assert_eq!(add(&tenant, 30, 31, 1), Ok((8, None)));
    }

    #[test]
    fn what_does_not_follow_starts_anew_with_a_zero() {
        let deltas = Deltas::default();
        let tenant = of(&deltas, 0);
        assert_eq!(add(&tenant, 10, 20, 5), Ok((5, Some(10_001))));
        assert_eq!(add(&tenant, 25, 30, 7), Ok((7, Some(25_001))), "a gap");
        assert_eq!(add(&tenant, 28, 40, 1), Ok((1, Some(30_001))), "an overlap");
        assert_eq!(add(&tenant, 28, 40, 1), Ok((1, Some(30_001))), "it came again");
    }

    #[test]
    fn what_is_quiet_is_forgotten_and_ended_series_at_once() {
        let deltas = Deltas::default();
        add(&of(&deltas, 0), 10, 20, 5).unwrap();
        assert_eq!(add(&of(&deltas, 3_599), 20, 30, 1), Ok((6, None)));
        assert_eq!(add(&of(&deltas, 2 * 3_600), 30, 40, 1), Ok((1, Some(30_001))));
        let tenant = of(&deltas, 2 * 3_600);
        tenant.end(7);
        assert_eq!(deltas.bytes.load(Ordering::Relaxed), 0);
        assert_eq!(add(&tenant, 40, 50, 1), Ok((1, Some(40_001))));
        drop(tenant);
        drop(deltas.of(&TenantId::new("other").unwrap(), Duration::from_secs(4 * 3_600)));
        assert_eq!(deltas.bytes.load(Ordering::Relaxed), 0);
        assert_eq!(deltas.tenants.lock().totals.len(), 1);
    }

    #[test]
    fn i6_a_tenant_gets_half_of_the_room() {
        let deltas = Deltas::within(20 * SERIES_BYTES);
        let interval = Interval { start: 0, end: 1 };
        let fill = |tenant: &str| {
            let tenant = deltas.of(&TenantId::new(tenant).unwrap(), Duration::ZERO);
            let fits = |series: &u128| tenant.add(*series, interval, Total::Number(1, 0.0)).is_ok();
            (0..100).filter(fits).count()
        };
        assert_eq!((fill("a"), fill("b"), fill("c")), (10, 10, 0));
    }

    #[test]
    fn i12_a_total_that_grows_beyond_the_room_is_refused_and_kept() {
        let deltas = Deltas::within(20 * SERIES_BYTES);
        let tenant = of(&deltas, 0);
        let add = |end: u64, offset: i32| {
            let interval = Interval { start: 0, end };
            let added = tenant.add(7, interval, Total::Exponential(exponential(0, offset, &[1])))?;
            let Total::Exponential(total) = added.total else {
                panic!()
            };
            Ok(total.count)
        };
        assert_eq!(add(1, 0), Ok(1));
        assert_eq!(add(2, 4_000), Err(PointFault::DeltaRoom));
        assert_eq!(add(2, 5), Ok(2));
    }

    fn exponential(scale: i32, offset: i32, counts: &[u64]) -> Exponential {
        Exponential {
            count: counts.iter().sum(),
            sum: Some(1.0),
            scale,
            positive: Side {
                offset,
                counts: counts.to_vec(),
            },
            ..Exponential::default()
        }
    }

    #[test]
    fn exponential_buckets_meet_at_the_coarser_scale() {
        let mut total = exponential(1, -1, &[1, 2, 3, 4]);
        assert!(total.add(&exponential(0, 4, &[5])));
        assert_eq!((total.scale, total.count, total.sum), (0, 15, Some(2.0)));
        assert_eq!(
            (total.positive.offset, total.positive.counts),
            (-1, vec![1, 5, 4, 0, 0, 5])
        );
        let mut far = exponential(0, 0, &[1]);
        assert!(far.add(&exponential(0, i32::MAX, &[1])));
        assert!(far.positive.counts.len() <= BUCKETS_MAX);
        assert_eq!(far.positive.counts.iter().sum::<u64>(), 2);
    }

    #[test]
    fn other_bounds_start_anew() {
        let explicit = |bounds: &[f64]| {
            Total::Explicit(Explicit {
                count: 3,
                sum: Some(2.0),
                counts: vec![1, 2],
                bounds: bounds.to_vec(),
            })
        };
        let mut total = explicit(&[1.0]);
        assert!(total.add(&explicit(&[1.0])));
        let Total::Explicit(sum) = &total else { panic!() };
        assert_eq!(
            (sum.count, sum.sum, sum.counts.as_slice()),
            (6, Some(4.0), &[2, 4][..])
        );
        assert!(!total.add(&explicit(&[2.0])));
        assert!(!total.add(&Total::Number(1, 1.0)));
    }

    proptest! {
        #[test]
        fn no_observation_is_lost_when_buckets_are_united(
            parts in proptest::collection::vec((-4i32..20, -2000i32..2000, proptest::collection::vec(0u64..9, 0..30)), 1..6)
        ) {
            let mut parts = parts.iter().map(|(scale, offset, counts)| exponential(*scale, *offset, counts));
            let mut total = parts.next().unwrap();
            let mut wanted = total.count;
            for part in parts {
                wanted += part.count;
                prop_assert!(total.add(&part));
            }
            prop_assert_eq!(total.count, wanted);
            prop_assert_eq!(total.positive.counts.iter().sum::<u64>(), wanted);
        }
    }
}
