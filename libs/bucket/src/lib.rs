//! Object-store layout, tenant manifests, local bucket, retries and self-test.
