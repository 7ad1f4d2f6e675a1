//! Vector matching: one-to-one, many-to-one and one-to-many operations.

use std::collections::HashMap;

use koios_model::{Labels, LabelsBuilder};

use super::binary::{float_with_float, operand};
use super::operators::{Operand, changes_meaning, combine};
use super::row::{Point, Row, RowSet, histogram_weight, is_metadata_label, same_labelset};
use super::{Evaluator, is_absent};
use crate::ast::{BinaryOp, Cardinality, VectorMatching};
use crate::error::QueryError;
use crate::memory::{LABELS_ENTRY_BYTES, of_labels};
use crate::plan::BinaryNode;
use crate::work::Work;

impl Evaluator<'_> {
    /// One-to-one, many-to-one and one-to-many operations.
    pub(super) fn matched(
        &mut self,
        node: &BinaryNode,
        matching: &VectorMatching,
        lhs: Vec<Row>,
        rhs: Vec<Row>,
        steps: usize,
    ) -> Result<Vec<Row>, QueryError> {
        let swapped = matching.card == Cardinality::OneToMany;
        let (many, one) = if swapped { (rhs, lhs) } else { (lhs, rhs) };
        let mut work = self.work();
        let groups = Groups::new(&many, &one, matching, &mut work)?;
        groups.check_one_side(&many, &one, matching, steps, &mut work)?;
        let mut join = Join {
            node,
            matching,
            swapped,
            out: RowSet::new(steps, self.account, self.work()),
            used: vec![Vec::new(); groups.keys.len()],
            claims: HashMap::new(),
            steps,
            work,
        };
        for (row, &group) in many.iter().zip(&groups.of_many) {
            let partners = groups.partners(group, &one);
            for partner in &partners {
                self.join_rows(&mut join, group, Side::Row(row), Side::Row(partner))?;
            }
            if let (Some(fill), Some(key)) = (matching.fill.rhs, groups.keys.get(group)) {
                let missing = Side::Missing {
                    key,
                    fill,
                    unless: &partners,
                };
                self.join_rows(&mut join, group, Side::Row(row), missing)?;
            }
        }
        for (row, &group) in one.iter().zip(&groups.of_one) {
            if let (Some(fill), Some(key)) = (matching.fill.lhs, groups.keys.get(group)) {
                let missing = Side::Missing {
                    key,
                    fill,
                    unless: &[],
                };
                self.join_rows(&mut join, group, missing, Side::Row(row))?;
            }
        }
        Ok(join.out.into_rows())
    }

    /// Combines two series, or one with a fill value, at every step where both sides have something.
    fn join_rows(
        &mut self,
        join: &mut Join<'_>,
        group: usize,
        many: Side<'_>,
        one: Side<'_>,
    ) -> Result<(), QueryError> {
        let node = join.node;
        if let (Side::Row(many), Side::Row(one)) = (many, one)
            && many.histograms.is_empty()
            && one.histograms.is_empty()
            && !matches!(node.op, BinaryOp::TrimUpper | BinaryOp::TrimLower)
        {
            return join.floats(group, many, one);
        }
        let filled_left = matches!(many, Side::Missing { .. });
        join.work.spend(32)?;
        let already: Vec<bool> = if filled_left {
            join.used.get(group).cloned().unwrap_or_default()
        } else {
            Vec::new()
        };
        let mut target = None;
        for i in 0..join.steps {
            join.work.spend(1 + many.weight(i) + one.weight(i))?;
            let (Some(m), Some(o)) = (many.at(i), one.at(i)) else {
                continue;
            };
            if filled_left && already.get(i).copied().unwrap_or(false) {
                continue;
            }
            let (l, r) = if join.swapped { (o, m) } else { (m, o) };
            let Some((point, keep)) = combine(node.op, l, r, &mut self.annotations, node.span) else {
                continue;
            };
            let out = match target {
                Some(out) => out,
                None => {
                    let labels = result_labels(many.labels(), one.labels(), node.op, join.matching);
                    join.out.row(&labels, node.return_bool || many.drops_name())?
                }
            };
            target = Some(out);
            join.claim(group, out, i)?;
            if node.return_bool {
                join.out.set(out, i, Point::Float(f64::from(u8::from(keep))))?;
            } else if keep {
                join.out.set(out, i, point)?;
            }
        }
        Ok(())
    }
}

