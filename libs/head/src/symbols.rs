//! Interned strings: each label name and value is held once per head.
//!
//! Senders choose the strings. So their hashes are keyed: nobody who does not know the seed can send many that collide.

use hashbrown::HashTable;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Strings by a dense id. A string lives while it is used; then its id is given to another.
#[derive(Debug, Default)]
pub(crate) struct Symbols {
    strings: Vec<Box<str>>,
    uses: Vec<u32>,
    table: HashTable<u32>,
    free: Vec<u32>,
    bytes: usize,
    seed: u64,
}

/// Bytes a symbol takes beside its text: box, use count, table entry, allocation.
const SYMBOL_OVERHEAD_BYTES: usize = 16 + 4 + 6 + 16;

fn hash(s: &str, seed: u64) -> u64 {
    xxh3_64_with_seed(s.as_bytes(), seed)
}

impl Symbols {
    /// None, with the key of their hashes.
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            seed,
            ..Self::default()
        }
    }

    /// The id of a string, if it is known.
    pub(crate) fn get(&self, s: &str) -> Option<u32> {
        self.table
            .find(hash(s, self.seed), |&id| self.resolve(id) == s)
            .copied()
    }

    /// The id of a string, new if need be. A new symbol has no use yet: the caller acquires it.
    pub(crate) fn intern(&mut self, s: &str) -> u32 {
        if let Some(id) = self.get(s) {
            return id;
        }
        let id = match self.free.pop() {
            Some(id) => id,
            None => {
                self.strings.push(Box::default());
                self.uses.push(0);
                (self.strings.len() - 1) as u32
            }
        };
        self.strings[id as usize] = s.into();
        self.bytes += s.len();
        let (strings, seed) = (&self.strings, self.seed);
        self.table
            .insert_unique(hash(s, seed), id, |&other| hash(&strings[other as usize], seed));
        id
    }

    /// The string of an id; "" for one that is not in use.
    pub(crate) fn resolve(&self, id: u32) -> &str {
        self.strings.get(id as usize).map_or("", |s| s)
    }

    /// The place of every symbol in string order, by id.
    pub(crate) fn ranks(&self) -> Vec<u32> {
        let mut ids: Vec<u32> = (0..self.strings.len() as u32).collect();
        ids.sort_unstable_by(|&a, &b| self.resolve(a).cmp(self.resolve(b)));
        let mut ranks = vec![0; ids.len()];
        for (rank, id) in ids.into_iter().enumerate() {
            ranks[id as usize] = rank as u32;
        }
        ranks
    }

    /// Notes one more use.
    pub(crate) fn acquire(&mut self, id: u32) {
        self.uses[id as usize] += 1;
    }

    /// Notes one use less; without any the string goes.
    pub(crate) fn release(&mut self, id: u32) {
        let uses = &mut self.uses[id as usize];
        *uses = uses.saturating_sub(1);
        if *uses > 0 {
            return;
        }
        let strings = &self.strings;
        let h = hash(&strings[id as usize], self.seed);
        if let Ok(entry) = self.table.find_entry(h, |&other| other == id) {
            entry.remove();
        }
        self.bytes -= self.strings[id as usize].len();
        self.strings[id as usize] = Box::default();
        self.free.push(id);
    }

    /// Gives back memory of strings that are gone: that of the last ids, and of the table.
    pub(crate) fn shrink(&mut self) {
        let used = self.uses.iter().rposition(|uses| *uses > 0);
        let len = used.map_or(0, |last| last + 1);
        self.free.retain(|&id| (id as usize) < len);
        self.free.sort_unstable_by(|a, b| b.cmp(a));
        self.strings.truncate(len);
        self.uses.truncate(len);
        self.strings.shrink_to_fit();
        self.uses.shrink_to_fit();
        self.free.shrink_to_fit();
        let (strings, seed) = (&self.strings, self.seed);
        self.table.shrink_to_fit(|&id| hash(&strings[id as usize], seed));
    }

    /// Estimate of the memory held.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.bytes + self.strings.capacity() * SYMBOL_OVERHEAD_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_that_collide_under_one_seed_do_not_under_another() {
        // Alike in the bits that choose a place in a table.
        let low = |s: &str, seed| hash(s, seed) & 0xff_ffff;
        let (mut met, mut pair) = (std::collections::HashMap::new(), None);
        for i in 0..100_000u32 {
            let s = format!("value-{i}");
            if let Some(before) = met.insert(low(&s, 0), s.clone()) {
                pair = Some((before, s));
                break;
            }
        }
        let (a, b) = pair.unwrap();
        assert_eq!(low(&a, 0), low(&b, 0));
        for seed in 1..100 {
            let symbols = Symbols::new(seed);
            assert_ne!(low(&a, symbols.seed), low(&b, symbols.seed));
        }
    }

    #[test]
    fn a_string_lives_while_it_is_used() {
        let mut s = Symbols::default();
        let a = s.intern("a");
        s.acquire(a);
        s.acquire(a);
        assert_eq!(s.intern("a"), a);
        s.release(a);
        assert_eq!((s.get("a"), s.resolve(a)), (Some(a), "a"));
        s.release(a);
        assert_eq!((s.get("a"), s.resolve(a)), (None, ""));
        assert_eq!(s.intern("b"), a);
        assert_eq!((s.get("a"), s.resolve(a)), (None, "b"));
    }
}
