//! Prints a tree: [`Display`](fmt::Display) as Prometheus prints it on one line, [`pretty`] as its `format_query` does.

use std::fmt::{self, Display, Write};

use koios_model::{METRIC_NAME, MatchOp, Matcher};

use crate::ast::{
    AggregateExpr, Ast, At, BinaryExpr, Cardinality, DurationArg, DurationExpr, DurationKind, Expr, ExprRef,
    FillValues, MatrixSelector, NumberLiteral, RangeEdges, SubqueryExpr, VectorMatching, VectorSelector,
};
use crate::duration::Millis;
use crate::string_literal::Quoted;

mod pretty;

pub use pretty::pretty;

impl Display for Ast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.root())
    }
}

impl Display for ExprRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.walk_written()
            .try_for_each(|(expr, done)| write_piece(f, expr.expr(), done))
    }
}

/// Writes what of an expression stands after its first `done` operands, in the order of the text, and before the next.
fn write_piece(out: &mut dyn Write, expr: &Expr, done: usize) -> fmt::Result {
    let last = expr.written(done).is_none();
    match expr {
        Expr::Aggregate(e) if done == 0 => write!(out, "{}(", AggregateHead(e)),
        Expr::Call(e) if done == 0 => write!(out, "{}({}", e.function, if last { ")" } else { "" }),
        Expr::Aggregate(_) | Expr::Call(_) => out.write_str(if last { ")" } else { ", " }),
        Expr::Binary(e) if done == 1 => write!(out, " {} ", Operator(e)),
        Expr::Binary(_) => Ok(()),
        Expr::Matrix(e) => write!(out, "{e}"),
        Expr::Number(e) => write!(out, "{e}"),
        Expr::Paren(_) => out.write_str(if last { ")" } else { "(" }),
        Expr::String(e) => match &e.not_utf8 {
            Some(quoted) => out.write_str(quoted),
            None => write!(out, "{}", Quoted(&e.value)),
        },
        Expr::Subquery(e) if last => write!(out, "{}", SubquerySuffix(e)),
        Expr::Unary(e) if !last => out.write_str(sign(e.negate)),
        Expr::Subquery(_) | Expr::Unary(_) => Ok(()),
        Expr::Vector(e) => write!(out, "{e}"),
    }
}

fn sign(negate: bool) -> &'static str {
    if negate { "-" } else { "+" }
}

fn write_list(f: &mut fmt::Formatter<'_>, items: &[impl Display], separator: &str) -> fmt::Result {
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            f.write_str(separator)?;
        }
        write!(f, "{item}")?;
    }
    Ok(())
}

/// A label's name, quoted where it is not a plain word.
struct LabelName<'a>(&'a str);

impl Display for LabelName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = |(i, b): (usize, u8)| b == b'_' || b.is_ascii_alphabetic() || i > 0 && b.is_ascii_digit();
        if !self.0.is_empty() && self.0.bytes().enumerate().all(plain) {
            f.write_str(self.0)
        } else {
            write!(f, "{}", Quoted(self.0))
        }
    }
}

/// Labels in parentheses.
struct LabelList<'a>(&'a [String]);

impl Display for LabelList<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('(')?;
        for (i, label) in self.0.iter().enumerate() {
            write!(f, "{}{}", if i > 0 { ", " } else { "" }, LabelName(label))?;
        }
        f.write_char(')')
    }
}

/// The operator of an aggregation with its grouping.
struct AggregateHead<'a>(&'a AggregateExpr);

impl Display for AggregateHead<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let e = self.0;
        f.write_str(e.op.as_str())?;
        if e.without {
            write!(f, " without {} ", LabelList(&e.grouping))
        } else if !e.grouping.is_empty() {
            write!(f, " by {} ", LabelList(&e.grouping))
        } else {
            Ok(())
        }
    }
}

/// A binary operator with its modifiers.
struct Operator<'a>(&'a BinaryExpr);

impl Display for Operator<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.op.as_str())?;
        if self.0.return_bool {
            f.write_str(" bool")?;
        }
        self.0
            .matching
            .as_ref()
            .map_or(Ok(()), |matching| write!(f, "{matching}"))
    }
}

/// The matching as written after an operator, with a space before each part.
impl Display for VectorMatching {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let group = match self.card {
            Cardinality::ManyToOne => Some("group_left"),
            Cardinality::OneToMany => Some("group_right"),
            Cardinality::OneToOne | Cardinality::ManyToMany => None,
        };
        if self.on || !self.labels.is_empty() || group.is_some() {
            let word = if self.on { "on" } else { "ignoring" };
            write!(f, " {word} {}", LabelList(&self.labels))?;
        }
        if let Some(group) = group {
            write!(f, " {group} {}", LabelList(&self.include))?;
        }
        write!(f, "{}", self.fill)
    }
}

impl Display for FillValues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.lhs, self.rhs) {
            (Some(lhs), Some(rhs)) if lhs == rhs => return write!(f, " fill ({})", General(lhs)),
            _ => {}
        }
        if let Some(lhs) = self.lhs {
            write!(f, " fill_left ({})", General(lhs))?;
        }
        if let Some(rhs) = self.rhs {
            write!(f, " fill_right ({})", General(rhs))?;
        }
        Ok(())
    }
}

