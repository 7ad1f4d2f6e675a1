//! The sample times that a replica has covered.

use serde::{Deserialize, Serialize};

/// Sample times between which a replica brought samples with no gap longer than its failover timeout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// The first, milliseconds since the Unix epoch.
    pub from_ms: i64,
    /// The newest, milliseconds since the Unix epoch.
    pub newest_ms: i64,
}

impl Span {
    /// One instant.
    pub fn at(t_ms: i64) -> Self {
        Self {
            from_ms: t_ms,
            newest_ms: t_ms,
        }
    }

    /// With a further request, whose newest sample is at `t_ms`. After a gap it begins anew: what lies in the gap the
    /// replica may never bring. Older samples do not lengthen it, for others of their time may not have been taken.
    #[must_use]
    pub fn extended(self, t_ms: i64, gap_ms: i64) -> Self {
        if t_ms.saturating_sub(self.newest_ms) > gap_ms {
            return Self::at(t_ms);
        }
        Self {
            newest_ms: self.newest_ms.max(t_ms),
            ..self
        }
    }

    /// What of it lies after a time of which not everything was taken; none when nothing does.
    #[must_use]
    pub fn after(self, lost_ms: Option<i64>) -> Option<Self> {
        let Some(lost_ms) = lost_ms else { return Some(self) };
        let from_ms = self.from_ms.max(lost_ms.saturating_add(1));
        (from_ms <= self.newest_ms).then_some(Self { from_ms, ..self })
    }

    /// What two distributors saw together; the later one where there is a gap between.
    #[must_use]
    pub fn united(self, other: Self, gap_ms: i64) -> Self {
        let (earlier, later) = if self.newest_ms <= other.newest_ms {
            (self, other)
        } else {
            (other, self)
        };
        if later.from_ms.saturating_sub(earlier.newest_ms) > gap_ms {
            return later;
        }
        Self {
            from_ms: earlier.from_ms.min(later.from_ms),
            newest_ms: later.newest_ms,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn span(from_ms: i64, newest_ms: i64) -> Span {
        Span { from_ms, newest_ms }
    }

    #[test]
    fn a_gap_begins_anew() {
        assert_eq!(span(100, 200).extended(230, 30), span(100, 230));
        assert_eq!(span(100, 200).extended(231, 30), Span::at(231));
        assert_eq!(span(100, 200).extended(50, 30), span(100, 200));
        assert_eq!(span(100, 200).united(span(230, 300), 30), span(100, 300));
        assert_eq!(span(100, 200).united(span(231, 300), 30), span(231, 300));
    }

    #[test]
    fn what_was_lost_is_cut_off() {
        assert_eq!(span(100, 200).after(None), Some(span(100, 200)));
        assert_eq!(span(100, 200).after(Some(50)), Some(span(100, 200)));
        assert_eq!(span(100, 200).after(Some(150)), Some(span(151, 200)));
        assert_eq!(span(100, 200).after(Some(200)), None);
    }

    proptest! {
        #[test]
        fn uniting_is_the_same_both_ways_and_never_past_what_was_seen(
            a in 0_i64..1000, a_len in 0_i64..100, b in 0_i64..1000, b_len in 0_i64..100, gap in 0_i64..50,
        ) {
            let (a, b) = (span(a, a + a_len), span(b, b + b_len));
            let united = a.united(b, gap);
            prop_assert_eq!(united, b.united(a, gap));
            prop_assert_eq!(united.newest_ms, a.newest_ms.max(b.newest_ms));
            prop_assert!(united.from_ms == a.from_ms || united.from_ms == b.from_ms);
        }
    }
}
