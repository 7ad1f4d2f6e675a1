//! Injected randomness.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng};

/// A source of random numbers.
pub trait Rng: Send + fmt::Debug {
    /// 64 random bits.
    fn next_u64(&mut self) -> u64;
}

impl Rng for SmallRng {
    fn next_u64(&mut self) -> u64 {
        rand::Rng::next_u64(self)
    }
}

/// A shared source of random numbers, seeded by the operating system or, in simulation, by the run's seed.
#[derive(Clone)]
pub struct RngHandle(Arc<Mutex<SmallRng>>);

impl RngHandle {
    /// Seeded by the operating system.
    pub fn from_entropy() -> Self {
        let mut os = rand::rngs::ThreadRng::default();
        Self(Arc::new(Mutex::new(SmallRng::from_rng(&mut os))))
    }

    /// Seeded by a number: the same seed gives the same numbers.
    pub fn from_seed(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(SmallRng::seed_from_u64(seed))))
    }

    /// 64 random bits.
    pub fn u64(&self) -> u64 {
        self.0.lock().next_u64()
    }

    /// 128 random bits.
    pub fn u128(&self) -> u128 {
        (u128::from(self.u64()) << 64) | u128::from(self.u64())
    }

    /// A number below `bound` (0 when the bound is 0), nearly uniform.
    pub fn below(&self, bound: u64) -> u64 {
        ((u128::from(self.u64()) * u128::from(bound)) >> 64) as u64
    }

    /// An independent source derived from this one.
    pub fn fork(&self) -> Self {
        Self::from_seed(self.u64())
    }
}

impl fmt::Debug for RngHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RngHandle")
    }
}
