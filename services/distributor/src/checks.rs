//! What single labels, times and exemplars must be.

use std::ops::Range;
use std::time::Duration;

use koios_model::{Labels, LabelsRef, is_utf8};
use koios_tenancy::Limits;
use koios_wire::remote_write::{RawLabel, RawSeries};

use crate::intake::{Rules, text};
use crate::left_out;
use crate::rejection::Rejection;

/// Label names that Koios gives meaning to itself.
const RESERVED_NAMES: [&str; 3] = ["__tenant__", "__tenant_id__", "__shard__"];
/// Times in milliseconds between 1973 and 5138; what lies outside is most likely in another unit.
pub(crate) const PLAUSIBLE_MS: Range<i64> = 100_000_000_000..100_000_000_000_000;
/// Most characters of all labels of an exemplar together, as in `OpenMetrics`.
const EXEMPLAR_CHARACTERS_MAX: usize = 128;
/// Longest labels, packed, of a series whose exemplars heads keep.
const EXEMPLAR_SERIES_LABELS_MAX: usize = 2 << 10;

/// What is wrong with a label's size, for which it is not read.
pub(crate) fn check_label_size((name, value): RawLabel<'_>, limits: &Limits) -> Result<(), Rejection> {
    if name.is_empty() {
        return Err(Rejection::EmptyName);
    }
    if name.len() > limits.max_label_name_bytes {
        return Err(Rejection::NameTooLong {
            actual: name.len(),
            limit: limits.max_label_name_bytes,
        });
    }
    if value.len() > limits.max_label_value_bytes {
        return Err(Rejection::ValueTooLong {
            name: text(name),
            actual: value.len(),
            limit: limits.max_label_value_bytes,
        });
    }
    Ok(())
}

/// What is wrong with what a label of a good size says.
pub(crate) fn check_label_text((name, value): RawLabel<'_>) -> Result<(), Rejection> {
    if !is_utf8(name) {
        return Err(Rejection::NameNotUtf8);
    }
    if !is_utf8(value) {
        return Err(Rejection::ValueNotUtf8 { name: text(name) });
    }
    if name.starts_with(b"__") && RESERVED_NAMES.iter().any(|r| r.as_bytes() == name) {
        return Err(Rejection::Reserved { name: text(name) });
    }
    Ok(())
}

/// What is wrong with a sample's time.
pub(crate) fn check_time(t: i64, rules: &Rules) -> Result<(), Rejection> {
    let ahead_ms = t.saturating_sub(rules.admission_ms);
    let millis = |d: Duration| i64::try_from(d.as_millis()).unwrap_or(i64::MAX);
    let (window, limit) = (
        rules.limits.out_of_order_time_window,
        rules.limits.too_far_in_future,
    );
    let too_old = ahead_ms < millis(window).saturating_neg();
    if !too_old && ahead_ms <= millis(limit) {
        return Ok(());
    }
    if PLAUSIBLE_MS.contains(&rules.admission_ms) && !PLAUSIBLE_MS.contains(&t) {
        return Err(Rejection::Implausible {
            timestamp: t,
            precision: None,
        });
    }
    let distance = Duration::from_millis(ahead_ms.unsigned_abs());
    Err(if too_old {
        Rejection::TooOld {
            timestamp: t,
            window,
            age: distance,
        }
    } else {
        Rejection::TooFarAhead {
            timestamp: t,
            limit,
            ahead: distance,
        }
    })
}

/// Whether heads keep exemplars of a series; `packed` are its labels unless they were left out.
pub(crate) fn keeps_exemplars(series: &RawSeries<'_, '_>, packed: LabelsRef<'_>) -> bool {
    let mut own = Vec::new();
    let bytes = match series.known {
        None => packed.packed().len(),
        Some(_) => {
            left_out::pack(series.encoded_labels.bytes, &mut own);
            own.len()
        }
    };
    bytes <= EXEMPLAR_SERIES_LABELS_MAX
}

/// The labels of an exemplar; none when it is not to be kept. Prometheus keeps as many characters.
pub(crate) fn exemplar_labels(raw: &[RawLabel<'_>]) -> Option<Labels> {
    // A character takes four bytes at most: what is longer is not read.
    let bytes: usize = raw.iter().map(|(name, value)| name.len() + value.len()).sum();
    if bytes > EXEMPLAR_CHARACTERS_MAX * 4 {
        return None;
    }
    let mut pairs = Vec::with_capacity(raw.len());
    let mut characters = 0;
    for (name, value) in raw {
        let (name, value) = (std::str::from_utf8(name).ok()?, std::str::from_utf8(value).ok()?);
        characters += name.chars().count() + value.chars().count();
        if name.is_empty() || characters > EXEMPLAR_CHARACTERS_MAX {
            return None;
        }
        pairs.push((name, value));
    }
    pairs.sort_unstable();
    let distinct = pairs.windows(2).all(|pair| pair[0].0 != pair[1].0);
    distinct.then(|| Labels::from_pairs(pairs))
}
