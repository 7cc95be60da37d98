//! gzip (RFC 1952) around deflate: members one after the other, each with its checksum; bytes behind the last that begin
//! none are passed over.
//!
//! Owns header and trailer; deflate itself is miniz_oxide's. It never keeps a window of its own: the output is the window.

use alloc::boxed::Box;
use alloc::vec::Vec;

use miniz_oxide::DataFormat;
use miniz_oxide::deflate::core::{CompressorOxide, TDEFLFlush, TDEFLStatus, compress_to_output};
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress as inflate_into};

use super::{CompressionError, Output, corrupt};

const MAGIC: [u8; 2] = [0x1f, 0x8b];
const METHOD_DEFLATE: u8 = 8;
const LEVEL_DEFAULT: u8 = 6;
/// Magic, deflate, no flags, no time, no hints, unknown system: as Java writes it.
const HEADER: [u8; 10] = [0x1f, 0x8b, METHOD_DEFLATE, 0, 0, 0, 0, 0, 0, 0xff];

const FLAG_HEADER_CRC: u8 = 0x02;
const FLAG_EXTRA: u8 = 0x04;
const FLAG_NAME: u8 = 0x08;
const FLAG_COMMENT: u8 = 0x10;
const FLAGS_RESERVED: u8 = 0xe0;

/// A member's output is asked for in pieces from this size up, each as large as all before it of that member: many small
/// members behind a large one cost no more than small ones.
const PIECE_MIN: usize = 4 << 10;

pub(super) fn compress(level: Option<i32>, input: &[u8], out: &mut Vec<u8>) -> Result<(), CompressionError> {
    let level = level.map_or(LEVEL_DEFAULT, |level| u8::try_from(level).unwrap_or(LEVEL_DEFAULT));
    let mut deflate = Box::<CompressorOxide>::default();
    deflate.set_format_and_level(DataFormat::Raw, level);
    out.extend_from_slice(&HEADER);
    let (status, consumed) = compress_to_output(&mut deflate, input, TDEFLFlush::Finish, |piece| {
        out.extend_from_slice(piece);
        true
    });
    assert!(status == TDEFLStatus::Done && consumed == input.len(), "deflate takes all input when asked to finish");
    out.extend_from_slice(&crc32fast::hash(input).to_le_bytes());
    // The length modulo 2^32, as the format has it.
    out.extend_from_slice(&(input.len() as u32).to_le_bytes());
    Ok(())
}

pub(super) fn decompress(mut input: &[u8], output: &mut Output<'_>) -> Result<(), CompressionError> {
    let mut inflate = Box::<DecompressorOxide>::default();
    loop {
        input = read_member(input, &mut inflate, output)?;
        // What begins no further member is nobody's, and passed over as in Java.
        if skip_header(input).is_err() {
            return Ok(());
        }
    }
}

/// Reads one member and returns what follows it.
fn read_member<'a>(
    input: &'a [u8],
    inflate: &mut DecompressorOxide,
    output: &mut Output<'_>,
) -> Result<&'a [u8], CompressionError> {
    let mut rest = skip_header(input)?;
    let start = output.len();
    inflate.init();
    while !inflate_piece(&mut rest, inflate, start, output)? {}
    let (crc, rest) = rest.split_first_chunk::<4>().ok_or(CompressionError::Truncated)?;
    let (size, rest) = rest.split_first_chunk::<4>().ok_or(CompressionError::Truncated)?;
    let member = output.written_from(start);
    if u32::from_le_bytes(*size) != member.len() as u32 {
        return Err(corrupt("gzip length"));
    }
    if u32::from_le_bytes(*crc) != crc32fast::hash(member) {
        return Err(corrupt("gzip checksum"));
    }
    Ok(rest)
}

/// Inflates until the member ends (true) or the piece of output is full (false).
fn inflate_piece(
    rest: &mut &[u8],
    inflate: &mut DecompressorOxide,
    member_start: usize,
    output: &mut Output<'_>,
) -> Result<bool, CompressionError> {
    // At the cap an empty piece is tried: the member may end without more output.
    let at_cap = output.room() == 0;
    let too_large = output.too_large();
    let mut ended = false;
    let piece = (output.len() - member_start).max(PIECE_MIN);
    output.fill(member_start, piece, |member, position| {
        let flags = TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
        let (status, read, written) = inflate_into(inflate, rest, member, position, flags);
        let (_, after) = rest.split_at(read);
        *rest = after;
        match status {
            TINFLStatus::Done => ended = true,
            TINFLStatus::HasMoreOutput if at_cap => return Err(too_large),
            TINFLStatus::HasMoreOutput => {}
            TINFLStatus::FailedCannotMakeProgress | TINFLStatus::NeedsMoreInput => {
                return Err(CompressionError::Truncated);
            }
            _ => return Err(corrupt("deflate data")),
        }
        Ok(written)
    })?;
    Ok(ended)
}

