//! Deltas, added up to what is kept: totals since a start.
//!
//! State is this process' own, by tenant and series. A sender whose deltas of a series go to several processes gets several
//! totals that contradict each other, so it should stick to one; what a process has forgotten, or never saw, starts anew.
//! A delta that begins where its stream's last one ended is added. One that was seen already, because its request failed and
//! came again, makes the same samples again: what the last two requests of a stream brought is remembered whole. Any other
//! later one starts a new total, which a zero just after its start makes visible as a reset; an earlier one cannot be added
//! to what is stored already, and is refused.
//!
//! Streams that differ in what is no label (mostly their scope) feed one series: their deltas are added to one total, which
//! gets a sample of its own for each, a millisecond apart where the times are the same. That total does not start anew while
//! others feed it.
//!
//! What a request adds is certain once it is sent on. Of data points that are refused before that, all of them or some, it is
//! taken back ([`Changes`]).
//!
//! Bounded: all state together, and half of that for a tenant; beyond it new series are refused. A stream that nothing came
//! of in [`FORGOTTEN_AFTER`] is forgotten. **Source**: the rules for intervals are OpenTelemetry's data model,
//! "Sums: Delta-to-Cumulative".

mod changes;
mod series;
mod total;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use koios_model::TenantId;
use parking_lot::Mutex;

use self::changes::Change;
pub use self::changes::Changes;
pub(super) use self::changes::REPLACED_BYTES_MAX;
pub(super) use self::series::{Added, Interval};
use self::series::{Made, SERIES_BYTES, Series, Stream};
pub(super) use self::total::Total;
use super::PointFault;

/// How long a stream is remembered after its last delta.
pub const FORGOTTEN_AFTER: Duration = Duration::from_secs(3600);
/// The same for one that has ended: as long as its last request may come again.
const ENDED_FORGOTTEN_AFTER: Duration = Duration::from_secs(600);
/// Bytes of all state of a process.
pub(super) const BYTES_MAX: usize = 128 << 20;
/// How often what is to be forgotten is looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// The totals of all tenants.
#[derive(Debug)]
pub struct Deltas {
    tenants: Mutex<Tenants>,
    bytes: Arc<AtomicUsize>,
    bytes_max: usize,
    requests: AtomicU64,
}

#[derive(Debug, Default)]
struct Tenants {
    totals: BTreeMap<TenantId, Arc<Mutex<Totals>>>,
    swept: Duration,
}

/// The totals of one tenant, by the hash of the series, and what feeds them, by that and the hash of the stream.
#[derive(Debug, Default)]
struct Totals {
    series: HashMap<u128, Series>,
    streams: HashMap<(u128, u128), Stream>,
    bytes: usize,
    /// The newest version of a series.
    version: u64,
}

/// One request's view of its tenant's totals.
#[derive(Debug)]
pub struct TenantDeltas {
    totals: Arc<Mutex<Totals>>,
    all_bytes: Arc<AtomicUsize>,
    bytes_max: usize,
    request: u64,
    now: Duration,
    changes: Mutex<Changes>,
}

/// Where a delta belongs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) series: u128,
    pub(super) stream: u128,
    /// Whether the total only grows.
    pub(super) monotonic: bool,
    /// Which data point of the request it is.
    pub(super) point: u32,
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
            requests: AtomicU64::new(0),
        }
    }

    #[cfg(test)]
    pub(super) fn held_bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// A tenant's totals for a request, at the monotonic time `now`; forgets what is to be forgotten.
    pub fn of(&self, tenant: &TenantId, now: Duration) -> TenantDeltas {
        let mut tenants = self.tenants.lock();
        if now.saturating_sub(tenants.swept) >= SWEEP_EVERY {
            tenants.swept = now;
            tenants.totals.retain(|_, totals| {
                // Whoever has it locked works on it right now.
                let is_left = totals
                    .try_lock()
                    .is_none_or(|mut totals| totals.forget(now, &self.bytes));
                is_left || Arc::strong_count(totals) > 1
            });
        }
        let totals = Arc::clone(tenants.totals.entry(tenant.clone()).or_default());
        let changes = Changes::of(&totals, &self.bytes);
        TenantDeltas {
            totals,
            changes: Mutex::new(changes),
            all_bytes: Arc::clone(&self.bytes),
            bytes_max: self.bytes_max,
            request: self.requests.fetch_add(1, Ordering::Relaxed),
            now,
        }
    }
}

impl Totals {
    /// Whether anything is left.
    fn forget(&mut self, now: Duration, all_bytes: &AtomicUsize) -> bool {
        let Self {
            series: all,
            streams,
            bytes,
            version,
        } = self;
        let before = *bytes;
        streams.retain(|(series, _), stream| {
            let after = match stream.ended {
                true => ENDED_FORGOTTEN_AFTER,
                false => FORGOTTEN_AFTER,
            };
            let stays = now.saturating_sub(stream.touched) < after;
            if !stays {
                *bytes = bytes.saturating_sub(stream.bytes());
                if let Some(of) = all.get_mut(series) {
                    *version += 1;
                    of.version = *version;
                    if of.forget(stream) {
                        all.remove(series);
                        *bytes = bytes.saturating_sub(SERIES_BYTES);
                    }
                }
            }
            stays
        });
        all_bytes.fetch_sub(before - *bytes, Ordering::Relaxed);
        !streams.is_empty()
    }
}

