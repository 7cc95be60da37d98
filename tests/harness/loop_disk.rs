//! A small ext4 of its own in a file, through a loop device: a disk that can be filled. Needs root.

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
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(disk.path()))?;
        Ok(disk)
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
        if is_mount(&self.path()) {
            let unmounted = run(Command::new("umount").arg("--lazy").arg(self.path()));
            unmounted.expect("what was mounted can be unmounted");
        }
    }
}

fn is_mount(path: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    mounts.lines().any(|line| line.split(' ').nth(1) == path.to_str())
}

fn run(command: &mut Command) -> io::Result<()> {
    let output = command.stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{command:?}: {}", said.trim())))
}
