//! Reads of blocks: split over the store members, resumed elsewhere when one fails.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::StreamExt;
use koios_model::{Labels, Matchers, TenantId, TimeRange, random_weight};
use koios_promql::QueryError;
use koios_runtime::ClockHandle;
use koios_wire::{
    SeriesExemplars, SeriesRuns, ServiceError, ServiceErrorCode, StoreItem, StoreLabelsRequest,
    StoreSelectRequest, StoreService, StoreStream,
};

use super::budget::Budget;
use super::held::{HeldSeries, SourceError, hold};
use super::topology::StoreMember;

/// Longest wait for a store's answer or its next item: a cold read fetches many ranges from the bucket.
const STORE_WAIT: Duration = Duration::from_secs(30);

/// Blocks one store member serves, and who else would.
#[derive(Clone, Debug)]
pub(crate) struct BlockGroup {
    pub(crate) blocks: Vec<String>,
    /// Best first.
    pub(crate) stores: Vec<StoreMember>,
}

/// Splits blocks over store members by highest random weight, so that a block's pages are cached at one of them.
pub(crate) fn assign(blocks: Vec<String>, stores: &[StoreMember]) -> Result<Vec<BlockGroup>, QueryError> {
    if stores.is_empty() && !blocks.is_empty() {
        let text = format!("{} blocks cannot be read: no store member is known", blocks.len());
        return Err(QueryError::unavailable(text));
    }
    let mut groups: Vec<BlockGroup> = Vec::new();
    for block in blocks {
        let mut ranked: Vec<_> = stores
            .iter()
            .map(|s| (random_weight(&s.name, &block), s))
            .collect();
        ranked.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.name.cmp(&b.1.name)));
        let first = ranked.first().map(|(_, s)| s.name.clone());
        match groups
            .iter_mut()
            .find(|g| g.stores.first().map(|s| &s.name) == first.as_ref())
        {
            Some(group) => group.blocks.push(block),
            None => groups.push(BlockGroup {
                blocks: vec![block],
                stores: ranked.into_iter().map(|(_, s)| s.clone()).collect(),
            }),
        }
    }
    Ok(groups)
}

/// What to read from blocks, as of a pinned manifest.
#[derive(Clone, Debug)]
pub(crate) struct BlockRequest {
    pub(crate) tenant: TenantId,
    pub(crate) manifest_version: u64,
    pub(crate) matchers: Matchers,
    pub(crate) range: TimeRange,
    pub(crate) labels_only: bool,
    pub(crate) limit: u64,
}

/// Whether another store could do better.
fn worth_another(e: &ServiceError) -> bool {
    !matches!(
        e.code,
        ServiceErrorCode::InvalidArgument | ServiceErrorCode::NotFound
    )
}

/// A store's name and why it failed.
type Failure = (String, ServiceError);

/// What the query is told: damage first, since that is what somebody must look at.
fn failed(group: &BlockGroup, failures: &[Failure]) -> QueryError {
    let damage = failures
        .iter()
        .find(|(_, e)| e.code == ServiceErrorCode::Corruption);
    let what = match (damage, group.blocks.as_slice()) {
        (Some((_, e)), _) => e.message.clone(),
        (None, [one]) => format!("block {one} cannot be read"),
        (None, [first, ..]) => format!("{} blocks ({first}, …) cannot be read", group.blocks.len()),
        (None, []) => "no block was read".to_owned(),
    };
    let stores: Vec<_> = failures
        .iter()
        .map(|(store, e)| format!("{store}: {e}"))
        .collect();
    QueryError::unavailable(format!("unavailable: {what}; asked {}", stores.join("; ")))
}

/// The series of one group, in label order, whatever stores they come from: blocks never change, so a read that broke
/// off goes on elsewhere after the last series it gave.
pub(crate) struct BlockFeed {
    request: StoreSelectRequest,
    group: BlockGroup,
    clock: ClockHandle,
    budget: Arc<Budget>,
    /// Which store is read; those before have failed.
    at: usize,
    stream: Option<StoreStream>,
    buffer: std::vec::IntoIter<HeldSeries>,
    /// The last series of the current stream.
    last_read: Option<Labels>,
    /// The last series given out.
    last_given: Option<Labels>,
    failures: Vec<Failure>,
    done: bool,
}

impl std::fmt::Debug for BlockFeed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlockFeed")
            .field("group", &self.group)
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}

impl BlockFeed {
    pub(crate) fn new(
        group: BlockGroup,
        request: BlockRequest,
        clock: ClockHandle,
        budget: Arc<Budget>,
    ) -> Self {
        let request = StoreSelectRequest {
            tenant: request.tenant,
            manifest_version: request.manifest_version,
            blocks: group.blocks.clone(),
            matchers: request.matchers,
            range: request.range,
            labels_only: request.labels_only,
            limit: request.limit,
        };
        Self {
            request,
            group,
            clock,
            budget,
            at: 0,
            stream: None,
            buffer: Vec::new().into_iter(),
            last_read: None,
            last_given: None,
            failures: Vec::new(),
            done: false,
        }
    }

