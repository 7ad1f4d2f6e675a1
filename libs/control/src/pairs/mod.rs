//! HA pairs: several senders of the same series, of which one is listened to.
//!
//! **Data flow.** Distributors see which replicas of a pair send, and say so to the control leader in [`PairReport`]s; its
//! [`Referee`] remembers what all of them saw, elects by `Command::Assign` of the pair's [`election_task`], and answers with
//! [`Ruling`]s, which tell a distributor what the others saw.
//!
//! **Invariants.** Only who is elected is in the control state; who was seen when is in the leader's memory, and a new
//! leader waits a whole failover timeout, and a minute at least, before it elects anyone else. Another replica is elected only when every
//! distributor heard from has said, a failover timeout after the elected one was last seen, that it has not seen it.
//!
//! `docs/decisions/0009-ha-pairs.md` has the reasons.

mod memory;
mod referee;
mod span;

use koios_model::TenantId;
use serde::{Deserialize, Serialize};

pub(crate) use referee::NotLeading;
pub use referee::Referee;
pub use span::Span;

use crate::{Assignment, ClusterState};

/// Longest label value that can name a pair or a replica, bytes.
pub const PAIR_LABEL_BYTES_MAX: usize = 253;
/// Most pairs in one report.
pub const PAIRS_PER_REPORT_MAX: usize = 1_000;
/// How long nobody sends for a pair before it is forgotten, its election included.
pub const PAIR_IDLE: std::time::Duration = std::time::Duration::from_secs(30 * 60);
/// Most elections, so that assignments of other tasks always find room in the state.
pub(crate) const ELECTIONS_MAX: usize = 20_000;
/// Most replicas of a pair that are remembered.
pub const REPLICAS_MAX: usize = 16;
/// What the tasks of elections begin with.
const TASK_PREFIX: &str = "ha/";

/// The task whose holder is the elected replica of the pair that `cluster` names.
pub fn election_task(tenant: &TenantId, cluster: &str) -> String {
    format!("{TASK_PREFIX}{tenant}/{cluster}")
}

/// Whether a label value can name a pair or a replica: what the control state can hold.
pub fn names_a_pair(value: &str) -> bool {
    !value.is_empty() && value.len() <= PAIR_LABEL_BYTES_MAX && !value.chars().any(char::is_control)
}

impl ClusterState {
    /// All elections with their tasks.
    pub(crate) fn elections(&self) -> impl Iterator<Item = (&String, &Assignment)> {
        self.tasks_from(TASK_PREFIX.to_owned())
    }

    /// The elections of one tenant.
    pub(crate) fn elections_of(&self, tenant: &TenantId) -> impl Iterator<Item = (&String, &Assignment)> {
        self.tasks_from(election_task(tenant, ""))
    }

    fn tasks_from(&self, prefix: String) -> impl Iterator<Item = (&String, &Assignment)> {
        let from = self.assignments.range(prefix.clone()..);
        from.take_while(move |(task, _)| task.starts_with(&prefix))
    }
}

/// What one distributor saw of a pair.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PairReport {
    /// Whose.
    pub tenant: TenantId,
    /// Which of the tenant's pairs.
    pub cluster: String,
    /// How long the elected replica may be away, milliseconds: the tenant's limit.
    pub failover_ms: u64,
    /// How many pairs the tenant may have: its limit.
    pub pairs_max: u64,
    /// The epoch of the election that the spans belong to; 0 for none.
    #[serde(default)]
    pub epoch: u64,
    /// The replicas it saw lately; at most [`REPLICAS_MAX`] count.
    pub replicas: Vec<Sighting>,
}

/// When a replica was last seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sighting {
    /// Its label value.
    pub replica: String,
    /// The newest sample time that it has brought, milliseconds since the Unix epoch.
    pub newest_ms: i64,
    /// How long ago it sent anything, milliseconds.
    pub age_ms: u64,
    /// What it has brought as the elected one; none when it is not or has only just been elected.
    #[serde(default)]
    pub span: Option<Span>,
    /// Up to which time the elected one sent samples that were not taken and will not come again, milliseconds since the
    /// Unix epoch: nothing so old counts as brought.
    #[serde(default)]
    pub lost_ms: Option<i64>,
}

/// A report of one distributor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The process that saw it.
    pub reporter: String,
    /// At most [`PAIRS_PER_REPORT_MAX`]. Who has more to tell sends several reports, the last of which is not full.
    pub pairs: Vec<PairReport>,
}

/// What the leader says of a pair.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ruling {
    /// Who is elected.
    pub elected: Option<String>,
    /// The election's epoch.
    pub epoch: u64,
    /// When anyone saw the elected one last.
    #[serde(default)]
    pub sighting: Option<Sighting>,
    /// Why nobody can be elected.
    #[serde(default)]
    pub refused: Option<String>,
}
