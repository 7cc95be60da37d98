//! A file system in memory (FUSE) whose writes or flushes fail or hang, on demand: what a disk that reports EIO on a write or on
//! a cache flush, or answers nothing for a while, looks like to the real binary over the real kernel. Holds files and folders
//! only; no links, no permissions, no times.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

/// The kernel may keep what it is told for no time at all: every question comes here.
const KEEP: Duration = Duration::ZERO;

/// A mounted file system; unmounted when dropped.
pub struct FailingFs {
    switch: Arc<Switch>,
    _session: BackgroundSession,
}

#[derive(Default)]
struct Switch {
    fail_flushes: AtomicBool,
    flushes: AtomicU64,
    failed: AtomicU64,
    /// Writes to files below folders whose names begin with this, or whose own names do, fail.
    fail_writes: Mutex<Option<String>>,
    hang: Mutex<Hang>,
}

#[derive(Default)]
struct Hang {
    /// Writes and flushes below folders whose names begin with this are not answered.
    folder: Option<String>,
    waiting: Vec<Unanswered>,
}

enum Unanswered {
    Write(ReplyWrite, u32),
    Flush(ReplyEmpty),
}

impl FailingFs {
    /// Mounts it at an empty folder.
    ///
    /// # Errors
    /// FUSE is not there, or may not be used by this user.
    pub fn mount(at: &Path) -> io::Result<Self> {
        let switch = Arc::new(Switch::default());
        let files = Files { switch: switch.clone(), nodes: Mutex::new(Nodes::new()) };
        let session = fuser::spawn_mount(files, at, &Config::default())?;
        Ok(Self { switch, _session: session })
    }

    /// From now on every fsync and fdatasync of a file is answered with EIO.
    pub fn fail_flushes(&self) {
        self.switch.fail_flushes.store(true, Ordering::SeqCst);
    }

    /// Flushes work again: what is written after a failed flush looks fine to whoever tries once more.
    pub fn mend_flushes(&self) {
        self.switch.fail_flushes.store(false, Ordering::SeqCst);
    }

    /// From now on every write to a file whose name, or whose folder's name, begins with `name` is answered with EIO.
    ///
    /// # Panics
    /// If a request has panicked.
    pub fn fail_writes(&self, name: &str) {
        *self.switch.fail_writes.lock().expect("no request panics") = Some(name.to_owned());
    }

    /// Writes work again.
    ///
    /// # Panics
    /// If a request has panicked.
    pub fn mend_writes(&self) {
        *self.switch.fail_writes.lock().expect("no request panics") = None;
    }

    /// From now on writes to files below a folder whose name begins with `folder`, and flushes of them, are not answered.
    ///
    /// # Panics
    /// If a request has panicked.
    pub fn hang(&self, folder: &str) {
        self.switch.hang.lock().expect("no request panics").folder = Some(folder.to_owned());
    }

    /// How much waits for the disk to go on.
    ///
    /// # Panics
    /// If a request has panicked.
    pub fn waiting(&self) -> usize {
        self.switch.hang.lock().expect("no request panics").waiting.len()
    }

    /// The disk goes on, and answers everything that waited. How much that was.
    ///
    /// # Panics
    /// If a request has panicked.
    pub fn go_on(&self) -> usize {
        let hang = std::mem::take(&mut *self.switch.hang.lock().expect("no request panics"));
        let count = hang.waiting.len();
        for unanswered in hang.waiting {
            match unanswered {
                Unanswered::Write(reply, len) => reply.written(len),
                Unanswered::Flush(reply) => reply.ok(),
            }
        }
        count
    }

    /// How many flushes of files were asked for, and how many of them failed.
    pub fn flushes(&self) -> (u64, u64) {
        (self.switch.flushes.load(Ordering::SeqCst), self.switch.failed.load(Ordering::SeqCst))
    }
}

impl Drop for FailingFs {
    fn drop(&mut self) {
        // Nobody may wait for what is unmounted.
        self.go_on();
    }
}

enum Node {
    File(Vec<u8>),
    Folder(BTreeMap<OsString, u64>),
}

struct Nodes {
    by_number: BTreeMap<u64, Node>,
    next: u64,
}

struct Files {
    switch: Arc<Switch>,
    nodes: Mutex<Nodes>,
}

