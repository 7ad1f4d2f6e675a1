//! Sections of a read: windows whose bytes are fetched together, those of the next section while the windows of the present one
//! are decoded and sent. So a read waits for the bucket as often as it has sections at most, however many windows it has, and what
//! is fetched ahead is two sections, whoever is slow.

use std::collections::{BTreeMap, VecDeque};

use futures::FutureExt;
use futures::stream::{self, StreamExt, TryStreamExt};
use koios_block::{ChunkRead, HeldCells, MissingUpTo};
use koios_model::TimeRange;
use koios_runtime::{CancellationToken, TaskGroup};
use koios_wire::{ServiceError, ServiceErrorCode};
use tokio::sync::oneshot;

use crate::bounds::ReadBounds;
use crate::error::from_block;
use crate::masks::MaskedBlock;
use crate::window::{WindowRead, Windows};

/// A part of what a read may hold that a section is made to take: two are held at a time, and how much they take is known only
/// when it is fetched.
const SECTION_SHARE: u64 = 4;

/// Windows in order, whose bytes are here as far as there was room for them.
#[derive(Debug, Default)]
pub(crate) struct Section {
    pub(crate) windows: VecDeque<WindowRead>,
    /// How many label sets they have.
    pub(crate) series: u64,
    /// Whether there is none after it.
    pub(crate) is_last: bool,
    /// Whether anything was missing.
    is_fetched: bool,
}

/// Makes sections.
pub(crate) struct Planner {
    windows: Windows,
    blocks: Vec<MaskedBlock>,
    range: TimeRange,
    bounds: ReadBounds,
    /// What the blocks' readers hold.
    held: HeldCells,
    /// Whether a section was fetched already.
    has_begun: bool,
    /// What is told after the windows that come before it.
    failure: Option<ServiceError>,
}

impl Planner {
    pub(crate) fn new(
        windows: Windows,
        blocks: Vec<MaskedBlock>,
        range: TimeRange,
        bounds: ReadBounds,
        held: HeldCells,
    ) -> Self {
        Self {
            windows,
            blocks,
            range,
            bounds,
            held,
            has_begun: false,
            failure: None,
        }
    }

    /// The next section of at most `series_max` label sets, fetched. Damage is not told here, but by the window that comes to it.
    async fn next(&mut self, series_max: u64) -> Result<Section, ServiceError> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        self.held.next_turn();
        let mut section = Section::default();
        let (mut bytes, mut cached, mut parts) = (0u64, 0u64, 0);
        let mut up_to = BTreeMap::<usize, MissingUpTo>::new();
        let bytes_max = self.section_bytes();
        while section.series < series_max {
            let window = match self.windows.next(series_max - section.series).await {
                Ok(window) => window,
                Err(e) if section.windows.is_empty() => return Err(e),
                Err(e) => {
                    self.failure = Some(e);
                    break;
                }
            };
            if window.found.is_empty() {
                section.is_last = true;
                break;
            }
            section.series += window.found.len() as u64;
            let mut read = window.look_up(&self.blocks, self.range);
            bytes = bytes.saturating_add(read.bytes_missing(&mut up_to));
            cached = cached.saturating_add(read.bytes_cached());
            parts += read.parts();
            let has_room = read.counted(&self.held);
            section.windows.push_back(read);
            let is_full = !has_room
                || bytes.saturating_add(cached) >= bytes_max
                || parts >= self.bounds.section_series
                || section.windows.len() >= self.bounds.section_windows;
            // What is cached waits for nothing.
            if bytes == 0 || is_full {
                break;
            }
        }
        if bytes > 0 && self.held.bytes_max() > 0 {
            self.fetch(&section.windows).await?;
            section.is_fetched = true;
            self.has_begun = true;
        }
        Ok(section)
    }

    fn section_bytes(&self) -> u64 {
        let most = match self.has_begun {
            true => self.bounds.section_bytes,
            false => self.bounds.first_section_bytes,
        };
        most.min(self.held.bytes_max() / SECTION_SHARE)
    }

    /// Fetches what windows are missing, a few blocks at a time.
    async fn fetch(&self, windows: &VecDeque<WindowRead>) -> Result<(), ServiceError> {
        let mut by_block = BTreeMap::<usize, Vec<&ChunkRead>>::new();
        for (block, chunks) in windows.iter().flat_map(WindowRead::of_blocks) {
            by_block.entry(block).or_default().push(chunks);
        }
        let fetch = |reads: Vec<_>| fetch(reads).boxed();
        let fetches: Vec<_> = by_block.into_values().map(fetch).collect();
        let fetched = stream::iter(fetches).buffer_unordered(self.bounds.blocks_at_once);
        fetched.try_collect().await
    }
}

async fn fetch(of_block: Vec<&ChunkRead>) -> Result<(), ServiceError> {
    match ChunkRead::fetch_ahead(&of_block).await {
        Err(e) if !e.is_corrupt() => Err(from_block(&e)),
        _ => Ok(()),
    }
}

