//! Finding series by matchers.

use koios_model::{Expiry, MatchOp, Matcher, Matchers, TimeRange};
use roaring::RoaringBitmap;

use crate::head::Head;
use crate::histograms::HistogramSeries;
use crate::index::{NameIndex, Pair};
use crate::series::SeriesId;

impl Head {
    /// The series that satisfy all matchers and may have samples in a closed range, in label order. A matcher that
    /// matches "" also selects series without the label (Prometheus `PostingsForMatchers`).
    pub fn select(&self, matchers: &Matchers, range: TimeRange) -> Vec<SeriesId> {
        self.select_kept(matchers, range, &Expiry::default())
    }

    /// The same less the series of which all that may be in the range is too old.
    pub fn select_kept(&self, matchers: &Matchers, range: TimeRange, expiry: &Expiry) -> Vec<SeriesId> {
        let mut found: Vec<u32> = self.matching_kept(matchers, range, expiry).iter().collect();
        found.sort_unstable_by(|&a, &b| self.series.compare(a, b, &self.symbols));
        found.into_iter().map(|index| self.series.id(index)).collect()
    }

    /// The label names of the series that [`Self::select_kept`] would give, ascending.
    pub fn label_names(&self, matchers: &Matchers, range: TimeRange, expiry: &Expiry) -> Vec<String> {
        let found = self.matching_kept(matchers, range, expiry);
        let mut names: Vec<String> = self
            .index
            .names()
            .filter(|(_, n)| !n.series.is_disjoint(&found))
            .map(|(id, _)| self.symbols.resolve(id).to_owned())
            .collect();
        names.sort_unstable();
        names
    }

    /// The values of a label among the series that [`Self::select_kept`] would give, ascending.
    pub fn label_values(
        &self,
        name: &str,
        matchers: &Matchers,
        range: TimeRange,
        expiry: &Expiry,
    ) -> Vec<String> {
        let Some((name, index)) = self.name(name) else {
            return Vec::new();
        };
        let all = matchers.0.is_empty() && self.covers(range) && !self.may_be_old(range, expiry);
        let found = if all {
            RoaringBitmap::new()
        } else {
            self.matching_kept(matchers, range, expiry)
        };
        index
            .values
            .merged(&self.symbols)
            .into_iter()
            .filter(|&value| {
                all || self
                    .index
                    .postings(Pair { name, value })
                    .is_some_and(|p| p.intersects(&found))
            })
            .map(|value| self.symbols.resolve(value).to_owned())
            .collect()
    }

    /// Whether any series carries a label.
    pub(crate) fn has_label(&self, name: &str, value: &str) -> bool {
        let pair = self.symbols.get(name).zip(self.symbols.get(value));
        pair.is_some_and(|(name, value)| self.index.postings(Pair { name, value }).is_some())
    }

    fn name(&self, name: &str) -> Option<(u32, &NameIndex)> {
        let id = self.symbols.get(name)?;
        Some((id, self.index.name(id)?))
    }

    /// Whether every sample held lies in the range.
    fn covers(&self, range: TimeRange) -> bool {
        self.time_range()
            .is_none_or(|held| range.min <= held.min && held.max <= range.max)
    }

    pub(crate) fn matching_in(&self, matchers: &Matchers, range: TimeRange) -> RoaringBitmap {
        let found = self.matching(matchers);
        if self.covers(range) {
            return found;
        }
        let in_range = found.iter().filter(|&index| self.may_have(index, range));
        in_range.collect()
    }

    /// As [`Self::matching_in`], less the series of which all that may be in the range is too old.
    fn matching_kept(&self, matchers: &Matchers, range: TimeRange, expiry: &Expiry) -> RoaringBitmap {
        let found = self.matching_in(matchers, range);
        if !self.may_be_old(range, expiry) {
            return found;
        }
        let is_kept = |index: &u32| self.may_have_kept(*index, range, expiry);
        found.iter().filter(is_kept).collect()
    }

    /// Whether any sample of a range may be too old: heads seldom hold anything as old as that.
    fn may_be_old(&self, range: TimeRange, expiry: &Expiry) -> bool {
        let oldest = self.time_range().map(|held| held.min.max(range.min));
        oldest
            .zip(expiry.latest())
            .is_some_and(|(oldest, from)| oldest < from)
    }

    /// Whether a series may have samples in the range that are not too old; never wrongly false.
    fn may_have_kept(&self, index: u32, range: TimeRange, expiry: &Expiry) -> bool {
        let may_have_from = |from: i64| {
            let left = TimeRange::new(range.min.max(from), range.max);
            left.min <= left.max && self.may_have(index, left)
        };
        // What has something that is young enough for any rule is not looked at by name.
        if expiry.latest().is_none_or(may_have_from) {
            return true;
        }
        let labels = self.series.labels(index, &self.symbols);
        expiry.kept_from(labels.as_ref()).is_none_or(may_have_from)
    }