impl Nodes {
    fn new() -> Self {
        Self {
            by_number: BTreeMap::from([(INodeNo::ROOT.0, Node::Folder(BTreeMap::new()))]),
            next: INodeNo::ROOT.0 + 1,
        }
    }

    fn folder(&mut self, number: u64) -> Result<&mut BTreeMap<OsString, u64>, Errno> {
        match self.by_number.get_mut(&number) {
            Some(Node::Folder(entries)) => Ok(entries),
            Some(Node::File(_)) => Err(Errno::ENOTDIR),
            None => Err(Errno::ENOENT),
        }
    }

    fn file(&mut self, number: u64) -> Result<&mut Vec<u8>, Errno> {
        match self.by_number.get_mut(&number) {
            Some(Node::File(bytes)) => Ok(bytes),
            Some(Node::Folder(_)) => Err(Errno::EISDIR),
            None => Err(Errno::ENOENT),
        }
    }

    /// Whether a file lies in a folder whose name begins with `prefix`.
    fn is_below(&self, number: u64, prefix: &str) -> bool {
        let entries = |folder: &u64| match self.by_number.get(folder) {
            Some(Node::Folder(entries)) => Some(entries),
            _ => None,
        };
        let named = self.by_number.keys().filter_map(entries).flatten();
        let named = named.filter(|(name, _)| name.to_string_lossy().starts_with(prefix));
        named.filter_map(|(_, folder)| entries(folder)).any(|inside| inside.values().any(|it| *it == number))
    }

    /// Whether a file has a name that begins with `prefix`, or lies in a folder that does.
    fn is_named(&self, number: u64, prefix: &str) -> bool {
        let folders = self.by_number.values().filter_map(|node| match node {
            Node::Folder(entries) => Some(entries),
            Node::File(_) => None,
        });
        let mut entries = folders.flatten().filter(|(name, _)| name.to_string_lossy().starts_with(prefix));
        entries.any(|(_, entry)| *entry == number) || self.is_below(number, prefix)
    }

    fn attributes(&self, number: u64) -> Result<FileAttr, Errno> {
        let (kind, size) = match self.by_number.get(&number).ok_or(Errno::ENOENT)? {
            Node::File(bytes) => (FileType::RegularFile, bytes.len() as u64),
            Node::Folder(_) => (FileType::Directory, 0),
        };
        let time = SystemTime::UNIX_EPOCH;
        let (uid, gid, perm) = (0, 0, if kind == FileType::Directory { 0o777 } else { 0o666 });
        let (atime, mtime, ctime, crtime) = (time, time, time, time);
        let ino = INodeNo(number);
        Ok(FileAttr {
            ino,
            size,
            blocks: size.div_ceil(512),
            atime,
            mtime,
            ctime,
            crtime,
            kind,
            perm,
            nlink: 1,
            uid,
            gid,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }

    fn add(&mut self, parent: u64, name: &OsStr, node: Node) -> Result<FileAttr, Errno> {
        let number = self.next;
        let entries = self.folder(parent)?;
        if entries.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        entries.insert(name.to_owned(), number);
        self.by_number.insert(number, node);
        self.next += 1;
        self.attributes(number)
    }

    /// Takes a name away. The node stays: whoever holds it open reads on.
    fn remove(&mut self, parent: u64, name: &OsStr) -> Result<(), Errno> {
        let number = *self.folder(parent)?.get(name).ok_or(Errno::ENOENT)?;
        if let Some(Node::Folder(entries)) = self.by_number.get(&number)
            && !entries.is_empty()
        {
            return Err(Errno::ENOTEMPTY);
        }
        self.folder(parent)?.remove(name);
        Ok(())
    }

    fn rename(&mut self, from: (u64, &OsStr), to: (u64, &OsStr)) -> Result<(), Errno> {
        let number = self.folder(from.0)?.remove(from.1).ok_or(Errno::ENOENT)?;
        self.folder(to.0)?.insert(to.1.to_owned(), number);
        Ok(())
    }
}

impl Files {
    fn nodes(&self) -> MutexGuard<'_, Nodes> {
        self.nodes.lock().expect("no request panics")
    }

    /// Keeps a request unanswered if the file lies where the disk hangs; else gives the answer back.
    fn hold(&self, nodes: &Nodes, number: u64, unanswered: Unanswered) -> Option<Unanswered> {
        let mut hang = self.switch.hang.lock().expect("no request panics");
        let is_hung = hang.folder.as_ref().is_some_and(|folder| nodes.is_below(number, folder));
        if !is_hung {
            return Some(unanswered);
        }
        hang.waiting.push(unanswered);
        None
    }

    fn flush(&self, number: u64, reply: ReplyEmpty) {
        let Some(Unanswered::Flush(reply)) = self.hold(&self.nodes(), number, Unanswered::Flush(reply)) else { return };
        self.switch.flushes.fetch_add(1, Ordering::SeqCst);
        if self.switch.fail_flushes.load(Ordering::SeqCst) {
            self.switch.failed.fetch_add(1, Ordering::SeqCst);
            reply.error(Errno::EIO);
        } else {
            reply.ok();
        }
    }
}

/// Answers a request with what was found, or with the error.
macro_rules! answer {
    ($reply:ident, $result:expr, |$value:ident| $good:expr) => {
        match $result {
            Ok($value) => $good,
            Err(error) => $reply.error(error),
        }
    };
}

impl Filesystem for Files {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let mut nodes = self.nodes();
        let found = nodes.folder(parent.0).and_then(|entries| entries.get(name).copied().ok_or(Errno::ENOENT));
        let found = found.and_then(|number| nodes.attributes(number));
        answer!(reply, found, |attributes| reply.entry(&KEEP, &attributes, Generation(0)));
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        answer!(reply, self.nodes().attributes(number.0), |attributes| reply.attr(&KEEP, &attributes));
    }

