//! Tenant resolution, limits and overrides.
