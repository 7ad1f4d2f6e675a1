//! Places for requests in flight: so many in all, and half of them for one tenant, lest one whose requests stall keeps out all others
//! (I6).

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

/// How many requests are answered at once, by tenant.
#[derive(Debug)]
pub(crate) struct Places {
    in_all: usize,
    of_one: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    in_all: usize,
    by_tenant: HashMap<Arc<str>, usize>,
}

/// Why there is no place for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Full {
    #[error(
        "too many requests in flight (limit: {0}, as many are answered now): try again or raise http.max-requests-in-flight"
    )]
    InAll(usize),
    #[error(
        "too many requests of the tenant in flight (limit: {0}, half of http.max-requests-in-flight): try again or send fewer at once"
    )]
    OfTenant(usize),
}

/// A place, given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    tenant: Arc<str>,
}

impl Places {
    pub(crate) fn new(in_all: usize) -> Self {
        Self {
            in_all,
            of_one: (in_all / 2).max(1),
            taken: Mutex::default(),
        }
    }

    /// Takes a place for a request of a tenant.
    ///
    /// # Errors
    /// [`Full`].
    pub(crate) fn take(self: &Arc<Self>, tenant: Arc<str>) -> Result<Place, Full> {
        let mut taken = self.taken.lock();
        if taken.in_all >= self.in_all {
            return Err(Full::InAll(self.in_all));
        }
        let of_tenant = taken.by_tenant.entry(Arc::clone(&tenant)).or_default();
        if *of_tenant >= self.of_one {
            return Err(Full::OfTenant(self.of_one));
        }
        *of_tenant += 1;
        taken.in_all += 1;
        drop(taken);
        Ok(Place {
            places: Arc::clone(self),
            tenant,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock();
        taken.in_all -= 1;
        let left = taken.by_tenant.get_mut(&self.tenant).map(|of_tenant| {
            *of_tenant -= 1;
            *of_tenant
        });
        if left == Some(0) {
            taken.by_tenant.remove(&self.tenant);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i6_one_tenant_takes_half_of_the_places() {
        let places = Arc::new(Places::new(6));
        let take = |tenant: &str| places.take(tenant.into());
        let stalled: Vec<Place> = (0..3).map(|_| take("a").unwrap()).collect();
        assert_eq!(take("a").unwrap_err(), Full::OfTenant(3));
        let others: Vec<Place> = ["b", "b", "c"].into_iter().map(|t| take(t).unwrap()).collect();
        assert_eq!(take("d").unwrap_err(), Full::InAll(6));
        drop((stalled, others));
        assert!(
            places.taken.lock().by_tenant.is_empty(),
            "nothing stays of who left"
        );
        drop((take("a").unwrap(), take("d").unwrap()));
    }

    #[test]
    fn one_place_is_for_whoever_comes() {
        let places = Arc::new(Places::new(1));
        let place = places.take("a".into()).unwrap();
        assert_eq!(places.take("b".into()).unwrap_err(), Full::InAll(1));
        drop(place);
        places.take("b".into()).unwrap();
    }
}
