//! Zeros for a range of a file: what is left to write, piece by piece.
//!
//! Owns the block of zeros that all of them are written from. Never writes: the backends do.

use crate::buffer::Lease;
use crate::os::Vectored;

/// Bytes of one write, at most.
const WRITE_BYTES_MAX: u64 = 1 << 20;

#[repr(align(4096))]
struct Block([u8; 64 << 10]);

/// Aligned for O_DIRECT.
static ZEROS: Block = Block([0; 64 << 10]);

/// The rest of a range that is to be zero.
pub(crate) struct Zeros {
    position: u64,
    /// Bytes from `position` on.
    left: u64,
    /// The next write.
    pieces: Vectored,
}

impl Zeros {
    pub(crate) fn new(position: u64, len: u64) -> Zeros {
        Zeros { position, left: len, pieces: pieces(len) }
    }

    /// Where the next write goes.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// Bytes that are not written yet.
    pub(crate) fn left(&self) -> u64 {
        self.left
    }

    /// The next write.
    pub(crate) fn pieces(&mut self) -> &mut Vectored {
        &mut self.pieces
    }

    /// `count` bytes of [`Zeros::pieces`] were written, and [`Vectored::written`] was told.
    pub(crate) fn written(&mut self, count: usize) {
        self.position += count as u64;
        self.left -= count as u64;
        if self.pieces.left() == 0 {
            self.pieces = pieces(self.left);
        }
    }
}

/// One write's worth of zeros.
fn pieces(left: u64) -> Vectored {
    Vectored::new(zeros(left.min(WRITE_BYTES_MAX) as usize).collect())
}

/// `len` bytes of zeros in pieces that start at a block's boundary in memory, each as long as the memory of all of them.
pub fn zeros(len: usize) -> impl Iterator<Item = Lease> {
    let size = ZEROS.0.len();
    (0..len).step_by(size).map(move |from| Lease::from_static(&ZEROS.0).slice(0..size.min(len - from)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_written_in_pieces_however_short_the_writes_are() {
        let mut zeros = Zeros::new(4096, (5 << 20) + 4096);
        let mut writes = 0;
        while zeros.left() > 0 {
            assert_eq!(zeros.position() % 4096, 0);
            let count = zeros.pieces().left().min(700 << 10);
            zeros.pieces().written(count);
            zeros.written(count);
            writes += 1;
        }
        assert_eq!(zeros.position(), 4096 + (5 << 20) + 4096);
        assert_eq!(writes, 11, "a megabyte takes two calls of 700 KiB at most");
    }

    #[test]
    fn zeros_are_aligned_for_direct_writes() {
        assert_eq!(ZEROS.0.as_ptr() as usize % crate::buffer::DIRECT_ALIGNMENT, 0);
    }
}
