//! The end of a log in memory: where an append's bytes are copied to once, written to disk from, and read from as long as
//! the core has room.
//!
//! Owns [`Tail`], the buffers of one log, and [`TailCache`], the bound on those of all logs of a core. A buffer stands for
//! a range of a segment that starts at a block's boundary, so that whole blocks of it go to disk as they are. Bytes that
//! were appended never change: readers and the disk see them in place. What is not written yet is never given up.
//!
//! A large batch may be received straight into its place: it is *staged* there, behind all that was appended, where nobody
//! sees it before it has passed its checks ([`crate::staged`]).
//!
//! Oldest first out: a consumer near the end of a log reads what was appended last, on every log alike.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::rc::{Rc, Weak};

use heddle_io::{AppendBuffer, Buffer, DIRECT_ALIGNMENT, Lease};
use heddle_record::Offset;
use heddle_record::checksum::crc32c_append;

/// Bytes of a disk block as the engine writes them.
pub(crate) const BLOCK: u64 = DIRECT_ALIGNMENT as u64;

/// The first buffer of a log, in bytes: ten thousand logs that get a batch now and then must not take gigabytes.
const FIRST_BUFFER_BYTES: usize = 8 << 10;
/// Later ones double up to this size. Buffers of this size are kept when their bytes are given up: memory that the kernel
/// has to clear first costs more than the copy into it.
const BUFFER_BYTES_MAX: usize = 2 << 20;

/// As much of a batch is received in one go as the fastest caches still hold when its checksum is computed.
const WARM_BYTES: usize = 256 << 10;

/// Buffers up to this size are given up when their log has been idle for a while.
const SMALL_BUFFER_BYTES: usize = 64 << 10;

/// The buffers of one log, ascending.
#[derive(Debug, Default)]
pub(crate) struct Tail {
    chunks: VecDeque<Chunk>,
    /// Up to here everything was written: segment and position.
    written: Option<(Offset, u64)>,
}

/// A range of a segment in memory.
#[derive(Debug)]
struct Chunk {
    segment: Offset,
    /// Where the buffer's first byte lies in the segment; a block's boundary.
    base: u64,
    buffer: Option<AppendBuffer>,
    serial: u64,
    /// The sweep before which it was begun.
    age: u64,
    pool: Rc<Pool>,
}

/// What all chunks of a core take.
#[derive(Debug, Default)]
struct Pool {
    /// Bytes of chunks and of spare buffers.
    bytes: Cell<usize>,
    /// Buffers of the largest size that nobody holds.
    spare: RefCell<Vec<AppendBuffer>>,
}

impl Drop for Chunk {
    fn drop(&mut self) {
        let mut buffer = self.buffer.take().expect("a chunk has its buffer until it is dropped");
        if buffer.capacity() == BUFFER_BYTES_MAX && buffer.clear_if_unshared() {
            self.pool.spare.borrow_mut().push(buffer);
        } else {
            self.pool.bytes.set(self.pool.bytes.get() - buffer.capacity());
        }
    }
}

impl Chunk {
    fn buffer(&self) -> &AppendBuffer {
        self.buffer.as_ref().expect("a chunk has its buffer until it is dropped")
    }

    fn buffer_mut(&mut self) -> &mut AppendBuffer {
        self.buffer.as_mut().expect("a chunk has its buffer until it is dropped")
    }

    fn end(&self) -> u64 {
        self.base + self.buffer().len() as u64
    }

    fn is_staged(&self) -> bool {
        !self.buffer().staged().is_empty()
    }

    fn staged_end(&self) -> u64 {
        self.end() + self.buffer().staged().len() as u64
    }

    fn holds(&self, segment: Offset, position: u64) -> bool {
        self.segment == segment && self.base <= position && position < self.end()
    }

    /// A lease of the bytes from `from` up to `to`, both within the chunk.
    fn lease(&self, from: u64, to: u64) -> Lease {
        self.buffer().lease((from - self.base) as usize..(to - self.base) as usize)
    }
}

impl Tail {
    /// Whether bytes can be appended at `position` of `segment`: they begin a block, or what is before them in it is here.
    pub(crate) fn is_ready(&self, segment: Offset, position: u64) -> bool {
        position.is_multiple_of(BLOCK) || self.ends_at(segment, position).is_some()
    }

