//! Selectors, ranges and subqueries.

use super::QueryGenerator;

const NAMES: [&str; 17] = [
    "reqs_total",
    "reqs_total",
    "errs_total",
    "errs_total",
    "mem",
    "mem",
    "temp",
    "level",
    "lat_bucket",
    "lat_sum",
    "lat_count",
    "quota",
    "build_info",
    "odd",
    "special",
    "nosuch",
    "app:temp:avg5m",
];

const MATCHERS: [&str; 33] = [
    r#"job="api""#,
    r#"job="api""#,
    r#"job=~"a.*|db""#,
    r#"job!~"web|x""#,
    r#"job=~"""#,
    r#"job!="""#,
    r#"instance!="a""#,
    r#"instance="b""#,
    r#"instance=~"[ab]""#,
    r#"tier="""#,
    r#"tier!="""#,
    r#"version=~"1\\..+""#,
    "version=`1.0`",
    r#"path=~".+""#,
    r#"path="/""#,
    r#"path="a\"b\\c""#,
    r#"path='a"b\\c'"#,
    r#"path=~"[äöü]+.*""#,
    r#"path="\u00e4\u00f6ü–€ 漢""#,
    r#"path!~"(?i)LINE[\\s]break""#,
    r#"nope="""#,
    r#"nope!~".+""#,
    r#"le="0.5""#,
    r#"le!="+Inf""#,
    r#"le=~"1|2.5|10""#,
    r#"kind=~"n?inf|zero""#,
    r#"kind!~"nan|.*inf|huge""#,
    r#"__name__!~"temp|odd""#,
    r#"job=~"(?)a(p+i)*?""#,
    r#"job=~"a{1,2}.{0,3}|d\\w""#,
    r#"on="""#,
    r#"offset!~"x""#,
    r#"by="",sum="""#,
];

/// Regular expressions that are none, and selectors that select everything: both are refused.
const REFUSED: [&str; 10] = [
    r#"mem{job=~"("}"#,
    r#"mem{job=~"a**"}"#,
    r#"mem{job!~"[b-a]"}"#,
    r#"mem{job=~"a{2,1}"}"#,
    r#"mem{job=~"*"}"#,
    r#"mem{job=~"(?z)"}"#,
    r#"mem{job=~"\\8"}"#,
    r#"{nope=""}"#,
    r#"{job=~".*"}"#,
    "{}",
];

/// Selectors of several names, whose series have equal labels otherwise.
const MANY_NAMES: [&str; 4] = [
    r#"__name__=~"reqs_total|errs_total""#,
    r#"__name__=~"mem|temp""#,
    r#"__name__="level""#,
    r#"__name__=~"(lat|special).*""#,
];

const DURATIONS: [&str; 10] = [
    "40s", "47s", "1m", "2m", "5m", "300s", "13m", "1h", "1h1m1s", "90s500ms",
];
const STEPS: [&str; 8] = ["", "", "30s", "1m", "47s", "13s", "5m", "1m40s"];
const OFFSETS: [&str; 7] = ["3m", "-2m", "20m", "1h", "-1h", "1m7s", "6h"];

impl QueryGenerator {
    /// An instant selector.
    pub(super) fn selector(&mut self) -> String {
        let modifier = self.modifier();
        format!("{}{modifier}", self.bare_selector())
    }

    /// A selector that is refused.
    pub(super) fn refused_selector(&mut self) -> &'static str {
        self.random.pick(&REFUSED)
    }

    fn bare_selector(&mut self) -> String {
        if self.random.percent(7) {
            let names = self.random.pick(&MANY_NAMES);
            return self.with_matchers("", names);
        }
        let name = self.random.pick(&NAMES);
        self.named_selector(name)
    }

    /// A selector of one name, without modifiers.
    pub(super) fn named_selector(&mut self, name: &str) -> String {
        self.with_matchers(name, "")
    }

    fn with_matchers(&mut self, name: &str, first: &str) -> String {
        let mut matchers: Vec<&str> = Vec::new();
        if !first.is_empty() {
            matchers.push(first);
        }
        let more = self.random.pick(&[0, 0, 0, 0, 1, 1, 2]);
        matchers.extend((0..more).map(|_| self.random.pick(&MATCHERS)));
        match (matchers.as_slice(), self.random.index(10)) {
            ([], 0) => format!("{name}{{}}"),
            ([], _) => name.to_owned(),
            (_, 0) => format!("{name} {{ {}, }}", matchers.join(" , ")),
            _ => format!("{name}{{{}}}", matchers.join(",")),
        }
    }

    /// Nothing, or `offset`, `@` or both.
    pub(super) fn modifier(&mut self) -> String {
        let offset = format!(" offset {}", self.random.pick(&OFFSETS));
        let at = match self.random.index(4) {
            0 => " @ start()".to_owned(),
            1 => " @ end()".to_owned(),
            _ => {
                let ms = self.time_ms();
                match self.random.index(12) {
                    0 => " @ -17.25".to_owned(),
                    _ => format!(" @ {}.{:03}", ms / 1_000, ms % 1_000),
                }
            }
        };
        match self.random.index(20) {
            0 | 1 => offset,
            2 | 3 => at,
            4 => at + &offset,
            5 => offset + &at,
            _ => String::new(),
        }
    }

    pub(super) fn duration(&mut self) -> &'static str {
        self.random.pick(&DURATIONS)
    }

    /// A range selector, or a subquery of up to `depth` levels.
    pub(super) fn range_vector(&mut self, depth: u32) -> String {
        if depth == 0 || !self.random.percent(35) {
            let selector = self.bare_selector();
            let (range, modifier) = (self.duration(), self.modifier());
            return format!("{selector}[{range}]{modifier}");
        }
        let inner = match self.random.index(8) {
            0 => self.scalar(depth - 1),
            _ => self.vector(depth - 1),
        };
        self.subquery(&inner)
    }

    /// The subquery of an expression; its range starts between two points, see the module's invariants.
    pub(super) fn subquery(&mut self, inner: &str) -> String {
        // A range that has milliseconds already starts between points as it is.
        let range = match self.duration() {
            range if range.ends_with("ms") => range.to_owned(),
            range => format!("{range}1ms"),
        };
        let (step, modifier) = (self.random.pick(&STEPS), self.modifier());
        format!("({inner})[{range}:{step}]{modifier}")
    }
}
