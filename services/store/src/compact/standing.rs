//! What a compactor remembers of a tenant: above all the blocks that it leaves alone for a while, because they are damaged or
//! the storage does not hand them out.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use koios_block::BlockId;
use koios_bucket::Manifest;

use super::announced::Told;
use super::cleanup::SeenDead;
use super::plan::MergeJob;

/// How long a damaged block is left alone, and one with which a job failed.
const BAD_FOR: Duration = Duration::from_secs(6 * 3600);
/// Times that damage was found, hours apart, until nothing waits for the block: once it may have come in reading.
const DAMAGED_SURELY: u32 = 2;
/// Failed reads of a block after which it is the block, and not the moment.
const UNREAD_MAX: u32 = 3;
/// How long a block is left alone after fewer.
const UNREAD_PAUSE: Duration = Duration::from_secs(60);
/// How long after that many: it may be a right that somebody sets, or an archive that takes hours.
const UNREAD_FOR: Duration = Duration::from_secs(3600);
/// How long the blocks of a job wait whose new block was not stored as it was sent: it is written anew, however large it is, and what is
/// not listed of it leaves a dead name. Twice as long after each time, up to the longest.
const STORED_OTHERWISE_PAUSE: Duration = Duration::from_secs(600);
const STORED_OTHERWISE_LONGEST: Duration = BAD_FOR;

/// What is remembered of a tenant.
#[derive(Debug, Default)]
pub(super) struct TenantStanding {
    aside: BTreeMap<BlockId, Aside>,
    /// How often in a row what was made of some blocks together was not stored as it was sent.
    stored_otherwise: BTreeMap<BTreeSet<BlockId>, u32>,
    /// What is due first, and since when nothing was done about it.
    due: Option<(MergeJob, Duration)>,
    pub(super) told: Told,
    pub(super) dead: SeenDead,
    pub(super) history_dropped_below: u64,
    /// When uploads that were never listed are looked for next.
    pub(super) orphans_next: Option<Duration>,
    pub(super) deletions_looked_at: Option<Duration>,
    /// Blocks that have something of what final deletions delete, with the version of the last one for which that was looked up.
    pub(super) touched: BTreeMap<BlockId, u64>,
    /// Its retention is held against the settings.
    pub(super) is_held: bool,
    /// When it was last looked whether another process does what is due.
    pub(super) watched_at: Option<Duration>,
    /// When it was last told how it stands.
    pub(super) stood_at: Option<Duration>,
}

/// A block that is left alone.
#[derive(Clone, Copy, Debug)]
struct Aside {
    until: Duration,
    why: Why,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// It was found damaged so many times.
    Damaged(u32),
    /// A job with it failed and would fail again; the block may be whole.
    Failed,
    /// All of it is deleted.
    Empty,
    /// It could not be read so many times, and the bucket answers else.
    Unread(u32),
    /// Another block of the same job could not be read, or the new one was not stored as it was sent.
    Beside,
}

impl Why {
    fn is_pause(self) -> bool {
        match self {
            Self::Damaged(_) | Self::Failed | Self::Empty => false,
            Self::Unread(failures) => failures < UNREAD_MAX,
            Self::Beside => true,
        }
    }
}

impl TenantStanding {
    /// Forgets of blocks that are not listed any more.
    pub(super) fn keep_listed(&mut self, manifest: &Manifest) {
        self.aside.retain(|block, _| manifest.block(*block).is_some());
        self.stored_otherwise
            .retain(|inputs, _| inputs.iter().all(|block| manifest.block(*block).is_some()));
        self.touched.retain(|block, _| manifest.block(*block).is_some());
    }

    /// The blocks that are left alone now, as if they were not there.
    pub(super) fn bad(&mut self, now: Duration) -> BTreeSet<BlockId> {
        // The number of failures is still known when it is tried again.
        self.aside.retain(|_, aside| match aside.why {
            Why::Damaged(_) | Why::Unread(_) => aside.until.saturating_add(BAD_FOR) > now,
            Why::Failed | Why::Empty | Why::Beside => aside.until > now,
        });
        self.aside_now(now, |why| !why.is_pause())
    }

    /// The blocks of which no job is begun now. Its window waits with them, so that it is not merged without them.
    pub(super) fn paused(&self, now: Duration) -> BTreeSet<BlockId> {
        self.aside_now(now, Why::is_pause)
    }

