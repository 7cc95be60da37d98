//! One simulated file: what processes read, what is durable, and the changes in between.
//!
//! Owns the bytes of one file and the promise of a flush for them. Never decides which changes survive a power cut; that is
//! the [`Survival`] that `disk.rs` draws from the seed.

use super::pages::{Image, PAGE_BYTES, spans};
use super::random::Random;
use super::tree::JournalPosition;
use crate::file::Access;

/// The medium writes this many bytes at once or not at all.
pub(crate) const SECTOR_BYTES: u64 = 512;

/// A place in the order in which the whole disk's changes completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ChangeNumber(pub(crate) u64);

/// How much of the unflushed changes a power cut leaves, one draw for the whole disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survival {
    /// Nothing that was not flushed.
    Nothing,
    /// All of it, as if the cache had been written back just in time.
    Everything,
    /// The changes in the order in which they completed, up to one that is torn.
    Prefix,
    /// Each write whole or not at all, each by itself, `per_mille` of them.
    Writes {
        /// Chance of each write, of 1,000.
        per_mille: u64,
    },
    /// Each 512-byte sector of each write by itself, `per_mille` of them.
    Sectors {
        /// Chance of each sector, of 1,000.
        per_mille: u64,
    },
}

/// A change that no flush has covered.
#[derive(Clone)]
enum Change {
    Write { position: u64, bytes: std::rc::Rc<[u8]>, access: Access },
    Length { len: u64, journal: JournalPosition },
}

/// The file.
#[derive(Clone, Default)]
pub(crate) struct Content {
    seen: Image,
    durable: Image,
    pending: Vec<(ChangeNumber, Change)>,
    /// Pages below this one are reserved by an allocation, written or not.
    reserved_pages: u64,
}

impl Content {
    /// What processes see.
    pub(crate) fn seen(&self) -> &Image {
        &self.seen
    }

    /// What a power cut leaves if nothing unflushed survives.
    #[cfg(test)]
    pub(crate) fn durable(&self) -> &Image {
        &self.durable
    }

    /// Blocks that the file takes from the disk's capacity, in pages.
    pub(crate) fn pages_used(&self) -> u64 {
        self.reserved_pages + self.seen.pages_written_from(self.reserved_pages)
    }

    /// Pages that writing or allocating `length` bytes at `position` would newly take.
    pub(crate) fn pages_missing(&self, position: u64, length: u64) -> u64 {
        let pages = position / PAGE_BYTES..(position + length).div_ceil(PAGE_BYTES);
        pages.filter(|page| *page >= self.reserved_pages && !self.seen.is_written(*page)).count() as u64
    }

    /// Whether `length` bytes at `position` lie in blocks that were written before, below the length: nothing but the bytes
    /// themselves changes then.
    pub(crate) fn is_overwrite(&self, position: u64, length: u64) -> bool {
        let mut pages = position / PAGE_BYTES..(position + length).div_ceil(PAGE_BYTES);
        position + length <= self.seen.len() && pages.all(|page| self.seen.is_written(page))
    }

    /// A write has completed: processes see it, a power cut may take it back.
    pub(crate) fn write(&mut self, number: ChangeNumber, position: u64, bytes: std::rc::Rc<[u8]>, access: Access) {
        self.seen.write(position, &bytes);
        self.pending.push((number, Change::Write { position, bytes, access }));
    }

    /// The length was set.
    pub(crate) fn set_len(&mut self, number: ChangeNumber, len: u64, journal: JournalPosition) {
        self.seen.set_len(len);
        self.reserved_pages = self.reserved_pages.min(len.div_ceil(PAGE_BYTES));
        self.pending.push((number, Change::Length { len, journal }));
    }

    /// Blocks up to `end` are the file's from now on; they hold nothing yet.
    pub(crate) fn reserve(&mut self, end: u64) {
        self.reserved_pages = self.reserved_pages.max(end.div_ceil(PAGE_BYTES));
    }

    /// A flush of this file that began before `end` has succeeded; answers the set lengths that it made durable.
    pub(crate) fn flushed(&mut self, end: ChangeNumber) -> Vec<JournalPosition> {
        let mut lengths = Vec::new();
        let covered = self.pending.partition_point(|(number, _)| *number < end);
        for (_, change) in self.pending.drain(..covered) {
            match change {
                Change::Write { position, bytes, .. } => self.durable.write(position, &bytes),
                Change::Length { len, journal } => {
                    self.durable.set_len(len);
                    lengths.push(journal);
                }
            }
        }
        lengths
    }

    /// The device's cache was emptied by a flush that began before `end`. That writes neither pages of the page cache nor
    /// metadata, so it covers direct overwrites only: of whole pages that are durably written and lie below the durable
    /// length. The rest of a write stays pending.
    pub(crate) fn device_flushed(&mut self, end: ChangeNumber) {
        self.settle_overwrites(end, |durable, at, piece| durable.write(at, piece));
    }

