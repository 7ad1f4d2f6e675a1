//! Proposing from anywhere: follows leader hints until the deadline.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use koios_runtime::{RngHandle, TaskGroup};
use parking_lot::Mutex;

use crate::consensus::{Consensus, ProposeError};
use crate::pairs::{NotLeading, Referee};
use crate::peer::Peers;
use crate::propose::{
    ATTEMPT_DEADLINE, Attempt, Decision, HINTS_MAX, PAUSE_MAX, PAUSE_MIN, Proposal, refused,
};
use crate::sync::{StateSync, jittered};
use crate::{Command, Error, Member, Outcome, PairReport, Report, Ruling, StateKeeper};

/// How long a registration is tried before it is reported and tried again.
const REGISTER_DEADLINE: Duration = Duration::from_secs(30);
/// Longest one process is waited for with a report of HA pairs: several are asked within a report's deadline.
const REPORT_ATTEMPT_DEADLINE: Duration = Duration::from_secs(1);

/// Proposes commands. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ControlClient {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    keeper: StateKeeper,
    sync: StateSync,
    consensus: Option<Arc<dyn Consensus>>,
    voters: Vec<String>,
    peers: Peers,
    rng: RngHandle,
    hint: Mutex<Option<String>>,
    /// At which of the voters the next report begins.
    report_start: Mutex<usize>,
    referee: Option<Arc<Referee>>,
}

