//! That the bucket is the cluster's own: two clusters that list in one neither fence nor know each other.

use std::sync::Arc;
use std::time::Duration;

use koios_control::{ControlPlane, Error as ControlError};
use koios_runtime::{ClockHandle, TaskGroup};

use super::{NodeError, Refusal};

/// Longest the bucket is waited for before the process goes on without having heard whose it is.
const WAIT: Duration = Duration::from_secs(5);
/// How often it is asked after that, until it says: soon at first, for what another cluster's bucket gets meanwhile stays there.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// The longest pause.
const AGAIN_AFTER_MAX: Duration = Duration::from_secs(30);

/// Refuses a bucket whose backup of the control state is another cluster's. One that is away or has no backup yet is looked
/// at again in the background, for a process may start while object storage is away (I9).
pub(super) async fn require(
    plane: &Arc<ControlPlane>,
    clock: &ClockHandle,
    tasks: &TaskGroup,
    refusal: &Refusal,
) -> Result<(), NodeError> {
    match clock.timeout(WAIT, plane.is_own_bucket()).await {
        Ok(Ok(true)) => return Ok(()),
        Ok(Ok(false)) => {}
        Ok(Err(error @ ControlError::OtherBucket { .. })) => return Err(error.into()),
        Ok(Err(error)) => tracing::warn!(%error, "whose bucket it is cannot be told yet"),
        Err(error) => tracing::warn!(%error, "whose bucket it is cannot be told yet"),
    }
    let (plane, clock) = (Arc::clone(plane), Arc::clone(clock));
    let (group, refusal) = (tasks.clone(), refusal.clone());
    tasks.spawn_cancelled("own-bucket", async move {
        let mut pause = AGAIN_AFTER;
        loop {
            clock.sleep(pause).await;
            pause = (pause * 2).min(AGAIN_AFTER_MAX);
            match plane.is_own_bucket().await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error @ ControlError::OtherBucket { .. }) => {
                    return refusal.fail(&group, "own-bucket", error.into());
                }
                Err(error) => tracing::debug!(%error, "whose bucket it is cannot be told yet"),
            }
        }
    });
    Ok(())
}
