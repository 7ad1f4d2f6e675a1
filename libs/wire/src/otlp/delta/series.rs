//! What a series of deltas has come to, and what each of its streams brought.

use std::time::Duration;

use super::Total;
use crate::otlp::PointFault;
use crate::otlp::point::millis;

/// Clocks are read twice, for the end of one interval and the start of the next.
const TOUCHING_NANOS: u64 = 1_000_000;
/// Maps are about half full.
const MAPS: usize = 2;
/// What a series occupies, beside a total that its streams remember, too.
pub(super) const SERIES_BYTES: usize = MAPS * (size_of::<u128>() + size_of::<Series>());
/// What a stream occupies beside what it remembers.
const STREAM_BYTES: usize = MAPS * (size_of::<(u128, u128)>() + size_of::<Stream>());

/// From when to when a delta was counted, nanoseconds since the Unix epoch; the start may be 0 for unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::otlp) struct Interval {
    pub(in crate::otlp) start: u64,
    pub(in crate::otlp) end: u64,
}

/// A total to be written.
#[derive(Clone, Debug)]
pub(in crate::otlp) struct Added {
    pub(in crate::otlp) total: Total,
    /// The time of the total, milliseconds: later than any before it of the series.
    pub(in crate::otlp) t_ms: i64,
    /// When it began, milliseconds; 0 when unknown.
    pub(in crate::otlp) start_ms: i64,
    /// When a zero must be written first, milliseconds: the total starts anew.
    pub(in crate::otlp) zero_ms: Option<i64>,
}

/// What a data point made of its series.
#[derive(Clone, Debug)]
pub(super) enum Made {
    Total(Added),
    /// A stale marker of this time, milliseconds.
    Marker(i64),
    /// Its stream has ended while others go on.
    Nothing,
}

/// A series, fed by one stream or by several whose labels are the same.
#[derive(Clone, Debug)]
pub(super) struct Series {
    /// None once all streams have ended.
    total: Option<Total>,
    /// When the total began; 0 when unknown.
    start_ms: i64,
    /// The latest time of what was made.
    last_ms: i64,
    /// Streams that have not ended, and all that are remembered.
    live: u32,
    streams: u32,
    /// Another one after each change of the tenant's totals.
    pub(super) version: u64,
}

impl Series {
    /// What becomes of a series when one of its streams brings a delta. A total that is not `monotonic` gets no zero.
    pub(super) fn with_delta(
        known: Option<&Self>,
        stream: Option<&Stream>,
        interval: Interval,
        (delta, monotonic): (&Total, bool),
    ) -> (Self, Made) {
        let (start_ms, end_ms) = (millis(interval.start), millis(interval.end));
        let mut series = Self::joined(known, stream);
        let sum = series
            .base(stream, interval.start)
            .and_then(|base| base.plus(delta));
        let mut zero_ms = None;
        (series.last_ms, series.start_ms) = match known {
            // Just after the start, as the last total may be stored at the start itself.
            None => {
                let zero = start_ms.saturating_add(1);
                zero_ms = (monotonic && interval.start != 0 && zero < end_ms).then_some(zero);
                (end_ms, start_ms)
            }
            Some(before) if sum.is_some() => (end_ms.max(before.last_ms.saturating_add(1)), before.start_ms),
            // Room for the zero is made: without, a delta that exceeds the last total would not be seen to begin anew.
            Some(before) => {
                let room = 1 + i64::from(monotonic);
                let t = end_ms.max(before.last_ms.saturating_add(room));
                let began = start_ms.max(before.last_ms);
                let zero = began.saturating_add(1).min(t.saturating_sub(1));
                zero_ms = monotonic.then_some(zero);
                (t, if monotonic { began.min(zero) } else { began })
            }
        };
        let total = sum.unwrap_or_else(|| delta.clone());
        series.live += u32::from(stream.is_none_or(|stream| stream.ended));
        series.total = Some(total.clone());
        let added = Added {
            total,
            t_ms: series.last_ms,
            start_ms: series.start_ms,
            zero_ms,
        };
        (series, Made::Total(added))
    }

    /// What the buckets of its total occupy.
    pub(super) fn total_bytes(&self) -> usize {
        self.total.as_ref().map_or(0, Total::bytes)
    }

    /// What becomes of a series when one of its streams ends.
    pub(super) fn with_end(known: Option<&Self>, stream: Option<&Stream>, end: u64) -> (Self, Made) {
        let end_ms = millis(end);
        let mut series = Self::joined(known, stream);
        if let Some(stream) = stream {
            series.leave(stream);
        }
        if series.live > 0 {
            return (series, Made::Nothing);
        }
        series.last_ms = match known {
            Some(before) => end_ms.max(before.last_ms.saturating_add(1)),
            None => end_ms,
        };
        let marker = Made::Marker(series.last_ms);
        (series, marker)
    }

    /// With the stream that something came of.
    fn joined(known: Option<&Self>, stream: Option<&Stream>) -> Self {
        let mut series = known.cloned().unwrap_or(Self {
            total: None,
            start_ms: 0,
            last_ms: 0,
            live: 0,
            streams: 0,
            version: 0,
        });
        series.streams += u32::from(stream.is_none());
        series
    }

    /// What a delta is added to; none where the total begins anew. Where other streams go on it never does.
    fn base(&self, stream: Option<&Stream>, start: u64) -> Option<Total> {
        let total = self.total.as_ref()?;
        let live = stream.filter(|stream| !stream.ended);
        let others = self.live > u32::from(live.is_some());
        match live {
            Some(stream) if stream.is_followed_by(start) => Some(total.clone()),
            _ if !others => None,
            Some(Stream { own: Some(own), .. }) => Some(total.minus(own)),
            _ => Some(total.clone()),
        }
    }

