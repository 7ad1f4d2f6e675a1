//! `info`: adds the labels of info metrics to series of the same `instance` and `job`.
//!
//! **Source:** Prometheus `promql/info.go`.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use koios_model::{Labels, LabelsBuilder, METRIC_NAME, Matcher};

use super::row::{Row, RowSet};
use super::select::{SelectTimes, Take};
use super::source::RowSource;
use super::{Evaluator, is_absent, wrong_type};
use crate::context::check;
use crate::error::QueryError;
use crate::plan::{CallNode, Node, info_name_matchers};
use crate::steps::Steps;

/// What identifies the target that an info metric is about.
const IDENTIFYING: [&str; 2] = ["instance", "job"];

/// The matchers of the second argument.
struct DataLabels {
    names: Vec<Matcher>,
    labels: Vec<Matcher>,
}

impl DataLabels {
    fn of(node: &CallNode) -> Result<Self, QueryError> {
        let written: &[Matcher] = match node.args.get(1) {
            Some(Node::Select(s)) => &s.matchers,
            _ => &[],
        };
        let (names, labels): (Vec<_>, Vec<_>) =
            written.iter().cloned().partition(|m| m.name() == METRIC_NAME);
        Ok(Self {
            names: info_name_matchers(names)?,
            labels,
        })
    }

    /// Whether a series is itself an info series.
    fn is_info(&self, labels: &Labels) -> bool {
        self.names.iter().all(|m| m.matches(labels.metric_name()))
    }

    /// Whether a label of an info series is wanted.
    fn wants(&self, name: &str) -> bool {
        self.labels.is_empty() || self.labels.iter().any(|m| m.name() == name)
    }

    /// Whether a series without info series stays.
    fn optional(&self) -> bool {
        self.labels.iter().all(Matcher::matches_empty)
    }
}

impl Evaluator<'_> {
    pub(super) fn info(&mut self, node: &CallNode, steps: Steps) -> Result<Vec<Row>, QueryError> {
        let source = node.info.ok_or_else(|| wrong_type("info source"))?;
        let base = self.vector_arg(node, 0, steps)?;
        let wanted = DataLabels::of(node)?;
        let plain: Vec<bool> = base.iter().map(|row| wanted.is_info(&row.labels)).collect();
        let enriched = base
            .iter()
            .zip(&plain)
            .filter(|(_, plain)| !**plain)
            .map(|(row, _)| row);
        let targets = Targets::of(enriched);
        let infos = if targets.is_empty() {
            Vec::new()
        } else {
            let times = SelectTimes {
                steps,
                at: source.at,
                offset_ms: source.offset_ms,
                lookback_ms: self.options.lookback_delta_ms,
                statistics_only: false,
            };
            let mut rows = self.collect(
                RowSource::Select {
                    source: source.source,
                    times,
                    take: Take::InfoTime,
                },
                steps,
            )?;
            rows.retain(|row| targets.has(&row.labels));
            rows
        };
        let by_target = by_target(&infos);
        let mut out = RowSet::new(steps.count(), self.account);
        for (row, plain) in base.iter().zip(plain) {
            check(self.ctx)?;
            if plain {
                copy(row, &mut out)?;
            } else {
                enrich(row, &by_target, &infos, &wanted, &mut out)?;
            }
        }
        check_unique(&by_target, &infos, &base, steps)?;
        Ok(out.into_rows())
    }
}

/// The values of the identifying labels that occur.
struct Targets(BTreeMap<&'static str, BTreeSet<String>>);

impl Targets {
    fn of<'r>(rows: impl Iterator<Item = &'r Row>) -> Self {
        let mut values: BTreeMap<&'static str, BTreeSet<String>> = BTreeMap::new();
        for row in rows {
            for name in IDENTIFYING {
                if let Some(value) = row.labels.get(name) {
                    values.entry(name).or_default().insert(value.to_owned());
                }
            }
        }
        Self(values)
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn has(&self, labels: &Labels) -> bool {
        self.0
            .iter()
            .all(|(name, values)| labels.get(name).is_some_and(|v| values.contains(v)))
    }
}

fn target(labels: &Labels) -> Labels {
    labels.without(|n| !IDENTIFYING.contains(&n))
}

/// Info series by target, then by metric name.
type ByTarget<'a> = HashMap<Labels, BTreeMap<&'a str, Vec<usize>>>;

fn by_target(infos: &[Row]) -> ByTarget<'_> {
    let mut map: ByTarget<'_> = HashMap::new();
    for (i, row) in infos.iter().enumerate() {
        map.entry(target(&row.labels))
            .or_default()
            .entry(row.metric_name())
            .or_default()
            .push(i);
    }
    map
}

