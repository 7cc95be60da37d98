//! The five codecs of Kafka: none, gzip, snappy, lz4, zstd.
//!
//! Owns what each looks like on the wire, and the promise that a hostile input costs no more than the caller allows:
//! output stops at its cap, and memory grows with the output that is really there, never with what the input claims.
//! It never decides whether something must be decompressed, nor what the cap is.

mod gzip;
mod lz4;
mod snappy;
mod zstd;

use alloc::vec::Vec;
use core::fmt;

/// A codec; its number is the low three attribute bits of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Compression {
    /// The bytes as they are.
    #[default]
    None = 0,
    /// RFC 1952, one or more members.
    Gzip = 1,
    /// Blocks of snappy in the framing of xerial's Java library; read without that framing too.
    Snappy = 2,
    /// LZ4 frames.
    Lz4 = 3,
    /// Zstandard frames.
    Zstd = 4,
}

impl Compression {
    /// All of them, by id.
    pub const ALL: [Compression; 5] = [Self::None, Self::Gzip, Self::Snappy, Self::Lz4, Self::Zstd];

    /// The codec with this id, if Kafka has one.
    pub fn from_id(id: u8) -> Option<Self> {
        Self::ALL.get(usize::from(id)).copied()
    }

    /// Its id, 0 to 4.
    pub fn id(self) -> u8 {
        self as u8
    }

    /// Its name in settings, such as `compression.type`.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }

    /// The codec with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|codec| codec.name() == name)
    }

    /// The levels that [`compress`] accepts, lowest and highest; outside them the nearest is taken. Snappy and lz4 have
    /// one way to compress, and take no notice.
    pub fn levels(self) -> (i32, i32) {
        match self {
            Self::None | Self::Snappy | Self::Lz4 => (0, 0),
            Self::Gzip => (1, 9),
            Self::Zstd => zstd::levels(),
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Appends `input`, compressed, to `out`. Without a level the codec's own default is used (gzip 6, zstd 3).
///
/// # Errors
/// [`CompressionError::Memory`] if the codec gets no memory; `out` is then as it was.
pub fn compress(
    codec: Compression,
    level: Option<i32>,
    input: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), CompressionError> {
    let start = out.len();
    let (lowest, highest) = codec.levels();
    let level = level.map(|level| level.clamp(lowest, highest));
    let done = match codec {
        Compression::None => {
            out.extend_from_slice(input);
            Ok(())
        }
        Compression::Gzip => gzip::compress(level, input, out),
        Compression::Snappy => snappy::compress(input, out),
        Compression::Lz4 => lz4::compress(input, out),
        Compression::Zstd => zstd::compress(level, input, out),
    };
    if done.is_err() {
        out.truncate(start);
    }
    done
}

/// Appends what `input` decompresses to, at most `output_max` bytes, to `out`.
///
/// Beyond what `out` holds already, memory stays below `output_max` plus a fixed amount for the codec's own state (at
/// most 200 KiB), and grows with the output.
///
/// # Errors
/// [`CompressionError`]; `out` is then as it was.
pub fn decompress(
    codec: Compression,
    input: &[u8],
    output_max: usize,
    out: &mut Vec<u8>,
) -> Result<(), CompressionError> {
    let mut output = Output::new(out, output_max);
    let start = output.start;
    let done = match codec {
        Compression::None => output.append(input),
        Compression::Gzip => gzip::decompress(input, &mut output),
        Compression::Snappy => snappy::decompress(input, &mut output),
        Compression::Lz4 => lz4::decompress(input, &mut output),
        Compression::Zstd => zstd::decompress(input, &mut output),
    };
    if done.is_err() {
        out.truncate(start);
    }
    done
}

/// Why bytes cannot be compressed or decompressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CompressionError {
    /// There is more output than the caller allows.
    OutputTooLarge {
        /// The cap, in bytes.
        output_max: usize,
    },
    /// The input ends too early.
    Truncated,
    /// The input is not what the codec writes.
    Corrupt {
        /// What is wrong.
        what: &'static str,
    },
    /// The input is legal, but needs what is not offered (a dictionary, a huge window).
    Unsupported {
        /// What it needs.
        what: &'static str,
    },
    /// The codec got no memory for its state.
    Memory,
}

impl fmt::Display for CompressionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutputTooLarge { output_max } => write!(f, "decompresses to more than {output_max} bytes"),
            Self::Truncated => f.write_str("compressed data ends too early"),
            Self::Corrupt { what } => write!(f, "compressed data is corrupt: {what}"),
            Self::Unsupported { what } => write!(f, "compressed data needs {what}"),
            Self::Memory => f.write_str("no memory for the codec"),
        }
    }
}

