//! The data directory: its lock, its format version, its identity, and the flag that takes all of it offline.
//!
//! Owns `heddle.lock` and `heddle.identity`. A directory that is not ours, or is newer than this program, is left exactly
//! as it was. It never looks inside a log's directory.
//!
//! Every small file beside the logs is written the same way ([`write_checked`]): to a temporary name, flushed, renamed,
//! the directory flushed (case 28). A crash leaves the former file or the new one.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use heddle_io::{EntryKind, File, Io, Lease, LockError, OpenOptions};
use heddle_record::checksum::crc32c;
use heddle_record::{BrokerId, TopicId};

use crate::checkpoint::Inherited;
use crate::cold::SharedColdReads;
use crate::device::{Device, DeviceChoice};
use crate::error::Error;
use crate::layout;
use crate::reserve::Reserve;
use crate::shared_flush::DeviceFlush;

/// The format version that this program writes. It opens this one and every older one.
pub const FORMAT_VERSION: u32 = 3;

/// The first line of the identity file.
const FIRST_LINE: &str = "heddle data directory";
/// More than an identity file can have, in bytes.
const IDENTITY_BYTES_MAX: u64 = 4096;
/// What may be in a directory that is to become a data directory: what `mkfs` leaves, and what a first start leaves that
/// was interrupted before the identity was there.
const HARMLESS: [&str; 3] = ["lost+found", layout::LOCK_FILE, "heddle.identity.tmp"];

/// Whose data it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The cluster, as Kafka's clients see it: 22 characters of base64url unless the cluster was named otherwise.
    pub cluster_id: String,
    /// The broker.
    pub broker_id: BrokerId,
    /// This directory; a copy of a directory is told from the original by nothing else.
    pub directory_id: TopicId,
}

/// What the caller knows of the identity; what it leaves open is taken from the directory, or made up for a new one.
#[derive(Debug, Clone, Default)]
pub struct WantedIdentity {
    /// The cluster.
    pub cluster_id: Option<String>,
    /// The broker; a new directory gets 1.
    pub broker_id: Option<BrokerId>,
}

/// An open, locked data directory. Clones share it; the lock is held until the last one drops.
#[derive(Debug, Clone)]
pub struct DataDir {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    identity: Identity,
    /// Held for its lock.
    _lock: File,
    /// A file that nobody writes to: flushing it flushes the device and nothing else. Not the lock, which a flush in flight
    /// would hold beyond the process' death.
    anchor: File,
    /// How logs are kept here, and why: every core must do the same.
    device: OnceLock<Device>,
    device_flush: DeviceFlush,
    cold_reads: SharedColdReads,
    reserve: Reserve,
    offline: AtomicBool,
    /// Why it is offline; the first reason stays.
    offline_reason: OnceLock<Arc<str>>,
    /// What the checkpoints of the last run say, until the cores of this run have written their own. Start and the first
    /// checkpoint use it, appends never do.
    inherited: Mutex<Option<Inherited>>,
}

impl DataDir {
    /// Refuses a log device that the file system cannot have, before anything is made there: asks the nearest directory
    /// above `path` that exists.
    ///
    /// # Errors
    /// [`Error::NoDirectWrites`]; what the system refuses.
    pub async fn check_device(io: &Io, path: &Path, choice: DeviceChoice) -> Result<(), Error> {
        if choice != DeviceChoice::Direct {
            return Ok(());
        }
        let mut home = path;
        while !io.exists(home).await? {
            home = home.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        }
        let traits = io.probe_disk(home).await?;
        Device::choose(choice, &traits).map(drop)
    }

