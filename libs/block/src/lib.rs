//! The Parquet block format: schema, write, read, merge, verify.
