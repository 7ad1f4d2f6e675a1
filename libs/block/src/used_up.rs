//! Which bytes of a row group nobody asks for again once rows of it are kept in another form.

use std::ops::Range;

use parquet::arrow::arrow_reader::ArrowReaderMetadata;

/// The bytes, of all columns of the one row group of `index`, of pages whose rows all are among the ascending, disjoint
/// `rows`; of a column whose pages all are such its dictionary too, which no page that is left needs.
pub(crate) fn used_up(
    index: &ArrowReaderMetadata,
    rows: impl Iterator<Item = Range<u64>>,
) -> Vec<Range<u64>> {
    let runs = joined(rows);
    let metadata = index.metadata();
    let (Some(group), Some(provider)) = (metadata.row_groups().first(), metadata.page_index()) else {
        return Vec::new();
    };
    let row_count = u64::try_from(group.num_rows()).unwrap_or(0);
    let whole_group = is_within(&(0..row_count), &runs);
    let mut bytes = Vec::new();
    for (number, column) in group.columns().iter().enumerate() {
        if whole_group {
            let at = column
                .dictionary_page_offset()
                .unwrap_or_else(|| column.data_page_offset());
            bytes.extend(range_of(at, column.compressed_size()));
            continue;
        }
        let pages = provider.offset_index(0, number).map(|o| o.page_locations());
        let pages = pages.map_or(&[][..], |pages| pages);
        for (i, page) in pages.iter().enumerate() {
            let first = |page: i64| u64::try_from(page).unwrap_or(u64::MAX);
            let end = pages.get(i + 1).map_or(row_count, |p| first(p.first_row_index));
            if !is_within(&(first(page.first_row_index)..end), &runs) {
                continue;
            }
            bytes.extend(range_of(page.offset, page.compressed_page_size.into()));
        }
    }
    bytes.sort_by_key(|range| range.start);
    joined(bytes.into_iter())
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
