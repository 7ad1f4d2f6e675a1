//! Where a difference comes from: the parts of a query that differ although nothing below them does.

use std::collections::HashSet;

use anyhow::Result;
use koios_promql::{Ast, At, Expr, ExprId, ExprRef, SubqueryExpr, ValueType, parse};

use super::answer::{Answer, Difference};
use super::known::chooses;
use super::peers::{Peers, in_our_words};
use crate::query_gen::{Asked, Times};

/// The default resolution of subqueries, on both sides.
const DEFAULT_SUBQUERY_STEP_MS: i64 = 60_000;
/// How many parts of one query are compared, all steps of all subqueries taken together.
const COMPARISONS_MAX: usize = 1_000;
/// How often Prometheus is asked again whether it chooses as Koios did.
const CHOICES_MAX: usize = 32;

/// A part of a query that differs although its operands do not.
#[derive(Clone, Debug)]
pub(super) struct Site {
    /// The part as a query of its own.
    pub(super) asked: Asked,
    /// As Koios parses it, if it does.
    pub(super) ast: Option<Ast>,
    /// What Prometheus answers.
    pub(super) prometheus: Answer,
    /// What Koios answers.
    pub(super) koios: Answer,
    /// How these differ.
    pub(super) difference: Difference,
    /// Whether there is a choice in it, and Prometheus, asked again, chooses as Koios did.
    pub(super) chosen_alike: bool,
    /// What Prometheus, where it refuses the query, answers to it as Koios prints it, without durations for numbers.
    pub(super) respelled: Option<Answer>,
    /// The operands; those that can not be asked by themselves at these times are left out.
    pub(super) operands: Vec<Operand>,
}

/// An operand with the answers of both sides, which differ by rounding at most.
#[derive(Clone, Debug)]
pub(super) struct Operand {
    /// As a query of its own.
    pub(super) asked: Asked,
    /// What Prometheus answers.
    pub(super) prometheus: Answer,
    /// What Koios answers.
    pub(super) koios: Answer,
}

impl Site {
    /// What the part is, if Koios parses it.
    pub(super) fn expr(&self) -> Option<&Expr> {
        self.ast.as_ref().map(|ast| ast.root().expr())
    }

    /// An expression within it, without parentheses around it.
    pub(super) fn within(&self, id: ExprId) -> Option<ExprRef<'_>> {
        self.ast.as_ref().map(|ast| ast.at(id).unwrap_parens())
    }

    /// The answers to an operand, if it could be asked.
    pub(super) fn operand(&self, id: ExprId) -> Option<&Operand> {
        let text = self.within(id)?.to_string();
        self.operands.iter().find(|operand| operand.asked.query == text)
    }
}

/// What came of taking a query apart.
#[derive(Clone, Debug, Default)]
pub(super) struct Sites {
    /// The sites; none when asking again shows no difference.
    pub(super) found: Vec<Site>,
    /// How many parts were not looked at because there were too many.
    pub(super) left: usize,
}

/// A query with both answers.
struct Compared {
    asked: Asked,
    ast: Option<Ast>,
    prometheus: Answer,
    koios: Answer,
    difference: Option<Difference>,
}

/// All sites of a query that differs: every step of a range at which it does is taken apart by itself, and the range as
/// a whole where its steps do not account for all that is different.
///
/// # Errors
/// When one side gives no answer that is one.
pub(super) async fn sites(peers: &Peers, asked: &Asked) -> Result<Sites> {
    let mut search = Search {
        peers,
        seen: HashSet::new(),
        left: vec![asked.clone()],
        sites: Vec::new(),
    };
    while search.seen.len() < COMPARISONS_MAX {
        let Some(asked) = search.left.pop() else { break };
        search.judge(asked).await?;
    }
    Ok(Sites {
        found: search.sites,
        left: search.left.len(),
    })
}

struct Search<'a> {
    peers: &'a Peers,
    seen: HashSet<Asked>,
    left: Vec<Asked>,
    sites: Vec<Site>,
}

impl Search<'_> {
    async fn judge(&mut self, asked: Asked) -> Result<()> {
        if !self.seen.insert(asked.clone()) {
            return Ok(());
        }
        let compared = compare(self.peers, asked).await?;
        if compared.difference.is_none() {
            return Ok(());
        }
        let compared = pinned(self.peers, compared).await?;
        if self.steps_account_for(&compared).await? {
            return Ok(());
        }
        self.split(compared).await
    }

    async fn split(&mut self, compared: Compared) -> Result<()> {
        let (below, site) = split(self.peers, compared).await?;
        self.left.extend(below);
        self.sites.extend(site);
        Ok(())
    }

    /// Takes the query apart at every single time at which it differs; whether that is all there is to it.
    async fn steps_account_for(&mut self, compared: &Compared) -> Result<bool> {
        let times @ Times::Range { .. } = compared.asked.times else {
            return Ok(false);
        };
        let of_difference = compared.prometheus.times_of_difference(&compared.koios);
        let mut steps = times.steps();
        if let Some(differing) = &of_difference {
            steps.retain(|t| differing.contains(t));
        }
        let mut differing = 0;
        let of_steps = steps.len();
        for t in steps {
            let asked = Asked {
                query: compared.asked.query.clone(),
                times: Times::At(t),
            };
            if !self.seen.insert(asked.clone()) {
                differing += 1;
                continue;
            }
            let one = compare(self.peers, asked).await?;
            let alike = match (&one.difference, &of_difference) {
                (None, _) => false,
                (Some(_), Some(_)) => true,
                // The range fails as this step does.
                (Some(difference), None) => Some(difference) == compared.difference.as_ref(),
            };
            differing += usize::from(alike);
            if one.difference.is_some() {
                self.split(one).await?;
            }
        }
        Ok(match of_difference {
            Some(_) => of_steps > 0 && differing == of_steps,
            None => differing > 0,
        })
    }
}

