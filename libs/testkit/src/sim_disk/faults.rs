//! Which operations fail, and how.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};

use koios_runtime::RngHandle;

/// Something that happens to a disk operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The power fails before the operation, or after it and before its answer.
    PowerLoss,
    /// The process dies there, and the machine does not: what was not stable is still there for the next run.
    Kill,
    /// Reading fails.
    ReadError,
    /// A write fails, part of it done; or a change of names fails, undone.
    WriteError,
    /// A sync fails: anything of what it was to store may be stored, and the rest is lost.
    SyncError,
    /// There is no room: for reserving, for part of a write, for a name, or when a sync looks for it.
    Full,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::PowerLoss,
        Self::Kill,
        Self::ReadError,
        Self::WriteError,
        Self::SyncError,
        Self::Full,
    ];

    fn strikes(self, operation: Operation) -> bool {
        use Operation::{Change, Look, Read, Remove, Sync, SyncDir, Write};
        match operation {
            _ if matches!(self, Self::PowerLoss | Self::Kill) => true,
            Read => self == Self::ReadError,
            Look => false,
            Write | Change => matches!(self, Self::WriteError | Self::Full),
            Remove => self == Self::WriteError,
            Sync | SyncDir => matches!(self, Self::SyncError | Self::Full),
        }
    }
}

/// Faults by the number of the operation from which on they wait for one that they can strike; each strikes once.
#[derive(Clone, Debug, Default)]
pub struct FaultPlan {
    at: BTreeMap<u64, Fault>,
}

impl FaultPlan {
    /// A fault at the `n`-th operation from when the plan is set on, counted from 1, or the first after it that it can
    /// strike.
    #[must_use]
    pub fn with(mut self, n: u64, fault: Fault) -> Self {
        self.at.insert(n, fault);
        self
    }

    /// As many of some kinds of fault as asked for, spread over so many operations.
    pub fn random(rng: &RngHandle, count: u64, kinds: &[Fault], operations: u64) -> Self {
        let mut plan = Self::default();
        for _ in 0..count {
            let n = 1 + rng.below(operations);
            let kind = usize::try_from(rng.below(kinds.len() as u64)).unwrap_or(0);
            if let Some(&fault) = kinds.get(kind) {
                plan.at.insert(n, fault);
            }
        }
        plan
    }
}

impl fmt::Display for FaultPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.at.is_empty() {
            return f.write_str("no disk faults");
        }
        for (i, (n, fault)) in self.at.iter().enumerate() {
            let comma = if i > 0 { ", " } else { "" };
            write!(f, "{comma}{fault:?} from operation {n} on")?;
        }
        Ok(())
    }
}

/// Kinds of operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Operation {
    Read,
    /// Asks and changes nothing.
    Look,
    Write,
    /// Creates or renames.
    Change,
    Remove,
    Sync,
    SyncDir,
}

/// What becomes of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Go,
    Fail(io::ErrorKind),
    PowerLoss { done: bool },
    Kill { done: bool },
}

/// The plan being carried out, and what was done.
#[derive(Debug, Default)]
pub(super) struct Faults {
    plan: FaultPlan,
    /// Operations since the plan was set, and all.
    since: u64,
    operations: u64,
    struck: Vec<String>,
    failed_syncs: Vec<PathBuf>,
    digest: DefaultHasher,
}

impl Faults {
    pub(super) fn replace(&mut self, plan: FaultPlan) {
        self.plan = plan;
        self.since = 0;
    }

    pub(super) fn take_struck(&mut self) -> Vec<String> {
        std::mem::take(&mut self.struck)
    }

    pub(super) fn operations(&self) -> u64 {
        self.operations
    }

    pub(super) fn digest(&self) -> u64 {
        self.digest.finish()
    }

    pub(super) fn failed_syncs(&self) -> Vec<PathBuf> {
        self.failed_syncs.clone()
    }

    /// What was written is part of the digest, too.
    pub(super) fn wrote(&mut self, offset: u64, bytes: &[u8]) {
        (offset, bytes).hash(&mut self.digest);
    }

    pub(super) fn sync_failed(&mut self, path: &Path) {
        self.failed_syncs.push(path.to_owned());
    }

    /// Counts an operation and says what becomes of it.
    pub(super) fn judge(&mut self, operation: Operation, path: &Path, rng: &RngHandle) -> Verdict {
        self.operations += 1;
        self.since += 1;
        (operation, path).hash(&mut self.digest);
        let due = self.plan.at.range(..=self.since);
        let Some((n, fault)) = due
            .map(|(&n, &fault)| (n, fault))
            .find(|(_, fault)| fault.strikes(operation))
        else {
            return Verdict::Go;
        };
        self.plan.at.remove(&n);
        self.struck.push(format!(
            "{fault:?} at operation {}: {operation:?} {}",
            self.since,
            path.display()
        ));
        match fault {
            Fault::PowerLoss => Verdict::PowerLoss {
                done: rng.below(2) == 0,
            },
            Fault::Kill => Verdict::Kill {
                done: rng.below(2) == 0,
            },
            Fault::Full => Verdict::Fail(io::ErrorKind::StorageFull),
            // EIO has no name in the standard library.
            Fault::ReadError | Fault::WriteError | Fault::SyncError => Verdict::Fail(io::ErrorKind::Other),
        }
    }
}
