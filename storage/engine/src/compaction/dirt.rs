//! How much of a log has not been compacted, and whether that is worth a pass.
//!
//! Owns Kafka's arithmetic: the dirty ratio, the least and the largest lag. Looks at what the log knows in memory, never
//! at the disk.

use heddle_record::{Offset, Timestamp};

use super::manifest::Manifest;
use crate::config::LogConfig;
use crate::segment::Segment;
use crate::state::LogState;

/// A pass that is worth it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Job {
    /// Everything below was compacted before.
    pub(crate) first_dirty: Offset,
    /// Up to here the log may be compacted: where a sealed segment ends.
    pub(crate) end: Offset,
    /// The part of the bytes up to there that is dirty, in millionths; the largest goes first.
    pub(crate) ratio: u64,
    /// Only tombstones whose time has come are looked for.
    pub(crate) tombstones_only: bool,
}

impl LogState {
    /// What is to be done about this log at `now`, if anything is.
    pub(crate) fn dirt(&self, manifest: &Manifest, config: &LogConfig, now: Timestamp) -> Option<Job> {
        let active = self.segments[self.segments.len() - 1].base_offset;
        let first_dirty = manifest.first_dirty.clamp(self.log_start.min(active), active);
        let (mut clean_bytes, mut dirty_bytes) = (0, 0);
        let (mut end, mut is_overdue) = (first_dirty, false);
        for pair in self.segments.windows(2) {
            let (segment, next) = (&pair[0], pair[1].base_offset);
            if next <= first_dirty {
                clean_bytes += segment.size;
                continue;
            }
            if next > self.high_watermark || is_within(segment, config.compaction_lag_min.as_millis(), now) {
                break;
            }
            let lag_max = config.compaction_lag_max.map(|lag| lag.as_millis());
            is_overdue |= lag_max.is_some_and(|lag| is_older(segment.first_append_at, lag, now));
            dirty_bytes += segment.size;
            end = next;
        }
        let ratio = dirty_bytes * 1_000_000 / (clean_bytes + dirty_bytes).max(1);
        let is_dirty = dirty_bytes > 0 && (is_overdue || ratio > u64::from(config.dirty_ratio_min_millionths));
        if is_dirty {
            return Some(Job { first_dirty, end, ratio, tombstones_only: false });
        }
        let is_due = manifest.segments.iter().any(|segment| segment.horizon.is_some_and(|horizon| horizon <= now));
        is_due.then_some(Job { first_dirty, end: first_dirty, ratio: 0, tombstones_only: true })
    }

    /// Whether the active segment is to be sealed so that what is in it is compacted in time.
    pub(crate) fn active_is_overdue(&self, config: &LogConfig, now: Timestamp) -> bool {
        let active = &self.segments[self.segments.len() - 1];
        let lag_max = config.compaction_lag_max.map(|lag| lag.as_millis());
        let idle = self.high_watermark == self.log_end && self.flushed.offset == self.log_end;
        idle && active.size > 0 && lag_max.is_some_and(|lag| is_older(active.first_append_at, lag, now))
    }
}

/// Whether the newest record of a segment is younger than `lag`, in ms. A timestamp from the future counts as the time of
/// its append, so that it holds up nothing for ever (case 63).
fn is_within(segment: &Segment, lag: u128, now: Timestamp) -> bool {
    let newest = match (segment.index.max(), segment.last_append_at) {
        (Some(max), Some(appended)) => Some(max.timestamp.min(appended)),
        (Some(max), None) => Some(max.timestamp),
        (None, appended) => appended,
    };
    lag > 0 && newest.is_some_and(|newest| !is_older(Some(newest), lag, now))
}

/// Whether `time` is longer ago than `age`, in ms, or as long.
fn is_older(time: Option<Timestamp>, age: u128, now: Timestamp) -> bool {
    let passed = time.map(|time| now.get().saturating_sub(time.get()));
    passed.is_some_and(|passed| u128::try_from(passed).is_ok_and(|passed| passed >= age))
}
