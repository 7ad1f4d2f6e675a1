//! Type-correct expressions, made by decisions.

use koios_promql::{FunctionId, ValueType};

use super::choices::Choices;

/// How deep expressions are at most.
const DEPTH_MAX: usize = 5;

/// A query for an instant vector or a scalar, over the metrics of the generated data.
pub(super) fn expression(choices: &mut Choices<'_>) -> String {
    match choices.below(8) {
        0 => scalar(choices, DEPTH_MAX),
        _ => vector(choices, DEPTH_MAX),
    }
}

fn vector(c: &mut Choices<'_>, depth: usize) -> String {
    let Some(depth) = depth.checked_sub(1).filter(|_| !c.is_empty()) else {
        return selector(c);
    };
    match c.below(12) {
        0 | 1 => selector(c),
        2..=5 => call(c, ValueType::Vector, depth),
        6 | 7 => aggregate(c, depth),
        8 | 9 => binary(c, depth),
        10 => {
            let op = c.pick(&["+", "-", "*", "/", "%", "^", "atan2", ">", "!= bool", "</", ">/"]);
            let (v, s) = (vector(c, depth), scalar(c, depth));
            if c.below(3) == 0 && !matches!(op, "</" | ">/") {
                format!("({s}) {op} ({v})")
            } else {
                format!("({v}) {op} ({s})")
            }
        }
        _ => format!("-({})", vector(c, depth)),
    }
}

fn selector(c: &mut Choices<'_>) -> String {
    let name = c.pick(&[
        "a_total",
        "b",
        "h",
        "m",
        "c_bucket",
        "target_info",
        "nope",
        "{job=\"x\"}",
    ]);
    let matchers = if name.starts_with('{') {
        ""
    } else {
        c.pick(&[
            "",
            "",
            "{job=\"x\"}",
            "{job!=\"x\"}",
            "{job=~\"x|y.*\"}",
            "{instance!~\"0?\"}",
            "{instance=\"\"}",
        ])
    };
    let edges = c.pick(&["", "", "", " smoothed"]);
    format!("{name}{matchers}{edges}{}", modifier(c))
}

fn modifier(c: &mut Choices<'_>) -> &'static str {
    c.pick(&[
        "",
        "",
        "",
        "",
        " offset 20s",
        " offset -31s",
        " @ 100",
        " @ 0 offset 1m",
    ])
}

fn duration(c: &mut Choices<'_>) -> &'static str {
    c.pick(&["1m", "40s", "15s", "1ms", "5m", "(1m + 7s)", "1h"])
}

/// The modifiers of range selectors that a function takes.
fn edges_of(function: FunctionId) -> &'static [&'static str] {
    use FunctionId as F;
    match function {
        F::Rate | F::Increase | F::Delta => &["", "", "", " smoothed", " anchored"],
        F::Changes | F::Resets => &["", "", "", " anchored"],
        _ => &[""],
    }
}

fn matrix(c: &mut Choices<'_>, depth: usize, function: FunctionId) -> String {
    if let Some(depth) = depth.checked_sub(1).filter(|_| c.below(3) == 0) {
        let step = c.pick(&["", "10s", "7s", "1m", "3m"]);
        let range = c.pick(&["1m", "2m", "30s", "5m"]);
        return format!("({})[{range}:{step}]{}", vector(c, depth), modifier(c));
    }
    let name = c.pick(&["a_total", "b", "h", "m", "c_bucket", "b{job=\"x\"}"]);
    let edges = c.pick(edges_of(function));
    format!("{name}[{}]{edges}{}", duration(c), modifier(c))
}

fn scalar(c: &mut Choices<'_>, depth: usize) -> String {
    let Some(depth) = depth.checked_sub(1).filter(|_| !c.is_empty()) else {
        return "1".to_owned();
    };
    match c.below(6) {
        0 => call(c, ValueType::Scalar, depth),
        1 => {
            let op = c.pick(&["+", "-", "*", "/", "%", "^", "> bool", "== bool", "atan2"]);
            format!("({}) {op} ({})", scalar(c, depth), scalar(c, depth))
        }
        _ => c
            .pick(&["0.5", "2", "-1", "0", "Inf", "NaN", "1e9", "time()", "3m", "0.9"])
            .to_owned(),
    }
}

/// Whether what a function gives depends on the request rather than on the time it is evaluated at.
fn is_of_request(function: FunctionId) -> bool {
    use FunctionId as F;
    matches!(function, F::Start | F::End | F::Range | F::Step)
}

fn call(c: &mut Choices<'_>, returns: ValueType, depth: usize) -> String {
    let fitting: Vec<FunctionId> = FunctionId::ALL
        .iter()
        .copied()
        .filter(|f| f.signature().returns == returns && !is_of_request(*f))
        .collect();
    let Some(&function) = fitting.get(c.below(fitting.len())) else {
        return "b".to_owned();
    };
    let signature = function.signature();
    let most = signature.args_max.unwrap_or(signature.args_min + 2);
    let count = signature.args_min + c.below(most - signature.args_min + 1);
    let args: Vec<String> = (0..count)
        .filter_map(|i| {
            Some(match signature.arg(i)? {
                ValueType::Vector if function == FunctionId::Info && i == 1 => c
                    .pick(&["{version=~\".+\"}", "{version=\"7\"}", "{__name__=~\".*_info\"}"])
                    .to_owned(),
                ValueType::Vector => vector(c, depth),
                ValueType::Matrix => matrix(c, depth, function),
                ValueType::Scalar => scalar(c, depth),
                ValueType::String => c
                    .pick(&[
                        "\"job\"",
                        "\"v\"",
                        "\"$1\"",
                        "\"(.*)\"",
                        "\"\"",
                        "\"instance\"",
                        "\"__name__\"",
                        "\"le\"",
                    ])
                    .to_owned(),
            })
        })
        .collect();
    format!("{function}({})", args.join(", "))
}

fn aggregate(c: &mut Choices<'_>, depth: usize) -> String {
    let op = c.pick(&[
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
        "limitk",
        "limit_ratio",
    ]);
    let by = c.pick(&[
        "",
        " by (job)",
        " without (instance)",
        " by (job, instance)",
        " without ()",
        " by (le)",
    ]);
    let param = match op {
        "topk" | "bottomk" | "quantile" | "limitk" | "limit_ratio" => {
            format!("{}, ", scalar(c, depth.min(1)))
        }
        "count_values" => c.pick(&["\"v\", ", "\"job\", "]).to_owned(),
        _ => String::new(),
    };
    format!("{op}{by} ({param}{})", vector(c, depth))
}

fn binary(c: &mut Choices<'_>, depth: usize) -> String {
    let (left, right) = (vector(c, depth), vector(c, depth));
    if c.below(3) == 0 {
        let op = c.pick(&["and", "or", "unless"]);
        let matching = c.pick(&["", " on (job)", " ignoring (instance)", " on ()"]);
        return format!("({left}) {op}{matching} ({right})");
    }
    let op = c.pick(&["+", "-", "*", "/", "%", "^", "==", ">", "< bool", "atan2", "</"]);
    let matching = c.pick(&[
        "",
        "",
        " on (job, instance)",
        " on (job) group_left ()",
        " on (job) group_right (version)",
        " ignoring (le, version) group_left ()",
        " on (job)",
    ]);
    let fill = c.pick(&["", "", "", " fill (0)", " fill_left (-1)", " fill_right (2)"]);
    format!("({left}) {op}{matching}{fill} ({right})")
}
