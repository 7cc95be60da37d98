//! How bytes of a segment reach the disk and come back: the seam between the log and the ways to keep it.
//!
//! A device prepares space, writes whole buffers at a position, flushes, truncates and recycles. It never knows what a
//! batch is, and it promises nothing about a file's length: only the log knows where it ends.
//!
//! | | `buffered` | `direct` |
//! |---|---|---|
//! | an append's bytes | stay where they were received | are copied once, into the log's tail (`tail.rs`) |
//! | a write | any bytes, through the page cache | whole blocks, O_DIRECT, into reserved or settled space (`space.rs`) |
//! | a flush | one fdatasync per dirty file | one for all logs of all cores, where the file system allows it (`shared_flush.rs`) |
//! | a read near the end | the page cache | the tail |

use std::path::Path;
use std::time::Duration;

use heddle_io::{DiskTraits, File, Hold, Io, Lease, OpenOptions};

use crate::error::Error;

/// Which device a data directory's logs are kept on (`log.device`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// `direct` where the file system can, else `buffered`.
    #[default]
    Auto,
    /// O_DIRECT into space prepared ahead.
    Direct,
    /// The page cache.
    Buffered,
}

/// One way to keep segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Device {
    /// Through the page cache.
    Buffered,
    /// Around it.
    Direct {
        /// One flush of any file makes durable what was written in place to all of them.
        one_flush_for_all: bool,
        /// What was written in place is durable without a flush.
        write_through: bool,
    },
}

impl Device {
    /// The device for a directory that can what `traits` says, and why.
    ///
    /// # Errors
    /// `direct` was asked for and cannot be.
    pub(crate) fn choose(choice: DeviceChoice, traits: &DiskTraits) -> Result<Device, Error> {
        let (one_flush_for_all, write_through) = (traits.one_flush_for_all, traits.write_through);
        let direct = Device::Direct { one_flush_for_all, write_through };
        match choice {
            DeviceChoice::Buffered => Ok(Device::Buffered),
            DeviceChoice::Auto if !traits.direct => Ok(Device::Buffered),
            DeviceChoice::Direct if !traits.direct => Err(Error::NoDirectWrites { reason: traits.reason.clone() }),
            DeviceChoice::Auto | DeviceChoice::Direct => Ok(direct),
        }
    }

    /// Its name, as the setting has it.
    pub(crate) fn name(self) -> &'static str {
        if self.is_direct() { "direct" } else { "buffered" }
    }

    pub(crate) fn is_direct(self) -> bool {
        matches!(self, Device::Direct { .. })
    }

    /// Whether one flush may stand for those of several logs.
    pub(crate) fn shares_flushes(self) -> bool {
        matches!(self, Device::Direct { one_flush_for_all: true, .. })
    }

    /// Whether a completed write in place needs no flush at all: the device has no cache to lose.
    pub(crate) fn is_write_through(self) -> bool {
        matches!(self, Device::Direct { one_flush_for_all: true, write_through: true })
    }

    /// Waits until no write to `file` is in flight that a process began which is dead: a kill leaves what it gave to the
    /// kernel, and nothing may be read or written here before that has landed (the kernel orders no two direct writes).
    /// Whoever writes a segment holds its file for as long as any operation on it lasts.
    ///
    /// # Errors
    /// It takes longer than [`FORMER_WRITES_MAX`].
    pub(crate) async fn wait_for_former_writes(self, io: &Io, file: &File) -> Result<(), Error> {
        hold(io, file, Hold::Alone).await
    }

    /// Makes the file of a new, empty segment; what a crash has left under that name is replaced. Its directory entry is
    /// durable after the directory is synced. With `recycled` it is that file, old batches of the same log included: all of
    /// them have offsets below the new segment's, so none of them continues it (case 41).
    ///
    /// # Errors
    /// No space, too many files, the disk's.
    pub(crate) async fn prepare(self, io: &Io, path: &Path, recycled: Option<&Path>) -> Result<File, Error> {
        let Some(recycled) = recycled else {
            return self.open(io, path, OpenOptions::create().truncate()).await;
        };
        io.rename(recycled, path).await?;
        self.open(io, path, OpenOptions::read_write()).await
    }

    /// Opens a segment's file to be written.
    ///
    /// # Errors
    /// Whatever opening it gives.
    pub(crate) async fn open(self, io: &Io, path: &Path, options: OpenOptions) -> Result<File, Error> {
        let options = if self.is_direct() { options.direct() } else { options };
        let file = io.open(path, options).await?;
        hold(io, &file, Hold::Shared).await?;
        Ok(file)
    }

    /// Writes `pieces`, one after the other, at `position`: on the direct device whole blocks.
    ///
    /// # Errors
    /// How much was written is not known then; the log goes offline.
    pub(crate) async fn write(self, io: &Io, file: &File, position: u64, pieces: Vec<Lease>) -> Result<(), Error> {
        Ok(io.write(file, position, pieces).await?)
    }

    /// Makes durable what was written to `file` before the call.
    ///
    /// # Errors
    /// What was not durable before may be lost; the data directory goes offline.
    pub(crate) async fn flush(self, io: &Io, file: &File) -> Result<(), Error> {
        Ok(io.sync_data(file).await?)
    }

    /// Abandons everything from `position` on, durably: none of it is ever read again (case 41).
    ///
    /// # Errors
    /// As [`Device::flush`].
    pub(crate) async fn truncate(self, io: &Io, file: &File, position: u64) -> Result<(), Error> {
        io.set_len(file, position).await?;
        Ok(io.sync_data(file).await?)
    }

    /// Gives the space of a segment back that nobody needs any more: to the file system, or under the name `keep_as` to the
    /// log's next segment. Readers that have the file open go on reading it; who has it keeps it from being used again.
    ///
    /// # Errors
    /// The disk's; a file that is not there is no error (case 33).
    pub(crate) async fn recycle(self, io: &Io, path: &Path, keep_as: Option<&Path>) -> Result<(), Error> {
        let gone = match keep_as {
            Some(name) => io.rename(path, name).await,
            None => io.remove_file(path).await,
        };
        match gone {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }
}

/// How long a start waits for what a killed process left in flight on one file.
const FORMER_WRITES_MAX: Duration = Duration::from_secs(60);
const FORMER_WRITES_PAUSE: Duration = Duration::from_millis(1);

async fn hold(io: &Io, file: &File, how: Hold) -> Result<(), Error> {
    let deadline = io.now() + FORMER_WRITES_MAX;
    while !file.try_hold(how)? {
        if io.now() >= deadline {
            return Err(Error::Busy { path: file.path().to_owned() });
        }
        io.sleep(FORMER_WRITES_PAUSE).await;
    }
    Ok(())
}
