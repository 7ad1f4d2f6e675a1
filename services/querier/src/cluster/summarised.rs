//! Summaries of downsampled samples of a series, of all blocks that have some.

use koios_chunk::Run;
use koios_model::{Summary, TimeRange};

/// The summaries that overlap a range, ascending. Those of one time, of blocks that were made one after the other, become
/// one.
pub(super) fn united_summaries(runs: &[Run], range: TimeRange) -> Result<Vec<Summary>, koios_chunk::Error> {
    let mut all = Vec::new();
    for run in runs.iter().filter(|run| run.time_range().overlaps(&range)) {
        run.decode_summaries(range, &mut all)?;
    }
    if all.is_sorted_by(|a, b| a.last_t < b.first_t) {
        return Ok(all);
    }
    all.sort_by_key(|s| (s.first_t, s.last_t));
    let mut united: Vec<Summary> = Vec::with_capacity(all.len());
    for summary in all {
        match united.last_mut() {
            Some(last) if summary.first_t <= last.last_t => last.absorb(&summary),
            _ => united.push(summary),
        }
    }
    Ok(united)
}