    /// Whether a series may have samples in the range; never wrongly false.
    fn may_have(&self, index: u32, range: TimeRange) -> bool {
        let hot = &self.series.hot[index as usize];
        let cold = &self.series.cold[index as usize];
        let histograms = cold.histograms();
        let newest = histograms.and_then(HistogramSeries::last_t).max(Some(hot.last_t));
        if newest < Some(range.min) {
            return false;
        }
        let open = hot.count > 0 && self.windows.range_of(hot.last_t).min <= range.max;
        open || self.sealed(index, range).next().is_some()
            || cold.side().iter().any(|s| range.contains(s.t))
            || histograms.is_some_and(|h| h.may_have(range))
    }

    fn matching(&self, matchers: &Matchers) -> RoaringBitmap {
        let (optional, required): (Vec<&Matcher>, Vec<&Matcher>) =
            matchers.iter().partition(|m| m.matches_empty());
        // Literals first: they leave the fewest series for the rest to look at.
        let (literal, scanned): (Vec<&Matcher>, Vec<&Matcher>) =
            required.into_iter().partition(|m| m.literals().is_some());
        let mut found: Option<RoaringBitmap> = None;
        for m in literal.into_iter().chain(scanned) {
            let with = self.carrying(m, found.as_ref());
            found = Some(match found {
                Some(f) => f & with,
                None => with,
            });
        }
        let mut found = found.unwrap_or_else(|| self.index.all.clone());
        for m in optional {
            self.remove_mismatches(m, &mut found);
        }
        found
    }

    /// The series that carry a label which the matcher, one that needs the label, accepts; among `within` if given.
    fn carrying(&self, m: &Matcher, within: Option<&RoaringBitmap>) -> RoaringBitmap {
        let mut out = RoaringBitmap::new();
        let Some((name, index)) = self.name(m.name()) else {
            return out;
        };
        let add = |out: &mut RoaringBitmap, value| {
            if let Some(p) = self.index.postings(Pair { name, value }) {
                p.add_to(out);
            }
        };
        if let Some(literals) = m.literals() {
            for value in literals.into_iter().filter_map(|l| self.symbols.get(l)) {
                add(&mut out, value);
            }
        } else if takes_every_value(m) {
            out |= &index.series;
        } else if let Some(few) = within.filter(|w| w.len() < index.values.len() as u64) {
            out.extend(
                few.iter()
                    .filter(|&i| self.value_of(i, name).is_some_and(|v| m.matches(v))),
            );
        } else {
            let prefix = m.prefix().unwrap_or("");
            for value in index.values.with_prefix(prefix, &self.symbols) {
                if m.matches(self.symbols.resolve(value)) {
                    add(&mut out, value);
                }
            }
        }
        out
    }

    /// Removes the series whose label the matcher, one that accepts a missing label, refuses.
    fn remove_mismatches(&self, m: &Matcher, found: &mut RoaringBitmap) {
        let Some((name, index)) = self.name(m.name()) else {
            return;
        };
        let subtract = |found: &mut RoaringBitmap, value| {
            if let Some(p) = self.index.postings(Pair { name, value }) {
                p.subtract_from(found);
            }
        };
        match m.op() {
            MatchOp::Equal => *found -= &index.series,
            MatchOp::NotEqual => {
                if let Some(value) = self.symbols.get(m.value()) {
                    subtract(found, value);
                }
            }
            MatchOp::Regex | MatchOp::NotRegex if found.len() < index.values.len() as u64 => {
                let bad: RoaringBitmap = found
                    .iter()
                    .filter(|&i| self.value_of(i, name).is_some_and(|v| !m.matches(v)))
                    .collect();
                *found -= bad;
            }
            MatchOp::Regex | MatchOp::NotRegex => {
                for value in index.values.with_prefix("", &self.symbols) {
                    if !m.matches(self.symbols.resolve(value)) {
                        subtract(found, value);
                    }
                }
            }
        }
    }

    /// The value a series has for a label.
    fn value_of(&self, index: u32, name: u32) -> Option<&str> {
        self.series
            .label_ids(index)
            .find(|p| p.name == name)
            .map(|p| self.symbols.resolve(p.value))
    }
}

/// Whether any value will do, as long as there is one.
fn takes_every_value(m: &Matcher) -> bool {
    match m.op() {
        MatchOp::NotEqual => m.value().is_empty(),
        MatchOp::Regex => m.value() == ".+",
        MatchOp::Equal | MatchOp::NotRegex => false,
    }
}
