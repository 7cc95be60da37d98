//! Memory that grows at its end while what came before is read, sent and written to disk: [`AppendBuffer`].
//!
//! Owns the split between the bytes that are there for good and the room behind them. One owner appends; any number of
//! [`Lease`]s see bytes that were appended before the lease was made, and these never change while a lease lives. Bytes
//! may also be *staged* behind them, to be looked at before they are appended or given up. Never copies to grow: a full
//! buffer stays as it is, its owner goes on in another.
#![expect(unsafe_code, reason = "memory that is read in front while it is filled behind")]

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::fmt;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::arrival::Arrived;
use crate::buffer::{DIRECT_ALIGNMENT, Lease};
use crate::error::Result;
use crate::os;

/// A buffer of this size and more is faulted in by calls for so many bytes, each just before they are filled, instead of
/// one fault for each page. One call for 2 MiB keeps the core for most of a millisecond; its pages have left the cache by
/// the time they are filled.
const POPULATE_BYTES: usize = 128 << 10;

/// A buffer up to this size gets pages of its own. The allocator would keep those of thousands that are freed, because
/// what lives longer lies between them.
const MAPPED_BYTES_MAX: usize = 64 << 10;

/// Block-aligned memory that is filled once, from its start to its end.
pub struct AppendBuffer {
    block: Arc<Block>,
    len: usize,
    /// Bytes behind `len` that are there and were not appended.
    staged: usize,
    /// Bytes from the start whose pages are there.
    populated: usize,
}

/// The memory of an append buffer. Bytes below what was appended are initialised and never written while anybody but the
/// appending owner holds the block.
pub(crate) struct Block {
    start: NonNull<u8>,
    capacity: usize,
    /// The memory is the kernel's own pages, not the allocator's.
    mapped: bool,
}

// SAFETY: the memory belongs to the block alone; it is written only by the one `AppendBuffer` that holds it, behind every
// byte that a lease can see.
unsafe impl Send for Block {}
// SAFETY: as above: shared access reads only bytes that are never written again.
unsafe impl Sync for Block {}

impl AppendBuffer {
    /// An empty buffer for `capacity` bytes, rounded up to blocks of [`DIRECT_ALIGNMENT`].
    ///
    /// # Panics
    /// If `capacity` is zero. Ends the process if there is no memory.
    pub fn with_capacity(capacity: usize) -> AppendBuffer {
        assert!(capacity > 0, "an append buffer has room");
        AppendBuffer {
            block: Arc::new(Block::allocate(capacity.next_multiple_of(DIRECT_ALIGNMENT))),
            len: 0,
            staged: 0,
            populated: 0,
        }
    }

    /// Bytes appended so far.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was appended yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes that fit in all.
    pub fn capacity(&self) -> usize {
        self.block.capacity
    }

    /// Bytes that still fit.
    pub fn spare(&self) -> usize {
        self.block.capacity - self.len - self.staged
    }

    /// Appends as many of `bytes` as fit; returns how many did.
    ///
    /// # Panics
    /// If bytes are staged.
    pub fn append(&mut self, bytes: &[u8]) -> usize {
        assert!(self.staged == 0, "what is staged is appended or given up first");
        let count = self.stage(bytes);
        self.commit();
        count
    }

    /// Stages as many of `bytes` as fit; returns how many did.
    pub fn stage(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.spare());
        self.populate(count);
        // SAFETY: `count` bytes fit there, no lease sees bytes there, and `bytes` cannot overlap them: whoever borrows
        // bytes of this block borrows bytes in front, or borrows the whole buffer.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.spare_start(), count) };
        self.staged += count;
        count
    }

    /// Stages at most `count` of the bytes that wait in a socket, as many as fit; returns how many did.
    ///
    /// # Errors
    /// As [`Arrived::receive`].
    pub fn stage_arrived(&mut self, arrived: &Arrived, count: usize) -> Result<usize> {
        let count = count.min(self.spare()).min(arrived.left());
        self.populate(count);
        // SAFETY: `count` bytes fit there, and no lease sees bytes there.
        unsafe { arrived.receive_at(self.spare_start(), count)? };
        self.staged += count;
        Ok(count)
    }

    /// What is staged.
    pub fn staged(&self) -> &[u8] {
        // SAFETY: these bytes were written by `stage` or the kernel, and change only through this buffer.
        unsafe { self.block.bytes(&(self.len..self.len + self.staged)) }
    }

    /// Appends what is staged.
    pub fn commit(&mut self) {
        self.len += std::mem::take(&mut self.staged);
    }

    /// Gives up what is staged.
    pub fn unstage(&mut self) {
        self.staged = 0;
    }

    /// Sees to the pages of the next `count` bytes, and of some more.
    fn populate(&mut self, count: usize) {
        let filled = self.len + self.staged + count;
        if filled <= self.populated || self.capacity() < POPULATE_BYTES {
            return;
        }
        let end = filled.next_multiple_of(POPULATE_BYTES).min(self.capacity());
        // SAFETY: both ends are inside the block.
        let start = unsafe { self.block.start.add(self.populated) };
        os::populate(start, end - self.populated);
        self.populated = end;
    }

    /// The first byte behind all that is there.
    fn spare_start(&mut self) -> *mut u8 {
        // SAFETY: both lengths together are at most the capacity.
        unsafe { self.block.start.as_ptr().add(self.len + self.staged) }
    }

    /// A lease of bytes that were appended; it starts at a block's boundary in memory if `range` does.
    ///
    /// # Panics
    /// If `range` reaches beyond what was appended.
    pub fn lease(&self, range: Range<usize>) -> Lease {
        assert!(range.start <= range.end && range.end <= self.len, "lease {range:?} of {} bytes", self.len);
        Lease::of_block(Arc::clone(&self.block), range)
    }

    /// Empties the buffer to be filled anew, if nobody else sees its bytes any more. Whether it did.
    pub fn clear_if_unshared(&mut self) -> bool {
        let unshared = Arc::get_mut(&mut self.block).is_some();
        if unshared {
            (self.len, self.staged) = (0, 0);
        }
        unshared
    }
}

