//! What a request changed of its tenant's totals, for as long as it may be refused.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::Totals;
use super::series::{Mark, SERIES_BYTES, Series};

/// Bytes of totals that a request may replace more than once, to be taken back one by one: beside what came before the request they are in
/// no account of the tenant's.
pub(in crate::otlp) const REPLACED_BYTES_MAX: usize = 32 << 20;

/// What a data point changed.
#[derive(Debug)]
pub(super) struct Change {
    /// Which of the request it is.
    pub(super) point: u32,
    pub(super) key: (u128, u128),
    /// That of the series, after it.
    pub(super) version: u64,
    /// What was there before.
    pub(super) series: Option<Series>,
    pub(super) stream: Option<Mark>,
}

/// What a request changed of its tenant's totals. Dropped before it is sent, it is taken back: none of it was stored. What
/// another request has added to since stays.
#[derive(Debug)]
pub struct Changes {
    totals: Arc<Mutex<Totals>>,
    all_bytes: Arc<AtomicUsize>,
    made: Vec<Change>,
    /// Of totals that the request made itself and replaced.
    replaced_bytes: usize,
    is_sent: bool,
}

impl Changes {
    pub(super) fn of(totals: &Arc<Mutex<Totals>>, all_bytes: &Arc<AtomicUsize>) -> Self {
        Self {
            totals: Arc::clone(totals),
            all_bytes: Arc::clone(all_bytes),
            made: Vec::new(),
            replaced_bytes: 0,
            is_sent: false,
        }
    }

    pub(super) fn note(&mut self, change: Change) {
        self.made.push(change);
    }

    /// Whether there is room to remember a series that is about to be changed. One that the request did not change before is
    /// what the tenant's history has, too.
    pub(super) fn has_room_for(&mut self, known: Option<&Series>) -> bool {
        let Some(known) = known else { return true };
        let is_own = self
            .made
            .first()
            .is_some_and(|first| known.version >= first.version);
        let own = if is_own { known.total_bytes() } else { 0 };
        let bytes = self.replaced_bytes.saturating_add(own);
        let has_room = bytes <= REPLACED_BYTES_MAX;
        if has_room {
            self.replaced_bytes = bytes;
        }
        has_room
    }

    /// Whether nothing was changed.
    pub fn is_empty(&self) -> bool {
        self.made.is_empty()
    }

    /// The data points of the request, counted from 0, that changed something.
    pub fn points(&self) -> impl Iterator<Item = u32> + '_ {
        self.made.iter().map(|change| change.point)
    }

    /// Bytes that it takes to take them back.
    pub fn bytes(&self) -> usize {
        self.made.capacity() * size_of::<Change>() + self.replaced_bytes
    }

    /// Takes back what these data points changed.
    pub fn take_back(&mut self, is_out: impl Fn(u32) -> bool) {
        if !self.points().any(&is_out) {
            return;
        }
        let mut totals = self.totals.lock();
        let mut stay = Vec::new();
        // The last one first: each is what the one before it left.
        while let Some(change) = self.made.pop() {
            match is_out(change.point) {
                true => totals.take_back(change, &self.all_bytes),
                false => stay.push(change),
            }
        }
        stay.reverse();
        self.made = stay;
    }

    /// From now on what is left of it may be stored, whatever becomes of the request.
    pub fn sent(&mut self) {
        self.is_sent = true;
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        if !self.is_sent {
            self.take_back(|_| true);
        }
    }
}

impl Totals {
    fn take_back(&mut self, change: Change, all_bytes: &AtomicUsize) {
        let Change {
            key,
            version,
            series,
            stream,
            ..
        } = change;
        let now = self.series.get(&key.0);
        if now.is_none_or(|now| now.version != version) {
            return;
        }
        let mut freed = 0;
        match series {
            Some(before) => drop(self.series.insert(key.0, before)),
            None => {
                self.series.remove(&key.0);
                freed += SERIES_BYTES;
            }
        }
        match stream {
            Some(before) => freed += self.streams.get_mut(&key).map_or(0, |now| now.back_to(before)),
            None => freed += self.streams.remove(&key).map_or(0, |now| now.bytes()),
        }
        let freed = freed.min(self.bytes);
        self.bytes -= freed;
        all_bytes.fetch_sub(freed, Ordering::Relaxed);
    }
}
