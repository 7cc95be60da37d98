//! How bytes of a segment reach the disk and come back: the seam between the log and the ways to keep it.
//!
//! A device prepares space, writes whole buffers at a position, flushes, truncates and recycles. It never knows what a
//! batch is, and it promises nothing about a file's length: only the log knows where it ends.
//!
//! There is one device, `buffered`: the page cache, writes wherever the log ends, one fdatasync per dirty file.

use std::path::Path;

use heddle_io::{File, Io, Lease, OpenOptions};

use crate::error::Error;

/// One way to keep segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Device {
    /// Through the page cache.
    #[default]
    Buffered,
}

impl Device {
    /// Makes the file of a new, empty segment; what a crash has left under that name is emptied. Its directory entry is
    /// durable after the directory is synced.
    ///
    /// # Errors
    /// No space, too many files, the disk's.
    pub(crate) async fn prepare(self, io: &Io, path: &Path) -> Result<File, Error> {
        match self {
            Device::Buffered => Ok(io.open(path, OpenOptions::create().truncate()).await?),
        }
    }

    /// Writes `pieces`, one after the other, at `position`.
    ///
    /// # Errors
    /// How much was written is not known then; the log goes offline.
    pub(crate) async fn write(self, io: &Io, file: &File, position: u64, pieces: Vec<Lease>) -> Result<(), Error> {
        match self {
            Device::Buffered => Ok(io.write(file, position, pieces).await?),
        }
    }

    /// Makes durable what was written to `file` before the call.
    ///
    /// # Errors
    /// What was not durable before may be lost; the data directory goes offline.
    pub(crate) async fn flush(self, io: &Io, file: &File) -> Result<(), Error> {
        match self {
            Device::Buffered => Ok(io.sync_data(file).await?),
        }
    }

    /// Abandons everything from `position` on, durably: none of it is ever read again (case 41).
    ///
    /// # Errors
    /// As [`Device::flush`].
    pub(crate) async fn truncate(self, io: &Io, file: &File, position: u64) -> Result<(), Error> {
        match self {
            Device::Buffered => {
                io.set_len(file, position).await?;
                Ok(io.sync_data(file).await?)
            }
        }
    }

    /// Gives the space of a segment back that nobody needs any more. Readers that have the file open go on reading it.
    ///
    /// # Errors
    /// The disk's; a file that is not there is no error (case 33).
    pub(crate) async fn recycle(self, io: &Io, path: &Path) -> Result<(), Error> {
        match self {
            Device::Buffered => match io.remove_file(path).await {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
                _ => Ok(()),
            },
        }
    }
}