    /// Appends what is staged, to be seen from now on.
    pub(crate) fn commit(&mut self) {
        for chunk in self.chunks.iter_mut().rev().take_while(|chunk| chunk.is_staged()) {
            chunk.buffer_mut().commit();
        }
    }

    /// Gives up what is staged.
    pub(crate) fn unstage(&mut self) {
        while self.chunks.back().is_some_and(|chunk| chunk.buffer().is_empty()) {
            self.chunks.pop_back();
        }
        if let Some(chunk) = self.chunks.back_mut() {
            chunk.buffer_mut().unstage();
        }
    }

    fn ends_at(&self, segment: Offset, position: u64) -> Option<&Chunk> {
        self.chunks.back().filter(|chunk| chunk.segment == segment && chunk.end() == position)
    }

    /// The blocks of `segment` that hold the bytes from `from` up to `end`, ready to be written: the first byte begins a
    /// block, the last block is filled up with zeros in memory of its own, because more is appended behind `end` while it
    /// is written.
    ///
    /// # Panics
    /// If not all of them are here.
    pub(crate) fn blocks(&self, segment: Offset, from: u64, end: u64) -> Vec<Lease> {
        let whole_end = end - end % BLOCK;
        let mut pieces = Vec::new();
        let found = self.collect(segment, from, whole_end, &mut pieces);
        assert!(found, "what is to be written is in memory");
        if whole_end < end {
            let chunk = self.chunks.iter().rev().find(|chunk| chunk.holds(segment, whole_end));
            let rest = chunk.expect("what is to be written is in memory").lease(whole_end, end);
            let mut block = Buffer::aligned(DIRECT_ALIGNMENT);
            block.extend_from_slice(&rest);
            block.extend_zeroed(DIRECT_ALIGNMENT - rest.len());
            pieces.push(block.freeze());
        }
        pieces
    }

    /// Adds the bytes from `from` up to `end` to `pieces`. Whether all of them are here; if not, `pieces` is as it was.
    fn collect(&self, segment: Offset, from: u64, end: u64, pieces: &mut Vec<Lease>) -> bool {
        let before = pieces.len();
        let mut position = from;
        let first = self.chunks.partition_point(|chunk| (chunk.segment, chunk.end()) <= (segment, from));
        for chunk in self.chunks.range(first..) {
            if position >= end || !chunk.holds(segment, position) {
                break;
            }
            let to = chunk.end().min(end);
            pieces.push(chunk.lease(position, to));
            position = to;
        }
        if position < end {
            pieces.truncate(before);
        }
        position >= end
    }

    /// The bytes of `segment` from `from` up to `end`, in order: where those that are here begin, and these. Nothing is
    /// here if that is `end`.
    pub(crate) fn pieces(&self, segment: Offset, from: u64, end: u64) -> (u64, Vec<Lease>) {
        let mut pieces = Vec::new();
        if self.collect(segment, from, end, &mut pieces) {
            return (from, pieces);
        }
        let first = self.chunks.iter().find(|chunk| chunk.segment == segment && chunk.base > from);
        match first.map(|chunk| chunk.base).filter(|base| *base < end) {
            Some(base) if self.collect(segment, base, end, &mut pieces) => (base, pieces),
            _ => (end, pieces),
        }
    }

    /// At least `least` and at most `most` bytes from `position` of `segment`, if they are here.
    pub(crate) fn peek(&self, segment: Offset, position: u64, least: usize, most: usize) -> Option<Lease> {
        let first = self.chunks.partition_point(|chunk| (chunk.segment, chunk.end()) <= (segment, position));
        let chunk = self.chunks.get(first).filter(|chunk| chunk.holds(segment, position))?;
        let here = chunk.lease(position, chunk.end().min(position + most as u64));
        if here.len() >= least {
            return Some(here);
        }
        // Across two buffers, rarely: in memory of its own.
        let mut pieces = Vec::new();
        let found = self.collect(segment, position, position + least as u64, &mut pieces);
        found.then(|| Lease::from_vec(pieces.iter().flat_map(|piece| piece.iter().copied()).collect()))
    }

