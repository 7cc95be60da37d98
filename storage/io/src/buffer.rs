//! The memory of operations: [`Buffer`], which one owner fills, and [`Lease`], which many read.
//!
//! Owns the allocation and its alignment. Never shares memory that somebody may still write: a buffer is frozen into a
//! lease by value.
#![expect(unsafe_code, reason = "aligned memory whose spare part is not initialised")]

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::sync::Arc;

use crate::append_buffer::Block;
use crate::recycle::Recycler;

/// The alignment that O_DIRECT needs everywhere, and the size of a page.
pub const DIRECT_ALIGNMENT: usize = 4096;

/// Owned bytes with spare room, for reading into and for building what is written.
///
/// Only the initialised part can be seen ([`Deref`]). Grows when told ([`Buffer::reserve`], [`Buffer::extend_from_slice`]),
/// never while an operation fills it.
pub struct Buffer {
    start: NonNull<u8>,
    /// Bytes that are initialised, from the start.
    len: usize,
    capacity: usize,
    /// Bytes that were allocated; more than `capacity` in memory that is used again.
    allocated: usize,
    align: usize,
    /// Where the memory goes when the buffer drops; nothing to free it.
    home: Option<Arc<Recycler>>,
}

// SAFETY: a buffer is the only owner of its memory, as a Vec<u8> is.
unsafe impl Send for Buffer {}
// SAFETY: a shared buffer only gives out shared slices.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// A buffer with room for `capacity` bytes, none of them filled. No allocation for 0.
    pub fn with_capacity(capacity: usize) -> Buffer {
        Buffer::allocate(capacity, 8)
    }

    /// A buffer for O_DIRECT: starts at a multiple of [`DIRECT_ALIGNMENT`], and so does its end.
    pub fn aligned(capacity: usize) -> Buffer {
        Buffer::allocate(capacity.next_multiple_of(DIRECT_ALIGNMENT), DIRECT_ALIGNMENT)
    }

    pub(crate) fn allocate(capacity: usize, align: usize) -> Buffer {
        if capacity == 0 {
            let start = NonNull::<u64>::dangling().cast();
            return Buffer { start, len: 0, capacity: 0, allocated: 0, align, home: None };
        }
        let layout = layout(capacity, align);
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc(layout) };
        let start = NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout));
        Buffer { start, len: 0, capacity, allocated: capacity, align, home: None }
    }

    /// The same memory, empty, with room for `capacity` bytes; it goes to `home` in the end.
    pub(crate) fn limited(mut self, capacity: usize, home: Arc<Recycler>) -> Buffer {
        assert!(capacity <= self.allocated, "a limit of {capacity} bytes in {} allocated", self.allocated);
        (self.len, self.capacity, self.home) = (0, capacity, Some(home));
        self
    }

    /// Bytes that are filled.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is filled.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes that fit without growing.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes that still fit.
    pub fn spare(&self) -> usize {
        self.capacity - self.len
    }

    /// Forgets what is filled; keeps the memory.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Forgets everything from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Makes room for `additional` more bytes, moving the bytes if need be. At least doubles, so that filling a buffer
    /// bit by bit costs no more than filling it at once, twice.
    pub fn reserve(&mut self, additional: usize) {
        let needed = self.len.checked_add(additional).expect("a buffer smaller than the address space");
        if needed <= self.capacity {
            return;
        }
        let capacity = needed.max(self.capacity * 2).next_multiple_of(self.align);
        let mut grown = Buffer::allocate(capacity, self.align);
        grown.extend_from_slice(self);
        *self = grown;
    }

    /// Appends `bytes`, growing if need be.
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        self.reserve(bytes.len());
        // SAFETY: `reserve` made room for `bytes.len()` bytes behind `len`; `bytes` is borrowed, so it cannot overlap
        // memory that this buffer owns and we hold mutably.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.start.as_ptr().add(self.len), bytes.len());
        }
        self.len += bytes.len();
    }

    /// Appends `count` zeros, growing if need be.
    pub fn extend_zeroed(&mut self, count: usize) {
        self.reserve(count);
        // SAFETY: `reserve` made room for `count` bytes behind `len`.
        unsafe { std::ptr::write_bytes(self.start.as_ptr().add(self.len), 0, count) };
        self.len += count;
    }

    /// Removes the first `count` bytes; the rest moves to the front.
    ///
    /// # Panics
    ///
    /// If fewer are filled.
    pub fn consume(&mut self, count: usize) {
        assert!(count <= self.len, "cannot consume {count} of {} bytes", self.len);
        self.copy_within(count.., 0);
        self.len -= count;
    }

    /// The bytes as an immutable lease, without copying.
    pub fn freeze(self) -> Lease {
        let end = self.len;
        Lease { memory: Memory::Shared(Arc::new(Allocation::Buffer(self))), range: 0..end }
    }

    /// The first byte behind what is filled, for a system call that fills it.
    pub(crate) fn spare_start(&mut self) -> *mut u8 {
        // SAFETY: `len` is at most `capacity`, so the result is inside the allocation or one behind it.
        unsafe { self.start.as_ptr().add(self.len) }
    }

    /// A system call has filled `count` bytes at [`Buffer::spare_start`].
    ///
    /// # Safety
    ///
    /// The caller promises that these bytes are initialised.
    ///
    /// # Panics
    ///
    /// If they would not have fit.
    pub(crate) unsafe fn filled(&mut self, count: usize) {
        assert!(count <= self.spare(), "the kernel filled {count} bytes of {}", self.spare());
        self.len += count;
    }
}

