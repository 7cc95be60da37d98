//! Walking over the batches of a segment file.
//!
//! Two walks: [`HeaderScan`] looks at headers only and believes them (below the written end they were checked when they
//! came); [`BatchScan`] checks everything and stops at the first batch that does not fit, which is how recovery finds the
//! end of a log. Neither trusts a file's length for more than where reading must stop.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;

use heddle_io::{Buffer, File, Io, Lease, Task};
use heddle_record::{
    BatchError, BatchHeader, HEADER_LEN, LOG_OVERHEAD, LeaderEpoch, Offset, Origin, RecordBatch, Timestamp, validate,
};

use crate::checked::CheckedRanges;
use crate::cold::{ColdPermit, ColdStream, READ_BYTES};
use crate::engine::Core;
use crate::error::Error;
use crate::state::Boundary;
use crate::tail::{BLOCK, Tail};

/// Bytes that a header walk reads at once: an index interval and some batches.
const HEADER_READ_BYTES: usize = 8 << 10;
/// Bytes that a checking walk reads at once.
const BATCH_READ_BYTES: usize = 1 << 20;
/// The same of one that reads ahead: what is looked at and what is on its way stay in the caches of the processor.
const AHEAD_READ_BYTES: usize = 512 << 10;

/// A batch that a walk has met.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ScannedBatch {
    pub(crate) header: BatchHeader,
    /// Where it starts in the segment, in bytes.
    pub(crate) position: u64,
    /// Its length in bytes.
    pub(crate) len: u64,
}

impl ScannedBatch {
    /// Where the next batch starts.
    pub(crate) fn end(&self) -> u64 {
        self.position + self.len
    }
}

/// The largest time of a batch's records; none where compaction has left none.
pub(crate) fn time_of_records(header: &BatchHeader) -> Timestamp {
    if header.record_count == 0 { Timestamp::NONE } else { header.max_timestamp }
}

/// A walk over batch headers from one position to another.
#[derive(Debug)]
pub(crate) struct HeaderScan {
    file: File,
    /// The log's end in memory, and the segment that is walked.
    tail: Option<(Rc<RefCell<Tail>>, Offset)>,
    position: u64,
    end: u64,
    /// What was checked of the file, if anything was: it is told what has left the page cache.
    checked: Option<Rc<RefCell<CheckedRanges>>>,
    /// Bytes of the file from `bytes_at` on.
    bytes: Lease,
    bytes_at: u64,
}

impl HeaderScan {
    /// A walk from the batch at `position` to `end`, where a batch ends.
    pub(crate) fn new(file: File, position: u64, end: u64) -> HeaderScan {
        HeaderScan { file, tail: None, position, end, checked: None, bytes: Lease::empty(), bytes_at: position }
    }

    /// Looks into memory first.
    pub(crate) fn with_tail(self, tail: Rc<RefCell<Tail>>, segment: Offset) -> HeaderScan {
        HeaderScan { tail: Some((tail, segment)), ..self }
    }

    /// Knows the bytes of the file from `at` on already.
    pub(crate) fn knowing(self, bytes: Lease, at: u64) -> HeaderScan {
        if at <= self.position { HeaderScan { bytes, bytes_at: at, ..self } } else { self }
    }

    /// Tells what was checked of the file what is no more in the page cache.
    pub(crate) fn noting(self, checked: Option<Rc<RefCell<CheckedRanges>>>) -> HeaderScan {
        HeaderScan { checked, ..self }
    }

    /// The next batch, or `None` at the end.
    ///
    /// # Errors
    /// [`Error::Damaged`] where there is no header, [`Error::Io`].
    pub(crate) async fn next(&mut self, io: &Io) -> Result<Option<ScannedBatch>, Error> {
        if self.position >= self.end {
            return Ok(None);
        }
        let left = self.end - self.position;
        let known = (self.bytes_at + self.bytes.len() as u64).saturating_sub(self.position);
        if known < HEADER_LEN as u64 {
            let len = HEADER_READ_BYTES.min(usize::try_from(left).unwrap_or(usize::MAX));
            let in_memory = self
                .tail
                .as_ref()
                .and_then(|(tail, segment)| tail.borrow().peek(*segment, self.position, HEADER_LEN.min(len), len));
            self.bytes = match in_memory {
                Some(bytes) => bytes,
                None => self.read(io, len).await?,
            };
            self.bytes_at = self.position;
        }
        let start = (self.position - self.bytes_at) as usize;
        let header = self.bytes.get(start..).and_then(|bytes| bytes.first_chunk::<HEADER_LEN>());
        let header = BatchHeader::decode(header.ok_or_else(|| self.damaged("the file ends"))?);
        let len = u64::try_from(header.batch_length).map_or(0, |length| length + LOG_OVERHEAD as u64);
        if header.magic != 2 || len < HEADER_LEN as u64 || len > left || header.last_offset_delta < 0 {
            return Err(self.damaged("no batch header"));
        }
        let batch = ScannedBatch { header, position: self.position, len };
        self.position = batch.end();
        Ok(Some(batch))
    }

