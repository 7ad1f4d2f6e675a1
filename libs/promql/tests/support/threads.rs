//! Several threads for one query.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use koios_promql::{Interrupt, QueryContext};

/// Runs parts on some threads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Threads(pub(crate) usize);

impl QueryContext for Threads {
    fn interrupted(&self) -> Option<Interrupt> {
        None
    }

    fn width(&self) -> usize {
        self.0
    }

    fn each(&self, parts: usize, part: &(dyn Fn(usize) + Sync)) {
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..self.0 {
                scope.spawn(|| {
                    while let Some(i) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|&i| i < parts) {
                        part(i);
                    }
                });
            }
        });
    }

    fn shared(&self) -> Arc<dyn QueryContext> {
        Arc::new(*self)
    }
}
