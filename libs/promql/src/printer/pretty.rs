//! Formats a query over several lines: what is longer than a line is split at its operators, indented by depth.

use std::fmt::{self, Write};

use super::{AggregateHead, Operator, SubquerySuffix, sign};
use crate::ast::{Expr, SubqueryExpr};

/// What is longer than this many bytes is split.
const LINE_BYTES_MAX: usize = 100;
const INDENT: &str = "  ";

/// The query formatted as Prometheus' `format_query` does. Formatting the result again changes nothing.
pub fn pretty(expr: &Expr) -> String {
    pretty_within(expr, LINE_BYTES_MAX)
}

fn pretty_within(expr: &Expr, line_bytes_max: usize) -> String {
    let mut printer = Printer {
        out: String::new(),
        line_bytes_max,
    };
    // Writing to a string cannot fail.
    let _ = printer.expr(expr, 0, true);
    printer.out
}

struct Printer {
    out: String,
    line_bytes_max: usize,
}

impl Printer {
    /// `starts_line` says whether the indentation is still to be written.
    fn expr(&mut self, expr: &Expr, level: usize, starts_line: bool) -> fmt::Result {
        match expr {
            Expr::Subquery(e) => return self.subquery(e, level, starts_line),
            Expr::Binary(e) if self.exceeds_line(format_args!("{expr}")) => {
                self.expr(&e.lhs, level + 1, starts_line)?;
                self.out.push('\n');
                self.indent(level);
                writeln!(self.out, "{}", Operator(e))?;
                return self.expr(&e.rhs, level + 1, true);
            }
            _ => {}
        }
        if starts_line {
            self.indent(level);
        }
        if let Expr::Unary(e) = expr {
            self.out.push_str(sign(e.negate));
            return self.expr(&e.expr, level, false);
        }
        if !self.exceeds_line(format_args!("{expr}")) {
            return write!(self.out, "{expr}");
        }
        match expr {
            Expr::Aggregate(e) => {
                write!(self.out, "{}", AggregateHead(e))?;
                self.args(e.param.iter().chain([&e.expr]), level)
            }
            Expr::Call(e) => {
                write!(self.out, "{}", e.function)?;
                self.args(e.args.iter(), level)
            }
            Expr::Paren(e) => self.args([&e.expr].into_iter(), level),
            _ => write!(self.out, "{expr}"),
        }
    }

    /// A subquery that is not split drops the indentation, as the reference does.
    fn subquery(&mut self, e: &SubqueryExpr, level: usize, starts_line: bool) -> fmt::Result {
        if self.exceeds_line(format_args!("{}{}", e.expr, SubquerySuffix(e))) {
            self.expr(&e.expr, level, starts_line)?;
        } else {
            write!(self.out, "{}", e.expr)?;
        }
        write!(self.out, "{}", SubquerySuffix(e))
    }

    fn args<'e>(&mut self, args: impl Iterator<Item = &'e Expr>, level: usize) -> fmt::Result {
        self.out.push_str("(\n");
        for (i, arg) in args.enumerate() {
            if i > 0 {
                self.out.push_str(",\n");
            }
            self.expr(arg, level + 1, true)?;
        }
        self.out.push('\n');
        self.indent(level);
        self.out.push(')');
        Ok(())
    }

    fn indent(&mut self, level: usize) {
        self.out.extend(std::iter::repeat_n(INDENT, level));
    }

    /// Whether a text is longer than a line; stops writing it once that is known.
    fn exceeds_line(&self, text: fmt::Arguments<'_>) -> bool {
        struct Budget(usize);
        impl Write for Budget {
            fn write_str(&mut self, s: &str) -> fmt::Result {
                self.0 = self.0.checked_sub(s.len()).ok_or(fmt::Error)?;
                Ok(())
            }
        }
        Budget(self.line_bytes_max).write_fmt(text).is_err()
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::parse;

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
