//! The injected network on turmoil: hosts by name, latency, partitions and crashes from the simulation's seed.

use std::io;
use std::net::SocketAddr;

use async_trait::async_trait;
use koios_runtime::{BoxedIo, Listener, Net};

/// Turmoil's network. Use only inside a turmoil host or client.
#[derive(Debug)]
pub struct SimNet;

fn split(addr: &str) -> io::Result<(&str, u16)> {
    let (host, port) = addr.rsplit_once(':').ok_or(io::ErrorKind::InvalidInput)?;
    Ok((host, port.parse().map_err(|_| io::ErrorKind::InvalidInput)?))
}

#[async_trait]
impl Net for SimNet {
    async fn bind(&self, addr: &str) -> io::Result<Box<dyn Listener>> {
        // A host listens on its own address whatever name it goes by.
        let (_, port) = split(addr)?;
        Ok(Box::new(SimListener(
            turmoil::net::TcpListener::bind(("0.0.0.0", port)).await?,
        )))
    }

    async fn connect(&self, addr: &str) -> io::Result<BoxedIo> {
        Ok(Box::new(turmoil::net::TcpStream::connect(split(addr)?).await?))
    }
}

struct SimListener(turmoil::net::TcpListener);

impl std::fmt::Debug for SimListener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SimListener")
    }
}

#[async_trait]
impl Listener for SimListener {
    async fn accept(&mut self) -> io::Result<(BoxedIo, SocketAddr)> {
        let (stream, peer) = self.0.accept().await?;
        Ok((Box::new(stream), peer))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}
