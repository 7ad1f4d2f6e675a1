//! How many samples of a tenant come per second: all distributors together admit no more than its limit.
//!
//! Each has a bucket for each tenant with a limit, which fills with this process' share of it. Members say with their
//! acknowledgements how fast the tenant's samples come from all distributors, and what this process sends it knows. While all
//! is below the limit, whoever needs it takes what is left; above it each goes down in proportion to what it sends, and up by a
//! little, so that shares become equal where they are too small for what comes. An equal share is always left. Of the burst
//! each has the part that it has of what was sent last.
//!
//! Where nothing is told, as nothing came yet or members are of an earlier version, the share is all of the limit.

use std::collections::BTreeMap;
use std::time::Duration;

use koios_model::{BatchColumns, PartitionId, TenantId};
use koios_tenancy::{Limits, Rate};
use parking_lot::Mutex;

use crate::Error;

/// All distributors together may exceed the limit by so much of it while shares become equal: a twentieth.
const GROWTH: f64 = 0.05;
/// How long a tenant is remembered that sends no more.
const REMEMBERED: Duration = Duration::from_secs(3600);

/// The buckets of all tenants that have a limit.
#[derive(Debug, Default)]
pub(crate) struct Rates {
    tenants: Mutex<Tenants>,
}

#[derive(Debug, Default)]
struct Tenants {
    limited: BTreeMap<TenantId, Tenant>,
    swept_at: Duration,
}

#[derive(Debug)]
struct Tenant {
    tokens: f64,
    /// When the tokens were counted.
    at: Duration,
    flows: BTreeMap<PartitionId, Flow>,
}

/// What comes in a partition.
#[derive(Debug, Default)]
struct Flow {
    /// From this process.
    own: Rate,
    /// From all, as members said.
    all: Rate,
}

/// What this process has of a tenant's limit.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Share {
    /// Samples per second.
    rate: f64,
    /// Of the burst, up to 1.
    of_burst: f64,
}

/// What is to be admitted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub(crate) samples: u64,
    /// How many distributors there are, this one included.
    pub(crate) distributors: u64,
    /// The monotonic time.
    pub(crate) now: Duration,
}

/// What counts of a batch, here and at the members.
pub(crate) fn admitted_samples(columns: &BatchColumns) -> u64 {
    (columns.sample_count() + columns.exemplars.len()) as u64
}

impl Rates {
    /// Admits samples.
    ///
    /// A request larger than the whole burst is admitted when the bucket is full, as it could never come otherwise.
    ///
    /// # Errors
    /// [`Error::RateLimited`] saying when it would be admitted.
    pub(crate) fn admit(&self, tenant: &TenantId, limits: &Limits, asked: Asked) -> Result<(), Error> {
        let Asked { samples, now, .. } = asked;
        let mut tenants = self.tenants.lock();
        tenants.sweep(now);
        if limits.ingestion_rate == 0 {
            // What is remembered would be of another time when there is a limit again.
            tenants.limited.remove(tenant);
            return Ok(());
        }
        let limit = limits.ingestion_rate as f64;
        let burst = limits.ingestion_burst.max(limits.ingestion_rate) as f64;
        if !tenants.limited.contains_key(tenant) {
            tenants.limited.insert(tenant.clone(), Tenant::new(burst, now));
        }
        let Some(of_tenant) = tenants.limited.get_mut(tenant) else {
            return Ok(());
        };
        let share = Share::of(limit, of_tenant.flow(now), asked.distributors);
        let burst = burst * share.of_burst;
        let passed = now.saturating_sub(of_tenant.at).as_secs_f64();
        of_tenant.tokens = (of_tenant.tokens + passed * share.rate).min(burst);
        of_tenant.at = now;
        let needed = (samples as f64).min(burst);
        if of_tenant.tokens < needed {
            let wait = (needed - of_tenant.tokens) / share.rate;
            return Err(Error::RateLimited {
                rate: limits.ingestion_rate,
                burst: limits.ingestion_burst.max(limits.ingestion_rate),
                samples,
                retry_after: Duration::from_secs_f64(wait.min(3600.0)),
            });
        }
        of_tenant.tokens -= samples as f64;
        Ok(())
    }

    /// Notes that samples are sent to a partition.
    pub(crate) fn sent(&self, tenant: &TenantId, partition: PartitionId, samples: u64, now: Duration) {
        if let Some(of_tenant) = self.tenants.lock().limited.get_mut(tenant) {
            let flow = of_tenant.flows.entry(partition).or_default();
            flow.own.add(samples, now);
        }
    }

    /// Notes what members told of a partition, in thousandths of samples per second, of the time when they were sent to.
    pub(crate) fn told(&self, tenant: &TenantId, partition: PartitionId, rate: u64, now: Duration) {
        if let Some(of_tenant) = self.tenants.lock().limited.get_mut(tenant) {
            of_tenant.flows.entry(partition).or_default().all = Rate::told(rate, now);
        }
    }
}

impl Tenants {
    /// Forgets tenants and partitions of which nothing came for long.
    fn sweep(&mut self, now: Duration) {
        if now.saturating_sub(self.swept_at) < REMEMBERED {
            return;
        }
        self.swept_at = now;
        self.limited.retain(|_, tenant| {
            let flows = &mut tenant.flows;
            flows.retain(|_, flow| flow.all.thousandths(now) > 0 || flow.own.thousandths(now) > 0);
            now.saturating_sub(tenant.at) < REMEMBERED
        });
    }
}

impl Tenant {
    fn new(tokens: f64, at: Duration) -> Self {
        Self {
            tokens,
            at,
            flows: BTreeMap::new(),
        }
    }

    /// Samples per second that this process sends, and those of all.
    fn flow(&self, now: Duration) -> (f64, f64) {
        let flows = self.flows.values().map(|flow| {
            let own = flow.own.at(now);
            (own, flow.all.at(now).max(own))
        });
        flows.fold((0.0, 0.0), |sum, flow| (sum.0 + flow.0, sum.1 + flow.1))
    }
}

impl Share {
    /// Of a limit, where this process sends `own` of `all` samples per second.
    fn of(limit: f64, (own, all): (f64, f64), distributors: u64) -> Self {
        if all < f64::MIN_POSITIVE {
            return Self {
                rate: limit,
                of_burst: 1.0,
            };
        }
        let equal = 1.0 / distributors.max(1) as f64;
        let kept = own * (limit / all).min(1.0);
        let left = (limit - all).max(0.0);
        let rate = kept + left + GROWTH * limit * equal;
        Self {
            rate: rate.clamp(limit * equal, limit),
            of_burst: (own / all).clamp(equal, 1.0),
        }
    }
}

#[cfg(test)]
#[path = "rate_limit_test.rs"]
mod tests;
