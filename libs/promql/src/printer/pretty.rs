//! Formats a query over several lines: what is longer than a line is split at its operators, indented by depth.

use std::fmt::{self, Write};

use super::{AggregateHead, Operator, SubquerySuffix, sign, write_piece};
use crate::ast::{Ast, Expr, ExprId, ExprRef};

/// What is longer than this many bytes is split.
const LINE_BYTES_MAX: usize = 100;
const INDENT: &str = "  ";
/// What is nested deeper is indented no further, and what follows so many bytes is not indented at all: the text would
/// grow by the square of the depth.
const INDENTED_LEVELS_MAX: usize = 256;
const INDENTED_BYTES_MAX: usize = 1 << 20;

/// The query formatted as Prometheus' `format_query` does. Formatting the result again changes nothing.
pub fn pretty(ast: &Ast) -> String {
    pretty_within(ast, LINE_BYTES_MAX)
}

fn pretty_within(ast: &Ast, line_bytes_max: usize) -> String {
    let mut printer = Printer {
        out: String::new(),
        lengths: lengths(ast),
        line_bytes_max,
        tasks: vec![Task::Expr(ast.root(), 0, Indent::Due)],
    };
    while let Some(task) = printer.tasks.pop() {
        // Writing to a string cannot fail.
        let _ = printer.write(task);
    }
    printer.out
}

/// The bytes of each expression on one line.
fn lengths(ast: &Ast) -> Vec<usize> {
    struct Length(usize);
    impl Write for Length {
        fn write_str(&mut self, s: &str) -> fmt::Result {
            self.0 = self.0.saturating_add(s.len());
            Ok(())
        }
    }
    let mut lengths: Vec<usize> = Vec::with_capacity(ast.len());
    for expr in ast.exprs() {
        let mut length = Length(0);
        for done in 0.. {
            let _ = write_piece(&mut length, expr, done);
            let Some(operand) = expr.written(done) else { break };
            let of_operand = lengths.get(operand.place()).copied().unwrap_or(0);
            length.0 = length.0.saturating_add(of_operand);
        }
        lengths.push(length.0);
    }
    lengths
}

/// Whether the indentation of a line is still to be written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Indent {
    Due,
    Done,
}

