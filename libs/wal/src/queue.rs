//! What waits for the committer: one queue per tenant, served in turn by bytes.

use std::collections::{BTreeMap, VecDeque};

use koios_model::TenantId;

/// Bytes that one tenant may add to a group before the next one has its turn.
const QUANTUM_BYTES: usize = 64 << 10;

/// One queue's key; the system's own records go first.
pub(crate) type QueueKey = Option<TenantId>;

#[derive(Debug)]
struct Waiting<T> {
    /// With bytes and weight.
    items: VecDeque<(usize, usize, T)>,
    weight: usize,
    /// Bytes it may still take in this turn.
    deficit: usize,
}

/// Deficit round robin over tenants.
#[derive(Debug)]
pub(crate) struct FairQueue<T> {
    queues: BTreeMap<QueueKey, Waiting<T>>,
    turns: VecDeque<QueueKey>,
    weight: usize,
    len: usize,
}

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        Self {
            queues: BTreeMap::new(),
            turns: VecDeque::new(),
            weight: 0,
            len: 0,
        }
    }
}

impl<T> FairQueue<T> {
    /// Memory of everything that waits.
    pub(crate) fn weight(&self) -> usize {
        self.weight
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Memory of what waits under one key.
    pub(crate) fn weight_of(&self, key: &QueueKey) -> usize {
        self.queues.get(key).map_or(0, |q| q.weight)
    }

    /// Queues an item that takes `bytes` in a group and `weight` of memory while it waits.
    pub(crate) fn push(&mut self, key: QueueKey, bytes: usize, weight: usize, item: T) {
        let queue = self.queues.entry(key.clone()).or_insert_with(|| Waiting {
            items: VecDeque::new(),
            weight: 0,
            deficit: 0,
        });
        if queue.items.is_empty() {
            if key.is_none() {
                self.turns.push_front(key);
            } else {
                self.turns.push_back(key);
            }
        }
        queue.items.push_back((bytes, weight, item));
        queue.weight += weight;
        self.weight += weight;
        self.len += 1;
    }

    /// Takes up to `bytes_max`, at least one item when there is any.
    pub(crate) fn take(&mut self, bytes_max: usize) -> Vec<T> {
        let (mut out, mut taken) = (Vec::new(), 0usize);
        while let Some(key) = self.turns.pop_front() {
            let Some(queue) = self.queues.get_mut(&key) else {
                continue;
            };
            queue.deficit += QUANTUM_BYTES;
            let mut full = false;
            while let Some(&(bytes, _, _)) = queue.items.front() {
                if !out.is_empty() && taken.saturating_add(bytes) > bytes_max {
                    full = true;
                    break;
                }
                // The first item of a turn goes whatever its size, else a large one would wait for many turns and a
                // group could stay empty; its size is paid back by the turns after.
                if bytes > queue.deficit && !out.is_empty() {
                    break;
                }
                let Some((bytes, weight, item)) = queue.items.pop_front() else {
                    break;
                };
                queue.deficit = queue.deficit.saturating_sub(bytes);
                queue.weight -= weight;
                self.weight -= weight;
                self.len -= 1;
                taken = taken.saturating_add(bytes);
                out.push(item);
            }
            if queue.items.is_empty() {
                self.queues.remove(&key);
            } else if full {
                self.turns.push_front(key);
                break;
            } else {
                self.turns.push_back(key);
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> QueueKey {
        Some(TenantId::new(name).unwrap())
    }

    #[test]
    fn i6_a_backlog_of_one_tenant_does_not_delay_another() {
        let mut q = FairQueue::default();
        for i in 0..1000 {
            q.push(key("noisy"), 10_000, 1, ("noisy", i));
        }
        q.push(key("quiet"), 10_000, 1, ("quiet", 0));
        let group = q.take(1 << 20);
        assert!(group.contains(&("quiet", 0)), "{group:?}");
        assert!(group.len() < 110);
    }

    #[test]
    fn takes_everything_once_and_in_order_per_tenant() {
        let mut q = FairQueue::default();
        for i in 0..50usize {
            q.push(key(["a", "b", "c"][i % 3]), 1 + i * 7919 % 200_000, i, (i % 3, i));
        }
        let mut seen = Vec::new();
        while q.len() > 0 {
            let group = q.take(300_000);
            assert!(!group.is_empty());
            seen.extend(group);
        }
        assert_eq!((q.weight(), seen.len()), (0, 50));
        for tenant in 0..3 {
            let of: Vec<_> = seen
                .iter()
                .filter(|(t, _)| *t == tenant)
                .map(|(_, i)| *i)
                .collect();
            assert!(of.is_sorted());
        }
    }

    #[test]
    fn a_record_larger_than_a_group_goes_alone() {
        let mut q = FairQueue::default();
        q.push(key("a"), 10 << 20, 0, 1);
        q.push(key("a"), 1, 0, 2);
        assert_eq!(q.take(1 << 20), [1]);
        assert_eq!(q.take(1 << 20), [2]);
    }
}
