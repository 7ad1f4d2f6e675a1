//! A network in memory whose nodes can be killed and cut off from each other.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use async_trait::async_trait;
use koios_runtime::{BoxedIo, Listener, Net, NetHandle};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::sync::mpsc;

/// Bytes in flight in one direction.
const PIPE_BYTES: usize = 64 << 10;

/// The whole network. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct MemoryNet {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    listeners: Mutex<BTreeMap<String, mpsc::Sender<End>>>,
    cut: Mutex<BTreeSet<String>>,
}

impl Shared {
    /// Bytes of a node that is cut off go nowhere and none arrive.
    fn passes(&self, a: &str, b: &str) -> bool {
        let cut = self.cut.lock();
        !cut.contains(a) && !cut.contains(b)
    }
}

impl MemoryNet {
    /// One life of the node at `addr`.
    pub fn node(&self, addr: &str) -> Node {
        Node {
            shared: Arc::clone(&self.shared),
            addr: addr.to_owned(),
            alive: Arc::new(AtomicBool::new(true)),
        }
    }

    /// Silently drops everything from and to a node.
    pub fn cut_off(&self, addr: &str) {
        self.shared.cut.lock().insert(addr.to_owned());
    }

    /// Lets it pass again. Connections from before stay dead, as on a network that does not retransmit.
    pub fn heal(&self, addr: &str) {
        self.shared.cut.lock().remove(addr);
    }
}

/// A node's view of the network.
#[derive(Clone, Debug)]
pub struct Node {
    shared: Arc<Shared>,
    addr: String,
    alive: Arc<AtomicBool>,
}

impl Node {
    pub fn handle(&self) -> NetHandle {
        Arc::new(self.clone())
    }

    /// Ends this life: its connections break, its listener is gone.
    pub fn kill(&self) {
        self.alive.store(false, Ordering::SeqCst);
        self.shared.listeners.lock().remove(&self.addr);
    }
}

#[async_trait]
impl Net for Node {
    async fn bind(&self, addr: &str) -> io::Result<Box<dyn Listener>> {
        let (sender, receiver) = mpsc::channel(64);
        self.shared.listeners.lock().insert(addr.to_owned(), sender);
        Ok(Box::new(MemoryListener {
            receiver,
            addr: addr.to_owned(),
            alive: Arc::clone(&self.alive),
        }))
    }

    async fn connect(&self, addr: &str) -> io::Result<BoxedIo> {
        if !self.shared.passes(&self.addr, addr) {
            return std::future::pending().await;
        }
        let listener = self.shared.listeners.lock().get(addr).cloned();
        let Some(listener) = listener else {
            return Err(io::ErrorKind::ConnectionRefused.into());
        };
        let (near, far) = tokio::io::duplex(PIPE_BYTES);
        let end = |pipe| End {
            pipe,
            shared: Arc::clone(&self.shared),
            nodes: (self.addr.clone(), addr.to_owned()),
            dead: false,
            alive: Arc::clone(&self.alive),
        };
        let refused = |_| io::Error::from(io::ErrorKind::ConnectionRefused);
        listener.send(end(far)).await.map_err(refused)?;
        Ok(Box::new(end(near)))
    }
}

#[derive(Debug)]
struct MemoryListener {
    receiver: mpsc::Receiver<End>,
    addr: String,
    alive: Arc<AtomicBool>,
}

#[async_trait]
impl Listener for MemoryListener {
    async fn accept(&mut self) -> io::Result<(BoxedIo, SocketAddr)> {
        let Some(mut end) = self.receiver.recv().await else {
            return std::future::pending().await;
        };
        end.alive = Arc::clone(&self.alive);
        Ok((Box::new(end), SocketAddr::from(([127, 0, 0, 1], 0))))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.addr.parse().map_err(io::Error::other)
    }
}

/// One end of a connection.
#[derive(Debug)]
struct End {
    pipe: DuplexStream,
    shared: Arc<Shared>,
    nodes: (String, String),
    dead: bool,
    alive: Arc<AtomicBool>,
}

impl End {
    /// `None`: bytes pass. Once a connection was cut it stays silent.
    fn blocked<T>(&mut self, broken: T) -> Option<Poll<T>> {
        if !self.alive.load(Ordering::SeqCst) {
            return Some(Poll::Ready(broken));
        }
        self.dead |= !self.shared.passes(&self.nodes.0, &self.nodes.1);
        self.dead.then_some(Poll::Pending)
    }
}

fn broken<T>() -> io::Result<T> {
    Err(io::ErrorKind::ConnectionReset.into())
}

impl AsyncRead for End {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.blocked(broken()) {
            Some(blocked) => blocked,
            None => Pin::new(&mut self.pipe).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for End {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.blocked(broken()) {
            Some(blocked) => blocked,
            None => Pin::new(&mut self.pipe).poll_write(cx, buf),
        }
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_shutdown(cx)
    }
}