/// The newest of some info series at a step.
fn newest(candidates: &[usize], infos: &[Row], step: usize) -> Option<usize> {
    let mut best: Option<(usize, f64)> = None;
    for &i in candidates {
        let Some(t) = infos
            .get(i)
            .and_then(|r| r.values.get(step))
            .copied()
            .filter(|&t| !is_absent(t))
        else {
            continue;
        };
        if best.is_none_or(|(_, newest)| t > newest) {
            best = Some((i, t));
        }
    }
    best.map(|(i, _)| i)
}

/// Fails if two info series of one name and target are equally new at a step that has anything to enrich.
fn check_unique(
    by_target: &ByTarget<'_>,
    infos: &[Row],
    base: &[Row],
    steps: Steps,
) -> Result<(), QueryError> {
    let shared = by_target
        .values()
        .flat_map(BTreeMap::values)
        .filter(|c| c.len() > 1);
    for candidates in shared {
        for step in (0..steps.count()).filter(|&s| base.iter().any(|r| r.has(s))) {
            let Some(best) = newest(candidates, infos, step).and_then(|i| infos.get(i)) else {
                continue;
            };
            let at = best.values.get(step).copied().unwrap_or_default();
            let rival = candidates
                .iter()
                .filter_map(|&i| infos.get(i))
                .find(|r| r.labels != best.labels && r.values.get(step).is_some_and(|&t| t == at));
            if let Some(rival) = rival {
                let (a, b) = (&best.labels, &rival.labels);
                return Err(QueryError::execution(format!(
                    "found duplicate series for info metric: existing {a} @ {at}, new {b} @ {at}"
                )));
            }
        }
    }
    Ok(())
}

fn copy(row: &Row, out: &mut RowSet<'_>) -> Result<(), QueryError> {
    let target = out.row(&row.labels, row.drop_name)?;
    (0..row.values.len()).try_for_each(|i| out.set(target, i, row.point(i)))
}

fn enrich(
    row: &Row,
    by_target: &ByTarget<'_>,
    infos: &[Row],
    wanted: &DataLabels,
    out: &mut RowSet<'_>,
) -> Result<(), QueryError> {
    let names = by_target.get(&target(&row.labels));
    let mut last: Option<(Vec<usize>, usize)> = None;
    for step in (0..row.values.len()).filter(|&i| row.has(i)) {
        let found: Vec<usize> = names
            .into_iter()
            .flat_map(BTreeMap::values)
            .filter_map(|c| newest(c, infos, step))
            .collect();
        if found.is_empty() && !wanted.optional() {
            continue;
        }
        let to = match &last {
            Some((same, to)) if *same == found => *to,
            _ => {
                let found = found.iter().filter_map(|&i| infos.get(i));
                out.row(&with_info(&row.labels, found, wanted)?, row.drop_name)?
            }
        };
        out.set(to, step, row.point(step))?;
        last = Some((found, to));
    }
    Ok(())
}

/// The labels of a series with those of its info series that it lacks.
fn with_info<'r>(
    base: &Labels,
    infos: impl Iterator<Item = &'r Row>,
    wanted: &DataLabels,
) -> Result<Labels, QueryError> {
    let mut added = LabelsBuilder::default();
    for info in infos {
        for (name, value) in info
            .labels
            .iter()
            .filter(|(n, _)| *n != METRIC_NAME && wanted.wants(n))
        {
            if added.get(name).is_some_and(|v| v != value) {
                return Err(QueryError::execution(format!("conflicting label: {name}")));
            }
            if base.get(name).is_none() {
                added.set(name, value);
            }
        }
    }
    let mut labels = base.to_builder();
    for (name, value) in added.build().iter() {
        labels.set(name, value);
    }
    Ok(labels.build())
}
