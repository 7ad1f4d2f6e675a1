//! What the sender of a conflict is told.

use std::fmt::{self, Display, Formatter};

use koios_head::{Applied, ConflictValue, Head};
use koios_model::{describe_labels, is_stale};

/// The first conflict of a batch, in words; empty when it has none.
pub(crate) fn message(applied: &Applied, head: &Head) -> String {
    let Some(conflict) = applied.first_conflict else {
        return String::new();
    };
    let labels = head.labels(conflict.series).unwrap_or_default();
    format!(
        "duplicate sample for timestamp: series {} has {} at {} already, and {} came (in conflict: {} samples; one value is \
         kept for each time): have only one sender write a series",
        describe_labels(labels.as_ref().iter_bytes()),
        Shown(conflict.held),
        conflict.t,
        Shown(conflict.came),
        applied.conflicts,
    )
}

struct Shown(ConflictValue);

impl Display for Shown {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let v = match self.0 {
            ConflictValue::Histogram => return f.write_str("a native histogram"),
            ConflictValue::Float(bits) => f64::from_bits(bits),
        };
        if is_stale(v) {
            f.write_str("a stale marker")
        } else if v == 0.0 || (1e-6..1e21).contains(&v.abs()) {
            write!(f, "value {v}")
        } else {
            write!(f, "value {v:e}")
        }
    }
}

#[cfg(test)]
mod tests {
    use koios_head::HeadOptions;
    use koios_model::{BatchColumns, Histogram, Labels, SeriesHash, stale_nan};

    use super::*;

    #[test]
    fn i13_a_conflict_is_told_with_its_series_its_time_and_both_values() {
        let batch = |samples: &[(i64, Option<f64>)]| {
            let mut batch = BatchColumns::default();
            let labels = [("__name__", "f".to_owned()), ("pod", "x".repeat(10_000))];
            batch.push_series(SeriesHash(1), Labels::from_pairs(labels).as_ref());
            for (t, sample) in samples {
                match sample {
                    Some(v) => batch.push_sample(*t, *v),
                    None => batch.push_histogram(*t, Histogram::default()),
                }
            }
            batch
        };
        for (held, came, told) in [
            (
                Some(5.0),
                Some(1e300),
                "value 5 at 1700 already, and value 1e300 came",
            ),
            (
                Some(0.5),
                None,
                "value 0.5 at 1700 already, and a native histogram came",
            ),
            (
                None,
                Some(f64::NAN),
                "a native histogram at 1700 already, and value NaN came",
            ),
            (
                Some(-0.0),
                Some(stale_nan()),
                "value -0 at 1700 already, and a stale marker came",
            ),
        ] {
            let mut head = Head::new(HeadOptions::default());
            let first = head.apply(&batch(&[(1700, held)]), 0, 1);
            assert_eq!(message(&first, &head), "");
            let applied = head.apply(&batch(&[(1700, came)]), 0, 2);
            let message = message(&applied, &head);
            assert!(message.contains(told), "{message}");
            assert!(message.starts_with("duplicate sample for timestamp: series {__name__=\"f\", pod=\"xx"));
            assert!(message.contains("(in conflict: 1 samples;"), "{message}");
            assert!(message.len() < 400, "{message}");
        }
    }
}