/// What is still to be written; the number is the level.
#[derive(Clone, Copy)]
enum Task<'a> {
    Expr(ExprRef<'a>, usize, Indent),
    /// A binary operator on a line of its own.
    Operator(&'a Expr, usize),
    Comma,
    /// The parenthesis after the last argument.
    Close(usize),
    /// What follows the expression of a subquery.
    Suffix(&'a Expr),
}

struct Printer<'a> {
    out: String,
    lengths: Vec<usize>,
    line_bytes_max: usize,
    /// The next one last.
    tasks: Vec<Task<'a>>,
}

impl<'a> Printer<'a> {
    fn write(&mut self, task: Task<'a>) -> fmt::Result {
        match task {
            Task::Expr(expr, level, indent) => self.expr(expr, level, indent),
            Task::Operator(expr, level) => {
                self.out.push('\n');
                self.indent(level);
                match expr {
                    Expr::Binary(e) => writeln!(self.out, "{}", Operator(e)),
                    _ => Ok(()),
                }
            }
            Task::Comma => self.out.write_str(",\n"),
            Task::Close(level) => {
                self.out.push('\n');
                self.indent(level);
                self.out.write_char(')')
            }
            Task::Suffix(expr) => match expr {
                Expr::Subquery(e) => write!(self.out, "{}", SubquerySuffix(e)),
                _ => Ok(()),
            },
        }
    }

    fn expr(&mut self, expr: ExprRef<'a>, level: usize, indent: Indent) -> fmt::Result {
        let long = self.exceeds_line(expr.id());
        match expr.expr() {
            // A subquery that is not split drops the indentation, as the reference does.
            Expr::Subquery(e) if long => {
                self.tasks.push(Task::Suffix(expr.expr()));
                self.tasks.push(Task::Expr(expr.at(e.expr), level, indent));
                return Ok(());
            }
            Expr::Subquery(_) => return write!(self.out, "{expr}"),
            Expr::Binary(e) if long => {
                self.tasks
                    .push(Task::Expr(expr.at(e.rhs), level + 1, Indent::Due));
                self.tasks.push(Task::Operator(expr.expr(), level));
                self.tasks.push(Task::Expr(expr.at(e.lhs), level + 1, indent));
                return Ok(());
            }
            _ => {}
        }
        if indent == Indent::Due {
            self.indent(level);
        }
        match expr.expr() {
            Expr::Unary(e) => {
                self.out.push_str(sign(e.negate));
                self.tasks.push(Task::Expr(expr.at(e.expr), level, Indent::Done));
                Ok(())
            }
            Expr::Aggregate(e) if long => {
                write!(self.out, "{}", AggregateHead(e))?;
                self.args(expr, level);
                Ok(())
            }
            Expr::Call(e) if long => {
                write!(self.out, "{}", e.function)?;
                self.args(expr, level);
                Ok(())
            }
            Expr::Paren(_) if long => {
                self.args(expr, level);
                Ok(())
            }
            _ => write!(self.out, "{expr}"),
        }
    }

    /// The operands of an expression in parentheses, each on lines of its own.
    fn args(&mut self, expr: ExprRef<'a>, level: usize) {
        self.out.push_str("(\n");
        self.tasks.push(Task::Close(level));
        let first = self.tasks.len();
        for arg in (0..).map_while(|i| expr.expr().written(i)) {
            if self.tasks.len() > first {
                self.tasks.push(Task::Comma);
            }
            self.tasks.push(Task::Expr(expr.at(arg), level + 1, Indent::Due));
        }
        if let Some(args) = self.tasks.get_mut(first..) {
            args.reverse();
        }
    }

    fn indent(&mut self, level: usize) {
        if self.out.len() < INDENTED_BYTES_MAX {
            let levels = level.min(INDENTED_LEVELS_MAX);
            self.out.extend(std::iter::repeat_n(INDENT, levels));
        }
    }

    fn exceeds_line(&self, id: ExprId) -> bool {
        self.lengths
            .get(id.place())
            .is_some_and(|length| *length > self.line_bytes_max)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::parse;

    #[test]
    fn i12_deep_queries_are_not_formatted_to_the_square_of_their_length() {
        let deep = "(".repeat(9_000) + "a" + &")".repeat(9_000);
        let formatted = pretty(&parse(&deep).unwrap());
        assert!(formatted.len() < 2 * INDENTED_BYTES_MAX, "{}", formatted.len());
        assert_eq!(pretty(&parse(&formatted).unwrap()), formatted);
    }

    #[rstest]
    #[case("foo", "foo")]
    #[case("a  +b", "a + b")]
    #[case("sum(job_up)", "sum(\n  job_up\n)")]
    #[case("topk(3, job_up) by (a)", "topk by (a) (\n  3,\n  job_up\n)")]
    #[case("up_a + up_b + up_c", "    up_a\n  +\n    up_b\n+\n  up_c")]
    #[case("x > bool on(a) y", "  x\n> bool on (a)\n  y")]
    #[case("-(aaaaa + bbbbb)", "-(\n    aaaaa\n  +\n    bbbbb\n)")]
    #[case("rate(errors[5m])", "rate(\n  errors[5m]\n)")]
    #[case("round(vector(1), 2)", "round(\n  vector(1),\n  2\n)")]
    #[case("sum(x)[5m:1m]", "sum(x)[5m:1m]")]
    #[case(
        "max_over_time(sum(long_name)[5m:])",
        "max_over_time(\n  sum(\n    long_name\n  )[5m:]\n)"
    )]
    #[case("{a=\"very long value\"}", "{a=\"very long value\"}")]
    fn splits_what_is_longer_than_a_line(#[case] query: &str, #[case] want: &str) {
        let formatted = pretty_within(&parse(query).unwrap(), 10);
        assert_eq!(formatted, want);
        assert_eq!(pretty_within(&parse(&formatted).unwrap(), 10), want);
    }
}