    fn aside_now(&self, now: Duration, is_wanted: impl Fn(Why) -> bool) -> BTreeSet<BlockId> {
        let aside = self.aside.iter();
        let aside = aside.filter(|(_, aside)| aside.until > now && is_wanted(aside.why));
        aside.map(|(block, _)| *block).collect()
    }

    /// Those of them of which nothing more is to be had, so that nothing waits for them: surely damaged ones, and empty ones. What else
    /// cannot be summarised now may be later.
    pub(super) fn given_up(&mut self, now: Duration) -> BTreeSet<BlockId> {
        let is_given_up = |why: Why| match why {
            Why::Damaged(times) => times >= DAMAGED_SURELY,
            Why::Empty => true,
            Why::Failed | Why::Unread(_) | Why::Beside => false,
        };
        let mut bad = self.bad(now);
        bad.retain(|block| self.aside.get(block).is_some_and(|a| is_given_up(a.why)));
        bad
    }

    /// How many blocks are left alone for hours.
    pub(super) fn reported(&self, now: Duration) -> usize {
        let is_reported = |aside: &&Aside| match aside.why {
            Why::Damaged(_) | Why::Failed => aside.until > now,
            // Until it could be read, or nobody tried for long.
            Why::Unread(failures) => failures >= UNREAD_MAX,
            Why::Empty | Why::Beside => false,
        };
        self.aside.values().filter(is_reported).count()
    }

    /// Looks at a damaged block again after some hours only.
    pub(super) fn note_damaged(&mut self, block: BlockId, now: Duration) {
        let times = match self.aside.get(&block).map(|aside| aside.why) {
            Some(Why::Damaged(times)) => times.saturating_add(1),
            _ => 1,
        };
        self.put_aside([block], Why::Damaged(times), now);
    }

    /// Tries blocks again after some hours only, with which a job failed that would fail again.
    pub(super) fn note_failed(&mut self, blocks: impl IntoIterator<Item = BlockId>, now: Duration) {
        self.put_aside(blocks, Why::Failed, now);
    }

    /// Looks at blocks of which all is deleted after some hours only.
    pub(super) fn note_empty(&mut self, blocks: impl IntoIterator<Item = BlockId>, now: Duration) {
        self.put_aside(blocks, Why::Empty, now);
    }

    fn put_aside(&mut self, blocks: impl IntoIterator<Item = BlockId>, why: Why, now: Duration) {
        let until = now.saturating_add(BAD_FOR);
        let aside = Aside { until, why };
        self.aside.extend(blocks.into_iter().map(|block| (block, aside)));
    }

    /// Notes that a block of some could not be read: all of them wait, or, when it is not for the first time, this one alone. True in
    /// the latter case.
    pub(super) fn note_unread(
        &mut self,
        unread: BlockId,
        inputs: impl IntoIterator<Item = BlockId>,
        now: Duration,
    ) -> bool {
        let failures = match self.aside.get(&unread).map(|aside| aside.why) {
            Some(Why::Unread(failures)) => failures.saturating_add(1),
            _ => 1,
        };
        let is_it = failures >= UNREAD_MAX;
        let wait = if is_it { UNREAD_FOR } else { UNREAD_PAUSE };
        let until = now.saturating_add(wait);
        if !is_it {
            self.pause(inputs, until);
        }
        let why = Why::Unread(failures);
        self.aside.insert(unread, Aside { until, why });
        is_it
    }

    /// Notes that what was made of blocks was not stored as it was sent; gives how long they wait.
    pub(super) fn note_stored_otherwise(
        &mut self,
        inputs: impl IntoIterator<Item = BlockId>,
        now: Duration,
    ) -> Duration {
        let inputs: BTreeSet<BlockId> = inputs.into_iter().collect();
        let times = self.stored_otherwise.entry(inputs.clone()).or_default();
        let doubled = 1u32.checked_shl(*times).unwrap_or(u32::MAX);
        let wait = STORED_OTHERWISE_PAUSE
            .saturating_mul(doubled)
            .min(STORED_OTHERWISE_LONGEST);
        *times = times.saturating_add(1);
        self.pause(inputs, now.saturating_add(wait));
        wait
    }

    fn pause(&mut self, blocks: impl IntoIterator<Item = BlockId>, until: Duration) {
        for block in blocks {
            let beside = self.aside.entry(block).or_insert(Aside {
                until,
                why: Why::Beside,
            });
            beside.until = beside.until.max(until);
        }
    }

    /// Notes that blocks could be read, and what was made of them be stored.
    pub(super) fn note_read(&mut self, blocks: impl IntoIterator<Item = BlockId>) {
        for block in blocks {
            self.aside.remove(&block);
            self.stored_otherwise.retain(|inputs, _| !inputs.contains(&block));
        }
    }

