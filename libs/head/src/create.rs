//! Creating series one after the other. Neighbours in a batch share most of their labels: those of their target, and often
//! their metric. What the one before has as well is not looked up again, and a run of series with the same label enters the
//! index at once, when the run ends or the batch does.

use std::ops::Range;

use koios_model::{LabelsRef, SeriesHash};

use crate::head::Head;
use crate::index::{Pair, Row};
use crate::symbols::Symbols;

/// What may have ended before it is indexed, for little memory.
const ROWS_MAX: usize = 256;

/// The series created last, and what of it and those before it the index lacks. Empty between batches: a symbol's id may
/// be given to another string as soon as series are dropped.
#[derive(Debug, Default)]
pub(crate) struct Creating {
    /// Its packed labels.
    labels: Vec<u8>,
    /// A run for each of its labels, in their order.
    runs: Vec<Run>,
    /// The first series that the index lacks, and the one that would continue the runs.
    series: Range<u32>,
    /// What has ended, and the index lacks too.
    rows: Vec<Row>,
    /// Memory of the last time.
    spare: Vec<Run>,
}

/// Series in a row up to the one created last.
#[derive(Clone, Copy, Debug)]
struct Run {
    pair: Pair,
    /// The first that has the label.
    from: u32,
    /// The first that has one of this name, with whatever value.
    name_from: u32,
}

impl Creating {
    /// Notes the series `index` with these labels, which are then [`Self::pairs`].
    fn add(&mut self, index: u32, labels: LabelsRef<'_>, symbols: &mut Symbols) {
        if index != self.series.end {
            self.close_all();
            for run in &mut self.runs {
                (run.from, run.name_from) = (index, index);
            }
            self.series = index..index;
        }
        let mut runs = std::mem::take(&mut self.spare);
        let packed = LabelsRef::from_trusted(&self.labels);
        let mut before = packed.iter_bytes().zip(&self.runs).peekable();
        let rows = &mut self.rows;
        // Packed labels are text, and most of it is only compared.
        let intern = |text: &[u8], symbols: &mut Symbols| {
            symbols.intern(std::str::from_utf8(text).unwrap_or_default())
        };
        for (name, value) in labels.iter_bytes() {
            let here = loop {
                match before.peek() {
                    Some(((n, _), _)) if *n == name => break before.next(),
                    Some(((n, _), gone)) if *n < name => {
                        gone.end(index, rows);
                        before.next();
                    }
                    _ => break None,
                }
            };
            runs.push(match here {
                Some(((_, v), run)) if v == value => *run,
                Some((_, run)) => {
                    rows.push(Row::Labelled(run.pair, run.from..index));
                    let (name, value) = (run.pair.name, intern(value, symbols));
                    Run {
                        pair: Pair { name, value },
                        from: index,
                        name_from: run.name_from,
                    }
                }
                None => Run {
                    pair: Pair {
                        name: intern(name, symbols),
                        value: intern(value, symbols),
                    },
                    from: index,
                    name_from: index,
                },
            });
        }
        for (_, gone) in before {
            gone.end(index, rows);
        }
        self.labels.clear();
        self.labels.extend_from_slice(labels.packed());
        self.spare = std::mem::replace(&mut self.runs, runs);
        self.spare.clear();
        self.series.end = index + 1;
    }

    /// The labels of the series created last.
    fn pairs(&self) -> impl Iterator<Item = Pair> + '_ {
        self.runs.iter().map(|run| run.pair)
    }

    fn close_all(&mut self) {
        let end = self.series.end;
        for run in &self.runs {
            run.end(end, &mut self.rows);
        }
        self.rows.push(Row::Series(self.series.clone()));
    }

    /// Ends a row of series. The index lacks what [`Self::take_rows`] gives then.
    pub(crate) fn end(&mut self) {
        if !self.series.is_empty() {
            self.close_all();
            self.labels.clear();
            self.runs.clear();
            self.series = 0..0;
        }
    }

    /// What has ended.
    pub(crate) fn take_rows(&mut self) -> Vec<Row> {
        std::mem::take(&mut self.rows)
    }
}

impl Run {
    fn end(&self, end: u32, rows: &mut Vec<Row>) {
        rows.push(Row::Labelled(self.pair, self.from..end));
        rows.push(Row::Named(self.pair.name, self.name_from..end));
    }
}

