//! Which logs may have more on disk than the checkpoint says: noted durably before the first write to each.
//!
//! Owns `heddle.touched.<core>`. A log that is idle when a checkpoint is written is left alone by the next start, unless
//! a note says that it was written to since. So a start costs what was written, not what is stored. Notes of many logs
//! share one write and one flush, and a log that stays busy is marked in the checkpoint itself and needs no note.
//!
//! A note is valid if it is not older than its log's part of the checkpoint. The file has a header and slots of
//! [`SLOT_LEN`] bytes, each with its own checksum; slots whose notes a durable checkpoint has made void are used again.
//! A file that is missing or damaged makes the next start look at every log.

use std::cell::{Cell, RefCell};
use std::path::Path;

use heddle_io::{File, Io, Lease, OpenOptions};
use heddle_record::checksum::crc32c;
use heddle_record::{LogId, PartitionIndex, TopicId};

use crate::archive::Age;
use crate::config::PlantedBug;
use crate::error::Error;
use crate::group::Group;
use crate::log::LogInner;

/// What the file starts with.
pub const TOUCHED_MAGIC: [u8; 8] = *b"HEDDLETL";
/// The version of the header and the slots.
pub const TOUCHED_VERSION: u32 = 1;
/// Bytes of the header, and of each slot behind it: none lies in two sectors of a disk.
pub const SLOT_LEN: usize = 64;

/// The file of one core, open.
pub(crate) struct TouchedFile {
    io: Io,
    file: File,
    /// The generation of this run.
    generation: u64,
    slots: RefCell<Slots>,
    notes: Group<LogId>,
    /// Logs noted since the last checkpoint began.
    noted: Cell<usize>,
}

#[derive(Debug, Default)]
struct Slots {
    /// Slots whose notes are void.
    free: Vec<u32>,
    /// Slots in the file.
    count: u32,
    /// Slots in use, by the checkpoint that their notes come after.
    used: Vec<(u64, u32)>,
    /// The checkpoint that was last durable, if the header does not say so yet.
    header: Option<Age>,
    /// The file has no header, so that nobody relies on it before a checkpoint is durable.
    is_void: bool,
}

/// Whether what the file says can be relied on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trust {
    /// It can: what it says stays valid until a checkpoint of this run is durable.
    Reliable,
    /// Notes may be lost, here or in another core's file: every log is looked at, in this run and in every later one,
    /// until a checkpoint is durable.
    Void,
}

/// What a file of an earlier run says.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    /// The newest checkpoint that was durable when the header was written.
    pub(crate) checkpoint: Age,
    pub(crate) notes: Vec<(LogId, Age)>,
}

