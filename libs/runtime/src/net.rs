//! Injected sockets.
#![expect(
    clippy::missing_errors_doc,
    reason = "each method fails with the operating system's error and nothing else"
)]

use std::fmt::Debug;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};

/// A byte stream between two processes.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

/// Any stream.
pub type BoxedIo = Box<dyn Io>;

/// Accepts streams.
#[async_trait]
pub trait Listener: Send + Debug + 'static {
    /// The next stream and its peer.
    async fn accept(&mut self) -> io::Result<(BoxedIo, SocketAddr)>;

    /// The bound address, with the port the system chose when 0 was asked for.
    fn local_addr(&self) -> io::Result<SocketAddr>;
}

/// Opens and accepts streams.
#[async_trait]
pub trait Net: Send + Sync + Debug + 'static {
    /// Listens on `host:port`.
    async fn bind(&self, addr: &str) -> io::Result<Box<dyn Listener>>;

    /// Connects to `host:port`. Bounded by the caller's deadline.
    async fn connect(&self, addr: &str) -> io::Result<BoxedIo>;
}

/// A shared network.
pub type NetHandle = Arc<dyn Net>;

/// TCP.
#[derive(Debug)]
pub struct RealNet;

#[async_trait]
impl Net for RealNet {
    async fn bind(&self, addr: &str) -> io::Result<Box<dyn Listener>> {
        Ok(Box::new(RealListener(tokio::net::TcpListener::bind(addr).await?)))
    }

    async fn connect(&self, addr: &str) -> io::Result<BoxedIo> {
        let stream = tokio::net::TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }
}

#[derive(Debug)]
struct RealListener(tokio::net::TcpListener);

#[async_trait]
impl Listener for RealListener {
    async fn accept(&mut self) -> io::Result<(BoxedIo, SocketAddr)> {
        let (stream, peer) = self.0.accept().await?;
        stream.set_nodelay(true)?;
        Ok((Box::new(stream), peer))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}
