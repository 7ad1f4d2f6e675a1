//! What happens to processes of a cluster while a load works on them.

use std::pin::pin;
use std::time::Duration;

use anyhow::{Result, bail};
use futures::future::{Either, select};
use koios_testkit::process::pause;

use super::Cluster;
use super::chance::Chance;

/// Runs a load until the faults are over. A load that fails before ends both, and none may end by itself.
pub async fn under_load<T>(
    faults: impl Future<Output = Result<()>>,
    load: impl Future<Output = Result<T>>,
) -> Result<()> {
    match select(pin!(faults), pin!(load)).await {
        Either::Left((faults, _)) => faults,
        Either::Right((load, _)) => {
            load?;
            bail!("the load ended by itself")
        }
    }
}

/// How long a process stays up, and then down.
#[derive(Clone, Copy, Debug)]
pub struct Outage {
    up: Duration,
    down: Duration,
}

impl Outage {
    /// Up for a second at most, and down for two.
    pub fn new(chance: &mut Chance) -> Self {
        Self {
            up: chance.moment(Duration::from_secs(1)),
            down: chance.moment(Duration::from_secs(2)),
        }
    }
}

impl Cluster {
    /// Kills a process and starts it again while a load works on all of them, until it is ready.
    pub async fn kill_and_restart<T>(
        &mut self,
        name: &str,
        outage: Outage,
        load: impl Future<Output = Result<T>>,
    ) -> Result<()> {
        let client = self.client.clone();
        let node = self.node(name);
        let faults = async {
            pause(outage.up).await;
            node.process.kill();
            pause(outage.down).await;
            node.process.restart()?;
            node.ready(&client).await
        };
        under_load(faults, load).await
    }
}
