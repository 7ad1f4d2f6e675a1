//! Compressed sample chunks: decimal exponent, bit-packed mantissa deltas, float escape.
