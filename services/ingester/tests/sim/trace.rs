//! What happened, in order, and the first promise that was broken.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use koios_runtime::ClockHandle;
use parking_lot::Mutex;

#[derive(Debug, Default)]
struct Inner {
    lines: Vec<String>,
    violation: Option<String>,
}

/// The schedule of a run. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Trace {
    clock: ClockHandle,
    inner: Arc<Mutex<Inner>>,
}

impl Trace {
    pub(crate) fn new(clock: ClockHandle) -> Self {
        Self {
            clock,
            inner: Arc::default(),
        }
    }

    pub(crate) fn note(&self, what: impl AsRef<str>) {
        let line = format!("{:>8} ms  {}", self.clock.elapsed().as_millis(), what.as_ref());
        self.inner.lock().lines.push(line);
    }

    /// A promise was broken: the run ends soon.
    pub(crate) fn violated(&self, what: impl Into<String>) {
        let what = what.into();
        self.note(format!("VIOLATION {what}"));
        self.inner.lock().violation.get_or_insert(what);
    }

    pub(crate) fn violation(&self) -> Option<String> {
        self.inner.lock().violation.clone()
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.inner.lock().lines.clone()
    }

    /// A number that depends on every line and on what the disk did.
    pub(crate) fn hash(&self, disk: u64) -> u64 {
        let mut hasher = DefaultHasher::new();
        (&self.inner.lock().lines, disk).hash(&mut hasher);
        hasher.finish()
    }
}