    /// Everything up to `position` of `segment` was written.
    pub(crate) fn note_written(&mut self, segment: Offset, position: u64) {
        self.written = Some((segment, position));
    }

    /// Forgets everything: the log was cut, or opened again.
    pub(crate) fn clear(&mut self) {
        self.chunks.clear();
        self.written = None;
    }

    /// Forgets the segments from `base` up to `end`, whose bytes are other ones now.
    pub(crate) fn forget(&mut self, base: Offset, end: Offset) {
        self.chunks.retain(|chunk| !(base..end).contains(&chunk.segment));
    }

    fn next_buffer_bytes(&self, needed: usize) -> usize {
        let before = self.chunks.back().map_or(FIRST_BUFFER_BYTES / 2, |chunk| chunk.buffer().capacity());
        (before * 2).max(needed.next_power_of_two()).clamp(FIRST_BUFFER_BYTES, BUFFER_BYTES_MAX)
    }

    /// Gives up the chunk with this serial number, if it is here. Whether it is gone: what is not written stays.
    fn give_up(&mut self, serial: u64) -> bool {
        let Some(index) = self.chunks.iter().position(|chunk| chunk.serial == serial) else { return true };
        let chunk = &self.chunks[index];
        let is_written =
            !chunk.is_staged() && self.written.is_some_and(|written| (chunk.segment, chunk.end()) <= written);
        if is_written {
            self.chunks.remove(index);
        }
        is_written
    }
}

/// The bound on what the logs of one core keep in memory.
#[derive(Debug)]
pub(crate) struct TailCache {
    bytes_max: Cell<usize>,
    pool: Rc<Pool>,
    /// Chunks in the order in which they were begun.
    order: RefCell<VecDeque<(Weak<RefCell<Tail>>, u64)>>,
    serial: Cell<u64>,
    sweeps: Cell<u64>,
}

impl TailCache {
    pub(crate) fn new(bytes_max: usize) -> TailCache {
        let bytes_max = Cell::new(bytes_max);
        TailCache {
            bytes_max,
            pool: Rc::default(),
            order: RefCell::default(),
            serial: Cell::new(0),
            sweeps: Cell::new(0),
        }
    }

    /// Bytes that the core takes for the ends of all its logs.
    pub(crate) fn bytes(&self) -> usize {
        self.pool.bytes.get()
    }

    /// Bytes that it may take.
    pub(crate) fn bytes_max(&self) -> usize {
        self.bytes_max.get()
    }

    /// Changes the bound; what is over it goes at once, as far as it is written.
    pub(crate) fn set_bytes_max(&self, bytes_max: usize) {
        self.bytes_max.set(bytes_max);
        self.give_up(bytes_max);
        self.drop_spare(bytes_max);
    }

    /// Gives up the small buffers that were begun before the last sweep: ten thousand logs that get a batch now and then
    /// must not hold memory for it. A log that goes on reads its last block again.
    pub(crate) fn sweep_small(&self) {
        let age = self.sweeps.replace(self.sweeps.get() + 1);
        self.order.borrow_mut().retain(|(tail, serial)| {
            let Some(log) = tail.upgrade() else { return false };
            let mut log = log.borrow_mut();
            let is_old_and_small = |chunk: &Chunk| chunk.age < age && chunk.buffer().capacity() <= SMALL_BUFFER_BYTES;
            let found = log.chunks.iter().find(|chunk| chunk.serial == *serial);
            match found.map(is_old_and_small) {
                None => false,
                Some(true) => !log.give_up(*serial),
                Some(false) => true,
            }
        });
    }

    /// Appends `bytes` at `position` of `segment`, where `tail` must be ready.
    pub(crate) fn append(&self, tail: &Rc<RefCell<Tail>>, segment: Offset, position: u64, bytes: &[u8]) {
        debug_assert!(tail.borrow().is_ready(segment, position), "what is before it in its block is here");
        self.put(tail, segment, position, bytes, AppendBuffer::append);
    }

