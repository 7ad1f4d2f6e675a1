//! Which partition takes a series: consistent hashing, by tokens that depend on the partition's number alone.

use std::fmt;
use std::hash::{BuildHasher, Hash, Hasher};

use hashring::HashRing;
use koios_model::{HashPurpose, PartitionId, SeriesHash, TenantId};
use xxhash_rust::xxh3::xxh3_64;

use crate::ClusterState;

/// Tokens each partition has on the ring.
pub const TOKENS_PER_PARTITION: u32 = 64;

/// An immutable ring. Built once per state version; callers swap it by `Arc`.
#[derive(Clone)]
pub struct Ring {
    ring: HashRing<Token, Identity>,
    partitions: usize,
    /// By the first [`Self::slot_bits`] bits of a position: where all of them lead that begin so. `None` where a token lies
    /// between them, and the ring itself must be asked: for one series in about [`SLOTS_PER_TOKEN`].
    slots: Vec<Option<PartitionId>>,
    slot_bits: u32,
}

/// How many times as many slots as tokens there are.
const SLOTS_PER_TOKEN: usize = 8;
/// Bits of the most slots: half a megabyte of them.
const SLOT_BITS_MAX: u32 = 16;

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ring({} partitions)", self.partitions)
    }
}

impl Ring {
    /// A ring of all partitions of a state.
    pub fn from_state(state: &ClusterState) -> Self {
        Self::of(state.partitions.keys().copied())
    }

    /// A ring of the given partitions.
    pub fn of(partitions: impl IntoIterator<Item = PartitionId>) -> Self {
        let mut ring = HashRing::with_hasher(Identity);
        let mut count = 0;
        let mut tokens = Vec::new();
        for partition in partitions {
            count += 1;
            tokens.extend((0..TOKENS_PER_PARTITION).map(|index| Token::new(partition, index)));
        }
        // Equal tokens (one chance in 2^64 per pair) keep this order, so that the ring never depends on the order of adding.
        tokens.sort_unstable_by_key(|t| (t.token, t.partition));
        tokens.dedup_by_key(|t| t.token);
        // Between tokens of one and the same partition there is nothing to decide.
        let deciding: &[Token] = if count > 1 { &tokens } else { &[] };
        let slot_bits = (deciding.len() * SLOTS_PER_TOKEN)
            .next_power_of_two()
            .ilog2()
            .clamp(1, SLOT_BITS_MAX);
        let mut with_tokens = vec![false; 1 << slot_bits];
        for token in deciding {
            with_tokens[slot(token.token, slot_bits)] = true;
        }
        ring.batch_add(tokens);
        let mut this = Self {
            ring,
            partitions: count,
            slots: Vec::new(),
            slot_bits,
        };
        let leads = |(i, has_token): (usize, bool)| match has_token {
            true => None,
            false => this.look_up((i as u64) << (u64::BITS - slot_bits)),
        };
        this.slots = with_tokens.into_iter().enumerate().map(leads).collect();
        this
    }

    /// The partition that takes a series; `None` when no partition has been formed.
    pub fn route(&self, series: SeriesHash) -> Option<PartitionId> {
        let position = series.mixed(HashPurpose::Routing);
        match self.slots[slot(position, self.slot_bits)] {
            Some(partition) => Some(partition),
            None => self.look_up(position),
        }
    }

    fn look_up(&self, position: u64) -> Option<PartitionId> {
        self.ring.get(&Position(position)).map(|t| t.partition)
    }
}

/// The slot of a position.
fn slot(position: u64, bits: u32) -> usize {
    (position >> (u64::BITS - bits)) as usize
}

/// The `size` partitions that take a tenant's series, ascending: those with the highest random weight for it, so that a
/// partition more or less moves no other.
pub fn tenant_shard(
    tenant: &TenantId,
    partitions: impl IntoIterator<Item = PartitionId>,
    size: usize,
) -> Vec<PartitionId> {
    let mut weighted: Vec<(u64, PartitionId)> = partitions
        .into_iter()
        .map(|partition| (weight(tenant, partition), partition))
        .collect();
    weighted.sort_unstable_by(|a, b| b.cmp(a));
    weighted.truncate(size);
    let mut chosen: Vec<PartitionId> = weighted.into_iter().map(|(_, partition)| partition).collect();
    chosen.sort_unstable();
    chosen
}

fn weight(tenant: &TenantId, partition: PartitionId) -> u64 {
    let mut bytes = b"koios tenant shard 1 ".to_vec();
    bytes.extend_from_slice(&partition.0.to_le_bytes());
    bytes.extend_from_slice(tenant.as_str().as_bytes());
    xxh3_64(&bytes)
}

/// A partition's token on the ring.
#[derive(Clone, Copy, Debug)]
struct Token {
    token: u64,
    partition: PartitionId,
}

