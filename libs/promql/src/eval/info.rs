//! `info`: adds the labels of info metrics to series of the same `instance` and `job`.
//!
//! **Source:** Prometheus `promql/info.go`.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use koios_model::{Labels, LabelsBuilder, METRIC_NAME, Matcher};

use super::inputs::Inputs;
use super::row::{Row, RowSet};
use super::select::{SelectTimes, Take};
use super::source::RowSource;
use super::{Evaluator, is_absent, wrong_type};
use crate::error::QueryError;
use crate::memory::{LABELS_ENTRY_BYTES, of_labels};
use crate::plan::{CallNode, Node, info_name_matchers};
use crate::steps::Steps;
use crate::work::Work;

/// What identifies the target that an info metric is about.
const IDENTIFYING: [&str; 2] = ["instance", "job"];

/// The matchers of the second argument.
struct DataLabels {
    names: Vec<Matcher>,
    labels: Vec<Matcher>,
}

impl DataLabels {
    fn of(written: &[Matcher]) -> Result<Self, QueryError> {
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
    pub(super) fn info(
        &mut self,
        node: &CallNode,
        steps: Steps,
        inputs: &mut Inputs<'_>,
    ) -> Result<Vec<Row>, QueryError> {
        let source = node.info.ok_or_else(|| wrong_type("info source"))?;
        let base = inputs.vector()?;
        let labels = node.args.get(1).map(|arg| self.nodes.get(*arg)).transpose()?;
        let wanted = DataLabels::of(match labels {
            Some(Node::Select(s)) => &s.matchers,
            _ => &[],
        })?;
        let mut work = self.work();
        let plain = base.iter().map(|row| {
            work.spend(16)?;
            Ok(wanted.is_info(&row.labels))
        });
        let plain: Vec<bool> = plain.collect::<Result<_, QueryError>>()?;
        let enriched = base
            .iter()
            .zip(&plain)
            .filter(|(_, plain)| !**plain)
            .map(|(row, _)| row);
        let targets = Targets::of(enriched, &mut work)?;
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
        let by_target = by_target(&infos, &mut work)?;
        let mut out = RowSet::new(steps.count(), self.account, self.work());
        for (row, plain) in base.iter().zip(plain) {
            out.spend(16)?;
            if plain {
                copy(row, &mut out)?;
            } else {
                enrich(row, &by_target, &infos, &wanted, &mut out)?;
            }
        }
        check_unique(&by_target, &infos, &base, steps, &mut work)?;
        Ok(out.into_rows())
    }
}

/// The values of the identifying labels that occur.
struct Targets(BTreeMap<&'static str, BTreeSet<String>>);

impl Targets {
    fn of<'r>(rows: impl Iterator<Item = &'r Row>, work: &mut Work<'_>) -> Result<Self, QueryError> {
        let mut values: BTreeMap<&'static str, BTreeSet<String>> = BTreeMap::new();
        for row in rows {
            for name in IDENTIFYING {
                let Some(value) = row.labels.get(name) else {
                    continue;
                };
                let known = values.entry(name).or_default();
                work.spend(16)?;
                if !known.contains(value) {
                    work.hold(LABELS_ENTRY_BYTES + value.len())?;
                    known.insert(value.to_owned());
                }
            }
        }
        Ok(Self(values))
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

fn by_target<'r>(infos: &'r [Row], work: &mut Work<'_>) -> Result<ByTarget<'r>, QueryError> {
    let mut map: ByTarget<'_> = HashMap::new();
    for (i, row) in infos.iter().enumerate() {
        work.spend(16)?;
        // Every target may be a new one, with a tree of names.
        work.hold(4 * LABELS_ENTRY_BYTES + of_labels(&row.labels))?;
        map.entry(target(&row.labels))
            .or_default()
            .entry(row.metric_name())
            .or_default()
            .push(i);
    }
    Ok(map)
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
    work: &mut Work<'_>,
) -> Result<(), QueryError> {
    let mut enriched = None;
    let shared = by_target
        .values()
        .flat_map(BTreeMap::values)
        .filter(|c| c.len() > 1);
    for candidates in shared {
        let enriched = match &mut enriched {
            Some(known) => known,
            unknown => unknown.insert(steps_with_any(base, steps, work)?),
        };
        for &step in enriched.iter() {
            work.spend(1 + candidates.len())?;
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

/// The steps at which any row has something.
fn steps_with_any(rows: &[Row], steps: Steps, work: &mut Work<'_>) -> Result<Vec<usize>, QueryError> {
    let mut found = Vec::new();
    for i in 0..steps.count() {
        let first = rows.iter().position(|r| r.has(i));
        work.spend(1 + first.unwrap_or(rows.len()))?;
        work.hold(2 * size_of::<usize>())?;
        found.extend(first.map(|_| i));
    }
    Ok(found)
}

fn copy(row: &Row, out: &mut RowSet<'_>) -> Result<(), QueryError> {
    let target = out.row(&row.labels, row.drop_name)?;
    (0..row.values.len()).try_for_each(|i| {
        out.spend(1)?;
        out.set(target, i, row.point(i))
    })
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
        let candidates = names.into_iter().flat_map(BTreeMap::values).map(Vec::len);
        out.spend(2 + candidates.sum::<usize>())?;
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
