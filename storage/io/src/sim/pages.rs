//! The bytes of one simulated file: a length and a sparse map of 4 KiB pages.
//!
//! Owns bytes and nothing else. Never knows what is durable: a file has one `Image` that processes see and one that a power
//! cut leaves. Pages are shared copy-on-write, so that keeping both, or a copy of a whole disk, costs little.

use std::collections::BTreeMap;
use std::rc::Rc;

/// Bytes in a page of the map.
pub(crate) const PAGE_BYTES: u64 = 4096;

type Page = [u8; PAGE_BYTES as usize];

/// A file's content. Bytes of a page that is absent, and bytes never written, read as zero.
///
/// Invariant: every byte at or above `len` is zero, in present pages too.
#[derive(Clone, Default)]
pub(crate) struct Image {
    len: u64,
    pages: BTreeMap<u64, Rc<Page>>,
}

impl Image {
    /// Length in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Pages that were written at least once and not cut off since: the blocks that the file occupies.
    #[cfg(test)]
    pub(crate) fn pages_written(&self) -> u64 {
        self.pages.len() as u64
    }

    /// Pages written at or above page `first`.
    pub(crate) fn pages_written_from(&self, first: u64) -> u64 {
        self.pages.range(first..).count() as u64
    }

    /// Whether page `index` occupies a block.
    pub(crate) fn is_written(&self, index: u64) -> bool {
        self.pages.contains_key(&index)
    }

    /// Fills `into` from `position`; answers how many bytes there were (fewer at the end of the file).
    pub(crate) fn read(&self, position: u64, into: &mut [u8]) -> usize {
        let available = self.len.saturating_sub(position).min(into.len() as u64) as usize;
        let into = &mut into[..available];
        for (page, within, range) in spans(position, available) {
            let target = &mut into[range];
            match self.pages.get(&page) {
                Some(bytes) => target.copy_from_slice(&bytes[within..within + target.len()]),
                None => target.fill(0),
            }
        }
        available
    }

    /// Puts `bytes` at `position`, extending the file when they end behind its length.
    pub(crate) fn write(&mut self, position: u64, bytes: &[u8]) {
        for (page, within, range) in spans(position, bytes.len()) {
            let source = &bytes[range];
            let target = self.pages.entry(page).or_insert_with(|| Rc::new([0; PAGE_BYTES as usize]));
            Rc::make_mut(target)[within..within + source.len()].copy_from_slice(source);
        }
        if !bytes.is_empty() {
            self.len = self.len.max(position + bytes.len() as u64);
        }
    }

    /// A number that depends on the length and on every byte.
    pub(crate) fn digest(&self) -> u64 {
        let start = super::random::mix(self.len);
        self.pages.iter().fold(start, |digest, (index, page)| {
            let (words, _) = page.as_chunks::<8>();
            // A page of zeros reads as one that is absent.
            let mut any = 0;
            let content = words.iter().fold(*index, |digest, word| {
                let word = u64::from_le_bytes(*word);
                any |= word;
                (digest ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
            });
            if any == 0 { digest } else { super::random::mix(digest ^ content) }
        })
    }

    /// Makes the file `len` bytes long: what lies behind is gone for good, what is new reads as zero.
    pub(crate) fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.pages.split_off(&len.div_ceil(PAGE_BYTES));
            if let Some(page) = self.pages.get_mut(&(len / PAGE_BYTES)) {
                Rc::make_mut(page)[(len % PAGE_BYTES) as usize..].fill(0);
            }
        }
        self.len = len;
    }

    /// Turns one bit over, as a rotting medium does.
    ///
    /// # Panics
    /// If the position lies behind the end.
    pub(crate) fn flip_bit(&mut self, position: u64, bit: u8) {
        assert!(position < self.len, "bit rot needs a byte: {position} of {}", self.len);
        let mut byte = [0];
        self.read(position, &mut byte);
        self.write(position, &[byte[0] ^ (1 << (bit % 8))]);
    }
}

/// Cuts `length` bytes at `position` into pages: (page, first byte within the page, range within the caller's bytes).
pub(crate) fn spans(position: u64, length: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == length {
            return None;
        }
        let at = position + done as u64;
        let within = (at % PAGE_BYTES) as usize;
        let count = (PAGE_BYTES as usize - within).min(length - done);
        let range = done..done + count;
        done += count;
        Some((at / PAGE_BYTES, within, range))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(image: &Image) -> Vec<u8> {
        let mut into = vec![0xaa; image.len() as usize];
        assert_eq!(image.read(0, &mut into), into.len());
        into
    }

    #[test]
    fn behaves_as_a_vector_would() {
        let mut random = crate::sim::random::Random::new(3);
        let (mut image, mut model) = (Image::default(), Vec::new());
        for step in 0..2000_u64 {
            let position = random.below(20_000);
            if random.chance(200) {
                image.set_len(position);
                model.resize(position as usize, 0);
            } else {
                let piece = vec![step as u8 | 1; random.below(9000) as usize];
                image.write(position, &piece);
                let end = position as usize + piece.len();
                if !piece.is_empty() && model.len() < end {
                    model.resize(end, 0);
                }
                if !piece.is_empty() {
                    model[position as usize..end].copy_from_slice(&piece);
                }
            }
            assert_eq!(image.len(), model.len() as u64);
        }
        assert_eq!(bytes(&image), model);
    }

    #[test]
    fn a_hole_reads_as_zero_and_occupies_nothing() {
        let mut image = Image::default();
        image.write(100_000, b"end");
        assert_eq!(image.pages_written(), 1);
        assert_eq!(bytes(&image)[..100_000], vec![0; 100_000][..]);
        let mut into = [1; 8];
        assert_eq!(image.read(100_001, &mut into), 2);
        assert_eq!(image.read(200_000, &mut into), 0);
    }

    #[test]
    fn a_copy_does_not_follow_its_original() {
        let mut image = Image::default();
        image.write(0, b"before");
        let copy = image.clone();
        image.write(0, b"after!");
        image.flip_bit(0, 0);
        assert_eq!(bytes(&copy), b"before");
        assert_eq!(bytes(&image), b"`fter!");
    }
}
