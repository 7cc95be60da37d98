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
    // Fewer bytes than a length behind the last block are nobody's, and passed over as in Java.
    while rest.len() >= 4 {
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

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "tests index what they made themselves")]
mod tests {
    use super::super::{Compression, decompress};
    use super::*;

    fn packed(input: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        compress(input, &mut out).unwrap();
        out
    }

    fn unpacked(input: &[u8]) -> Result<Vec<u8>, CompressionError> {
        let mut out = Vec::new();
        decompress(Compression::Snappy, input, 200_000, &mut out).map(|()| out)
    }

    #[test]
    fn blocks_hold_what_javas_hold() {
        let bytes = packed(&[7; BLOCK_INPUT + 1]);
        assert_eq!(bytes[..16], HEADER);
        let first = u32::from_be_bytes(bytes[16..20].try_into().unwrap()) as usize;
        assert_eq!(snap::raw::decompress_len(&bytes[20..20 + first]), Ok(BLOCK_INPUT));
        let second = &bytes[20 + first..];
        assert_eq!(u32::from_be_bytes(second[..4].try_into().unwrap()) as usize, second.len() - 4);
        assert_eq!(snap::raw::decompress_len(&second[4..]), Ok(1));
    }

    #[test]
    fn one_raw_block_is_read_too() {
        let raw = snap::raw::Encoder::new().compress_vec(b"raw raw raw raw").unwrap();
        assert_eq!(unpacked(&raw), Ok(b"raw raw raw raw".to_vec()));
    }

    #[test]
    fn streams_follow_one_another() {
        let two = [packed(b"one "), packed(b"two")].concat();
        assert_eq!(unpacked(&two), Ok(b"one two".to_vec()));
        assert_eq!(unpacked(&HEADER), Ok(Vec::new()));
    }

    #[test]
    fn impossible_lengths_are_refused_before_memory_is_taken() {
        // A raw block of three bytes that claims 2^28, and framed blocks with lengths beyond their stream.
        let claims = [0x80, 0x80, 0x80, 0x80, 0x01, 0, 0];
        assert_eq!(unpacked(&claims), Err(corrupt("snappy length")));
        let framed = |length: i32| [&HEADER[..], &length.to_be_bytes(), &[1, 0, b'a']].concat();
        assert_eq!(unpacked(&framed(3)), Ok(b"a".to_vec()));
        assert_eq!(unpacked(&framed(4)), Err(CompressionError::Truncated));
        assert_eq!(unpacked(&framed(i32::MAX)), Err(CompressionError::Truncated));
        assert_eq!(unpacked(&framed(-1)), Err(corrupt("snappy block length")));
    }
}