    /// Notes what is due first; gives for how long nothing was done about it.
    pub(super) fn note_due(&mut self, first: Option<&MergeJob>, now: Duration) -> Duration {
        let since = match (&self.due, first) {
            (Some((before, since)), Some(first)) if before == first => *since,
            _ => now,
        };
        self.due = first.map(|job| (job.clone(), since));
        now.saturating_sub(since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u128) -> BlockId {
        BlockId::new(1, n)
    }

    #[test]
    fn i11_a_block_that_cannot_be_read_is_put_aside_alone_after_some_failures() {
        let mut standing = TenantStanding::default();
        let mut now = Duration::ZERO;
        let both = BTreeSet::from([id(1), id(2)]);
        for failure in 1..UNREAD_MAX {
            assert!(!standing.note_unread(id(1), both.clone(), now), "{failure}");
            assert_eq!(
                (
                    standing.bad(now).len(),
                    standing.paused(now),
                    standing.reported(now)
                ),
                (0, both.clone(), 0)
            );
            now += UNREAD_PAUSE;
            assert_eq!(standing.paused(now), BTreeSet::new());
        }
        assert!(standing.note_unread(id(1), both, now));
        assert_eq!(
            (standing.bad(now), standing.paused(now).len()),
            (BTreeSet::from([id(1)]), 0)
        );
        assert_eq!((standing.given_up(now).len(), standing.reported(now)), (0, 1));
        // It is tried again, and reported until it could be read.
        now += UNREAD_FOR;
        assert_eq!((standing.bad(now).len(), standing.reported(now)), (0, 1));
        assert!(standing.note_unread(id(1), [id(1)], now));
        standing.note_read([id(1)]);
        assert_eq!((standing.bad(now).len(), standing.reported(now)), (0, 0));
        assert!(!standing.note_unread(id(1), [id(1)], now), "from the start");
    }

    #[test]
    fn what_is_stored_otherwise_again_and_again_waits_longer_each_time() {
        let mut standing = TenantStanding::default();
        let mut now = Duration::ZERO;
        let both = BTreeSet::from([id(1), id(2)]);
        let mut minutes = Vec::new();
        for _ in 0..40 {
            let wait = standing.note_stored_otherwise(both.clone(), now);
            minutes.push(wait.as_secs() / 60);
            assert_eq!(standing.bad(now).len(), 0);
            assert_eq!(standing.paused(now + wait - Duration::from_secs(1)), both);
            now += wait;
            assert_eq!(standing.paused(now), BTreeSet::new());
        }
        assert_eq!(minutes[..8], [10, 20, 40, 80, 160, 320, 360, 360]);
        assert_eq!(minutes.last(), Some(&360));
        // Others, and what is made of more of them, begin anew; and so do these once it went well.
        for others in [BTreeSet::from([id(3)]), BTreeSet::from([id(1), id(2), id(3)])] {
            let wait = standing.note_stored_otherwise(others, now);
            assert_eq!(wait, STORED_OTHERWISE_PAUSE);
        }
        standing.note_read([id(2)]);
        assert_eq!(standing.note_stored_otherwise(both, now), STORED_OTHERWISE_PAUSE);
        standing.keep_listed(&Manifest::empty(koios_model::TenantId::anonymous()));
        assert!(standing.stored_otherwise.is_empty());
    }

    #[test]
    fn i10_only_what_was_found_damaged_hours_apart_is_given_up() {
        let mut standing = TenantStanding::default();
        let mut now = Duration::ZERO;
        for times in 1..=3 {
            standing.note_damaged(id(1), now);
            standing.note_failed([id(2), id(3)], now);
            let all = BTreeSet::from([id(1), id(2), id(3)]);
            assert_eq!((standing.bad(now), standing.reported(now)), (all, 3));
            assert_eq!(standing.given_up(now).contains(&id(1)), times > 1, "{times}");
            assert!(!standing.given_up(now).contains(&id(2)));
            now += BAD_FOR;
            assert_eq!((standing.bad(now).len(), standing.given_up(now).len()), (0, 0));
        }
        standing.note_read([id(1)]);
        standing.note_damaged(id(1), now);
        assert_eq!(standing.given_up(now).len(), 0, "from the start");
        standing.note_empty([id(4)], now);
        assert_eq!(
            (standing.given_up(now), standing.reported(now)),
            (BTreeSet::from([id(4)]), 1)
        );
    }
}