impl fmt::Debug for AppendBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AppendBuffer({} of {} bytes)", self.len, self.capacity())
    }
}

impl Block {
    fn allocate(capacity: usize) -> Block {
        if capacity <= MAPPED_BYTES_MAX
            && let Some(start) = os::map_pages(capacity)
        {
            return Block { start, capacity, mapped: true };
        }
        let layout = Block::layout(capacity);
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc(layout) };
        let start = NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout));
        Block { start, capacity, mapped: false }
    }

    fn layout(capacity: usize) -> Layout {
        Layout::from_size_align(capacity, DIRECT_ALIGNMENT).expect("a buffer smaller than half the address space")
    }

    /// The bytes in `range`.
    ///
    /// # Safety
    /// All of `range` was appended before, or is staged and the owner of the buffer lends it.
    pub(crate) unsafe fn bytes(&self, range: &Range<usize>) -> &[u8] {
        // SAFETY: the caller vouches that these bytes are initialised; nobody writes them while they are shared.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().add(range.start), range.end - range.start) }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if self.mapped {
            // SAFETY: `allocate` got these pages, so many bytes of them, and nobody else gives them back.
            unsafe { os::unmap_pages(self.start, self.capacity) };
            return;
        }
        // SAFETY: `allocate` got this memory with this very layout, and nobody else frees it.
        unsafe { dealloc(self.start.as_ptr(), Block::layout(self.capacity)) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_see_what_was_appended_and_nothing_after_it_moves_them() {
        let mut buffer = AppendBuffer::with_capacity(5000);
        assert_eq!(buffer.capacity(), 8192);
        assert_eq!(buffer.append(b"hello"), 5);
        let hello = buffer.lease(0..5);
        assert_eq!(hello.as_ptr() as usize % DIRECT_ALIGNMENT, 0);
        assert_eq!(buffer.append(&[7; 9000]), 8187);
        assert_eq!(buffer.spare(), 0);
        assert_eq!(&*hello, b"hello");
        assert_eq!(&*buffer.lease(8190..8192), [7, 7]);
    }

    #[test]
    fn staged_bytes_are_seen_by_nobody_until_they_are_appended() {
        let mut buffer = AppendBuffer::with_capacity(4096);
        buffer.append(b"there");
        assert_eq!(buffer.stage(b", staged"), 8);
        assert_eq!((buffer.len(), buffer.staged(), buffer.spare()), (5, &b", staged"[..], 4083));
        buffer.unstage();
        assert_eq!(buffer.stage(b" again"), 6);
        buffer.commit();
        assert_eq!((&*buffer.lease(0..11), buffer.staged()), (&b"there again"[..], &b""[..]));
        assert_eq!(buffer.stage(&[7; 9000]), 4085, "as many as fit");
        assert_eq!(buffer.stage(b"more"), 0);
    }

    #[test]
    fn memory_is_used_again_only_when_nobody_sees_it() {
        let mut buffer = AppendBuffer::with_capacity(4096);
        buffer.append(b"first");
        let lease = buffer.lease(0..5);
        assert!(!buffer.clear_if_unshared());
        assert_eq!(buffer.len(), 5);
        let clone = lease.clone();
        drop(lease);
        assert!(!buffer.clear_if_unshared());
        drop(clone);
        assert!(buffer.clear_if_unshared());
        assert!(buffer.is_empty());
    }

    #[test]
    #[should_panic(expected = "lease 0..6 of 5 bytes")]
    fn a_lease_cannot_see_what_was_not_appended() {
        let mut buffer = AppendBuffer::with_capacity(4096);
        buffer.append(b"hello");
        let _ = buffer.lease(0..6);
    }
}