impl Head {
    /// Adds a series, which must get a sample right away. The index has it after [`Self::created`].
    pub(crate) fn create(&mut self, hash: SeriesHash, labels: LabelsRef<'_>) -> u32 {
        let index = self.create_unindexed(hash, labels);
        if self.creating.rows.len() >= ROWS_MAX {
            self.index_rows();
        }
        index
    }

    /// The same for whoever indexes what has ended ([`Creating::take_rows`]).
    pub(crate) fn create_unindexed(&mut self, hash: SeriesHash, labels: LabelsRef<'_>) -> u32 {
        let index = self.series.place();
        let creating = &mut self.creating;
        creating.add(index, labels, &mut self.symbols);
        self.series.create(index, hash, creating.pairs());
        index
    }

    /// Ends a row of [`Self::create`].
    pub(crate) fn created(&mut self) {
        self.creating.end();
        self.index_rows();
    }

    fn index_rows(&mut self) {
        let (rows, mut new) = (self.creating.take_rows(), Vec::new());
        self.index.add_rows(&rows, &mut new);
        self.index.add_values(&new, &mut self.symbols);
    }
}

#[cfg(test)]
mod tests {
    use koios_model::{BatchColumns, Labels};
    use proptest::prelude::*;
    use xxhash_rust::xxh3::xxh3_64;

    use super::*;
    use crate::HeadOptions;

    /// A series that has or lacks each of a few names, with few values.
    fn series() -> impl Strategy<Value = Labels> {
        prop::collection::vec(0..4u8, 5).prop_map(|values| {
            let label =
                |(i, v): (usize, u8)| (["a", "b", "c", "d", "e"][i], ["", "x", "y", "xy"][usize::from(v)]);
            Labels::from_pairs(std::iter::once(("n", "1")).chain(values.into_iter().enumerate().map(label)))
        })
    }

    fn apply(head: &mut Head, series: &[Labels], t: i64) {
        let mut batch = BatchColumns::default();
        for labels in series {
            batch.push_series(
                SeriesHash(u128::from(xxh3_64(labels.as_ref().packed()))),
                labels.as_ref(),
            );
            batch.push_sample(t, 1.0);
        }
        head.apply(&batch, 0, 1);
    }

    /// All that the index says, in strings.
    fn said(head: &Head, all: &[Labels]) -> Vec<(String, Vec<Labels>)> {
        let of = |series: &mut dyn Iterator<Item = u32>| {
            let mut series: Vec<Labels> = series.map(|i| head.series.labels(i, &head.symbols)).collect();
            series.sort();
            series
        };
        let mut out = vec![("all".to_owned(), of(&mut head.index.all.iter()))];
        for (name, index) in head.index.names() {
            out.push((
                head.symbols.resolve(name).to_owned(),
                of(&mut index.series.iter()),
            ));
            let values = index.values.merged(&head.symbols);
            let values: Vec<&str> = values.iter().map(|v| head.symbols.resolve(*v)).collect();
            out.push((values.join(","), Vec::new()));
        }
        for (name, value) in all.iter().flat_map(Labels::iter) {
            let ids = head.symbols.get(name).zip(head.symbols.get(value));
            let mut set = roaring::RoaringBitmap::new();
            if let Some(postings) = ids.and_then(|(name, value)| head.index.postings(Pair { name, value })) {
                postings.add_to(&mut set);
            }
            out.push((format!("{name}={value}"), of(&mut set.iter())));
        }
        out.sort();
        out
    }

    proptest! {
        #[test]
        fn a_batch_of_series_is_indexed_as_each_by_itself_would_be(
            early in prop::collection::vec(series(), 0..30),
            late in prop::collection::vec(series(), 0..30),
        ) {
            let head = || Head::new(HeadOptions { window_ms: 1000, ..HeadOptions::default() });
            let (mut at_once, mut one_by_one) = (head(), head());
            for (series, t) in [(&early, 500), (&late, 1500)] {
                apply(&mut at_once, series, t);
                for labels in series {
                    apply(&mut one_by_one, std::slice::from_ref(labels), t);
                }
                if t == 500 {
                    // Frees places, which are then given out in another order.
                    for head in [&mut at_once, &mut one_by_one] {
                        let cut = head.cut(0);
                        head.cut_listed(cut.id);
                        head.forget(1000);
                    }
                }
                let all = [early.clone(), late.clone()].concat();
                prop_assert_eq!(said(&at_once, &all), said(&one_by_one, &all));
            }
        }
    }
}