impl Token {
    fn new(partition: PartitionId, index: u32) -> Self {
        let mut bytes = b"koios ring 1 ".to_vec();
        bytes.extend_from_slice(&partition.0.to_le_bytes());
        bytes.extend_from_slice(&index.to_le_bytes());
        Self {
            token: xxh3_64(&bytes),
            partition,
        }
    }
}

impl Hash for Token {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.token);
    }
}

struct Position(u64);

impl Hash for Position {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0);
    }
}

/// Tokens and positions are hashes already; the ring takes them as they are, so that placement is ours alone.
#[derive(Clone, Copy, Debug)]
struct Identity;

impl BuildHasher for Identity {
    type Hasher = IdentityHasher;

    fn build_hasher(&self) -> IdentityHasher {
        IdentityHasher(0)
    }
}

struct IdentityHasher(u64);

impl Hasher for IdentityHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // Only `write_u64` is called; anything else is mixed in so that it cannot go unnoticed.
        self.0 ^= xxh3_64(bytes);
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ring(partitions: u32) -> Ring {
        Ring::of((0..partitions).map(PartitionId))
    }

    fn keys(count: u128) -> impl Iterator<Item = SeriesHash> {
        (0..count).map(|i| SeriesHash(i.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)))
    }

    /// Data lies where this says: placements never change for a given set of partitions.
    #[test]
    fn placement_of_a_thousand_series_is_golden() {
        let ring = ring(7);
        let placed: String = keys(1000)
            .map(|key| ring.route(key).unwrap().to_string())
            .collect();
        assert_eq!(&placed[..64], GOLDEN_START);
        assert_eq!(xxh3_64(placed.as_bytes()), GOLDEN_HASH);
    }

    const GOLDEN_START: &str = "4012561512240615205321436636043256412204153310450550326622013566";
    const GOLDEN_HASH: u64 = 4_096_865_567_438_841_251;

    #[test]
    fn load_is_spread_within_a_factor_of_one_and_a_half() {
        let ring = ring(12);
        let mut load = [0_usize; 12];
        keys(120_000).for_each(|key| load[ring.route(key).unwrap().0 as usize] += 1);
        assert!(load.iter().all(|n| (5_000..15_000).contains(n)), "{load:?}");
    }

    #[test]
    fn slots_lead_where_the_ring_leads() {
        for partitions in [1, 2, 7, 40, 300] {
            let ring = ring(partitions);
            for key in keys(20_000) {
                let position = key.mixed(HashPurpose::Routing);
                assert_eq!(ring.route(key), ring.look_up(position));
            }
            // Around every token and at the ends of every slot.
            let tokens = (0..partitions)
                .flat_map(|p| (0..TOKENS_PER_PARTITION).map(move |i| Token::new(PartitionId(p), i).token));
            let starts = (0..ring.slots.len() as u64).map(|i| i << (u64::BITS - ring.slot_bits));
            for at in tokens.chain(starts) {
                for position in [at.wrapping_sub(1), at, at.wrapping_add(1)] {
                    let found = ring.slots[slot(position, ring.slot_bits)];
                    assert!(found.is_none() || found == ring.look_up(position));
                }
            }
        }
    }

    #[test]
    fn an_empty_ring_routes_nowhere() {
        assert_eq!(ring(0).route(SeriesHash(1)), None);
    }

    proptest! {
        #[test]
        fn a_new_partition_takes_series_but_moves_none_between_old_ones(old in 1_u32..20, start: u128) {
            let (before, after) = (ring(old), ring(old + 1));
            let mut moved = 0;
            for i in 0..1000_u128 {
                let key = SeriesHash(start.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
                let (was, is) = (before.route(key).unwrap(), after.route(key).unwrap());
                prop_assert!(was == is || is == PartitionId(old));
                moved += usize::from(was != is);
            }
            prop_assert!(moved < 2 * 1000 / (old as usize + 1) + 100, "{moved} of 1000 moved");
        }

        #[test]
        fn the_order_of_partitions_does_not_matter(mut order in Just((0..9).collect::<Vec<u32>>()).prop_shuffle(), key: u128) {
            let shuffled = Ring::of(order.iter().copied().map(PartitionId));
            order.sort_unstable();
            prop_assert_eq!(shuffled.route(SeriesHash(key)), ring(9).route(SeriesHash(key)));
        }

        #[test]
        fn a_tenants_shard_changes_by_at_most_one(partitions in 4_u32..40, size in 1_usize..4, name in "[a-z]{1,12}") {
            let tenant = TenantId::new(&name).unwrap();
            let before = tenant_shard(&tenant, (0..partitions).map(PartitionId), size);
            let after = tenant_shard(&tenant, (0..=partitions).map(PartitionId), size);
            prop_assert_eq!(before.len(), size);
            prop_assert!(after.iter().filter(|p| !before.contains(p)).count() <= 1);
        }
    }
}