    /// Appends a batch's header and its body at `position` of `segment`, where `tail` must be ready.
    pub(crate) fn append_batch(
        &self,
        tail: &Rc<RefCell<Tail>>,
        segment: Offset,
        position: u64,
        header: &[u8],
        body: &[u8],
    ) {
        // Nearly always it fits behind the batch before it.
        if let Some(chunk) = tail.borrow_mut().chunks.back_mut()
            && (chunk.segment, chunk.staged_end()) == (segment, position)
            && chunk.buffer().spare() >= header.len() + body.len()
        {
            let buffer = chunk.buffer_mut();
            buffer.append(header);
            buffer.append(body);
            return;
        }
        self.append(tail, segment, position, header);
        self.append(tail, segment, position + header.len() as u64, body);
    }

    /// Stages `bytes` at `position` of `segment`, where `tail` must be ready, or behind what is staged.
    pub(crate) fn stage(&self, tail: &Rc<RefCell<Tail>>, segment: Offset, position: u64, bytes: &[u8]) {
        self.put(tail, segment, position, bytes, AppendBuffer::stage);
    }

    /// Has `put` copy `bytes` into the buffers from `position` on, as many as fit at a time.
    fn put(
        &self,
        tail: &Rc<RefCell<Tail>>,
        segment: Offset,
        position: u64,
        mut bytes: &[u8],
        put: impl Fn(&mut AppendBuffer, &[u8]) -> usize,
    ) {
        let Ok(()) = self.fill(tail, segment, position, bytes.len(), |buffer| {
            let count = put(buffer, bytes);
            bytes = &bytes[count..];
            Ok::<_, Infallible>(count)
        });
    }

    /// Stages `count` bytes at `position`, behind what is staged, that `receive` puts there: at most as many as it is told.
    /// Returns the checksum `checksum` continued over them, computed while they are warm.
    ///
    /// # Errors
    /// That of `receive`; what it staged before stays staged.
    pub(crate) fn stage_from<E>(
        &self,
        tail: &Rc<RefCell<Tail>>,
        segment: Offset,
        position: u64,
        count: usize,
        mut checksum: u32,
        mut receive: impl FnMut(&mut AppendBuffer, usize) -> Result<usize, E>,
    ) -> Result<u32, E> {
        let mut left = count;
        self.fill(tail, segment, position, count, |buffer| {
            let before = buffer.staged().len();
            let received = receive(buffer, left.min(WARM_BYTES).min(buffer.spare()))?;
            checksum = crc32c_append(checksum, &buffer.staged()[before..]);
            left -= received;
            Ok(received)
        })?;
        Ok(checksum)
    }

    /// Has `put` fill the buffers from `position` on until `count` bytes are there. It gets a buffer with room, and returns
    /// how many bytes it put into it.
    fn fill<E>(
        &self,
        tail: &Rc<RefCell<Tail>>,
        segment: Offset,
        mut position: u64,
        count: usize,
        mut put: impl FnMut(&mut AppendBuffer) -> Result<usize, E>,
    ) -> Result<(), E> {
        let end = position + count as u64;
        while position < end {
            let mut open = tail.borrow_mut();
            let last =
                open.chunks.back_mut().filter(|chunk| (chunk.segment, chunk.staged_end()) == (segment, position));
            match last.map(Chunk::buffer_mut).filter(|buffer| buffer.spare() > 0) {
                Some(buffer) => position += put(buffer)? as u64,
                None => {
                    drop(open);
                    self.begin(tail, segment, position, (end - position) as usize);
                }
            }
        }
        Ok(())
    }

    /// Begins a chunk at a block's boundary.
    fn begin(&self, tail: &Rc<RefCell<Tail>>, segment: Offset, base: u64, needed: usize) {
        assert!(base.is_multiple_of(BLOCK), "a buffer stands for whole blocks");
        let capacity = tail.borrow().next_buffer_bytes(needed);
        let buffer = Some(self.buffer(capacity));
        let serial = self.serial.replace(self.serial.get() + 1);
        let pool = Rc::clone(&self.pool);
        tail.borrow_mut().chunks.push_back(Chunk { segment, base, buffer, serial, age: self.sweeps.get(), pool });
        self.order.borrow_mut().push_back((Rc::downgrade(tail), serial));
    }

