//! Querying: HTTP query API and PromQL execution over heads and blocks.