impl core::error::Error for CompressionError {}

fn corrupt(what: &'static str) -> CompressionError {
    CompressionError::Corrupt { what }
}

/// Where decompressed bytes go: the tail of the caller's vector, under the cap.
struct Output<'o> {
    bytes: &'o mut Vec<u8>,
    start: usize,
    /// The caller's cap on what follows `start`.
    max: usize,
}

impl<'o> Output<'o> {
    fn new(bytes: &'o mut Vec<u8>, max: usize) -> Self {
        let start = bytes.len();
        Output { bytes, start, max }
    }

    /// Bytes written so far.
    fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// Bytes that may still be written.
    fn room(&self) -> usize {
        self.max - self.len()
    }

    fn too_large(&self) -> CompressionError {
        CompressionError::OutputTooLarge { output_max: self.max }
    }

    /// Appends bytes that are not compressed.
    fn append(&mut self, bytes: &[u8]) -> Result<(), CompressionError> {
        self.reserve(bytes.len())?;
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    /// Makes sure that `count` more bytes are allowed and that there is memory for them: twice as much as before, but
    /// never beyond the cap.
    fn reserve(&mut self, count: usize) -> Result<(), CompressionError> {
        if count > self.room() {
            return Err(self.too_large());
        }
        if self.bytes.capacity() - self.bytes.len() < count {
            let growth = count.max(self.len()).min(self.room());
            self.bytes.try_reserve_exact(growth).map_err(|_| CompressionError::Memory)?;
        }
        Ok(())
    }

    /// Appends what `write` puts into up to `count` fresh bytes, as many as the cap leaves. `write` gets everything from
    /// the `from`th byte of this output on, where the fresh bytes begin in it, and returns how many it used.
    fn fill(
        &mut self,
        from: usize,
        count: usize,
        write: impl FnOnce(&mut [u8], usize) -> Result<usize, CompressionError>,
    ) -> Result<(), CompressionError> {
        let count = count.min(self.room());
        self.reserve(count)?;
        let before = self.bytes.len();
        self.bytes.resize(before + count, 0);
        let from = self.start + from;
        let (_, seen) = self.bytes.split_at_mut(from);
        let used = write(seen, before - from);
        self.bytes.truncate(before + used.unwrap_or(0).min(count));
        used.map(|_| ())
    }

    /// What was written from the `from`th byte of this output on.
    fn written_from(&self, from: usize) -> &[u8] {
        let (_, written) = self.bytes.split_at(self.start + from);
        written
    }
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "tests index what they made themselves")]
mod tests {
    use super::*;
    use crate::random::Random;

    const PACKING: [Compression; 4] = [Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd];

    fn packed(codec: Compression, input: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        compress(codec, None, input, &mut out).unwrap();
        out
    }

    fn unpacked(codec: Compression, input: &[u8], output_max: usize) -> Result<Vec<u8>, CompressionError> {
        let mut out = Vec::new();
        decompress(codec, input, output_max, &mut out).map(|()| out)
    }

    #[test]
    fn what_is_compressed_comes_back() {
        let mut random = Random::new(10);
        let mut inputs: Vec<Vec<u8>> = [1, 2, 61, 4095, 32768, 32769, 65536, 65537, 200_000, 400_000]
            .into_iter()
            .flat_map(|len| [random.bytes(len), random.noise(len), alloc::vec![0; len]])
            .collect();
        inputs.push(Vec::new());
        for input in inputs {
            for codec in Compression::ALL {
                assert_eq!(unpacked(codec, &packed(codec, &input), input.len()), Ok(input.clone()), "{codec}");
            }
        }
    }

    #[test]
    fn both_ways_append() {
        for codec in Compression::ALL {
            let mut out = b"before ".to_vec();
            compress(codec, None, b"some text some text", &mut out).unwrap();
            assert!(out.starts_with(b"before "));
            let input = out.split_off(7);
            decompress(codec, &input, 19, &mut out).unwrap();
            assert_eq!(out, b"before some text some text", "{codec}");
            assert!(decompress(codec, &input, 18, &mut out).is_err());
            assert_eq!(out, b"before some text some text", "{codec}: a failed call leaves no trace");
        }
    }

