//! The server side of `Control`: every process answers State and Watch from its copy, voters answer the rest.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use koios_runtime::{CancellationToken, ClockHandle};
use koios_wire::grpc::{MESSAGE_BYTES_MAX, status_from_error};
use koios_wire::pb::v1::control_server::{Control, ControlServer};
use koios_wire::pb::v1::{
    PairsReply, PairsRequest, ProposeReply, ProposeRequest, RaftReply, RaftRequest, StateReply, StateRequest,
};
use koios_wire::{ServiceError, ServiceErrorCode};
use tonic::{Request, Response, Status};

use crate::pairs::{NotLeading, Referee};
use crate::{ClusterState, Command, Consensus, Error, Outcome, ProposeError, Rejection, Report, StateHandle};

/// A watcher hears this often that nothing has changed, so that it can tell a quiet peer from a lost one.
pub(crate) const KEEPALIVE: Duration = Duration::from_secs(5);
/// Longest a proposal is worked on.
const PROPOSE_DEADLINE: Duration = Duration::from_secs(10);

/// Answers `Control` calls.
#[derive(Clone, Debug)]
pub struct ControlRpc {
    state: StateHandle,
    clock: ClockHandle,
    consensus: Option<Arc<dyn Consensus>>,
    referee: Option<Arc<Referee>>,
    /// Ends what would never end by itself.
    stopping: CancellationToken,
}

impl ControlRpc {
    /// Serves this process's copy, and its vote if it has one.
    pub fn new(state: StateHandle, clock: ClockHandle, consensus: Option<Arc<dyn Consensus>>) -> Self {
        Self {
            state,
            clock,
            consensus,
            referee: None,
            stopping: CancellationToken::new(),
        }
    }

    /// Watchers are let go at `stopping`: a server that waits for its calls to end would wait for them for ever.
    #[must_use]
    pub fn until(mut self, stopping: CancellationToken) -> Self {
        self.stopping = stopping;
        self
    }

    /// Also hears of HA pairs.
    #[must_use]
    pub fn with_referee(mut self, referee: Option<Arc<Referee>>) -> Self {
        self.referee = referee;
        self
    }

    /// The tonic service, to be added to the process's gRPC server.
    pub fn into_server(self) -> ControlServer<Self> {
        ControlServer::new(self)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    fn voter(&self) -> Result<&Arc<dyn Consensus>, Status> {
        self.consensus.as_ref().ok_or_else(|| {
            self.refuse(
                ServiceErrorCode::Unavailable,
                "this process is no control voter; ask one of --control.voters",
            )
        })
    }

    fn refuse(&self, code: ServiceErrorCode, message: impl Into<String>) -> Status {
        let error = ServiceError::new(code, message).with_state_version(self.state.current().version);
        status_from_error(&error)
    }

    fn reply(&self, outcome: &Result<Outcome, Rejection>) -> Result<ProposeReply, Status> {
        let version = outcome
            .as_ref()
            .map_or_else(|_| self.state.current().version, |o| o.version);
        let result = serde_json::to_vec(outcome)
            .map_err(|e| self.refuse(ServiceErrorCode::Internal, e.to_string()))?;
        Ok(ProposeReply {
            version,
            result: result.into(),
            leader: String::new(),
        })
    }
}

/// A reply that brings a state newer than `known`, or nothing.
fn state_reply(state: &ClusterState, known: u64) -> Result<StateReply, Status> {
    let newer = state.version > known;
    let json = if newer {
        serde_json::to_vec(state).map_err(|e| Status::internal(e.to_string()))?
    } else {
        Vec::new()
    };
    Ok(StateReply {
        version: state.version,
        state: Bytes::from(json),
    })
}

#[tonic::async_trait]
impl Control for ControlRpc {
    type WatchStream = BoxStream<'static, Result<StateReply, Status>>;

    async fn state(&self, request: Request<StateRequest>) -> Result<Response<StateReply>, Status> {
        let known = request.into_inner().known_version;
        state_reply(&self.state.current(), known).map(Response::new)
    }

