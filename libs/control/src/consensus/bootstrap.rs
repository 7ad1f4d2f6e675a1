//! How a voter without a log comes into a cluster, and how a cluster comes into being.
//!
//! A voter with a log just goes on. One without asks every listed voter. If any of them has a log, it asks the leader to
//! be taken in under its new id. If all answer and none has one, the first by name initialises Raft with exactly those ids;
//! the leader then creates the cluster, or restores it from the newest state that any process or the backup still has.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use koios_runtime::RngHandle;

use super::Consensus as _;
use super::local::fresh_state;
use super::messages::{Hello, JoinReply, decode, encode, kind};
use super::raft::{RaftConsensus, RaftOptions};
use super::types::VoterNode;
use crate::peer::Peers;
use crate::sync::{load_backup, warn_of_takeover};
use crate::{ClusterState, Command, Error, StateBackup};

const HELLO_DEADLINE: Duration = Duration::from_secs(2);
const STATE_DEADLINE: Duration = Duration::from_secs(5);
const JOIN_DEADLINE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(500);

/// The task that does it.
pub(crate) struct Bootstrap {
    pub(crate) voter: Arc<RaftConsensus>,
    pub(crate) peers: Peers,
    pub(crate) options: RaftOptions,
    pub(crate) rng: RngHandle,
}

