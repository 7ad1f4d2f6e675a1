//! The one 128-bit hash of a series, and the independent values derived from it.
//!
//! `SeriesHash = XXH3-128(packed labels, seed = TenantSeed)`, `TenantSeed = XXH3-64(cluster secret ‖ 0x00 ‖ tenant)`.
//! A series' identity is its label set, never this hash: it routes, shards and serves as a reference that is checked.

use xxhash_rust::xxh3::{xxh3_64, xxh3_128_with_seed};

use crate::{LabelsRef, TenantId};

/// Seed that keys the hashes of one tenant in one cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TenantSeed(u64);

impl TenantSeed {
    /// Derives the seed from the cluster's secret and the tenant.
    pub fn new(cluster_secret: &[u8], tenant: &TenantId) -> Self {
        let mut bytes = Vec::with_capacity(cluster_secret.len() + 1 + tenant.as_str().len());
        bytes.extend_from_slice(cluster_secret);
        bytes.push(0);
        bytes.extend_from_slice(tenant.as_str().as_bytes());
        Self(xxh3_64(&bytes))
    }
}

/// How much a candidate is wanted for a key: whoever has the highest weight of all takes it, so that one that comes or goes moves
/// only keys of its own (highest random weight).
pub fn random_weight(candidate: &str, key: &str) -> u64 {
    let mut bytes = Vec::with_capacity(candidate.len() + key.len() + 1);
    bytes.extend_from_slice(candidate.as_bytes());
    bytes.push(0);
    bytes.extend_from_slice(key.as_bytes());
    xxh3_64(&bytes)
}

/// The 128-bit hash of (tenant, labels): a series' reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct SeriesHash(pub u128);

/// What a mixed value of the hash is for; each purpose gets an independent value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashPurpose {
    /// Which partition takes the series.
    Routing,
    /// Which shard of a head owns it.
    HeadShard,
    /// Which query shard evaluates it.
    QueryShard,
    /// Which block of a split tenant holds it.
    BlockSplit,
}

impl SeriesHash {
    /// Hashes a packed label set.
    pub fn new(seed: TenantSeed, labels: LabelsRef<'_>) -> Self {
        Self(xxh3_128_with_seed(labels.packed(), seed.0))
    }

    /// Hashes labels in another encoding than ours. Such a hash names nothing that is kept; it recognises the same bytes, and
    /// is trusted to: nobody who does not know the seed can make others that hash alike.
    pub fn of_encoded(seed: TenantSeed, labels: &[u8]) -> Self {
        // Apart from those of packed labels.
        Self(xxh3_128_with_seed(labels, !seed.0))
    }

    /// A 64-bit value for one purpose, independent of those for the others (splitmix64 finaliser over both halves).
    pub fn mixed(self, purpose: HashPurpose) -> u64 {
        let salt = match purpose {
            HashPurpose::Routing => 0x9e37_79b9_7f4a_7c15,
            HashPurpose::HeadShard => 0xc2b2_ae3d_27d4_eb4f,
            HashPurpose::QueryShard => 0x1656_67b1_9e37_79f9,
            HashPurpose::BlockSplit => 0x27d4_eb2f_1656_67c5,
        };
        let mut z = (self.0 as u64) ^ ((self.0 >> 64) as u64).rotate_left(31) ^ salt;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Labels;

    /// Stored and routed data depend on these values: they never change.
    #[test]
    fn hash_is_stable() {
        let seed = TenantSeed::new(b"secret", &TenantId::new("anonymous").unwrap());
        let labels = Labels::from_pairs([("__name__", "up"), ("job", "node")]);
        let h = SeriesHash::new(seed, labels.as_ref());
        assert_eq!(format!("{:032x}", h.0), "8eb5b0c5800c16c3a288c1292ca41073");
        let mixed = [
            HashPurpose::Routing,
            HashPurpose::HeadShard,
            HashPurpose::QueryShard,
            HashPurpose::BlockSplit,
        ]
        .map(|p| h.mixed(p));
        assert_eq!(mixed.iter().collect::<std::collections::BTreeSet<_>>().len(), 4);
    }
}
