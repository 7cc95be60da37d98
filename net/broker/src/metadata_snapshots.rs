//! The files in which the metadata is stored in one piece, so that a start replays only what came after.
//!
//! Owns `heddle.metadata.0` and `heddle.metadata.1`: two, written in turn, so that one that decays is no loss while the
//! metadata log still has everything behind the other. Never decides when to write one, and trims nothing itself.

use std::ops::RangeInclusive;

use heddle_cluster::Snapshot;
use heddle_engine::layout::METADATA_PREFIX;
use heddle_engine::{DataDir, Error};
use heddle_io::{Io, Lease};
use heddle_record::Offset;
use heddle_record::checksum::crc32c;

/// The first bytes of a snapshot file.
const MAGIC: [u8; 8] = *b"HEDDLEMD";
/// The version of the format, after the magic.
const VERSION: u32 = 1;
/// Magic, version, CRC-32C of the rest, both little-endian.
const HEADER_LEN: usize = 16;

/// The two files.
#[derive(Debug)]
pub(crate) struct MetadataSnapshots {
    data_dir: DataDir,
    /// The end offset of the snapshot in each file; nothing where there is none that could be used.
    ends: [Option<Offset>; 2],
}

impl MetadataSnapshots {
    /// Reads both files and gives the newest snapshot that goes together with a log of these offsets. Any other is
    /// ignored, with a line in the log.
    ///
    /// # Errors
    /// A file that is there cannot be read.
    pub(crate) async fn open(
        io: &Io,
        data_dir: &DataDir,
        log: RangeInclusive<Offset>,
    ) -> Result<(Self, Option<Snapshot>), Error> {
        let mut ends = [None; 2];
        let mut newest: Option<Snapshot> = None;
        for (slot, end) in ends.iter_mut().enumerate() {
            let file = name(slot);
            let Some(bytes) = data_dir.read_file(io, &file).await? else { continue };
            match read(&bytes, &log) {
                Ok(snapshot) => {
                    *end = Some(snapshot.end_offset);
                    if newest.as_ref().is_none_or(|newest| newest.end_offset < snapshot.end_offset) {
                        newest = Some(snapshot);
                    }
                }
                Err(reason) => tracing::warn!(file, reason, "a snapshot of the metadata is ignored"),
            }
        }
        Ok((Self { data_dir: data_dir.clone(), ends }, newest))
    }

    /// Stores a snapshot in the place of the older one. Gives the offset from which on the log is still needed.
    ///
    /// # Errors
    /// Whatever the system refuses; what was stored is still there then.
    pub(crate) async fn store(&mut self, io: &Io, snapshot: &Snapshot) -> Result<Offset, Error> {
        let slot = usize::from(self.ends[1] < self.ends[0]);
        self.data_dir.replace_file(io, &name(slot), Lease::from_vec(write(snapshot))).await?;
        self.ends[slot] = Some(snapshot.end_offset);
        Ok(self.ends.into_iter().min().flatten().unwrap_or(Offset::ZERO))
    }
}

fn name(slot: usize) -> String {
    format!("{METADATA_PREFIX}{slot}")
}

fn write(snapshot: &Snapshot) -> Vec<u8> {
    let body = snapshot.encode();
    let mut bytes = Vec::with_capacity(HEADER_LEN + body.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&crc32c(&body).to_le_bytes());
    bytes.extend_from_slice(&body);
    bytes
}

fn read(bytes: &[u8], log: &RangeInclusive<Offset>) -> Result<Snapshot, String> {
    let (header, body) = bytes.split_first_chunk::<HEADER_LEN>().ok_or("it is too short")?;
    let [magic @ .., a, b, c, d, e, f, g, h] = *header;
    let (version, crc) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
    if magic != MAGIC {
        return Err("it is none".to_owned());
    } else if version != VERSION {
        return Err(format!("its format is {version}, this program reads {VERSION}"));
    } else if crc != crc32c(body) {
        return Err("its checksum does not match".to_owned());
    }
    let snapshot = Snapshot::decode(body).map_err(|error| error.to_string())?;
    if !log.contains(&snapshot.end_offset) {
        return Err(format!("it ends at {}, the log has {} to {}", snapshot.end_offset, log.start(), log.end()));
    }
    Ok(snapshot)
}

#[cfg(test)]
mod tests {
    use super::*;
    use heddle_cluster::MetadataImage;

    fn snapshot(end: i64) -> Snapshot {
        Snapshot { image: MetadataImage::default(), end_offset: Offset::new(end), removed: [].into() }
    }

    fn log(start: i64, end: i64) -> RangeInclusive<Offset> {
        Offset::new(start)..=Offset::new(end)
    }

    #[test]
    fn what_does_not_fit_is_refused_in_words() {
        let good = write(&snapshot(7));
        assert_eq!(read(&good, &log(0, 9)), Ok(snapshot(7)));
        assert_eq!(read(&good, &log(7, 7)), Ok(snapshot(7)));
        let reason = |bytes: &[u8], log| read(bytes, &log).unwrap_err();
        assert_eq!(reason(&good, log(8, 9)), "it ends at 7, the log has 8 to 9");
        assert_eq!(reason(&good, log(0, 6)), "it ends at 7, the log has 0 to 6");
        assert_eq!(reason(&good[..9], log(0, 9)), "it is too short");
        assert_eq!(reason(&good[..good.len() - 1], log(0, 9)), "its checksum does not match");
        let spoiled = |at: usize| {
            let mut bytes = good.clone();
            bytes[at] ^= 2;
            bytes
        };
        assert_eq!(reason(&spoiled(0), log(0, 9)), "it is none");
        assert_eq!(reason(&spoiled(8), log(0, 9)), "its format is 3, this program reads 1");
        assert_eq!(reason(&spoiled(20), log(0, 9)), "its checksum does not match");
    }

    #[test]
    fn the_page_of_the_format_says_so() {
        let page = include_str!("../../../docs/format.md");
        let magic = str::from_utf8(&MAGIC).unwrap();
        for row in [
            format!("| 0 | {} | `{magic}` |", MAGIC.len()),
            format!("| 8 | 4 | version of the snapshot of the metadata, {VERSION}, little-endian |"),
            "| 12 | 4 | CRC-32C of the rest, little-endian |".to_owned(),
            format!("| {HEADER_LEN} | | snapshot of the metadata: rkyv"),
        ] {
            assert!(page.contains(&row), "docs/format.md does not say {row:?}");
        }
        assert!(page.contains(&format!("\n  {} ", name(0))));
    }
}
