//! Chunks without some of their samples.

use bytes::Bytes;
use koios_model::TimeRange;

use crate::SAMPLES_MAX;
use crate::encode::Encoder;
use crate::error::Error;
use crate::histogram::encode_histograms;
use crate::starts::Starts;
use crate::summaries::encode_part;
use crate::view::Chunk;

impl Chunk {
    /// What is left without the samples of some closed ranges: the chunk itself where they have none of its samples, nothing
    /// where they have all.
    ///
    /// # Errors
    /// As [`Self::decode_range`].
    pub fn without(self, ranges: &[TimeRange], encoder: &mut Encoder) -> Result<Option<Self>, Error> {
        let whole = self.time_range();
        if ranges.iter().all(|r| !r.overlaps(&whole)) {
            return Ok(Some(self));
        }
        if ranges.iter().any(|r| r.min <= whole.min && whole.max <= r.max) {
            return Ok(None);
        }
        if self.has_summaries() {
            return self.summaries_without(ranges);
        }
        let is_left = |t: i64| ranges.iter().all(|r| !r.contains(t));
        let mut starts = Vec::new();
        self.decode_starts(TimeRange::ALL, &mut starts)?;
        starts.retain(|(t, _)| is_left(*t));
        let (encoded, starts) = if self.has_histograms() {
            let mut histograms = Vec::new();
            self.decode_histograms(TimeRange::ALL, &mut histograms)?;
            if histograms.iter().all(|(t, _)| is_left(*t)) {
                return Ok(Some(self));
            }
            histograms.retain(|(t, _)| is_left(*t));
            let times: Vec<i64> = histograms.iter().map(|(t, _)| *t).collect();
            let left = histograms.into_iter().map(|(t, h)| (t, h.as_ref().clone()));
            let encoded = encode_histograms(left, SAMPLES_MAX)?.into_iter().next();
            (encoded, Starts::of(&times, &starts))
        } else {
            let (mut times, mut values) = (Vec::new(), Vec::new());
            self.decode(&mut times, &mut values)?;
            if times.iter().all(|t| is_left(*t)) {
                return Ok(Some(self));
            }
            let mut keep = times.iter().map(|t| is_left(*t));
            values.retain(|_| keep.next().unwrap_or(true));
            times.retain(|t| is_left(*t));
            let encoded = match times.is_empty() {
                true => None,
                false => Some(Bytes::from(encoder.encode(&times, &values)?)),
            };
            (encoded, Starts::of(&times, &starts))
        };
        let left = encoded.map(|bytes| Self::parse(bytes).and_then(|chunk| chunk.with_starts(&starts)));
        left.transpose()
    }

    /// The same of summaries: one that speaks for a sample which may be deleted goes as a whole.
    fn summaries_without(self, ranges: &[TimeRange]) -> Result<Option<Self>, Error> {
        let mut all = Vec::new();
        self.decode_summaries(TimeRange::ALL, &mut all)?;
        let had = all.len();
        all.retain(|s| ranges.iter().all(|r| !r.overlaps(&s.range())));
        if all.len() == had {
            return Ok(Some(self));
        }
        match all.is_empty() {
            true => Ok(None),
            false => encode_part(&all, &mut Encoder::default()).map(Some),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use koios_model::Histogram;
    use proptest::prelude::*;

    use super::*;

    /// Floats with their bits, times of histograms, and starts with the times of their samples.
    type Contents = (Vec<(i64, u64)>, Vec<i64>, Vec<(i64, i64)>);

    fn contents(chunk: Option<&Chunk>) -> Contents {
        let (mut times, mut values, mut histograms, mut starts) = (vec![], vec![], vec![], vec![]);
        if let Some(chunk) = chunk {
            chunk.decode(&mut times, &mut values).unwrap();
            chunk.decode_histograms(TimeRange::ALL, &mut histograms).unwrap();
            chunk.decode_starts(TimeRange::ALL, &mut starts).unwrap();
        }
        let floats = times
            .into_iter()
            .zip(values.into_iter().map(f64::to_bits))
            .collect();
        (floats, histograms.into_iter().map(|(t, _)| t).collect(), starts)
    }

    proptest! {
        #[test]
        fn what_is_left_is_what_the_ranges_do_not_have(
            samples in proptest::collection::btree_map(0i64..200, (any::<u64>(), 0i64..3), 1..60),
            ranges in proptest::collection::vec((0i64..200, 0i64..80), 0..4),
            histograms in any::<bool>(),
        ) {
            let ranges: Vec<_> = ranges.into_iter().map(|(min, len)| TimeRange::new(min, min + len)).collect();
            let times: Vec<i64> = samples.keys().copied().collect();
            let bytes = if histograms {
                encode_histograms(times.iter().map(|t| (*t, Histogram::default())), SAMPLES_MAX).unwrap().remove(0)
            } else {
                let values: Vec<f64> = samples.values().map(|(v, _)| f64::from_bits(*v)).collect();
                crate::encode(&times, &values).unwrap().into()
            };
            let mut starts = Starts::default();
            samples.iter().for_each(|(t, (_, start))| starts.push(*t, *start));
            let chunk = Chunk::parse(bytes).unwrap().with_starts(&starts).unwrap();
            let left: BTreeMap<_, _> = samples.into_iter().filter(|(t, _)| ranges.iter().all(|r| !r.contains(*t))).collect();
            let masked = chunk.without(&ranges, &mut Encoder::default()).unwrap();
            prop_assert_eq!(masked.is_none(), left.is_empty());
            let (floats, of_histograms, of_starts) = contents(masked.as_ref());
            if histograms {
                prop_assert_eq!(of_histograms, left.keys().copied().collect::<Vec<_>>());
            } else {
                prop_assert_eq!(floats, left.iter().map(|(t, (v, _))| (*t, *v)).collect::<Vec<_>>());
            }
            let expected: Vec<_> = left.iter().filter(|(_, (_, s))| *s != 0).map(|(t, (_, s))| (*t, *s)).collect();
            prop_assert_eq!(of_starts, expected);
        }
    }

    #[test]
    fn i10_a_summary_goes_with_any_of_its_samples() {
        let samples: Vec<_> = (0..30)
            .map(|i| koios_model::Sample { t: i * 10, v: 1.0 })
            .collect();
        let all = koios_model::summary::downsample(&samples, &[], 100).summaries;
        assert_eq!(all.len(), 4);
        let mut chunks = Vec::new();
        crate::encode_summaries(&all, &mut chunks).unwrap();
        let chunk = chunks.pop().unwrap();
        let left = |min, max| {
            let without = chunk
                .clone()
                .without(&[TimeRange::new(min, max)], &mut Encoder::default());
            let mut left = Vec::new();
            if let Some(chunk) = without.unwrap() {
                chunk.decode_summaries(TimeRange::ALL, &mut left).unwrap();
            }
            left
        };
        let but_one = [&all[0], &all[1], &all[3]];
        assert!(left(150, 155).iter().eq(but_one));
        assert!(left(111, 119).iter().eq(but_one));
        assert_eq!(left(400, 500), all);
        assert_eq!(left(0, 1000), []);
    }
}
