//! Label names and values of blocks.

use std::collections::BTreeSet;

use futures::stream::{self, StreamExt, TryStreamExt};
use koios_block::StringList;
use koios_model::{Matchers, TimeRange};
use koios_wire::ServiceError;

use crate::error::from_block;
use crate::masks::MaskedBlock;

/// Blocks that are read at once.
const BLOCKS_AT_ONCE: usize = 8;
/// Series that are looked at together where some are deleted.
const SERIES_AT_ONCE: usize = 4096;

/// Sorted names, or values of `name`, of the matching series of all blocks; at most `limit` unless 0.
pub(crate) async fn labels(
    blocks: Vec<MaskedBlock>,
    name: Option<&str>,
    matchers: &Matchers,
    range: TimeRange,
    limit: u64,
) -> Result<Vec<String>, ServiceError> {
    let read = |block: MaskedBlock| async move {
        match name {
            _ if !block.masks.is_empty() => of_what_is_left(&block, name, matchers, range).await,
            Some(name) => block.reader.label_values(name, matchers, range).await,
            None => block.reader.label_names(matchers, range).await,
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

/// The same of one block with deleted samples: series of which none is left in range do not count.
async fn of_what_is_left(
    block: &MaskedBlock,
    name: Option<&str>,
    matchers: &Matchers,
    range: TimeRange,
) -> koios_block::Result<StringList> {
    let mut all = BTreeSet::new();
    let mut cursor = block.reader.series_cursor(matchers.clone(), range);
    while let Some(series) = cursor.next(SERIES_AT_ONCE).await? {
        for series in series.iter().filter(|s| !block.masks.hide(s, range)) {
            let labels = series.labels.as_ref();
            let mut add = |text: &str| {
                if !all.contains(text) {
                    all.insert(text.to_owned());
                }
            };
            match name {
                Some(name) => labels.get(name).into_iter().for_each(&mut add),
                None => labels.iter().for_each(|(name, _)| add(name)),
            }
        }
    }
    Ok(StringList::from_sorted(all.iter().map(String::as_str)))
}