impl TouchedFile {
    /// Opens the file at `path`, made durably if it is not there.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) async fn open(io: &Io, path: &Path, generation: u64, trust: Trust) -> Result<TouchedFile, Error> {
        let file = io.open(path, OpenOptions::create()).await?;
        let len = io.len(&file).await?;
        let is_void = trust == Trust::Void;
        if len < SLOT_LEN as u64 || is_void {
            let first = if is_void { Lease::from_vec(vec![0; SLOT_LEN]) } else { header(Age::default()) };
            io.set_len(&file, 0).await?;
            io.write(&file, 0, vec![first]).await?;
            io.sync_data(&file).await?;
            io.sync_dir(path.parent().expect("it lies in the data directory")).await?;
        }
        let len = if is_void { 0 } else { len };
        let count = u32::try_from(len / SLOT_LEN as u64).expect("a note for each log").saturating_sub(1);
        let used = (0..count).map(|slot| (0, slot)).collect();
        let slots = Slots { count, used, is_void, ..Slots::default() };
        Ok(TouchedFile {
            io: io.clone(),
            file,
            generation,
            slots: RefCell::new(slots),
            notes: Group::new(),
            noted: Cell::new(0),
        })
    }

    /// Notes that a log is about to be written to; it is durable when this returns. `sequence` is that of the checkpoint
    /// that began last.
    ///
    /// # Errors
    /// The disk's: then the log must not be written to.
    pub(crate) async fn note(&self, log: LogId, sequence: &Cell<u64>) -> Result<(), Error> {
        let write = async |logs: Vec<LogId>| {
            let age = Age { generation: self.generation, sequence: sequence.get() };
            self.noted.set(self.noted.get() + logs.len());
            let writes = self.slots.borrow_mut().place(&logs, age);
            for (position, bytes) in writes {
                self.io.write(&self.file, position, vec![Lease::from_vec(bytes)]).await?;
            }
            Ok(self.io.sync_data(&self.file).await?)
        };
        self.notes.join(log, write).await
    }

    /// Logs that were noted since the last call of [`TouchedFile::begin_checkpoint`].
    pub(crate) fn noted(&self) -> usize {
        self.noted.get()
    }

    /// A checkpoint begins.
    pub(crate) fn begin_checkpoint(&self) {
        self.noted.set(0);
    }

    /// Whether nothing can be relied on before a checkpoint is durable.
    pub(crate) fn awaits_checkpoint(&self) -> bool {
        self.slots.borrow().is_void
    }

    /// The checkpoint `age` of this core is durable: notes from before it are void, and those after it are relied on.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) async fn settle(&self, age: Age) -> Result<(), Error> {
        if self.awaits_checkpoint() {
            self.io.write(&self.file, 0, vec![header(age)]).await?;
            self.io.sync_data(&self.file).await?;
        }
        let mut slots = self.slots.borrow_mut();
        slots.is_void = false;
        let used = std::mem::take(&mut slots.used);
        let (void, used): (Vec<_>, Vec<_>) = used.into_iter().partition(|(sequence, _)| *sequence < age.sequence);
        slots.used = used;
        slots.free.extend(void.into_iter().map(|(_, slot)| slot));
        slots.free.sort_unstable_by(|a, b| b.cmp(a));
        slots.header = Some(age);
        Ok(())
    }
}

impl LogInner {
    /// To be called before anything is written to the log's files: notes it, unless the next start looks at it anyway, and
    /// has a look at files that nobody has looked at.
    ///
    /// # Errors
    /// The disk's, or [`Error::Damaged`]: then nothing may be written.
    pub(crate) async fn touch(&self) -> Result<(), Error> {
        if self.core.config.planted_bug == PlantedBug::NoTouchedNote {
            return Ok(());
        }
        let begun = &self.core.checkpoints.begun;
        while !self.state.borrow().touched {
            self.verify_once().await?;
            let latest = begun.get();
            let noted = self.core.touched.note(self.name.id, begun).await;
            noted.inspect_err(|error| self.core.dir.note_failure(error))?;
            self.core.note_touched();
            // A checkpoint that has begun meanwhile makes the note void, and may have found the log idle.
            self.state.borrow_mut().touched |= begun.get() == latest;
        }
        Ok(())
    }
}

impl Slots {
    /// Gives each log a slot; what is to be written where. Neighbouring slots go together.
    fn place(&mut self, logs: &[LogId], age: Age) -> Vec<(u64, Vec<u8>)> {
        let mut writes: Vec<(u64, Vec<u8>)> = Vec::new();
        if let Some(checkpoint) = self.header.take().filter(|_| !self.is_void) {
            writes.push((0, header(checkpoint).to_vec()));
        }
        for log in logs {
            let slot = self.free.pop().unwrap_or_else(|| {
                self.count += 1;
                self.count - 1
            });
            self.used.push((age.sequence, slot));
            let position = (u64::from(slot) + 1) * SLOT_LEN as u64;
            let bytes = encode(*log, age);
            match writes.last_mut() {
                Some((at, run)) if *at + run.len() as u64 == position => run.extend_from_slice(&bytes),
                _ => writes.push((position, bytes.to_vec())),
            }
        }
        writes
    }
}

fn header(checkpoint: Age) -> Lease {
    let mut bytes = [0; SLOT_LEN];
    bytes[..8].copy_from_slice(&TOUCHED_MAGIC);
    bytes[8..12].copy_from_slice(&TOUCHED_VERSION.to_le_bytes());
    bytes[16..24].copy_from_slice(&checkpoint.generation.to_le_bytes());
    bytes[24..32].copy_from_slice(&checkpoint.sequence.to_le_bytes());
    let crc = crc32c(&bytes);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    Lease::from_vec(bytes.to_vec())
}

