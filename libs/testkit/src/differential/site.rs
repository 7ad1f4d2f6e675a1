//! Where a difference comes from: the parts of a query that differ although nothing below them does.

use anyhow::Result;
use koios_promql::{At, Expr, ParenExpr, SubqueryExpr, ValueType, VectorSelector, parse};

use super::answer::{Answer, Difference};
use super::peers::{Peers, in_our_words};
use crate::query_gen::{Asked, Times};

/// The default resolution of subqueries, on both sides.
const DEFAULT_SUBQUERY_STEP_MS: i64 = 60_000;

/// A part of a query that differs although its operands do not.
#[derive(Clone, Debug)]
pub struct Site {
    /// The part as a query of its own.
    pub asked: Asked,
    /// As Koios parses it, if it does.
    pub expr: Option<Expr>,
    /// What Prometheus answers.
    pub prometheus: Answer,
    /// What Koios answers.
    pub koios: Answer,
    /// How these differ.
    pub difference: Difference,
    /// Whether Prometheus answers this differently from one time to the next.
    pub wavers: bool,
    /// The operands; those that can not be asked by themselves at these times are left out.
    pub operands: Vec<Operand>,
}

/// An operand with the equal answers of both sides.
#[derive(Clone, Debug)]
pub struct Operand {
    /// As a query of its own.
    pub asked: Asked,
    /// The tree.
    pub expr: Expr,
    /// What Prometheus answers.
    pub prometheus: Answer,
    /// What Koios answers.
    pub koios: Answer,
}

/// A query with both answers.
struct Compared {
    asked: Asked,
    expr: Option<Expr>,
    prometheus: Answer,
    koios: Answer,
    difference: Option<Difference>,
}

/// All sites of a query that differs; empty when asking again shows no difference.
///
/// # Errors
/// When one side gives no answer that is one.
pub async fn sites(peers: &Peers, asked: &Asked) -> Result<Vec<Site>> {
    let (mut sites, mut left) = (Vec::new(), vec![asked.clone()]);
    while let Some(asked) = left.pop() {
        let compared = at_one_time(peers, pinned(peers, compare(peers, asked).await?).await?).await?;
        let (below, site) = split(peers, compared).await?;
        left.extend(below);
        sites.extend(site);
    }
    Ok(sites)
}

/// The query as a site, if it is one: it differs and its operands do not.
///
/// # Errors
/// When one side gives no answer that is one.
pub async fn as_site(peers: &Peers, asked: Asked) -> Result<Option<Site>> {
    let compared = compare(peers, asked).await?;
    Ok(split(peers, compared).await?.1)
}

/// The operands that differ; where none does, the site.
async fn split(peers: &Peers, compared: Compared) -> Result<(Vec<Asked>, Option<Site>)> {
    let Some(difference) = compared.difference.clone() else {
        return Ok((Vec::new(), None));
    };
    let (mut differing, mut operands) = (Vec::new(), Vec::new());
    for asked in compared
        .expr
        .iter()
        .flat_map(|expr| operands_of(expr, compared.asked.times))
    {
        let operand = compare(peers, asked).await?;
        match (operand.difference, operand.expr) {
            (None, Some(expr)) => operands.push(Operand {
                asked: operand.asked,
                expr,
                prometheus: operand.prometheus,
                koios: operand.koios,
            }),
            (None, None) => {}
            (Some(_), _) => differing.push(operand.asked),
        }
    }
    if !differing.is_empty() {
        return Ok((differing, None));
    }
    let site = Site {
        wavers: wavers(peers, &compared).await?,
        asked: compared.asked,
        expr: compared.expr,
        prometheus: compared.prometheus,
        koios: compared.koios,
        difference,
        operands,
    };
    Ok((Vec::new(), Some(site)))
}

