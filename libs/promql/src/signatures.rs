//! The functions of PromQL: names, arguments, results.

use std::fmt;

use crate::ast::ValueType::{self, Matrix, Scalar, String, Vector};

/// What a function takes and returns.
#[derive(Clone, Copy, Debug)]
pub struct Signature {
    /// The name as written.
    pub name: &'static str,
    /// The types of the arguments; the last one also holds for all that follow.
    pub args: &'static [ValueType],
    /// Fewest arguments.
    pub args_min: usize,
    /// Most arguments; `None` means any number.
    pub args_max: Option<usize>,
    /// The type of the result.
    pub returns: ValueType,
    /// Whether it may be switched off.
    pub experimental: bool,
}

impl Signature {
    /// Whether the number of arguments is fixed.
    pub fn is_fixed(&self) -> bool {
        self.args_max == Some(self.args_min) && self.args.len() == self.args_min
    }

    /// The type of argument number `index`, from 0.
    pub fn arg(&self, index: usize) -> Option<ValueType> {
        self.args
            .get(index)
            .or_else(|| self.args.last().filter(|_| !self.is_fixed()))
            .copied()
    }
}

macro_rules! functions {
    ($($id:ident $name:literal [$($arg:ident),*] $min:literal, $max:expr => $returns:ident $($flag:ident)?;)*) => {
        /// A function.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum FunctionId {
            $(#[doc = concat!("`", $name, "`")] $id,)*
        }

        impl FunctionId {
            /// All functions, by name.
            pub const ALL: &'static [Self] = &[$(Self::$id,)*];

            /// What the function takes and returns.
            pub fn signature(self) -> &'static Signature {
                match self {
                    $(Self::$id => const { &Signature {
                        name: $name,
                        args: &[$($arg),*],
                        args_min: $min,
                        args_max: $max,
                        returns: $returns,
                        experimental: functions!(@flag $($flag)?),
                    } },)*
                }
            }

            /// The function of a name; names are case-sensitive.
            pub fn from_name(name: &str) -> Option<Self> {
                match name {
                    $($name => Some(Self::$id),)*
                    _ => None,
                }
            }
        }
    };
    (@flag experimental) => { true };
    (@flag) => { false };
}

