//! The leader's part: hears reports, elects, answers.

use std::sync::Arc;
use std::time::Duration;

use koios_model::TenantId;
use koios_runtime::{ClockHandle, TaskGroup};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::memory::{Memory, PairKey};
use super::{
    ELECTIONS_MAX, PAIRS_PER_REPORT_MAX, PairReport, Report, Ruling, TASK_PREFIX, election_task, names_a_pair,
};
use crate::{ClusterState, Command, Consensus, StateHandle};

/// How often it looks whether this process still leads.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How often idle pairs are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// Most elections that one report brings about; the next report brings about more.
const ELECTIONS_PER_REPORT_MAX: usize = 50;
/// Most elections that one sweep ends.
const ENDED_PER_SWEEP_MAX: usize = 50;
/// Longest all elections of one report are waited for, so that the answer comes before the reporter gives up.
const ELECTING_DEADLINE: Duration = Duration::from_millis(700);

/// Decides who is elected while this process leads.
#[derive(Debug)]
pub struct Referee {
    consensus: Arc<dyn Consensus>,
    state: StateHandle,
    clock: ClockHandle,
    /// None while this process does not lead.
    memory: Mutex<Option<Memory>>,
    started: Notify,
}

/// Another process leads.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NotLeading {
    /// Its address, if known.
    pub(crate) leader: Option<String>,
}

impl Referee {
    pub(crate) fn new(consensus: Arc<dyn Consensus>, state: StateHandle, clock: ClockHandle) -> Arc<Self> {
        Arc::new(Self {
            consensus,
            state,
            clock,
            memory: Mutex::default(),
            started: Notify::new(),
        })
    }

    /// Looks after the memory until the group ends. Nothing runs before the first report.
    pub(crate) fn spawn(self: &Arc<Self>, tasks: &TaskGroup) {
        let this = Arc::clone(self);
        tasks.spawn_cancelled("control-pairs", async move { this.look_for_ever().await });
    }

    /// Takes a report and says of each of its pairs, in their order, who is elected.
    ///
    /// # Errors
    /// [`NotLeading`] when another process is to be told.
    pub(crate) async fn hear(&self, report: &Report) -> Result<Vec<Ruling>, NotLeading> {
        let pairs = report.pairs.get(..PAIRS_PER_REPORT_MAX).unwrap_or(&report.pairs);
        let state = self.state.current();
        let (commands, mut refused) = self.take_down(report, pairs, &state)?;
        let electing = async {
            for command in commands {
                // Another report may have brought about the same; what holds then is in the state.
                match self.consensus.propose(command.clone()).await {
                    Ok(outcome) if outcome.changed => tracing::info!(%command, "elected an HA replica"),
                    Ok(_) => {}
                    Err(error) => tracing::debug!(%command, %error, "no election"),
                }
            }
        };
        if let Err(elapsed) = self.clock.timeout(ELECTING_DEADLINE, electing).await {
            tracing::warn!(%elapsed, "elections of HA replicas");
        }
        let state = self.state.current();
        let now = self.clock.elapsed();
        let memory = self.memory.lock();
        let rulings = pairs.iter().enumerate().map(|(at, pair)| {
            let mut ruling = ruling(pair, &state, memory.as_ref(), now);
            ruling.refused = refused.get_mut(at).and_then(Option::take);
            ruling
        });
        Ok(rulings.collect())
    }

    /// Notes all sightings; gives what to propose, and for each pair why nothing can be.
    fn take_down(
        &self,
        report: &Report,
        pairs: &[PairReport],
        state: &ClusterState,
    ) -> Result<(Vec<Command>, Vec<Option<String>>), NotLeading> {
        let now = self.clock.elapsed();
        let mut memory = self.memory.lock();
        if !self.consensus.leads_surely() {
            *memory = None;
            return Err(NotLeading {
                leader: self.consensus.leader_addr(),
            });
        }
        if memory.is_none() {
            self.started.notify_one();
        }
        let memory = memory.get_or_insert_with(|| Memory::new(now));
        memory.look(now);
        // A full report has a continuation: only with the last one it has told everything.
        if report.pairs.len() < PAIRS_PER_REPORT_MAX {
            memory.hear_of(&report.reporter, now);
        }
        let mut commands = Vec::new();
        let mut refused = Vec::with_capacity(pairs.len());
        for pair in pairs {
            let decided = decide(memory, pair, state, now);
            refused.push(decided.as_ref().err().cloned());
            // One of a tenant at a time: the next is held against the limit when this one is in the state.
            let tenants_own = election_task(&pair.tenant, "");
            let first = |c: &Command| matches!(c, Command::Assign { task, epoch: 0, .. } if task.starts_with(&tenants_own));
            let room = commands.len() < ELECTIONS_PER_REPORT_MAX && !commands.iter().any(first);
            commands.extend(decided.ok().flatten().filter(|_| room));
        }
        Ok((commands, refused))
    }

