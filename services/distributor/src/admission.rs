//! How many bytes are held at once, and how many samples come per second.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use koios_model::TenantId;
use koios_tenancy::Limits;
use parking_lot::Mutex;

use crate::Error;

/// Bytes of requests held, bounded in total and for each tenant. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct BytesInFlight {
    held: Arc<Mutex<Held>>,
    limit: u64,
}

#[derive(Debug, Default)]
struct Held {
    total: u64,
    tenants: BTreeMap<TenantId, u64>,
}

/// Bytes held for one request; given back when dropped.
#[derive(Debug)]
pub(crate) struct HeldBytes {
    of: BytesInFlight,
    tenant: TenantId,
    bytes: u64,
}

impl BytesInFlight {
    pub(crate) fn new(limit: u64) -> Self {
        Self {
            held: Arc::default(),
            limit,
        }
    }

    /// Starts with nothing.
    pub(crate) fn open(&self, tenant: &TenantId) -> HeldBytes {
        HeldBytes {
            of: self.clone(),
            tenant: tenant.clone(),
            bytes: 0,
        }
    }

    /// Bytes held now.
    pub(crate) fn total(&self) -> u64 {
        self.held.lock().total
    }

    /// One tenant may hold half: the others' requests always find room (I6).
    fn limit_per_tenant(&self) -> u64 {
        self.limit / 2
    }

    fn give_back(&self, tenant: &TenantId, bytes: u64) {
        let mut held = self.held.lock();
        held.total = held.total.saturating_sub(bytes);
        let of_tenant = held.tenants.get(tenant);
        let left = of_tenant.map_or(0, |b| b.saturating_sub(bytes));
        if left == 0 {
            held.tenants.remove(tenant);
        } else {
            held.tenants.insert(tenant.clone(), left);
        }
    }
}

impl HeldBytes {
    /// Holds `bytes` more.
    ///
    /// # Errors
    /// [`Error::Busy`] when that exceeds what may be held, [`Error::RequestTooLarge`] when it always will.
    pub(crate) fn grow(&mut self, bytes: u64) -> Result<(), Error> {
        let (bytes_of_all, limit) = (self.bytes.saturating_add(bytes), self.of.limit_per_tenant());
        if bytes_of_all > limit {
            let bytes = bytes_of_all;
            return Err(Error::RequestTooLarge { bytes, limit });
        }
        let mut held = self.of.held.lock();
        let total = held.total.saturating_add(bytes);
        let of_tenant = held.tenants.get(&self.tenant).copied().unwrap_or(0);
        let of_tenant = of_tenant.saturating_add(bytes);
        if total > self.of.limit {
            return Err(Error::Busy { limit: self.of.limit });
        }
        if of_tenant > limit {
            return Err(Error::Busy { limit });
        }
        held.total = total;
        held.tenants.insert(self.tenant.clone(), of_tenant);
        self.bytes = bytes_of_all;
        Ok(())
    }

    /// Gives some of them back.
    pub(crate) fn shrink(&mut self, bytes: u64) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        self.of.give_back(&self.tenant, bytes);
    }
}

impl Drop for HeldBytes {
    fn drop(&mut self) {
        self.of.give_back(&self.tenant, self.bytes);
    }
}

/// A token bucket per tenant that has a rate.
#[derive(Debug, Default)]
pub(crate) struct Rates {
    buckets: Mutex<BTreeMap<TenantId, Bucket>>,
}

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    at: Duration,
}

impl Rates {
    /// Admits `samples` at the monotonic time `now`.
    ///
    /// A request larger than the whole burst is admitted when the bucket is full, as it could never come otherwise.
    ///
    /// # Errors
    /// [`Error::RateLimited`] saying when it would be admitted.
    pub(crate) fn admit(
        &self,
        tenant: &TenantId,
        limits: &Limits,
        samples: u64,
        now: Duration,
    ) -> Result<(), Error> {
        if limits.ingestion_rate == 0 {
            return Ok(());
        }
        let rate = limits.ingestion_rate as f64;
        let burst = limits.ingestion_burst.max(limits.ingestion_rate) as f64;
        let mut buckets = self.buckets.lock();
        let bucket = buckets.entry(tenant.clone()).or_insert(Bucket {
            tokens: burst,
            at: now,
        });
        let passed = now.saturating_sub(bucket.at).as_secs_f64();
        bucket.tokens = (bucket.tokens + passed * rate).min(burst);
        bucket.at = now;
        let needed = (samples as f64).min(burst);
        if bucket.tokens < needed {
            return Err(Error::RateLimited {
                rate: limits.ingestion_rate,
                samples,
                retry_after: Duration::from_secs_f64(((needed - bucket.tokens) / rate).min(3600.0)),
            });
        }
        bucket.tokens -= samples as f64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i6_one_tenant_holds_at_most_half() {
        let bytes = BytesInFlight::new(100);
        let (noisy, quiet) = (TenantId::new("noisy").unwrap(), TenantId::new("quiet").unwrap());
        let mut first = bytes.open(&noisy);
        first.grow(50).unwrap();
        assert_eq!(bytes.open(&noisy).grow(1), Err(Error::Busy { limit: 50 }));
        let mut other = bytes.open(&quiet);
        other.grow(50).unwrap();
        drop(first);
        assert_eq!(bytes.total(), 50);
        bytes.open(&noisy).grow(50).unwrap();
        drop(other);
        assert_eq!(bytes.total(), 0);
    }

    #[test]
    fn i13_a_request_that_no_waiting_helps_is_told_so() {
        let (bytes, tenant) = (BytesInFlight::new(100), TenantId::anonymous());
        let mut other = bytes.open(&tenant);
        other.grow(40).unwrap();
        let mut held = bytes.open(&tenant);
        assert_eq!(held.grow(20), Err(Error::Busy { limit: 50 }));
        held.grow(10).unwrap();
        let too_large = Err(Error::RequestTooLarge { bytes: 51, limit: 50 });
        assert_eq!(held.grow(41), too_large);
        held.shrink(7);
        other.shrink(40);
        held.grow(47).unwrap();
        assert_eq!(bytes.total(), 50);
        drop((held, other));
        assert_eq!(bytes.total(), 0);
    }

    #[test]
    fn a_rate_admits_its_burst_and_then_as_much_as_time_gives() {
        let (rates, tenant) = (Rates::default(), TenantId::anonymous());
        let limits = Limits {
            ingestion_rate: 10,
            ingestion_burst: 30,
            ..Limits::default()
        };
        let admit = |samples, secs| rates.admit(&tenant, &limits, samples, Duration::from_secs(secs));
        admit(30, 0).unwrap();
        let error = admit(20, 1).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("ingestion rate limit (10/s) exceeded"),
            "{error}"
        );
        assert!(
            matches!(error, Error::RateLimited { retry_after, .. } if retry_after == Duration::from_secs(1))
        );
        admit(20, 2).unwrap();
        // Larger than the burst: only when nothing is owed.
        assert!(admit(90, 3).is_err());
        admit(90, 5).unwrap();
        assert!(admit(1, 10).is_err());
    }
}
