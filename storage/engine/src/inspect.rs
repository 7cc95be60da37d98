//! Reading logs that no process has open: what is in them, and whether it is sound.
//!
//! Owns the walk from a data directory, a log's directory or a single file to its batches, for `heddle log`. It changes
//! nothing, takes no lock, and reads segments that Apache Kafka wrote as well.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use heddle_io::{EntryKind, Io, OpenOptions};
use heddle_record::{LogId, Offset, Origin, RecordBatch, Timestamp};

use crate::archive::Age;
use crate::checkpoint::read_checkpoint;
use crate::compaction::{Manifest, read_manifest};
use crate::data_dir::read_identity;
use crate::error::Error;
use crate::index::{OFFSET_ENTRY_LEN, TIME_ENTRY_LEN, decode_offset_index, decode_time_index};
use crate::layout::{self, LogName, SegmentFile};
use crate::opening::decompressed_body;
use crate::scan::{BatchScan, Continuity, Scanned};
use crate::snapshot::recovery_point;
use crate::state::Boundary;
use heddle_record::LeaderEpoch;

/// Output limit in bytes of one batch that is decompressed to look at its records.
const DECOMPRESSED_BYTES_MAX: usize = 1 << 30;

/// A directory with segments.
#[derive(Debug, Clone)]
pub struct StoredLog {
    /// The directory.
    pub path: PathBuf,
    /// The directory's name: `orders-0.<topic id>`, or `orders-0` if Kafka made it.
    pub name: String,
    /// The `.log` files, ascending.
    pub segments: Vec<StoredSegment>,
    /// Up to here everything was flushed when the last checkpoint was written; `None` where there is no checkpoint.
    checkpointed: Option<Boundary>,
    /// What is wrong with what compaction has written down.
    compaction_damage: Option<Damage>,
}

/// A `.log` file.
#[derive(Debug, Clone)]
pub struct StoredSegment {
    /// The file.
    pub path: PathBuf,
    /// What its name says.
    pub base_offset: Offset,
    /// Bytes that compaction has written; `None` if it has not written this segment.
    pub compacted_bytes: Option<u64>,
    /// Where what is in it must be sound.
    trust: Trust,
}

/// Which bytes of a segment may be torn by a crash.
#[derive(Debug, Clone, Copy)]
enum Trust {
    /// None, or it is not known: whatever does not fit is damage.
    Whole,
    /// Those from this position on: the next start cuts them off.
    Below(u64),
}

/// A batch, as the walk meets it.
#[derive(Debug)]
pub struct StoredBatch<'a> {
    /// Where it starts in the file, in bytes.
    pub position: u64,
    /// The batch, whose checksum fits.
    pub batch: RecordBatch<'a>,
    /// Its body, decompressed; `None` if that cannot be done.
    pub body: Option<&'a [u8]>,
}

/// What is in a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentReport {
    /// The length of the `.log` file in bytes.
    pub file_bytes: u64,
    /// Bytes of sound batches.
    pub batch_bytes: u64,
    /// How many batches.
    pub batches: u64,
    /// How many records, by their headers.
    pub records: u64,
    /// The base offset of the first batch.
    pub first_offset: Option<Offset>,
    /// The last offset of the last batch.
    pub last_offset: Option<Offset>,
    /// The largest timestamp.
    pub max_timestamp: Timestamp,
    /// Entries in the offset index and in the time index; `None` where there is no file.
    pub index_entries: [Option<usize>; 2],
    /// What is wrong, in the order of positions. Empty if the segment is sound.
    pub damage: Vec<Damage>,
    /// A crash has torn the end of the segment: the next start cuts it off. Not damage.
    pub torn_tail: Option<Damage>,
}

/// Something that is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The file.
    pub path: PathBuf,
    /// Where, in bytes.
    pub position: u64,
    /// What.
    pub reason: String,
}

