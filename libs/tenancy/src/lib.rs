//! Who a request belongs to, and what that tenant may do.
//!
//! **Data flow.** Every HTTP service calls [`tenant_of_write`] or [`tenants_of_read`] on a request's headers first, and
//! looks up the tenant's [`Limits`] in the process' [`Overrides`].
//!
//! **Invariants.** A tenant id that leaves this crate is a checked [`koios_model::TenantId`] (I6). One header, one
//! meaning: a repeated `X-Scope-OrgID` is refused, never merged.
//!
//! **Deliberately absent.** Credentials: a gateway in front of Koios sets the header. Enforcement: the distributor,
//! the querier and, for exemplars, the ingester compare against the limits where they know the value.
//!
//! **Failure behaviour.** Every refusal is a 400 whose message starts with `tenant ID` or names the header.

mod limits;
mod rate;
mod resolve;
mod retention;

pub use limits::{LimitError, Limits, Overrides};
pub use rate::Rate;
pub use resolve::{Error, TENANT_HEADER, tenant_of_write, tenants_of_read};
pub use retention::{RETENTION_RULES_MAX, RetentionLimits, rule_text};
