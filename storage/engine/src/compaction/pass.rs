//! One pass over one log: learn the last offset of each key in the dirty part, then write the segments below again without
//! what these replace.
//!
//! ```text
//! log start ── compacted before ── first dirty ── dirty ── end ── too young, active ──
//!                                  └─ mapped, a part if memory is short ─┘
//! └──────────────── filtered, neighbours put together ─────────────────┘
//! ```
//!
//! Owns the order: segments from the oldest to the youngest, each durably in its place before the next. So a tombstone
//! that goes has nothing below it left to hide. A segment that nothing goes from is not written again.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;

use heddle_io::{File, Lease, OpenOptions};
use heddle_record::{
    BatchBuilder, BatchHeader, Compression, LeaderEpoch, Offset, RecordBatch, RecordError, Timestamp, decompress,
};

use super::dirt::Job;
use super::manifest::{CompactedSegment, Manifest};
use super::offset_map::OffsetMap;
use super::pace::Pace;
use super::rules::Rules;
use crate::admission::decompressed_body;
use crate::error::Error;
use crate::index::{IndexBuilder, IndexedBatch};
use crate::layout::SegmentFile;
use crate::log::LogInner;
use crate::scan::{BatchScan, Continuity, Scanned};
use crate::segment::Segment;

/// Bytes that are read, and gathered to be written, at once.
const CHUNK_BYTES: usize = 1 << 20;
/// Bytes that are written before they are flushed: a disk that has much to write back holds up everybody.
const FLUSH_BYTES: u64 = 16 << 20;
/// Compressed bytes of a batch that are worth a helper thread.
const OFF_CORE_BYTES: usize = 16 << 10;
/// Records that are looked at before the clock is.
const RECORDS_PER_LOOK: usize = 64;
/// A segment may grow when a delete horizon takes the place of its timestamps; it never gets here.
const SEGMENT_BYTES_LIMIT: u64 = i32::MAX as u64;

/// What a pass has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Compacted {
    /// Bytes read, those that were looked at twice counted twice.
    pub bytes_read: u64,
    /// Bytes written.
    pub bytes_written: u64,
    /// Records that were looked at in order to be kept or not.
    pub records: u64,
    /// Records that are gone.
    pub records_removed: u64,
    /// Segments that are gone, put together with others.
    pub segments_removed: u64,
    /// Keys of the dirty parts.
    pub keys: u64,
    /// The most memory that the keys of one pass took, in bytes.
    pub key_bytes_max: u64,
}

impl Compacted {
    /// Adds what another pass has done.
    pub(super) fn add(&mut self, other: &Compacted) {
        self.bytes_read += other.bytes_read;
        self.bytes_written += other.bytes_written;
        self.records += other.records;
        self.records_removed += other.records_removed;
        self.segments_removed += other.segments_removed;
        self.keys += other.keys;
        self.key_bytes_max = self.key_bytes_max.max(other.key_bytes_max);
    }
}

/// A pass under way.
pub(super) struct Pass<'a> {
    pub(super) log: &'a Rc<LogInner>,
    pub(super) job: Job,
    pub(super) pace: Pace,
    /// Bytes that the map of keys may take.
    pub(super) map_bytes_max: usize,
    /// Whether the pass is to be given up.
    pub(super) is_stopped: &'a dyn Fn() -> bool,
    pub(super) done: Compacted,
}

/// A segment to be read.
#[derive(Debug, Clone, Copy)]
struct Source {
    base: Offset,
    /// Where the next one starts.
    end: Offset,
    size: u64,
    index_entries: u64,
    first_append_at: Option<Timestamp>,
    last_append_at: Option<Timestamp>,
}

/// What becomes of a batch.
enum Fate {
    Stays,
    /// These bytes take its place.
    Becomes(Vec<u8>),
    Goes,
}

