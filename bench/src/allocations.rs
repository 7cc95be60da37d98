//! The system's allocator, counting: [`CountingAllocator`].
//!
//! Owns the count. A module of each program that counts, which makes the allocator its own (`#[global_allocator]`); not of
//! the library, which is safe code throughout.
#![expect(unsafe_code, reason = "an allocator")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts what a program allocates, on all threads; memory that moves because it grows counts again.
pub(crate) struct CountingAllocator {
    count: AtomicU64,
}

impl CountingAllocator {
    /// Nothing was allocated yet.
    pub(crate) const fn new() -> CountingAllocator {
        CountingAllocator { count: AtomicU64::new(0) }
    }

    /// Allocations so far.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

// SAFETY: allocation is the system's; this only counts.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.count.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise is the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) };
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        self.count.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(block, layout, size) }
    }
}
