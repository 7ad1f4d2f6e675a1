//! How many series one metric of a tenant may have.
//!
//! Members count a metric's series when they are asked which of a request's series exist ([`crate::limiter`]); what several
//! requests let in at the same time is added here. Requests through several distributors at the same moment may exceed the
//! limit by what each lets in.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use koios_model::{METRIC_NAME, PartitionId, SeriesHash};
use parking_lot::Mutex;

use crate::intake::Taken;
use crate::rejection::Rejection;
use crate::series_limit::{ByPartition, Existence};

/// New series of requests under way, by metric.
pub(crate) type UnderWay = Arc<Mutex<BTreeMap<String, u64>>>;

/// Which metrics the unknown series of a request are of.
#[derive(Clone, Debug)]
pub(crate) struct MetricsOf {
    /// Most series that each may have.
    pub(crate) limit: u64,
    pub(crate) names: Arc<[String]>,
    /// Places among the names.
    of: Arc<HashMap<SeriesHash, usize>>,
}

impl MetricsOf {
    /// Those of series that were taken in, with their labels.
    pub(crate) fn new(taken: &Taken, unknown: &ByPartition<Arc<[SeriesHash]>>, limit: u64) -> Self {
        let mut places: BTreeMap<&str, usize> = BTreeMap::new();
        let (mut names, mut of) = (Vec::new(), HashMap::new());
        for (partition, unknown) in unknown {
            let unknown: HashSet<SeriesHash> = unknown.iter().copied().collect();
            let columns = taken.parts.get(partition).map(|part| &part.columns);
            for series in columns.into_iter().flat_map(|columns| columns.series()) {
                let metric = series.labels.and_then(|labels| labels.get(METRIC_NAME));
                let Some(metric) = metric.filter(|_| unknown.contains(&series.hash)) else {
                    continue;
                };
                let place = *places.entry(metric).or_insert_with(|| {
                    names.push(metric.to_owned());
                    names.len() - 1
                });
                of.insert(series.hash, place);
            }
        }
        Self {
            limit,
            names: names.into(),
            of: Arc::new(of),
        }
    }

    /// Takes room for new series, and those for which there is none out of `asked`. `counts` are the series that each
    /// metric has.
    pub(crate) fn take(
        &self,
        under_way: &UnderWay,
        counts: &[u64],
        asked: &mut BTreeMap<PartitionId, Vec<(SeriesHash, Existence)>>,
    ) -> (MetricRoom, Vec<Refused>) {
        let mut room = MetricRoom {
            under_way: Arc::clone(under_way),
            taken: BTreeMap::new(),
        };
        let mut refused: BTreeMap<usize, HashSet<SeriesHash>> = BTreeMap::new();
        let mut all = under_way.lock();
        for series in asked.values_mut() {
            series.retain(|(hash, existence)| {
                let place = self.of.get(hash).filter(|_| *existence == Existence::Absent);
                let Some((place, name)) = place.and_then(|place| Some((*place, self.names.get(*place)?)))
                else {
                    return true;
                };
                let others = all.get(name).copied().unwrap_or(0);
                let count = counts.get(place).copied().unwrap_or(0);
                if count.saturating_add(others) >= self.limit {
                    refused.entry(place).or_default().insert(*hash);
                    return false;
                }
                *all.entry(name.clone()).or_default() += 1;
                *room.taken.entry(name.clone()).or_default() += 1;
                true
            });
        }
        drop(all);
        let refusal = |(place, series): (usize, HashSet<SeriesHash>)| {
            let metric = self.names.get(place)?.clone();
            let mine = room.taken.get(&metric).copied().unwrap_or(0);
            let count = counts.get(place).copied().unwrap_or(0);
            let rejection = Rejection::MetricSeriesLimit {
                metric,
                limit: self.limit,
                now: count.saturating_add(mine),
            };
            Some(Refused { rejection, series })
        };
        let refused = refused.into_iter().filter_map(refusal).collect();
        (room, refused)
    }
}

/// Series of one metric that find no room.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) rejection: Rejection,
    pub(crate) series: HashSet<SeriesHash>,
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
