//! What the file system under a directory, and the device beneath it, can do: found out by trying.
//!
//! Owns the questions and the rules that turn answers into [`DiskTraits`]. Never decides how a log is kept: it says what
//! holds, and in words why.
//!
//! Unsure is "no": a trait that cannot be seen to hold does not.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::buffer::{Buffer, DIRECT_ALIGNMENT};
use crate::error::{Error, Result};
use crate::io::Io;
use crate::os;

/// What the file system under a directory can do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiskTraits {
    /// `ext4`, `xfs`, `btrfs`, `tmpfs`, `overlay`, ..., as the kernel names it; a number in hexadecimal if it does not.
    pub file_system: String,
    /// Writing past the page cache works with whole, aligned blocks of [`DIRECT_ALIGNMENT`] bytes, and an overwrite goes
    /// to the block that was there before.
    pub direct: bool,
    /// A flush of any file of this file system makes durable every direct write to blocks already durably written, of
    /// whatever file, that completed before the flush was issued. Not so for blocks that are shared with another file
    /// (`cp --reflink` on XFS): a log's active segment must not be copied that way.
    pub one_flush_for_all: bool,
    /// The device has no cache that a power cut empties: such a write is durable once it has completed.
    pub write_through: bool,
    /// The ring does writes to the page cache at once, where it can; otherwise it hands each to a kernel thread.
    pub ring_writes_inline: bool,
    /// All of this in one line for the log, with reasons.
    pub reason: String,
}

impl Io {
    /// Finds out what the file system under `directory` can do, by trying with a temporary file there. Takes a few
    /// milliseconds on a helper thread. In the simulator: what the simulated disk was set to.
    ///
    /// # Errors
    ///
    /// No such directory, no permission to make a file in it.
    pub async fn probe_disk(&self, directory: &Path) -> Result<DiskTraits> {
        if let Some(traits) = self.simulated_disk_traits() {
            return Ok(traits);
        }
        let path = directory.to_owned();
        let probed = self.run_blocking(move || probe(&path)).await?;
        probed.map_err(|error| Error::from_std("probe disk", &error).with_path(directory))
    }
}

/// How much a file system can hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiskSpace {
    /// Bytes in all.
    pub total_bytes: u64,
    /// Bytes that this process could still write.
    pub usable_bytes: u64,
}

/// What the simulator says of a disk that is as large as it has to be.
const SIMULATED_SPACE: DiskSpace = DiskSpace { total_bytes: 1 << 40, usable_bytes: 1 << 39 };

impl Io {
    /// How much room the file system has that holds `path`. Asks on a helper thread. In the simulator: always 1 TiB, half
    /// of it free.
    ///
    /// # Errors
    ///
    /// No such file or directory.
    pub async fn disk_space(&self, path: &Path) -> Result<DiskSpace> {
        if self.simulated_disk_traits().is_some() {
            return Ok(SIMULATED_SPACE);
        }
        let asked = path.to_owned();
        let space = self.run_blocking(move || os::disk_space(&asked)).await?;
        let (total_bytes, usable_bytes) =
            space.map_err(|error| Error::from_std("ask for disk space", &error).with_path(path))?;
        Ok(DiskSpace { total_bytes, usable_bytes })
    }
}

/// What trying O_DIRECT has shown: nothing, or why not.
type Tried = std::result::Result<(), String>;

fn probe(directory: &Path) -> io::Result<DiskTraits> {
    let mount = Mount::of(directory)?;
    let (direct, ring_writes_inline) = match TemporaryFile::open(directory, libc::O_DIRECT)? {
        Some(file) => (try_direct(&file.file)?, try_without_waiting(&file.file)),
        None => match TemporaryFile::open(directory, 0)? {
            Some(file) => (Err("no O_DIRECT".to_owned()), try_without_waiting(&file.file)),
            None => return Err(ErrorKind::Unsupported.into()),
        },
    };
    let direct = mount.overwrites_in_place().and(direct);
    let one_flush = mount.one_flush_for_all();
    let write_through = mount.device.as_ref().is_some_and(|device| device.is_write_through());
    Ok(DiskTraits {
        direct: direct.is_ok(),
        one_flush_for_all: direct.is_ok() && one_flush.is_ok(),
        write_through: direct.is_ok() && write_through,
        ring_writes_inline,
        reason: reason(&mount, &direct, &one_flush, write_through),
        file_system: mount.file_system,
    })
}