/// Finds the logs under `path`: a data directory, a log's directory, or one `.log` file.
///
/// # Errors
/// [`Error::Io`]; [`Error::Foreign`] if there is no segment.
pub async fn find_logs(io: &Io, path: &Path) -> Result<Vec<StoredLog>, Error> {
    let file_name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let recovery_points = recovery_points(io, path).await?;
    if io.metadata(path).await?.kind == EntryKind::File {
        let directory = path.parent().unwrap_or(Path::new("."));
        let mut log = read_log(io, directory, &recovery_points).await?;
        log.segments.retain(|segment| segment.path.file_name() == path.file_name());
        return non_empty(path, file_name, vec![log]);
    }
    let entries = io.read_dir(path).await?;
    if entries.iter().any(|entry| is_segment(&entry.name)) {
        return Ok(vec![read_log(io, path, &recovery_points).await?]);
    }
    let mut logs = Vec::new();
    for entry in entries.iter().filter(|entry| entry.kind == EntryKind::Directory) {
        if entry.name.ends_with(layout::DELETED_SUFFIX) || entry.name == "lost+found" {
            continue;
        }
        logs.push(read_log(io, &path.join(&entry.name), &recovery_points).await?);
    }
    if read_identity(io, path).await?.is_some() {
        return Ok(logs);
    }
    logs.retain(|log| !log.segments.is_empty());
    non_empty(path, file_name, logs)
}

fn non_empty(path: &Path, found: String, logs: Vec<StoredLog>) -> Result<Vec<StoredLog>, Error> {
    if logs.iter().all(|log| log.segments.is_empty()) {
        return Err(Error::Foreign { path: path.to_owned(), found });
    }
    Ok(logs)
}

fn is_segment(name: &str) -> bool {
    matches!(SegmentFile::parse(name), Some((_, SegmentFile::Log)))
}

/// The recovery points that the checkpoints of the data directory around `path` know.
async fn recovery_points(io: &Io, path: &Path) -> Result<BTreeMap<LogId, (Age, Boundary)>, Error> {
    let mut points: BTreeMap<LogId, (Age, Boundary)> = BTreeMap::new();
    for directory in path.ancestors().take(3) {
        let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
        if !io.exists(&directory.join(layout::IDENTITY_FILE)).await.unwrap_or(false) {
            continue;
        }
        for entry in io.read_dir(directory).await? {
            if layout::checkpoint_core(&entry.name).is_none() {
                continue;
            }
            let Ok(checkpoint) = read_checkpoint(io, &directory.join(&entry.name)).await? else { continue };
            for log in checkpoint.logs {
                if points.get(&log.id).is_none_or(|(known, _)| *known < log.age)
                    && let Some(snapshot) = log.snapshot()
                {
                    points.insert(log.id, (log.age, recovery_point(&snapshot)));
                }
            }
        }
        break;
    }
    Ok(points)
}

async fn read_log(io: &Io, path: &Path, points: &BTreeMap<LogId, (Age, Boundary)>) -> Result<StoredLog, Error> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let ours = LogName::from_directory(&name);
    let checkpointed = ours.as_ref().and_then(|name| points.get(&name.id)).map(|(_, point)| *point);
    let entries = io.read_dir(path).await?;
    let files: Vec<String> =
        entries.into_iter().filter(|entry| entry.kind == EntryKind::File).map(|entry| entry.name).collect();
    let (manifest, compaction_damage) = match read_manifest(io, path).await {
        Ok(manifest) => (manifest, None),
        Err(Error::Damaged { path, position, reason, .. }) => {
            (Manifest::default(), Some(Damage { path, position, reason }))
        }
        Err(error) => return Err(error),
    };
    let bases = files.iter().filter_map(|name| match SegmentFile::parse(name) {
        Some((base_offset, SegmentFile::Log)) => Some(base_offset),
        _ => None,
    });
    let mut segments: Vec<StoredSegment> =
        bases.filter_map(|base_offset| StoredSegment::of(path, base_offset, &manifest, &files)).collect();
    if let Some(point) = checkpointed {
        for segment in &mut segments {
            segment.trust = match segment.base_offset.cmp(&point.segment) {
                std::cmp::Ordering::Less => Trust::Whole,
                std::cmp::Ordering::Equal => Trust::Below(point.position),
                std::cmp::Ordering::Greater => Trust::Below(0),
            };
        }
    } else if ours.is_some()
        && let Some(last) = segments.last_mut()
    {
        // Ours, and never checkpointed: a kill may have torn its end.
        last.trust = Trust::Below(0);
    }
    Ok(StoredLog { path: path.to_owned(), name, segments, checkpointed, compaction_damage })
}

