//! What reads may hold in memory, whatever they ask for (I12).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use koios_wire::ServiceError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bounds of one read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReadBounds {
    /// Blocks that are read, and decoded, at the same time.
    pub(crate) blocks_at_once: usize,
    /// Series whose samples are read together: enough to use each page once, few enough to be small.
    pub(crate) window_series: usize,
    /// Rows that are read together; a single series may have more.
    pub(crate) window_rows: u64,
    /// Row groups of series that are looked at together, of all blocks. None is ahead where this is 0.
    pub(crate) groups_ahead: usize,
    /// About the bytes they take together: mostly half a megabyte each, but labels may be long. Of each block one is looked at, whatever
    /// it takes.
    pub(crate) groups_ahead_bytes: u64,
    /// About the bytes that are fetched for the first section of a read: little enough that who waits for it hears from it soon.
    pub(crate) first_section_bytes: u64,
    /// About the bytes that are fetched for each after it, at most.
    pub(crate) section_bytes: u64,
    /// Windows of a section, at most.
    pub(crate) section_windows: usize,
    /// Series of blocks in a section, about, at most: some hundred bytes each.
    pub(crate) section_series: usize,
    /// Labels that wait to be merged: batches are made to stay well below, a read beyond it is refused.
    pub(crate) label_bytes: usize,
    /// Names or values of labels in one answer.
    pub(crate) names_bytes: usize,
}

impl Default for ReadBounds {
    fn default() -> Self {
        Self {
            blocks_at_once: 32,
            window_series: 256,
            window_rows: 1 << 18,
            groups_ahead: 64,
            groups_ahead_bytes: 64 << 20,
            first_section_bytes: 8 << 20,
            section_bytes: 16 << 20,
            section_windows: 64,
            section_series: 1 << 16,
            label_bytes: 256 << 20,
            names_bytes: 32 << 20,
        }
    }
}

impl ReadBounds {
    /// For a bucket: one that is a folder answers at once, and what is fetched ahead only takes memory. Its sections are as large as
    /// it takes to fetch no cell for each window again.
    pub(crate) fn of_bucket(url: &str) -> Self {
        let bounds = Self::default();
        match url.starts_with("file:") {
            true => Self {
                first_section_bytes: 1 << 20,
                section_bytes: 1 << 20,
                ..bounds
            },
            false => bounds,
        }
    }
}

/// Rows that all reads of a process decode at the same time, to encode them as chunks: about 40 bytes each while they are. What
/// else they hold counts as the rows that take as much: of histograms, and of times that stand in rows of their own, up to four
/// for each sample.
const ROWS_MAX: u32 = 8 << 20;

/// The memory that reads share. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct RowsInWork(Arc<Semaphore>);

impl RowsInWork {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Semaphore::new(ROWS_MAX as usize)))
    }

    /// Waits until `rows` may be read from pages. One read never holds this while it waits for its reader, nor twice.
    pub(crate) async fn reserve(&self, rows: u64) -> Result<OwnedSemaphorePermit, ServiceError> {
        // A series with more rows than all reads may have gets its turn alone.
        let rows = u32::try_from(rows).unwrap_or(ROWS_MAX).min(ROWS_MAX);
        let permit = Arc::clone(&self.0).acquire_many_owned(rows).await;
        permit.map_err(|_| ServiceError::unavailable("the store is stopping"))
    }
}

/// Bytes of labels that wait to be merged, of all reads of a process.
const LABELS_MAX: usize = 512 << 20;

/// The memory of labels that reads share. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct LabelsInWait {
    used: Arc<AtomicUsize>,
    bytes_max: usize,
}

impl LabelsInWait {
    pub(crate) fn new() -> Self {
        Self::within(LABELS_MAX)
    }

    pub(crate) fn within(bytes_max: usize) -> Self {
        Self {
            used: Arc::default(),
            bytes_max,
        }
    }

    /// For another read, which has none yet.
    pub(crate) fn of_read(&self) -> WaitingLabels {
        WaitingLabels {
            all: self.clone(),
            own: 0,
        }
    }

    #[cfg(test)]
    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// What a read may have that has `own`: half of what others leave, so that some is left for each that comes.
    fn share(&self, used: usize, own: usize) -> usize {
        let others = used.saturating_sub(own);
        self.bytes_max.saturating_sub(others) / 2
    }
}

/// What one read has of it, until this goes.
#[derive(Debug)]
pub(crate) struct WaitingLabels {
    all: LabelsInWait,
    own: usize,
}

impl WaitingLabels {
    /// How many bytes it may have, as things are.
    pub(crate) fn bytes_max(&self) -> usize {
        self.all.share(self.all.used.load(Ordering::Relaxed), self.own)
    }

    /// Counts what it has now. What is less than before always fits; false where more is beyond its share.
    pub(crate) fn hold(&mut self, bytes: usize) -> bool {
        let own = self.own;
        let taken = |used: usize| {
            let fits = bytes <= own || bytes <= self.all.share(used, own);
            fits.then(|| used.saturating_sub(own).saturating_add(bytes))
        };
        let update = self
            .all
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken);
        if update.is_ok() {
            self.own = bytes;
        }
        update.is_ok()
    }

    /// Gives back what waits no more.
    pub(crate) fn release(&mut self, bytes: usize) {
        let bytes = bytes.min(self.own);
        self.own -= bytes;
        self.all.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for WaitingLabels {
    fn drop(&mut self) {
        self.all.used.fetch_sub(self.own, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i12_labels_of_all_reads_together_are_bounded_and_given_back() {
        let all = LabelsInWait::within(1000);
        let (mut first, mut second) = (all.of_read(), all.of_read());
        assert!(!first.hold(501) && first.hold(500));
        assert_eq!(second.bytes_max(), 250);
        assert!(!second.hold(251) && second.hold(250));
        // Who has more than its share by now keeps it, and takes no more.
        assert!(!first.hold(501) && first.hold(500) && first.hold(400));
        assert_eq!(second.bytes_max(), 300);
        drop(first);
        assert_eq!((second.bytes_max(), all.used()), (500, 250));
        // What waits no more is given back at once, and never more than there was.
        second.release(50);
        assert_eq!((all.used(), second.hold(500)), (200, true));
        second.release(501);
        assert_eq!(all.used(), 0);
        assert!(second.hold(1));
        drop(second);
        assert_eq!(all.used(), 0);
    }
}
