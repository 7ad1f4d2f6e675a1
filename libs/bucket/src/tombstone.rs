//! Deletions as a manifest lists them.

use std::collections::BTreeMap;

use koios_model::{BatchSet, MatchOp, Matcher, MatcherError, Matchers, PartitionId, TimeRange};

use crate::manifest::{ManifestBlock, Nonce};

/// Stands for the version of the commit under way.
pub(crate) const CHANGED: u64 = u64::MAX;

/// One matcher of a tombstone or of a rule of retention, as text.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct TombstoneMatcher {
    /// The label.
    pub name: String,
    /// How it compares.
    pub op: MatchOp,
    /// The value or pattern.
    pub value: String,
}

/// How far a deletion is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TombstoneState {
    /// Its samples are masked and can be brought back.
    #[default]
    Masked,
    /// Compaction removes them from blocks: it is too late to bring them back.
    Final,
    /// It was taken back.
    Undone,
}

/// A deletion asked for: it masks matching samples that existed when it was made, and no later ones.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Tombstone {
    /// Names it.
    pub id: Nonce,
    /// All must hold.
    pub matchers: Vec<TombstoneMatcher>,
    /// Sample times, closed.
    pub range: TimeRange,
    /// The version that first lists it: blocks listed before are masked.
    pub version: u64,
    /// The batches that heads held when it was made: of what heads hold, it deletes the samples of these only.
    pub covers: BTreeMap<PartitionId, BatchSet>,
    /// When it was asked for, by the clock of the process that was asked, milliseconds.
    #[serde(default)]
    pub at_ms: i64,
    /// Who asked, for people.
    #[serde(default)]
    pub by: String,
    /// How far it is.
    #[serde(default)]
    pub state: TombstoneState,
    /// The version that lists it in this state.
    #[serde(default)]
    pub changed: u64,
}

impl Tombstone {
    /// A deletion that no manifest lists yet.
    pub fn new(id: Nonce, matchers: &Matchers, range: TimeRange) -> Self {
        Self {
            id,
            matchers: texts(matchers),
            range,
            version: 0,
            covers: BTreeMap::new(),
            at_ms: 0,
            by: String::new(),
            state: TombstoneState::Masked,
            changed: 0,
        }
    }

    /// Whether it still has to be applied when the block is read: the block may hold samples that existed when it was
    /// made. Merged blocks say which tombstones they were cleaned of, and a head applies the tombstones
    /// it knows when it cuts, so later tombstones find nothing in a block but what existed before them, or what the head
    /// keeps beside it until it is cut once more.
    pub fn masks(&self, block: &ManifestBlock) -> bool {
        self.state != TombstoneState::Undone
            && self.version > block.clean_up_to
            && self.range.overlaps(&block.range)
    }

    /// Whether it is of all series and times, as that of a tenant is.
    pub fn deletes_everything(&self) -> bool {
        self.matchers.is_empty() && self.range == TimeRange::ALL
    }

    /// The version that last changed it: readers that know a later one know how it stands.
    pub fn known_from(&self) -> u64 {
        self.version.max(self.changed)
    }

    /// The matchers, compiled.
    ///
    /// # Errors
    /// [`MatcherError`] when a pattern does not compile, which a tombstone's maker has checked.
    pub fn matchers(&self) -> Result<Matchers, MatcherError> {
        compiled(&self.matchers)
    }
}

/// Matchers as text.
pub(crate) fn texts(matchers: &Matchers) -> Vec<TombstoneMatcher> {
    let text = |m: &Matcher| TombstoneMatcher {
        name: m.name().to_owned(),
        op: m.op(),
        value: m.value().to_owned(),
    };
    matchers.iter().map(text).collect()
}

/// Matchers that were text.
pub(crate) fn compiled(texts: &[TombstoneMatcher]) -> Result<Matchers, MatcherError> {
    let compile = |m: &TombstoneMatcher| Matcher::new(m.op, m.name.clone(), m.value.clone());
    texts.iter().map(compile).collect::<Result<_, _>>().map(Matchers)
}
