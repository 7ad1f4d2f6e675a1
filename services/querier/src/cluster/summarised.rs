//! Summaries of downsampled samples of a series, of all blocks that have some.

use koios_chunk::Run;
use koios_model::{Summary, TimeRange};
use koios_promql::unite_summaries;

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
            Some(last) if summary.first_t <= last.last_t => unite_summaries(last, &summary),
            _ => united.push(summary),
        }
    }
    Ok(united)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use koios_chunk::encode_summaries;
    use koios_model::Histogram;
    use koios_model::summary::downsample;
    use koios_promql::add_histograms;

    use super::*;

    fn observed(t: i64, schema: i32) -> (i64, Arc<Histogram>) {
        let histogram = Histogram {
            schema,
            count: t as f64,
            zero_count: t as f64,
            ..Histogram::default()
        };
        (t, Arc::new(histogram))
    }

    /// The summaries of a block, with the sums of histograms or as an earlier version wrote them.
    fn run(histograms: &[(i64, Arc<Histogram>)], sums: bool) -> Run {
        let mut kept = downsample(&[], histograms, 300);
        if sums {
            add_histograms(&mut kept.summaries, histograms);
        }
        let mut chunks = Vec::new();
        encode_summaries(&kept.summaries, &mut chunks).unwrap();
        Run::Chunk(chunks.remove(0))
    }

    #[test]
    fn sums_of_histograms_of_one_time_are_added() {
        let first = [observed(10, 3), observed(200, 2)];
        let later = [observed(100, 1), observed(250, 3), observed(310, 0)];
        let custom = [observed(20, koios_model::CUSTOM_BOUNDS_SCHEMA)];
        let united = |runs: &[Run]| united_summaries(runs, TimeRange::ALL).unwrap();
        let all = united(&[run(&first, true), run(&later, true)]);
        let seen: Vec<_> = all.iter().map(|s| (s.last_t, s.histograms)).collect();
        assert_eq!(seen, [(250, 4), (310, 1)]);
        let sums: Vec<_> = all.iter().filter_map(|s| s.histogram_sum.as_ref()).collect();
        assert_eq!(
            sums.iter().map(|h| (h.count, h.schema)).collect::<Vec<_>>(),
            [(560.0, 1), (310.0, 0)]
        );
        // Of one of them it is not known, or the two cannot be added.
        let unknown = united(&[run(&first, false), run(&later, true)]);
        assert!(unknown[0].histogram_sum.is_none() && unknown[1].histogram_sum.is_some());
        let not_added = united(&[run(&first, true), run(&custom, true)]);
        assert!(not_added[0].histogram_sum.as_ref().unwrap().is_stale());
    }
}