impl TenantDeltas {
    /// What the request has changed.
    pub fn into_changes(self) -> Changes {
        self.changes.into_inner()
    }

    /// Adds a delta to its series. The total's time is no later than `latest_ms`.
    pub(super) fn add(
        &self,
        place: Place,
        interval: Interval,
        delta: &Total,
        latest_ms: i64,
    ) -> Result<Added, PointFault> {
        if interval.end == 0 || interval.start > interval.end {
            return Err(PointFault::DeltaInterval);
        }
        match self.take(place, interval, Some(delta), latest_ms)? {
            Made::Total(added) => Ok(added),
            Made::Marker(_) | Made::Nothing => Err(PointFault::DeltaOrder),
        }
    }

    /// Ends a stream whose sender says so. Gives the time of the series' stale marker, unless other streams feed it.
    pub(super) fn end(
        &self,
        place: Place,
        interval: Interval,
        latest_ms: i64,
    ) -> Result<Option<i64>, PointFault> {
        match self.take(place, interval, None, latest_ms) {
            Ok(Made::Marker(t_ms)) => Ok(Some(t_ms)),
            Ok(Made::Total(_) | Made::Nothing) => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    /// Takes a delta, or a stream's end.
    fn take(
        &self,
        place: Place,
        interval: Interval,
        delta: Option<&Total>,
        latest_ms: i64,
    ) -> Result<Made, PointFault> {
        let mut totals = self.totals.lock();
        let Totals {
            series: all,
            streams,
            bytes,
            version,
        } = &mut *totals;
        let key = (place.series, place.stream);
        let mut stream = streams.get_mut(&key);
        if let Some(stream) = &mut stream
            && let Some((made, is_of_another)) =
                stream.made_before(interval, delta.map(Total::digest), self.request)?
        {
            stream.touched = self.now;
            if is_of_another && let Some(series) = all.get_mut(&place.series) {
                // It may be stored by this request: the other one, should it be refused yet, takes nothing back.
                *version += 1;
                series.version = *version;
            }
            return Ok(made);
        }
        let known = all.get(&place.series);
        let delta = delta.map(|delta| (delta, place.monotonic));
        let (mut series, made) = match delta {
            Some(delta) => Series::with_delta(known, stream.as_deref(), interval, delta),
            None => Series::with_end(known, stream.as_deref(), interval.end),
        };
        let t_ms = match &made {
            Made::Total(added) => added.t_ms,
            Made::Marker(t_ms) => *t_ms,
            Made::Nothing => latest_ms,
        };
        if t_ms > latest_ms {
            return Err(PointFault::DeltaCrowded);
        }
        let new_series = if known.is_none() { SERIES_BYTES } else { 0 };
        let stream_before = stream.as_deref().map(Stream::mark);
        // What ends keeps its total.
        if delta.is_some() && !self.changes.lock().has_room_for(known) {
            return Err(PointFault::DeltasReplaced);
        }
        self.make_room(bytes, new_series, stream, &made)?;
        *version += 1;
        series.version = *version;
        self.changes.lock().note(Change {
            point: place.point,
            key,
            version: *version,
            series: all.insert(place.series, series),
            stream: stream_before,
        });
        let stream = streams.entry(key).or_default();
        stream.touched = self.now;
        stream.note(interval, delta, (made.clone(), self.request));
        Ok(made)
    }

    /// Makes room for what a stream is to remember: better that it forgets the rest than that it is refused.
    fn make_room(
        &self,
        bytes: &mut usize,
        new_series: usize,
        stream: Option<&mut Stream>,
        made: &Made,
    ) -> Result<(), PointFault> {
        let Some(stream) = stream else {
            return match self.take_room(bytes, new_series + Stream::bytes_with(None, made)) {
                true => Ok(()),
                false => Err(PointFault::DeltaRoom),
            };
        };
        let before = stream.bytes();
        stream.forget_before(self.request);
        self.give_room(bytes, before - stream.bytes());
        let (held, more) = (
            stream.history_bytes(),
            Stream::bytes_with(Some(stream), made) - stream.bytes(),
        );
        if self.take_room(bytes, more) {
            return Ok(());
        }
        if more > held && !self.take_room(bytes, more - held) {
            return Err(PointFault::DeltaRoom);
        }
        self.give_room(bytes, held.saturating_sub(more));
        stream.forget_all();
        Ok(())
    }

    /// Counts `more` bytes of the tenant, if there is room for them.
    fn take_room(&self, bytes: &mut usize, more: usize) -> bool {
        let own = bytes.saturating_add(more);
        let all = self.all_bytes.load(Ordering::Relaxed).saturating_add(more);
        if own > self.bytes_max / 2 || all > self.bytes_max {
            return false;
        }
        *bytes = own;
        self.all_bytes.fetch_add(more, Ordering::Relaxed);
        true
    }

    fn give_room(&self, bytes: &mut usize, less: usize) {
        let less = less.min(*bytes);
        *bytes -= less;
        self.all_bytes.fetch_sub(less, Ordering::Relaxed);
    }
}

#[cfg(test)]
#[path = "delta/delta_test.rs"]
mod tests;
