//! How many series one metric of a tenant may have.
//!
//! Members count a metric's series when they are asked which of a request's series exist ([`crate::limiter`]); what several
//! requests let in at the same time is added here. Requests through several distributors at the same moment may exceed the
//! limit by what each lets in.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use koios_model::{BatchColumns, BatchSeries, METRIC_NAME, PartitionId, SeriesHash};
use parking_lot::Mutex;

use crate::rejection::Rejection;
use crate::series_limit::{ByPartition, Existence};
use crate::taken::Taken;

/// Most metrics that members are asked for at once; new series of others come in with a further try.
const ASKED_MAX: usize = 10_000;

/// New series of requests under way, by metric.
pub(crate) type UnderWay = Arc<Mutex<BTreeMap<String, u64>>>;

/// Which metrics the unknown series of a request are of.
#[derive(Clone, Debug)]
pub(crate) struct MetricsOf {
    /// Most series that each may have.
    pub(crate) limit: u64,
    pub(crate) names: Arc<[String]>,
    /// Places among the names; none of series whose metrics are not asked for.
    of: Arc<HashMap<SeriesHash, usize>>,
}

impl MetricsOf {
    /// Those of unknown series that were taken in, with their labels.
    pub(crate) fn unknown(taken: &Taken, unknown: &ByPartition<Arc<[SeriesHash]>>, limit: u64) -> Self {
        let series = unknown.iter().flat_map(|(partition, unknown)| {
            let unknown: HashSet<SeriesHash> = unknown.iter().copied().collect();
            let columns = taken.parts.get(partition).map(|part| &part.columns);
            let series = columns.into_iter().flat_map(|columns| columns.series());
            series.filter(move |series| unknown.contains(&series.hash))
        });
        Self::of(series, limit)
    }

    /// Those of known series; columns have all labels.
    pub(crate) fn known(columns: &BatchColumns, limit: u64) -> Self {
        Self::of(columns.series().filter(|series| series.known), limit)
    }

    fn of<'a>(series: impl Iterator<Item = BatchSeries<'a>>, limit: u64) -> Self {
        let mut places: BTreeMap<&str, usize> = BTreeMap::new();
        let (mut names, mut of) = (Vec::new(), HashMap::new());
        for series in series {
            let Some(metric) = series.labels.and_then(|labels| labels.get(METRIC_NAME)) else {
                continue;
            };
            if let Some(place) = places.get(metric) {
                of.insert(series.hash, *place);
            } else if names.len() < ASKED_MAX {
                places.insert(metric, names.len());
                of.insert(series.hash, names.len());
                names.push(metric.to_owned());
            }
        }
        Self {
            limit,
            names: names.into(),
            of: Arc::new(of),
        }
    }

    /// Takes room for new series, and those for which there is none out of `asked`. `counts` are the series that each
    /// metric has, and whether all partitions told theirs.
    pub(crate) fn take(
        &self,
        under_way: &UnderWay,
        (counts, are_all): (&[u64], bool),
        asked: &mut BTreeMap<PartitionId, Vec<(SeriesHash, Existence)>>,
    ) -> ByMetric {
        let mut mine: Vec<u64> = vec![0; self.names.len()];
        let (mut refused, mut undecided) = (Vec::new(), HashSet::new());
        let mut all = under_way.lock();
        let others: Vec<u64> = self
            .names
            .iter()
            .map(|name| all.get(name).copied().unwrap_or(0))
            .collect();
        for series in asked.values_mut() {
            series.retain(|(hash, existence)| {
                if *existence == Existence::Held {
                    return true;
                }
                let Some(&place) = self.of.get(hash) else {
                    undecided.insert(*hash);
                    return false;
                };
                let at = |of: &[u64]| of.get(place).copied().unwrap_or(0);
                let sum = at(counts).saturating_add(at(&mine));
                if sum >= self.limit && *existence == Existence::Absent {
                    refused.push((*hash, place));
                    return false;
                }
                // What others let in may fail, and what too few members can tell of may exist.
                if !are_all || sum.saturating_add(at(&others)) >= self.limit {
                    undecided.insert(*hash);
                    return false;
                }
                if let Some(mine) = mine.get_mut(place) {
                    *mine += 1;
                }
                true
            });
        }
        let mut taken = BTreeMap::new();
        for (name, mine) in self.names.iter().zip(&mine).filter(|(_, mine)| **mine > 0) {
            *all.entry(name.clone()).or_default() += mine;
            taken.insert(name.clone(), *mine);
        }
        drop(all);
        let mut rejections: HashMap<usize, Arc<Rejection>> = HashMap::new();
        let mut rejection = |place: usize| {
            let new = || {
                let at = |of: &[u64]| of.get(place).copied().unwrap_or(0);
                Arc::new(Rejection::MetricSeriesLimit {
                    metric: self.names.get(place).cloned().unwrap_or_default(),
                    limit: self.limit,
                    now: at(counts).saturating_add(at(&mine)),
                })
            };
            Arc::clone(rejections.entry(place).or_insert_with(new))
        };
        ByMetric {
            refused: refused
                .into_iter()
                .map(|(hash, place)| (hash, rejection(place)))
                .collect(),
            undecided,
            room: MetricRoom {
                under_way: Arc::clone(under_way),
                taken,
            },
        }
    }
}

/// What becomes of new series by their metrics.
#[derive(Debug)]
pub(crate) struct ByMetric {
    /// There is no room for these.
    pub(crate) refused: HashMap<SeriesHash, Arc<Rejection>>,
    /// For these there is if others that are under way fail, or some partitions have few enough, or their metrics are too many
    /// to be asked for at once.
    pub(crate) undecided: HashSet<SeriesHash>,
    /// What the others take.
    pub(crate) room: MetricRoom,
}

/// Room that new series of one request take of their metrics'. Dropped, it is given back.
#[derive(Debug)]
pub(crate) struct MetricRoom {
    under_way: UnderWay,
    taken: BTreeMap<String, u64>,
}

impl Drop for MetricRoom {
    fn drop(&mut self) {
        if self.taken.is_empty() {
            return;
        }
        let mut all = self.under_way.lock();
        for (metric, taken) in &self.taken {
            if let Some(count) = all.get_mut(metric) {
                *count = count.saturating_sub(*taken);
                if *count == 0 {
                    all.remove(metric);
                }
            }
        }
    }
}
