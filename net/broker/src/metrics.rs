//! What can be seen of a running broker from outside: metrics for Prometheus, and whether it is alive and ready.
//!
//! Owns the way of the numbers from the cores to an HTTP port. Nothing of it is on the path of data: each core counts for
//! itself in plain numbers, and copies them when it is asked, between its other work.
//!
//! ```text
//!   core 0 ◀── question ── observer.rs ◀── http.rs ◀── GET /metrics
//!          ── sample ───▶     │
//!   core 1 ◀─────────────▶    └─▶ render.rs, with the table of catalogue.rs ─▶ exposition.rs ─▶ text
//! ```
//!
//! - `sample.rs` is what one core tells of itself; `process.rs` what the kernel tells of the process.
//! - `observer.rs` asks all cores over the rings of `heddle_io` and waits for a moment: a core that does not answer holds
//!   nobody up.
//! - `catalogue.rs` is the table of all metrics, which `docs/metrics.md` shows.
//! - `http.rs` runs on a thread of its own, with a small runtime of its own.

mod catalogue;
mod exposition;
mod http;
mod observer;
mod process;
mod render;
mod sample;

pub(crate) use http::{About, MetricsServer};
pub(crate) use observer::{Observed, Observer, observe};
pub(crate) use sample::answer_observer;

/// How far a broker is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// It opens its logs.
    Starting,
    /// Its listeners are open.
    Serving,
    /// It was told to stop.
    Stopping,
}
