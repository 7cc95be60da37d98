//! Zstandard frames (RFC 8878).
//!
//! Owns the walk over frames and blocks that bounds their output; the blocks themselves are libzstd's. A frame is
//! decompressed straight into the output, so the window it asks for costs no memory of its own; windows beyond 128 MiB
//! are refused all the same, as libzstd and Kafka refuse them. Dictionaries are refused.

use alloc::vec::Vec;

use zstd_safe::{CCtx, CParameter, DCtx};

use super::{CompressionError, Output, corrupt};

const MAGIC: u32 = 0xfd2f_b528;
const SKIPPABLE: u32 = 0x184d_2a50;
const SKIPPABLE_MASK: u32 = 0xffff_fff0;
const LEVEL_DEFAULT: i32 = 3;
/// The largest window that a frame may ask for.
const WINDOW_MAX: u64 = 128 << 20;
/// What one block decompresses to at most.
const BLOCK_MAX: u64 = 128 << 10;
/// What libzstd returns when the output does not fit: minus error 70, a number its ABI promises to keep.
const OUTPUT_TOO_SMALL: usize = 70_usize.wrapping_neg();
/// The first attempt allows so much output, or so many times the input; each further one four times as much.
const ATTEMPT_MIN: usize = 4 << 10;
const ATTEMPT_RATIO: usize = 8;
const ATTEMPT_GROWTH: usize = 4;

pub(super) fn levels() -> (i32, i32) {
    (zstd_safe::min_c_level(), zstd_safe::max_c_level())
}

pub(super) fn compress(level: Option<i32>, input: &[u8], out: &mut Vec<u8>) -> Result<(), CompressionError> {
    let mut context = CCtx::try_create().ok_or(CompressionError::Memory)?;
    let level = CParameter::CompressionLevel(level.unwrap_or(LEVEL_DEFAULT));
    context.set_parameter(level).map_err(|_| CompressionError::Memory)?;
    let start = out.len();
    out.resize(start + zstd_safe::compress_bound(input.len()), 0);
    let (_, fresh) = out.split_at_mut(start);
    let written = context.compress2(fresh, input).map_err(|_| CompressionError::Memory)?;
    out.truncate(start + written);
    Ok(())
}

pub(super) fn decompress(mut input: &[u8], output: &mut Output<'_>) -> Result<(), CompressionError> {
    let mut context = DCtx::try_create().ok_or(CompressionError::Memory)?;
    loop {
        match Frame::measure(&mut input)? {
            Frame::Skippable => {}
            Frame::Data { bytes, output_bound } => read_frame(&mut context, bytes, output_bound, output)?,
        }
        if input.is_empty() {
            return Ok(());
        }
    }
}

/// Decompresses one frame. What it claims is not believed at once: memory is given in growing attempts.
fn read_frame(
    context: &mut DCtx<'_>,
    frame: &[u8],
    output_bound: u64,
    output: &mut Output<'_>,
) -> Result<(), CompressionError> {
    let bound = usize::try_from(output_bound).unwrap_or(usize::MAX);
    let most = bound.min(output.room());
    let mut attempt = ATTEMPT_MIN.max(frame.len().saturating_mul(ATTEMPT_RATIO)).min(most);
    loop {
        let mut full = false;
        let too_large = output.too_large();
        let done = output.fill(output.len(), attempt, |bytes, _| {
            context.decompress(bytes, frame).map_err(|code| {
                full = code == OUTPUT_TOO_SMALL;
                if full { too_large } else { corrupt(zstd_safe::get_error_name(code)) }
            })
        });
        if !full || attempt == most {
            return done;
        }
        attempt = attempt.saturating_mul(ATTEMPT_GROWTH).min(most);
    }
}

/// One frame at the front of the input.
enum Frame<'a> {
    Skippable,
    Data { bytes: &'a [u8], output_bound: u64 },
}