    /// Takes away what a stream that ends had part in.
    fn leave(&mut self, stream: &Stream) {
        if stream.ended {
            return;
        }
        self.live = self.live.saturating_sub(1);
        self.total = match (self.total.take(), &stream.own) {
            (Some(_), _) if self.live == 0 => None,
            (Some(total), Some(own)) => Some(total.minus(own)),
            (total, _) => total,
        };
    }

    /// Forgets a stream; tells whether it was the last.
    pub(super) fn forget(&mut self, stream: &Stream) -> bool {
        self.leave(stream);
        self.streams = self.streams.saturating_sub(1);
        self.streams == 0
    }
}

/// A stream of deltas: those of one metric with the same attributes, scope and resource.
#[derive(Debug, Default)]
pub(super) struct Stream {
    /// End of its last interval.
    end: u64,
    /// When something last came of it.
    pub(super) touched: Duration,
    /// Its sender said so. What comes after that begins anew.
    pub(super) ended: bool,
    /// Its part of a total that is not monotonic, which goes when it ends.
    own: Option<Box<Total>>,
    /// What its last two requests made of their series, oldest first.
    history: Vec<Remembered>,
}

/// Where a stream was before something came of it.
#[derive(Debug)]
pub(super) struct Mark {
    end: u64,
    ended: bool,
    own: Option<Box<Total>>,
}

#[derive(Debug)]
struct Remembered {
    interval: Interval,
    /// Tells deltas of the same interval apart.
    digest: u64,
    /// The request that brought it last.
    request: u64,
    made: Made,
}

impl Stream {
    /// What was made of the same when it came before.
    ///
    /// # Errors
    /// [`PointFault::DeltaChanged`], or [`PointFault::DeltaOrder`] for what is as old and was not seen, or is forgotten.
    pub(super) fn made_before(
        &mut self,
        interval: Interval,
        delta: Option<u64>,
        request: u64,
    ) -> Result<Option<(Made, bool)>, PointFault> {
        let ends = |made: &Made| !matches!(made, Made::Total(_));
        let before = self
            .history
            .iter_mut()
            .rev()
            .find(|before| before.interval == interval && ends(&before.made) == delta.is_none());
        if let Some(before) = before {
            if delta.is_some_and(|digest| digest != before.digest) {
                return Err(PointFault::DeltaChanged);
            }
            let is_of_another = std::mem::replace(&mut before.request, request) != request;
            return Ok(Some((before.made.clone(), is_of_another)));
        }
        // A stream may end when its last delta did.
        if interval.end < self.end || delta.is_some() && interval.end == self.end {
            return Err(PointFault::DeltaOrder);
        }
        Ok(None)
    }

    fn is_followed_by(&self, start: u64) -> bool {
        start == 0 || start.abs_diff(self.end) <= TOUCHING_NANOS
    }

    /// Notes what was made of a delta, or of the stream's end.
    pub(super) fn note(
        &mut self,
        interval: Interval,
        delta: Option<(&Total, bool)>,
        (made, request): (Made, u64),
    ) {
        let follows = !self.ended && self.is_followed_by(interval.start);
        self.own = match (delta, self.own.take()) {
            (Some((delta, false)), Some(own)) if follows => own.plus(delta).map(Box::new),
            (Some((delta, false)), _) => Some(Box::new(delta.clone())),
            (Some((_, true)) | None, _) => None,
        };
        self.ended = delta.is_none();
        self.end = interval.end;
        // Room for one, as there are many streams and what each remembers mostly stays as long as it is.
        self.history.reserve_exact(1);
        self.history.push(Remembered {
            interval,
            digest: delta.map_or(0, |(delta, _)| delta.digest()),
            request,
            made,
        });
    }

    /// Where it is.
    pub(super) fn mark(&self) -> Mark {
        Mark {
            end: self.end,
            ended: self.ended,
            own: self.own.clone(),
        }
    }

    /// Back to where it was before the last thing that came. Gives the bytes that this remembers no more.
    pub(super) fn back_to(&mut self, mark: Mark) -> usize {
        let last = self.history.pop();
        (self.end, self.ended, self.own) = (mark.end, mark.ended, mark.own);
        last.map_or(0, |last| bytes_remembered(&last.made))
    }

    /// What it occupies.
    pub(super) fn bytes(&self) -> usize {
        STREAM_BYTES + self.history_bytes()
    }

    /// What it will occupy when `made` is noted.
    pub(super) fn bytes_with(known: Option<&Self>, made: &Made) -> usize {
        known.map_or(STREAM_BYTES, Self::bytes) + bytes_remembered(made)
    }

    /// What it remembers occupies.
    pub(super) fn history_bytes(&self) -> usize {
        self.history.iter().map(|one| bytes_remembered(&one.made)).sum()
    }

    /// Forgets what neither this request nor the one before it brought.
    pub(super) fn forget_before(&mut self, request: u64) {
        let mut requests = self.history.iter().rev().map(|one| one.request);
        let last = requests.find(|other| *other != request);
        self.history
            .retain(|one| one.request == request || Some(one.request) == last);
        // A request that brought much of it is no reason to hold room for as much.
        if self.history.capacity() > 4 * (self.history.len() + 1) {
            self.history.shrink_to_fit();
        }
    }

    /// Forgets what it can do without: it can no longer tell what comes again.
    pub(super) fn forget_all(&mut self) {
        self.history = Vec::new();
    }
}

fn bytes_remembered(made: &Made) -> usize {
    size_of::<Remembered>()
        + match made {
            Made::Total(added) => added.total.bytes(),
            Made::Marker(_) | Made::Nothing => 0,
        }
}