    async fn watch(&self, request: Request<StateRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let known = request.into_inner().known_version;
        let start = (self.state.clone(), Arc::clone(&self.clock), known);
        let states = stream::unfold(start, |(handle, clock, known)| async move {
            let next = clock
                .timeout(KEEPALIVE, handle.reached(known.saturating_add(1)))
                .await;
            let state = next.unwrap_or_else(|_| handle.current());
            let reply = state_reply(&state, known);
            let known = known.max(state.version);
            Some((reply, (handle, clock, known)))
        });
        let stopped = self.stopping.clone().cancelled_owned();
        Ok(Response::new(states.take_until(stopped).boxed()))
    }

    async fn propose(&self, request: Request<ProposeRequest>) -> Result<Response<ProposeReply>, Status> {
        let voter = self.voter()?;
        let command: Command = serde_json::from_slice(&request.into_inner().command)
            .map_err(|e| self.refuse(ServiceErrorCode::InvalidArgument, format!("control command: {e}")))?;
        let proposed = self.clock.timeout(PROPOSE_DEADLINE, voter.propose(command)).await;
        let reply = match proposed {
            Ok(Ok(outcome)) => self.reply(&Ok(outcome))?,
            Ok(Err(ProposeError::Rejected(rejection))) => self.reply(&Err(rejection))?,
            Ok(Err(ProposeError::NotLeader { leader: Some(leader) })) => ProposeReply {
                leader,
                ..ProposeReply::default()
            },
            Ok(Err(ProposeError::NotLeader { leader: None })) => {
                return Err(self.refuse(ServiceErrorCode::Unavailable, "no control leader is known"));
            }
            Ok(Err(ProposeError::Unknown(why))) => {
                return Err(self.refuse(ServiceErrorCode::Unavailable, why));
            }
            Err(elapsed) => {
                return Err(self.refuse(ServiceErrorCode::DeadlineExceeded, elapsed.to_string()));
            }
        };
        Ok(Response::new(reply))
    }

    async fn pairs(&self, request: Request<PairsRequest>) -> Result<Response<PairsReply>, Status> {
        self.voter()?;
        let report: Report = serde_json::from_slice(&request.into_inner().report).map_err(|e| {
            self.refuse(
                ServiceErrorCode::InvalidArgument,
                format!("report of HA pairs: {e}"),
            )
        })?;
        let heard = match &self.referee {
            Some(referee) => referee.hear(&report).await,
            None => {
                return Err(self.refuse(ServiceErrorCode::Unavailable, "this process hears of no HA pairs"));
            }
        };
        match heard {
            Ok(rulings) => {
                let rulings = serde_json::to_vec(&rulings)
                    .map_err(|e| self.refuse(ServiceErrorCode::Internal, e.to_string()))?;
                Ok(Response::new(PairsReply {
                    rulings: rulings.into(),
                    leader: String::new(),
                }))
            }
            Err(NotLeading { leader: Some(leader) }) => Ok(Response::new(PairsReply {
                leader,
                ..PairsReply::default()
            })),
            Err(NotLeading { leader: None }) => {
                Err(self.refuse(ServiceErrorCode::Unavailable, "no control leader is known"))
            }
        }
    }

    async fn raft(&self, request: Request<RaftRequest>) -> Result<Response<RaftReply>, Status> {
        let RaftRequest { kind, payload } = request.into_inner();
        match self.voter()?.handle(&kind, payload).await {
            Ok(payload) => Ok(Response::new(RaftReply { payload })),
            Err(error @ Error::Peer { .. }) => {
                Err(self.refuse(ServiceErrorCode::InvalidArgument, error.to_string()))
            }
            Err(error) => Err(self.refuse(ServiceErrorCode::Unavailable, error.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use koios_runtime::TokioClock;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn watchers_hear_of_the_state_until_the_process_stops() {
        let state = StateHandle::new(ClusterState {
            version: 3,
            ..ClusterState::default()
        });
        let stopping = CancellationToken::new();
        let rpc = ControlRpc::new(state, Arc::new(TokioClock::starting_at(0)), None).until(stopping.clone());
        let watch = async || {
            let request = Request::new(StateRequest { known_version: 0 });
            rpc.watch(request).await.unwrap().into_inner()
        };
        let mut states = watch().await;
        for _ in 0..3 {
            assert_eq!(states.next().await.unwrap().unwrap().version, 3);
        }
        stopping.cancel();
        assert!(states.next().await.is_none());
        assert!(watch().await.next().await.is_none());
    }
}
