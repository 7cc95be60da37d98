//! One simulated machine, as a test handles it: power, process, clocks, disk.
//!
//! Owns nothing: the world holds the machine. Never lets time pass.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Simulator;
use super::disk::{Disk, DiskTiming, FaultModel};
use super::fault::{CutPoint, DiskCounters, Fault};
use super::network::HostId;
use super::random::Random;
use super::request::Errno;
use super::world::World;
use crate::error::{Error, Result};
use crate::executor::Executor;
use crate::io::Io;

/// A simulated machine: its disk, its clocks, its process.
#[derive(Clone)]
pub struct Host {
    pub(super) simulator: Simulator,
    pub(super) id: HostId,
}

/// The process.
impl Host {
    /// The name that it was given.
    pub fn name(&self) -> String {
        self.world().machine(self.id).name.clone()
    }

    /// The address by which other hosts reach it. Its own loopback addresses work as well.
    pub fn address(&self) -> IpAddr {
        IpAddr::V4(self.id.address())
    }

    /// The simulator that it lives in.
    pub fn simulator(&self) -> &Simulator {
        &self.simulator
    }

    /// Starts a core that the simulator drives, until the process is gone.
    ///
    /// # Panics
    ///
    /// If the host has no power.
    pub fn start_core(&self) -> Io {
        let inner = &self.simulator.inner;
        let executor = inner.new_core(self.id);
        let io = executor.io();
        let mut cores = inner.cores.borrow_mut();
        cores.last_entry().expect("just added").get_mut().executor = Some(executor);
        io
    }

    /// Starts a core that the caller drives with [`Executor::run`], the rest of the world beside it.
    ///
    /// # Panics
    ///
    /// If the host has no power. [`Executor::run`] panics if the host loses it.
    pub fn executor(&self) -> Executor {
        self.simulator.inner.new_core(self.id)
    }

    /// Power is lost: tasks are dropped where they stand, connections are forgotten, the disk keeps what its
    /// [`FaultModel`] says.
    pub fn power_cut(&self) {
        self.world().power_cut(self.id);
        self.simulator.inner.close_gone(None);
    }

    /// The process dies, as by `kill -9`; the page cache stays. Start cores again at will.
    pub fn kill(&self) {
        self.world().kill(self.id);
        self.simulator.inner.close_gone(None);
    }

    /// Power is back; the disk has what survived. Start cores again at will.
    ///
    /// # Panics
    ///
    /// If the host has power.
    pub fn restart(&self) {
        assert!(!self.is_up(), "{} has power", self.name());
        self.world().power_on(self.id);
    }

    /// Whether it has power.
    pub fn is_up(&self) -> bool {
        self.world().machine(self.id).is_up
    }

    /// Stops the process for `span`, as SIGSTOP and SIGCONT do. What it has in flight goes on.
    pub fn pause(&self, span: Duration) {
        let mut world = self.world();
        let until = world.now() + span.as_nanos() as u64;
        world.machine(self.id).paused_until = until;
    }

    /// Sets the wall clock forward or back by `millis`. The monotonic clock does not move.
    pub fn shift_wall_clock(&self, millis: i64) {
        self.world().machine(self.id).wall_clock_offset_ms += millis;
    }

    fn world(&self) -> std::cell::RefMut<'_, World> {
        self.simulator.inner.world.borrow_mut()
    }
}

/// The disk.
impl Host {
    /// Sets what the disk promises. Meant for before its first use.
    pub fn set_fault_model(&self, model: FaultModel) {
        self.world().machine(self.id).disk.set_model(model);
    }

    /// Makes a probe find what `claimed` would keep, whatever the disk does keep: for tests that must see a loss.
    pub fn set_claimed_model(&self, claimed: Option<FaultModel>) {
        self.world().machine(self.id).disk.set_claimed(claimed);
    }

    /// Sets how long the disk's operations take.
    pub fn set_disk_timing(&self, timing: DiskTiming) {
        self.world().machine(self.id).disk.set_timing(timing);
    }

    /// Sets how many bytes the disk moves in a second, of one operation after the other: each waits for those that were issued
    /// before it, flushes too. `None`, as at first, lets no operation wait for another.
    pub fn set_disk_bandwidth(&self, bytes_per_second: Option<u64>) {
        self.world().machine(self.id).disk.set_bandwidth(bytes_per_second);
    }

    /// Plants a fault. It goes with the process.
    pub fn plant(&self, fault: Fault) {
        self.world().machine(self.id).disk.plant(fault);
    }

    /// Removes all planted faults.
    pub fn clear_faults(&self) {
        self.world().machine(self.id).disk.clear_faults();
    }