fn reason(mount: &Mount, direct: &Tried, one_flush: &Tried, write_through: bool) -> String {
    let place = match &mount.device {
        Some(device) => format!("{} on {}", mount.file_system, device.name()),
        None => mount.file_system.clone(),
    };
    if let Err(why) = direct {
        return format!("{place}: not past the page cache, {why}");
    }
    let flush = match one_flush {
        Ok(()) => "one flush covers all files".to_owned(),
        Err(why) => format!("each file is flushed by itself, {why}"),
    };
    let cache = if write_through { "the device needs no flush" } else { "the device has a write cache" };
    format!("{place}: O_DIRECT works, {flush}, {cache}")
}

// ---------------------------------------------------------------------------------------------------------------------
// Trying.

/// A file without a name where the file system can, or with one that goes with it.
struct TemporaryFile {
    file: File,
    path: Option<PathBuf>,
}

impl TemporaryFile {
    /// `None` if the file system does not take the flags.
    fn open(directory: &Path, flags: libc::c_int) -> io::Result<Option<TemporaryFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600);
        match options.custom_flags(flags | libc::O_TMPFILE).open(directory) {
            Ok(file) => return Ok(Some(TemporaryFile { file, path: None })),
            Err(error) if os::is_not_supported(&error) => {}
            Err(error) => return Err(error),
        }
        let path = directory.join(format!(".heddle-probe-{}", std::process::id()));
        let opened = options.custom_flags(flags).create(true).truncate(true).open(&path);
        match opened {
            Ok(file) => Ok(Some(TemporaryFile { file, path: Some(path) })),
            Err(error) if os::is_not_supported(&error) => {
                // The file may have been made before its flags were refused.
                let _ = std::fs::remove_file(&path);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // A leftover is empty but for a block, hidden, and replaced by the next probe of this process number.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Writes and reads one block past the page cache, within the length of the file.
fn try_direct(file: &File) -> io::Result<Tried> {
    const BLOCK: usize = DIRECT_ALIGNMENT;
    if let Some((memory, position)) = os::direct_alignment(file)? {
        let fits = |alignment: u32| (1..=BLOCK as u32).contains(&alignment);
        if !fits(memory) || !fits(position) {
            return Ok(Err(format!("O_DIRECT takes blocks of {position} bytes in memory aligned to {memory}")));
        }
    }
    let mut written = Buffer::aligned(BLOCK);
    (0..BLOCK).for_each(|at| written.extend_from_slice(&[(at.wrapping_mul(167) >> 3) as u8]));
    let mut read = Buffer::aligned(BLOCK);
    read.extend_zeroed(BLOCK);
    let tried = file.set_len(2 * BLOCK as u64).and_then(|()| {
        file.write_all_at(&written, BLOCK as u64)?;
        file.read_exact_at(&mut read[..], BLOCK as u64)
    });
    Ok(match tried {
        Ok(()) if *read == *written => Ok(()),
        Ok(()) => Err("a block that was written with O_DIRECT reads otherwise".to_owned()),
        // A full disk says nothing about O_DIRECT, and it was opened and described.
        Err(error) if error.kind() == ErrorKind::StorageFull || error.kind() == ErrorKind::QuotaExceeded => Ok(()),
        Err(error) => Err(format!("O_DIRECT fails: {error}")),
    })
}

/// Whether a write to the page cache that may not wait is understood; where it is, the ring writes inline.
fn try_without_waiting(file: &File) -> bool {
    let bytes = [7; DIRECT_ALIGNMENT];
    let prepared = os::end_direct(file).and_then(|()| file.write_all_at(&bytes, 0));
    let tried = prepared.and_then(|()| os::write_without_waiting(file, 0, &bytes));
    match tried {
        Ok(_) => true,
        Err(error) => error.kind() == ErrorKind::WouldBlock,
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Asking.

/// How the directory's file system is mounted.
struct Mount {
    file_system: String,
    /// The options of the file system itself, if it is listed.
    options: Option<Vec<String>>,
    device: Option<BlockDevice>,
}

impl Mount {
    fn of(directory: &Path) -> io::Result<Mount> {
        let device = os::device_numbers(std::fs::metadata(directory)?.dev());
        let magic = os::file_system_magic(directory)?;
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let listed = listed_mount(&mounts, device);
        let (file_system, options) = match listed {
            Some((name, options)) => (name, Some(options)),
            None => (name_of(magic), None),
        };
        Ok(Mount { file_system, options, device: BlockDevice::find(Path::new("/sys"), device) })
    }

    fn has_option(&self, wanted: &str) -> bool {
        self.options.iter().flatten().any(|option| option.split('=').next() == Some(wanted) || option == wanted)
    }

    /// Whether the file system writes blocks where they were. The others gain nothing from blocks written ahead.
    fn overwrites_in_place(&self) -> Tried {
        match self.file_system.as_str() {
            "tmpfs" | "ramfs" | "hugetlbfs" => Err("it is the page cache".to_owned()),
            "overlay" => Err("a layer over another file system".to_owned()),
            "btrfs" | "bcachefs" | "zfs" | "f2fs" | "nilfs2" => Err("it never overwrites a block in place".to_owned()),
            name if name.starts_with("fuse") || name.starts_with("nfs") || name == "cifs" || name == "9p" => {
                Err("another process or machine keeps the files".to_owned())
            }
            "ext4" if self.has_option("data=journal") => Err("it journals data".to_owned()),
            _ => Ok(()),
        }
    }

    fn one_flush_for_all(&self) -> Tried {
        let Some(device) = &self.device else { return Err("its device is not known".to_owned()) };
        if self.options.is_none() {
            return Err("how it is mounted is not known".to_owned());
        }
        if self.has_option("nobarrier") || self.has_option("barrier=0") {
            return Err("it is mounted without barriers".to_owned());
        }
        match self.file_system.as_str() {
            "ext4" if device.has_own_ext4_journal() => Ok(()),
            "ext4" => Err("its journal may be on another device".to_owned()),
            "xfs" if self.has_option("logdev") => Err("its log is on another device".to_owned()),
            "xfs" if self.has_option("rtdev") => Err("it has a realtime device".to_owned()),
            "xfs" => Ok(()),
            _ => Err("only ext4 and XFS are known to flush the device for every file".to_owned()),
        }
    }
}

/// The type and the options of the mount of a device, from the text of `mountinfo`.
fn listed_mount(mounts: &str, (major, minor): (u32, u32)) -> Option<(String, Vec<String>)> {
    let wanted = format!("{major}:{minor}");
    let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some(&wanted))?;
    let mut fields = line.split_once(" - ")?.1.split(' ');
    let (name, options) = (fields.next()?, fields.nth(1)?);
    Some((name.to_owned(), options.split(',').map(str::to_owned).collect()))
}

/// File systems whose files have a device number that no mount shows.
fn name_of(magic: u32) -> String {
    match magic {
        0xef53 => "ext4",
        0x5846_5342 => "xfs",
        0x9123_683e => "btrfs",
        0x0102_1994 => "tmpfs",
        0x794c_7630 => "overlay",
        0x6969 => "nfs",
        0x6573_5546 => "fuse",
        0x2fc1_2fc1 => "zfs",
        0xca45_1a4e => "bcachefs",
        _ => return format!("{magic:#x}"),
    }
    .to_owned()
}

/// A block device in `/sys`.
struct BlockDevice {
    /// The device itself: `/sys/devices/.../vda/vda1`.
    path: PathBuf,
    /// The root of it all: `/sys`.
    system: PathBuf,
}

impl BlockDevice {
    fn find(system: &Path, (major, minor): (u32, u32)) -> Option<BlockDevice> {
        let path = system.join(format!("dev/block/{major}:{minor}")).canonicalize().ok()?;
        Some(BlockDevice { path, system: system.to_owned() })
    }

    fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The disk, where this is a partition of one.
    fn disk(&self) -> &Path {
        match self.path.parent() {
            Some(disk) if self.path.join("partition").exists() => disk,
            _ => &self.path,
        }
    }

    /// Whether the kernel says of it, and of every device that it is stacked on, that completed writes are durable.
    fn is_write_through(&self) -> bool {
        let cache = std::fs::read_to_string(self.disk().join("queue/write_cache")).unwrap_or_default();
        let slaves = std::fs::read_dir(self.disk().join("slaves")).into_iter().flatten();
        cache.trim() == "write through"
            && slaves.flatten().all(|slave| {
                let path = slave.path().canonicalize();
                path.is_ok_and(|path| BlockDevice { path, system: self.system.clone() }.is_write_through())
            })
    }

    /// Whether ext4 on it keeps its journal on it, or has none.
    fn has_own_ext4_journal(&self) -> bool {
        let name = self.name();
        let journal = std::fs::read_to_string(self.system.join("fs/ext4").join(&name).join("journal_task"));
        if journal.is_ok_and(|task| task.trim() == "<none>") {
            return true;
        }
        // A journal within the file system is named after the device and its inode, another after its own device.
        let journals = std::fs::read_dir("/proc/fs/jbd2").into_iter().flatten().flatten();
        journals.map(|journal| journal.file_name().to_string_lossy().into_owned()).any(|journal| {
            let inode = journal.strip_prefix(&name).and_then(|rest| rest.strip_prefix('-'));
            inode.is_some_and(|inode| !inode.is_empty() && inode.bytes().all(|byte| byte.is_ascii_digit()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::Executor;
    use crate::io::IoConfig;

    fn probe_here(directory: &Path) -> Result<DiskTraits> {
        let executor = Executor::new(IoConfig::default()).unwrap();
        let io = executor.io();
        executor.run(io.probe_disk(directory))
    }

    #[test]
    fn a_directory_of_this_machine_is_described_and_left_empty() {
        let directory = std::env::temp_dir().join(format!("heddle-io-probe-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let traits = probe_here(&directory).unwrap();
        assert!(traits.reason.starts_with(&traits.file_system), "{traits:?}");
        assert!(traits.direct || !traits.one_flush_for_all && !traits.write_through, "{traits:?}");
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 0);
        std::fs::remove_dir(&directory).unwrap();
    }

    #[test]
    fn memory_is_for_the_page_cache() {
        let shared = Path::new("/dev/shm");
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        if mounts.contains(" /dev/shm rw") && mounts.contains(" - tmpfs ") {
            let traits = probe_here(shared).unwrap();
            assert_eq!((traits.file_system.as_str(), traits.direct), ("tmpfs", false));
            assert!(traits.reason.contains("not past the page cache"), "{traits:?}");
        } else {
            println!("NOT RUN: no tmpfs at /dev/shm");
        }
    }

    #[test]
    fn a_directory_that_is_not_there_is_an_error() {
        let error = probe_here(Path::new("/nowhere/at/all")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.to_string().starts_with("probe disk /nowhere/at/all: "), "{error}");
    }

    #[test]
    fn mounts_are_found_by_their_device() {
        let mounts = "22 1 0:21 / /proc rw - proc proc rw\n\
                      27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard\n\
                      28 1 8:1 / /data rw - xfs /dev/sda1 rw,logdev=/dev/sdb,noquota\n";
        assert_eq!(listed_mount(mounts, (254, 0)), Some(("ext4".to_owned(), vec!["rw".into(), "discard".into()])));
        assert_eq!(listed_mount(mounts, (8, 2)), None);
        let (file_system, options) = listed_mount(mounts, (8, 1)).unwrap();
        let device = Some(BlockDevice { path: "/sys/devices/sda/sda1".into(), system: "/sys".into() });
        let mut mount = Mount { file_system, options: Some(options), device };
        assert_eq!(mount.overwrites_in_place(), Ok(()));
        assert_eq!(mount.one_flush_for_all(), Err("its log is on another device".to_owned()));
        mount.options = Some(vec!["rw".into(), "noquota".into()]);
        assert_eq!(mount.one_flush_for_all(), Ok(()));
        mount.file_system = "ext4".to_owned();
        mount.options = Some(vec!["rw".into(), "data=journal".into()]);
        assert_eq!(mount.overwrites_in_place(), Err("it journals data".to_owned()));
        mount.file_system = "btrfs".to_owned();
        assert!(mount.overwrites_in_place().is_err() && mount.one_flush_for_all().is_err());
    }

    /// A machine with a disk that has a partition, and a device stacked on that.
    fn system(name: &str, disk_cache: &str) -> PathBuf {
        let root = std::env::temp_dir().join(format!("heddle-io-sys-{}-{name}", std::process::id()));
        let (disk, stacked) = (root.join("devices/sda"), root.join("devices/dm-0"));
        for made in [disk.join("queue"), disk.join("sda1"), stacked.join("queue"), stacked.join("slaves")] {
            std::fs::create_dir_all(made).unwrap();
        }
        std::fs::create_dir_all(root.join("dev/block")).unwrap();
        std::fs::write(disk.join("sda1/partition"), "1\n").unwrap();
        std::fs::write(disk.join("queue/write_cache"), disk_cache).unwrap();
        std::fs::write(stacked.join("queue/write_cache"), "write through\n").unwrap();
        let link = |target: &Path, at: &str| std::os::unix::fs::symlink(target, root.join(at)).unwrap();
        link(&disk.join("sda1"), "dev/block/8:1");
        link(&stacked, "dev/block/252:0");
        link(&disk.join("sda1"), "devices/dm-0/slaves/sda1");
        root
    }

    #[test]
    fn partitions_and_stacked_devices_ask_the_disk_beneath() {
        for (cache, expected) in [("write through\n", true), ("write back\n", false)] {
            let root = system(if expected { "through" } else { "back" }, cache);
            for (device, name) in [((8, 1), "sda1"), ((252, 0), "dm-0")] {
                let device = BlockDevice::find(&root, device).unwrap();
                assert_eq!((device.name().as_str(), device.is_write_through()), (name, expected));
            }
            assert!(BlockDevice::find(&root, (9, 9)).is_none());
            std::fs::remove_dir_all(&root).unwrap();
        }
    }
}
