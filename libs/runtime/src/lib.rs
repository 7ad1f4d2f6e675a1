//! Time, randomness, disk, network, CPU and tasks: the only crate that touches the real ones (I15).
//!
//! **Data flow.** The binary builds one [`Runtime`] and hands it down; every component takes what it needs from it.
//! Simulation builds the same struct from simulated parts, so that the code above cannot tell the difference.
//!
//! **Invariants.** Nothing outside this crate calls `SystemTime::now`, `tokio::spawn`, `std::fs` or opens a socket;
//! clippy's bans enforce it. All waits go through [`Clock`]; all files through [`Disk`], submitted by [`DiskHandle`];
//! all heavy computation through [`Cpu`]; all tasks through [`TaskGroup`]; all sockets through [`Net`].
//!
//! **Deliberately absent.** Any knowledge of metrics; configuration; retries.
//!
//! **Failure behaviour.** A panicking task cancels its group with [`TaskError::Panicked`]; disk errors carry the path
//! and what was being done; nothing is retried here.

mod clock;
mod cpu;
mod disk;
mod memory;
mod needs;
mod net;
mod pace;
mod process;
mod rng;
mod sources;
mod tasks;
pub mod watch;

use std::sync::Arc;

pub use clock::{Clock, ClockHandle, Elapsed, RealClock, TokioClock};
pub use cpu::{Cpu, CpuPanicked};
pub use disk::{Disk, DiskError, DiskFile, DiskHandle, DiskSpace, OpenMode, RealDisk};
pub use memory::{Memory, MemoryShort, MemoryWatch};
pub use needs::DiskNeeds;
pub use net::{BoxedIo, Io, Listener, Net, NetHandle, RealNet};
pub use pace::{Pace, PaceHandle};
pub use process::ProcessStats;
pub use rng::{Rng, RngHandle};
pub use sources::with_sources;
pub use tasks::{TaskError, TaskGroup};
pub use tokio_util::sync::CancellationToken;

/// Everything a process gets from its surroundings. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Runtime {
    /// Wall and monotonic time, sleeping.
    pub clock: ClockHandle,
    /// Randomness.
    pub rng: RngHandle,
    /// Files, off the async threads.
    pub disk: DiskHandle,
    /// Heavy computation, off the async threads.
    pub cpu: Cpu,
    /// Sockets.
    pub net: NetHandle,
    /// Whether memory is short.
    pub memory: MemoryWatch,
}

impl Runtime {
    /// The real machine: system clock, OS entropy, real files, TCP. Memory is not watched yet.
    ///
    /// # Errors
    /// When threads cannot be started.
    pub fn real() -> std::io::Result<Self> {
        let cpus = std::thread::available_parallelism().map_or(2, usize::from);
        process::bound_arenas(cpus);
        Ok(Self {
            clock: Arc::new(RealClock::new()),
            rng: RngHandle::from_entropy(),
            disk: DiskHandle::threaded(Arc::new(RealDisk), 4)?,
            cpu: Cpu::threaded(cpus)?,
            net: Arc::new(RealNet),
            memory: MemoryWatch::default(),
        })
    }
}
