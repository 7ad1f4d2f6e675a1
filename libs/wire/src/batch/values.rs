//! Values as they are written: most are decimals of few digits, whose mantissas take two or three bytes where the float's eight look like noise
//! to a compressor. A batch has mostly one sample of each series, so every value has an exponent of its own: a byte in a column
//! in which they repeat.

use koios_chunk::decimal::{from_mantissa, to_mantissa};

use super::bytes::{Reader, unzigzag, write_varint, zigzag};
use super::{BatchError, DECODED_BYTES_MAX};

/// The exponent of a value that has no mantissa at one of those that are tried: its bits follow.
const AS_BITS: u8 = 0xff;
/// The largest exponent that is tried: micro-anything, and seconds to the microsecond.
const TRIED_MAX: u8 = 6;
/// Some values above it have too many digits before the point for a mantissa at [`TRIED_MAX`].
const LARGE: f64 = 1e9;
/// The largest that is read.
const READ_MAX: u8 = 22;

/// What samples take in memory, bytes.
pub(super) fn samples_bytes(samples: usize) -> usize {
    samples.saturating_mul(size_of::<(i64, f64)>())
}

/// Appends a byte of exponent per value to one column, and to the other its mantissa as a zigzag varint, or its bits.
pub(super) fn encode(values: &[f64], exponents: &mut Vec<u8>, mantissas: &mut Vec<u8>) {
    for &v in values {
        match decimal(v) {
            Some((exponent, mantissa)) => {
                exponents.push(exponent);
                write_varint(mantissas, zigzag(mantissa));
            }
            None => {
                exponents.push(AS_BITS);
                mantissas.extend_from_slice(&v.to_bits().to_le_bytes());
            }
        }
    }
}

/// A value's smallest exponent, and its mantissa at it.
fn decimal(v: f64) -> Option<(u8, i64)> {
    if let Some(mantissa) = to_mantissa(v, 0) {
        return Some((0, mantissa));
    }
    let Some(mut mantissa) = to_mantissa(v, TRIED_MAX) else {
        // So large that it has one at smaller exponents only, if at any.
        let at = |e: u8| to_mantissa(v, e).map(|m| (e, m));
        return (v.abs() > LARGE).then(|| (1..TRIED_MAX).find_map(at)).flatten();
    };
    // Both are exact as floats, so that their quotient rounds to the same float as that without the zeros.
    let mut exponent = TRIED_MAX;
    while mantissa % 10 == 0 && exponent > 0 {
        mantissa /= 10;
        exponent -= 1;
    }
    Some((exponent, mantissa))
}

/// The values of the two columns. They may take some times as many bytes as these, so that is bounded, too.
pub(super) fn decode(exponents: &[u8], mantissas: &mut Reader<'_>) -> Result<Vec<f64>, BatchError> {
    let declared = samples_bytes(exponents.len());
    if declared > DECODED_BYTES_MAX {
        return Err(BatchError::TooLarge { declared });
    }
    let mut values = Vec::with_capacity(exponents.len().min(mantissas.left()));
    for &exponent in exponents {
        values.push(match exponent {
            AS_BITS => f64::from_bits(mantissas.u64()?),
            0..=READ_MAX => from_mantissa(unzigzag(mantissas.varint()?), exponent),
            other => {
                return Err(BatchError::Column {
                    column: "exponents of values",
                    reason: format!("{other} is above {READ_MAX}"),
                });
            }
        });
    }
    if !mantissas.done() {
        return Err(BatchError::Column {
            column: "mantissas of values",
            reason: format!("{} bytes more than there are exponents", mantissas.left()),
        });
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn round_trip(values: &[f64]) -> (Vec<u8>, Vec<u8>) {
        let (mut exponents, mut mantissas) = (Vec::new(), Vec::new());
        encode(values, &mut exponents, &mut mantissas);
        let decoded = decode(&exponents, &mut Reader::new(&mantissas)).unwrap();
        let bits = |vs: &[f64]| vs.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&decoded), bits(values));
        (exponents, mantissas)
    }

    proptest! {
        #[test]
        fn any_bits_come_back(bits in proptest::collection::vec(any::<u64>(), 0..50)) {
            round_trip(&bits.into_iter().map(f64::from_bits).collect::<Vec<_>>());
        }

        #[test]
        fn decimals_come_back(of in proptest::collection::vec((any::<i64>(), 0u8..64, 0u8..=9), 0..50)) {
            let values = of.into_iter().map(|(m, shift, e)| from_mantissa(m >> shift, e));
            round_trip(&values.collect::<Vec<_>>());
        }

        #[test]
        fn whatever_is_read_is_no_panic(exponents: Vec<u8>, mantissas: Vec<u8>) {
            let _ = decode(&exponents, &mut Reader::new(&mantissas));
        }
    }

    #[test]
    fn short_decimals_take_few_bytes() {
        let (exponents, mantissas) =
            round_trip(&[5.0, 12.25, 7.5, 0.5, 1e12, 1e9 + 0.001, f64::NAN, -0.0, 0.1 + 0.2]);
        assert_eq!(exponents, [0, 2, 1, 1, 0, 3, AS_BITS, AS_BITS, AS_BITS]);
        assert_eq!(mantissas.len(), 1 + 2 + 2 + 1 + 6 + 6 + 3 * 8);
    }

    #[test]
    fn columns_that_disagree_are_refused() {
        let decode = |exponents: &[u8], mantissas: &[u8]| decode(exponents, &mut Reader::new(mantissas));
        assert!(decode(&[0], &[]).is_err(), "a mantissa is missing");
        assert!(decode(&[0], &[2, 2]).is_err(), "one is left over");
        assert!(decode(&[23], &[2]).is_err(), "such an exponent is not written");
        assert!(decode(&[AS_BITS], &[0; 7]).is_err(), "the bits end early");
    }

    #[test]
    fn no_more_is_taken_than_a_batch_may_take_in_memory() {
        let most = DECODED_BYTES_MAX / 16;
        let zeros = vec![0; most + 1];
        let decode = |n: usize| decode(&zeros[..n], &mut Reader::new(&zeros[..n]));
        assert_eq!(decode(most).unwrap().len(), most);
        let error = decode(most + 1).unwrap_err();
        assert!(matches!(error, BatchError::TooLarge { declared } if declared == DECODED_BYTES_MAX + 16));
    }
}
