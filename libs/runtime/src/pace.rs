//! When submitted work runs, where it runs on the thread that submits it.

use std::fmt::Debug;
use std::sync::Arc;

use futures::future::BoxFuture;

/// Decides how long submitted work waits and how late its end is told, in simulation: so that what runs on threads
/// otherwise meets other work in many orders, all from one seed.
pub trait Pace: Send + Sync + Debug + 'static {
    /// Waits, or not. Called before each piece of work and after it.
    fn pause(&self) -> BoxFuture<'static, ()>;
}

/// A shared pace.
pub type PaceHandle = Arc<dyn Pace>;
