//! Label names and values of blocks.

use std::collections::BTreeSet;

use futures::stream::{self, StreamExt, TryStreamExt};
use koios_block::StringList;
use koios_model::{Matchers, TimeRange};
use koios_wire::{ServiceError, ServiceErrorCode};

use crate::error::from_block;
use crate::masks::MaskedBlock;

/// Blocks that are read at once.
const BLOCKS_AT_ONCE: usize = 8;
/// Series that are looked at together where some are deleted.
const SERIES_AT_ONCE: usize = 4096;

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Question<'a> {
    /// The label whose values are wanted; names without.
    pub(crate) name: Option<&'a str>,
    pub(crate) matchers: &'a Matchers,
    pub(crate) range: TimeRange,
    /// Most strings, the first ones; 0 for no limit.
    pub(crate) limit: u64,
    /// Most bytes of an answer.
    pub(crate) bytes_max: usize,
}

impl Question<'_> {
    fn count_max(&self) -> usize {
        match self.limit {
            0 => usize::MAX,
            limit => usize::try_from(limit).unwrap_or(usize::MAX),
        }
    }

    fn check(&self, bytes: usize) -> Result<(), ServiceError> {
        if bytes <= self.bytes_max {
            return Ok(());
        }
        let what = self.name.map_or_else(
            || "names of labels".to_owned(),
            |name| format!("values of label {name:?}"),
        );
        let text = format!(
            "the {what} in blocks exceed {} bytes: add matchers or a limit, or ask for a shorter range",
            self.bytes_max
        );
        Err(ServiceError::new(ServiceErrorCode::ResourceExhausted, text))
    }
}

/// Sorted names, or values of a label, of the matching series of all blocks.
pub(crate) async fn labels(
    blocks: Vec<MaskedBlock>,
    question: Question<'_>,
) -> Result<Vec<String>, ServiceError> {
    let Question { matchers, range, .. } = question;
    let read = |block: MaskedBlock| async move {
        let found = match question.name {
            _ if !block.masks.is_empty() => return of_what_is_left(&block, question).await,
            Some(name) => block.reader.label_values(name, matchers, range).await,
            None => block.reader.label_names(matchers, range).await,
        };
        Ok(found.map_err(|e| from_block(&e))?.first(question.count_max()))
    };
    let mut found = stream::iter(blocks).map(read).buffered(BLOCKS_AT_ONCE);
    let mut all = StringList::default();
    while let Some(more) = found.try_next().await? {
        // What is not among the first of some blocks is not among the first of all.
        all = all.union(&more).first(question.count_max());
        question.check(all.memory_size())?;
    }
    Ok(all.iter().map(str::to_owned).collect())
}

/// The same of one block with deleted samples: series of which none is left in range do not count.
async fn of_what_is_left(block: &MaskedBlock, question: Question<'_>) -> Result<StringList, ServiceError> {
    let Question { matchers, range, .. } = question;
    let (mut all, mut bytes) = (BTreeSet::new(), 0);
    let mut cursor = block.reader.series_cursor(matchers.clone(), range);
    while let Some(series) = cursor.next(SERIES_AT_ONCE).await.map_err(|e| from_block(&e))? {
        for series in series.iter().filter(|s| !block.masks.hide(s, range)) {
            let labels = series.labels.as_ref();
            let mut add = |text: &str| {
                if !all.contains(text) {
                    bytes += text.len();
                    all.insert(text.to_owned());
                }
            };
            match question.name {
                Some(name) => labels.get(name).into_iter().for_each(&mut add),
                None => labels.iter().for_each(|(name, _)| add(name)),
            }
        }
        while all.len() > question.count_max() {
            bytes -= all.pop_last().map_or(0, |last| last.len());
        }
        question.check(bytes)?;
    }
    Ok(StringList::from_sorted(all.iter().map(String::as_str)))
}
