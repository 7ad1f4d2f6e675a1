//! How many bytes are held at once.

use std::collections::BTreeMap;
use std::sync::Arc;

use koios_model::TenantId;
use parking_lot::Mutex;

use crate::Error;
use crate::error::InFlight;

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
        let whole = self.of.limit;
        if total > whole {
            return Err(Error::Busy {
                bytes: None,
                limit: whole,
                of: InFlight::All,
            });
        }
        if of_tenant > limit {
            return Err(Error::Busy {
                bytes: Some(of_tenant),
                limit,
                of: InFlight::OneTenant,
            });
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

#[cfg(test)]
mod tests {
    use super::*;

    fn busy_of_tenant(bytes: u64) -> Error {
        Error::Busy {
            bytes: Some(bytes),
            limit: 50,
            of: InFlight::OneTenant,
        }
    }

    #[test]
    fn i6_one_tenant_holds_at_most_half() {
        let bytes = BytesInFlight::new(100);
        let (noisy, quiet) = (TenantId::new("noisy").unwrap(), TenantId::new("quiet").unwrap());
        let mut first = bytes.open(&noisy);
        first.grow(50).unwrap();
        assert_eq!(bytes.open(&noisy).grow(1), Err(busy_of_tenant(51)));
        let mut other = bytes.open(&quiet);
        other.grow(50).unwrap();
        let third = TenantId::new("third").unwrap();
        let all_busy = Err(Error::Busy {
            bytes: None,
            limit: 100,
            of: InFlight::All,
        });
        assert_eq!(bytes.open(&third).grow(1), all_busy);
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
        assert_eq!(held.grow(20), Err(busy_of_tenant(60)));
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
}