    fn setattr(
        &self,
        _: &Request,
        number: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut nodes = self.nodes();
        if let (Some(size), Ok(bytes)) = (size, nodes.file(number.0)) {
            bytes.resize(usize::try_from(size).expect("64-bit"), 0);
        }
        answer!(reply, nodes.attributes(number.0), |attributes| reply.attr(&KEEP, &attributes));
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        let made = self.nodes().add(parent.0, name, Node::Folder(BTreeMap::new()));
        answer!(reply, made, |attributes| reply.entry(&KEEP, &attributes, Generation(0)));
    }

    fn create(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        let made = self.nodes().add(parent.0, name, Node::File(Vec::new()));
        answer!(reply, made, |attributes| {
            reply.created(&KEEP, &attributes, Generation(0), FileHandle(0), FopenFlags::empty());
        });
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer!(reply, self.nodes().remove(parent.0, name), |_gone| reply.ok());
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer!(reply, self.nodes().remove(parent.0, name), |_gone| reply.ok());
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        to: INodeNo,
        new: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        answer!(reply, self.nodes().rename((parent.0, name), (to.0, new)), |_done| reply.ok());
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::empty());
    }

    fn read(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut nodes = self.nodes();
        answer!(reply, nodes.file(number.0), |bytes| {
            let start = bytes.len().min(usize::try_from(offset).expect("64-bit"));
            let end = bytes.len().min(start + size as usize);
            reply.data(&bytes[start..end]);
        });
    }

    fn write(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut nodes = self.nodes();
        let failing = self.switch.fail_writes.lock().expect("no request panics").clone();
        if failing.is_some_and(|name| nodes.is_named(number.0, &name)) {
            return reply.error(Errno::EIO);
        }
        match nodes.file(number.0) {
            Ok(bytes) => {
                let start = usize::try_from(offset).expect("64-bit");
                let end = start + data.len();
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[start..end].copy_from_slice(data);
            }
            Err(error) => return reply.error(error),
        }
        let len = u32::try_from(data.len()).expect("the kernel sends less");
        if let Some(Unanswered::Write(reply, len)) = self.hold(&nodes, number.0, Unanswered::Write(reply, len)) {
            reply.written(len);
        }
    }

    fn fsync(&self, _: &Request, number: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.flush(number.0, reply);
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn readdir(&self, _: &Request, number: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let mut nodes = self.nodes();
        let listed = nodes.folder(number.0).map(|entries| entries.clone());
        let entries = match listed {
            Ok(entries) => entries,
            Err(error) => return reply.error(error),
        };
        let skipped = usize::try_from(offset).expect("64-bit");
        for (place, (name, entry)) in entries.iter().enumerate().skip(skipped) {
            let kind = nodes.attributes(*entry).map_or(FileType::RegularFile, |attributes| attributes.kind);
            if reply.add(INodeNo(*entry), place as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let blocks = 1 << 20;
        reply.statfs(blocks, blocks, blocks, 1 << 20, 1 << 20, 4096, 255, 4096);
    }
}