/// One side of a join: a series, or a value that stands in where its series have nothing.
#[derive(Clone, Copy)]
enum Side<'a> {
    Row(&'a Row),
    Missing {
        key: &'a Labels,
        fill: f64,
        unless: &'a [&'a Row],
    },
}

impl<'a> Side<'a> {
    fn at(&self, i: usize) -> Option<Operand<'a>> {
        match *self {
            Self::Row(row) => operand(row, i),
            Self::Missing { fill, unless, .. } => {
                (!unless.iter().any(|row| row.has(i))).then_some(Operand::Float(fill))
            }
        }
    }

    /// How much there is to look at.
    fn weight(&self, i: usize) -> usize {
        match *self {
            Self::Row(row) => row.histogram(i).map_or(0, |h| 4 * histogram_weight(h)),
            Self::Missing { unless, .. } => unless.len(),
        }
    }

    /// Whether the series is to lose its name: a comparison does not give it back.
    fn drops_name(&self) -> bool {
        matches!(self, Self::Row(row) if row.drop_name)
    }

    fn labels(&self) -> &'a Labels {
        match *self {
            Self::Row(row) => &row.labels,
            Self::Missing { key, .. } => key,
        }
    }
}

/// The state of one matched operation.
struct Join<'a> {
    node: &'a BinaryNode,
    matching: &'a VectorMatching,
    swapped: bool,
    out: RowSet<'a>,
    /// Per group: at which steps it has been matched.
    used: Vec<Vec<bool>>,
    /// Per group and result row: at which steps it has been made. Not for one-to-one matching, where `used` tells.
    claims: HashMap<(usize, usize), Vec<bool>>,
    steps: usize,
    work: Work<'a>,
}

impl Join<'_> {
    /// Combines two series that have floats only.
    fn floats(&mut self, group: usize, many: &Row, one: &Row) -> Result<(), QueryError> {
        let node = self.node;
        self.work.spend(32)?;
        let both = |(m, o): (&f64, &f64)| !is_absent(*m) & !is_absent(*o);
        let mut pairs = many.values.iter().zip(&one.values);
        match pairs.position(both) {
            Some(at) => self.work.spend(at / LOOKS_PER_UNIT)?,
            None => return self.work.spend(self.steps / LOOKS_PER_UNIT),
        }
        let labels = result_labels(&many.labels, &one.labels, node.op, self.matching);
        let place = self.out.row(&labels, node.return_bool || many.drop_name)?;
        let (Some(used), Some(out)) = (self.used.get_mut(group), self.out.row_mut(place)) else {
            return Ok(());
        };
        flag_steps(used, self.steps, &mut self.work)?;
        let pairs = (&many.values[..], &one.values[..]);
        if self.matching.card == Cardinality::OneToOne {
            return write_pairs(node, self.swapped, pairs, (out, &mut self.work), |i| {
                match set(used, i) {
                    true => Err(many_to_one_must_be_explicit()),
                    false => Ok(()),
                }
            });
        }
        let claims = self.claims.entry((group, place)).or_default();
        flag_steps(claims, self.steps, &mut self.work)?;
        write_pairs(node, self.swapped, pairs, (out, &mut self.work), |i| {
            set(used, i);
            match set(claims, i) {
                true => Err(matches_must_be_unique()),
                false => Ok(()),
            }
        })
    }

    /// Notes a match; fails if the "many" side turns out to be ambiguous.
    fn claim(&mut self, group: usize, out: usize, step: usize) -> Result<(), QueryError> {
        let steps = self.steps;
        let matched_before = match self.used.get_mut(group) {
            Some(used) => mark(used, step, steps, &mut self.work)?,
            None => false,
        };
        if self.matching.card == Cardinality::OneToOne {
            if matched_before {
                return Err(many_to_one_must_be_explicit());
            }
        } else if mark(
            self.claims.entry((group, out)).or_default(),
            step,
            steps,
            &mut self.work,
        )? {
            return Err(matches_must_be_unique());
        }
        Ok(())
    }
}

