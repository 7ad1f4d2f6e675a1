//! Agreement on the order of commands, behind one small trait: alone on one disk, or by Raft between voters.

mod backend;
mod bootstrap;
mod local;
mod log_store;
mod messages;
mod network;
mod ordered;
mod raft;
mod snapshot;
mod state_machine;
#[cfg(test)]
mod suite_test;
mod types;

use std::collections::BTreeMap;
use std::fmt::Debug;

use async_trait::async_trait;
use bytes::Bytes;

pub use local::LocalConsensus;
pub use raft::{RaftConsensus, RaftOptions};

use crate::{Command, Error, Outcome, Rejection};

/// Why a proposal has no outcome.
#[derive(Debug, thiserror::Error)]
pub enum ProposeError {
    /// Refused; retrying does not help.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// Another voter leads, or none does. The command was not accepted.
    #[error("this voter does not lead")]
    NotLeader {
        /// The leader's address, if known.
        leader: Option<String>,
    },
    /// It may or may not take effect; commands are harmless to repeat.
    #[error("outcome unknown: {0}")]
    Unknown(String),
}

/// A voter, as operators see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VoterStatus {
    /// Its name.
    pub name: String,
    /// Its gRPC address.
    pub addr: String,
    /// Whether it leads.
    pub leads: bool,
}

/// Decides the order of commands.
#[async_trait]
pub trait Consensus: Send + Sync + Debug + 'static {
    /// Commits and applies a command; when it returns, this process's state holds the effect durably.
    ///
    /// # Errors
    /// [`ProposeError`].
    async fn propose(&self, command: Command) -> Result<Outcome, ProposeError>;

    /// Whether this process leads, as far as it knows.
    fn is_leader(&self) -> bool;

    /// Whether this process leads and a majority has confirmed it lately: no other process has led for long.
    fn leads_surely(&self) -> bool {
        self.is_leader()
    }

    /// The leader's address, as far as this process knows.
    fn leader_addr(&self) -> Option<String>;

    /// Whether this process's vote is counted; a voter that lost its log must be taken in first.
    fn is_voting(&self) -> bool;

    /// The current voters, by name.
    fn voters(&self) -> Vec<VoterStatus>;

    /// Answers another voter.
    ///
    /// # Errors
    /// [`Error::Peer`] for bytes that are no message for this voter, [`Error::Stopped`].
    async fn handle(&self, kind: &str, payload: Bytes) -> Result<Bytes, Error>;

    /// Hands leadership over, if this process has it, and stops deciding.
    async fn shutdown(&self);
}

/// The listed voters: names and gRPC addresses.
pub type Voters = BTreeMap<String, String>;

/// Parses `a=host:port,b=host:port`. A voter that is listed without a name is called by its address.
///
/// # Errors
/// [`Error::Config`] with the part that is wrong.
pub fn parse_voters(text: &str) -> Result<Voters, Error> {
    let mut voters = Voters::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let wrong = |why: &str| {
            Error::Config(format!(
                "control.voters: {part:?} {why}; expected [name=]host:port,[name=]host:port"
            ))
        };
        let (name, addr) = match part.split_once('=') {
            Some((name, addr)) => (name.to_owned(), addr),
            None => (slug(part), part),
        };
        if name.is_empty() || !is_host_port(addr) {
            return Err(wrong("is no [name=]host:port"));
        }
        if voters.insert(name, addr.to_owned()).is_some() {
            return Err(wrong("names a voter twice"));
        }
    }
    Ok(voters)
}

/// An address as a name.
fn slug(addr: &str) -> String {
    addr.chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect()
}

/// Whether a text is `host:port`; of a host with colons, an address of IPv6, brackets tell where it ends.
fn is_host_port(addr: &str) -> bool {
    let Some((host, port)) = addr.rsplit_once(':') else {
        return false;
    };
    let is_bracketed = host.starts_with('[') && host.ends_with(']');
    !host.is_empty() && (is_bracketed || !host.contains(':')) && port.parse::<u16>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn voter_lists_are_parsed_and_mistakes_named() {
        let voters = parse_voters("a=h1:9095, b=[::1]:9095,").unwrap();
        assert_eq!(voters["b"], "[::1]:9095");
        assert!(parse_voters("").unwrap().is_empty());
        let unnamed: Vec<_> = parse_voters("c=h3:3,127.0.0.1:9102")
            .unwrap()
            .into_keys()
            .collect();
        assert_eq!(unnamed, ["127-0-0-1-9102", "c"]);
        for bad in [
            "a",
            "a=",
            "=h:1",
            "a=h",
            "a=h:x",
            "a=:1",
            "a=h:1,a=h:2",
            "a:127.0.0.1:9777",
            "a=b:127.0.0.1:9777",
            "::1:9777",
        ] {
            let said = parse_voters(bad).unwrap_err();
            assert!(matches!(said, Error::Config(_)), "{bad}");
            assert!(said.to_string().contains("[name=]host:port"), "{said}");
        }
    }
}