    async fn read(&self, io: &Io, len: usize) -> Result<Lease, Error> {
        if let Some(checked) = &self.checked {
            let is_resident = io.is_resident(&self.file, self.position, len);
            checked.borrow_mut().note(&(self.position..self.position + len as u64), is_resident);
        }
        Ok(io.read_lease(&self.file, self.position, len).await?)
    }

    fn damaged(&self, reason: &str) -> Error {
        Error::Damaged {
            path: self.file.path().to_owned(),
            position: self.position,
            offset: Offset::NONE,
            reason: reason.to_owned(),
        }
    }
}

/// What a checking walk found.
#[derive(Debug)]
pub(crate) enum Scanned<'a> {
    /// A batch that continues the log.
    Batch(ScannedBatch, RecordBatch<'a>),
    /// The file ends where a batch ends.
    End,
    /// Something else than the batch that would continue the log.
    Misfit(String),
}

/// Where and why the batch before `end` is not there, sound, and ending exactly there; `None` if it is. `headers` walks up
/// to `end` from a batch before it, in the same file.
///
/// # Errors
/// As the walks.
pub(crate) async fn last_batch_misfit(
    io: &Io,
    file: File,
    mut headers: HeaderScan,
    end: Boundary,
) -> Result<Option<Misplaced>, Error> {
    let from = headers.position;
    let mut last: Option<ScannedBatch> = None;
    while let Some(batch) = headers.next(io).await? {
        last = Some(batch);
    }
    let Some(last) = last else {
        let reason = "no batch ends there".to_owned();
        return Ok(Some(Misplaced { position: from, expected: end.offset, reason }));
    };
    let (position, expected) = (last.position, last.header.base_offset);
    let mut scan = BatchScan::new(file, end.position, position, expected, LeaderEpoch::NONE, Continuity::Contiguous);
    if headers.tail.is_none() {
        scan = scan.knowing(headers.bytes, headers.bytes_at);
    }
    let reason = match scan.next(io).await? {
        Scanned::Batch(batch, _) if batch.header.next_offset() == end.offset => return Ok(None),
        Scanned::Batch(batch, _) => format!("offset {} follows", batch.header.next_offset()),
        Scanned::End => "no batch".to_owned(),
        Scanned::Misfit(reason) => reason,
    };
    Ok(Some(Misplaced { position, expected, reason }))
}

/// What is not where it was flushed.
#[derive(Debug)]
pub(crate) struct Misplaced {
    /// Where in the file, in bytes.
    pub(crate) position: u64,
    /// The offset that was expected there.
    pub(crate) expected: Offset,
    pub(crate) reason: String,
}

/// A walk that checks every batch: checksum, contiguous offsets, epochs that do not fall.
#[derive(Debug)]
pub(crate) struct BatchScan {
    file: File,
    file_len: u64,
    position: u64,
    /// The base offset that the next batch must have.
    expected: Offset,
    /// The epoch that the next batch must not fall below.
    epoch: LeaderEpoch,
    rule: Continuity,
    /// The file was opened for O_DIRECT.
    is_direct: bool,
    bytes: Lease,
    bytes_at: u64,
    reads_ahead: bool,
    /// Where the bytes come from, several reads ahead: what follows `bytes` and `behind`.
    stream: Option<ColdStream>,
    /// What follows `bytes` and came with them.
    behind: Lease,
    /// Who bounds reads that are not in such a stream.
    governor: Option<Rc<Core>>,
    /// A read under way, and where it begins.
    ahead: Option<(u64, Ahead)>,
}

/// A read that is given up when nobody waits for it any more.
struct Ahead(Option<Task<Result<Lease, heddle_io::Error>>>);

impl Drop for Ahead {
    fn drop(&mut self) {
        if let Some(task) = self.0.take() {
            task.cancel();
        }
    }
}

impl std::fmt::Debug for Ahead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ahead")
    }
}

/// How offsets of neighbouring batches relate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Continuity {
    /// Without gaps.
    Contiguous,
    /// Ascending; compaction leaves gaps.
    Ascending,
}