    /// Cuts the power at a point of the disk's work, counted from the start of the process.
    pub fn cut_at(&self, point: CutPoint) {
        self.world().machine(self.id).disk.set_cut_at(Some(point));
    }

    /// What the disk was asked for since the process started.
    pub fn counters(&self) -> DiskCounters {
        self.world().machine(self.id).disk.counters()
    }

    /// Sets how many bytes the disk holds, in whole pages of 4,096; `None` is endless.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.world().machine(self.id).disk.set_capacity(bytes);
    }

    /// Makes the file system read-only, as it makes itself after an error, or writable again: what would change it fails
    /// with EROFS, and so does a flush, which loses what it should have written.
    pub fn set_read_only(&self, is_read_only: bool) {
        self.world().machine(self.id).disk.set_read_only(is_read_only);
    }

    /// Bytes that files occupy.
    pub fn used_bytes(&self) -> u64 {
        self.world().machine(self.id).disk.used_bytes()
    }

    /// Turns over one bit of a file, on the medium and in the cache.
    ///
    /// # Errors
    ///
    /// There is no such file, or no such byte.
    pub fn flip_bit(&self, path: impl AsRef<Path>, position: u64, bit: u8) -> Result<()> {
        let path = path.as_ref();
        let flipped = self.world().machine(self.id).disk.flip_bit(path, position, bit);
        flipped.map_err(|Errno(errno)| Error::from_raw_os_error("flip bit", errno).with_path(path))
    }

    /// A whole file as the process sees it, without an operation.
    ///
    /// # Errors
    ///
    /// There is no such file.
    pub fn peek(&self, path: impl AsRef<Path>) -> Result<Vec<u8>> {
        let path = path.as_ref();
        let bytes = self.world().machine(self.id).disk.peek(path);
        bytes.map_err(|Errno(errno)| Error::from_raw_os_error("peek", errno).with_path(path))
    }

    /// The paths of all files, in their order, without an operation.
    pub fn files(&self) -> Vec<PathBuf> {
        self.world().machine(self.id).disk.list_files()
    }

    /// The disk as it is, unflushed changes and operations in flight included.
    pub fn copy_disk(&self) -> DiskCopy {
        DiskCopy { disk: self.world().machine(self.id).disk.clone() }
    }

    /// The disk as it was just before the last cut that [`Host::cut_at`] planned, unflushed changes and operations in flight
    /// included.
    pub fn disk_at_cut(&self) -> Option<DiskCopy> {
        self.world().machine(self.id).disk_at_cut.clone().map(|disk| DiskCopy { disk })
    }

    /// Puts a copy of a disk in, as it is after a power cut that `seed` decides: many ends of one story.
    ///
    /// # Panics
    ///
    /// If cores run here: the disk is changed under nobody.
    pub fn insert_after_power_cut(&self, copy: &DiskCopy, seed: u64) {
        let in_use = self.simulator.inner.cores.borrow().values().any(|core| core.host == self.id);
        assert!(!in_use, "{} has cores", self.name());
        self.world().machine(self.id).disk = copy.after_power_cut(seed).disk;
    }

    /// Puts a copy of a disk in as it is.
    ///
    /// # Panics
    ///
    /// If cores run here: the disk is changed under nobody.
    pub fn insert_disk(&self, copy: &DiskCopy) {
        let in_use = self.simulator.inner.cores.borrow().values().any(|core| core.host == self.id);
        assert!(!in_use, "{} has cores", self.name());
        self.world().machine(self.id).disk = copy.disk.clone();
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Host({})", self.name())
    }
}

/// A copy of a simulated disk; see [`Host::copy_disk`].
#[derive(Clone)]
pub struct DiskCopy {
    disk: Disk,
}

impl DiskCopy {
    /// What a power cut that `seed` decides leaves of it.
    #[must_use]
    pub fn after_power_cut(&self, seed: u64) -> DiskCopy {
        let mut disk = self.disk.clone();
        disk.reseed(Random::new(seed));
        disk.power_cut();
        DiskCopy { disk }
    }

    /// What `kill -9` of the process leaves of it, with what was in flight decided by `seed`: the page cache is there still.
    #[must_use]
    pub fn after_kill(&self, seed: u64) -> DiskCopy {
        let mut disk = self.disk.clone();
        disk.reseed(Random::new(seed));
        disk.kill();
        DiskCopy { disk }
    }

    /// A number that depends on the name and the bytes of every file, as processes see them.
    pub fn digest(&self) -> u64 {
        self.disk.digest()
    }
}

impl fmt::Debug for DiskCopy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DiskCopy({} files)", self.disk.list_files().len())
    }
}
