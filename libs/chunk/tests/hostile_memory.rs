//! What bytes claim to hold takes no memory before it is there (I12). One test, for the counts are of the whole process.

#![allow(unsafe_code, reason = "an allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use koios_chunk::{pack_histograms, unpack_histograms};
use koios_model::{Histogram, Span};

/// What errors and lists of a few entries may take.
const SLACK: usize = 4 << 10;

struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are the same.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

#[test]
fn i12_a_short_histogram_that_claims_many_buckets_is_refused_before_room_is_made_for_them() {
    const BUCKETS: u32 = 1 << 16;
    let spans = vec![Span {
        offset: 0,
        length: BUCKETS,
    }];
    let buckets = vec![0.0; BUCKETS as usize];
    let positive = Histogram {
        positive_spans: spans.clone(),
        positive_buckets: buckets.clone(),
        ..Histogram::default()
    };
    let negative = Histogram {
        negative_spans: spans,
        negative_buckets: buckets,
        ..Histogram::default()
    };
    for histogram in [positive, negative] {
        let packed = pack_histograms([(1, &histogram)]);
        assert!(unpack_histograms(&packed, 1).is_ok());
        let short = &packed[..64];
        let before = ALLOCATED.load(Ordering::Relaxed);
        assert!(unpack_histograms(short, 1).is_err());
        let allocated = ALLOCATED.load(Ordering::Relaxed) - before;
        assert!(allocated < SLACK, "{allocated} bytes for {} bytes", short.len());
    }
}
