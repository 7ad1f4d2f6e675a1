//! Which rows of a part are read: the spans of series, split by row group.

use std::collections::VecDeque;
use std::ops::Range;

use koios_model::Labels;
use parquet::arrow::arrow_reader::ArrowReaderMetadata;

use crate::Result;
use crate::part::PartFile;
use crate::times::TimeSpan;

/// Most rows in a row group that is read; writers end them at an eighth of it.
pub(crate) const GROUP_ROWS_MAX: i64 = 4 << 20;

/// Most ticks for each row of a part of a series, and for all of few rows, that are read without being looked up. A page holds
/// as many as the latter, so that it costs no more to read them.
const VAGUE_TICKS_PER_ROW: u64 = 4;
const VAGUE_TICKS_MIN: u64 = 1 << 14;

/// The rows of a series in a part.
#[derive(Clone, Debug)]
pub(crate) struct Span<'a> {
    pub(crate) series: &'a Labels,
    pub(crate) first_row: u64,
    /// Not 0.
    pub(crate) row_count: u32,
    pub(crate) whole: bool,
    /// Where its times are, if not in its rows.
    pub(crate) times: Option<TimeSpan>,
}

/// What one row group holds of the series asked for.
#[derive(Debug)]
pub(crate) struct GroupPlan {
    pub(crate) group: u32,
    pub(crate) pieces: Vec<Piece>,
}

/// Rows of one series in one row group.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) series: Labels,
    /// Relative to the row group.
    pub(crate) rows: Range<u64>,
    /// Whether the series ends here.
    pub(crate) last: bool,
    /// Whether all of it is read, whatever the range, and kept by the reader.
    pub(crate) whole: bool,
    /// How many rows of the series come before, and how many it has in all.
    before: u64,
    count: u64,
    /// Where its times are, if not in its rows.
    pub(crate) times: Option<TimeSpan>,
    /// From its oldest tick to its newest, if they were looked up.
    known: Option<Range<u64>>,
}

impl Piece {
    /// The ticks that its rows can have: those of the series strictly descend from its last tick to its first.
    pub(crate) fn ticks(&self, span: &TimeSpan) -> Range<u64> {
        let upto = self.before + (self.rows.end - self.rows.start);
        let known = self.known.clone();
        known.unwrap_or_else(|| self.count - upto..span.ticks() - self.before)
    }

    /// Whether it is a part of a series with gaps, which might be at any of so many more ticks that its own should be looked up:
    /// otherwise each row group with a part of the series would read nearly all of its times.
    pub(crate) fn is_vague(&self) -> bool {
        let Some(span) = self.times.as_ref().filter(|_| self.known.is_none()) else {
            return false;
        };
        let ticks = self.ticks(span);
        let rows = self.rows.end - self.rows.start;
        ticks.end - ticks.start > VAGUE_TICKS_MIN.max(rows.saturating_mul(VAGUE_TICKS_PER_ROW))
    }

    /// Notes the ticks of its newest and its oldest row; `false` if it can not have these.
    pub(crate) fn know(&mut self, newest: u32, oldest: u32) -> bool {
        let Some(span) = &self.times else {
            return false;
        };
        let (known, possible) = (u64::from(oldest)..u64::from(newest) + 1, self.ticks(span));
        let rows = self.rows.end - self.rows.start;
        let is_possible = possible.start <= known.start
            && known.end <= possible.end
            && known.end.saturating_sub(known.start) >= rows;
        self.known = Some(known).filter(|_| is_possible);
        is_possible
    }

    /// Whether its newest and oldest row have the ticks that they must have where the series begins and ends.
    pub(crate) fn has_ends(&self, span: &TimeSpan, newest: u32, oldest: u32) -> bool {
        (self.before > 0 || u64::from(newest) + 1 == span.ticks()) && (!self.last || oldest == 0)
    }

    /// Its rows that can have one of some ticks: there are as many ticks as rows, at least, from each of them to either end.
    pub(crate) fn rows_with(&self, span: &TimeSpan, ticks: &Range<u64>) -> Range<u64> {
        let possible = self.ticks(span);
        let first = (self.rows.end - self.rows.start + possible.start).saturating_sub(ticks.end);
        let end = possible.end.saturating_sub(ticks.start);
        (self.rows.start + first).min(self.rows.end)..self.rows.end.min(self.rows.start.saturating_add(end))
    }
}

