//! The memory of large buffers, used again and again.
//!
//! Owns what was given back, up to a bound. Fresh memory costs a page fault for each page, which is dearer than all else
//! that is done with a large request; memory that was used a moment ago is in the processor's cache, besides.
//!
//! A buffer comes back from whichever core drops it last. Nobody ever waits here: a pool that another core is just giving
//! back to is passed by, and the memory allocated, or freed.

use std::sync::{Arc, Mutex};

use crate::buffer::{Buffer, DIRECT_ALIGNMENT};

/// Smaller buffers are cheap to allocate.
const BYTES_MIN: usize = 32 << 10;

/// Larger buffers are rare.
const BYTES_MAX: usize = 4 << 20;

/// The memory of one core that waits to be used again.
pub(crate) struct Recycler {
    idle: Mutex<Idle>,
    /// How many bytes may wait.
    bytes_max: usize,
}

#[derive(Default)]
struct Idle {
    /// The one that came back last is at the end, and is used first.
    buffers: Vec<Buffer>,
    /// Their capacities together.
    bytes: usize,
}

impl Recycler {
    /// A pool that keeps at most `bytes_max` bytes.
    pub(crate) fn new(bytes_max: usize) -> Arc<Recycler> {
        Arc::new(Recycler { idle: Mutex::default(), bytes_max })
    }

    /// A buffer with room for `capacity` bytes, of used memory where there is some.
    pub(crate) fn take(self: &Arc<Recycler>, capacity: usize) -> Buffer {
        if !(BYTES_MIN..=BYTES_MAX).contains(&capacity) {
            return Buffer::with_capacity(capacity);
        }
        let size = capacity.next_power_of_two();
        let used = self.idle.try_lock().ok().and_then(|mut idle| idle.take(size));
        let buffer = used.unwrap_or_else(|| Buffer::allocate(size, DIRECT_ALIGNMENT));
        buffer.limited(capacity, Arc::clone(self))
    }

    /// Keeps the memory of a buffer, or frees it.
    pub(crate) fn give_back(&self, buffer: Buffer) {
        let Ok(mut idle) = self.idle.try_lock() else { return };
        if idle.bytes + buffer.capacity() <= self.bytes_max {
            idle.bytes += buffer.capacity();
            idle.buffers.push(buffer);
        }
    }
}

impl Idle {
    fn take(&mut self, size: usize) -> Option<Buffer> {
        let place = self.buffers.iter().rposition(|buffer| buffer.capacity() == size)?;
        self.bytes -= size;
        Some(self.buffers.remove(place))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn memory_comes_back_with_the_last_lease_and_is_used_again() {
        let recycler = Recycler::new(1 << 20);
        let mut buffer = recycler.take(100_000);
        assert_eq!((buffer.capacity(), buffer.len()), (100_000, 0));
        buffer.extend_zeroed(100_000);
        let address = buffer.as_ptr();
        let lease = buffer.freeze();
        let part = lease.slice(10..20);
        drop(lease);
        assert_ne!(recycler.take(100_000).as_ptr(), address, "a slice is still held");
        crate::threads::spawn_core("elsewhere", None, move || drop(part)).unwrap().join().unwrap();
        let again = recycler.take(70_000);
        assert_eq!((again.as_ptr(), again.capacity(), again.len()), (address, 70_000, 0));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let recycler = Recycler::new(256 << 10);
        let buffers: Vec<Buffer> = (0..4).map(|_| recycler.take(128 << 10)).collect();
        drop(buffers);
        let idle = recycler.idle.lock().unwrap();
        assert_eq!((idle.buffers.len(), idle.bytes), (2, 256 << 10));
    }

    #[test]
    fn a_buffer_that_grows_leaves_the_pool_whole() {
        let recycler = Recycler::new(1 << 20);
        let mut buffer = recycler.take(40_000);
        buffer.extend_zeroed(40_000);
        buffer.extend_from_slice(b"more");
        assert_eq!(&buffer[40_000..], b"more");
        drop(buffer);
        assert_eq!(recycler.idle.lock().unwrap().bytes, 64 << 10);
    }

    #[test]
    fn small_and_huge_buffers_are_not_kept() {
        let recycler = Recycler::new(64 << 20);
        drop(recycler.take(4 << 10));
        drop(recycler.take(8 << 20));
        assert_eq!(recycler.idle.lock().unwrap().buffers.len(), 0);
    }
}