impl Pass<'_> {
    /// Runs the pass; `manifest` follows what is on the disk.
    ///
    /// # Errors
    /// [`Error::Damaged`]: a batch cannot be read, so the log cannot be compacted. [`Error::Offline`]: given up. The disk's.
    pub(super) async fn run(&mut self, manifest: &mut Manifest) -> Result<(), Error> {
        let rules = self.rules().await?;
        let sources = self.sources(rules.end);
        if self.job.tombstones_only {
            for source in due(sources, manifest, rules.now) {
                self.compact_group(&[source], &rules, manifest).await?;
            }
            return Ok(());
        }
        let mut rest = &sources[..];
        while !rest.is_empty() {
            let count = self.compact_group(rest, &rules, manifest).await?;
            rest = &rest[count..];
        }
        if manifest.first_dirty != rules.end {
            manifest.first_dirty = rules.end;
            self.log.touch().await?;
            self.log.write_manifest(manifest).await?;
        }
        Ok(())
    }

    /// Maps the dirty part, as far as memory goes.
    async fn rules(&mut self) -> Result<Rules, Error> {
        let io = self.log.io();
        let mut map = OffsetMap::new(io.random_bytes16(), self.map_bytes_max);
        let end = if self.job.tombstones_only { self.job.end } else { self.map_dirty(&mut map).await? };
        self.done.keys = map.len() as u64;
        self.done.key_bytes_max = map.bytes() as u64;
        let producers: BTreeMap<i64, Offset> = {
            let state = self.log.state.borrow();
            let last = |(id, producer): (heddle_record::ProducerId, &crate::producer_state::Producer)| {
                producer.batches.last().map(|batch| (id.get(), batch.last_offset))
            };
            state.producers.iter().filter_map(last).collect()
        };
        let delete_retention = self.log.config.borrow().delete_retention;
        let delete_retention = i64::try_from(delete_retention.as_millis()).unwrap_or(i64::MAX);
        Ok(Rules { map, end, now: Timestamp::new(io.wall_clock()), delete_retention, producers })
    }

    /// Notes the keys of the dirty part. Returns where that ends, which is earlier where memory does.
    async fn map_dirty(&mut self, map: &mut OffsetMap) -> Result<Offset, Error> {
        let first_dirty = self.job.first_dirty;
        for source in self.sources(self.job.end).into_iter().filter(|source| source.end > first_dirty) {
            let mut scan = self.scan(source).await?;
            while let Some(batch) = next_batch(&mut scan, self.log, source).await? {
                self.pass_on(batch.len()).await?;
                let header = batch.header();
                if header.last_offset() < first_dirty || header.attributes.is_control() || header.record_count == 0 {
                    continue;
                }
                let body = self.body(&batch).await?;
                for (number, record) in batch.records_in(&body).enumerate() {
                    let record = record.map_err(|error| self.damage(source, header, error))?;
                    let offset = header.offset_of(&record);
                    let Some(key) = record.key.filter(|_| offset >= first_dirty) else { continue };
                    if map.note(key, offset).is_err() {
                        return Ok(offset);
                    }
                    self.look_at_clock(number).await;
                }
            }
        }
        Ok(self.job.end)
    }

    /// The segments that start below `end` and may be rewritten.
    fn sources(&self, end: Offset) -> Vec<Source> {
        let state = self.log.state.borrow();
        let limit = self.job.end.min(state.vouched_for);
        let pairs = state.segments.windows(2);
        let some = pairs.take_while(|pair| pair[0].base_offset < end && pair[1].base_offset <= limit);
        some.map(|pair| Source::of(&pair[0], pair[1].base_offset)).collect()
    }

    async fn scan(&self, source: Source) -> Result<BatchScan, Error> {
        let file = self.log.open_file(source.base, SegmentFile::Log, OpenOptions::read_write()).await?;
        let (any, ascending) = (LeaderEpoch::NONE, Continuity::Ascending);
        Ok(BatchScan::new(file, source.size, 0, source.base, any, ascending))
    }

    /// Writes the first of these segments again, if anything of it goes, as one with those behind it that fit. Returns how
    /// many that were.
    async fn compact_group(
        &mut self,
        sources: &[Source],
        rules: &Rules,
        manifest: &mut Manifest,
    ) -> Result<usize, Error> {
        let mut target = Target::new(sources[0].base, manifest.generation + 1);
        let filled = match self.fill(&mut target, sources, rules).await {
            Ok(count) if target.output.is_some() => {
                self.finish(target, &sources[..count], rules, manifest).await.map(|()| count)
            }
            other => other,
        };
        match &filled {
            Ok(_) => self.log.state.borrow_mut().rewriting = false,
            Err(_) => self.abandon(sources[0].base, manifest.generation + 1).await,
        }
        filled
    }

    async fn fill(&mut self, target: &mut Target, sources: &[Source], rules: &Rules) -> Result<usize, Error> {
        let mut last = None;
        let mut count = 0;
        for (number, source) in sources.iter().enumerate() {
            if number > 0 && !self.joins(target, source) {
                break;
            }
            if number > 0 && target.output.is_none() {
                self.begin_output(target, &sources[..number], sources[number - 1].size).await?;
            }
            count += 1;
            let mut scan = self.scan(*source).await?;
            let mut position = 0;
            while let Some(batch) = next_batch(&mut scan, self.log, *source).await? {
                self.pass_on(batch.len()).await?;
                let fate = self.judge(*source, &batch, rules).await?;
                if target.output.is_none() && !matches!(fate, Fate::Stays) {
                    self.begin_output(target, &sources[..count], position).await?;
                }
                match &fate {
                    Fate::Stays => target.put(batch.bytes(), self.index_interval()),
                    Fate::Becomes(bytes) => target.put(bytes, self.index_interval()),
                    Fate::Goes => {}
                }
                self.write_out(target, CHUNK_BYTES).await?;
                position += batch.len() as u64;
                last = Some(*batch.header());
            }
        }
        if let Some(last) = last.filter(|_| target.size == 0) {
            // A segment is never empty: what was there is told by its last batch, without records.
            target.put(&BatchBuilder::emptied(&last), self.index_interval());
        }
        Ok(count)
    }

    /// Whether a segment goes into the one that is being made: it fits, and that is written anyway, or both are of a size,
    /// so that no byte is written again too often for the sake of fewer files.
    fn joins(&self, target: &Target, source: &Source) -> bool {
        let config = self.log.config.borrow();
        let reach = source.end.distance_from(target.base).expect("offsets of a log are not negative");
        let entries = u64::from(target.index.offset_entries()) + source.index_entries;
        target.size + source.size <= u64::from(config.segment_bytes)
            && entries * crate::index::OFFSET_ENTRY_LEN as u64 <= u64::from(config.segment_index_bytes)
            && reach <= i64::from(i32::MAX)
            && (target.output.is_some() || source.size * 2 >= target.size)
            && !self.job.tombstones_only
    }

    fn index_interval(&self) -> u32 {
        self.log.config.borrow().index_interval_bytes
    }

    /// What becomes of a batch.
    async fn judge(&mut self, source: Source, batch: &RecordBatch<'_>, rules: &Rules) -> Result<Fate, Error> {
        let header = batch.header();
        let empty = || {
            if rules.keeps_empty(header) { Fate::Becomes(BatchBuilder::emptied(header).to_vec()) } else { Fate::Goes }
        };
        if rules.keeps_whole(header) {
            return Ok(Fate::Stays);
        } else if header.record_count == 0 {
            return Ok(if rules.keeps_empty(header) { Fate::Stays } else { Fate::Goes });
        }
        let body = self.body(batch).await?;
        let mut kept = Vec::with_capacity(usize::try_from(header.record_count).unwrap_or(0));
        let mut has_tombstone = false;
        for (number, record) in batch.records_in(&body).enumerate() {
            let record = record.map_err(|error| self.damage(source, header, error))?;
            let stays = rules.keeps(header, &record);
            has_tombstone |= stays && record.value.is_none() && header.offset_of(&record) < rules.end;
            kept.push(stays);
            self.look_at_clock(number).await;
        }
        let count = kept.iter().filter(|kept| **kept).count();
        self.done.records += kept.len() as u64;
        self.done.records_removed += (kept.len() - count) as u64;
        let horizon = rules.horizon(header, has_tombstone);
        if count == 0 {
            return Ok(empty());
        } else if count == kept.len() && horizon == header.delete_horizon() {
            return Ok(Fate::Stays);
        }
        let mut builder = BatchBuilder::compact(header, horizon);
        for (number, (record, _)) in batch.records_in(&body).zip(&kept).filter(|(_, kept)| **kept).enumerate() {
            let record = record.expect("it was read a moment ago");
            builder.keep(&record).expect("less is kept than there was");
            self.look_at_clock(number).await;
        }
        self.built(builder).await.map(Fate::Becomes)
    }

    /// The records of a batch in the open. What is large and compressed is not worked on here.
    async fn body<'b>(&self, batch: &RecordBatch<'b>) -> Result<Cow<'b, [u8]>, Error> {
        let output_max = self.log.core.config.decompressed_bytes_max;
        let unreadable = |reason: String| self.log.compaction_damage(batch.base_offset(), reason);
        let Some(codec) = batch.compression().filter(|codec| is_heavy(*codec, batch.body().len())) else {
            return decompressed_body(batch, output_max).map_err(|error| unreadable(error.to_string()));
        };
        let compressed = batch.body().to_vec();
        let work = move || {
            let mut body = Vec::new();
            decompress(codec, &compressed, output_max, &mut body).map(|()| body)
        };
        let body = self.log.io().run_blocking(work).await?;
        body.map(Cow::Owned).map_err(|error| unreadable(error.to_string()))
    }

    async fn built(&self, builder: BatchBuilder) -> Result<Vec<u8>, Error> {
        let finish = |builder: BatchBuilder| {
            let mut bytes = Vec::new();
            builder.finish(&mut bytes).map(|_| bytes)
        };
        let built = match builder.is_compressed() && builder.size_uncompressed() > OFF_CORE_BYTES {
            true => self.log.io().run_blocking(move || finish(builder)).await?,
            false => finish(builder),
        };
        built.map_err(|error| self.log.compaction_damage(Offset::NONE, error.to_string()))
    }

    /// Accounts for bytes that were read, and gives up if that is wanted.
    async fn pass_on(&mut self, bytes: usize) -> Result<(), Error> {
        self.done.bytes_read += bytes as u64;
        self.pace.spend(bytes as u64).await;
        if (self.is_stopped)() || self.log.state.borrow().deleted {
            return Err(Error::Offline("compaction was stopped".into()));
        }
        self.log.offline().map_or(Ok(()), Err)
    }

    async fn look_at_clock(&self, number: usize) {
        if number.is_multiple_of(RECORDS_PER_LOOK) {
            self.pace.breathe().await;
        }
    }

    fn damage(&self, source: Source, header: &BatchHeader, error: RecordError) -> Error {
        let reason = format!("segment {}, batch at offset {}: {error}", source.base, header.base_offset);
        self.log.compaction_damage(header.base_offset, reason)
    }
}

