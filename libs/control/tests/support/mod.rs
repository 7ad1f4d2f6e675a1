//! Processes of a control plane in one test: real services over a network in memory, or over loopback.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part")]

pub mod memory_net;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use koios_control::*;
use koios_runtime::{
    BoxedIo, CancellationToken, Cpu, DiskHandle, Listener, MemoryWatch, NetHandle, RealClock, RealDisk,
    RngHandle, Runtime, TaskGroup, TokioClock,
};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

/// Nothing here takes nearly as long; a test that does is stuck.
pub const LONG: Duration = Duration::from_secs(120);

struct Conn(BoxedIo);

impl Connected for Conn {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}

impl AsyncRead for Conn {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Conn {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// The real clock and threads.
pub fn real_runtime(seed: u64, net: NetHandle) -> Runtime {
    Runtime {
        clock: Arc::new(RealClock::new()),
        rng: RngHandle::from_seed(seed),
        disk: DiskHandle::threaded(Arc::new(RealDisk), 1).unwrap(),
        cpu: Cpu::inline(),
        net,
        memory: MemoryWatch::default(),
    }
}

/// Tokio's clock, which the test may pause, and nothing on other threads.
pub fn paused_runtime(seed: u64, net: NetHandle) -> Runtime {
    Runtime {
        clock: Arc::new(TokioClock::starting_at(1_700_000_000_000)),
        rng: RngHandle::from_seed(seed),
        disk: DiskHandle::inline(Arc::new(RealDisk)),
        cpu: Cpu::inline(),
        net,
        memory: MemoryWatch::default(),
    }
}

/// A bucket that is always there.
#[derive(Debug, Default)]
pub struct MemoryBackup(pub Mutex<Option<(u64, Bytes)>>);

#[async_trait]
impl StateBackup for MemoryBackup {
    fn bucket(&self) -> String {
        "memory".to_owned()
    }
    async fn load(&self) -> Result<Option<Bytes>, Error> {
        Ok(self.0.lock().as_ref().map(|(_, bytes)| bytes.clone()))
    }
    async fn store(&self, version: u64, bytes: Bytes) -> Result<(), Error> {
        *self.0.lock() = Some((version, bytes));
        Ok(())
    }
}

/// One process's part in the control plane, served.
pub struct Process {
    pub plane: ControlPlane,
    pub runtime: Runtime,
    tasks: TaskGroup,
}

impl Process {
    pub async fn start(options: ControlOptions, runtime: Runtime, listener: Box<dyn Listener>) -> Self {
        let tasks = TaskGroup::new(CancellationToken::new());
        let plane = ControlPlane::start(&runtime, &tasks, options).await.unwrap();
        let incoming = futures::stream::unfold(listener, |mut listener| async move {
            let accepted = listener.accept().await.map(|(io, _)| Conn(io));
            Some((accepted, listener))
        });
        let server = tonic::transport::Server::builder().add_service(plane.rpc().into_server());
        tasks.spawn_cancelled("serve", async move {
            server.serve_with_incoming(incoming).await.unwrap();
        });
        plane.join(&tasks).await;
        Self {
            plane,
            runtime,
            tasks,
        }
    }

    pub async fn state_with(&self, wanted: impl Fn(&ClusterState) -> bool + Send) -> Arc<ClusterState> {
        let found = self
            .plane
            .state()
            .wait_for(self.runtime.clock.as_ref(), LONG, wanted)
            .await;
        found.unwrap_or_else(|state| panic!("{} stays at {state:?}", self.plane.identity().node()))
    }

    pub async fn kill(self) {
        self.tasks.stop().await;
        self.plane.shutdown().await;
        self.plane.release();
    }

    pub fn leads(&self) -> bool {
        self.plane.consensus().is_some_and(|c| c.is_leader())
    }
}

pub fn ingester(zone: &str, incarnation: u128) -> Member {
    Member {
        name: format!("ingester-{zone}"),
        role: Role::Ingester,
        zone: zone.to_owned(),
        grpc_addr: "127.0.0.1:1".to_owned(),
        http_addr: "127.0.0.1:2".to_owned(),
        incarnation: Incarnation(incarnation),
        version: "0.1.0".to_owned(),
    }
}

pub fn register(member: Member) -> Command {
    Command::Register {
        member,
        cluster_id: None,
    }
}

/// Options of a process of a cluster with three zones and two partitions.
pub fn options(dir: PathBuf, node: &str, own_addr: &str, voters: &Voters) -> ControlOptions {
    ControlOptions {
        data_dir: dir,
        node: node.to_owned(),
        own_addr: own_addr.to_owned(),
        voters: voters.clone(),
        seeds: Vec::new(),
        settings: Settings {
            replication_factor: 3,
            partitions: 2,
            ingesters_per_zone: 1,
        },
        backup: None,
    }
}

/// The processes that run, by name.
pub type Running = BTreeMap<String, Process>;