    /// A buffer within the bound: a spare one, else of a log that had it longest, else new.
    fn buffer(&self, capacity: usize) -> AppendBuffer {
        let room = self.bytes_max.get().saturating_sub(capacity);
        if self.bytes() > room && (capacity < BUFFER_BYTES_MAX || self.pool.spare.borrow().is_empty()) {
            self.give_up(room);
        }
        if capacity == BUFFER_BYTES_MAX
            && let Some(buffer) = self.pool.spare.borrow_mut().pop()
        {
            return buffer;
        }
        self.drop_spare(room);
        self.pool.bytes.set(self.bytes() + capacity);
        AppendBuffer::with_capacity(capacity)
    }

    /// Gives up the oldest chunks that are written until no more than `bytes` are held by logs.
    fn give_up(&self, bytes: usize) {
        let mut tries = self.order.borrow().len();
        while self.bytes() - self.spare_bytes() > bytes && tries > 0 {
            tries -= 1;
            let Some((tail, serial)) = self.order.borrow_mut().pop_front() else { return };
            let gone = tail.upgrade().is_none_or(|log| log.borrow_mut().give_up(serial));
            if !gone {
                self.order.borrow_mut().push_back((tail, serial));
            }
        }
    }

    /// Frees spare buffers until no more than `bytes` are taken in all, or none is left.
    fn drop_spare(&self, bytes: usize) {
        while self.bytes() > bytes
            && let Some(buffer) = self.pool.spare.borrow_mut().pop()
        {
            self.pool.bytes.set(self.bytes() - buffer.capacity());
        }
    }

