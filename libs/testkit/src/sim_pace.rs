//! When submitted work runs in simulation: at once, some turns later, or some milliseconds later, by the seed.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use koios_runtime::{ClockHandle, Pace, RngHandle};

/// Longest pause, milliseconds.
const LONGEST_MS: u64 = 8;

/// A pace that a seed decides, on simulated time.
#[derive(Clone, Debug)]
pub struct SimPace {
    rng: RngHandle,
    clock: ClockHandle,
}

impl SimPace {
    /// A pace whose pauses are decided by `rng` and waited for by `clock`.
    pub fn new(rng: RngHandle, clock: ClockHandle) -> Arc<Self> {
        Arc::new(Self { rng, clock })
    }
}

impl Pace for SimPace {
    fn pause(&self) -> BoxFuture<'static, ()> {
        match self.rng.below(8) {
            0..3 => Box::pin(std::future::ready(())),
            turns @ 3..6 => Box::pin(async move {
                for _ in 3..=turns {
                    tokio::task::yield_now().await;
                }
            }),
            _ => self
                .clock
                .sleep(Duration::from_millis(1 + self.rng.below(LONGEST_MS))),
        }
    }
}
