//! A TCP proxy that can be cut: what a server looks like when it dies and comes back with its data.

use std::io;
use std::sync::Arc;

use koios_runtime::{CancellationToken, NetHandle, RealNet, TaskGroup};
use parking_lot::Mutex;
use tokio::io::copy_bidirectional;

/// Forwards connections from its own port of 127.0.0.1 to a server until it is cut.
#[derive(Debug)]
pub struct Proxy {
    addr: String,
    target: String,
    net: NetHandle,
    running: Mutex<Option<TaskGroup>>,
}

impl Proxy {
    /// Forwards to `target`.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start(target: &str) -> io::Result<Self> {
        let net: NetHandle = Arc::new(RealNet);
        let listener = net.bind("127.0.0.1:0").await?;
        let addr = listener.local_addr()?.to_string();
        drop(listener);
        let proxy = Self {
            addr,
            target: target.to_owned(),
            net,
            running: Mutex::default(),
        };
        proxy.mend().await?;
        Ok(proxy)
    }

    /// Its `host:port`.
    pub fn addr(&self) -> &str {
        &self.addr
    }

    /// Refuses connections and drops those that are open.
    pub async fn cut(&self) {
        let running = self.running.lock().take();
        if let Some(tasks) = running {
            tasks.stop().await;
        }
    }

    /// Forwards again.
    ///
    /// # Errors
    /// When the port was taken meanwhile.
    pub async fn mend(&self) -> io::Result<()> {
        let mut listener = self.net.bind(&self.addr).await?;
        let tasks = TaskGroup::new(CancellationToken::new());
        let (group, net, target) = (tasks.clone(), Arc::clone(&self.net), self.target.clone());
        tasks.spawn_cancelled("proxy", async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let (net, target) = (Arc::clone(&net), target.clone());
                group.spawn_cancelled("proxied connection", async move {
                    if let Ok(mut server) = net.connect(&target).await {
                        // Either side may end the connection at any time.
                        let _ = copy_bidirectional(&mut client, &mut server).await;
                    }
                });
            }
        });
        *self.running.lock() = Some(tasks);
        Ok(())
    }
}
