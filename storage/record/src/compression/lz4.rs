//! LZ4 frames.
//!
//! Owns the frame; a block itself is lz4_flex's. Writes what Java's client writes: independent blocks of 64 KiB, no
//! content size, no checksums. Reads every legal frame: linked blocks, all block sizes, all checksums, content size,
//! several frames one after the other, skippable ones between them; bytes behind the last that begin none are passed
//! over. Dictionaries are refused.

use alloc::vec;
use alloc::vec::Vec;

use lz4_flex::block::{self, CompressTable, DecompressError};
use twox_hash::XxHash32;

use super::{CompressionError, Output, corrupt};

const MAGIC: u32 = 0x184d_2204;
const SKIPPABLE: u32 = 0x184d_2a50;
const SKIPPABLE_MASK: u32 = 0xffff_fff0;
/// Magic, version 1 with independent blocks, blocks of 64 KiB, the header's checksum.
const HEADER: [u8; 7] = [0x04, 0x22, 0x4d, 0x18, 0x60, 0x40, 0x82];
const BLOCK_INPUT: usize = 64 << 10;
/// A block of this length ends the frame.
const END_MARK: u32 = 0;
const STORED: u32 = 1 << 31;

const VERSION_MASK: u8 = 0xc0;
const VERSION: u8 = 0x40;
const INDEPENDENT: u8 = 0x20;
const BLOCK_CHECKSUM: u8 = 0x10;
const CONTENT_SIZE: u8 = 0x08;
const CONTENT_CHECKSUM: u8 = 0x04;
const RESERVED: u8 = 0x02;
const DICTIONARY: u8 = 0x01;

/// How far back a linked block may refer.
const HISTORY: usize = 64 << 10;
/// No byte of a block makes more output: one of a length means up to 255.
const RATIO_MAX: usize = 255;

pub(super) fn compress(input: &[u8], out: &mut Vec<u8>) -> Result<(), CompressionError> {
    let mut table = CompressTable::default();
    let mut scratch = vec![0; block::get_maximum_output_size(input.len().min(BLOCK_INPUT))];
    out.extend_from_slice(&HEADER);
    for piece in input.chunks(BLOCK_INPUT) {
        let written = block::compress_into_with_table(piece, &mut scratch, &mut table)
            .expect("the scratch space holds the worst case");
        match scratch.get(..written) {
            Some(packed) if written < piece.len() => put_block(written as u32, packed, out),
            _ => put_block(piece.len() as u32 | STORED, piece, out),
        }
    }
    out.extend_from_slice(&END_MARK.to_le_bytes());
    Ok(())
}

fn put_block(length: u32, bytes: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(bytes);
}

pub(super) fn decompress(mut input: &[u8], output: &mut Output<'_>) -> Result<(), CompressionError> {
    let mut frames = 0;
    loop {
        let mut rest = input;
        let magic = take_u32(&mut rest);
        if magic.is_ok_and(|magic| magic & SKIPPABLE_MASK == SKIPPABLE) {
            let length = take_u32(&mut rest)?;
            take(&mut rest, length as usize)?;
        } else if magic == Ok(MAGIC) {
            read_frame(&mut rest, output)?;
            frames += 1;
        } else if frames > 0 {
            // What begins no further frame is nobody's, and passed over as in Java.
            return Ok(());
        } else {
            return Err(magic.map_or_else(|error| error, |_| corrupt("lz4 magic")));
        }
        input = rest;
    }
}

/// What a frame's header says.
struct Frame {
    flags: u8,
    block_max: usize,
    content_size: Option<u64>,
}

impl Frame {
    fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Takes the header, after its magic, off the front of `input`.
    fn read(input: &mut &[u8]) -> Result<Self, CompressionError> {
        let header = *input;
        let [flags, sizes] = take_array(input)?;
        if flags & VERSION_MASK != VERSION || flags & RESERVED != 0 || sizes & 0x8f != 0 {
            return Err(corrupt("lz4 header"));
        }
        let block_max = match sizes >> 4 {
            exponent @ 4..=7 => 1 << (8 + 2 * exponent),
            _ => return Err(corrupt("lz4 block size")),
        };
        let content_size = if flags & CONTENT_SIZE != 0 { Some(u64::from_le_bytes(take_array(input)?)) } else { None };
        if flags & DICTIONARY != 0 {
            return Err(CompressionError::Unsupported { what: "an lz4 dictionary" });
        }
        let (descriptor, _) = header.split_at(header.len() - input.len());
        let [checksum] = take_array(input)?;
        if checksum != (XxHash32::oneshot(0, descriptor) >> 8) as u8 {
            return Err(corrupt("lz4 header checksum"));
        }
        Ok(Frame { flags, block_max, content_size })
    }
}

