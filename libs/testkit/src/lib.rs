//! Test tools: simulated disk and network, oracle, process harness, S3 server; never in a product.