/// What is written.
impl Pass<'_> {
    /// Makes the file, and copies what stays as it is: all of the segments before the last of `begun`, and of that the
    /// first `upto` bytes.
    async fn begin_output(&mut self, target: &mut Target, begun: &[Source], upto: u64) -> Result<(), Error> {
        self.log.check_room()?;
        self.log.touch().await?;
        self.log.state.borrow_mut().rewriting = true;
        let path = self.log.cleaned_path(target.base, target.generation);
        let file = self.log.io().open(&path, OpenOptions::create().truncate()).await?;
        target.output = Some(Output { file, buffer: Vec::new(), written: 0, flushed: 0 });
        let (last, whole) = begun.split_last().expect("a segment was begun");
        let lengths = whole.iter().map(|source| (source.base, source.size)).chain([(last.base, upto)]);
        for (base, len) in lengths {
            self.copy(target, base, len).await?;
        }
        Ok(())
    }

    async fn copy(&mut self, target: &mut Target, base: Offset, len: u64) -> Result<(), Error> {
        let file = self.log.open_file(base, SegmentFile::Log, OpenOptions::read_write()).await?;
        let mut position = 0;
        while position < len {
            let wanted = usize::try_from(len - position).unwrap_or(usize::MAX).min(CHUNK_BYTES);
            let bytes = self.log.io().read_lease(&file, position, wanted).await?;
            if bytes.len() < wanted {
                return Err(self.log.compaction_damage(base, "the file ends".to_owned()));
            }
            self.pass_on(wanted).await?;
            target.output.as_mut().expect("it was begun").buffer.extend_from_slice(&bytes);
            self.write_out(target, CHUNK_BYTES).await?;
            position += wanted as u64;
        }
        Ok(())
    }

    /// Writes what has gathered if that is `least` bytes or more.
    async fn write_out(&mut self, target: &mut Target, least: usize) -> Result<(), Error> {
        if target.size > SEGMENT_BYTES_LIMIT {
            return Err(self.log.compaction_damage(target.base, "the segment would become too large".to_owned()));
        }
        let Some(output) = target.output.as_mut().filter(|output| output.buffer.len() >= least.max(1)) else {
            return Ok(());
        };
        let bytes = std::mem::take(&mut output.buffer);
        let len = bytes.len() as u64;
        self.log.io().write(&output.file, output.written, vec![Lease::from_vec(bytes)]).await?;
        output.written += len;
        if output.written - output.flushed >= FLUSH_BYTES {
            self.log.io().sync_data(&output.file).await?;
            output.flushed = output.written;
        }
        self.done.bytes_written += len;
        self.pace.spend(len).await;
        Ok(())
    }

    /// Flushes the file and has it take its place.
    async fn finish(
        &mut self,
        mut target: Target,
        group: &[Source],
        rules: &Rules,
        manifest: &mut Manifest,
    ) -> Result<(), Error> {
        self.write_out(&mut target, 0).await?;
        let output = target.output.take().expect("something was written");
        assert_eq!(output.written, target.size, "what is indexed was written");
        self.log.io().sync_data(&output.file).await?;
        drop(output);
        let (first, last) = (&group[0], &group[group.len() - 1]);
        let put = CompactedSegment {
            base: first.base,
            end: last.end,
            size: target.size,
            generation: target.generation,
            horizon: target.horizon,
        };
        let mut next = manifest.clone();
        next.put(put, self.log.state.borrow().log_start);
        if last.end >= rules.end && !self.job.tombstones_only {
            next.first_dirty = rules.end;
        }
        let mut index = target.index;
        index.seal();
        let segment = Segment {
            size: target.size,
            index,
            first_append_at: first.first_append_at,
            last_append_at: last.last_append_at,
            on_disk: true,
            entry_synced: true,
            ..Segment::new(first.base)
        };
        self.log.replace_segments(segment, put, &next).await?;
        *manifest = next;
        self.done.segments_removed += group.len() as u64 - 1;
        Ok(())
    }

    /// Leaves nothing behind of a segment that was not finished.
    async fn abandon(&self, base: Offset, generation: u64) {
        if self.log.offline().is_some() {
            // The next start looks at the log, and removes it or brings it to its end.
            return;
        }
        let was_rewriting = std::mem::take(&mut self.log.state.borrow_mut().rewriting);
        if !was_rewriting {
            return;
        }
        let path: PathBuf = self.log.cleaned_path(base, generation);
        if let Err(error) = self.log.core.device.recycle(self.log.io(), &path, None).await {
            tracing::warn!(path = %path.display(), %error, "what is left of a compaction could not be removed");
        }
    }
}