/// Reads one frame, after its magic.
fn read_frame(input: &mut &[u8], output: &mut Output<'_>) -> Result<(), CompressionError> {
    let frame = Frame::read(input)?;
    let start = output.len();
    if frame.content_size.is_some_and(|size| size > output.room() as u64) {
        return Err(output.too_large());
    }
    loop {
        let length = take_u32(input)?;
        if length == END_MARK {
            break;
        }
        let bytes = take(input, (length & !STORED) as usize)?;
        if frame.has(BLOCK_CHECKSUM) && take_u32(input)? != XxHash32::oneshot(0, bytes) {
            return Err(corrupt("lz4 block checksum"));
        }
        if bytes.len() > frame.block_max {
            return Err(corrupt("lz4 block size"));
        }
        if length & STORED == 0 { read_block(bytes, &frame, start, output)? } else { output.append(bytes)? }
    }
    if frame.content_size.is_some_and(|size| size != (output.len() - start) as u64) {
        return Err(corrupt("lz4 content size"));
    }
    if frame.has(CONTENT_CHECKSUM) && take_u32(input)? != XxHash32::oneshot(0, output.written_from(start)) {
        return Err(corrupt("lz4 content checksum"));
    }
    Ok(())
}

fn read_block(
    block: &[u8],
    frame: &Frame,
    frame_start: usize,
    output: &mut Output<'_>,
) -> Result<(), CompressionError> {
    let possible = frame.block_max.min(block.len().saturating_mul(RATIO_MAX));
    let overflow = if possible > output.room() { output.too_large() } else { corrupt("lz4 block size") };
    let history = if frame.has(INDEPENDENT) { 0 } else { (output.len() - frame_start).min(HISTORY) };
    output.fill(output.len() - history, possible, |bytes, position| {
        let (history, fresh) = bytes.split_at_mut(position);
        block::decompress_into_with_dict(block, fresh, history).map_err(|error| match error {
            DecompressError::OutputTooSmall { .. } => overflow,
            _ => corrupt("lz4 block"),
        })
    })
}

fn take<'a>(input: &mut &'a [u8], count: usize) -> Result<&'a [u8], CompressionError> {
    let (taken, rest) = input.split_at_checked(count).ok_or(CompressionError::Truncated)?;
    *input = rest;
    Ok(taken)
}

fn take_array<const N: usize>(input: &mut &[u8]) -> Result<[u8; N], CompressionError> {
    let (taken, rest) = input.split_first_chunk().ok_or(CompressionError::Truncated)?;
    *input = rest;
    Ok(*taken)
}

fn take_u32(input: &mut &[u8]) -> Result<u32, CompressionError> {
    take_array(input).map(u32::from_le_bytes)
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "tests index what they made themselves")]
mod tests {
    use super::super::{Compression, decompress};
    use super::*;
    use crate::random::Random;

    fn unpacked(input: &[u8]) -> Result<Vec<u8>, CompressionError> {
        let mut out = Vec::new();
        decompress(Compression::Lz4, input, 1 << 20, &mut out).map(|()| out)
    }

    /// A frame with these flags, of blocks that are given; `content` is what they decompress to.
    fn frame(flags: u8, sizes: u8, blocks: &[(u32, Vec<u8>)], content: &[u8]) -> Vec<u8> {
        let mut out = MAGIC.to_le_bytes().to_vec();
        out.extend_from_slice(&[VERSION | flags, sizes]);
        if flags & CONTENT_SIZE != 0 {
            out.extend_from_slice(&(content.len() as u64).to_le_bytes());
        }
        let checksum = (XxHash32::oneshot(0, &out[4..]) >> 8) as u8;
        out.push(checksum);
        for (stored, block) in blocks {
            put_block(block.len() as u32 | stored, block, &mut out);
            if flags & BLOCK_CHECKSUM != 0 {
                out.extend_from_slice(&XxHash32::oneshot(0, block).to_le_bytes());
            }
        }
        out.extend_from_slice(&END_MARK.to_le_bytes());
        if flags & CONTENT_CHECKSUM != 0 {
            out.extend_from_slice(&XxHash32::oneshot(0, content).to_le_bytes());
        }
        out
    }

    /// One block, which may refer to `history`.
    fn packed(input: &[u8], history: &[u8]) -> Vec<u8> {
        let mut out = vec![0; block::get_maximum_output_size(input.len())];
        let written = block::compress_into_with_dict(input, &mut out, history).unwrap();
        out.truncate(written);
        out
    }

    const ALL_CHECKS: u8 = BLOCK_CHECKSUM | CONTENT_SIZE | CONTENT_CHECKSUM;