/// The query as a site, if it is one: it differs and its operands do not.
///
/// # Errors
/// When one side gives no answer that is one.
pub(super) async fn as_site(peers: &Peers, asked: Asked) -> Result<Option<Site>> {
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
        .ast
        .iter()
        .flat_map(|ast| operands_of(ast.root(), compared.asked.times))
    {
        let operand = compare(peers, asked).await?;
        match operand.difference {
            None => operands.push(Operand {
                asked: operand.asked,
                prometheus: operand.prometheus,
                koios: operand.koios,
            }),
            Some(_) => differing.push(operand.asked),
        }
    }
    if !differing.is_empty() {
        return Ok((differing, None));
    }
    let site = Site {
        chosen_alike: chosen_alike(peers, &compared).await?,
        respelled: respelled(peers, &compared).await?,
        asked: compared.asked,
        ast: compared.ast,
        prometheus: compared.prometheus,
        koios: compared.koios,
        difference,
        operands,
    };
    Ok((Vec::new(), Some(site)))
}

async fn chosen_alike(peers: &Peers, compared: &Compared) -> Result<bool> {
    if !compared.ast.as_ref().is_some_and(chooses) {
        return Ok(false);
    }
    for _ in 0..CHOICES_MAX {
        let again = peers.ask_prometheus(&compared.asked).await?;
        if difference(&again, &compared.koios, compared.ast.as_ref()).is_none() {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn respelled(peers: &Peers, compared: &Compared) -> Result<Option<Answer>> {
    let (Some(_), Some(ast)) = (compared.prometheus.failure(), &compared.ast) else {
        return Ok(None);
    };
    let mut ast = ast.clone();
    durations_to_numbers(&mut ast);
    let asked = Asked {
        query: ast.to_string(),
        times: compared.asked.times,
    };
    if asked.query == compared.asked.query {
        return Ok(None);
    }
    peers.ask_prometheus(&asked).await.map(Some)
}

fn durations_to_numbers(ast: &mut Ast) {
    for expr in ast.exprs_mut() {
        if let Expr::Number(number) = expr {
            number.duration = false;
        }
    }
}

async fn compare(peers: &Peers, asked: Asked) -> Result<Compared> {
    let ast = parse(&in_our_words(&asked.query)).ok();
    let ast = ast.map(|ast| ast.root().unwrap_parens().to_ast());
    let (prometheus, koios) = peers.ask(&asked).await?;
    let difference = difference(&prometheus, &koios, ast.as_ref());
    Ok(Compared {
        asked,
        ast,
        prometheus,
        koios,
        difference,
    })
}

/// How answers to an expression differ.
pub(super) fn difference(prometheus: &Answer, koios: &Answer, ast: Option<&Ast>) -> Option<Difference> {
    let ordered = ast.is_some_and(|ast| is_ordered(ast.root().unwrap_parens().expr()));
    Answer::difference(prometheus, koios, ordered)
}

/// Whether the order of an instant query's result means something.
fn is_ordered(expr: &Expr) -> bool {
    use koios_promql::{AggregateOp, FunctionId};
    match expr {
        Expr::Aggregate(e) => {
            matches!(e.op, AggregateOp::Topk | AggregateOp::Bottomk) && e.grouping.is_empty() && !e.without
        }
        Expr::Call(e) => matches!(e.function, FunctionId::Sort | FunctionId::SortDesc),
        _ => false,
    }
}

/// The operands as queries; range vectors have no value over time, numbers and strings do not differ.
fn operands_of(expr: ExprRef<'_>, times: Times) -> Vec<Asked> {
    let at = match times {
        Times::At(t) => Some(t),
        Times::Range { .. } => None,
    };
    if let Expr::Subquery(subquery) = expr.expr() {
        let times = at.and_then(|t| grid(subquery, t));
        let asked = |times| Asked {
            query: expr.at(subquery.expr).unwrap_parens().to_string(),
            times,
        };
        return times.map(asked).into_iter().collect();
    }
    expr.children()
        .map(ExprRef::unwrap_parens)
        .filter(|child| !matches!(child.expr(), Expr::Number(_) | Expr::String(_)))
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
    let Some(mut ast) = compared.ast.clone() else {
        return Ok(compared);
    };
    if !pin(&mut ast, compared.asked.times) {
        return Ok(compared);
    }
    let asked = Asked {
        query: ast.to_string(),
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
fn pin(ast: &mut Ast, times: Times) -> bool {
    let pin_one = |at: &mut Option<At>| {
        let ms = match at {
            Some(At::Start) => times.start(),
            Some(At::End) => times.end(),
            Some(At::Timestamp(_)) | None => return false,
        };
        *at = Some(At::Timestamp(ms));
        true
    };
    let mut pinned = false;
    for expr in ast.exprs_mut() {
        pinned |= match expr {
            Expr::Vector(selector) => pin_one(&mut selector.at),
            Expr::Matrix(matrix) => pin_one(&mut matrix.selector.at),
            Expr::Subquery(subquery) => pin_one(&mut subquery.at),
            _ => false,
        };
    }
    pinned
}