    async fn look_for_ever(&self) {
        self.started.notified().await;
        let mut swept_at = self.clock.elapsed();
        loop {
            self.clock.sleep(LOOK_EVERY).await;
            let now = self.clock.elapsed();
            self.look(now);
            if now.saturating_sub(swept_at) >= SWEEP_EVERY {
                swept_at = now;
                self.end_idle(now).await;
            }
        }
    }

    fn look(&self, now: Duration) {
        let mut memory = self.memory.lock();
        if !self.consensus.leads_surely() {
            *memory = None;
        } else if let Some(memory) = memory.as_mut() {
            memory.look(now);
        }
    }

    /// Ends the elections of pairs that nobody has sent for in a long time, so that the state does not fill up.
    async fn end_idle(&self, now: Duration) {
        let state = self.state.current();
        for command in self.idle(&state, now) {
            match self.consensus.propose(command.clone()).await {
                Ok(_) => tracing::info!(%command, "nobody sends for this HA pair any more"),
                Err(error) => tracing::debug!(%command, %error, "idle HA pair"),
            }
        }
    }

    fn idle(&self, state: &ClusterState, now: Duration) -> Vec<Command> {
        let mut memory = self.memory.lock();
        let Some(memory) = memory.as_mut() else {
            return Vec::new();
        };
        memory.sweep(now);
        if !memory.knows_who_is_idle(now) || !self.all_voters_are_new_enough(state) {
            return Vec::new();
        }
        let idle = state.elections().filter(|(task, _)| {
            let key = key_of(task);
            key.is_none_or(|key| !memory.knows(&key))
        });
        let ended = idle.map(|(task, assignment)| Command::Unassign {
            task: task.clone(),
            epoch: assignment.epoch,
        });
        ended.take(ENDED_PER_SWEEP_MAX).collect()
    }

    /// Whether all voters run this version: an older one may not know `Command::Unassign`, and would take no entries of the
    /// log from there on.
    fn all_voters_are_new_enough(&self, state: &ClusterState) -> bool {
        let version = |name: &String| state.members.get(name).map(|member| member.version.as_str());
        let voters = self.consensus.voters();
        voters
            .iter()
            .all(|voter| version(&voter.name) == Some(env!("CARGO_PKG_VERSION")))
    }
}

/// The pair of an election's task.
fn key_of(task: &str) -> Option<PairKey> {
    let (tenant, cluster) = task.strip_prefix(TASK_PREFIX)?.split_once('/')?;
    Some((TenantId::new(tenant).ok()?, cluster.to_owned()))
}

/// Notes what is said of one pair; gives what to propose, or why nobody can be elected.
fn decide(
    memory: &mut Memory,
    pair: &PairReport,
    state: &ClusterState,
    now: Duration,
) -> Result<Option<Command>, String> {
    if !names_a_pair(&pair.cluster) {
        return Err("the cluster label cannot name a pair".to_owned());
    }
    let task = election_task(&pair.tenant, &pair.cluster);
    let current = state.assignments.get(&task);
    if !memory.hear(pair, (state.version, current), now) {
        return Err("too many HA pairs in the cluster".to_owned());
    }
    let key = (pair.tenant.clone(), pair.cluster.clone());
    let Some(holder) = memory.choice(&key, now) else {
        return Ok(None);
    };
    if current.is_none() {
        check_room(pair, state)?;
    }
    Ok(Some(Command::Assign {
        task,
        holder: holder.to_owned(),
        epoch: current.map_or(0, |a| a.epoch),
    }))
}

fn check_room(pair: &PairReport, state: &ClusterState) -> Result<(), String> {
    let known = state.elections_of(&pair.tenant).count() as u64;
    if known >= pair.pairs_max {
        return Err(format!(
            "the tenant has {known} HA pairs, limit {}",
            pair.pairs_max
        ));
    }
    if state.elections().count() >= ELECTIONS_MAX {
        return Err(format!(
            "the cluster has {ELECTIONS_MAX} HA pairs, which is the limit"
        ));
    }
    Ok(())
}

fn ruling(pair: &PairReport, state: &ClusterState, memory: Option<&Memory>, now: Duration) -> Ruling {
    let Some(elected) = state.assignments.get(&election_task(&pair.tenant, &pair.cluster)) else {
        return Ruling::default();
    };
    let key = (pair.tenant.clone(), pair.cluster.clone());
    Ruling {
        elected: Some(elected.holder.clone()),
        epoch: elected.epoch,
        sighting: memory.and_then(|m| m.sighting(&key, &elected.holder, now)),
        refused: None,
    }
}

#[cfg(test)]
#[path = "referee_test.rs"]
mod tests;
