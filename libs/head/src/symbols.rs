//! Interned strings: each label name and value is held once per head.

use hashbrown::HashTable;
use xxhash_rust::xxh3::xxh3_64;

/// Strings by a dense id. A string lives while it is used; then its id is given to another.
#[derive(Debug, Default)]
pub(crate) struct Symbols {
    strings: Vec<Box<str>>,
    uses: Vec<u32>,
    table: HashTable<u32>,
    free: Vec<u32>,
    bytes: usize,
}

/// Bytes a symbol takes beside its text: box, use count, table entry, allocation.
const SYMBOL_OVERHEAD_BYTES: usize = 16 + 4 + 6 + 16;

fn hash(s: &str) -> u64 {
    xxh3_64(s.as_bytes())
}

impl Symbols {
    /// The id of a string, if it is known.
    pub(crate) fn get(&self, s: &str) -> Option<u32> {
        self.table.find(hash(s), |&id| self.resolve(id) == s).copied()
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
        let strings = &self.strings;
        self.table
            .insert_unique(hash(s), id, |&other| hash(&strings[other as usize]));
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
        let h = hash(&strings[id as usize]);
        if let Ok(entry) = self.table.find_entry(h, |&other| other == id) {
            entry.remove();
        }
        self.bytes -= self.strings[id as usize].len();
        self.strings[id as usize] = Box::default();
        self.free.push(id);
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
