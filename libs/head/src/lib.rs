//! The ingester's in-memory series: symbols, index, apply and cut.