// Name, arguments, fewest and most of them, result.
functions! {
    Abs "abs" [Vector] 1, Some(1) => Vector;
    Absent "absent" [Vector] 1, Some(1) => Vector;
    AbsentOverTime "absent_over_time" [Matrix] 1, Some(1) => Vector;
    Acos "acos" [Vector] 1, Some(1) => Vector;
    Acosh "acosh" [Vector] 1, Some(1) => Vector;
    Asin "asin" [Vector] 1, Some(1) => Vector;
    Asinh "asinh" [Vector] 1, Some(1) => Vector;
    Atan "atan" [Vector] 1, Some(1) => Vector;
    Atanh "atanh" [Vector] 1, Some(1) => Vector;
    AvgOverTime "avg_over_time" [Matrix] 1, Some(1) => Vector;
    Ceil "ceil" [Vector] 1, Some(1) => Vector;
    Changes "changes" [Matrix] 1, Some(1) => Vector;
    Clamp "clamp" [Vector, Scalar, Scalar] 3, Some(3) => Vector;
    ClampMax "clamp_max" [Vector, Scalar] 2, Some(2) => Vector;
    ClampMin "clamp_min" [Vector, Scalar] 2, Some(2) => Vector;
    Cos "cos" [Vector] 1, Some(1) => Vector;
    Cosh "cosh" [Vector] 1, Some(1) => Vector;
    CountOverTime "count_over_time" [Matrix] 1, Some(1) => Vector;
    DayOfMonth "day_of_month" [Vector] 0, Some(1) => Vector;
    DayOfWeek "day_of_week" [Vector] 0, Some(1) => Vector;
    DayOfYear "day_of_year" [Vector] 0, Some(1) => Vector;
    DaysInMonth "days_in_month" [Vector] 0, Some(1) => Vector;
    Deg "deg" [Vector] 1, Some(1) => Vector;
    Delta "delta" [Matrix] 1, Some(1) => Vector;
    Deriv "deriv" [Matrix] 1, Some(1) => Vector;
    DoubleExponentialSmoothing "double_exponential_smoothing" [Matrix, Scalar, Scalar] 3, Some(3) => Vector experimental;
    End "end" [] 0, Some(0) => Scalar experimental;
    Exp "exp" [Vector] 1, Some(1) => Vector;
    FirstOverTime "first_over_time" [Matrix] 1, Some(1) => Vector;
    Floor "floor" [Vector] 1, Some(1) => Vector;
    HistogramAvg "histogram_avg" [Vector] 1, Some(1) => Vector;
    HistogramCount "histogram_count" [Vector] 1, Some(1) => Vector;
    HistogramFraction "histogram_fraction" [Scalar, Scalar, Vector] 3, Some(3) => Vector;
    HistogramQuantile "histogram_quantile" [Scalar, Vector] 2, Some(2) => Vector;
    HistogramQuantiles "histogram_quantiles" [Vector, String, Scalar, Scalar] 3, Some(12) => Vector experimental;
    HistogramStddev "histogram_stddev" [Vector] 1, Some(1) => Vector;
    HistogramStdvar "histogram_stdvar" [Vector] 1, Some(1) => Vector;
    HistogramSum "histogram_sum" [Vector] 1, Some(1) => Vector;
    Hour "hour" [Vector] 0, Some(1) => Vector;
    Idelta "idelta" [Matrix] 1, Some(1) => Vector;
    Increase "increase" [Matrix] 1, Some(1) => Vector;
    Info "info" [Vector, Vector] 1, Some(2) => Vector experimental;
    Irate "irate" [Matrix] 1, Some(1) => Vector;
    LabelJoin "label_join" [Vector, String, String, String] 3, None => Vector;
    LabelReplace "label_replace" [Vector, String, String, String, String] 5, Some(5) => Vector;
    LastOverTime "last_over_time" [Matrix] 1, Some(1) => Vector;
    Ln "ln" [Vector] 1, Some(1) => Vector;
    Log10 "log10" [Vector] 1, Some(1) => Vector;
    Log2 "log2" [Vector] 1, Some(1) => Vector;
    MadOverTime "mad_over_time" [Matrix] 1, Some(1) => Vector experimental;
    MaxOf "max_of" [Scalar, Scalar] 2, Some(2) => Scalar experimental;
    MaxOverTime "max_over_time" [Matrix] 1, Some(1) => Vector;
    MinOf "min_of" [Scalar, Scalar] 2, Some(2) => Scalar experimental;
    MinOverTime "min_over_time" [Matrix] 1, Some(1) => Vector;
    Minute "minute" [Vector] 0, Some(1) => Vector;
    Month "month" [Vector] 0, Some(1) => Vector;
    Pi "pi" [] 0, Some(0) => Scalar;
    PredictLinear "predict_linear" [Matrix, Scalar] 2, Some(2) => Vector;
    PresentOverTime "present_over_time" [Matrix] 1, Some(1) => Vector;
    QuantileOverTime "quantile_over_time" [Scalar, Matrix] 2, Some(2) => Vector;
    Rad "rad" [Vector] 1, Some(1) => Vector;
    Range "range" [] 0, Some(0) => Scalar experimental;
    Rate "rate" [Matrix] 1, Some(1) => Vector;
    Resets "resets" [Matrix] 1, Some(1) => Vector;
    Round "round" [Vector, Scalar] 1, Some(2) => Vector;
    Scalar "scalar" [Vector] 1, Some(1) => Scalar;
    Sgn "sgn" [Vector] 1, Some(1) => Vector;
    Sin "sin" [Vector] 1, Some(1) => Vector;
    Sinh "sinh" [Vector] 1, Some(1) => Vector;
    Sort "sort" [Vector] 1, Some(1) => Vector;
    SortByLabel "sort_by_label" [Vector, String] 1, None => Vector experimental;
    SortByLabelDesc "sort_by_label_desc" [Vector, String] 1, None => Vector experimental;
    SortDesc "sort_desc" [Vector] 1, Some(1) => Vector;
    Sqrt "sqrt" [Vector] 1, Some(1) => Vector;
    Start "start" [] 0, Some(0) => Scalar experimental;
    StartTimestamp "start_timestamp" [Vector] 1, Some(1) => Vector experimental;
    StddevOverTime "stddev_over_time" [Matrix] 1, Some(1) => Vector;
    StdvarOverTime "stdvar_over_time" [Matrix] 1, Some(1) => Vector;
    Step "step" [] 0, Some(0) => Scalar experimental;
    SumOverTime "sum_over_time" [Matrix] 1, Some(1) => Vector;
    Tan "tan" [Vector] 1, Some(1) => Vector;
    Tanh "tanh" [Vector] 1, Some(1) => Vector;
    Time "time" [] 0, Some(0) => Scalar;
    Timestamp "timestamp" [Vector] 1, Some(1) => Vector;
    TsOfFirstOverTime "ts_of_first_over_time" [Matrix] 1, Some(1) => Vector experimental;
    TsOfLastOverTime "ts_of_last_over_time" [Matrix] 1, Some(1) => Vector experimental;
    TsOfMaxOverTime "ts_of_max_over_time" [Matrix] 1, Some(1) => Vector experimental;
    TsOfMinOverTime "ts_of_min_over_time" [Matrix] 1, Some(1) => Vector experimental;
    Vector "vector" [Scalar] 1, Some(1) => Vector;
    Year "year" [Vector] 0, Some(1) => Vector;
}

impl FunctionId {
    /// The name as written.
    pub fn name(self) -> &'static str {
        self.signature().name
    }
}

impl fmt::Display for FunctionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_function_is_found_by_its_name() {
        for id in FunctionId::ALL {
            assert_eq!(FunctionId::from_name(id.name()), Some(*id));
        }
        assert_eq!(FunctionId::from_name("Rate"), None);
        assert_eq!(FunctionId::ALL.len(), 90);
        assert!(FunctionId::ALL.is_sorted_by_key(|f| f.name()));
    }

    #[test]
    fn argument_types_repeat_only_where_the_number_varies() {
        assert_eq!(FunctionId::LabelJoin.signature().arg(9), Some(String));
        assert_eq!(FunctionId::Rate.signature().arg(1), None);
        assert_eq!(FunctionId::Pi.signature().arg(0), None);
        assert_eq!(FunctionId::Round.signature().args_min, 1);
    }
}