impl BatchScan {
    /// A walk from `position`, where the batch with base offset `expected` should start.
    pub(crate) fn new(
        file: File,
        file_len: u64,
        position: u64,
        expected: Offset,
        epoch: LeaderEpoch,
        rule: Continuity,
    ) -> BatchScan {
        let (bytes, bytes_at) = (Lease::empty(), position);
        BatchScan {
            file,
            file_len,
            position,
            expected,
            epoch,
            rule,
            is_direct: false,
            bytes,
            bytes_at,
            reads_ahead: false,
            stream: None,
            behind: Lease::empty(),
            governor: None,
            ahead: None,
        }
    }

    /// While one part is looked at the next is read already, through the page cache.
    pub(crate) fn reading_ahead(self) -> BatchScan {
        assert!(!self.is_direct, "what is read ahead is read through the page cache");
        BatchScan { reads_ahead: true, ..self }
    }

    /// Several reads are in flight, as many as appends leave room for.
    pub(crate) fn streaming(self, stream: ColdStream) -> BatchScan {
        BatchScan { stream: Some(stream), ..self }
    }

    /// Each read waits for its turn among the cold reads of others.
    pub(crate) fn governed(self, core: &Rc<Core>) -> BatchScan {
        BatchScan { governor: Some(Rc::clone(core)), ..self }
    }

    /// The file's path.
    pub(crate) fn path(&self) -> &Path {
        self.file.path()
    }

    /// The file was opened for O_DIRECT: whole blocks are read.
    pub(crate) fn direct(self) -> BatchScan {
        BatchScan { is_direct: true, ..self }
    }

    /// Knows the bytes of the file from `at` on already.
    pub(crate) fn knowing(self, bytes: Lease, at: u64) -> BatchScan {
        if at <= self.position { BatchScan { bytes, bytes_at: at, ..self } } else { self }
    }

    /// Where the walk stands, in bytes: the end of the last batch that fits.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// The offset after the last batch that fits.
    pub(crate) fn next_offset(&self) -> Offset {
        self.expected
    }