impl StoredLog {
    /// Checks every batch and every index entry of all segments, and that these follow each other. Each report comes
    /// with its segment.
    ///
    /// # Errors
    /// [`Error::Io`]. Damage is in the reports.
    pub async fn check(&self, io: &Io) -> Result<Vec<(StoredSegment, SegmentReport)>, Error> {
        let mut reports: Vec<(StoredSegment, SegmentReport)> = Vec::new();
        for segment in &self.segments {
            let mut report = segment.walk(io, &mut |_| {}).await?;
            let end_before = reports.last().and_then(|(_, before)| before.last_offset);
            if end_before.is_some_and(|last| last >= segment.base_offset) {
                report.damage.insert(0, damage(&segment.path, 0, "overlaps the segment before".to_owned()));
            }
            reports.push((segment.clone(), report));
        }
        self.check_recovery_point(&mut reports);
        if let (Some(found), Some((_, report))) = (&self.compaction_damage, reports.first_mut()) {
            report.damage.push(found.clone());
        }
        Ok(reports)
    }

    /// What was flushed when the checkpoint was written must be there.
    fn check_recovery_point(&self, reports: &mut Vec<(StoredSegment, SegmentReport)>) {
        let Some(point) = self.checkpointed.filter(|point| point.position > 0) else { return };
        match reports.iter_mut().find(|(segment, _)| segment.base_offset == point.segment) {
            Some((segment, report)) if report.batch_bytes < point.position && report.damage.is_empty() => {
                let reason = format!("the file ends, {} bytes were flushed", point.position);
                report.damage.push(damage(&segment.path, report.batch_bytes, reason));
            }
            Some(_) => {}
            None => {
                let path = self.path.join(SegmentFile::Log.name(point.segment));
                let trust = Trust::Whole;
                let segment =
                    StoredSegment { path: path.clone(), base_offset: point.segment, compacted_bytes: None, trust };
                let report =
                    SegmentReport { damage: vec![damage(&path, 0, "the file is missing".to_owned())], ..EMPTY };
                reports.push((segment, report));
            }
        }
    }
}

const EMPTY: SegmentReport = SegmentReport {
    file_bytes: 0,
    batch_bytes: 0,
    batches: 0,
    records: 0,
    first_offset: None,
    last_offset: None,
    max_timestamp: Timestamp::NONE,
    index_entries: [None, None],
    damage: Vec::new(),
    torn_tail: None,
};

fn damage(path: &Path, position: u64, reason: String) -> Damage {
    Damage { path: path.to_owned(), position, reason }
}

/// What the indexes are held against.
struct Landmark {
    position: u64,
    base_offset: Offset,
    last_offset: Offset,
    /// The largest timestamp up to here.
    max_so_far: Timestamp,
}

impl StoredSegment {
    /// The segment of this base offset, among the `files` of its directory; `None` if a rewritten one stands for it. Where a
    /// power cut came before a rewritten segment took its place, it is the rewritten one.
    fn of(directory: &Path, base_offset: Offset, manifest: &Manifest, files: &[String]) -> Option<StoredSegment> {
        let put = manifest.segments.iter().find(|put| put.base <= base_offset && base_offset < put.end);
        if put.is_some_and(|put| put.base < base_offset) {
            return None;
        }
        let cleaned = put.map(|put| layout::cleaned_file(put.base, put.generation));
        let name = cleaned.filter(|name| files.contains(name)).unwrap_or_else(|| SegmentFile::Log.name(base_offset));
        let compacted_bytes = put.map(|put| put.size);
        Some(StoredSegment { path: directory.join(name), base_offset, compacted_bytes, trust: Trust::Whole })
    }