impl<'a> Frame<'a> {
    /// Takes a frame off the front of `input`, looking at its header and the headers of its blocks.
    fn measure(input: &mut &'a [u8]) -> Result<Self, CompressionError> {
        let start = *input;
        let magic = u32::from_le_bytes(take_array(input)?);
        if magic & SKIPPABLE_MASK == SKIPPABLE {
            let length = u32::from_le_bytes(take_array(input)?);
            skip(input, length as usize)?;
            return Ok(Frame::Skippable);
        }
        if magic != MAGIC {
            return Err(corrupt("zstd magic"));
        }
        let header = Header::read(input)?;
        let blocks = measure_blocks(input)?;
        if header.checksum {
            skip(input, 4)?;
        }
        let (bytes, _) = start.split_at(start.len() - input.len());
        match header.content_size {
            Some(size) if size > blocks => Err(corrupt("zstd content size")),
            size => Ok(Frame::Data { bytes, output_bound: size.unwrap_or(blocks) }),
        }
    }
}

struct Header {
    content_size: Option<u64>,
    checksum: bool,
}

impl Header {
    /// Takes a frame header, after its magic, off the front of `input`.
    fn read(input: &mut &[u8]) -> Result<Self, CompressionError> {
        let [descriptor] = take_array(input)?;
        if descriptor & 0x08 != 0 {
            return Err(corrupt("zstd header"));
        }
        let single_segment = descriptor & 0x20 != 0;
        if !single_segment {
            let [window] = take_array(input)?;
            check_window(window)?;
        }
        let dictionary = take_number(input, [0, 1, 2, 4].get(usize::from(descriptor & 3)))?;
        if dictionary.is_some_and(|id| id != 0) {
            return Err(CompressionError::Unsupported { what: "a zstd dictionary" });
        }
        let content_size = match descriptor >> 6 {
            0 if single_segment => take_number(input, Some(&1))?,
            0 => None,
            1 => take_number(input, Some(&2))?.map(|size| size + 256),
            2 => take_number(input, Some(&4))?,
            _ => take_number(input, Some(&8))?,
        };
        Ok(Header { content_size, checksum: descriptor & 0x04 != 0 })
    }
}

fn check_window(descriptor: u8) -> Result<(), CompressionError> {
    let base = 1u64 << (10 + (descriptor >> 3));
    let window = base + base / 8 * u64::from(descriptor & 7);
    if window > WINDOW_MAX {
        return Err(CompressionError::Unsupported { what: "a zstd window above 128 MiB" });
    }
    Ok(())
}

/// Takes the blocks of a frame off the front of `input` and returns how much they can decompress to.
fn measure_blocks(input: &mut &[u8]) -> Result<u64, CompressionError> {
    let mut bound = 0;
    loop {
        let [low, middle, high] = take_array(input)?;
        let header = u32::from_le_bytes([low, middle, high, 0]);
        let size = header >> 3;
        let (content, output) = match header >> 1 & 3 {
            0 => (size, u64::from(size)),
            1 => (1, u64::from(size)),
            2 => (size, BLOCK_MAX),
            _ => return Err(corrupt("zstd block")),
        };
        skip(input, content as usize)?;
        bound += output;
        if header & 1 == 1 {
            return Ok(bound);
        }
    }
}

/// Takes a little-endian number of so many bytes; none for no bytes.
fn take_number(input: &mut &[u8], bytes: Option<&usize>) -> Result<Option<u64>, CompressionError> {
    let bytes = *bytes.expect("two bits have four values");
    if bytes == 0 {
        return Ok(None);
    }
    let (field, rest) = input.split_at_checked(bytes).ok_or(CompressionError::Truncated)?;
    *input = rest;
    Ok(Some(field.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))))
}

fn take_array<const N: usize>(input: &mut &[u8]) -> Result<[u8; N], CompressionError> {
    let (taken, rest) = input.split_first_chunk().ok_or(CompressionError::Truncated)?;
    *input = rest;
    Ok(*taken)
}

fn skip(input: &mut &[u8], count: usize) -> Result<(), CompressionError> {
    *input = input.get(count..).ok_or(CompressionError::Truncated)?;
    Ok(())
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "tests index what they made themselves")]
mod tests {
    use super::super::{Compression, decompress};
    use super::*;

