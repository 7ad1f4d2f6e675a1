//! Storage: WAL and heads, recent reads, repair, block cut and upload.