    /// Opens the data directory at `path`, making it (and missing parents) if there is none.
    ///
    /// # Errors
    /// [`Error::Foreign`], [`Error::NewerFormat`], [`Error::OtherIdentity`], [`Error::DamagedIdentity`] and
    /// [`Error::Locked`] leave everything as it was; [`Error::Io`] for what the system refuses.
    pub async fn open(io: &Io, path: &Path, wanted: &WantedIdentity) -> Result<DataDir, Error> {
        if !io.exists(path).await? {
            io.create_dir_all(path).await?;
            sync_parents(io, path).await?;
        }
        refuse_foreign(io, path).await?;
        let lock = lock(io, path).await?;
        let identity = match read_identity_file(io, path).await? {
            Some((identity, format)) => {
                wanted.check(path, &identity)?;
                if format < FORMAT_VERSION {
                    tracing::info!(directory = %path.display(), from = format, to = FORMAT_VERSION, "this directory is for this version and later ones from now on");
                    write_identity(io, path, &identity).await?;
                }
                identity
            }
            None => create_identity(io, path, wanted).await?,
        };
        let anchor = io.open(&path.join(layout::IDENTITY_FILE), OpenOptions::read()).await?;
        let shared = Shared {
            path: path.to_owned(),
            identity,
            _lock: lock,
            anchor,
            device: OnceLock::new(),
            device_flush: DeviceFlush::default(),
            cold_reads: SharedColdReads::default(),
            reserve: Reserve::default(),
            offline: AtomicBool::new(false),
            offline_reason: OnceLock::new(),
            inherited: Mutex::new(None),
        };
        Ok(DataDir { shared: Arc::new(shared) })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// Whose data it is.
    pub fn identity(&self) -> &Identity {
        &self.shared.identity
    }

    /// Replaces a small file beside the logs, durably: a crash leaves the former one or this.
    ///
    /// # Errors
    /// Whatever the system refuses; the former file is still there then. A flush that fails takes the directory offline.
    pub async fn replace_file(&self, io: &Io, name: &str, bytes: Lease) -> Result<(), Error> {
        self.offline_error().map_or(Ok(()), Err)?;
        let written = write_checked(io, self.path(), name, vec![bytes]).await;
        written.inspect_err(|error| self.note_failure(error))
    }

    /// Reads a small file beside the logs; `None` if there is none.
    ///
    /// # Errors
    /// Whatever the system refuses.
    pub async fn read_file(&self, io: &Io, name: &str) -> Result<Option<Lease>, Error> {
        let file = match io.open(&self.path().join(name), OpenOptions::read()).await {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let len = usize::try_from(io.len(&file).await?).expect("a small file fits in memory");
        Ok(Some(io.read_lease(&file, 0, len).await?))
    }

    /// Whether a flush has failed here: nothing is acknowledged any more, on no core.
    pub fn is_offline(&self) -> bool {
        self.shared.offline.load(Ordering::Acquire)
    }

    /// The error that every log of this directory reports from now on, if it is offline.
    pub fn offline_error(&self) -> Option<Error> {
        if !self.is_offline() {
            return None;
        }
        let reason = self.shared.offline_reason.get().expect("the reason is stored before the flag");
        Some(Error::Offline(Arc::clone(reason)))
    }

    /// Takes the directory offline on every core, for good: what a failed flush may have lost is not known (case 26).
    pub(crate) fn take_offline(&self, cause: &Error) {
        let first = self.shared.offline_reason.set(Arc::from(cause.to_string().as_str())).is_ok();
        self.shared.offline.store(true, Ordering::Release);
        if first {
            tracing::error!(
                directory = %self.path().display(),
                %cause,
                "a flush failed: the data directory is offline, nothing is acknowledged any more; check the disk, then restart"
            );
        }
    }

    /// How logs are kept here; the first to ask probes the file system.
    ///
    /// # Errors
    /// [`Error::NoDirectWrites`] if `choice` asks for what the file system cannot; what probing it meets.
    pub(crate) async fn device(&self, io: &Io, choice: DeviceChoice) -> Result<Device, Error> {
        if let Some(device) = self.shared.device.get() {
            return Ok(*device);
        }
        let traits = io.probe_disk(self.path()).await?;
        let device = Device::choose(choice, &traits)?;
        if self.shared.device.set(device).is_ok() {
            let (asked, name) = (choice != DeviceChoice::Auto, device.name());
            tracing::info!(
                device = name, asked_for = asked, file_system = %traits.file_system,
                one_flush_for_all = device.shares_flushes(), why = %traits.reason, "how logs are kept"
            );
        }
        Ok(device)
    }

    /// Makes durable everything that was written in place before the call, on any core.
    ///
    /// # Errors
    /// As a flush of a file: the directory goes offline.
    pub(crate) async fn flush_device(&self, io: &Io) -> Result<(), Error> {
        self.shared.device_flush.flush(io, &self.shared.anchor).await
    }

    /// What the cores' cold reads have in common.
    pub(crate) fn cold_reads(&self) -> &SharedColdReads {
        &self.shared.cold_reads
    }

    /// Takes the directory offline if this is a flush that failed, of whatever file: the disk loses what it was given.
    pub(crate) fn note_failure(&self, error: &Error) {
        if error.is_failed_flush() {
            self.take_offline(error);
        }
    }

    /// The same for what is not lost by a file system that became read-only: names, and the space that is kept.
    pub(crate) fn note_failure_of_writable(&self, error: &Error) {
        if !matches!(error, Error::Io(error) if error.is_read_only()) {
            self.note_failure(error);
        }
    }

    pub(crate) fn reserve(&self) -> &Reserve {
        &self.shared.reserve
    }

    /// What the last run's checkpoints say, for as long as it is needed.
    pub(crate) fn inherited(&self) -> &Mutex<Option<Inherited>> {
        &self.shared.inherited
    }
}

impl WantedIdentity {
    fn check(&self, path: &Path, found: &Identity) -> Result<(), Error> {
        let other = |what, found: String, expected: String| Error::OtherIdentity {
            path: path.to_owned(),
            what,
            found,
            expected,
        };
        match &self.cluster_id {
            Some(id) if *id != found.cluster_id => {
                return Err(other("cluster.id", found.cluster_id.clone(), id.clone()));
            }
            _ => {}
        }
        match self.broker_id {
            Some(id) if id != found.broker_id => Err(other("broker.id", found.broker_id.to_string(), id.to_string())),
            _ => Ok(()),
        }
    }
}

/// Makes the directory's own entry durable, and those of its parents: which of them are new is not known.
async fn sync_parents(io: &Io, path: &Path) -> Result<(), Error> {
    for parent in path.ancestors().skip(1) {
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        // A parent that may not be read was there before; its entries are not ours to flush.
        match io.sync_dir(parent).await {
            Err(error) if error.kind() != std::io::ErrorKind::PermissionDenied => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

async fn refuse_foreign(io: &Io, path: &Path) -> Result<(), Error> {
    let entries = io.read_dir(path).await?;
    if entries.iter().any(|entry| entry.name == layout::IDENTITY_FILE) {
        return Ok(());
    }
    match entries.into_iter().find(|entry| !HARMLESS.contains(&entry.name.as_str())) {
        Some(entry) => Err(Error::Foreign { path: path.to_owned(), found: entry.name }),
        None => Ok(()),
    }
}

async fn lock(io: &Io, path: &Path) -> Result<File, Error> {
    let file = io.open(&path.join(layout::LOCK_FILE), OpenOptions::create()).await?;
    match io.lock_exclusive(&file).await {
        Ok(()) => Ok(file),
        Err(LockError::Locked { pid }) => Err(Error::Locked { path: path.to_owned(), pid }),
        Err(LockError::Failed(error)) => Err(Error::Io(error)),
    }
}

/// Reads the identity of the directory at `path` without opening it; `None` if it has none.
///
/// # Errors
/// [`Error::NewerFormat`], [`Error::DamagedIdentity`], [`Error::Io`].
pub async fn read_identity(io: &Io, path: &Path) -> Result<Option<Identity>, Error> {
    Ok(read_identity_file(io, path).await?.map(|(identity, _)| identity))
}

/// The identity, and the format version of the directory.
async fn read_identity_file(io: &Io, path: &Path) -> Result<Option<(Identity, u32)>, Error> {
    let file_path = path.join(layout::IDENTITY_FILE);
    let file = match io.open(&file_path, OpenOptions::read()).await {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let damaged = |reason| Error::DamagedIdentity { path: file_path.clone(), reason };
    let len = io.len(&file).await?;
    if len > IDENTITY_BYTES_MAX {
        return Err(damaged("too long"));
    }
    let bytes = io.read_lease(&file, 0, len as usize).await?;
    let text = std::str::from_utf8(&bytes).map_err(|_| damaged("not text"))?;
    decode_identity(text).map(Some).map_err(|problem| match problem {
        IdentityProblem::Newer(found) => Error::NewerFormat { path: path.to_owned(), found, known: FORMAT_VERSION },
        IdentityProblem::Damaged(reason) => damaged(reason),
    })
}

async fn create_identity(io: &Io, path: &Path, wanted: &WantedIdentity) -> Result<Identity, Error> {
    let identity = Identity {
        cluster_id: wanted.cluster_id.clone().unwrap_or_else(|| TopicId::new(io.random_bytes16()).to_string()),
        broker_id: wanted.broker_id.unwrap_or(BrokerId::new(1)),
        directory_id: TopicId::new(io.random_bytes16()),
    };
    write_identity(io, path, &identity).await?;
    tracing::info!(directory = %path.display(), cluster = identity.cluster_id, broker = %identity.broker_id, "made a new data directory");
    Ok(identity)
}

async fn write_identity(io: &Io, path: &Path, identity: &Identity) -> Result<(), Error> {
    let text = Lease::from_vec(encode_identity(identity).into_bytes());
    write_checked(io, path, layout::IDENTITY_FILE, vec![text]).await
}

/// The text of an identity file.
pub(crate) fn encode_identity(identity: &Identity) -> String {
    let body = format!(
        "{FIRST_LINE}\nformat={FORMAT_VERSION}\ncluster.id={}\nbroker.id={}\ndirectory.id={}\n",
        identity.cluster_id, identity.broker_id, identity.directory_id
    );
    format!("{body}crc32c={:08x}\n", crc32c(body.as_bytes()))
}

#[derive(Debug, PartialEq, Eq)]
enum IdentityProblem {
    Newer(u32),
    Damaged(&'static str),
}

fn decode_identity(text: &str) -> Result<(Identity, u32), IdentityProblem> {
    use IdentityProblem::Damaged;
    let field = |name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).ok_or(Damaged("a line is missing"))
    };
    if text.lines().next() != Some(FIRST_LINE) {
        return Err(Damaged("not an identity file"));
    }
    // The version is believed first: a newer format may have another checksum and other lines.
    let version: u32 = field("format")?.parse().map_err(|_| Damaged("the format is no number"))?;
    if version > FORMAT_VERSION {
        return Err(IdentityProblem::Newer(version));
    }
    let stored = field("crc32c")?;
    let body_len = text.rfind("crc32c=").ok_or(Damaged("a line is missing"))?;
    let body = text.get(..body_len).ok_or(Damaged("a line is missing"))?;
    if stored != format!("{:08x}", crc32c(body.as_bytes())) {
        return Err(Damaged("the checksum does not match"));
    }
    let identity = Identity {
        cluster_id: field("cluster.id")?.to_owned(),
        broker_id: BrokerId::new(field("broker.id")?.parse().map_err(|_| Damaged("the broker id is no number"))?),
        directory_id: TopicId::from_str(field("directory.id")?).map_err(|_| Damaged("the directory id is none"))?,
    };
    Ok((identity, version))
}

/// Replaces the file `name` in `directory` by `bytes`, so that a crash leaves the former file or the new one.
///
/// # Errors
/// Whatever the system refuses; the former file is still there then.
pub(crate) async fn write_checked(io: &Io, directory: &Path, name: &str, bytes: Vec<Lease>) -> Result<(), Error> {
    let temporary = directory.join(format!("{name}{}", layout::TEMPORARY_SUFFIX));
    let file = io.open(&temporary, OpenOptions::create().truncate()).await?;
    io.write(&file, 0, bytes).await?;
    io.sync_data(&file).await?;
    drop(file);
    io.rename(&temporary, &directory.join(name)).await?;
    io.sync_dir(directory).await?;
    Ok(())
}

/// Removes what a crash has left: temporary files and the directories of deleted logs. Foreign files are only reported
/// (case 46).
///
/// # Errors
/// Whatever the system refuses.
pub(crate) async fn clean_leftovers(io: &Io, path: &Path) -> Result<(), Error> {
    for entry in io.read_dir(path).await? {
        let full = path.join(&entry.name);
        if entry.kind == EntryKind::Directory && entry.name.ends_with(layout::DELETED_SUFFIX) {
            tracing::info!(directory = %full.display(), "removing the rest of a deleted log");
            io.remove_dir_all(&full).await?;
        } else if entry.kind == EntryKind::File && entry.name.ends_with(layout::TEMPORARY_SUFFIX) {
            tracing::info!(file = %full.display(), "removing a file that was not finished");
            io.remove_file(&full).await?;
        } else if !is_ours(&entry.name, entry.kind) {
            tracing::warn!(path = %full.display(), "not a file of a data directory; left alone");
        }
    }
    Ok(())
}

fn is_ours(name: &str, kind: EntryKind) -> bool {
    match kind {
        EntryKind::File => {
            [layout::IDENTITY_FILE, layout::LOCK_FILE, layout::RESERVE_FILE].contains(&name)
                || layout::checkpoint_core(name).or(layout::touched_core(name)).is_some()
                || matches!(name.strip_prefix(layout::METADATA_PREFIX), Some("0" | "1"))
        }
        EntryKind::Directory => layout::LogName::from_directory(name).is_some() || name == "lost+found",
        EntryKind::Other => false,
    }
}