    /// The next series, or `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<HeldSeries>, SourceError> {
        loop {
            match self.next_of_store().await {
                Ok(None) => return Ok(None),
                Ok(Some(series)) => {
                    if self
                        .last_given
                        .as_ref()
                        .is_some_and(|given| series.labels <= *given)
                    {
                        continue;
                    }
                    self.last_given = Some(series.labels.clone());
                    return Ok(Some(series));
                }
                Err(SourceError::Service(e)) if e.code == ServiceErrorCode::ResourceExhausted => {
                    // Every store has the same bounds: it is the query that asks for too much.
                    return Err(QueryError::LimitExceeded(e.message).into());
                }
                Err(SourceError::Service(e)) if worth_another(&e) => self.next_store(&e)?,
                Err(e) => return Err(e),
            }
        }
    }

    fn next_store(&mut self, e: &ServiceError) -> Result<(), QueryError> {
        let name = self.group.stores.get(self.at).map_or("", |s| s.name.as_str());
        tracing::warn!(store = name, error = %e, "store failed, reading its blocks elsewhere");
        self.failures.push((name.to_owned(), e.clone()));
        self.at += 1;
        self.stream = None;
        self.buffer = Vec::new().into_iter();
        self.last_read = None;
        if self.at < self.group.stores.len() {
            return Ok(());
        }
        Err(failed(&self.group, &self.failures))
    }

    async fn next_of_store(&mut self) -> Result<Option<HeldSeries>, SourceError> {
        loop {
            if let Some(series) = self.buffer.next() {
                return Ok(Some(series));
            }
            if self.done {
                return Ok(None);
            }
            match self.next_item().await? {
                StoreItem::Series(batch) => self.buffer = self.hold_all(batch)?.into_iter(),
                StoreItem::End => self.done = true,
            }
        }
    }

    /// Charges a batch as it arrives: it may wait here for long.
    fn hold_all(&mut self, batch: Vec<SeriesRuns>) -> Result<Vec<HeldSeries>, SourceError> {
        let mut held = Vec::<HeldSeries>::with_capacity(batch.len());
        for series in batch {
            let last = held.last().map(|s| &s.labels).or(self.last_read.as_ref());
            let series = hold(series, last, &self.budget)?;
            held.push(series);
        }
        if let Some(last) = held.last() {
            self.last_read = Some(last.labels.clone());
        }
        Ok(held)
    }

    async fn next_item(&mut self) -> Result<StoreItem, ServiceError> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => {
                let store = self.group.stores.get(self.at);
                let store = store.ok_or_else(|| ServiceError::unavailable("no store member is left"))?;
                let opened = within(&self.clock, store.client.select(self.request.clone())).await??;
                none.insert(opened)
            }
        };
        let item = within(&self.clock, stream.next()).await?;
        item.unwrap_or_else(|| Err(ServiceError::unavailable("the stream broke off before its end")))
    }
}

/// Label names (`name` empty) or values of a group's blocks, from the first store that can tell.
pub(crate) async fn labels(
    group: &BlockGroup,
    request: &BlockRequest,
    name: &str,
    clock: &ClockHandle,
) -> Result<Vec<String>, SourceError> {
    ask_any(group, request, name, clock, |store, ask| async move {
        if ask.name.is_empty() {
            store.label_names(ask).await
        } else {
            store.label_values(ask).await
        }
    })
    .await
}

/// Exemplars of a group's blocks, from the first store that can tell.
pub(crate) async fn exemplars(
    group: &BlockGroup,
    request: &BlockRequest,
    clock: &ClockHandle,
) -> Result<Vec<SeriesExemplars>, SourceError> {
    ask_any(group, request, "", clock, |store, ask| async move {
        store.exemplars(ask).await
    })
    .await
}

/// What the first store answers that can.
async fn ask_any<T, F>(
    group: &BlockGroup,
    request: &BlockRequest,
    name: &str,
    clock: &ClockHandle,
    ask_one: impl Fn(Arc<dyn StoreService>, StoreLabelsRequest) -> F,
) -> Result<T, SourceError>
where
    F: Future<Output = Result<T, ServiceError>>,
{
    let ask = StoreLabelsRequest {
        tenant: request.tenant.clone(),
        manifest_version: request.manifest_version,
        blocks: group.blocks.clone(),
        matchers: request.matchers.clone(),
        range: request.range,
        name: name.to_owned(),
        limit: request.limit,
    };
    let mut failures = Vec::new();
    for store in &group.stores {
        match within(clock, ask_one(Arc::clone(&store.client), ask.clone()))
            .await
            .and_then(|r| r)
        {
            Ok(answer) => return Ok(answer),
            // Every store has the same bounds: it is the query that asks for too much.
            Err(e) if e.code == ServiceErrorCode::ResourceExhausted => {
                return Err(QueryError::LimitExceeded(e.message).into());
            }
            Err(e) if worth_another(&e) => failures.push((store.name.clone(), e)),
            Err(e) => return Err(e.into()),
        }
    }
    Err(failed(group, &failures).into())
}

async fn within<T>(clock: &ClockHandle, future: impl Future<Output = T>) -> Result<T, ServiceError> {
    let timed = clock.timeout(STORE_WAIT, future).await;
    timed.map_err(|e| ServiceError::new(ServiceErrorCode::DeadlineExceeded, format!("no answer: {e}")))
}