    /// The next batch.
    ///
    /// # Errors
    /// [`Error::Io`]. What does not fit is no error but [`Scanned::Misfit`].
    pub(crate) async fn next(&mut self, io: &Io) -> Result<Scanned<'_>, Error> {
        let left = self.file_len.saturating_sub(self.position);
        if left == 0 {
            return Ok(Scanned::End);
        }
        if left < HEADER_LEN as u64 {
            return Ok(Scanned::Misfit(format!("{left} bytes are too few for a batch")));
        }
        self.fill(io, HEADER_LEN).await?;
        let len = match self.claimed_len() {
            Ok(len) if len as u64 <= left => len,
            Ok(len) => return Ok(Scanned::Misfit(format!("a batch of {len} bytes, {left} are left"))),
            Err(reason) => return Ok(Scanned::Misfit(reason)),
        };
        self.fill(io, len).await?;
        let start = (self.position - self.bytes_at) as usize;
        let Some(bytes) = self.bytes.get(start..start + len) else {
            return Ok(Scanned::Misfit("the file became shorter".to_owned()));
        };
        let batch = match validate(bytes, Origin::Log) {
            Ok(batch) => batch,
            Err(error) => return Ok(Scanned::Misfit(error.to_string())),
        };
        if let Some(reason) = misfit(batch.header(), self.expected, self.epoch, self.rule) {
            return Ok(Scanned::Misfit(reason));
        }
        let scanned = ScannedBatch { header: *batch.header(), position: self.position, len: len as u64 };
        self.position = scanned.end();
        self.expected = batch.next_offset();
        self.epoch = batch.partition_leader_epoch();
        Ok(Scanned::Batch(scanned, batch))
    }

    /// The length that the header at the current position claims, in bytes.
    fn claimed_len(&self) -> Result<usize, String> {
        let start = (self.position - self.bytes_at) as usize;
        match RecordBatch::peek(self.bytes.get(start..).unwrap_or_default()) {
            Ok(batch) => Ok(batch.len()),
            Err(BatchError::Truncated { needed, .. }) => Ok(needed),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Makes sure that `len` bytes at the current position are in memory.
    async fn fill(&mut self, io: &Io, len: usize) -> Result<(), Error> {
        let known = (self.bytes_at + self.bytes.len() as u64).saturating_sub(self.position);
        if known >= len as u64 {
            return Ok(());
        }
        if self.stream.is_some() {
            return self.fill_from_stream(io, len).await;
        }
        let arrived = match self.ahead.take() {
            Some((at, mut ahead)) if at == self.position => {
                Some(ahead.0.take().expect("it is given up by dropping it").await?)
            }
            _ => None,
        };
        let left = usize::try_from(self.file_len - self.position).unwrap_or(usize::MAX);
        let at_once = match &self.governor {
            _ if self.reads_ahead => AHEAD_READ_BYTES,
            Some(_) => READ_BYTES,
            None => BATCH_READ_BYTES,
        };
        self.bytes = match arrived.filter(|bytes| bytes.len() >= len) {
            Some(bytes) => bytes,
            None => self.read(io, len.max(at_once).min(left)).await?,
        };
        self.bytes_at = self.position;
        if self.reads_ahead {
            self.read_ahead(io);
        }
        Ok(())
    }

    /// The same from the stream. What is in two parts of it is put together, and no more than that.
    async fn fill_from_stream(&mut self, io: &Io, len: usize) -> Result<(), Error> {
        let stream = self.stream.as_mut().expect("the caller looked");
        let seen = self.bytes.len().min((self.position - self.bytes_at) as usize);
        let mut parts = vec![self.bytes.slice(seen..self.bytes.len()), std::mem::take(&mut self.behind)];
        let mut known: usize = parts.iter().map(|part| part.len()).sum();
        while known < len {
            let next = stream.next().await?;
            if next.is_empty() {
                break;
            }
            known += next.len();
            parts.push(next);
        }
        parts.retain(|part| !part.is_empty());
        self.bytes_at = self.position;
        self.bytes = match parts.len() {
            0 | 1 => parts.pop().unwrap_or_default(),
            _ => {
                let mut joined = io.buffer(len);
                for part in parts {
                    let taken = part.len().min(len - joined.len());
                    joined.extend_from_slice(&part[..taken]);
                    self.behind = part.slice(taken..part.len());
                }
                joined.freeze()
            }
        };
        Ok(())
    }

    /// Begins to read from the first batch on that is not here as a whole.
    fn read_ahead(&mut self, io: &Io) {
        let from = self.bytes_at + whole_batches_len(&self.bytes) as u64;
        let left = self.file_len.saturating_sub(from);
        if from > self.bytes_at && left > 0 {
            let (io, file) = (io.clone(), self.file.clone());
            let len = usize::try_from(left).unwrap_or(usize::MAX).min(AHEAD_READ_BYTES);
            let (reader, governor) = (io.clone(), self.governor.clone());
            let task = io.spawn(async move {
                let _permit = permit(governor.as_ref(), len).await;
                let (read, buffer) = reader.read(&file, from, reader.buffer(len), len).await;
                read.map(|_| buffer.freeze())
            });
            self.ahead = Some((from, Ahead(Some(task))));
        }
    }

    /// Reads `len` bytes from the current position on.
    async fn read(&self, io: &Io, len: usize) -> Result<Lease, Error> {
        let _permit = permit(self.governor.as_ref(), len).await;
        if !self.is_direct {
            return Ok(io.read_lease(&self.file, self.position, len).await?);
        }
        let before = (self.position % BLOCK) as usize;
        let blocks = (before + len).next_multiple_of(BLOCK as usize);
        let from = self.position - before as u64;
        let (read, buffer) = io.read(&self.file, from, Buffer::aligned(blocks), blocks).await;
        let end = read?.min(before + len);
        Ok(buffer.freeze().slice(before.min(end)..end))
    }
}

async fn permit(governor: Option<&Rc<Core>>, bytes: usize) -> Option<ColdPermit> {
    match governor {
        Some(core) => Some(core.admit_cold(bytes).await),
        None => None,
    }
}

/// The length of the batches that are in `bytes` as a whole, as far as their headers tell.
fn whole_batches_len(bytes: &[u8]) -> usize {
    let mut len = 0;
    while let Some(rest) = bytes.get(len..).filter(|rest| rest.len() >= HEADER_LEN) {
        let claimed = rest.get(8..12).and_then(|field| field.first_chunk()).map(|field| i32::from_be_bytes(*field));
        let Some(whole) = claimed.and_then(|claimed| usize::try_from(claimed).ok()).map(|rest| rest + LOG_OVERHEAD)
        else {
            return len;
        };
        if whole > rest.len() {
            return len;
        }
        len += whole;
    }
    len
}

/// Why a sound batch is not the one that continues the log: an old one that lies behind the end passes every checksum
/// (case 41), so offsets and epochs decide.
fn misfit(header: &BatchHeader, expected: Offset, epoch: LeaderEpoch, rule: Continuity) -> Option<String> {
    let continues = match rule {
        Continuity::Contiguous => header.base_offset == expected,
        Continuity::Ascending => header.base_offset >= expected,
    };
    if !continues {
        return Some(format!("base offset {} where {expected} continues", header.base_offset));
    }
    (header.partition_leader_epoch < epoch)
        .then(|| format!("leader epoch {} behind {epoch}", header.partition_leader_epoch))
}