/// Whether Prometheus gives another answer when asked a few times more.
async fn wavers(peers: &Peers, compared: &Compared) -> Result<bool> {
    for _ in 0..4 {
        let (again, _) = peers.ask(&compared.asked).await?;
        if !again.identical(&compared.prometheus) {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn compare(peers: &Peers, asked: Asked) -> Result<Compared> {
    let expr = parse(&in_our_words(&asked.query)).ok().map(without_parens);
    let (prometheus, koios) = peers.ask(&asked).await?;
    let difference = Answer::difference(&prometheus, &koios, expr.as_ref().is_some_and(is_ordered));
    Ok(Compared {
        asked,
        expr,
        prometheus,
        koios,
        difference,
    })
}

/// Whether the order of an instant query's result means something.
pub(super) fn is_ordered(expr: &Expr) -> bool {
    use koios_promql::{AggregateOp, FunctionId};
    match expr {
        Expr::Aggregate(e) => {
            matches!(e.op, AggregateOp::Topk | AggregateOp::Bottomk) && e.grouping.is_empty() && !e.without
        }
        Expr::Call(e) => matches!(e.function, FunctionId::Sort | FunctionId::SortDesc),
        _ => false,
    }
}

fn without_parens(expr: Expr) -> Expr {
    match expr {
        Expr::Paren(paren) => without_parens(paren.expr),
        expr => expr,
    }
}

/// The operands as queries; range vectors have no value over time, numbers and strings do not differ.
fn operands_of(expr: &Expr, times: Times) -> Vec<Asked> {
    let at = match times {
        Times::At(t) => Some(t),
        Times::Range { .. } => None,
    };
    if let Expr::Subquery(subquery) = expr {
        let times = at.and_then(|t| grid(subquery, t));
        let asked = |times| Asked {
            query: subquery.expr.unwrap_parens().to_string(),
            times,
        };
        return times.map(asked).into_iter().collect();
    }
    expr.children()
        .map(Expr::unwrap_parens)
        .filter(|child| !matches!(child, Expr::Number(_) | Expr::String(_)))
        .filter(|child| at.is_some() || child.value_type() != ValueType::Matrix)
        .map(|child| Asked {
            query: child.to_string(),
            times,
        })
        .collect()
}

/// The times a subquery evaluates at; none when there are none, or when durations are not numbers.
pub(super) fn grid(subquery: &SubqueryExpr, t: i64) -> Option<Times> {
    let at = match subquery.at {
        Some(At::Timestamp(at)) => at,
        Some(At::Start | At::End) | None => t,
    };
    let end = at.checked_sub(subquery.offset.millis()?)?;
    let after = end.checked_sub(subquery.range.millis()?)?;
    let step = match &subquery.step {
        Some(step) => step.millis().filter(|ms| *ms > 0)?,
        None => DEFAULT_SUBQUERY_STEP_MS,
    };
    let start = (after.div_euclid(step) + 1).checked_mul(step)?;
    (start <= end).then_some(Times::Range { start, end, step })
}

/// The query with `start()` and `end()` as numbers, so that parts of it can be asked at other times.
async fn pinned(peers: &Peers, compared: Compared) -> Result<Compared> {
    let Some(mut expr) = compared.expr.clone() else {
        return Ok(compared);
    };
    if !pin(&mut expr, compared.asked.times) {
        return Ok(compared);
    }
    let asked = Asked {
        query: expr.to_string(),
        times: compared.asked.times,
    };
    let pinned = compare(peers, asked).await?;
    Ok(if pinned.difference.is_some() {
        pinned
    } else {
        compared
    })
}

/// Whether there was anything to pin.
fn pin(expr: &mut Expr, times: Times) -> bool {
    let pin_one = |at: &mut Option<At>| {
        let ms = match at {
            Some(At::Start) => times.start(),
            Some(At::End) => times.end(),
            Some(At::Timestamp(_)) | None => return false,
        };
        *at = Some(At::Timestamp(ms));
        true
    };
    let mut pinned = match expr {
        Expr::Vector(selector) => pin_one(&mut selector.at),
        Expr::Matrix(matrix) => pin_one(&mut matrix.selector.at),
        Expr::Subquery(subquery) => pin_one(&mut subquery.at),
        _ => false,
    };
    for child in expr.children_mut() {
        pinned |= pin(child, times);
    }
    pinned
}

/// The query at a single time, if it differs at one.
async fn at_one_time(peers: &Peers, compared: Compared) -> Result<Compared> {
    let mut steps = match compared.asked.times {
        Times::At(_) => return Ok(compared),
        times @ Times::Range { .. } => times.steps(),
    };
    if let Some(Difference::Value { t_ms, .. }) = &compared.difference {
        // Where it was seen is where to look first.
        steps.sort_by_key(|t| t != t_ms);
    }
    for t in steps {
        let asked = Asked {
            query: compared.asked.query.clone(),
            times: Times::At(t),
        };
        let one = compare(peers, asked).await?;
        if one.difference.is_some() {
            return Ok(one);
        }
    }
    Ok(compared)
}

/// Expressions that are like this one but smaller; some may not be valid.
pub(super) fn smaller(expr: &Expr) -> Vec<Expr> {
    let mut found = stripped(expr);
    for (i, child) in expr.children().enumerate() {
        let same_type = below(child)
            .filter(|e| e.value_type() == child.value_type())
            .cloned();
        for replacement in same_type.chain(smaller(child)) {
            let mut copy = expr.clone();
            if let Some(place) = copy.children_mut().nth(i) {
                *place = in_parens(replacement);
            }
            found.push(copy);
        }
    }
    found
}

fn in_parens(expr: Expr) -> Expr {
    match expr {
        Expr::Binary(_) | Expr::Unary(_) | Expr::Number(_) => Expr::Paren(Box::new(ParenExpr {
            span: expr.span(),
            expr,
        })),
        expr => expr,
    }
}

/// All expressions below one.
fn below(expr: &Expr) -> impl Iterator<Item = &Expr> {
    let mut all = Vec::new();
    expr.visit(&mut |e, path| {
        if !path.is_empty() {
            all.push(e);
        }
    });
    all.into_iter()
}

/// The expression with a modifier, a matcher or a label less.
fn stripped(expr: &Expr) -> Vec<Expr> {
    let mut found = Vec::new();
    match expr {
        Expr::Vector(selector) => {
            found.extend(
                stripped_selectors(selector)
                    .into_iter()
                    .map(|s| Expr::Vector(Box::new(s))),
            );
        }
        Expr::Matrix(matrix) => {
            found.extend(stripped_selectors(&matrix.selector).into_iter().map(|selector| {
                let mut copy = matrix.clone();
                copy.selector = selector;
                Expr::Matrix(copy)
            }));
        }
        Expr::Subquery(subquery) => {
            let mut copy = subquery.clone();
            (copy.at, copy.offset) = (None, Default::default());
            found.push(Expr::Subquery(copy));
        }
        Expr::Aggregate(aggregate) => {
            for i in 0..aggregate.grouping.len() {
                let mut copy = aggregate.clone();
                copy.grouping.remove(i);
                found.push(Expr::Aggregate(copy));
            }
        }
        Expr::Binary(binary) => {
            let mut copy = binary.clone();
            if let Some(matching) = &mut copy.matching
                && matching.include.pop().is_some()
            {
                found.push(Expr::Binary(copy));
            }
        }
        Expr::Paren(paren) => found.push(paren.expr.clone()),
        Expr::Call(_) | Expr::Number(_) | Expr::String(_) | Expr::Unary(_) => {}
    }
    found.retain(|e| e != expr);
    found
}

fn stripped_selectors(selector: &VectorSelector) -> Vec<VectorSelector> {
    let mut found = Vec::new();
    if selector.at.is_some() || !selector.offset.is_zero() {
        let mut copy = selector.clone();
        (copy.at, copy.offset) = (None, Default::default());
        found.push(copy);
    }
    for i in 0..selector.matchers.len() {
        let mut copy = selector.clone();
        let mut matchers = selector.matchers.to_vec();
        if matchers.remove(i).name() != koios_model::METRIC_NAME {
            copy.matchers = matchers.into();
            found.push(copy);
        }
    }
    found
}