/// Splits the series' spans by row group.
pub(crate) fn plan<'a>(
    part: &PartFile,
    footer: &ArrowReaderMetadata,
    spans: impl Iterator<Item = Span<'a>>,
) -> Result<Vec<GroupPlan>> {
    let mut groups = VecDeque::new();
    let mut end = 0u64;
    for (i, group) in footer.metadata().row_groups().iter().enumerate() {
        let rows = group.num_rows();
        if !(0..=GROUP_ROWS_MAX).contains(&rows) {
            return Err(part.corrupt(format!(
                "row group {i} claims {rows} rows, limit {GROUP_ROWS_MAX}"
            )));
        }
        groups.push_back((i as u32, end..end + rows as u64));
        end += rows as u64;
    }
    let mut plans: Vec<GroupPlan> = Vec::new();
    let mut at = 0u64;
    for s in spans {
        let span = s.first_row..s.first_row.saturating_add(u64::from(s.row_count));
        if span.start < at || span.end > end || span.is_empty() {
            return Err(part.corrupt(format!(
                "series {} claims rows {span:?}, which overlap another's or exceed the {end} there are",
                s.series
            )));
        }
        at = span.end;
        while let Some((group, rows)) = groups.front().cloned() {
            // One without rows holds no piece of a series, wherever it stands.
            if rows.is_empty() || rows.end <= span.start {
                groups.pop_front();
                continue;
            }
            let piece = Piece {
                series: s.series.clone(),
                rows: span.start.max(rows.start) - rows.start..span.end.min(rows.end) - rows.start,
                last: span.end <= rows.end,
                whole: s.whole,
                before: rows.start.saturating_sub(span.start),
                count: span.end - span.start,
                times: s.times.clone(),
                known: None,
            };
            let last = piece.last;
            match plans.last_mut() {
                Some(p) if p.group == group => p.pieces.push(piece),
                _ => plans.push(GroupPlan {
                    group,
                    pieces: vec![piece],
                }),
            }
            if last {
                break;
            }
            groups.pop_front();
        }
    }
    Ok(plans)
}

#[cfg(test)]
mod tests {
    use super::*;
    use koios_model::TimeRange;

    #[test]
    fn rows_and_ticks_of_a_piece_bound_each_other() {
        // Ten samples at some of 14 ticks, four of them in the row group before.
        let span = TimeSpan::new(100..114, TimeRange::ALL);
        let piece = Piece {
            series: Labels::empty(),
            rows: 50..56,
            last: true,
            whole: false,
            before: 4,
            count: 10,
            times: None,
            known: None,
        };
        assert_eq!(piece.ticks(&span), 0..10);
        assert_eq!(piece.rows_with(&span, &(0..14)), 50..56);
        // The last row has tick 0, and only it can.
        assert_eq!(piece.rows_with(&span, &(0..1)), 55..56);
        // Rows 4 to 8 of the series can have tick 5: 5 to 9 later ones come before, and as many ticks are free.
        assert_eq!(piece.rows_with(&span, &(5..6)), 50..55);
        assert!(piece.rows_with(&span, &(10..14)).is_empty());
        assert!(piece.rows_with(&span, &(0..0)).is_empty());
        let exact = TimeSpan::new(0..10, TimeRange::ALL);
        assert_eq!(piece.ticks(&exact), 0..6);
        for tick in 0..6 {
            assert_eq!(piece.rows_with(&exact, &(tick..tick + 1)), 55 - tick..56 - tick);
        }
    }
    #[test]
    fn i12_a_part_of_a_series_with_gaps_is_looked_up_where_it_might_have_many_ticks() {
        let piece = |before, rows, count, ticks| Piece {
            series: Labels::empty(),
            rows: 0..rows,
            last: before + rows == count,
            whole: true,
            before,
            count,
            times: Some(TimeSpan::new(0..ticks, TimeRange::ALL)),
            known: None,
        };
        // All of a series, one without gaps, and one with few.
        assert!(!piece(0, 1_000_000, 1_000_000, 4_000_000).is_vague());
        assert!(!piece(7, 1, 1_000_000, 1_000_000).is_vague());
        assert!(!piece(7, 1, 1_000_000, 1_010_000).is_vague());
        let mut vague = piece(500, 10, 1_000_000, 4_000_000);
        assert!(vague.is_vague());
        for (newest, oldest) in [
            (4_000_000 - 500, 3_000_000),
            (100, 50),
            (2_000_008, 2_000_000),
            (50, 100),
        ] {
            assert!(!vague.know(newest, oldest), "{newest} to {oldest}");
        }
        assert!(vague.know(2_000_020, 2_000_000) && !vague.is_vague());
        let span = TimeSpan::new(0..4_000_000, TimeRange::ALL);
        assert_eq!(vague.ticks(&span), 2_000_000..2_000_021);
        assert_eq!(vague.rows_with(&span, &(2_000_000..2_000_001)), 9..10);
    }
}