/// A segment that is being made. As long as nothing has gone there is no output: the source is as good.
struct Target {
    base: Offset,
    generation: u64,
    size: u64,
    index: IndexBuilder,
    horizon: Option<Timestamp>,
    output: Option<Output>,
}

struct Output {
    file: File,
    buffer: Vec<u8>,
    written: u64,
    flushed: u64,
}

impl Target {
    fn new(base: Offset, generation: u64) -> Target {
        Target { base, generation, size: 0, index: IndexBuilder::default(), horizon: None, output: None }
    }

    fn put(&mut self, bytes: &[u8], interval_bytes: u32) {
        let header = *RecordBatch::peek(bytes).expect("a whole batch").header();
        let batch = IndexedBatch {
            position: u32::try_from(self.size).expect("a segment is below 2 GiB"),
            len: u32::try_from(bytes.len()).expect("a batch is below 2 GiB"),
            last_offset: header.last_offset(),
            max_timestamp: crate::scan::time_of_records(&header),
        };
        self.index.note(batch, interval_bytes);
        self.size += bytes.len() as u64;
        self.horizon = match (self.horizon, header.delete_horizon()) {
            (Some(known), Some(other)) => Some(known.min(other)),
            (known, other) => known.or(other),
        };
        if let Some(output) = &mut self.output {
            output.buffer.extend_from_slice(bytes);
        }
    }
}

