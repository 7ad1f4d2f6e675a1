//! Labels that all series of a block have and its index does not show.

use std::collections::VecDeque;

use koios_model::Labels;

/// Adds one label to series that come in label order, and gives them in the label order of the result.
///
/// What the label changes of the order: a series all of whose labels sort before it goes behind those that begin with the same
/// labels and go on with another one that sorts before it, too. They follow at once, so the series waits until they are past;
/// those that wait begin with one another, so there are never more than a series has labels.
#[derive(Debug)]
pub(crate) struct AddLabel<T> {
    name: String,
    value: String,
    /// Without the new label, the longest last.
    waiting: Vec<(Labels, T)>,
}

impl<T> AddLabel<T> {
    pub(crate) fn new(name: String, value: String) -> Self {
        Self {
            name,
            value,
            waiting: Vec::new(),
        }
    }

    /// Takes a series; `out` gets those whose turn it is. Gives back one that has such a label already.
    pub(crate) fn push(
        &mut self,
        labels: Labels,
        of: T,
        out: &mut VecDeque<(Labels, T)>,
    ) -> Result<(), Labels> {
        if labels.get(&self.name).is_some() {
            return Err(labels);
        }
        while self
            .waiting
            .last()
            .is_some_and(|(shorter, _)| !self.passes(shorter, &labels))
        {
            self.release(out);
        }
        if labels.iter().all(|(name, _)| name < self.name.as_str()) {
            self.waiting.push((labels, of));
        } else {
            out.push_back((self.with(&labels), of));
        }
        Ok(())
    }

    /// After the last series: those that still wait.
    pub(crate) fn finish(&mut self, out: &mut VecDeque<(Labels, T)>) {
        while !self.waiting.is_empty() {
            self.release(out);
        }
    }

    /// Those that wait.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = &T> {
        self.waiting.iter().map(|(_, of)| of)
    }

    fn release(&mut self, out: &mut VecDeque<(Labels, T)>) {
        if let Some((labels, of)) = self.waiting.pop() {
            out.push_back((self.with(&labels), of));
        }
    }

    /// Whether `longer` begins with `shorter` and goes on with a label before the new one.
    fn passes(&self, shorter: &Labels, longer: &Labels) -> bool {
        let mut rest = longer.iter();
        shorter.iter().all(|pair| rest.next() == Some(pair))
            && rest.next().is_some_and(|(name, _)| name < self.name.as_str())
    }

    fn with(&self, labels: &Labels) -> Labels {
        let mut builder = labels.to_builder();
        builder.set(&self.name, &self.value);
        builder.build()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn series_stay_in_label_order(
            sets in proptest::collection::btree_set(
                proptest::collection::btree_map("[abdeg]", "[xyz]", 0..5).prop_map(Labels::from_pairs), 0..60),
        ) {
            let mut add: Vec<AddLabel<usize>> = ["c", "f"].map(|n| AddLabel::new(n.to_owned(), "1".to_owned())).into();
            let (mut given, mut last) = (Vec::new(), VecDeque::new());
            let mut feed = |between: &mut VecDeque<(Labels, usize)>, end: bool| {
                while let Some((labels, n)) = between.pop_front() {
                    add[1].push(labels, n, &mut last).unwrap();
                }
                if end {
                    add[1].finish(&mut last);
                }
            };
            let mut first = AddLabel::new("c".to_owned(), "1".to_owned());
            let mut between = VecDeque::new();
            for (n, labels) in sets.iter().enumerate() {
                first.push(labels.clone(), n, &mut between).unwrap();
                prop_assert!(first.waiting.len() <= 4);
                feed(&mut between, false);
            }
            first.finish(&mut between);
            feed(&mut between, true);
            given.extend(last);
            let expected: BTreeSet<Labels> = sets
                .iter()
                .map(|l| Labels::from_pairs(l.iter().chain([("c", "1"), ("f", "1")])))
                .collect();
            let labels: Vec<Labels> = given.iter().map(|(l, _)| l.clone()).collect();
            prop_assert_eq!(labels, expected.into_iter().collect::<Vec<_>>());
            let mut numbers: Vec<usize> = given.iter().map(|(_, n)| *n).collect();
            numbers.sort_unstable();
            prop_assert_eq!(numbers, (0..sets.len()).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_series_with_such_a_label_is_given_back() {
        let mut add = AddLabel::new("cluster".to_owned(), "a".to_owned());
        let labels = Labels::from_pairs([("cluster", "b")]);
        assert_eq!(add.push(labels.clone(), (), &mut VecDeque::new()), Err(labels));
    }
}