    /// The device's cache was to be emptied by a flush that began before `end`, and is lost instead: of what the flush would
    /// have covered some sectors reached the medium, and the others never will.
    pub(crate) fn device_flush_failed(&mut self, end: ChangeNumber, random: &mut Random) {
        self.settle_overwrites(end, |durable, at, piece| tear(durable, at, piece, random, 300));
    }

    /// Takes the changes that a flush of the device covers out of the pending ones and gives them to `settle`, page by page.
    fn settle_overwrites(&mut self, end: ChangeNumber, mut settle: impl FnMut(&mut Image, u64, &[u8])) {
        let mut kept: Vec<(ChangeNumber, Change)> = Vec::new();
        for (number, change) in std::mem::take(&mut self.pending) {
            let Change::Write { position, bytes, access: Access::Direct } = &change else {
                kept.push((number, change));
                continue;
            };
            if number >= end {
                kept.push((number, change));
                continue;
            }
            for (page, within, range) in spans(*position, bytes.len()) {
                let at = page * PAGE_BYTES + within as u64;
                let piece = &bytes[range];
                let in_place = self.durable.is_written(page) && at + piece.len() as u64 <= self.durable.len();
                let overtakes = || kept.iter().any(|(_, change)| change.concerns(at, piece.len() as u64));
                if in_place && !overtakes() {
                    settle(&mut self.durable, at, piece);
                } else {
                    let left = Change::Write { position: at, bytes: piece.into(), access: Access::Direct };
                    kept.push((number, left));
                }
            }
        }
        self.pending = kept;
    }

    /// A flush that began before `end` has failed. As on Linux the pages count as clean from now on: some of their sectors
    /// reached the medium, no later flush will bring the others, and processes go on reading what they wrote.
    pub(crate) fn flush_failed(&mut self, end: ChangeNumber, random: &mut Random) -> Vec<JournalPosition> {
        let covered = self.pending.partition_point(|(number, _)| *number < end);
        let mut lengths = Vec::new();
        for (_, change) in self.pending.drain(..covered) {
            match change {
                Change::Write { position, bytes, .. } => tear(&mut self.durable, position, &bytes, random, 300),
                Change::Length { len, journal } => {
                    self.durable.set_len(len);
                    lengths.push(journal);
                }
            }
        }
        lengths
    }

    /// Numbers of the changes that no flush has covered.
    pub(crate) fn pending(&self) -> impl Iterator<Item = ChangeNumber> {
        self.pending.iter().map(|(number, _)| *number)
    }

    /// Power is lost. `torn` is the change at which [`Survival::Prefix`] ends; `length_survived` tells of a set length.
    pub(crate) fn cut(
        &mut self,
        survival: Survival,
        torn: ChangeNumber,
        length_survived: impl Fn(JournalPosition) -> bool,
        random: &mut Random,
    ) {
        for (number, change) in std::mem::take(&mut self.pending) {
            match change {
                Change::Length { len, journal } if length_survived(journal) => self.durable.set_len(len),
                Change::Length { .. } => {}
                Change::Write { position, bytes, .. } => {
                    survive(&mut self.durable, survival, number.cmp(&torn), position, &bytes, random);
                }
            }
        }
        self.seen = self.durable.clone();
        self.reserved_pages = 0;
    }

    /// The medium rots: one bit of what is durable turns over, unseen until it is read from the medium.
    pub(crate) fn flip_bit(&mut self, position: u64, bit: u8) {
        self.seen.flip_bit(position, bit);
        if position < self.durable.len() {
            self.durable.flip_bit(position, bit);
        }
    }
}

impl Change {
    /// Whether the change decides about any of `length` bytes at `at`.
    fn concerns(&self, at: u64, length: u64) -> bool {
        match self {
            Change::Write { position, bytes, .. } => at < position + bytes.len() as u64 && *position < at + length,
            Change::Length { len, .. } => *len < at + length,
        }
    }
}

/// Puts what survives of one unflushed write into `image`.
pub(crate) fn survive(
    image: &mut Image,
    survival: Survival,
    place: std::cmp::Ordering,
    position: u64,
    bytes: &[u8],
    random: &mut Random,
) {
    use std::cmp::Ordering::{Equal, Greater, Less};
    match (survival, place) {
        (Survival::Nothing, _) | (Survival::Prefix, Greater) => {}
        (Survival::Everything, _) | (Survival::Prefix, Less) => image.write(position, bytes),
        (Survival::Prefix, Equal) => tear(image, position, bytes, random, 500),
        (Survival::Writes { per_mille }, _) => {
            if random.chance(per_mille) {
                image.write(position, bytes);
            }
        }
        (Survival::Sectors { per_mille }, _) => tear(image, position, bytes, random, per_mille),
    }
}