/// The sections of a read, one of which may be on its way.
pub(crate) struct Sections {
    /// `None` while it is at work.
    planner: Option<Planner>,
    under_way: Option<UnderWay>,
}

/// A section that is being made.
struct UnderWay {
    done: oneshot::Receiver<(Planner, Result<Section, ServiceError>)>,
    _task: Task,
}

/// A task that ends with this.
struct Task(TaskGroup);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.token().cancel();
    }
}

impl Sections {
    pub(crate) fn new(planner: Planner) -> Self {
        Self {
            planner: Some(planner),
            under_way: None,
        }
    }

    /// The next section: of at most `left` label sets, or of as many as were left when it was begun.
    pub(crate) async fn next(&mut self, left: u64) -> Result<Section, ServiceError> {
        let lost = || ServiceError::new(ServiceErrorCode::Internal, "a read stopped fetching ahead");
        let section = match self.under_way.take() {
            Some(UnderWay { done, _task }) => {
                let (planner, section) = done.await.map_err(|_| lost())?;
                self.planner = Some(planner);
                section?
            }
            None => self.planner.as_mut().ok_or_else(lost)?.next(left).await?,
        };
        // Those that are cached need nobody to fetch ahead.
        let left = left.saturating_sub(section.series);
        if section.is_fetched && !section.is_last && left > 0 {
            self.begin_next(left);
        }
        Ok(section)
    }

    fn begin_next(&mut self, left: u64) {
        let Some(mut planner) = self.planner.take() else {
            return;
        };
        let (tell, done) = oneshot::channel();
        let tasks = TaskGroup::new(CancellationToken::new());
        tasks.spawn_cancelled("read-ahead", async move {
            let section = planner.next(left).await;
            // Whoever waited may have left.
            let _ = tell.send((planner, section));
        });
        self.under_way = Some(UnderWay {
            done,
            _task: Task(tasks),
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use koios_block::{
        BlockCache, BlockId, BlockOptions, BlockReader, BlockWriter, HeldBudget, Layout, MemoryBlock,
    };
    use koios_model::{Labels, Matchers, TenantId};

    use super::*;
    use crate::bounds::LabelsInWait;
    use crate::merge::Merge;

    /// A block of as many series of a thousand samples that no codec makes smaller.
    fn noise(series: u64) -> MaskedBlock {
        let id = BlockId::new(1_000, 1);
        let mut options = BlockOptions::new(id, TenantId::anonymous(), TimeRange::new(0, 1_000_000));
        options.layout = Layout::default();
        let mut writer = BlockWriter::new(options).unwrap();
        let times: Vec<i64> = (0..1_000).collect();
        for i in 0..series {
            let labels = Labels::from_pairs([("i", format!("{i:04}"))]);
            let value = |t: &i64| {
                let number = (i * 1_000 + t.unsigned_abs()).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                f64::from_bits(number >> 2)
            };
            let values: Vec<f64> = times.iter().map(value).collect();
            writer.push_series(&labels, None, &times, &values).unwrap();
        }
        let parts = writer.finish().unwrap().unwrap();
        let source = Arc::new(MemoryBlock::new(&parts));
        let cache = BlockCache::new(1 << 20, 1 << 20).with_series_and_samples(16 << 20, 16 << 20);
        MaskedBlock {
            reader: BlockReader::open(source, Arc::new(parts.meta), Arc::new(cache)).unwrap(),
            masks: Default::default(),
        }
    }

    #[tokio::test]
    async fn i12_cached_samples_that_wait_for_their_turn_are_in_the_budget() {
        const BUDGET: u64 = 1 << 20;
        let block = noise(200);
        let all = block
            .reader
            .select(&Matchers::default(), TimeRange::ALL)
            .await
            .unwrap();
        // All but one are cached.
        let cached = block.reader.read_chunks(&all[1..], TimeRange::ALL).await.unwrap();
        drop(cached);
        let bounds = ReadBounds {
            window_series: 10,
            ..ReadBounds::default()
        };
        let budget = HeldBudget::new(BUDGET);
        let held = HeldCells::new(&budget);
        let blocks = vec![block.with_held(&held); 1];
        let merge = Merge::new(
            &blocks,
            &Matchers::default(),
            TimeRange::ALL,
            bounds,
            &LabelsInWait::new(),
        );
        let windows = Windows::new(merge, bounds);
        let mut planner = Planner::new(windows, blocks, TimeRange::ALL, bounds, held);
        let section = planner.next(u64::MAX).await.unwrap();
        let of_windows: Vec<u64> = section.windows.iter().map(WindowRead::bytes_cached).collect();
        let (waiting, most) = (of_windows.iter().sum(), of_windows.iter().max().unwrap());
        assert!(most * 20 > BUDGET && budget.used() >= waiting, "{of_windows:?}");
        // Two sections wait at a time, and each may have as much as that.
        assert!(waiting <= BUDGET / 4 / SECTION_SHARE * 2 + most, "{of_windows:?}");
        drop((section, planner));
        assert_eq!(budget.used(), 0);
    }
}
