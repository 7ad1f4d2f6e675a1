//! Which bytes of a row group nobody asks for again once rows of it are kept in another form.

use std::ops::Range;

use parquet::arrow::arrow_reader::ArrowReaderMetadata;

/// Most runs of rows that are remembered of a row group.
const RUNS_MAX: usize = 64;

/// Bytes of a row group.
#[derive(Debug, Default)]
pub(crate) struct UsedUp {
    /// Those that nobody asks for again, ascending and disjoint.
    pub(crate) bytes: Vec<Range<u64>>,
    /// Those of the pages that have just been read, one range for each column: elsewhere nothing changed.
    pub(crate) near: Vec<Range<u64>>,
}

/// The bytes, of all columns of the one row group of `index`, of pages whose rows all are among the ascending, disjoint
/// `runs`; of a column whose pages all are such its dictionary too, which no page that is left needs. `read` are the rows
/// that came to `runs` last.
pub(crate) fn used_up(index: &ArrowReaderMetadata, runs: &[Range<u64>], read: &Range<u64>) -> UsedUp {
    let metadata = index.metadata();
    let (Some(group), Some(provider)) = (metadata.row_groups().first(), metadata.page_index()) else {
        return UsedUp::default();
    };
    let row_count = u64::try_from(group.num_rows()).unwrap_or(0);
    let whole_group = is_within(&(0..row_count), runs);
    let mut found = UsedUp::default();
    for (number, column) in group.columns().iter().enumerate() {
        if whole_group {
            let at = column
                .dictionary_page_offset()
                .unwrap_or_else(|| column.data_page_offset());
            let all = range_of(at, column.compressed_size());
            found.bytes.extend(all.clone());
            found.near.extend(all);
            continue;
        }
        let pages = provider.offset_index(0, number).map(|o| o.page_locations());
        let pages = pages.map_or(&[][..], |pages| pages);
        let mut near: Option<Range<u64>> = None;
        for (i, page) in pages.iter().enumerate() {
            let first = |page: i64| u64::try_from(page).unwrap_or(u64::MAX);
            let end = pages.get(i + 1).map_or(row_count, |p| first(p.first_row_index));
            let rows = first(page.first_row_index)..end;
            let Some(bytes) = range_of(page.offset, page.compressed_page_size.into()) else {
                continue;
            };
            if rows.start < read.end && read.start < rows.end {
                let start = near.map_or(bytes.start, |near| near.start);
                near = Some(start..bytes.end);
            }
            if is_within(&rows, runs) {
                found.bytes.push(bytes);
            }
        }
        found.near.extend(near);
    }
    found.bytes.sort_by_key(|range| range.start);
    found.bytes = joined(found.bytes.into_iter());
    found
}

fn range_of(at: i64, size: i64) -> Option<Range<u64>> {
    let (at, size) = u64::try_from(at).ok().zip(u64::try_from(size).ok())?;
    Some(at..at.saturating_add(size))
}

/// Whether one of the ascending, disjoint `ranges` contains all of `inner`.
fn is_within(inner: &Range<u64>, ranges: &[Range<u64>]) -> bool {
    let after = ranges.partition_point(|r| r.start <= inner.start);
    let around = after.checked_sub(1).and_then(|i| ranges.get(i));
    around.is_some_and(|r| inner.end <= r.end)
}

/// Runs of rows, and those of before, neighbours as one; those of before go where they have become too many.
pub(crate) fn with_those_before(rows: &[Range<u64>], before: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut all: Vec<Range<u64>> = rows.iter().chain(before).cloned().collect();
    all.sort_by_key(|range| range.start);
    let all = joined(all.into_iter());
    match all.len() {
        0..=RUNS_MAX => all,
        _ => joined(rows.iter().cloned()),
    }
}

/// Ascending ranges, neighbours as one.
fn joined(ranges: impl Iterator<Item = Range<u64>>) -> Vec<Range<u64>> {
    let mut all: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match all.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => all.push(range),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_several_reads_are_one() {
        let (three, one) = ([0..3, 9..12, 20..21], 1000..1001);
        assert_eq!(with_those_before(&[3..5, 5..6], &three), [0..6, 9..12, 20..21]);
        assert_eq!(with_those_before(&three, &[2..25, 30..31]), [0..25, 30..31]);
        let scattered: Vec<_> = (0..2 * RUNS_MAX as u64).map(|i| 3 * i..3 * i + 1).collect();
        assert_eq!(
            with_those_before(std::slice::from_ref(&one), &scattered),
            vec![one; 1]
        );
    }

    #[test]
    fn neighbours_are_joined_and_contain_what_spans_them() {
        let ranges = joined([0..3, 3..5, 7..9, 8..10].into_iter());
        assert_eq!(ranges, [0..5, 7..10]);
        assert!(is_within(&(1..5), &ranges));
        assert!(is_within(&(7..10), &ranges));
        assert!(!is_within(&(4..8), &ranges));
        assert!(!is_within(&(10..11), &ranges));
        assert!(!is_within(&(0..1), &[]));
    }
}