    /// Whether it has not taken its place yet: the index files are those of the segment that it replaces.
    fn is_waiting(&self) -> bool {
        self.path.file_name().is_some_and(|name| layout::parse_cleaned(&name.to_string_lossy()).is_some())
    }

    /// Walks over all batches up to the first that does not fit, shows each to `visit`, and checks records and indexes.
    ///
    /// # Errors
    /// [`Error::Io`]. Damage is in the report.
    pub async fn walk(&self, io: &Io, visit: &mut dyn FnMut(StoredBatch<'_>)) -> Result<SegmentReport, Error> {
        let file = io.open(&self.path, OpenOptions::read()).await?;
        let mut report = SegmentReport { file_bytes: io.len(&file).await?, ..EMPTY };
        let mut landmarks: Vec<Landmark> = Vec::new();
        let mut scan = BatchScan::new(
            file.clone(),
            report.file_bytes,
            0,
            self.base_offset,
            LeaderEpoch::NONE,
            Continuity::Ascending,
        );
        let misfit = loop {
            match scan.next(io).await? {
                Scanned::Batch(at, batch) => {
                    report.count(&batch);
                    landmarks.push(Landmark {
                        position: at.position,
                        base_offset: batch.base_offset(),
                        last_offset: batch.last_offset(),
                        max_so_far: report.max_timestamp,
                    });
                    if let Err(reason) = show(at.position, batch, visit) {
                        report.damage.push(damage(&self.path, at.position, reason));
                    }
                }
                Scanned::End => break None,
                Scanned::Misfit(reason) => break Some(reason),
            }
        };
        report.batch_bytes = scan.position();
        if let Some(reason) = misfit
            && !is_zero(io, &file, report.batch_bytes, report.file_bytes).await?
        {
            let reason = format!("{reason}; offset {} was expected", scan.next_offset());
            let found = damage(&self.path, report.batch_bytes, reason);
            match self.trust {
                Trust::Below(limit) if report.batch_bytes >= limit => report.torn_tail = Some(found),
                _ => report.damage.push(found),
            }
        }
        if let Some(size) = self.compacted_bytes.filter(|size| *size != report.batch_bytes && report.damage.is_empty())
        {
            let reason = format!("there are {} bytes of batches, compaction wrote {size}", report.batch_bytes);
            report.damage.push(damage(&self.path, report.batch_bytes, reason));
        }
        if self.is_waiting() {
            return Ok(report);
        }
        self.check_offset_index(io, &landmarks, &mut report).await?;
        self.check_time_index(io, &landmarks, &mut report).await?;
        Ok(report)
    }

    async fn check_offset_index(
        &self,
        io: &Io,
        landmarks: &[Landmark],
        report: &mut SegmentReport,
    ) -> Result<(), Error> {
        let path = self.path.with_file_name(SegmentFile::OffsetIndex.name(self.base_offset));
        let Some(bytes) = read_side_file(io, &path).await? else { return Ok(()) };
        let entries = decode_offset_index(&bytes, self.base_offset);
        report.index_entries[0] = Some(entries.len());
        check_rest(&path, &bytes, entries.len() * OFFSET_ENTRY_LEN, report);
        // Behind damage in the segment nothing is known of its batches.
        let known_end = if report.damage.is_empty() { u64::MAX } else { report.batch_bytes };
        for (number, entry) in entries.iter().enumerate() {
            let position = u64::from(entry.position);
            let batch = landmarks.binary_search_by_key(&position, |landmark| landmark.position);
            let fits = batch.is_ok_and(|found| landmarks[found].base_offset <= entry.last_offset);
            if !fits && position < known_end && self.is_trusted(position) {
                let reason =
                    format!("entry {number} says that offset {} is at {position}, where it is not", entry.last_offset);
                report.damage.push(damage(&path, (number * OFFSET_ENTRY_LEN) as u64, reason));
            }
        }
        Ok(())
    }

    async fn check_time_index(&self, io: &Io, landmarks: &[Landmark], report: &mut SegmentReport) -> Result<(), Error> {
        let path = self.path.with_file_name(SegmentFile::TimeIndex.name(self.base_offset));
        let Some(bytes) = read_side_file(io, &path).await? else { return Ok(()) };
        let entries = decode_time_index(&bytes, self.base_offset);
        report.index_entries[1] = Some(entries.len());
        check_rest(&path, &bytes, entries.len() * TIME_ENTRY_LEN, report);
        for (number, entry) in entries.iter().enumerate() {
            let below = landmarks.partition_point(|landmark| landmark.last_offset <= entry.last_offset);
            let latest = below.checked_sub(1).and_then(|last| landmarks.get(last)).map(|landmark| landmark.max_so_far);
            if latest.is_some_and(|latest| latest > entry.timestamp) {
                let reason = format!(
                    "entry {number} says that nothing up to offset {} is later than {}",
                    entry.last_offset, entry.timestamp
                );
                report.damage.push(damage(&path, (number * TIME_ENTRY_LEN) as u64, reason));
            }
        }
        Ok(())
    }

    fn is_trusted(&self, position: u64) -> bool {
        match self.trust {
            Trust::Whole => true,
            Trust::Below(limit) => position < limit,
        }
    }
}

impl SegmentReport {
    fn count(&mut self, batch: &RecordBatch<'_>) {
        self.batches += 1;
        self.records += u64::try_from(batch.record_count()).unwrap_or(0);
        self.first_offset.get_or_insert(batch.base_offset());
        self.last_offset = Some(batch.last_offset());
        self.max_timestamp = self.max_timestamp.max(crate::scan::time_of_records(batch.header()));
    }

