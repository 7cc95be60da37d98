//! Snappy: raw blocks in the framing of xerial's Java library, which is what Kafka's clients write.
//!
//! Owns the framing; a block itself is the crate `snap`'s. Reads one raw block without framing too, as some clients
//! write it.
//!
//! ```text
//! 82 "SNAPPY" 00   version i32   compatible version i32   (block length i32, block)*      all big-endian
//! ```

use alloc::vec::Vec;

use super::{CompressionError, Output, corrupt};

const MAGIC: [u8; 8] = [0x82, b'S', b'N', b'A', b'P', b'P', b'Y', 0];
/// Magic, version 1, compatible with version 1.
const HEADER: [u8; 16] = [0x82, b'S', b'N', b'A', b'P', b'P', b'Y', 0, 0, 0, 0, 1, 0, 0, 0, 1];
/// Input bytes for each block, as Java's stream takes them.
const BLOCK_INPUT: usize = 32 << 10;
/// No element of a block makes more output from a byte: 64 bytes are copied by 3.
const RATIO_MAX: usize = 22;

pub(super) fn compress(input: &[u8], out: &mut Vec<u8>) -> Result<(), CompressionError> {
    let mut encoder = snap::raw::Encoder::new();
    out.extend_from_slice(&HEADER);
    for piece in input.chunks(BLOCK_INPUT) {
        let before = out.len();
        out.resize(before + 4 + snap::raw::max_compress_len(piece.len()), 0);
        let (_, fresh) = out.split_at_mut(before);
        let (length, block) = fresh.split_first_chunk_mut::<4>().expect("four bytes were reserved");
        let written = encoder.compress(piece, block).expect("a block of 32 KiB fits the size asked for");
        *length = (written as u32).to_be_bytes();
        out.truncate(before + 4 + written);
    }
    Ok(())
}

pub(super) fn decompress(input: &[u8], output: &mut Output<'_>) -> Result<(), CompressionError> {
    if !input.starts_with(&MAGIC) {
        return read_block(input, output);
    }
    let mut rest = input;
    while !rest.is_empty() {
        // The header comes first, and again where streams were put one after the other.
        if rest.starts_with(&MAGIC) {
            rest = rest.get(HEADER.len()..).ok_or(CompressionError::Truncated)?;
            continue;
        }
        let (length, after) = rest.split_first_chunk::<4>().ok_or(CompressionError::Truncated)?;
        let length = usize::try_from(i32::from_be_bytes(*length)).map_err(|_| corrupt("snappy block length"))?;
        let (block, after) = after.split_at_checked(length).ok_or(CompressionError::Truncated)?;
        read_block(block, output)?;
        rest = after;
    }
    Ok(())
}

fn read_block(block: &[u8], output: &mut Output<'_>) -> Result<(), CompressionError> {
    if block.is_empty() {
        return Err(CompressionError::Truncated);
    }
    let claimed = snap::raw::decompress_len(block).map_err(|_| corrupt("snappy length"))?;
    if claimed > block.len().saturating_mul(RATIO_MAX) {
        return Err(corrupt("snappy length"));
    }
    if claimed > output.room() {
        return Err(output.too_large());
    }
    output.fill(output.len(), claimed, |bytes, _| {
        snap::raw::Decoder::new().decompress(block, bytes).map_err(|_| corrupt("snappy block"))
    })
}
