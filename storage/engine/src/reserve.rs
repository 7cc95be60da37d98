//! Space that is kept for hard times: on a full disk deletes, metadata and checkpoints still work.
//!
//! Owns `heddle.reserve`, a file of some megabytes that nothing is ever read from. Whoever must not fail for want of space
//! (the metadata log, a checkpoint, the deletion of a log) gives it back to the file system and tries once more. From then on
//! ordinary logs are refused space, on every core, or they would eat it up; they go on when there is room to make the reserve
//! again.
//!
//! ```text
//! absent ── made ──▶ held ── a full disk ──▶ released: ordinary logs get no space
//!                      ▲                         │
//!                      └──── made again ◀────────┘ there is room
//! ```

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use heddle_io::{Io, OpenOptions};

use crate::data_dir::DataDir;
use crate::engine::Core;
use crate::error::Error;
use crate::layout::RESERVE_FILE;

/// How large the reserve is, in bytes: thousands of metadata records and many checkpoints of a small broker.
const RESERVE_BYTES: u64 = 4 << 20;
/// How long to wait for another core that is making or releasing it.
const TURN_PAUSE: Duration = Duration::from_millis(5);

/// The reserve of a data directory.
#[derive(Debug, Default)]
pub(crate) struct Reserve {
    stage: Mutex<Stage>,
    /// It was released, and there was no room for it since.
    is_out: AtomicBool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Stage {
    /// It was not made in this run, or could not be for another reason than a full disk.
    #[default]
    Absent,
    Held,
    Released,
    /// A core is at it.
    Busy,
}

impl DataDir {
    /// Whether space is so short that only what frees some may take any.
    pub fn is_short(&self) -> bool {
        self.reserve().is_out.load(Ordering::Acquire)
    }

    fn reserve_path(&self) -> PathBuf {
        self.path().join(RESERVE_FILE)
    }

    /// Whether the reserve is there for hard times.
    pub fn has_reserve(&self) -> bool {
        self.reserve().is(Stage::Held)
    }

    /// Makes the reserve if it is not there. A full disk is no error: it is tried again.
    pub(crate) async fn make_reserve(&self, io: &Io) {
        if self.is_offline() {
            return;
        }
        let reserve = self.reserve();
        let before = match reserve.begin(|stage| stage != Stage::Held) {
            Some(before) => before,
            None => return,
        };
        let made = self.write_reserve(io).await;
        let made = made.inspect_err(|error| self.note_failure_of_writable(error));
        let (stage, is_out) = match &made {
            Ok(()) => (Stage::Held, false),
            Err(error) if error.is_no_space() => (Stage::Released, true),
            Err(_) => (before, before == Stage::Released),
        };
        reserve.is_out.store(is_out, Ordering::Release);
        reserve.end(stage);
        match made {
            Ok(()) if before == Stage::Released => {
                tracing::info!(directory = %self.path().display(), "there is room on the disk again; logs go on");
            }
            Ok(()) => {}
            Err(error) if before == Stage::Absent => {
                let remedy = error.remedy();
                tracing::warn!(%error, remedy, "no space could be reserved: a full disk may stop deletes as well");
            }
            Err(_) => {}
        }
    }

    async fn write_reserve(&self, io: &Io) -> Result<(), Error> {
        let path = self.reserve_path();
        if self.is_short() {
            // What was deleted gives its space back once the file system has committed that.
            io.sync_dir(self.path()).await?;
        }
        let file = io.open(&path, OpenOptions::create()).await?;
        if io.len(&file).await? >= RESERVE_BYTES {
            return Ok(());
        }
        let reserved = match io.allocate(&file, 0, RESERVE_BYTES).await {
            Err(error) if error.kind() == std::io::ErrorKind::Unsupported => {
                io.write_zeros(&file, 0, RESERVE_BYTES).await
            }
            other => other,
        };
        let synced = match reserved {
            Ok(()) => io.sync_all(&file).await,
            failed => failed,
        };
        drop(file);
        if let Err(error) = synced {
            // Half a reserve is none, and would keep others from what space there is.
            io.remove_file(&path).await?;
            return Err(error.into());
        }
        io.sync_dir(self.path()).await?;
        Ok(())
    }

    /// Gives the reserve back to the file system. Whether there is new space now.
    pub(crate) async fn release_reserve(&self, io: &Io) -> bool {
        let reserve = self.reserve();
        let mut waited = false;
        while reserve.is(Stage::Busy) {
            waited = true;
            io.sleep(TURN_PAUSE).await;
        }
        if reserve.begin(|stage| stage == Stage::Held).is_none() {
            return waited;
        }
        reserve.is_out.store(true, Ordering::Release);
        let removed = io.remove_file(&self.reserve_path()).await;
        let synced = io.sync_dir(self.path()).await.map_err(Error::from);
        let synced = synced.inspect_err(|error| self.note_failure_of_writable(error));
        reserve.end(Stage::Released);
        tracing::error!(
            directory = %self.path().display(),
            "the disk is full: the reserve is given to metadata and deletes, logs take no appends until there is room; delete topics or records, or lower retention"
        );
        removed.is_ok() && synced.is_ok()
    }
}

impl Reserve {
    /// Begins a change of the reserve if its stage is fit for it and nobody is at it. Gives the stage.
    fn begin(&self, is_fit: impl FnOnce(Stage) -> bool) -> Option<Stage> {
        let mut stage = self.lock();
        let before = *stage;
        (before != Stage::Busy && is_fit(before)).then(|| {
            *stage = Stage::Busy;
            before
        })
    }

    fn end(&self, stage: Stage) {
        *self.lock() = stage;
    }

    fn is(&self, stage: Stage) -> bool {
        *self.lock() == stage
    }

    /// Each of these few lines leaves the stage whole.
    fn lock(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Core {
    /// Runs `work`, and once more with the space of the reserve where the disk is full. What is done twice must be as good
    /// as done once.
    ///
    /// # Errors
    /// Those of `work`.
    pub(crate) async fn with_reserve<T>(&self, work: impl AsyncFn() -> Result<T, Error>) -> Result<T, Error> {
        match work().await {
            Err(error) if error.is_no_space() && self.dir.release_reserve(&self.io).await => work().await,
            other => other,
        }
    }
}