/// Writes what an operation makes of each pair of floats; each step that has one is claimed first.
#[inline]
fn write_pairs(
    node: &BinaryNode,
    swapped: bool,
    (many, one): (&[f64], &[f64]),
    (out, work): (&mut Row, &mut Work<'_>),
    mut claim: impl FnMut(usize) -> Result<(), QueryError>,
) -> Result<(), QueryError> {
    for (i, (&m, &o)) in many.iter().zip(one).enumerate() {
        work.spend(1)?;
        if is_absent(m) | is_absent(o) {
            continue;
        }
        claim(i)?;
        let (l, r) = if swapped { (o, m) } else { (m, o) };
        let value = float_with_float(node, l, r, false);
        if is_absent(value) {
            continue;
        }
        if out.has(i) {
            return Err(same_labelset());
        }
        if let Some(slot) = out.values.get_mut(i) {
            *slot = value;
        }
    }
    Ok(())
}

/// How many steps are looked at for a pair in one unit of work.
const LOOKS_PER_UNIT: usize = 4;

/// What a list of claims occupies beside its flags.
const CLAIM_BYTES: usize = 80;

fn many_to_one_must_be_explicit() -> QueryError {
    QueryError::execution(
        "multiple matches for labels: many-to-one matching must be explicit (group_left/group_right)",
    )
}

fn matches_must_be_unique() -> QueryError {
    QueryError::execution("multiple matches for labels: grouping labels must ensure unique matches")
}

/// Makes one flag per step where there are none.
fn flag_steps(flags: &mut Vec<bool>, steps: usize, work: &mut Work<'_>) -> Result<(), QueryError> {
    if flags.is_empty() {
        work.hold(steps.saturating_add(CLAIM_BYTES))?;
        *flags = work.filled(&false, steps)?;
    }
    Ok(())
}

/// Sets a flag, making flags where there are none; tells whether it was set.
fn mark(flags: &mut Vec<bool>, at: usize, len: usize, work: &mut Work<'_>) -> Result<bool, QueryError> {
    flag_steps(flags, len, work)?;
    Ok(set(flags, at))
}

/// Sets a flag; tells whether it was set.
#[inline]
fn set(flags: &mut [bool], at: usize) -> bool {
    flags
        .get_mut(at)
        .is_some_and(|flag| std::mem::replace(flag, true))
}

/// The labels that decide which series belong together.
pub(super) fn match_key(labels: &Labels, matching: &VectorMatching) -> Labels {
    let named = |n: &str| matching.labels.iter().any(|l| l == n);
    if matching.on {
        labels.without(|n| !named(n))
    } else {
        labels.without(|n| n == koios_model::METRIC_NAME || named(n))
    }
}

/// The series of both sides by match key.
struct Groups {
    keys: Vec<Labels>,
    of_many: Vec<usize>,
    of_one: Vec<usize>,
    /// Per key, the series of the "one" side.
    ones: Vec<Vec<usize>>,
}

impl Groups {
    fn new(
        many: &[Row],
        one: &[Row],
        matching: &VectorMatching,
        work: &mut Work<'_>,
    ) -> Result<Self, QueryError> {
        work.hold((many.len() + one.len()).saturating_mul(4 * size_of::<usize>()))?;
        let mut by_key: HashMap<Labels, usize> = HashMap::new();
        let mut keys = Vec::new();
        let mut group = |row: &Row| {
            work.spend(16)?;
            let key = match_key(&row.labels, matching);
            if let Some(&group) = by_key.get(&key) {
                return Ok(group);
            }
            work.hold(3 * LABELS_ENTRY_BYTES + of_labels(&key))?;
            keys.push(key.clone());
            by_key.insert(key, keys.len() - 1);
            Ok(keys.len() - 1)
        };
        let of_many = many
            .iter()
            .map(&mut group)
            .collect::<Result<Vec<usize>, QueryError>>()?;
        let of_one = one
            .iter()
            .map(&mut group)
            .collect::<Result<Vec<usize>, QueryError>>()?;
        let mut ones = vec![Vec::new(); keys.len()];
        for (i, &g) in of_one.iter().enumerate() {
            if let Some(members) = ones.get_mut(g) {
                members.push(i);
            }
        }
        Ok(Self {
            keys,
            of_many,
            of_one,
            ones,
        })
    }

    /// The series of the "one" side in a group.
    fn partners<'r>(&self, group: usize, one: &'r [Row]) -> Vec<&'r Row> {
        let members = self.ones.get(group).map_or(&[][..], Vec::as_slice);
        members.iter().filter_map(|&o| one.get(o)).collect()
    }

    /// Fails if two series of the "one" side share a key at a step where there is something to match.
    fn check_one_side(
        &self,
        many: &[Row],
        one: &[Row],
        matching: &VectorMatching,
        steps: usize,
        work: &mut Work<'_>,
    ) -> Result<(), QueryError> {
        let fills = matching.fill.lhs.is_some() || matching.fill.rhs.is_some();
        if !self.ones.iter().any(|members| members.len() > 1) {
            return Ok(());
        }
        work.hold(steps)?;
        let mut wanted = vec![fills; steps];
        for (i, wanted) in wanted.iter_mut().enumerate().filter(|(_, wanted)| !**wanted) {
            let first = many.iter().position(|r| r.has(i));
            work.spend(1 + first.unwrap_or(many.len()))?;
            *wanted = first.is_some();
        }
        for (key, members) in self.keys.iter().zip(&self.ones).filter(|(_, m)| m.len() > 1) {
            for i in 0..steps {
                work.spend(1 + members.len())?;
                let mut present = members.iter().filter_map(|&o| one.get(o)).filter(|r| r.has(i));
                let (Some(a), Some(b)) = (present.next(), present.next()) else {
                    continue;
                };
                if !wanted.get(i).copied().unwrap_or(false) {
                    continue;
                }
                return Err(duplicate(key, &a.labels, &b.labels, matching));
            }
        }
        Ok(())
    }
}