    fn spare_bytes(&self) -> usize {
        self.pool.spare.borrow().len() * BUFFER_BYTES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: Offset = Offset::new(100);

    fn tail() -> Rc<RefCell<Tail>> {
        Rc::default()
    }

    fn joined(pieces: &[Lease]) -> Vec<u8> {
        pieces.iter().flat_map(|piece| piece.iter().copied()).collect()
    }

    fn bytes(count: usize, from: u64) -> Vec<u8> {
        (from..from + count as u64).map(|position| (position % 251) as u8).collect()
    }

    /// Fills `segment` from `from` on with bytes that tell where they lie.
    fn fill(cache: &TailCache, tail: &Rc<RefCell<Tail>>, segment: Offset, from: u64, count: usize) {
        cache.append(tail, segment, from, &bytes(count, from));
    }

    #[test]
    fn whole_blocks_are_written_in_place_and_the_last_from_a_copy() {
        let (cache, tail) = (TailCache::new(1 << 30), tail());
        fill(&cache, &tail, SEGMENT, 0, 10_000);
        let pieces = tail.borrow().blocks(SEGMENT, 0, 10_000);
        let written = joined(&pieces);
        assert_eq!(written.len(), 12_288);
        assert_eq!(written[..10_000], bytes(10_000, 0));
        assert!(written[10_000..].iter().all(|byte| *byte == 0));
        fill(&cache, &tail, SEGMENT, 10_000, 100);
        assert_eq!(joined(&pieces), written, "an append changes no byte of a write in flight");
        assert!(
            pieces.iter().all(
                |piece| (piece.as_ptr() as u64).is_multiple_of(BLOCK) && (piece.len() as u64).is_multiple_of(BLOCK)
            )
        );
    }

    #[test]
    fn a_header_and_its_body_lie_side_by_side_in_a_buffer_or_across_two() {
        let (cache, tail) = (TailCache::new(1 << 30), tail());
        let all = bytes(100_000, 0);
        let (mut position, mut body) = (0, 1);
        while position + 61 + body <= all.len() {
            let (header, rest) = all[position..position + 61 + body].split_at(61);
            cache.append_batch(&tail, SEGMENT, position as u64, header, rest);
            position += 61 + body;
            body = body * 3 / 2 + 1;
        }
        assert!(tail.borrow().chunks.len() > 2, "it took several buffers");
        let (from, pieces) = tail.borrow().pieces(SEGMENT, 0, position as u64);
        assert_eq!((from, joined(&pieces)), (0, all[..position].to_vec()));
    }

    #[test]
    fn what_is_staged_is_seen_once_it_is_appended_and_leaves_nothing_when_given_up() {
        let (cache, tail) = (TailCache::new(1 << 30), tail());
        fill(&cache, &tail, SEGMENT, 0, 1000);
        let all = bytes(3 << 20, 1000);
        for is_kept in [false, true] {
            cache.stage(&tail, SEGMENT, 1000, &all[..61]);
            let mut rest = &all[61..];
            let checksum = cache.stage_from(&tail, SEGMENT, 1061, rest.len(), 7, |buffer, count| {
                assert!(count <= WARM_BYTES);
                let staged = buffer.stage(&rest[..count]);
                rest = &rest[staged..];
                Ok::<_, Infallible>(staged)
            });
            assert_eq!(checksum, Ok(crc32c_append(7, &all[61..])));
            tail.borrow_mut().note_written(SEGMENT, 1000);
            cache.set_bytes_max(0);
            cache.set_bytes_max(1 << 30);
            assert_eq!(tail.borrow().pieces(SEGMENT, 0, 1001).0, 1001, "it is not there");
            if is_kept {
                tail.borrow_mut().commit();
            } else {
                tail.borrow_mut().unstage();
            }
        }
        assert_eq!(joined(&tail.borrow().pieces(SEGMENT, 1000, 1000 + all.len() as u64).1), all);
        fill(&cache, &tail, SEGMENT, 1000 + all.len() as u64, 10);
        assert!(tail.borrow().chunks.iter().all(|chunk| !chunk.buffer().is_empty()));
    }

    #[test]
    fn a_body_that_breaks_off_leaves_what_was_there() {
        let (cache, tail) = (TailCache::new(1 << 30), tail());
        fill(&cache, &tail, SEGMENT, 0, 1000);
        let mut calls = 0;
        let broken = cache.stage_from(&tail, SEGMENT, 1000, 5 << 20, 0, |buffer, count| {
            calls += 1;
            if calls < 9 { Ok(buffer.stage(&vec![1; count])) } else { Err("gone") }
        });
        assert_eq!(broken, Err("gone"));
        tail.borrow_mut().unstage();
        fill(&cache, &tail, SEGMENT, 1000, 1000);
        assert_eq!(joined(&tail.borrow().pieces(SEGMENT, 0, 2000).1), bytes(2000, 0));
    }

    #[test]
    fn bytes_are_found_across_buffers_or_from_the_first_that_is_here() {
        let (cache, tail) = (TailCache::new(1 << 30), tail());
        fill(&cache, &tail, SEGMENT, 40_960, 100_000);
        let (from, pieces) = tail.borrow().pieces(SEGMENT, 41_000, 140_000);
        assert_eq!((from, joined(&pieces)), (41_000, bytes(99_000, 41_000)));
        let (from, pieces) = tail.borrow().pieces(SEGMENT, 0, 60_000);
        assert_eq!((from, joined(&pieces)), (40_960, bytes(19_040, 40_960)));
        assert_eq!(tail.borrow().pieces(SEGMENT, 0, 30_000), (30_000, Vec::new()));
        assert_eq!(tail.borrow().pieces(Offset::new(7), 41_000, 42_000), (42_000, Vec::new()));
        assert_eq!(tail.borrow().pieces(SEGMENT, 140_000, 150_000), (150_000, Vec::new()));
    }

    #[test]
    fn a_peek_crosses_buffers_only_for_what_it_needs() {
        let (cache, tail) = (TailCache::new(1 << 30), tail());
        let boundary = FIRST_BUFFER_BYTES as u64;
        fill(&cache, &tail, SEGMENT, 0, FIRST_BUFFER_BYTES);
        fill(&cache, &tail, SEGMENT, boundary, 20_000 - FIRST_BUFFER_BYTES);
        let whole = tail.borrow().peek(SEGMENT, 100, 61, 500).expect("it is here");
        assert_eq!(*whole, bytes(500, 100));
        let crossing = tail.borrow().peek(SEGMENT, boundary - 10, 61, 500).expect("it is here");
        assert_eq!(*crossing, bytes(61, boundary - 10));
        assert!(tail.borrow().peek(SEGMENT, 19_990, 61, 500).is_none());
        assert!(tail.borrow().peek(SEGMENT, 20_000, 1, 500).is_none());
    }

    #[test]
    fn only_what_is_written_is_given_up_and_the_oldest_first() {
        let cache = TailCache::new(3 * FIRST_BUFFER_BYTES);
        let (first, second) = (tail(), tail());
        fill(&cache, &first, SEGMENT, 0, FIRST_BUFFER_BYTES);
        fill(&cache, &second, SEGMENT, 0, FIRST_BUFFER_BYTES);
        fill(&cache, &second, SEGMENT, FIRST_BUFFER_BYTES as u64, 1);
        assert!(cache.bytes() > 3 * FIRST_BUFFER_BYTES, "what is not written is kept whatever the bound");
        first.borrow_mut().note_written(SEGMENT, FIRST_BUFFER_BYTES as u64);
        second.borrow_mut().note_written(SEGMENT, FIRST_BUFFER_BYTES as u64);
        cache.set_bytes_max(3 * FIRST_BUFFER_BYTES);
        assert_eq!(cache.bytes(), 3 * FIRST_BUFFER_BYTES);
        assert!(first.borrow().chunks.is_empty(), "the oldest went");
        cache.set_bytes_max(0);
        assert_eq!(cache.bytes(), 2 * FIRST_BUFFER_BYTES, "the chunk with a byte that is not written stays");
        drop(second);
        assert_eq!(cache.bytes(), 0);
    }

    #[test]
    fn memory_that_a_reader_holds_is_not_filled_again() {
        let cache = TailCache::new(FIRST_BUFFER_BYTES);
        let (first, second) = (tail(), tail());
        fill(&cache, &first, SEGMENT, 0, FIRST_BUFFER_BYTES);
        first.borrow_mut().note_written(SEGMENT, FIRST_BUFFER_BYTES as u64);
        let (_, held) = first.borrow().pieces(SEGMENT, 0, FIRST_BUFFER_BYTES as u64);
        fill(&cache, &second, SEGMENT, FIRST_BUFFER_BYTES as u64, FIRST_BUFFER_BYTES);
        assert_eq!(joined(&held), bytes(FIRST_BUFFER_BYTES, 0));
    }

    #[test]
    fn memory_that_nobody_holds_is_filled_again() {
        let cache = TailCache::new(4 * BUFFER_BYTES_MAX);
        let tail = tail();
        let mut addresses = std::collections::BTreeSet::new();
        for position in (0..100 * BUFFER_BYTES_MAX as u64).step_by(BUFFER_BYTES_MAX / 2) {
            fill(&cache, &tail, SEGMENT, position, BUFFER_BYTES_MAX / 2);
            let end = position + BUFFER_BYTES_MAX as u64 / 2;
            addresses
                .insert(tail.borrow().chunks.back().expect("it was filled").buffer().lease(0..1).as_ptr() as usize);
            tail.borrow_mut().note_written(SEGMENT, end);
        }
        assert!(addresses.len() <= 6, "{} buffers for a cache of four", addresses.len());
    }

    #[test]
    fn small_buffers_go_after_two_sweeps_and_large_ones_stay() {
        let cache = TailCache::new(1 << 30);
        let (small, large, unwritten) = (tail(), tail(), tail());
        fill(&cache, &small, SEGMENT, 0, 100);
        fill(&cache, &large, SEGMENT, 0, 1 << 20);
        fill(&cache, &unwritten, SEGMENT, 0, 100);
        small.borrow_mut().note_written(SEGMENT, 100);
        large.borrow_mut().note_written(SEGMENT, 1 << 20);
        cache.sweep_small();
        assert!(!small.borrow().chunks.is_empty(), "it was begun since the sweep before");
        cache.sweep_small();
        assert!(small.borrow().chunks.is_empty());
        assert!(!large.borrow().chunks.is_empty() && !unwritten.borrow().chunks.is_empty());
        assert_eq!(cache.order.borrow().len(), 2);
    }

    #[test]
    fn after_its_buffer_went_a_log_goes_on_only_at_a_block() {
        let (cache, tail) = (TailCache::new(0), tail());
        fill(&cache, &tail, SEGMENT, 0, 5000);
        tail.borrow_mut().note_written(SEGMENT, 5000);
        assert!(tail.borrow().is_ready(SEGMENT, 5000));
        cache.set_bytes_max(0);
        assert!(!tail.borrow().is_ready(SEGMENT, 5000));
        assert!(tail.borrow().is_ready(SEGMENT, 8192));
    }
}