impl Source {
    fn of(segment: &Segment, end: Offset) -> Source {
        Source {
            base: segment.base_offset,
            end,
            size: segment.size,
            index_entries: u64::from(segment.index.offset_entries()),
            first_append_at: segment.first_append_at,
            last_append_at: segment.last_append_at,
        }
    }
}

impl LogInner {
    /// What is there cannot be compacted.
    fn compaction_damage(&self, base: Offset, reason: String) -> Error {
        Error::Damaged { path: self.path.clone(), position: 0, offset: base, reason }
    }
}

/// The next batch of a segment, all of it checked: what is damaged is not written again under a new checksum.
async fn next_batch<'s>(
    scan: &'s mut BatchScan,
    log: &LogInner,
    source: Source,
) -> Result<Option<RecordBatch<'s>>, Error> {
    let (position, offset) = (scan.position(), scan.next_offset());
    match scan.next(log.io()).await? {
        Scanned::Batch(_, batch) => Ok(Some(batch)),
        Scanned::End => Ok(None),
        Scanned::Misfit(reason) => {
            let path = log.path.join(SegmentFile::Log.name(source.base));
            let found = Error::Damaged { path, position, offset, reason };
            log.note_damage(source.base, Err(found))
        }
    }
}

fn is_heavy(codec: Compression, len: usize) -> bool {
    codec != Compression::None && len > OFF_CORE_BYTES
}

/// The segments with tombstones whose time has come.
fn due(sources: Vec<Source>, manifest: &Manifest, now: Timestamp) -> Vec<Source> {
    let is_due = |put: &&super::manifest::CompactedSegment| put.horizon.is_some_and(|horizon| horizon <= now);
    let bases: Vec<Offset> = manifest.segments.iter().filter(is_due).map(|put| put.base).collect();
    sources.into_iter().filter(|source| bases.contains(&source.base)).collect()
}
