//! What Prometheus 2.42 can do with native histograms.

use super::QueryGenerator;

impl QueryGenerator {
    /// A query over native histograms of up to `depth` levels.
    pub(super) fn of_histograms(&mut self, depth: u32) -> String {
        match self.random.index(5) {
            0 => self.histogram(depth),
            _ => {
                let inner = self.histogram(depth);
                match self.random.index(14) {
                    // Within a bucket 2.42 interpolates otherwise. The least and the greatest are not within one, unless
                    // some counts are negative.
                    0 => {
                        let all = ["-1", "2", "NaN", "0", "1"];
                        let some = if inner.contains("delta") { 3 } else { all.len() };
                        let q = self.random.pick(all.get(..some).unwrap_or(&all));
                        format!("histogram_quantile({q}, {inner})")
                    }
                    1 => format!(
                        "histogram_fraction({}, {}, {inner})",
                        self.random.pick(&["-Inf", "0", "NaN", "-1"]),
                        self.random.pick(&["+Inf", "+Inf", "-2", "NaN"])
                    ),
                    2..=4 => format!("histogram_count({inner})"),
                    5 | 6 => format!("histogram_sum({inner})"),
                    7 => {
                        let op = self.random.pick(&["count", "group"]);
                        let grouping = self.random.pick(&["", " by (job)", " without (job)"]);
                        format!("{op}{grouping} ({inner})")
                    }
                    8 => format!("absent({inner})"),
                    9 => {
                        let function = self.random.pick(&["present_over_time", "count_over_time"]);
                        let (selector, range) = (self.native_selector(), self.duration());
                        let modifier = self.modifier();
                        format!("{function}({selector}[{range}]{modifier})")
                    }
                    10 => format!("timestamp({inner})"),
                    _ => {
                        let (right, op) = (self.histogram(depth), self.random.pick(&["and", "or", "unless"]));
                        let matching = self.random.pick(&["", " on (job)", " ignoring (instance)"]);
                        format!("({inner}) {op}{matching} ({right})")
                    }
                }
            }
        }
    }

    fn histogram(&mut self, depth: u32) -> String {
        let Some(depth) = depth.checked_sub(1) else {
            let modifier = self.modifier();
            return format!("{}{modifier}", self.native_selector());
        };
        match self.random.index(8) {
            0..=2 => {
                let function = self.random.pick(&["rate", "rate", "increase", "delta"]);
                let (selector, range) = (self.native_selector(), self.duration());
                let modifier = self.modifier();
                format!("{function}({selector}[{range}]{modifier})")
            }
            3 => {
                // Results of rates are gauges since 3.0, whose resets are none.
                let selector = self.native_selector();
                format!("increase({})", self.subquery(selector))
            }
            4..=6 => {
                let grouping = self
                    .random
                    .pick(&["", "by (job)", "without (instance)", "by (instance)"]);
                format!("sum {grouping} ({})", self.histogram(depth))
            }
            _ => {
                // The same on both sides: 3.14 does not add what was reset to what was not.
                let inner = self.histogram(depth);
                let matching = self.random.pick(&["", " on (job, instance)"]);
                format!("({inner}) +{matching} ({inner})")
            }
        }
    }

    fn native_selector(&mut self) -> &'static str {
        self.random.pick(&[
            "nh",
            "nh",
            "nh{job=\"api\"}",
            "nh{instance!=\"a\"}",
            "nh{job=~\"a.*|db\"}",
            "{__name__=~\"nh|flt\"}",
        ])
    }
}
