//! Functions.

use super::QueryGenerator;

/// Of a range vector alone.
const OF_RANGE: [&str; 18] = [
    "rate",
    "increase",
    "irate",
    "delta",
    "idelta",
    "deriv",
    "changes",
    "resets",
    "avg_over_time",
    "min_over_time",
    "max_over_time",
    "sum_over_time",
    "count_over_time",
    "last_over_time",
    "present_over_time",
    "absent_over_time",
    "stddev_over_time",
    "stdvar_over_time",
];

/// Of an instant vector alone.
const OF_VECTOR: [&str; 40] = [
    "abs",
    "absent",
    "acos",
    "acosh",
    "asin",
    "asinh",
    "atan",
    "atanh",
    "ceil",
    "cos",
    "cosh",
    "day_of_month",
    "day_of_week",
    "day_of_year",
    "days_in_month",
    "deg",
    "exp",
    "floor",
    "histogram_count",
    "histogram_sum",
    "hour",
    "ln",
    "log10",
    "log2",
    "minute",
    "month",
    "rad",
    "round",
    "sgn",
    "sin",
    "sinh",
    "sort",
    "sort_desc",
    "sqrt",
    "tan",
    "tanh",
    "timestamp",
    "timestamp",
    "year",
    "absent",
];

/// Of no argument; these are vectors.
const OF_TIME: [&str; 8] = [
    "day_of_month",
    "day_of_week",
    "day_of_year",
    "days_in_month",
    "hour",
    "minute",
    "month",
    "year",
];

impl QueryGenerator {
    /// A function of a range vector.
    pub(super) fn over_range(&mut self, depth: u32) -> String {
        let range = self.range_vector(depth);
        match self.random.index(12) {
            0 => {
                let q = self.random.pick(&["0.5", "0.9", "0", "1", "1.1", "-0.1", "NaN"]);
                format!("quantile_over_time({q}, {range})")
            }
            1 => format!("quantile_over_time({}, {range})", self.scalar(depth)),
            2 => format!("predict_linear({range}, {})", self.parameter(depth)),
            3 => {
                let factor = ["0.5", "0.1", "0.99", "1", "0"];
                let (smoothing, trend) = (self.random.pick(&factor), self.random.pick(&factor));
                format!("holt_winters({range}, {smoothing}, {trend})")
            }
            _ => format!("{}({range})", self.random.pick(&OF_RANGE)),
        }
    }

    /// A function of an instant vector.
    pub(super) fn call(&mut self, depth: u32) -> String {
        let inner = self.vector(depth);
        match self.random.index(11) {
            0 => format!(
                "clamp({inner}, {}, {})",
                self.parameter(depth),
                self.parameter(depth)
            ),
            1 => format!("clamp_min({inner}, {})", self.parameter(depth)),
            2 => format!("clamp_max({inner}, {})", self.parameter(depth)),
            3 => format!("round({inner}, {})", self.parameter(depth)),
            4 => format!("{}()", self.random.pick(&OF_TIME)),
            _ => format!("{}({inner})", self.random.pick(&OF_VECTOR)),
        }
    }

    /// `histogram_quantile` of something that has buckets, mostly.
    pub(super) fn bucket_quantile(&mut self, depth: u32) -> String {
        let q = match self.random.index(6) {
            0 => self.scalar(depth),
            _ => self
                .random
                .pick(&["0.5", "0.9", "0.99", "0", "1", "1.5", "-1", "NaN"])
                .to_owned(),
        };
        let buckets = self.named_selector("lat_bucket");
        let range = self.duration();
        let modifier = self.modifier();
        let buckets = match self.random.index(6) {
            0 => format!("{buckets}{modifier}"),
            1 => format!("rate({buckets}[{range}]{modifier})"),
            2 => format!("sum by (le) (rate({buckets}[{range}]{modifier}))"),
            3 => format!("sum by (job, le) ({buckets}{modifier})"),
            4 => format!("increase({buckets}[{range}]{modifier})"),
            _ => self.vector(depth),
        };
        format!("histogram_quantile({q}, {buckets})")
    }

    /// `label_replace` and `label_join`.
    pub(super) fn relabelled(&mut self, depth: u32) -> String {
        let inner = self.vector(depth);
        let destination = self
            .random
            .pick(&["new", "new", "job", "instance", "path", "le", "__name__"]);
        let source = self
            .random
            .pick(&["job", "instance", "path", "nope", "le", "kind"]);
        match self.random.index(4) {
            0 => {
                let separator = self.random.pick(&["-", "", "\\n", "é"]);
                format!("label_join({inner}, \"{destination}\", \"{separator}\", \"{source}\", \"instance\")")
            }
            1 => format!("label_join({inner}, \"{destination}\", \"-\")"),
            _ => {
                let (replacement, pattern) = self.random.pick(&[
                    ("x-$1", "(.)(.*)"),
                    ("$2${1}", "(.)(.*)"),
                    ("${first}", "(?P<first>[a-z]+).*"),
                    ("", ".*"),
                    ("const", ""),
                    ("$1", "(a|d).*"),
                    ("$0$9", ".+"),
                    ("$$1", "(.*)"),
                ]);
                format!(
                    "label_replace({inner}, \"{destination}\", \"{replacement}\", \"{source}\", \"{pattern}\")"
                )
            }
        }
    }
}
