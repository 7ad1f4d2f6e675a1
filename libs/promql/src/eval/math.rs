//! Functions from number to number.

mod hyperbolic;

use crate::date::Date;
use crate::signatures::FunctionId;

/// A function of one float.
pub(super) type FloatFunction = fn(f64) -> f64;

/// The function of one float that a PromQL function applies to every value.
pub(super) fn float_function(function: FunctionId) -> Option<FloatFunction> {
    use FunctionId as F;
    Some(match function {
        F::Abs => f64::abs,
        F::Acos => f64::acos,
        F::Acosh => hyperbolic::acosh,
        F::Asin => f64::asin,
        F::Asinh => hyperbolic::asinh,
        F::Atan => f64::atan,
        F::Atanh => hyperbolic::atanh,
        F::Ceil => f64::ceil,
        F::Cos => f64::cos,
        F::Cosh => f64::cosh,
        F::Deg => |v| v * 180.0 / std::f64::consts::PI,
        F::Exp => f64::exp,
        F::Floor => f64::floor,
        F::Ln => f64::ln,
        F::Log10 => f64::log10,
        F::Log2 => f64::log2,
        F::Rad => |v| v * std::f64::consts::PI / 180.0,
        F::Sgn => sgn,
        F::Sin => f64::sin,
        F::Sinh => f64::sinh,
        F::Sqrt => f64::sqrt,
        F::Tan => f64::tan,
        F::Tanh => f64::tanh,
        _ => return date_function(function),
    })
}

/// The part of a date that a PromQL function takes, from seconds since the epoch.
pub(super) fn date_function(function: FunctionId) -> Option<FloatFunction> {
    use FunctionId as F;
    Some(match function {
        F::DayOfMonth => |v| f64::from(date(v).day),
        F::DayOfWeek => |v| f64::from(date(v).weekday),
        F::DayOfYear => |v| f64::from(date(v).day_of_year),
        F::DaysInMonth => |v| f64::from(date(v).days_in_month()),
        F::Hour => |v| f64::from(date(v).hour),
        F::Minute => |v| f64::from(date(v).minute),
        F::Month => |v| f64::from(date(v).month),
        F::Year => |v| date(v).year as f64,
        _ => return None,
    })
}

fn date(seconds: f64) -> Date {
    Date::from_unix(seconds as i64)
}

fn sgn(v: f64) -> f64 {
    if v < 0.0 {
        -1.0
    } else if v > 0.0 {
        1.0
    } else {
        v
    }
}

/// To the nearest multiple; ties go up.
pub(super) fn round_to(v: f64, nearest: f64) -> f64 {
    // Inverting loses less than dividing.
    let inverse = 1.0 / nearest;
    (v * inverse + 0.5).floor() / inverse
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_round_up() {
        assert_eq!(
            (round_to(2.5, 1.0), round_to(-2.5, 1.0), round_to(4.9, 5.0)),
            (3.0, -2.0, 5.0)
        );
    }

    #[test]
    fn sign_of_nothing_is_itself() {
        assert!(sgn(f64::NAN).is_nan());
        assert!(sgn(-0.0).is_sign_negative());
    }
}
