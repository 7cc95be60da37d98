//! Finding what the medium has lost: sealed segments are checked again, batch by batch, slowly and for ever.
//!
//! Owns the walk over a core's sealed segments in the background, the check of cold bytes before they are served, and
//! what becomes of a segment that is damaged: it is not read any more, loudly, while the rest of its log goes on. A segment
//! that passes a later check, because its file was restored, is read again. Never changes a file.
//!
//! ```text
//! a batch comes ── its checksum is checked ── written ── served from memory
//!                                                └── cold ── checked when read from the disk ── served
//!                                                     └── checked by the scrub, around the page cache
//! ```

use std::ops::Range;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use heddle_io::{File, Io, OpenOptions};
use heddle_record::{LeaderEpoch, LogId, Offset};

use crate::cold::{ColdStream, WAITED_FOR_BYTES_MAX};
use crate::engine::Engine;
use crate::error::Error;
use crate::layout::SegmentFile;
use crate::log::LogInner;
use crate::scan::{BatchScan, Continuity, Scanned};
use crate::state::Boundary;
use crate::statistics::ScrubStatistics;

/// Bytes that are checked between two pauses.
const STEP_BYTES: u64 = 1 << 20;
/// A round begins this long after the one before it began, at the earliest, and this long after a start.
const ROUND_PAUSE: Duration = Duration::from_secs(24 * 60 * 60);
const START_PAUSE: Duration = Duration::from_secs(60);
/// While the core has appends under way, the scrub goes at this part of its speed.
const BUSY_SHARE: u32 = 8;

impl Engine {
    /// Checks the sealed segments of all logs of this core, round by round, until it is dropped.
    pub(crate) async fn scrub(&self) {
        let io = &self.inner.core.io;
        if self.inner.core.config.scrub_bytes_per_second == 0 {
            return std::future::pending().await;
        }
        io.sleep(START_PAUSE).await;
        loop {
            let next = io.now() + ROUND_PAUSE;
            self.scrub_round().await;
            io.sleep_until(next).await;
        }
    }

    /// Checks every sealed segment of this core once, from a random log on: a broker that is restarted often gets to all
    /// of them. At most `scrub_bytes_per_second` are read.
    pub async fn scrub_round(&self) {
        let mut ids: Vec<LogId> = self.logs().iter().map(|log| log.name().id).collect();
        if !ids.is_empty() {
            let first = self.inner.core.io.random_u64() as usize % ids.len();
            ids.rotate_left(first);
        }
        for id in ids {
            // A round takes hours: it holds on to no log that is deleted meanwhile.
            let Some(log) = self.log(id) else { continue };
            for segment in log.inner.sealed_segments() {
                self.inner.core.meters.count_scrub(ScrubStatistics { segments: 1, ..ScrubStatistics::default() });
                if let Err(error) = log.inner.scrub_segment(segment).await {
                    let remedy = error.remedy();
                    tracing::warn!(log = %log.name(), segment = segment.get(), %error, remedy, "a segment could not be checked");
                }
            }
        }
        self.inner.core.meters.count_scrub(ScrubStatistics { rounds: 1, ..ScrubStatistics::default() });
    }
}

impl LogInner {
    fn sealed_segments(&self) -> Vec<Offset> {
        let state = self.state.borrow();
        let sealed = state.segments.iter().filter(|segment| segment.base_offset < state.flushed.segment);
        sealed.map(|segment| segment.base_offset).collect()
    }

