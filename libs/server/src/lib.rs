//! The process shell: configuration, listeners, tower layers, readiness, self-metrics, tracing.
