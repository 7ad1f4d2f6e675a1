//! Which store reads which block: the living store with the highest random weight for it.

use koios_model::random_weight;

use super::super::topology::StoreMember;
use super::board::Health;

/// Reads under way at a store from which on a block's next owner may take over.
const BUSY: usize = 8;

/// A store as it stands when blocks are shared out.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) store: StoreMember,
    /// Whether it answered when it was last asked.
    pub(super) health: Health,
    /// Reads of this querier under way there.
    pub(super) under_way: usize,
}

/// Blocks for one store.
#[derive(Clone, Debug)]
pub(super) struct BlockGroup {
    pub(super) blocks: Vec<String>,
    pub(super) store: StoreMember,
}

/// Shares blocks out, each to one of its owners, which are the `replication` living stores of the highest weight: to the
/// first, whose caches are warm, unless that one has far more to do than another. Where no candidate is up all of them
/// count as living, for what was seen of them may be past. No groups when there are no candidates.
pub(super) fn share_out(
    blocks: Vec<String>,
    candidates: &[Candidate],
    replication: usize,
) -> Vec<BlockGroup> {
    let is_living = |c: &&Candidate| c.health != Health::Down;
    let mut living: Vec<&Candidate> = candidates.iter().filter(is_living).collect();
    if living.is_empty() {
        living = candidates.iter().collect();
    }
    let mut groups: Vec<BlockGroup> = Vec::new();
    for block in blocks {
        let Some(chosen) = choose(&owners(&block, &living, replication)) else {
            return Vec::new();
        };
        match groups.iter_mut().find(|g| g.store.name == chosen.store.name) {
            Some(group) => group.blocks.push(block),
            None => groups.push(BlockGroup {
                blocks: vec![block],
                store: chosen.store.clone(),
            }),
        }
    }
    groups
}

/// All blocks for one store: an owner of the first block.
pub(super) fn keep_together(blocks: Vec<String>, candidates: &[Candidate]) -> Vec<BlockGroup> {
    let first = blocks.iter().take(1).cloned().collect();
    let chosen = share_out(first, candidates, 1).pop();
    let whole = chosen.map(|BlockGroup { store, .. }| BlockGroup { blocks, store });
    whole.into_iter().collect()
}

/// The owners of a block, first the one with the highest weight.
fn owners<'c>(block: &str, living: &[&'c Candidate], replication: usize) -> Vec<&'c Candidate> {
    let weigh = |c: &&'c Candidate| (random_weight(&c.store.name, block), *c);
    let mut ranked: Vec<_> = living.iter().map(weigh).collect();
    ranked.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.store.name.cmp(&b.1.store.name)));
    ranked.truncate(replication.max(1));
    ranked.into_iter().map(|(_, c)| c).collect()
}

/// The first owner, unless another is less than half as busy.
fn choose<'c>(owners: &[&'c Candidate]) -> Option<&'c Candidate> {
    let first = *owners.first()?;
    let idlest = owners.iter().copied().min_by_key(|c| c.under_way)?;
    let is_crowded = first.under_way >= BUSY && idlest.under_way < first.under_way / 2;
    Some(if is_crowded { idlest } else { first })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::super::super::mock::MockStore;
    use super::*;

    fn stores(count: usize) -> Vec<Candidate> {
        let store = |i| Candidate {
            store: StoreMember {
                name: format!("store-{i}"),
                client: Arc::new(MockStore::default()),
            },
            health: Health::Up,
            under_way: 0,
        };
        (0..count).map(store).collect()
    }

    /// As many names as a tenant has after some years.
    fn blocks() -> Vec<String> {
        (0..3000u64)
            .map(|i| {
                format!(
                    "01JD{:022}",
                    i.wrapping_mul(0x9e37_79b9_7f4a_7c15) % 1_000_000_007
                )
            })
            .collect()
    }

    /// The store of each block.
    fn shared(candidates: &[Candidate]) -> BTreeMap<String, String> {
        let groups = share_out(blocks(), candidates, 2);
        let of_group = |g: BlockGroup| {
            let name = g.store.name;
            g.blocks.into_iter().map(move |b| (b, name.clone()))
        };
        groups.into_iter().flat_map(of_group).collect()
    }

    #[test]
    fn i4_every_block_goes_to_one_store_and_none_is_left_out() {
        for count in 1..8 {
            let groups = share_out(blocks(), &stores(count), 2);
            let all: Vec<_> = groups.iter().flat_map(|g| g.blocks.clone()).collect();
            assert_eq!(all.len(), blocks().len());
            assert_eq!(shared(&stores(count)).len(), blocks().len());
        }
        assert!(share_out(blocks(), &[], 2).is_empty());
    }

    #[test]
    fn stores_get_even_shares() {
        for count in [2, 3, 5, 10] {
            let fair = blocks().len() / count;
            for group in share_out(blocks(), &stores(count), 2) {
                let (share, store) = (group.blocks.len(), &group.store.name);
                let is_fair = (fair * 4 / 5..=fair * 6 / 5).contains(&share);
                assert!(is_fair, "{store} of {count} has {share}, fair were {fair}");
            }
        }
    }

    #[test]
    fn a_store_that_comes_or_goes_moves_only_blocks_of_its_own() {
        let (few, many) = (shared(&stores(4)), shared(&stores(5)));
        let moved: Vec<_> = few.iter().filter(|(b, s)| many[*b] != **s).collect();
        assert!(moved.iter().all(|(b, _)| many[*b] == "store-4"));
        let fair = few.len() / 5;
        assert!(
            (fair * 4 / 5..=fair * 6 / 5).contains(&moved.len()),
            "{} moved",
            moved.len()
        );
        // One that is down leaves its blocks to the others, and nobody else's move.
        let mut candidates = stores(5);
        candidates[4].health = Health::Down;
        assert_eq!(shared(&candidates), few);
        // With none up all are asked again.
        candidates.iter_mut().for_each(|c| c.health = Health::Down);
        assert_eq!(shared(&candidates), many);
    }

    #[test]
    fn what_goes_to_a_second_owner_is_spread_over_all() {
        let all = shared(&stores(5));
        let mut without = stores(5);
        without[0].health = Health::Down;
        let after = shared(&without);
        let mut inherited = BTreeMap::<&str, usize>::new();
        for (block, _) in all.iter().filter(|(_, s)| *s == "store-0") {
            *inherited.entry(&after[block]).or_default() += 1;
        }
        assert_eq!(inherited.len(), 4, "{inherited:?}");
    }

    #[test]
    fn a_crowded_owner_hands_over_to_the_next_one() {
        let blocks = vec!["01JD0000000000000000000001".to_owned()];
        let mut candidates = stores(3);
        let chosen = |candidates: &[Candidate], replication| {
            let groups = share_out(blocks.clone(), candidates, replication);
            groups[0].store.name.clone()
        };
        let first = chosen(&candidates, 2);
        let at = candidates.iter().position(|c| c.store.name == first).unwrap();
        candidates[at].under_way = 7;
        assert_eq!(chosen(&candidates, 2), first);
        candidates[at].under_way = 8;
        assert_ne!(chosen(&candidates, 2), first);
        assert_eq!(chosen(&candidates, 1), first);
        // As busy as it is, the other one is too.
        candidates.iter_mut().for_each(|c| c.under_way = 8);
        assert_eq!(chosen(&candidates, 2), first);
    }
}