    /// Whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.damage.is_empty()
    }
}

/// Shows a batch with its records in the open.
fn show(position: u64, batch: RecordBatch<'_>, visit: &mut dyn FnMut(StoredBatch<'_>)) -> Result<(), String> {
    let body = decompressed_body(&batch, DECOMPRESSED_BYTES_MAX);
    let checked = match &body {
        Ok(body) => batch.check_records(body, Origin::Log).map(|_| ()).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    visit(StoredBatch { position, batch, body: body.as_deref().ok() });
    checked
}

/// An index may end in zeros (Kafka makes room ahead); anything else behind its entries is damage.
fn check_rest(path: &Path, bytes: &[u8], entries_end: usize, report: &mut SegmentReport) {
    let rest = bytes.get(entries_end..).unwrap_or_default();
    if rest.iter().any(|byte| *byte != 0) {
        report.damage.push(damage(path, entries_end as u64, format!("{} bytes are no ascending entries", rest.len())));
    }
}

async fn read_side_file(io: &Io, path: &Path) -> Result<Option<heddle_io::Lease>, Error> {
    match io.open(path, OpenOptions::read()).await {
        Ok(file) => {
            let len = usize::try_from(io.len(&file).await?).expect("a file in memory");
            Ok(Some(io.read_lease(&file, 0, len).await?))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether a file holds nothing but zeros from `position` on: space that was made ahead.
async fn is_zero(io: &Io, file: &heddle_io::File, mut position: u64, end: u64) -> Result<bool, Error> {
    const STEP: u64 = 1 << 20;
    while position < end {
        let len = usize::try_from(STEP.min(end - position)).expect("a small number");
        let bytes = io.read_lease(file, position, len).await?;
        if bytes.is_empty() || bytes.iter().any(|byte| *byte != 0) {
            return Ok(bytes.is_empty());
        }
        position += bytes.len() as u64;
    }
    Ok(true)
}
