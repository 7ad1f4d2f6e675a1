//! Takes the replica's label off, and drops what the elected replica brings, too.

use koios_model::{Sample, SeriesHash};
use koios_wire::remote_write::{
    EncodedLabels, RawExemplar, RawHistogram, RawLabel, RawMetadata, RawSeries, Sink,
};

use super::tracker::{Brought, Verdict};
use super::{Gate, PairsSeen};
use crate::Written;

/// Most replicas that one request may mix; samples of further ones are taken undecided.
const REPLICAS_PER_REQUEST_MAX: usize = 64;

/// Hands series of HA pairs on without the replica's label, and only with samples that are to be kept.
///
/// Series that lack either label are handed on as they are, and so are faulty ones, which the next sink rejects.
pub(crate) struct Deduplicated<'a, 's, S> {
    sink: &'s mut S,
    gate: Option<&'s Gate>,
    replicas: Vec<Replica<'a>>,
    /// Where the last series' replica is among them.
    last: usize,
    undecided_beyond: u64,
    labels: Vec<RawLabel<'a>>,
    samples: Vec<Sample>,
    starts: Vec<i64>,
    histograms: Vec<RawHistogram>,
    exemplars: Vec<RawExemplar>,
}

/// A replica that the request brings samples of.
struct Replica<'a> {
    cluster: &'a [u8],
    name: &'a [u8],
    verdict: Verdict,
    newest_ms: Option<i64>,
    dropped: Written,
    undecided: u64,
}

impl<'a, 's, S: Sink<'a>> Deduplicated<'a, 's, S> {
    /// Without a gate everything is handed on as it is.
    pub(crate) fn new(sink: &'s mut S, gate: Option<&'s Gate>) -> Self {
        Self {
            sink,
            gate,
            replicas: Vec::new(),
            last: 0,
            undecided_beyond: 0,
            labels: Vec::new(),
            samples: Vec::new(),
            starts: Vec::new(),
            histograms: Vec::new(),
            exemplars: Vec::new(),
        }
    }

    /// What the request had to do with HA pairs. When it could not be, or was not, decoded to its end nobody knows what it
    /// would have brought: of the replicas that it named all samples until now are what it brought. They are lost with what
    /// cannot be decoded; whether they are with what was not says the error that it is refused with.
    ///
    /// # Errors
    /// The decoder's.
    pub(crate) fn finish_after<T, E>(mut self, decoded: Result<T, E>) -> Result<(T, PairsSeen), E> {
        if let Some(gate) = self.gate.filter(|_| decoded.is_err() || self.sink.is_over()) {
            for replica in &mut self.replicas {
                replica.newest_ms = Some(gate.admission_ms);
            }
        }
        let gate = self.gate;
        let seen = self.finish();
        match (decoded, gate) {
            (Ok(report), _) => Ok((report, seen)),
            (Err(error), gate) => {
                if let Some(gate) = gate {
                    gate.lose(&seen.brought);
                }
                Err(error)
            }
        }
    }

    /// What the request had to do with HA pairs.
    fn finish(self) -> PairsSeen {
        let mut seen = PairsSeen::default();
        for replica in &self.replicas {
            seen.deduplicated += replica.dropped;
            if let (Verdict::Undecided(reason), 1..) = (replica.verdict, replica.undecided) {
                *seen.undecided.entry(reason).or_default() += replica.undecided;
            }
            if let (Verdict::Drop { .. }, 1..) = (replica.verdict, replica.undecided) {
                *seen.undecided.entry("not_covered").or_default() += replica.undecided;
            }
            if let Some(newest_ms) = replica.newest_ms {
                seen.brought.push(Brought {
                    cluster: String::from_utf8_lossy(replica.cluster).into_owned(),
                    replica: String::from_utf8_lossy(replica.name).into_owned(),
                    newest_ms,
                });
            }
        }
        if self.undecided_beyond > 0 {
            seen.undecided.insert("too_many_replicas", self.undecided_beyond);
        }
        seen
    }

    /// The values of the two labels, and the other labels in `self.labels`; none when the series is not of a pair, or is
    /// for the next sink to reject.
    fn split(&mut self, gate: &Gate, series: &RawSeries<'a, '_>) -> Option<(&'a [u8], &'a [u8])> {
        if series.fault.is_some() || series.label_count != series.labels.len() {
            return None;
        }
        let limits = &gate.limits;
        let value = |name: &str| {
            let found = series.labels.iter().find(|label| label.0 == name.as_bytes());
            found.map(|label| label.1).filter(|value| !value.is_empty())
        };
        let (cluster, replica) = (value(&limits.ha_cluster_label)?, value(&limits.ha_replica_label)?);
        if cluster.len().max(replica.len()) > limits.max_label_value_bytes {
            return None;
        }
        self.labels.clear();
        let others = series
            .labels
            .iter()
            .filter(|label| label.0 != limits.ha_replica_label.as_bytes());
        self.labels.extend(others);
        let once = self.labels.len() + 1 == series.labels.len();
        once.then_some((cluster, replica))
    }

    /// The replica's place in `self.replicas`; none for one too many.
    fn replica(&mut self, gate: &Gate, cluster: &'a [u8], name: &'a [u8]) -> Option<usize> {
        let is_it = |r: &Replica<'_>| r.name == name && r.cluster == cluster;
        if self.replicas.get(self.last).is_some_and(is_it) {
            return Some(self.last);
        }
        if let Some(at) = self.replicas.iter().position(is_it) {
            self.last = at;
            return Some(at);
        }
        if self.replicas.len() >= REPLICAS_PER_REQUEST_MAX {
            return None;
        }
        let verdict = match (std::str::from_utf8(cluster), std::str::from_utf8(name)) {
            (Ok(cluster), Ok(name)) => gate.decide(cluster, name),
            _ => Verdict::Undecided("invalid_label"),
        };
        self.last = self.replicas.len();
        self.replicas.push(Replica {
            cluster,
            name,
            verdict,
            newest_ms: None,
            dropped: Written::default(),
            undecided: 0,
        });
        Some(self.last)
    }

    /// Hands on what lies outside of the range; gives what lay inside.
    fn hand_on_outside(&mut self, series: RawSeries<'a, '_>, inside: impl Fn(i64) -> bool) -> Written {
        self.samples.clear();
        self.samples
            .extend(series.samples.iter().filter(|s| !inside(s.t)));
        let started = series.samples.iter().zip(series.starts);
        let started = started.filter(|(s, _)| !inside(s.t));
        self.starts.clear();
        self.starts.extend(started.map(|(_, start)| *start));
        self.histograms.clear();
        self.histograms
            .extend(series.histograms.iter().filter(|h| !inside(h.t)).cloned());
        self.exemplars.clear();
        self.exemplars
            .extend(series.exemplars.iter().filter(|e| !inside(e.t)).cloned());
        let dropped = |all: usize, kept: usize| (all - kept) as u64;
        let dropped = Written {
            samples: dropped(series.samples.len(), self.samples.len()),
            histograms: dropped(series.histograms.len(), self.histograms.len()),
            exemplars: dropped(series.exemplars.len(), self.exemplars.len()),
        };
        if self.samples.len() + self.histograms.len() + self.exemplars.len() > 0 {
            self.sink.series(RawSeries {
                labels: &self.labels,
                label_count: self.labels.len(),
                encoded_labels: EncodedLabels::default(),
                samples: &self.samples,
                starts: &self.starts,
                histograms: &self.histograms,
                exemplars: &self.exemplars,
                ..series
            });
        }
        dropped
    }
}

