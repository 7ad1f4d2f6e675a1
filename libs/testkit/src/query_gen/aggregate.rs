//! Aggregations.

use super::QueryGenerator;

const GROUPINGS: [&str; 14] = [
    "",
    "",
    "",
    "by (job)",
    "by (job)",
    "by (job, instance)",
    "by (instance,)",
    "by ()",
    "by (nope)",
    "by (le, job)",
    "without (instance)",
    "without (job, le)",
    "without ()",
    "by (path, kind)",
];

impl QueryGenerator {
    pub(super) fn aggregation(&mut self, depth: u32) -> String {
        let inner = self.vector(depth);
        self.aggregated(depth, &inner)
    }

    /// An aggregation of an expression.
    pub(super) fn aggregated(&mut self, depth: u32, inner: &str) -> String {
        let op = self.random.pick(&[
            "sum",
            "sum",
            "sum",
            "avg",
            "min",
            "max",
            "count",
            "group",
            "stddev",
            "stdvar",
            "topk",
            "bottomk",
            "quantile",
            "count_values",
        ]);
        let parameter = match op {
            "topk" | "bottomk" => match self.random.index(6) {
                0 => self.scalar(depth) + ", ",
                _ => format!(
                    "{}, ",
                    self.random.pick(&["1", "2", "3", "5", "1.9", "0", "-1", "1e3"])
                ),
            },
            "quantile" => match self.random.index(4) {
                0 => self.scalar(depth) + ", ",
                _ => format!(
                    "{}, ",
                    self.random
                        .pick(&["0.5", "0.9", "0", "1", "1.5", "-1", "NaN", ".333"])
                ),
            },
            "count_values" => format!("\"{}\", ", self.random.pick(&["value", "job", "le", "nope"])),
            _ => String::new(),
        };
        let grouping = match self.random.index(60) {
            0 => "by (__name__)",
            1 => "without (__name__)",
            2 => "by (__name__, job)",
            _ => self.random.pick(&GROUPINGS),
        };
        if self.random.percent(50) {
            format!("{op} {grouping} ({parameter}{inner})")
        } else {
            format!("{op}({parameter}{inner}) {grouping}")
        }
    }
}
