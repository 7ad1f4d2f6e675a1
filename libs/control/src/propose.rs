//! Asking one process after the other to decide on a command, along the hints they give.

use std::collections::VecDeque;
use std::time::Duration;

use parking_lot::Mutex;

use crate::peer::Peers;
use crate::{Command, Error, Outcome, Rejection};

/// Longest one process is waited for.
pub(crate) const ATTEMPT_DEADLINE: Duration = Duration::from_secs(5);
/// Rests between rounds; they double.
pub(crate) const PAUSE_MIN: Duration = Duration::from_millis(100);
pub(crate) const PAUSE_MAX: Duration = Duration::from_secs(2);
/// How many leader hints are followed in a round.
pub(crate) const HINTS_MAX: usize = 3;

/// What one attempt came to.
pub(crate) enum Attempt {
    Done(Decision),
    AskLeader(String),
    Failed(String),
}

/// A command that was decided on.
pub(crate) struct Decision {
    pub(crate) outcome: Outcome,
    /// Who was asked, when it was another process.
    pub(crate) by: Option<String>,
}

/// A command on its way to whoever decides.
pub(crate) struct Proposal<'a> {
    pub(crate) peers: &'a Peers,
    pub(crate) command: &'a Command,
    /// The last answer that did not help, for the error.
    last: Mutex<String>,
}

impl<'a> Proposal<'a> {
    pub(crate) fn new(peers: &'a Peers, command: &'a Command) -> Self {
        Self {
            peers,
            command,
            last: Mutex::new("nobody was asked".to_owned()),
        }
    }

    /// Runs `deciding` for no longer than `deadline`.
    pub(crate) async fn within(
        &self,
        deadline: Duration,
        deciding: impl Future<Output = Result<Outcome, Error>>,
    ) -> Result<Outcome, Error> {
        let decided = self.peers.clock().timeout(deadline, deciding).await;
        decided.unwrap_or_else(|_| {
            Err(Error::NoLeader {
                waited: deadline,
                last: self.last.lock().clone(),
            })
        })
    }

    /// After an attempt, asks every candidate once, and the leaders that are named between; `None` when nobody decided.
    pub(crate) async fn round(
        &self,
        mut attempt: Attempt,
        mut candidates: VecDeque<String>,
    ) -> Result<Option<Decision>, Error> {
        let mut hints_left = HINTS_MAX;
        loop {
            match attempt {
                Attempt::Done(decision) => return Ok(Some(decision)),
                Attempt::AskLeader(leader) if hints_left > 0 => {
                    hints_left -= 1;
                    candidates.push_front(leader);
                }
                Attempt::AskLeader(leader) => *self.last.lock() = format!("leader hints go on to {leader}"),
                Attempt::Failed(why) => *self.last.lock() = why,
            }
            let Some(addr) = candidates.pop_front() else {
                return Ok(None);
            };
            attempt = self.ask(&addr).await?;
        }
    }

    /// Asks one process.
    pub(crate) async fn ask(&self, addr: &str) -> Result<Attempt, Error> {
        let asked = self.peers.to(addr).propose(self.command, ATTEMPT_DEADLINE).await;
        let reply = match asked {
            Ok(reply) => reply,
            Err(error) => return Ok(Attempt::Failed(error.to_string())),
        };
        if !reply.leader.is_empty() {
            return Ok(Attempt::AskLeader(reply.leader));
        }
        match serde_json::from_slice::<Result<Outcome, Rejection>>(&reply.result) {
            Ok(Ok(outcome)) => {
                let by = Some(addr.to_owned());
                Ok(Attempt::Done(Decision { outcome, by }))
            }
            Ok(Err(rejection)) => refused(rejection),
            Err(error) => Ok(Attempt::Failed(format!("{addr} answered {error}"))),
        }
    }
}

/// A refusal is final, but for that of a cluster whose leader is just about to create it.
pub(crate) fn refused(rejection: Rejection) -> Result<Attempt, Error> {
    match rejection {
        Rejection::NotCreated => Ok(Attempt::Failed(rejection.to_string())),
        other => Err(other.into()),
    }
}
