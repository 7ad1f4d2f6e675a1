//! Write-ahead log segments and records with group commit.