impl<'a, S: Sink<'a>> Sink<'a> for Deduplicated<'a, '_, S> {
    fn series(&mut self, series: RawSeries<'a, '_>) {
        let Some(gate) = self.gate else {
            return self.sink.series(series);
        };
        if self.sink.is_over() {
            return;
        }
        let Some((cluster, name)) = self.split(gate, &series) else {
            return self.sink.series(series);
        };
        let all = (series.samples.len() + series.histograms.len()) as u64;
        let found = self.replica(gate, cluster, name);
        let verdict = found
            .and_then(|at| self.replicas.get(at))
            .map(|replica| replica.verdict);
        let admission_ms = gate.admission_ms;
        let refused_before = self.sink.refused();
        let dropped = match verdict {
            Some(Verdict::Drop { from_ms, until_ms }) => {
                let range = from_ms..=until_ms;
                self.hand_on_outside(series, |t| range.contains(&t.min(admission_ms)))
            }
            _ => {
                self.sink.series(RawSeries {
                    labels: &self.labels,
                    label_count: self.labels.len(),
                    encoded_labels: EncodedLabels::default(),
                    ..series
                });
                Written::default()
            }
        };
        let Some(replica) = found.and_then(|at| self.replicas.get_mut(at)) else {
            self.undecided_beyond += all;
            return;
        };
        let times = series.samples.iter().map(|s| s.t);
        let times = times.chain(series.histograms.iter().map(|h| h.t));
        let accepted = times.filter(|t| gate.accepted_ms.contains(t));
        let newest_ms = accepted.map(|t| t.min(admission_ms)).max();
        // Of a series that was not taken whole nothing counts: nobody may rely on what was rejected.
        if self.sink.refused() == refused_before {
            replica.newest_ms = replica.newest_ms.max(newest_ms);
        }
        replica.dropped += dropped;
        if replica.verdict != Verdict::Elected {
            replica.undecided += all - dropped.all_samples();
        }
    }

    fn known(&mut self, encoded_labels: EncodedLabels<'a>) -> Option<SeriesHash> {
        // With a gate the replica's label has to be looked for.
        match self.gate {
            None => self.sink.known(encoded_labels),
            Some(_) => None,
        }
    }

    fn metadata(&mut self, metadata: RawMetadata<'a>) {
        self.sink.metadata(metadata);
    }

    fn refused(&self) -> u64 {
        self.sink.refused()
    }

    fn hold(&mut self, bytes: usize) {
        self.sink.hold(bytes);
    }

    fn is_over(&self) -> bool {
        self.sink.is_over()
    }

    fn point(&mut self, number: Option<u32>) {
        self.sink.point(number);
    }
}
