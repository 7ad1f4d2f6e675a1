//! `and`, `or`, `unless`.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use koios_model::Labels;

use super::absent;
use super::join::match_key;
use super::row::{Row, merge_equal_labels};
use crate::ast::{BinaryOp, VectorMatching};
use crate::error::QueryError;
use crate::memory::{LABELS_ENTRY_BYTES, of_labels};
use crate::work::Work;

/// `and`, `or`, `unless`.
pub(super) fn set_operation(
    op: BinaryOp,
    lhs: Vec<Row>,
    rhs: Vec<Row>,
    matching: &VectorMatching,
    steps: usize,
    work: &mut Work<'_>,
) -> Result<Vec<Row>, QueryError> {
    let rows = match op {
        BinaryOp::And => masked(lhs, &presence(&rhs, matching, steps, work)?, matching, true, work)?,
        BinaryOp::Unless => masked(
            lhs,
            &presence(&rhs, matching, steps, work)?,
            matching,
            false,
            work,
        )?,
        _ => {
            let present = presence(&lhs, matching, steps, work)?;
            let mut rows = lhs;
            rows.extend(masked(rhs, &present, matching, false, work)?);
            rows
        }
    };
    merge_equal_labels(rows, work)
}

/// Per key, the steps at which any series has something.
fn presence(
    rows: &[Row],
    matching: &VectorMatching,
    steps: usize,
    work: &mut Work<'_>,
) -> Result<HashMap<Labels, Vec<bool>>, QueryError> {
    let mut present: HashMap<Labels, Vec<bool>> = HashMap::new();
    for row in rows {
        work.spend(16)?;
        let key = match_key(&row.labels, matching);
        let flags = match present.entry(key) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let own = LABELS_ENTRY_BYTES + of_labels(entry.key());
                work.hold(own.saturating_add(steps))?;
                entry.insert(work.filled(&false, steps)?)
            }
        };
        work.each(flags, |i, flag| *flag |= row.has(i))?;
    }
    Ok(present)
}

/// The rows with only the steps at which their key is present, or is not.
fn masked(
    rows: Vec<Row>,
    present: &HashMap<Labels, Vec<bool>>,
    matching: &VectorMatching,
    wanted: bool,
    work: &mut Work<'_>,
) -> Result<Vec<Row>, QueryError> {
    super::instant::non_empty(rows.into_iter().map(|mut row| {
        work.spend(16)?;
        let flags = present.get(&match_key(&row.labels, matching));
        let at = |i: usize| flags.and_then(|f| f.get(i)).copied().unwrap_or(false) == wanted;
        work.each(&mut row.values, |i, v| {
            if !at(i) {
                *v = absent();
            }
        })?;
        work.each(&mut row.histograms, |i, h| {
            if !at(i) {
                *h = None;
            }
        })?;
        Ok(row)
    }))
}
