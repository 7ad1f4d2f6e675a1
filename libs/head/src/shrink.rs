//! Gives back memory after a peak. Places of series and strings are dense arrays whose elements are named by their index, so
//! only what lies behind the last one in use can go; the lowest are given out first, so that with time more can.

use crate::chunks::Chunks;
use crate::head::{Head, Scratch};
use crate::index::Index;
use crate::open::Pool;

/// Fewer places are not worth the work.
const PLACES_MIN: usize = 1024;
/// Arrays shrink when no more than one in so many of their places is used.
const SPARSE: usize = 4;

impl Head {
    /// Shrinks what is mostly unused, after series were dropped.
    pub(crate) fn shrink(&mut self) {
        let live = self.index.all.len() as usize;
        if live == 0 {
            return self.renew();
        }
        if self.chunks.is_sparse() {
            let cold = &mut self.series.cold;
            self.chunks.shrink(cold.iter_mut().map(|cold| &mut cold.sealed));
        }
        if !self.unshrunk {
            return;
        }
        let places = self.series.places();
        if places < PLACES_MIN || live > places / SPARSE || !self.resolutions.are_ended() {
            return;
        }
        let len = self.index.all.max().map_or(0, |last| last + 1);
        self.truncate(len);
        self.index.shrink();
        self.pool.shrink(&mut self.series.hot);
        let cold = &mut self.series.cold;
        self.chunks.shrink(cold.iter_mut().map(|cold| &mut cold.sealed));
        self.unshrunk = false;
    }

    /// Gives all memory of series back when there are none, and of exemplars once blocks have them: nobody is left to send
    /// the same again, which would have to be told from others.
    fn renew(&mut self) {
        if !self.index.all.is_empty() || !self.resolutions.are_ended() {
            return;
        }
        if self.windows.is_empty() {
            self.exemplars.clear();
        }
        if self.series.places() == 0 {
            return;
        }
        self.truncate(0);
        self.pool = Pool::default();
        self.chunks = Chunks::default();
        self.unshrunk = false;
        self.index = Index::default();
        self.scratch = Scratch::default();
    }

    /// Gives back the places of series from `len` on, which are free, and strings that are gone.
    fn truncate(&mut self, len: u32) {
        self.unchecked.remove_range(len..);
        self.series.truncate(len as usize);
        self.symbols.shrink();
    }
}

#[cfg(test)]
mod tests {
    use koios_model::{BatchColumns, Exemplar, Labels, MatchOp, Matcher, Matchers, SeriesHash, TimeRange};

    use super::*;
    use crate::{HeadOptions, SeriesId};

    const WINDOW_MS: i64 = 1000;

    fn head() -> Head {
        Head::new(HeadOptions {
            window_ms: WINDOW_MS,
            ..HeadOptions::default()
        })
    }

    fn apply(head: &mut Head, series: std::ops::Range<u32>, t: i64) {
        let mut batch = BatchColumns::default();
        for i in series {
            let labels =
                Labels::from_pairs([("__name__", "up".to_owned()), ("instance", format!("host-{i}"))]);
            batch.push_series(SeriesHash(u128::from(i) + 1), labels.as_ref());
            batch.push_sample(t, f64::from(i));
            if i == 0 {
                let labels = Labels::from_pairs([("trace_id", "a")]);
                batch.push_exemplar(Exemplar { t, v: 1.0, labels });
            }
        }
        head.apply(&batch, 0, 1);
    }

    fn forget(head: &mut Head, t: i64) {
        let cut = head.cut(t.div_euclid(WINDOW_MS) * WINDOW_MS);
        head.cut_listed(cut.id);
        head.forget(t + 2 * WINDOW_MS);
    }

    fn all(head: &Head) -> Vec<SeriesId> {
        head.select(&Matchers::default(), TimeRange::ALL)
    }

    #[test]
    fn an_empty_head_keeps_no_memory_and_gives_no_id_twice() {
        let mut head = head();
        let empty = head.memory_bytes();
        apply(&mut head, 0..5000, 0);
        let before = all(&head);
        let full = head.memory_bytes();
        forget(&mut head, 0);
        assert!(
            head.memory_bytes() <= empty + 256,
            "{empty} {full} {}",
            head.memory_bytes()
        );
        assert_eq!(head.forgotten_below_ms(), WINDOW_MS);
        apply(&mut head, 5000..10_000, WINDOW_MS);
        assert!(before.iter().all(|id| head.labels(*id).is_none()));
        let after = all(&head);
        assert_eq!(after.len(), 5000);
        assert!(after.iter().all(|id| head.labels(*id).is_some()));
    }

    #[test]
    fn most_of_the_memory_of_many_series_goes_when_few_stay() {
        let mut head = head();
        apply(&mut head, 0..20_000, 0);
        let (before, full) = (all(&head), head.memory_bytes());
        apply(&mut head, 100..200, WINDOW_MS);
        forget(&mut head, 0);
        assert_eq!(head.series_count(), 100);
        let left = head.memory_bytes();
        assert!(left < full / 20, "{full} {left}");
        let living = before.iter().filter(|id| head.labels(**id).is_some());
        assert_eq!(living.count(), 100);
        // Places are given out again.
        apply(&mut head, 30_000..40_000, WINDOW_MS);
        apply(&mut head, 100..200, WINDOW_MS + 1);
        assert_eq!(head.series_count(), 10_100);
        let living = before.iter().filter(|id| head.labels(**id).is_some());
        assert_eq!(living.count(), 100);
    }

    #[test]
    fn memory_is_given_back_without_a_cut_to_forget() {
        let mut head = head();
        apply(&mut head, 0..20_000, 0);
        let full = head.memory();
        let most = Matcher::new(MatchOp::Regex, "instance", "host-[1-9].*").unwrap();
        head.delete(&Matchers(vec![most]), TimeRange::ALL);
        head.forget(i64::MIN);
        let left = head.memory();
        assert_eq!(head.series_count(), 1);
        assert!(
            left.series + left.symbols + left.index < 4096,
            "{full:?} {left:?}"
        );
        // Once, and not with each round again.
        assert!(!head.unshrunk);
    }

    #[test]
    fn exemplars_go_with_the_last_series() {
        let mut head = head();
        apply(&mut head, 0..1, 0);
        apply(&mut head, 0..1, WINDOW_MS);
        let times = |head: &Head| -> Vec<i64> {
            let found = head.exemplars(&Matchers::default(), TimeRange::ALL);
            found
                .iter()
                .flat_map(|(_, all)| all.iter().map(|e| e.t))
                .collect()
        };
        let cuts = [head.cut(0), head.cut(WINDOW_MS)];
        head.cut_listed(cuts[0].id);
        head.forget(2 * WINDOW_MS);
        assert_eq!(times(&head), [0, WINDOW_MS], "some are not listed yet");
        head.cut_listed(cuts[1].id);
        head.forget(i64::MAX);
        assert!(times(&head).is_empty());
    }
}
