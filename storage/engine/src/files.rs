//! Open files of one core, bounded: idle ones are closed, the longest unused first.
//!
//! Owns which descriptors stay open. A file with bytes that were not flushed is held by its log besides
//! (`flush.rs`), because closing it could lose the report of a failed write-back; here it is only one more clone.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

use heddle_io::{File, Io, OpenOptions};
use heddle_record::{LogId, Offset};

use crate::error::Error;
use crate::layout::SegmentFile;

/// Which file of which log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FileKey {
    pub(crate) log: LogId,
    pub(crate) segment: Offset,
    pub(crate) file: SegmentFile,
    /// Opened to be written around the page cache.
    pub(crate) direct: bool,
}

impl FileKey {
    /// The path of the file in its log's directory.
    pub(crate) fn path(&self, directory: &Path) -> std::path::PathBuf {
        directory.join(self.file.name(self.segment))
    }
}

/// A cache of open files, least recently used first out.
#[derive(Debug)]
pub(crate) struct FileTable {
    files_max: usize,
    inner: RefCell<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// Each file with the turn of its last use.
    files: BTreeMap<FileKey, (File, u64)>,
    /// The same, by turn.
    by_use: BTreeMap<u64, FileKey>,
    turn: u64,
}

impl FileTable {
    pub(crate) fn new(files_max: usize) -> FileTable {
        FileTable { files_max: files_max.max(16), inner: RefCell::default() }
    }

    /// The file, opened if it is not open.
    ///
    /// # Errors
    /// Whatever opening it gives.
    pub(crate) async fn open(
        &self,
        io: &Io,
        key: FileKey,
        directory: &Path,
        options: OpenOptions,
    ) -> Result<File, Error> {
        if let Some(file) = self.find(key) {
            return Ok(file);
        }
        let file = io.open(&key.path(directory), options).await?;
        self.insert(key, file.clone());
        Ok(file)
    }

    /// The file, if it is open.
    pub(crate) fn find(&self, key: FileKey) -> Option<File> {
        let mut table = self.inner.borrow_mut();
        let turn = table.next_turn();
        let (file, used) = table.files.get_mut(&key)?;
        let (file, before) = (file.clone(), std::mem::replace(used, turn));
        table.by_use.remove(&before);
        table.by_use.insert(turn, key);
        Some(file)
    }

    pub(crate) fn insert(&self, key: FileKey, file: File) {
        let mut table = self.inner.borrow_mut();
        let turn = table.next_turn();
        if let Some((_, before)) = table.files.insert(key, (file, turn)) {
            table.by_use.remove(&before);
        }
        table.by_use.insert(turn, key);
        while table.files.len() > self.files_max {
            let (_, oldest) = table.by_use.pop_first().expect("every open file has a last use");
            table.files.remove(&oldest);
        }
    }

    /// Forgets a file that is about to be removed or replaced, however it was opened. Whether somebody still reads it.
    pub(crate) fn forget(&self, key: FileKey) -> bool {
        let mut table = self.inner.borrow_mut();
        [false, true].map(|direct| table.take(FileKey { direct, ..key })).iter().flatten().any(File::is_shared)
    }

    /// Forgets all files of a log.
    pub(crate) fn forget_log(&self, log: LogId) {
        let first = FileKey { log, segment: Offset::ZERO, file: SegmentFile::Log, direct: false };
        let last = FileKey { log, segment: Offset::MAX, file: SegmentFile::TimeIndex, direct: true };
        let keys: Vec<FileKey> = self.inner.borrow().files.range(first..=last).map(|(key, _)| *key).collect();
        for key in keys {
            self.forget(key);
        }
    }

    /// Closes every file that nobody else holds.
    pub(crate) fn close_all(&self) {
        *self.inner.borrow_mut() = Table::default();
    }

    /// How many files are open.
    pub(crate) fn len(&self) -> usize {
        self.inner.borrow().files.len()
    }
}

impl Table {
    fn take(&mut self, key: FileKey) -> Option<File> {
        let (file, used) = self.files.remove(&key)?;
        self.by_use.remove(&used);
        Some(file)
    }

    fn next_turn(&mut self) -> u64 {
        self.turn += 1;
        self.turn
    }
}
