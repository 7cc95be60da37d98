//! A small ext4 of its own in a file, through a loop device: a disk that can be filled, and that becomes read-only. Needs root.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A mounted file system; unmounted when dropped.
pub struct LoopDisk {
    home: PathBuf,
}

impl LoopDisk {
    /// Makes one of so many bytes in the empty directory `home` and mounts it there.
    ///
    /// # Errors
    /// Not root, no loop devices, no mkfs.ext4.
    pub fn mount(home: &Path, bytes: u64) -> io::Result<LoopDisk> {
        let disk = LoopDisk { home: home.to_owned() };
        std::fs::create_dir(disk.path())?;
        let image = disk.home.join("image");
        std::fs::File::create(&image)?.set_len(bytes)?;
        run(Command::new("mkfs.ext4").arg("-q").arg(&image))?;
        disk.attach()?;
        Ok(disk)
    }

    /// An error makes the file system read-only, as ext4 is mostly set up.
    fn attach(&self) -> io::Result<()> {
        let options = ["-o", "loop,errors=remount-ro"];
        run(Command::new("mount").args(options).arg(self.home.join("image")).arg(self.path()))
    }

    /// Has the file system find an error, which makes it read-only.
    ///
    /// # Errors
    /// The kernel does not offer it.
    pub fn fail(&self) -> io::Result<()> {
        let device = device_of(&self.path()).ok_or(io::ErrorKind::NotFound)?;
        let name = device.trim_start_matches("/dev/");
        std::fs::write(format!("/sys/fs/ext4/{name}/trigger_fs_error"), "a test")
    }

    /// Unmounts it, repairs it and mounts it again. Nobody may use it.
    ///
    /// # Errors
    /// Somebody does.
    pub fn repair(&self) -> io::Result<()> {
        run(Command::new("umount").arg(self.path()))?;
        let checked = Command::new("e2fsck").arg("-fy").arg(self.home.join("image")).output()?;
        // 1 says that errors were there and are no more.
        if !matches!(checked.status.code(), Some(0 | 1)) {
            return Err(io::Error::other(String::from_utf8_lossy(&checked.stdout).into_owned()));
        }
        self.attach()
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.home.join("disk")
    }

    /// Fills what is left of it with a file, and gives the file's path.
    ///
    /// # Errors
    /// Another one than that it is full.
    pub fn fill(&self) -> io::Result<PathBuf> {
        let path = self.path().join("ballast");
        let mut file = std::fs::File::create(&path)?;
        for size in [1 << 20, 4096] {
            loop {
                match io::Write::write_all(&mut file, &vec![1; size]).and_then(|()| file.sync_data()) {
                    Err(error) if error.kind() == io::ErrorKind::StorageFull => break,
                    other => other?,
                }
            }
        }
        Ok(path)
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        if device_of(&self.path()).is_some() {
            let unmounted = run(Command::new("umount").arg("--lazy").arg(self.path()));
            unmounted.expect("what was mounted can be unmounted");
        }
    }
}

/// The device that is mounted at `path`, if one is.
fn device_of(path: &Path) -> Option<String> {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    let mut fields = mounts.lines().map(|line| line.split(' '));
    fields.find_map(|mut fields| {
        let device = fields.next()?;
        (fields.next() == path.to_str()).then(|| device.to_owned())
    })
}

fn run(command: &mut Command) -> io::Result<()> {
    let output = command.stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{command:?}: {}", said.trim())))
}