/// Each sector of a write survives by itself. The length that the write gave the file may survive without the bytes, which
/// then read as zero.
fn tear(image: &mut Image, position: u64, bytes: &[u8], random: &mut Random, per_mille: u64) {
    let end = position + bytes.len() as u64;
    let mut at = position;
    while at < end {
        let sector_end = (at / SECTOR_BYTES + 1) * SECTOR_BYTES;
        let next = sector_end.min(end);
        if random.chance(per_mille) {
            image.write(at, &bytes[(at - position) as usize..(next - position) as usize]);
        }
        at = next;
    }
    if image.len() < end && random.chance(200) {
        image.set_len(end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const A: &[u8] = &[b'a'; 1024];
    const B: &[u8] = &[b'b'; 1024];

    fn flushed_file(len: usize) -> Content {
        let mut content = Content::default();
        content.write(ChangeNumber(0), 0, vec![b'.'; len].into(), Access::Cached);
        assert!(content.flushed(ChangeNumber(1)).is_empty());
        content
    }

    fn bytes(image: &Image) -> Vec<u8> {
        let mut bytes = vec![0; image.len() as usize];
        image.read(0, &mut bytes);
        bytes
    }

    fn outcomes(content: &Content, survival: Survival) -> BTreeSet<Vec<u8>> {
        let outcome = |seed| {
            let mut content = content.clone();
            content.cut(survival, ChangeNumber(2), |_| true, &mut Random::new(seed));
            bytes(content.seen())
        };
        (0..2000).map(outcome).collect()
    }

    #[test]
    fn a_flush_covers_what_completed_before_it_began() {
        let mut content = flushed_file(0);
        content.write(ChangeNumber(1), 0, A.into(), Access::Cached);
        content.write(ChangeNumber(2), 1024, B.into(), Access::Cached);
        content.flushed(ChangeNumber(2));
        assert_eq!(bytes(content.durable()), A);
        assert_eq!(bytes(content.seen()), [A, B].concat());
        assert_eq!(content.pending().collect::<Vec<_>>(), [ChangeNumber(2)]);
    }

    #[test]
    fn sectors_survive_each_by_itself_and_never_in_part() {
        let mut content = flushed_file(2048);
        content.write(ChangeNumber(1), 256, A.into(), Access::Cached);
        let seen = outcomes(&content, Survival::Sectors { per_mille: 500 });
        // 1,024 bytes at 256 touch three sectors, so eight outcomes, one for each subset.
        assert_eq!(seen.len(), 8);
        let at_boundaries = |bytes: &Vec<u8>| {
            bytes
                .iter()
                .enumerate()
                .skip(1)
                .all(|(index, byte)| *byte == bytes[index - 1] || [256, 512, 1024, 1280].contains(&index))
        };
        assert!(seen.iter().all(at_boundaries));
    }

    #[test]
    fn an_overwritten_sector_may_fall_back_to_any_earlier_version() {
        let mut content = flushed_file(512);
        content.write(ChangeNumber(1), 0, A[..512].into(), Access::Cached);
        content.write(ChangeNumber(2), 0, B[..512].into(), Access::Cached);
        let first: BTreeSet<u8> =
            outcomes(&content, Survival::Writes { per_mille: 500 }).into_iter().map(|bytes| bytes[0]).collect();
        assert_eq!(first, BTreeSet::from(*b".ab"));
    }

    #[test]
    fn a_later_write_may_survive_an_earlier_one_except_in_order() {
        let mut content = flushed_file(1024);
        content.write(ChangeNumber(1), 0, A[..512].into(), Access::Cached);
        content.write(ChangeNumber(2), 512, B[..512].into(), Access::Cached);
        let only_later = [&[b'.'; 512][..], &B[..512]].concat();
        assert!(outcomes(&content, Survival::Writes { per_mille: 500 }).contains(&only_later));
        assert!(outcomes(&content, Survival::Sectors { per_mille: 500 }).contains(&only_later));
        let in_order = outcomes(&content, Survival::Prefix);
        assert!(!in_order.contains(&only_later));
        assert_eq!(in_order.len(), 2, "the second is torn or whole");
        assert_eq!(outcomes(&content, Survival::Nothing), BTreeSet::from([vec![b'.'; 1024]]));
        assert_eq!(outcomes(&content, Survival::Everything), BTreeSet::from([[&A[..512], &B[..512]].concat()]));
    }

    #[test]
    fn a_length_may_survive_without_its_bytes() {
        let mut content = flushed_file(512);
        content.write(ChangeNumber(1), 512, A.into(), Access::Cached);
        let seen = outcomes(&content, Survival::Sectors { per_mille: 500 });
        let lengths: BTreeSet<usize> = seen.iter().map(Vec::len).collect();
        assert_eq!(lengths, BTreeSet::from([512, 1024, 1536]));
        assert!(seen.contains(&[&[b'.'; 512][..], &[0; 1024]].concat()), "longer, but zeros");
    }

    #[test]
    fn a_set_length_that_is_lost_gives_the_bytes_back() {
        let mut content = flushed_file(1024);
        content.set_len(ChangeNumber(1), 100, Tree::new().journal_end());
        let cut = |survived: bool| {
            let mut content = content.clone();
            content.cut(Survival::Nothing, ChangeNumber(2), |_| survived, &mut Random::new(0));
            content.seen().len()
        };
        assert_eq!((cut(true), cut(false)), (100, 1024));
    }

    #[test]
    fn a_device_flush_covers_direct_overwrites_and_nothing_that_needs_metadata() {
        let mut content = flushed_file(8192);
        content.write(ChangeNumber(1), 4000, A.into(), Access::Direct);
        content.write(ChangeNumber(2), 8192, B.into(), Access::Direct);
        content.device_flushed(ChangeNumber(3));
        assert_eq!(bytes(content.durable())[4000..5024], *A);
        assert_eq!(content.durable().len(), 8192, "an extension waits for its own file's flush");
        content.write(ChangeNumber(3), 0, B.into(), Access::Cached);
        content.device_flushed(ChangeNumber(4));
        assert_eq!(bytes(content.durable())[0], b'.', "a dirty page of the page cache is not in the device's cache");
        content.write(ChangeNumber(4), 512, A.into(), Access::Direct);
        content.device_flushed(ChangeNumber(5));
        assert_eq!(bytes(content.durable())[512], b'.', "nor is the order of changes to one place upset");
    }

    #[test]
    fn a_set_length_that_is_not_durable_stands_before_what_lies_behind_it() {
        let journal = Tree::new().journal_end();
        let mut shrunk = flushed_file(8192);
        shrunk.set_len(ChangeNumber(1), 4000, journal);
        shrunk.write(ChangeNumber(2), 0, A.into(), Access::Direct);
        shrunk.write(ChangeNumber(3), 3500, A.into(), Access::Direct);
        shrunk.device_flushed(ChangeNumber(4));
        assert_eq!(bytes(shrunk.durable())[..1024], *A, "below the new length the order does not matter");
        assert_eq!(bytes(shrunk.durable())[3500], b'.');
        let mut grown = flushed_file(8192);
        grown.set_len(ChangeNumber(1), 1 << 20, journal);
        grown.write(ChangeNumber(2), 4096, A.into(), Access::Direct);
        grown.write(ChangeNumber(3), 8192, A.into(), Access::Direct);
        grown.device_flushed(ChangeNumber(4));
        assert_eq!(bytes(grown.durable())[4096..5120], *A, "blocks that were written stay in place while a file grows");
        assert_eq!(grown.durable().len(), 8192);
    }

    #[test]
    fn a_page_that_was_only_reserved_is_not_in_place() {
        let mut content = flushed_file(0);
        content.reserve(1 << 20);
        content.set_len(ChangeNumber(1), 1 << 20, Tree::new().journal_end());
        content.flushed(ChangeNumber(2));
        content.write(ChangeNumber(2), 0, A.into(), Access::Direct);
        content.device_flushed(ChangeNumber(3));
        assert_eq!(content.pending().count(), 1);
        content.flushed(ChangeNumber(3));
        content.write(ChangeNumber(3), 0, B.into(), Access::Direct);
        content.device_flushed(ChangeNumber(4));
        assert_eq!(content.pending().count(), 0);
    }

    #[test]
    fn a_failed_flush_of_the_device_loses_the_overwrites_of_every_file() {
        let mut content = flushed_file(8192);
        content.write(ChangeNumber(1), 0, vec![b'a'; 8192].into(), Access::Direct);
        content.write(ChangeNumber(2), 8192, A.into(), Access::Direct);
        content.device_flush_failed(ChangeNumber(3), &mut Random::new(5));
        assert_eq!(content.pending().count(), 1, "what waits for its own file's flush is not lost by this one");
        let durable = bytes(content.durable());
        assert!(durable.contains(&b'.') && durable.contains(&b'a'), "some sectors are lost, some are not");
    }

    #[test]
    fn after_a_failed_flush_the_next_one_brings_nothing() {
        // Case 26.
        let mut content = flushed_file(8192);
        content.write(ChangeNumber(1), 0, vec![b'a'; 8192].into(), Access::Cached);
        content.flush_failed(ChangeNumber(2), &mut Random::new(5));
        content.flushed(ChangeNumber(2));
        assert_eq!(bytes(content.seen()), vec![b'a'; 8192], "processes still read it");
        let durable = bytes(content.durable());
        assert!(durable.contains(&b'.') && durable.contains(&b'a'), "some sectors are lost, some are not");
    }

    use super::super::tree::Tree;
}
