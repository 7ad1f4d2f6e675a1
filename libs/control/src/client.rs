//! Proposing from anywhere: follows leader hints until the deadline.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use koios_runtime::{RngHandle, TaskGroup};
use parking_lot::Mutex;

use crate::consensus::{Consensus, ProposeError};
use crate::peer::Peers;
use crate::sync::{StateSync, jittered};
use crate::{Command, Error, Member, Outcome, Rejection, StateKeeper};

/// Longest one voter is waited for.
const ATTEMPT_DEADLINE: Duration = Duration::from_secs(5);
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// How many leader hints are followed without a pause.
const HINTS_MAX: usize = 3;
/// How long a registration is tried before it is reported and tried again.
const REGISTER_DEADLINE: Duration = Duration::from_secs(30);

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
}

/// What one attempt came to.
enum Attempt {
    Done(Outcome),
    AskLeader(String),
    Failed(String),
}

impl ControlClient {
    pub(crate) fn new(
        keeper: StateKeeper,
        sync: StateSync,
        consensus: Option<Arc<dyn Consensus>>,
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
            }),
        }
    }

    /// Proposes a command to the leader, whoever that is. When it returns, this process's state usually holds the effect;
    /// [`crate::StateHandle::at_least`] makes sure.
    ///
    /// # Errors
    /// [`Error::Rejected`], which is final, or [`Error::NoLeader`] after `deadline`.
    pub async fn propose(&self, command: Command, deadline: Duration) -> Result<Outcome, Error> {
        let clock = Arc::clone(self.shared.peers.clock());
        let last = Mutex::new("nobody was asked".to_owned());
        let proposed = clock
            .timeout(deadline, self.propose_until_done(&command, &last))
            .await;
        proposed.unwrap_or_else(|_| {
            Err(Error::NoLeader {
                waited: deadline,
                last: last.into_inner(),
            })
        })
    }

    async fn propose_until_done(&self, command: &Command, last: &Mutex<String>) -> Result<Outcome, Error> {
        let mut pause = PAUSE_MIN;
        loop {
            if let Some(outcome) = self.propose_round(command, last).await? {
                return Ok(outcome);
            }
            let clock = self.shared.peers.clock();
            clock.sleep(jittered(&self.shared.rng, pause)).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Asks this process's own voter, the last known leader, then every voter once, following hints between.
    async fn propose_round(&self, command: &Command, last: &Mutex<String>) -> Result<Option<Outcome>, Error> {
        let mut candidates: VecDeque<String> = self.shared.voters.iter().cloned().collect();
        let hint = self.shared.hint.lock().take();
        candidates.extend(hint.iter().cloned());
        candidates.rotate_right(hint.iter().len());
        let mut hints_left = HINTS_MAX;
        let mut attempt = self.propose_here(command).await?;
        loop {
            match attempt {
                Attempt::Done(outcome) => return Ok(Some(outcome)),
                Attempt::AskLeader(leader) if hints_left > 0 => {
                    hints_left -= 1;
                    candidates.push_front(leader);
                }
                Attempt::AskLeader(leader) => *last.lock() = format!("leader hints go on to {leader}"),
                Attempt::Failed(why) => *last.lock() = why,
            }
            let Some(addr) = candidates.pop_front() else {
                return Ok(None);
            };
            attempt = self.propose_at(&addr, command).await?;
        }
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
            Ok(Ok(outcome)) => Ok(Attempt::Done(outcome)),
            Ok(Err(ProposeError::Rejected(rejection))) => refused(rejection),
            Ok(Err(ProposeError::NotLeader { leader: Some(leader) })) => Ok(Attempt::AskLeader(leader)),
            Ok(Err(error)) => Ok(Attempt::Failed(error.to_string())),
            Err(elapsed) => Ok(Attempt::Failed(elapsed.to_string())),
        }
    }

    async fn propose_at(&self, addr: &str, command: &Command) -> Result<Attempt, Error> {
        let reply = match self
            .shared
            .peers
            .to(addr)
            .propose(command, ATTEMPT_DEADLINE)
            .await
        {
            Ok(reply) => reply,
            Err(error) => return Ok(Attempt::Failed(error.to_string())),
        };
        if !reply.leader.is_empty() {
            return Ok(Attempt::AskLeader(reply.leader));
        }
        *self.shared.hint.lock() = Some(addr.to_owned());
        match serde_json::from_slice::<Result<Outcome, Rejection>>(&reply.result) {
            Ok(Ok(outcome)) => {
                if self.shared.keeper.handle().current().version < outcome.version {
                    self.shared.sync.ask(addr).await;
                }
                Ok(Attempt::Done(outcome))
            }
            Ok(Err(rejection)) => refused(rejection),
            Err(error) => Ok(Attempt::Failed(format!("{addr} answered {error}"))),
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

/// A refusal is final, but for that of a cluster whose leader is just about to create it.
fn refused(rejection: Rejection) -> Result<Attempt, Error> {
    match rejection {
        Rejection::NotCreated => Ok(Attempt::Failed(rejection.to_string())),
        other => Err(other.into()),
    }
}