    /// Checks a sealed segment from its first batch to its last.
    ///
    /// # Errors
    /// The disk's. Damage is noted and no error.
    async fn scrub_segment(self: &Rc<Self>, segment: Offset) -> Result<(), Error> {
        // Compaction puts no other file in its place before this one is open; its length is what is known of it now.
        let reader = self.readers.acquire(1).await;
        let size = self.state.borrow_mut().segment(segment).map(|segment| segment.size);
        let Some(size) = size.filter(|size| *size > 0) else { return Ok(()) };
        let path = self.file_key(segment, SegmentFile::Log).path(&self.path);
        let start = Boundary { offset: segment, segment, position: 0 };
        let opened = open_uncached(self.io(), &path).await;
        drop(reader);
        let checked = match opened {
            Ok((file, direct)) => {
                let mut scan = scan_of(file, start, size).governed(&self.core);
                if direct {
                    scan = scan.direct();
                }
                self.check_batches(&mut scan, Speed::Scrub, u64::MAX).await
            }
            Err(Error::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => {
                let reason = "the file is missing".to_owned();
                Err(Error::Damaged { path, position: 0, offset: segment, reason })
            }
            Err(error) => return Err(error),
        };
        if checked.is_ok() {
            self.restore(segment);
        }
        let checked = self.unless_replaced(segment, size, checked);
        match self.note_damage(segment, checked) {
            Err(Error::Damaged { .. }) => Ok(()),
            other => other,
        }
    }

    /// Checks batches of a sealed segment's file from `start` up to `end` before they are served, unless they were checked since
    /// they came from the disk. Returns how far they may be served: all the way, or some megabytes.
    ///
    /// # Errors
    /// [`Error::Damaged`]; the disk's.
    pub(crate) async fn check_cold(&self, file: &File, start: Boundary, end: Boundary) -> Result<Boundary, Error> {
        let range = start.position..end.position;
        let Some(size) = self.unchecked(file, start.segment, &range) else { return Ok(end) };
        let stream = ColdStream::new(&self.core, file.clone(), range.start, range.end);
        let mut scan = scan_of(file.clone(), start, range.end).streaming(stream);
        let enough = range.start.saturating_add(WAITED_FOR_BYTES_MAX);
        let checked = self.check_batches(&mut scan, Speed::Full, enough).await;
        self.note_damage(start.segment, self.unless_replaced(start.segment, size, checked))?;
        let reached = scan.position();
        if let Some(segment) = self.state.borrow_mut().segment(start.segment).filter(|segment| segment.size == size) {
            segment.checked.get_or_insert_default().borrow_mut().insert(range.start..reached);
        }
        Ok(if reached == range.end { end } else { Boundary { offset: scan.next_offset(), position: reached, ..start } })
    }

    /// The size of a segment, if not all bytes of `range` of it were checked since they came from the disk.
    fn unchecked(&self, file: &File, segment: Offset, range: &Range<u64>) -> Option<u64> {
        let len = usize::try_from(range.end - range.start).expect("a segment is below 2 GiB");
        let is_resident = self.io().is_resident(file, range.start, len);
        let mut state = self.state.borrow_mut();
        let segment = state.segment(segment)?;
        let is_checked = segment.checked.as_ref().is_some_and(|checked| {
            let mut checked = checked.borrow_mut();
            checked.note(range, is_resident);
            is_resident && checked.contain(range)
        });
        (!is_checked).then_some(segment.size)
    }

    /// Checks every batch of a walk that ends where a batch does, or until it has passed position `enough`.
    async fn check_batches(&self, scan: &mut BatchScan, speed: Speed, enough: u64) -> Result<(), Error> {
        let path = scan.path().to_owned();
        let truncations = self.state.borrow().truncations;
        let mut paid = scan.position();
        loop {
            let misfit = match scan.next(self.io()).await? {
                Scanned::Batch(batch, _) if batch.end() < enough => None,
                Scanned::Batch(..) | Scanned::End => {
                    self.pause(scan.position() - paid, speed).await;
                    return Ok(());
                }
                Scanned::Misfit(reason) => Some(reason),
            };
            if let Some(reason) = misfit {
                if self.state.borrow().truncations != truncations {
                    return Err(Error::Offline("the log was cut meanwhile".into()));
                }
                return Err(Error::Damaged { path, position: scan.position(), offset: scan.next_offset(), reason });
            }
            if scan.position() - paid >= STEP_BYTES {
                self.pause(scan.position() - paid, speed).await;
                paid = scan.position();
            }
        }
    }

    /// Damage is none where the segment, which had `size` bytes before it was opened, was deleted or replaced meanwhile.
    fn unless_replaced(&self, segment: Offset, size: u64, checked: Result<(), Error>) -> Result<(), Error> {
        let is_the_same = self.state.borrow_mut().segment(segment).is_some_and(|segment| segment.size == size);
        match checked {
            Err(Error::Damaged { .. }) if !is_the_same => {
                Err(Error::Offline("the segment was cut, replaced or deleted meanwhile".into()))
            }
            checked => checked,
        }
    }

    /// Keeps the scrub to its speed; a reader who waits only lets others run.
    async fn pause(&self, bytes: u64, speed: Speed) {
        if speed == Speed::Full {
            return self.io().yield_now().await;
        }
        self.core.meters.count_scrub(ScrubStatistics { bytes, ..ScrubStatistics::default() });
        let rate = self.core.config.scrub_bytes_per_second.max(1);
        let pause = Duration::from_secs_f64(bytes as f64 / rate as f64);
        self.io().sleep(pause).await;
        if self.core.is_busy() {
            self.io().sleep(pause * (BUSY_SHARE - 1)).await;
        }
    }

    /// Sees to it that a damaged segment is not read: the whole of it where it is sealed, else the log.
    pub(crate) fn note_damage<T>(&self, segment: Offset, result: Result<T, Error>) -> Result<T, Error> {
        let Err(error @ Error::Damaged { .. }) = &result else { return result };
        let mut state = self.state.borrow_mut();
        let is_sealed = segment < state.written.segment;
        let next = state.segments.iter().map(|other| other.base_offset).find(|other| *other > segment);
        let Some(damaged) = state.segment(segment).filter(|_| is_sealed) else {
            drop(state);
            self.take_offline(error);
            return result;
        };
        let is_news = damaged.damage.replace(error.clone()).is_none();
        drop(state);
        if is_news {
            tracing::error!(
                log = %self.name,
                %error,
                next_segment = next.map(Offset::get),
                remedy = error.remedy(),
                "a segment is damaged and is not read any more; the rest of the log is"
            );
        }
        result
    }

    /// A segment has passed its check.
    fn restore(&self, segment: Offset) {
        let was = self.state.borrow_mut().segment(segment).and_then(|segment| segment.damage.take());
        if was.is_some() {
            tracing::info!(log = %self.name, segment = segment.get(), "a segment that was damaged is sound, and read again");
        }
    }

    /// # Errors
    /// The damage of the segment, if it has any.
    pub(crate) fn check_damage(&self, segment: Offset) -> Result<(), Error> {
        let mut state = self.state.borrow_mut();
        state.segment(segment).and_then(|segment| segment.damage.clone()).map_or(Ok(()), Err)
    }
}

/// How fast to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Speed {
    /// Somebody waits for it.
    Full,
    /// In the background.
    Scrub,
}

/// A walk from `start` up to `end`, where a batch ends.
fn scan_of(file: File, start: Boundary, end: u64) -> BatchScan {
    // Offsets ascend; whether they do without gaps was checked when they came, and compaction makes some.
    BatchScan::new(file, end, start.position, start.offset, LeaderEpoch::NONE, Continuity::Ascending)
}

/// Opens a file so that its bytes come from the medium and leave the page cache alone, where the file system can.
async fn open_uncached(io: &Io, path: &Path) -> Result<(File, bool), Error> {
    match io.open(path, OpenOptions::read().direct()).await {
        Ok(file) => Ok((file, true)),
        Err(_) => Ok((io.open(path, OpenOptions::read()).await?, false)),
    }
}