/// A number without exponent, as short as it can be and still read back.
struct Plain(f64);

impl Display for Plain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            f64::INFINITY => f.write_str("+Inf"),
            f64::NEG_INFINITY => f.write_str("-Inf"),
            v if v.is_nan() => f.write_str("NaN"),
            v => write!(f, "{v}"),
        }
    }
}

/// A number as Go's `%v` prints it: with an exponent where it is below 1e-4 or from 1e21.
struct General(f64);

impl Display for General {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = self.0.abs();
        if self.0.is_finite() && size != 0.0 && !(1e-4..1e21).contains(&size) {
            let text = format!("{:e}", self.0);
            let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |e| ('-', e));
            return write!(f, "{digits}e{sign}{exponent:0>2}");
        }
        write!(f, "{}", Plain(self.0))
    }
}

impl Display for NumberLiteral {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.duration {
            write!(f, "{}", Millis((self.value * 1e9) as i64 / 1_000_000))
        } else {
            write!(f, "{}", Plain(self.value))
        }
    }
}

impl Display for DurationArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Millis(ms) => write!(f, "{}", Millis(*ms)),
            Self::Expr(expr) => write!(f, "{expr}"),
        }
    }
}

impl Display for DurationExpr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (node, done, last) in self.walk() {
            match &node.kind {
                DurationKind::Number(number) => write!(f, "{number}")?,
                DurationKind::Step => f.write_str("step()")?,
                DurationKind::Range => f.write_str("range()")?,
                DurationKind::Negate(_) => f.write_str(if last { "" } else { "-" })?,
                DurationKind::Paren(_) => f.write_str(if last { ")" } else { "(" })?,
                DurationKind::MinOf(..) if done == 0 => f.write_str("min_of(")?,
                DurationKind::MaxOf(..) if done == 0 => f.write_str("max_of(")?,
                DurationKind::MinOf(..) | DurationKind::MaxOf(..) => {
                    f.write_str(if last { ")" } else { ", " })?;
                }
                DurationKind::Binary(op, ..) if done == 1 => write!(f, " {} ", op.as_str())?,
                DurationKind::Binary(..) => {}
            }
        }
        Ok(())
    }
}

/// The modifiers of a selector, in Prometheus' order.
struct Offset<'a>(&'a DurationArg);

impl Display for Offset<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_zero() {
            Ok(())
        } else {
            write!(f, " offset {}", self.0)
        }
    }
}

impl Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timestamp(ms) => write!(f, "@ {:.3}", *ms as f64 / 1000.0),
            Self::Start => f.write_str("@ start()"),
            Self::End => f.write_str("@ end()"),
        }
    }
}

fn write_at(f: &mut fmt::Formatter<'_>, at: Option<At>) -> fmt::Result {
    at.map_or(Ok(()), |at| write!(f, " {at}"))
}

fn write_edges(f: &mut fmt::Formatter<'_>, edges: RangeEdges) -> fmt::Result {
    f.write_str(match edges {
        RangeEdges::Plain => "",
        RangeEdges::Anchored => " anchored",
        RangeEdges::Smoothed => " smoothed",
    })
}

/// A selector without its modifiers; matchers are sorted by their text.
struct Bare<'a>(&'a VectorSelector);

impl Display for Bare<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.0.name.as_deref().unwrap_or_default();
        let is_name = |m: &&Matcher| {
            m.name() == METRIC_NAME && m.op() == MatchOp::Equal && m.value() == name && !name.is_empty()
        };
        let shown = self.0.matchers.iter().filter(|m| !is_name(m));
        let mut shown: Vec<String> = shown
            .map(|m| format!("{}{}{}", LabelName(m.name()), m.op().as_str(), Quoted(m.value())))
            .collect();
        shown.sort_unstable();
        f.write_str(name)?;
        if shown.is_empty() {
            return Ok(());
        }
        f.write_char('{')?;
        write_list(f, &shown, ",")?;
        f.write_char('}')
    }
}

impl Display for VectorSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Bare(self))?;
        write_at(f, self.at)?;
        write_edges(f, self.edges)?;
        write!(f, "{}", Offset(&self.offset))
    }
}

impl Display for MatrixSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", Bare(&self.selector), self.range)?;
        write_edges(f, self.selector.edges)?;
        write_at(f, self.selector.at)?;
        write!(f, "{}", Offset(&self.selector.offset))
    }
}

/// What follows the expression of a subquery.
struct SubquerySuffix<'a>(&'a SubqueryExpr);

impl Display for SubquerySuffix<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let e = self.0;
        write!(f, "[{}:", e.range)?;
        if let Some(step) = e.step.as_ref().filter(|step| !step.is_zero()) {
            write!(f, "{step}")?;
        }
        f.write_char(']')?;
        write_at(f, e.at)?;
        write!(f, "{}", Offset(&e.offset))
    }
}
