//! Operators between two expressions.

use super::QueryGenerator;

impl QueryGenerator {
    pub(super) fn arithmetic(&mut self) -> &'static str {
        self.random
            .pick(&["+", "+", "-", "-", "*", "*", "/", "/", "%", "^", "atan2"])
    }

    fn comparison(&mut self) -> String {
        let op = self.random.pick(&["==", "!=", ">", "<", ">=", "<="]);
        let bool = self.random.pick(&["", "", " bool"]);
        format!("{op}{bool}")
    }

    fn operator(&mut self) -> String {
        match self.random.index(3) {
            0 => self.comparison(),
            _ => self.arithmetic().to_owned(),
        }
    }

    /// An operator between two vectors, made so that most find each other.
    pub(super) fn joined(&mut self, depth: u32) -> String {
        let (left, right, op) = (self.vector(depth), self.vector(depth), self.operator());
        let (left, matching, right) = match self.random.index(13) {
            0 => (left, "", right),
            1 => (left, " on (job, instance)", right),
            2 => (left, " ignoring (instance)", right),
            3 => (left, " ignoring (job, le, path)", right),
            4 => {
                let one = self.one_per_job(&right);
                (
                    left,
                    self.random.pick(&[
                        " on (job) group_left ()",
                        " on (job) group_left",
                        " ignoring (instance, le, kind, path) group_left ()",
                    ]),
                    one,
                )
            }
            5 => {
                let one = self.one_per_job(&left);
                (
                    one,
                    self.random.pick(&[
                        " on (job) group_right ()",
                        " ignoring (instance, le, kind, path) group_right ()",
                    ]),
                    right,
                )
            }
            6 => {
                let one = self.named_selector("quota");
                (
                    left,
                    self.random.pick(&[
                        " on (job) group_left (tier)",
                        " on (job) group_left (tier, nope)",
                        " on (job) group_left (instance)",
                    ]),
                    one,
                )
            }
            7 => {
                let one = self.named_selector("build_info");
                (
                    one,
                    self.random.pick(&[
                        " on (job, instance) group_right (version)",
                        " on (instance, job) group_right ()",
                    ]),
                    right,
                )
            }
            8 => (
                format!("sum by (job) ({left})"),
                "",
                format!("max by (job) ({right})"),
            ),
            9 => {
                let matching = self.random.pick(&[
                    " ignoring (__name__)",
                    " on (__name__, job, instance)",
                    " on (__name__)",
                ]);
                (left, matching, right)
            }
            10 => {
                let grouping = self.random.pick(&["", " group_left ()", " group_right (job)"]);
                let (op, on) = (self.operator(), " on ()");
                return format!("({left}) {op}{on}{grouping} (sum({right}))");
            }
            11 => {
                // A label that is in both is a mistake.
                let one = self.one_per_job(&right);
                (
                    left,
                    self.random
                        .pick(&[" on (job) group_left (job)", " on (job) group_left (job, tier)"]),
                    one,
                )
            }
            _ => {
                let name = self.random.pick(&["reqs_total", "mem", "temp", "level"]);
                (left, "", self.named_selector(name))
            }
        };
        format!("({left}) {op}{matching} ({right})")
    }

    fn one_per_job(&mut self, inner: &str) -> String {
        let op = self.random.pick(&["sum", "avg", "min", "max", "count"]);
        format!("{op} by (job) ({inner})")
    }

    /// A chain of operators without a parenthesis: what belongs together is up to precedence and associativity.
    pub(super) fn chain(&mut self) -> String {
        let mut text = self.chained();
        for _ in 0..2 + self.random.index(3) {
            let op = self.random.pick(&[
                "+", "-", "*", "/", "%", "^", "^", "atan2", "==", "!=", ">", "<", ">= bool", "<= bool",
                "and", "or", "unless",
            ]);
            let next = self.chained();
            text = format!("{text} {op} {next}");
        }
        text
    }

    /// A selector or a number, signed or not: series of these find each other.
    fn chained(&mut self) -> String {
        let sign = self.random.pick(&["", "", "", "-", "+"]);
        let operand = match self.random.index(4) {
            0 => self.random.pick(&["2", "3", "0.5", "10"]),
            _ => self.random.pick(&["reqs_total", "mem", "temp", "level", "level"]),
        };
        format!("{sign}{operand}")
    }

    pub(super) fn set_operation(&mut self, depth: u32) -> String {
        let (left, right) = (self.vector(depth), self.vector(depth));
        let op = self.random.pick(&["and", "or", "unless"]);
        let matching = self.random.pick(&[
            "",
            "",
            " on (job)",
            " on (job, instance)",
            " ignoring (instance)",
            " on ()",
            " ignoring (job, le)",
        ]);
        format!("({left}) {op}{matching} ({right})")
    }

    pub(super) fn with_scalar(&mut self, depth: u32) -> String {
        let (vector, scalar, op) = (self.vector(depth), self.parameter(depth), self.operator());
        if self.random.percent(70) {
            format!("({vector}) {op} ({scalar})")
        } else {
            format!("({scalar}) {op} ({vector})")
        }
    }
}
