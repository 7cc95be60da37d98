//! LZ4 frames.
//!
//! Owns the frame; a block itself is lz4_flex's. Writes what Java's client writes: independent blocks of 64 KiB, no
//! content size, no checksums. Reads every legal frame: linked blocks, all block sizes, all checksums, content size,
//! several frames one after the other, skippable ones between them. Dictionaries are refused.

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
    loop {
        let magic = take_u32(&mut input)?;
        if magic & SKIPPABLE_MASK == SKIPPABLE {
            let length = take_u32(&mut input)?;
            take(&mut input, length as usize)?;
        } else if magic == MAGIC {
            read_frame(&mut input, output)?;
        } else {
            return Err(corrupt("lz4 magic"));
        }
        if input.is_empty() {
            return Ok(());
        }
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