fn layout(capacity: usize, align: usize) -> Layout {
    Layout::from_size_align(capacity, align).expect("a buffer smaller than half the address space")
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(home) = self.home.take() {
            let (start, allocated, align) = (self.start, self.allocated, self.align);
            // This one owns nothing any more.
            self.allocated = 0;
            home.give_back(Buffer { start, len: 0, capacity: allocated, allocated, align, home: None });
        } else if self.allocated != 0 {
            // SAFETY: `allocate` got this memory with this very layout, and nobody else frees it: whoever handed it on set
            // `allocated` to 0.
            unsafe { dealloc(self.start.as_ptr(), layout(self.allocated, self.align)) };
        }
    }
}

impl Default for Buffer {
    /// No bytes and no memory.
    fn default() -> Buffer {
        Buffer::with_capacity(0)
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the first `len` bytes are initialised and owned by this buffer.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and this borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} of {} bytes)", self.len, self.capacity)
    }
}

impl From<&[u8]> for Buffer {
    fn from(bytes: &[u8]) -> Buffer {
        let mut buffer = Buffer::with_capacity(bytes.len());
        buffer.extend_from_slice(bytes);
        buffer
    }
}

/// Immutable bytes that many may hold, on any core. Cloning and slicing copy nothing.
///
/// The memory goes home when the last clone or slice of it drops.
#[derive(Clone)]
pub struct Lease {
    memory: Memory,
    range: Range<usize>,
}

#[derive(Clone)]
enum Memory {
    Static(&'static [u8]),
    Shared(Arc<Allocation>),
    Appended(Arc<Block>),
}

enum Allocation {
    Vec(Vec<u8>),
    Buffer(Buffer),
}

impl Lease {
    /// No bytes.
    pub const fn empty() -> Lease {
        Lease::from_static(&[])
    }

    /// Bytes of the program itself.
    pub const fn from_static(bytes: &'static [u8]) -> Lease {
        Lease { memory: Memory::Static(bytes), range: 0..bytes.len() }
    }

    /// The bytes of `vec`, without copying.
    pub fn from_vec(vec: Vec<u8>) -> Lease {
        let end = vec.len();
        Lease { memory: Memory::Shared(Arc::new(Allocation::Vec(vec))), range: 0..end }
    }

    /// A lease of bytes of an append buffer, which were appended before.
    pub(crate) fn of_block(block: Arc<Block>, range: Range<usize>) -> Lease {
        Lease { memory: Memory::Appended(block), range }
    }

