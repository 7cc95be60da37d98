//! A look at the files of a log that was opened on a checkpoint's word, when somebody uses it for the first time.
//!
//! Owns finding out that flushed records are gone where nothing was scanned: a file that is missing or too short, a last
//! batch that is not what it was. Such a log goes offline, loudly, and its files stay as they are. Never repairs.

use heddle_record::Offset;

use crate::error::Error;
use crate::layout::SegmentFile;
use crate::log::LogInner;
use crate::scan::last_batch_misfit;
use crate::state::Boundary;

impl LogInner {
    /// Looks at the files unless somebody has; whoever comes in the middle of it does not wait.
    ///
    /// # Errors
    /// [`Error::Damaged`]: the log is offline then. [`Error::Io`]: nothing is known, and the next one looks again.
    pub(crate) async fn verify_once(&self) -> Result<(), Error> {
        let Some(from) = self.state.borrow_mut().believed.take() else { return Ok(()) };
        // It opens files itself: boxed, because that leads back here.
        let looked = Box::pin(self.verify(from)).await;
        match &looked {
            // What a checkpoint vouched for is gone: nothing about the log is certain.
            Err(error @ Error::Damaged { .. }) => self.take_offline(error),
            Err(_) => self.state.borrow_mut().believed = Some(from),
            Ok(()) => {}
        }
        looked
    }

    async fn verify(&self, from: u64) -> Result<(), Error> {
        let (end, mut sizes) = {
            let state = self.state.borrow();
            let sizes: Vec<(Offset, u64)> =
                state.segments.iter().map(|segment| (segment.base_offset, segment.size)).collect();
            (state.recovery_point, sizes)
        };
        sizes.retain(|(segment, _)| *segment < end.segment);
        sizes.push((end.segment, end.position));
        for (segment, size) in sizes {
            self.verify_length(segment, size).await?;
        }
        if end.position > 0 { self.verify_last_batch(from, end).await } else { Ok(()) }
    }

    async fn verify_length(&self, segment: Offset, size: u64) -> Result<(), Error> {
        let path = self.path.join(SegmentFile::Log.name(segment));
        match self.io().metadata(&path).await {
            Ok(found) if found.len >= size => Ok(()),
            Ok(found) => Err(self.damage(segment, found.len, format!("the file ends, {size} bytes were flushed"))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(self.damage(segment, 0, "the file is missing".to_owned()))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The batch before `end` must be there, sound, and end exactly there; `from` is where a batch before it starts.
    async fn verify_last_batch(&self, from: u64, end: Boundary) -> Result<(), Error> {
        let headers = self.scan_headers(end.segment, from, end.position).await?;
        let file = self.open_file(end.segment, SegmentFile::Log, heddle_io::OpenOptions::read_write()).await?;
        match last_batch_misfit(self.io(), file, headers, end).await? {
            None => Ok(()),
            Some(found) => Err(self.damage(end.segment, found.position, found.reason)),
        }
    }

    fn damage(&self, segment: Offset, position: u64, reason: String) -> Error {
        let path = self.path.join(SegmentFile::Log.name(segment));
        let error = Error::Damaged { path, position, offset: segment, reason };
        tracing::error!(log = %self.name, %error, "flushed records are gone: restore the log from a copy or delete the topic");
        error
    }
}