/// Takes a member's header off the front of `input`.
fn skip_header(input: &[u8]) -> Result<&[u8], CompressionError> {
    let (header, rest) = input.split_first_chunk::<10>().ok_or(CompressionError::Truncated)?;
    let [magic @ .., method, flags, _, _, _, _, _, _] = header;
    if *magic != MAGIC || *method != METHOD_DEFLATE || flags & FLAGS_RESERVED != 0 {
        return Err(corrupt("gzip header"));
    }
    let mut rest = rest;
    if flags & FLAG_EXTRA != 0 {
        let (length, after) = rest.split_first_chunk::<2>().ok_or(CompressionError::Truncated)?;
        rest = skip(after, usize::from(u16::from_le_bytes(*length)))?;
    }
    if flags & FLAG_NAME != 0 {
        rest = skip_text(rest)?;
    }
    if flags & FLAG_COMMENT != 0 {
        rest = skip_text(rest)?;
    }
    if flags & FLAG_HEADER_CRC != 0 {
        let header_len = input.len() - rest.len();
        let (crc, after) = rest.split_first_chunk::<2>().ok_or(CompressionError::Truncated)?;
        let (covered, _) = input.split_at(header_len);
        if u16::from_le_bytes(*crc) != crc32fast::hash(covered) as u16 {
            return Err(corrupt("gzip header checksum"));
        }
        rest = after;
    }
    Ok(rest)
}

fn skip(input: &[u8], count: usize) -> Result<&[u8], CompressionError> {
    input.get(count..).ok_or(CompressionError::Truncated)
}

/// Skips a text that a zero byte ends.
fn skip_text(input: &[u8]) -> Result<&[u8], CompressionError> {
    let end = input.iter().position(|byte| *byte == 0).ok_or(CompressionError::Truncated)?;
    skip(input, end + 1)
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "tests index what they made themselves")]
mod tests {
    use super::super::{Compression, decompress};
    use super::*;

    fn packed(input: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        compress(None, input, &mut out).unwrap();
        out
    }

    fn unpacked(input: &[u8]) -> Result<Vec<u8>, CompressionError> {
        let mut out = Vec::new();
        decompress(Compression::Gzip, input, 1000, &mut out).map(|()| out)
    }

    #[test]
    fn members_follow_one_another() {
        let two = [packed(b"one "), packed(b""), packed(b"two")].concat();
        assert_eq!(unpacked(&two), Ok(b"one two".to_vec()));
        for tail in [&b"t"[..], b"tail of ten", &[0; 20]] {
            assert_eq!(unpacked(&[&packed(b"one"), tail].concat()), Ok(b"one".to_vec()), "{tail:?}");
        }
        let cut = [packed(b"one"), HEADER.to_vec()].concat();
        assert_eq!(unpacked(&cut), Err(CompressionError::Truncated));
    }

    /// Each of these members once cost as much as all output before it: minutes for a batch of a mebibyte.
    #[test]
    fn small_members_behind_a_large_one_cost_little() {
        let large = packed(&alloc::vec![0; 4 << 20]);
        let small = packed(b"x").repeat(20_000);
        let mut out = Vec::new();
        decompress(Compression::Gzip, &[large, small].concat(), 8 << 20, &mut out).unwrap();
        assert_eq!(out.len(), (4 << 20) + 20_000);
    }

    #[test]
    fn optional_header_fields_are_skipped() {
        let body = packed(b"text");
        let mut header = HEADER.to_vec();
        header[3] = FLAG_EXTRA | FLAG_NAME | FLAG_COMMENT | FLAG_HEADER_CRC;
        header.extend_from_slice(&[3, 0, 9, 9, 9]);
        header.extend_from_slice(b"name\0comment\0");
        let crc = crc32fast::hash(&header) as u16;
        let member = [&header[..], &crc.to_le_bytes(), &body[10..]].concat();
        assert_eq!(unpacked(&member), Ok(b"text".to_vec()));
        for cut in 0..header.len() + 2 {
            assert_eq!(unpacked(&member[..cut]), Err(CompressionError::Truncated), "cut at {cut}");
        }
        let member = [&header[..], &(crc ^ 1).to_le_bytes(), &body[10..]].concat();
        assert_eq!(unpacked(&member), Err(corrupt("gzip header checksum")));
    }

    #[test]
    fn checksum_length_and_flags_are_checked() {
        let good = packed(b"text");
        let altered = |place: usize| {
            let mut bytes = good.clone();
            bytes[place] ^= 0x80;
            unpacked(&bytes).unwrap_err()
        };
        assert_eq!(altered(good.len() - 1), corrupt("gzip length"));
        assert_eq!(altered(good.len() - 5), corrupt("gzip checksum"));
        for place in [0, 1, 2, 3] {
            assert_eq!(altered(place), corrupt("gzip header"));
        }
    }
}
