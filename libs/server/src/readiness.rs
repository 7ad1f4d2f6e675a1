//! Whether the process can serve, component by component.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

/// The states of all components. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    components: Arc<Mutex<BTreeMap<String, Option<String>>>>,
}

/// One component's own state; it starts not ready.
#[derive(Clone, Debug)]
pub struct Component {
    readiness: Readiness,
    name: String,
}

impl Readiness {
    /// A further component, not ready because it is `starting`.
    pub fn component(&self, name: &str) -> Component {
        let component = Component {
            readiness: self.clone(),
            name: name.to_owned(),
        };
        component.not_ready("starting");
        component
    }

    /// Makes the process not ready for good: it is stopping.
    pub fn stop(&self) {
        self.component("process").not_ready("stopping");
    }

    /// Why the process is not ready, `name: reason` per component, by name; empty when it is.
    pub fn reasons(&self) -> Vec<String> {
        let components = self.components.lock();
        components
            .iter()
            .filter_map(|(name, reason)| reason.as_ref().map(|r| format!("{name}: {r}")))
            .collect()
    }

    /// Whether every component is ready.
    pub fn is_ready(&self) -> bool {
        self.components.lock().values().all(Option::is_none)
    }
}

impl Component {
    /// From now on it serves.
    pub fn ready(&self) {
        self.set(None);
    }

    /// It does not serve, and why.
    pub fn not_ready(&self, reason: impl Into<String>) {
        self.set(Some(reason.into()));
    }

    fn set(&self, reason: Option<String>) {
        self.readiness.components.lock().insert(self.name.clone(), reason);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_when_every_component_is() {
        let readiness = Readiness::default();
        let (a, b) = (readiness.component("wal"), readiness.component("control"));
        a.ready();
        assert_eq!(readiness.reasons(), ["control: starting"]);
        b.ready();
        assert!(readiness.is_ready());
        a.not_ready("replaying 3 of 9 segments");
        assert_eq!(readiness.reasons(), ["wal: replaying 3 of 9 segments"]);
        a.ready();
        readiness.stop();
        assert_eq!(readiness.reasons(), ["process: stopping"]);
    }
}