    #[test]
    fn every_combination_of_checks_and_sizes_is_read() {
        let content = Random::new(20).bytes(5000);
        let (first, second) = content.split_at(2000);
        let blocks = [(0, packed(first, b"")), (STORED, second.to_vec())];
        for flags in (0..8).map(|bits| bits << 2 & ALL_CHECKS | (bits & 4) << 2) {
            for sizes in [0x40, 0x50, 0x60, 0x70] {
                assert_eq!(unpacked(&frame(INDEPENDENT | flags, sizes, &blocks, &content)), Ok(content.clone()));
            }
        }
    }

    #[test]
    fn linked_blocks_see_what_came_before_in_their_frame() {
        let content = [&Random::new(21).noise(3000)[..]; 2].concat();
        let (first, second) = content.split_at(3000);
        let linked = packed(second, first);
        assert!(linked.len() < 100, "the second block refers to the first");
        let blocks = [(STORED, first.to_vec()), (0, linked)];
        assert_eq!(unpacked(&frame(ALL_CHECKS, 0x40, &blocks, &content)), Ok(content.clone()));
        assert!(unpacked(&frame(INDEPENDENT, 0x40, &blocks, &content)).is_err(), "independent blocks see nothing");
        let alone = [frame(0, 0x40, &blocks[..1], first), frame(0, 0x40, &blocks[1..], second)].concat();
        assert!(unpacked(&alone).is_err(), "nor does another frame");
    }

    #[test]
    fn frames_and_skippable_ones_follow_one_another() {
        let mut bytes = Vec::new();
        compress(b"one ", &mut bytes).unwrap();
        bytes.extend_from_slice(&[0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3]);
        compress(b"two", &mut bytes).unwrap();
        assert_eq!(unpacked(&bytes), Ok(b"one two".to_vec()));
        assert_eq!(unpacked(&bytes[..bytes.len() - 1]), Err(CompressionError::Truncated));
        bytes.extend_from_slice(b"tail");
        assert_eq!(unpacked(&bytes), Ok(b"one two".to_vec()));
    }

    #[test]
    fn each_check_finds_its_damage() {
        let blocks = [(STORED, b"text".to_vec())];
        let good = frame(INDEPENDENT | ALL_CHECKS, 0x40, &blocks, b"text");
        let altered = |place: usize, bit: u8| {
            let mut bytes = good.clone();
            bytes[place] ^= bit;
            unpacked(&bytes).unwrap_err()
        };
        assert_eq!(altered(4, RESERVED), corrupt("lz4 header"));
        assert_eq!(altered(4, VERSION), corrupt("lz4 header"));
        assert_eq!(altered(5, 0x01), corrupt("lz4 header"));
        assert_eq!(altered(5, 0x40), corrupt("lz4 block size"));
        assert_eq!(altered(14, 1), corrupt("lz4 header checksum"));
        assert_eq!(altered(19, 1), corrupt("lz4 block checksum"));
        assert_eq!(altered(good.len() - 1, 1), corrupt("lz4 content checksum"));
        let sized = frame(INDEPENDENT | CONTENT_SIZE, 0x40, &blocks, b"other");
        assert_eq!(unpacked(&sized), Err(corrupt("lz4 content size")));
        let huge = frame(INDEPENDENT | CONTENT_SIZE, 0x40, &blocks, &[0; (1 << 20) + 1]);
        assert_eq!(unpacked(&huge), Err(CompressionError::OutputTooLarge { output_max: 1 << 20 }));
        let dictionary = frame(INDEPENDENT | DICTIONARY, 0x40, &blocks, b"text");
        assert!(matches!(unpacked(&dictionary), Err(CompressionError::Unsupported { .. })));
    }

    #[test]
    fn blocks_stay_within_the_size_of_their_frame() {
        let zeros = [0; BLOCK_INPUT + 1];
        let too_long = [(0, packed(&zeros, b""))];
        assert_eq!(unpacked(&frame(INDEPENDENT, 0x40, &too_long, &zeros)), Err(corrupt("lz4 block size")));
        assert_eq!(unpacked(&frame(INDEPENDENT, 0x50, &too_long, &zeros)).map(|out| out.len()), Ok(zeros.len()));
        let stored = [(STORED, zeros.to_vec())];
        assert_eq!(unpacked(&frame(INDEPENDENT, 0x40, &stored, &zeros)), Err(corrupt("lz4 block size")));
    }

    #[test]
    fn what_does_not_compress_is_stored() {
        let noise = Random::new(22).noise(1000);
        let mut out = Vec::new();
        compress(&noise, &mut out).unwrap();
        assert_eq!(out[..7], HEADER);
        assert_eq!(out[7..11], (1000 | STORED).to_le_bytes());
        assert_eq!(out.len(), 7 + 4 + 1000 + 4);
    }
}