    /// Case 69: a few bytes that claim to be a great many.
    #[test]
    fn output_stops_at_its_cap_and_memory_with_it() {
        const CAP: usize = 100_000;
        let zeros = alloc::vec![0; 16 << 20];
        for codec in Compression::ALL {
            let bomb = packed(codec, &zeros);
            for cap in [0, 1, CAP] {
                let mut out = Vec::new();
                let error = CompressionError::OutputTooLarge { output_max: cap };
                assert_eq!(decompress(codec, &bomb, cap, &mut out), Err(error), "{codec}");
                assert!(out.capacity() <= cap, "{codec}: {} bytes of memory for {cap}", out.capacity());
            }
            assert_eq!(unpacked(codec, &bomb, zeros.len()).map(|out| out.len()), Ok(zeros.len()));
        }
    }

    /// Case 69, nested: what comes out is never looked into.
    #[test]
    fn a_bomb_inside_a_bomb_stays_packed() {
        for codec in PACKING {
            let inner = packed(codec, &alloc::vec![0; 1 << 20]);
            let outer = packed(codec, &inner);
            assert_eq!(unpacked(codec, &outer, inner.len()), Ok(inner));
        }
    }

    #[test]
    fn nothing_decompresses_from_nothing() {
        for codec in PACKING {
            assert_eq!(unpacked(codec, &[], 100), Err(CompressionError::Truncated), "{codec}");
        }
    }

    #[test]
    fn every_truncation_is_refused() {
        let input = Random::new(11).bytes(3000);
        for codec in [Compression::Gzip, Compression::Lz4, Compression::Zstd] {
            let whole = packed(codec, &input);
            for cut in 0..whole.len() {
                assert!(unpacked(codec, &whole[..cut], 1 << 20).is_err(), "{codec} cut at {cut}");
            }
        }
        // Xerial framing has no end mark: it ends where the input does, between blocks, or inside of a block's length.
        let whole = packed(Compression::Snappy, &input);
        for cut in (1..whole.len()).filter(|cut| !(16..20).contains(cut)) {
            assert!(unpacked(Compression::Snappy, &whole[..cut], 1 << 20).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn damage_is_refused_or_costs_no_more_than_the_cap() {
        let mut random = Random::new(12);
        for round in 0..4000 {
            let codec = PACKING[round % 4];
            let len = random.below(2000);
            let mut bytes = packed(codec, &random.bytes(len));
            for _ in 0..=random.below(4) {
                let place = random.below(bytes.len());
                bytes[place] = random.number() as u8;
            }
            let mut out = Vec::new();
            let done = decompress(codec, &bytes, 5000, &mut out);
            assert!(out.len() <= 5000 && out.capacity() <= 5000, "{codec}");
            assert!(done.is_ok() || out.is_empty(), "{codec}");
        }
    }

    #[test]
    fn levels_are_taken_to_the_nearest() {
        let mut random = Random::new(13);
        let words: Vec<Vec<u8>> = (3..60).map(|len| random.noise(len % 9 + 2)).collect();
        let input: Vec<u8> = (0..4000).flat_map(|_| words[random.below(words.len())].clone()).collect();
        for codec in Compression::ALL {
            let (lowest, highest) = codec.levels();
            for level in [i32::MIN, lowest, 1, highest, i32::MAX] {
                let mut out = Vec::new();
                compress(codec, Some(level), &input, &mut out).unwrap();
                assert_eq!(unpacked(codec, &out, input.len()), Ok(input.clone()), "{codec} level {level}");
            }
        }
        for codec in [Compression::Gzip, Compression::Zstd] {
            let (lowest, highest) = codec.levels();
            let size = |level| {
                let mut out = Vec::new();
                compress(codec, Some(level), &input, &mut out).unwrap();
                out.len()
            };
            assert!(size(highest) < size(lowest), "{codec}");
        }
    }

    #[test]
    fn names_and_ids_are_kafkas() {
        let names = ["none", "gzip", "snappy", "lz4", "zstd"];
        for (codec, (name, id)) in Compression::ALL.into_iter().zip(names.into_iter().zip(0..)) {
            assert_eq!((codec.name(), codec.id()), (name, id));
            assert_eq!((Compression::from_name(name), Compression::from_id(id)), (Some(codec), Some(codec)));
        }
        assert_eq!((Compression::from_id(5), Compression::from_name("lzma")), (None, None));
    }
}
