//! Which sample is written when, and so where it ends up.

/// A sample's place in what a script loads at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// Which series of the load.
    pub(crate) series: usize,
    /// Which sample of the series.
    pub(crate) sample: usize,
    /// How far the sample is into the load's time range, in thousandths.
    pub(crate) permille: i64,
}

/// How samples are spread over heads and blocks. They are written in steps; after each but the last, all that the head
/// holds is cut into blocks and forgotten.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    /// For messages.
    pub(crate) name: &'static str,
    /// Whether the last step is cut, too.
    pub(crate) all_cut: bool,
    /// Whether blocks are then compacted as far as they can be.
    pub(crate) compacted: bool,
    /// How many stores read them.
    pub(crate) stores: usize,
    /// The steps in which a sample is written, ascending.
    pub(crate) steps_of: fn(Place) -> &'static [usize],
}

/// How many steps a layout may have.
pub(crate) const STEPS_MAX: usize = 4;

fn first_if(first: bool) -> &'static [usize] {
    if first { &[0] } else { &[1] }
}

const fn head_and_blocks(name: &'static str, steps_of: fn(Place) -> &'static [usize]) -> Layout {
    Layout {
        name,
        all_cut: false,
        compacted: false,
        stores: 1,
        steps_of,
    }
}

/// Everything in the head.
pub(crate) const HEAD: Layout = head_and_blocks("head only", |_| &[0]);

/// Everything in blocks.
pub(crate) const BLOCKS: Layout = Layout {
    name: "blocks only",
    all_cut: true,
    compacted: false,
    stores: 1,
    steps_of: |_| &[0],
};

/// One border in the middle.
pub(crate) const MIDDLE: Layout = head_and_blocks("cut in the middle", |p| first_if(p.permille <= 500));

/// The oldest in blocks that are compacted, the rest in a head.
const COMPACTED_AND_HEAD: Layout = Layout {
    compacted: true,
    ..head_and_blocks("three compacted blocks and a head", |p| match p.permille {
        ..250 => &[0],
        250..510 => &[1],
        510..760 => &[2],
        _ => &[3],
    })
};

/// Overlapping blocks, some samples in several, all compacted.
pub(crate) const COMPACTED: Layout = Layout {
    name: "compacted blocks only",
    all_cut: true,
    compacted: true,
    stores: 1,
    steps_of: |p| match (p.sample + p.series) % 4 {
        0 => &[0],
        1 => &[1],
        2 => &[0, 1, 2],
        _ => &[2],
    },
};

/// The same blocks as they were cut, each read by one of three stores.
pub(crate) const THREE_STORES: Layout = Layout {
    name: "blocks only, three stores",
    compacted: false,
    stores: 3,
    ..COMPACTED
};

/// All layouts.
pub(crate) const ALL: [Layout; 14] = [
    COMPACTED,
    THREE_STORES,
    Layout {
        name: "compacted blocks only, four stores",
        stores: 4,
        ..COMPACTED
    },
    COMPACTED_AND_HEAD,
    HEAD,
    BLOCKS,
    MIDDLE,
    head_and_blocks("cut after a third", |p| first_if(p.permille < 333)),
    head_and_blocks("cut after the seventh sample", |p| first_if(p.sample < 7)),
    // No two neighbours have their border at the same time.
    head_and_blocks("each series cut elsewhere", |p| {
        first_if(p.permille < (p.series as i64 * 370 + 130) % 1000)
    }),
    head_and_blocks("three blocks and a head", |p| match p.permille {
        ..250 => &[0],
        250..510 => &[1],
        510..760 => &[2],
        _ => &[3],
    }),
    head_and_blocks("the older half came late", |p| first_if(p.permille > 480)),
    head_and_blocks("every other sample came late", |p| first_if(p.sample % 2 == 0)),
    head_and_blocks("sent again after the cut", |p| {
        if p.permille > 300 { &[0, 1] } else { &[0] }
    }),
];