fn duplicate(key: &Labels, a: &Labels, b: &Labels, matching: &VectorMatching) -> QueryError {
    let side = if matching.card == Cardinality::OneToMany {
        "left"
    } else {
        "right"
    };
    let (mut a, mut b) = (a.to_string(), b.to_string());
    if a > b {
        std::mem::swap(&mut a, &mut b);
    }
    QueryError::execution(format!(
        "found duplicate series for the match group {key} on the {side} hand-side of the operation: [{a}, {b}];\
         many-to-many matching not allowed: matching labels must be unique on one side"
    ))
}

/// The labels of a result: those of the "many" side as the matching changes them.
fn result_labels(many: &Labels, one: &Labels, op: BinaryOp, matching: &VectorMatching) -> Labels {
    let named = |n: &str| matching.labels.iter().any(|l| l == n);
    let unnamed = |n: &str| changes_meaning(op) && is_metadata_label(n);
    let labels = match (matching.card, matching.on) {
        (Cardinality::OneToOne, true) => many.without(|n| unnamed(n) || !named(n)),
        (Cardinality::OneToOne, false) => many.without(|n| unnamed(n) || named(n)),
        _ => many.without(unnamed),
    };
    if matching.include.is_empty() {
        return labels;
    }
    let mut builder: LabelsBuilder = labels.to_builder();
    for name in &matching.include {
        builder.set(name, one.get(name).unwrap_or(""));
    }
    builder.build()
}
