//! Disks that stand still, or are slow.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use koios_runtime::{ClockHandle, Pace, watch};

#[derive(Clone, Copy, Debug, Default)]
struct State {
    held: bool,
    pause: Duration,
}

/// A pace that a test sets.
#[derive(Debug)]
pub(crate) struct TestPace {
    clock: ClockHandle,
    state: watch::Sender<State>,
}

impl TestPace {
    pub(crate) fn new(clock: &ClockHandle) -> Arc<Self> {
        Arc::new(Self {
            clock: Arc::clone(clock),
            state: watch::Sender::new(State::default()),
        })
    }

    /// Stands still, or goes on.
    pub(crate) fn hold(&self, held: bool) {
        let state = *self.state.borrow();
        self.state.send_replace(State { held, ..state });
    }

    /// Each piece of work takes twice as long.
    pub(crate) fn slow(&self, pause: Duration) {
        let state = *self.state.borrow();
        self.state.send_replace(State { pause, ..state });
    }
}

impl Pace for TestPace {
    fn pause(&self) -> BoxFuture<'static, ()> {
        let (mut state, clock) = (self.state.subscribe(), Arc::clone(&self.clock));
        Box::pin(async move {
            let Ok(State { pause, .. }) = state.wait_for(|s| !s.held).await.map(|s| *s) else {
                return;
            };
            if !pause.is_zero() {
                clock.sleep(pause).await;
            }
        })
    }
}
