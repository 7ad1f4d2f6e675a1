//! Label names and values of blocks.

use futures::stream::{self, StreamExt, TryStreamExt};
use koios_block::{BlockReader, StringList};
use koios_model::{Matchers, TimeRange};
use koios_wire::ServiceError;

use crate::error::from_block;

/// Blocks that are read at once.
const BLOCKS_AT_ONCE: usize = 8;

/// Sorted names, or values of `name`, of the matching series of all blocks; at most `limit` unless 0.
pub(crate) async fn labels(
    blocks: Vec<BlockReader>,
    name: Option<&str>,
    matchers: &Matchers,
    range: TimeRange,
    limit: u64,
) -> Result<Vec<String>, ServiceError> {
    let read = |block: BlockReader| async move {
        match name {
            Some(name) => block.label_values(name, matchers, range).await,
            None => block.label_names(matchers, range).await,
        }
    };
    let all = stream::iter(blocks)
        .map(read)
        .buffered(BLOCKS_AT_ONCE)
        .try_fold(StringList::default(), |all, more| {
            std::future::ready(Ok(all.union(&more)))
        })
        .await
        .map_err(|e| from_block(&e))?;
    let limit = if limit == 0 {
        usize::MAX
    } else {
        usize::try_from(limit).unwrap_or(usize::MAX)
    };
    Ok(all.iter().take(limit).map(str::to_owned).collect())
}