fn encode(log: LogId, age: Age) -> [u8; SLOT_LEN] {
    let mut bytes = [0; SLOT_LEN];
    bytes[4..8].copy_from_slice(&log.partition.get().to_le_bytes());
    bytes[8..24].copy_from_slice(&log.topic.bytes());
    bytes[24..32].copy_from_slice(&age.generation.to_le_bytes());
    bytes[32..40].copy_from_slice(&age.sequence.to_le_bytes());
    let crc = crc32c(&bytes);
    bytes[..4].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// The number at `at`, whose bytes are zero afterwards.
fn take<const N: usize>(slot: &mut [u8; SLOT_LEN], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&slot[at..at + N]);
    slot[at..at + N].fill(0);
    bytes
}

/// What the bytes of a file say, or why they cannot be relied on. Slots that were never written are zeros.
pub(crate) fn read(bytes: &[u8]) -> Result<Notes, &'static str> {
    let mut slots = bytes.as_chunks::<SLOT_LEN>().0.iter().copied();
    let mut first = slots.next().ok_or("too short")?;
    let crc = u32::from_le_bytes(take(&mut first, 12));
    if crc != crc32c(&first) {
        return Err("the header's checksum does not match");
    }
    if first[..8] != TOUCHED_MAGIC || u32::from_le_bytes(take(&mut first, 8)) != TOUCHED_VERSION {
        return Err("another version");
    }
    let checkpoint = age(&mut first, 16);
    let mut notes = Vec::new();
    for mut slot in slots.filter(|slot| *slot != [0; SLOT_LEN]) {
        if u32::from_le_bytes(take(&mut slot, 0)) != crc32c(&slot) {
            return Err("a note's checksum does not match");
        }
        let partition = PartitionIndex::new(i32::from_le_bytes(take(&mut slot, 4)));
        let topic = TopicId::new(take(&mut slot, 8));
        notes.push((LogId { topic, partition }, age(&mut slot, 24)));
    }
    Ok(Notes { checkpoint, notes })
}

fn age(slot: &mut [u8; SLOT_LEN], at: usize) -> Age {
    Age { generation: u64::from_le_bytes(take(slot, at)), sequence: u64::from_le_bytes(take(slot, at + 8)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(partition: i32) -> LogId {
        LogId { topic: TopicId::new([3; 16]), partition: PartitionIndex::new(partition) }
    }

    fn at(sequence: u64) -> Age {
        Age { generation: 5, sequence }
    }

    #[test]
    fn notes_come_back_and_their_slots_are_used_again() {
        let mut slots = Slots::default();
        let mut file = header(Age::default()).to_vec();
        let mut write = |slots: &mut Slots, logs: &[LogId], age| {
            for (position, bytes) in slots.place(logs, age) {
                let end = position as usize + bytes.len();
                file.resize(file.len().max(end), 0);
                file[position as usize..end].copy_from_slice(&bytes);
            }
            read(&file).unwrap()
        };
        let notes = write(&mut slots, &[id(1), id(2)], at(1));
        assert_eq!(notes.notes, [(id(1), at(1)), (id(2), at(1))]);
        write(&mut slots, &[id(3)], at(2));
        // As `settle` does.
        slots.used.retain(|(sequence, _)| *sequence >= 2);
        slots.free = vec![1, 0];
        slots.header = Some(at(2));
        let notes = write(&mut slots, &[id(4), id(5), id(6)], at(2));
        assert_eq!(notes.checkpoint, at(2));
        assert_eq!(notes.notes.iter().map(|(log, _)| *log).collect::<Vec<_>>(), [id(4), id(5), id(3), id(6)]);
        assert_eq!(slots.count, 4);
    }

    #[test]
    fn a_harmed_file_is_not_relied_on() {
        let mut file = header(at(1)).to_vec();
        file.extend_from_slice(&encode(id(1), at(1)));
        file.extend_from_slice(&[0; SLOT_LEN]);
        assert_eq!(read(&file).unwrap().notes.len(), 1);
        for place in 0..2 * SLOT_LEN {
            let mut harmed = file.clone();
            harmed[place] ^= 1;
            assert!(read(&harmed).is_err(), "byte {place}");
        }
        assert!(read(&file[..10]).is_err());
    }
}
