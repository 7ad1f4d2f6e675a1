//! Applying commands: pure, deterministic, total.

use crate::{ClusterState, Command, Outcome, Rejection};

impl ClusterState {
    /// Applies a command. A refused command changes nothing.
    ///
    /// # Errors
    /// [`Rejection`], the same on every voter.
    pub fn apply(&mut self, command: &Command) -> Result<Outcome, Rejection> {
        let _ = command;
        Err(Rejection::NotCreated)
    }
}