    /// The part of these bytes that `range` names, counted from the start of this lease.
    ///
    /// # Panics
    ///
    /// If `range` leaves the lease.
    pub fn slice(&self, range: Range<usize>) -> Lease {
        assert!(
            range.start <= range.end && range.end <= self.range.len(),
            "slice {range:?} of a lease of {} bytes",
            self.range.len()
        );
        let start = self.range.start + range.start;
        Lease { memory: self.memory.clone(), range: start..start + range.len() }
    }

    /// Removes the first `count` bytes from this lease.
    ///
    /// # Panics
    ///
    /// If it has fewer.
    pub fn advance(&mut self, count: usize) {
        assert!(count <= self.range.len(), "advance by {count} in a lease of {} bytes", self.range.len());
        self.range.start += count;
    }
}

impl Deref for Lease {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let whole: &[u8] = match &self.memory {
            Memory::Static(bytes) => bytes,
            Memory::Shared(allocation) => match &**allocation {
                Allocation::Vec(vec) => vec,
                Allocation::Buffer(buffer) => buffer,
            },
            // SAFETY: `of_block` was given a range that was appended; slices only ever become smaller.
            Memory::Appended(block) => return unsafe { block.bytes(&self.range) },
        };
        &whole[self.range.start..self.range.end]
    }
}

impl AsRef<[u8]> for Lease {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Default for Lease {
    fn default() -> Lease {
        Lease::empty()
    }
}

impl From<Vec<u8>> for Lease {
    fn from(vec: Vec<u8>) -> Lease {
        Lease::from_vec(vec)
    }
}

impl From<&'static [u8]> for Lease {
    fn from(bytes: &'static [u8]) -> Lease {
        Lease::from_static(bytes)
    }
}

impl From<Buffer> for Lease {
    fn from(buffer: Buffer) -> Lease {
        buffer.freeze()
    }
}

impl PartialEq for Lease {
    fn eq(&self, other: &Lease) -> bool {
        **self == **other
    }
}

impl Eq for Lease {}

impl PartialEq<[u8]> for Lease {
    fn eq(&self, other: &[u8]) -> bool {
        **self == *other
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lease({} bytes)", self.range.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_grows_only_when_told_and_keeps_its_bytes() {
        let mut buffer = Buffer::with_capacity(4);
        buffer.extend_from_slice(b"abcd");
        assert_eq!((buffer.len(), buffer.capacity(), buffer.spare()), (4, 4, 0));
        buffer.extend_from_slice(b"e");
        assert_eq!(&*buffer, b"abcde");
        assert_eq!(buffer.capacity(), 8);
        buffer.consume(3);
        assert_eq!(&*buffer, b"de");
        buffer.extend_zeroed(2);
        assert_eq!(&*buffer, b"de\0\0");
    }

    #[test]
    fn aligned_buffers_start_and_end_on_a_page() {
        let buffer = Buffer::aligned(5000);
        assert_eq!(buffer.start.as_ptr() as usize % DIRECT_ALIGNMENT, 0);
        assert_eq!(buffer.capacity(), 8192);
    }

    #[test]
    fn slices_share_memory_and_outlive_the_whole() {
        let lease = Buffer::from(&b"hello world"[..]).freeze();
        let world = lease.slice(6..11);
        let address = lease.as_ptr() as usize + 6;
        drop(lease);
        assert_eq!(&*world, b"world");
        assert_eq!(world.as_ptr() as usize, address);
        let mut rest = world.slice(1..4);
        rest.advance(1);
        assert_eq!(&*rest, b"rl");
    }

    #[test]
    #[should_panic(expected = "slice 3..6 of a lease of 5 bytes")]
    fn a_slice_cannot_leave_its_lease() {
        let _ = Lease::from_vec(b"hello world".to_vec()).slice(0..5).slice(3..6);
    }

    #[test]
    fn leases_cross_threads() {
        fn crosses<T: Send + Sync + Clone>(_: &T) {}
        crosses(&Lease::empty());
    }
}