    fn unpacked(input: &[u8], output_max: usize) -> Result<Vec<u8>, CompressionError> {
        let mut out = Vec::new();
        decompress(Compression::Zstd, input, output_max, &mut out).map(|()| out)
    }

    /// A frame of one run-length block, the last: `size` times the letter a.
    fn run(header: &[u8], size: u32) -> Vec<u8> {
        let block = (size << 3 | 1 << 1 | 1).to_le_bytes();
        [&MAGIC.to_le_bytes(), header, &block[..3], b"a"].concat()
    }

    #[test]
    fn frames_and_skippable_ones_follow_one_another() {
        let mut bytes = Vec::new();
        compress(None, b"one ", &mut bytes).unwrap();
        bytes.extend_from_slice(&[0x5f, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3]);
        compress(None, b"two", &mut bytes).unwrap();
        assert_eq!(unpacked(&bytes, 7), Ok(b"one two".to_vec()));
        assert!(unpacked(&bytes, 6).is_err());
        bytes.extend_from_slice(b"tail");
        assert_eq!(unpacked(&bytes, 7), Err(corrupt("zstd magic")));
    }

    #[test]
    fn a_frame_without_content_size_is_read() {
        // No content size, window of 1 KiB, then of 128 MiB: the window costs nothing.
        for window in [0, 17 << 3] {
            assert_eq!(unpacked(&run(&[0, window], 900), 900).map(|out| out.len()), Ok(900));
        }
        assert_eq!(unpacked(&run(&[0, 0], 900), 899), Err(CompressionError::OutputTooLarge { output_max: 899 }));
    }

    #[test]
    fn huge_windows_and_dictionaries_are_refused() {
        for window in [17 << 3 | 1, 18 << 3, 31 << 3 | 7] {
            let error = CompressionError::Unsupported { what: "a zstd window above 128 MiB" };
            assert_eq!(unpacked(&run(&[0, window], 9), 100), Err(error));
        }
        let error = CompressionError::Unsupported { what: "a zstd dictionary" };
        assert_eq!(unpacked(&run(&[1, 0, 77], 9), 100), Err(error));
    }

    #[test]
    fn a_content_size_that_the_blocks_cannot_reach_is_refused() {
        // Single segment with a content size of eight bytes.
        let header = |size: u64| [&[0xe0][..], &size.to_le_bytes()].concat();
        assert_eq!(unpacked(&run(&header(900), 900), 900).map(|out| out.len()), Ok(900));
        assert_eq!(unpacked(&run(&header(901), 900), 1 << 20), Err(corrupt("zstd content size")));
        assert_eq!(unpacked(&run(&header(u64::MAX), 900), 1 << 20), Err(corrupt("zstd content size")));
        assert!(unpacked(&run(&header(899), 900), 1 << 20).is_err());
    }

    #[test]
    fn claims_are_not_believed_before_there_is_output() {
        // Four hundred blocks that claim 128 KiB each, and are damaged.
        let mut frame = [&MAGIC.to_le_bytes()[..], &[0, 8 << 3]].concat();
        for last in (0..400).map(|i| u32::from(i == 399)) {
            frame.extend_from_slice(&(3 << 3 | 2 << 1 | last).to_le_bytes()[..3]);
            frame.extend_from_slice(&[0xff; 3]);
        }
        let mut out = Vec::new();
        assert!(matches!(
            decompress(Compression::Zstd, &frame, 1 << 30, &mut out),
            Err(CompressionError::Corrupt { .. })
        ));
        assert!(out.capacity() <= frame.len() * ATTEMPT_RATIO, "{} bytes of memory", out.capacity());
    }

    #[test]
    fn a_checksum_is_checked() {
        // "a", single segment, content size 1, with a checksum.
        let mut frame = [&MAGIC.to_le_bytes()[..], &[0x24, 1, 9, 0, 0, b'a']].concat();
        frame.extend_from_slice(&[0, 0, 0, 0]);
        assert!(matches!(unpacked(&frame, 10), Err(CompressionError::Corrupt { .. })));
        assert_eq!(unpacked(&frame[..frame.len() - 1], 10), Err(CompressionError::Truncated));
    }
}
