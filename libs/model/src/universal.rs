//! Whether a pattern is matched by everything.

use regex_syntax::hir::{Class, Hir, HirKind, Look};

/// Most spans of lengths that are kept of a part of a pattern: of one that has more, some are forgotten.
const SPANS_MAX: usize = 8;

/// Lengths of strings, in characters: from the first to the last one, or to any where there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Span {
    from: u64,
    to: Option<u64>,
}

impl Span {
    const EMPTY: Self = Self::new(0, Some(0));
    const ONE: Self = Self::new(1, Some(1));

    const fn new(from: u64, to: Option<u64>) -> Self {
        Self { from, to }
    }

    fn plus(self, other: Self) -> Self {
        let to = self.to.zip(other.to).map(|(a, b)| a.saturating_add(b));
        Self::new(self.from.saturating_add(other.from), to)
    }

    /// The lengths of so many strings of these lengths, one after the other. Of strings of two characters and more not all are told.
    fn repeated(self, min: u64, max: Option<u64>) -> Self {
        let to = match (self.to, max) {
            (Some(0), _) | (_, Some(0)) => Some(0),
            (Some(to), Some(max)) => Some(to.saturating_mul(max)),
            (None, _) | (_, None) => None,
        };
        match self.from {
            _ if max == Some(0) => Self::EMPTY,
            0 => Self::new(0, to),
            1 => Self::new(min, to),
            // Between what some and one more of them have there may be gaps.
            from => Self::new(from, self.to).times(min.max(1)),
        }
    }

    fn times(self, count: u64) -> Self {
        Self::new(
            self.from.saturating_mul(count),
            self.to.map(|to| to.saturating_mul(count)),
        )
    }
}

/// Whether a pattern that has to match all of a string matches every one that is not empty. Never wrongly true.
pub(crate) fn matches_all_but_empty(pattern: &Hir) -> bool {
    lengths(within_anchors(pattern).as_slice()).contains_all_from(1)
}

/// The parts of a pattern, less the anchors that it has at its ends in vain.
fn within_anchors(pattern: &Hir) -> Vec<&Hir> {
    let mut parts: Vec<&Hir> = match pattern.kind() {
        HirKind::Concat(parts) => parts.iter().collect(),
        _ => vec![pattern],
    };
    let is = |part: Option<&&Hir>, look: Look| part.is_some_and(|p| *p.kind() == HirKind::Look(look));
    while is(parts.first(), Look::Start) {
        parts.remove(0);
    }
    while is(parts.last(), Look::End) {
        parts.pop();
    }
    parts
}

/// The lengths of which a pattern matches every string, ascending; no span touches the one before.
#[derive(Clone, Debug, Default)]
struct Lengths(Vec<Span>);

impl Lengths {
    fn of(spans: impl IntoIterator<Item = Span>) -> Self {
        let mut all: Vec<Span> = spans.into_iter().collect();
        all.sort_unstable();
        let mut united: Vec<Span> = Vec::with_capacity(all.len());
        for span in all {
            match united.last_mut() {
                Some(last) if last.to.is_none_or(|to| span.from <= to.saturating_add(1)) => {
                    last.to = last.to.zip(span.to).map(|(a, b)| a.max(b));
                }
                _ => united.push(span),
            }
        }
        united.truncate(SPANS_MAX);
        Self(united)
    }

    fn contains_all_from(&self, length: u64) -> bool {
        self.0.iter().any(|span| span.from <= length && span.to.is_none())
    }
}

/// Of strings that match some patterns one after the other. Depth is bounded by the parser's nest limit.
fn lengths(parts: &[&Hir]) -> Lengths {
    let mut all = Lengths::of([Span::EMPTY]);
    for part in parts {
        let more = lengths_of(part);
        let sums = all.0.iter().flat_map(|a| more.0.iter().map(move |b| a.plus(*b)));
        all = Lengths::of(sums);
    }
    all
}

fn lengths_of(pattern: &Hir) -> Lengths {
    match pattern.kind() {
        HirKind::Empty => Lengths::of([Span::EMPTY]),
        HirKind::Class(Class::Unicode(class)) => {
            let all = class.iter().any(|r| r.start() == '\0' && r.end() == char::MAX);
            Lengths::of(all.then_some(Span::ONE))
        }
        HirKind::Repetition(repetition) => {
            let (min, max) = (u64::from(repetition.min), repetition.max.map(u64::from));
            let once = lengths_of(&repetition.sub);
            let none = (min == 0).then_some(Span::EMPTY);
            let some = once.0.iter().map(|span| span.repeated(min, max));
            Lengths::of(some.chain(none))
        }
        HirKind::Capture(capture) => lengths_of(&capture.sub),
        HirKind::Concat(parts) => lengths(&parts.iter().collect::<Vec<_>>()),
        HirKind::Alternation(parts) => Lengths::of(parts.iter().flat_map(|part| lengths_of(part).0)),
        HirKind::Literal(_) | HirKind::Class(Class::Bytes(_)) | HirKind::Look(_) => Lengths::default(),
    }
}