impl ControlClient {
    pub(crate) fn new(
        keeper: StateKeeper,
        sync: StateSync,
        (consensus, referee): (Option<Arc<dyn Consensus>>, Option<Arc<Referee>>),
        voters: Vec<String>,
        peers: Peers,
        rng: RngHandle,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                keeper,
                sync,
                consensus,
                voters,
                peers,
                rng,
                hint: Mutex::default(),
                report_start: Mutex::default(),
                referee,
            }),
        }
    }

    /// Proposes a command to the leader, whoever that is. When it returns, this process's state usually holds the effect;
    /// [`crate::StateHandle::at_least`] makes sure.
    ///
    /// # Errors
    /// [`Error::Rejected`], which is final, or [`Error::NoLeader`] after `deadline`.
    pub async fn propose(&self, command: Command, deadline: Duration) -> Result<Outcome, Error> {
        let proposal = Proposal::new(&self.shared.peers, &command);
        let deciding = Box::pin(self.propose_until_done(&proposal));
        proposal.within(deadline, deciding).await
    }

    async fn propose_until_done(&self, proposal: &Proposal<'_>) -> Result<Outcome, Error> {
        let mut pause = PAUSE_MIN;
        loop {
            if let Some(decision) = self.propose_round(proposal).await? {
                self.learn_from(&decision).await;
                return Ok(decision.outcome);
            }
            let clock = self.shared.peers.clock();
            clock.sleep(jittered(&self.shared.rng, pause)).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Asks this process's own voter, the last known leader, then every voter once, following hints between.
    async fn propose_round(&self, proposal: &Proposal<'_>) -> Result<Option<Decision>, Error> {
        let hint = self.shared.hint.lock().take();
        let voters = self.shared.voters.iter().cloned();
        let candidates: VecDeque<String> = hint.into_iter().chain(voters).collect();
        let first = self.propose_here(proposal.command).await?;
        proposal.round(first, candidates).await
    }

    async fn propose_here(&self, command: &Command) -> Result<Attempt, Error> {
        let Some(voter) = &self.shared.consensus else {
            return Ok(Attempt::Failed("this process is no voter".to_owned()));
        };
        let clock = self.shared.peers.clock();
        match clock
            .timeout(ATTEMPT_DEADLINE, voter.propose(command.clone()))
            .await
        {
            Ok(Ok(outcome)) => Ok(Attempt::Done(Decision { outcome, by: None })),
            Ok(Err(ProposeError::Rejected(rejection))) => refused(rejection),
            Ok(Err(ProposeError::NotLeader { leader: Some(leader) })) => Ok(Attempt::AskLeader(leader)),
            Ok(Err(error)) => Ok(Attempt::Failed(error.to_string())),
            Err(elapsed) => Ok(Attempt::Failed(elapsed.to_string())),
        }
    }

    /// Whoever decided is asked first next time, and has the state that this process may not have yet.
    async fn learn_from(&self, decision: &Decision) {
        let Some(leader) = &decision.by else { return };
        *self.shared.hint.lock() = Some(leader.clone());
        if self.shared.keeper.handle().current().version < decision.outcome.version {
            self.shared.sync.ask(leader).await;
        }
    }

    /// Tells the leader which replicas of HA pairs this process saw; gives a ruling for each pair, in their order. Asks
    /// everyone who may lead once, as far as there is time.
    ///
    /// # Errors
    /// [`Error::NoLeader`] when none of them does, or `deadline` passes first.
    pub async fn report_pairs(
        &self,
        pairs: Vec<PairReport>,
        deadline: Duration,
    ) -> Result<Vec<Ruling>, Error> {
        let report = Report {
            reporter: self.shared.keeper.identity().node(),
            pairs,
        };
        let clock = self.shared.peers.clock();
        let until = clock.elapsed().saturating_add(deadline);
        let failed = |last| Error::NoLeader {
            waited: deadline,
            last,
        };
        match clock.timeout(deadline, self.report_round(&report, until)).await {
            Ok(answer) => answer.map_err(failed),
            Err(elapsed) => Err(failed(elapsed.to_string())),
        }
    }

    /// The rulings, or the last answer that did not help. Who does not answer is given up before the round ends, and the
    /// next round begins behind it, so that one silent voter silences nobody.
    async fn report_round(&self, report: &Report, until: Duration) -> Result<Vec<Ruling>, String> {
        let mut last = "nobody was asked".to_owned();
        let mut candidates: VecDeque<String> = self.shared.hint.lock().take().into_iter().collect();
        candidates.extend(self.voters_in_turn());
        if let Some(referee) = &self.shared.referee {
            match referee.hear(report).await {
                Ok(rulings) => return Ok(rulings),
                Err(NotLeading { leader }) => leader.into_iter().for_each(|l| candidates.push_front(l)),
            }
        }
        let clock = self.shared.peers.clock();
        let mut failed = BTreeSet::new();
        let mut hints_left = HINTS_MAX;
        while let Some(addr) = candidates.pop_front() {
            let left = until.saturating_sub(clock.elapsed());
            if failed.contains(&addr) || left.is_zero() {
                continue;
            }
            let limit = REPORT_ATTEMPT_DEADLINE.min(left);
            match self.shared.peers.to(&addr).pairs(report, limit).await {
                Ok(Ok(rulings)) => {
                    *self.shared.hint.lock() = Some(addr);
                    return Ok(rulings);
                }
                Ok(Err(leader)) if hints_left > 0 => {
                    hints_left -= 1;
                    candidates.push_front(leader);
                }
                Ok(Err(leader)) => last = format!("leader hints go on to {leader}"),
                Err(error) => {
                    last = error.to_string();
                    self.start_after(&addr);
                    failed.insert(addr);
                }
            }
        }
        Err(last)
    }

    /// All voters, beginning with the one whose turn it is.
    fn voters_in_turn(&self) -> impl Iterator<Item = String> {
        let voters = &self.shared.voters;
        let start = *self.shared.report_start.lock();
        let turned = voters.iter().cycle().skip(start).take(voters.len());
        turned.cloned().collect::<Vec<_>>().into_iter()
    }

    /// Makes the next round of reports begin behind a voter that failed.
    fn start_after(&self, addr: &str) {
        let voters = &self.shared.voters;
        if let Some(at) = voters.iter().position(|voter| voter == addr) {
            *self.shared.report_start.lock() = (at + 1) % voters.len();
        }
    }

    /// Registers this process as the newest known state has it, or makes it so. A process that is registered as it is
    /// starts without a voter (I8).
    ///
    /// # Errors
    /// As [`Self::propose`].
    pub async fn register(&self, member: &Member, deadline: Duration) -> Result<(), Error> {
        if self.is_registered(member) {
            return Ok(());
        }
        let command = Command::Register {
            member: member.clone(),
            cluster_id: self.shared.keeper.identity().cluster_id(),
        };
        let outcome = self.propose(command, deadline).await?;
        let handle = self.shared.keeper.handle();
        let clock = self.shared.peers.clock();
        handle.at_least(outcome.version, clock.as_ref(), deadline).await?;
        Ok(())
    }

    /// Keeps a process registered until the group ends: at the start, and again when the state was restored from a copy
    /// that does not know it. A refusal is final and fails the group.
    pub fn keep_registered(&self, tasks: &TaskGroup, member: Member) {
        let (this, group) = (self.clone(), tasks.clone());
        tasks.spawn_cancelled("control-register", async move {
            let mut handle = this.shared.keeper.handle().clone();
            loop {
                match this.register(&member, REGISTER_DEADLINE).await {
                    Ok(()) => {
                        handle.changed().await;
                        // Two processes of one name that push each other out must not do so at full speed.
                        let pause = jittered(&this.shared.rng, PAUSE_MAX);
                        this.shared.peers.clock().sleep(pause).await;
                    }
                    Err(Error::Rejected(rejection)) => {
                        group.fail(koios_runtime::TaskError::Failed {
                            task: "control-register",
                            message: rejection.to_string(),
                        });
                        return;
                    }
                    Err(error) => tracing::warn!(%error, member = %member.name, "not registered yet"),
                }
            }
        });
    }

    fn is_registered(&self, member: &Member) -> bool {
        let state = self.shared.keeper.handle().current();
        state.members.get(&member.name) == Some(member)
    }
}