impl Bootstrap {
    /// Ends when this voter votes and the cluster exists.
    pub(crate) async fn run(self) {
        let mut reported = String::new();
        loop {
            match self.step().await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) if error.to_string() != reported => {
                    tracing::warn!(%error, "the control plane is not complete yet");
                    reported = error.to_string();
                }
                Err(_) => {}
            }
            self.peers.clock().sleep(PAUSE).await;
        }
    }

    /// One attempt; true when nothing is left to do.
    async fn step(&self) -> Result<bool, Error> {
        if !self.voter.hello().has_log {
            self.come_in().await?;
        } else if !self.voter.is_voting() {
            // Replicated to, but not voting yet: the leader's change of members may have been cut off.
            self.join().await?;
        } else if self.voter.replicated().current().cluster_id.is_some() {
            return Ok(true);
        } else if self.voter.is_leader() {
            self.create().await?;
        }
        Ok(false)
    }

    async fn come_in(&self) -> Result<(), Error> {
        let hellos = self.ask_all().await;
        if hellos.values().any(|hello| hello.has_log) {
            return self.join().await;
        }
        let missing: Vec<&str> = self
            .options
            .voters
            .keys()
            .filter(|name| !hellos.contains_key(*name))
            .map(String::as_str)
            .collect();
        if !missing.is_empty() {
            return Err(Error::NoLeader {
                waited: HELLO_DEADLINE,
                last: format!("listed voters that do not answer: {}", missing.join(", ")),
            });
        }
        let own = self.voter.own_join().name;
        if self.options.voters.keys().next() == Some(&own) {
            self.initialise(&hellos).await?;
        }
        Ok(())
    }

    /// The answers of the listed voters, by the name that was listed. One that answers with another name is left out.
    async fn ask_all(&self) -> BTreeMap<String, Hello> {
        let asked = self.options.voters.iter().map(|(name, addr)| async move {
            if *name == self.voter.own_join().name {
                return Some(self.voter.hello());
            }
            let peer = self.peers.to(addr);
            let reply = peer.raft(kind::HELLO, bytes::Bytes::new(), HELLO_DEADLINE).await;
            let hello: Hello = decode(addr, kind::HELLO, &reply.ok()?).ok()?;
            if hello.name != *name {
                tracing::warn!(%addr, listed = %name, answers = %hello.name, "a listed voter has another name");
                return None;
            }
            Some(hello)
        });
        let hellos = join_all(asked).await.into_iter().flatten();
        hellos.map(|hello| (hello.name.clone(), hello)).collect()
    }

    async fn initialise(&self, hellos: &BTreeMap<String, Hello>) -> Result<(), Error> {
        let members: BTreeMap<u64, VoterNode> = self
            .options
            .voters
            .iter()
            .filter_map(|(name, addr)| {
                let node = VoterNode {
                    name: name.clone(),
                    addr: addr.clone(),
                };
                Some((hellos.get(name)?.id, node))
            })
            .collect();
        tracing::info!(voters = members.len(), "initialising the control plane");
        let initialised = self.voter.raft().initialize(members).await;
        initialised.map_err(|e| Error::Storage(e.to_string()))
    }

    /// Asks whoever may lead to take this voter in.
    async fn join(&self) -> Result<(), Error> {
        let join = self.voter.own_join();
        let payload = encode(&join)?;
        let mut candidates: Vec<String> = self
            .options
            .voters
            .values()
            .filter(|addr| **addr != join.addr)
            .cloned()
            .collect();
        let mut last = "no other voter is listed".to_owned();
        let mut hint_followed = false;
        while let Some(addr) = candidates.pop() {
            let reply = self
                .peers
                .to(&addr)
                .raft(kind::JOIN, payload.clone(), JOIN_DEADLINE)
                .await;
            match reply.and_then(|reply| decode(&addr, kind::JOIN, &reply)) {
                Ok(JoinReply::Joined) => return Ok(()),
                Ok(JoinReply::AskLeader(Some(leader))) if !hint_followed && leader != join.addr => {
                    hint_followed = true;
                    candidates.push(leader);
                }
                Ok(JoinReply::AskLeader(_)) => last = format!("{addr} knows no leader"),
                Ok(JoinReply::Failed(why)) => last = format!("{addr}: {why}"),
                Err(error) => last = error.to_string(),
            }
        }
        Err(Error::NoLeader {
            waited: JOIN_DEADLINE,
            last,
        })
    }

    async fn create(&self) -> Result<(), Error> {
        let (known, backup) = self.newest_known().await?;
        let state = if known.cluster_id.is_some() {
            tracing::warn!(
                version = known.version,
                "restoring the control state, all voters' logs were lost"
            );
            ClusterState::clone(&known).restored()
        } else {
            fresh_state(self.options.settings.clone(), &self.rng)
        };
        let command = Command::Create {
            state: Box::new(state),
        };
        match self.voter.propose(command).await {
            Ok(_) => {
                if let Some(backup) = backup {
                    warn_of_takeover(backup, &known);
                }
                Ok(())
            }
            Err(error) => Err(Error::Stopped(error.to_string())),
        }
    }

    /// The newest state of this process, the listed voters, every member that those know of, and the backup, which is given beside
    /// it where the state is from there.
    ///
    /// # Errors
    /// When the backup is needed and cannot be read: creating another cluster then would lose this one.
    async fn newest_known(&self) -> Result<(Arc<ClusterState>, Option<&dyn StateBackup>), Error> {
        let known = self.newest_running().await;
        match &self.options.backup {
            Some(backup) if known.cluster_id.is_none() => {
                let backed_up = load_backup(backup.as_ref()).await?;
                Ok(match backed_up {
                    Some(state) => (Arc::new(state), Some(backup.as_ref())),
                    None => (known, None),
                })
            }
            _ => Ok((known, None)),
        }
    }

    async fn newest_running(&self) -> Arc<ClusterState> {
        let keeper = self.voter.keeper();
        let mut asked: Vec<String> = Vec::new();
        loop {
            let known = keeper.handle().current();
            let members = known.members.values().map(|member| &member.grpc_addr);
            let mut next: Vec<String> = self.options.voters.values().chain(members).cloned().collect();
            next.retain(|addr| !asked.contains(addr) && *addr != self.voter.own_join().addr);
            next.sort_unstable();
            next.dedup();
            if next.is_empty() {
                return known;
            }
            let states = next.iter().map(|addr| async {
                let state = self.peers.to(addr).state(known.version, STATE_DEADLINE).await;
                state.ok().flatten()
            });
            for state in join_all(states).await.into_iter().flatten() {
                if let Err(error) = keeper.adopt(Arc::new(state)).await {
                    tracing::warn!(%error, "a state found while restoring is not used");
                }
            }
            asked.extend(next);
        }
    }
}
