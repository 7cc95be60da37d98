//! Opening compressed batches without holding up the core.
//!
//! Owns how much of that a core does itself. A few kilobytes may come to gigabytes, and no header says so: a core begins, and
//! gives up early. What it has given up, and what is large to begin with, is done on a helper thread, for one batch at a
//! time on each core, so that bombs take neither the core nor more memory than one of them.

use std::borrow::Cow;

use heddle_record::{Compression, CompressionError, RecordBatch, decompress};

use crate::engine::Core;
use crate::error::Error;

/// Compressed bytes that a core opens itself, at most.
const PACKED_HERE_MAX: usize = 16 << 10;
/// What these come to at most: a fraction of a millisecond in every codec.
const OPENED_HERE_MAX: usize = 256 << 10;
/// What a core compresses itself comes to this at most: that takes ten times as long, and more where a topic asks for it.
pub(crate) const COMPRESSED_HERE_MAX: usize = 16 << 10;

/// The work that a batch may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effort {
    /// What a core may be held up for, to look at records.
    Little,
    /// The same, where they are then compressed again.
    LittleToRecompress,
    /// As much as the cap on the output allows: on a helper thread.
    Any,
}

impl Effort {
    /// Of the same kind, for records that are compressed again.
    pub(crate) fn to_recompress(self) -> Effort {
        if self == Effort::Any { Effort::Any } else { Effort::LittleToRecompress }
    }
}

/// The body of a batch in the open, of at most `output_max` bytes. `None` if that takes more than `effort`.
pub(crate) fn open_body<'a>(
    batch: &RecordBatch<'a>,
    output_max: usize,
    effort: Effort,
) -> Option<Result<Cow<'a, [u8]>, CompressionError>> {
    let (packed_max, opened_max) = match (effort, batch.compression()) {
        (Effort::Any, _) | (Effort::Little, Some(Compression::None)) => (usize::MAX, output_max),
        (Effort::Little, _) => (PACKED_HERE_MAX, OPENED_HERE_MAX.min(output_max)),
        (Effort::LittleToRecompress, _) => (COMPRESSED_HERE_MAX, COMPRESSED_HERE_MAX.min(output_max)),
    };
    if batch.body().len() > packed_max {
        return None;
    }
    match decompressed_body(batch, opened_max) {
        Err(CompressionError::OutputTooLarge { .. }) if opened_max < output_max => None,
        opened => Some(opened),
    }
}

/// The body of a batch, decompressed if it is compressed, however long that takes.
///
/// # Errors
/// [`CompressionError`], [`CompressionError::OutputTooLarge`] beyond `output_max` bytes.
pub(crate) fn decompressed_body<'a>(
    batch: &RecordBatch<'a>,
    output_max: usize,
) -> Result<Cow<'a, [u8]>, CompressionError> {
    match batch.compression() {
        Some(Compression::None) => Ok(batch.body().into()),
        Some(codec) => decompressed(codec, batch.body(), output_max).map(Cow::Owned),
        None => Err(CompressionError::Corrupt { what: "unknown codec" }),
    }
}

fn decompressed(codec: Compression, packed: &[u8], output_max: usize) -> Result<Vec<u8>, CompressionError> {
    let mut body = Vec::new();
    decompress(codec, packed, output_max, &mut body).map(|()| body)
}

impl Core {
    /// Does on a helper thread what would hold up the core, when the helper is done with what it was given before.
    ///
    /// # Errors
    /// The work panicked.
    pub(crate) async fn elsewhere<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let _turn = self.helper.acquire(1).await;
        Ok(self.io.run_blocking(work).await?)
    }

    /// The body of a batch in the open, under the engine's cap, wherever that is done.
    ///
    /// # Errors
    /// As [`Core::elsewhere`]; the inner one is the batch's.
    pub(crate) async fn open_batch<'a>(
        &self,
        batch: &RecordBatch<'a>,
    ) -> Result<Result<Cow<'a, [u8]>, CompressionError>, Error> {
        let output_max = self.config.decompressed_bytes_max;
        if let Some(opened) = open_body(batch, output_max, Effort::Little) {
            return Ok(opened);
        }
        let codec = batch.compression().expect("a codec that is not known is refused at once");
        let packed = batch.body().to_vec();
        let opened = self.elsewhere(move || decompressed(codec, &packed, output_max)).await?;
        Ok(opened.map(Cow::Owned))
    }
}

#[cfg(test)]
mod tests {
    use heddle_record::{BatchBuilder, BatchOptions, Timestamp, compress};

    use super::*;

    /// A batch of one record whose value has so many bytes, none of which says anything.
    fn batch(codec: Compression, len: usize) -> Vec<u8> {
        let mut builder = BatchBuilder::new(BatchOptions { compression: codec, ..BatchOptions::default() });
        builder.push(Timestamp::new(0), Some(b"key"), Some(&vec![0; len]), &[]).unwrap();
        let mut bytes = Vec::new();
        builder.finish(&mut bytes).unwrap();
        bytes
    }

    fn opened(bytes: &[u8], output_max: usize, effort: Effort) -> Option<Result<usize, CompressionError>> {
        let batch = RecordBatch::peek(bytes).unwrap();
        open_body(&batch, output_max, effort).map(|opened| opened.map(|body| body.len()))
    }

    #[test]
    fn what_is_quickly_opened_is_opened_and_the_rest_is_left() {
        const CAP: usize = 1 << 20;
        for codec in Compression::ALL.into_iter().filter(|codec| *codec != Compression::None) {
            let small = batch(codec, 8 << 10);
            assert!(matches!(opened(&small, CAP, Effort::Little), Some(Ok(len)) if len > 8 << 10), "{codec}");
            assert!(opened(&small, CAP, Effort::LittleToRecompress).is_some(), "{codec}");
            let medium = batch(codec, 64 << 10);
            assert!(opened(&medium, CAP, Effort::Little).is_some(), "{codec}");
            assert!(opened(&medium, CAP, Effort::LittleToRecompress).is_none(), "{codec}");
            let bomb = batch(codec, 2 << 20);
            assert!(opened(&bomb, CAP, Effort::Little).is_none(), "{codec}");
            let too_large = |opened| matches!(opened, Some(Err(CompressionError::OutputTooLarge { .. })));
            assert!(too_large(opened(&bomb, CAP, Effort::Any)), "{codec}");
            assert!(too_large(opened(&medium, 100, Effort::Little)), "{codec}: the cap is below what is little");
        }
        let plain = batch(Compression::None, 2 << 20);
        assert!(opened(&plain, 100, Effort::Little).is_some_and(|opened| opened.is_ok()), "there is nothing to open");
        assert!(opened(&plain, CAP, Effort::LittleToRecompress).is_none());
    }

    #[test]
    fn what_is_large_before_it_is_opened_is_left() {
        // What cannot be compressed: each number's square, mixed.
        let noise: Vec<u8> =
            (0..40_000_u64).map(|n| (n.wrapping_mul(n).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect();
        let mut packed = Vec::new();
        compress(Compression::Lz4, None, &noise, &mut packed).unwrap();
        assert!(packed.len() > PACKED_HERE_MAX);
        let mut builder = BatchBuilder::new(BatchOptions { compression: Compression::Lz4, ..BatchOptions::default() });
        builder.push(Timestamp::new(0), None, Some(&noise), &[]).unwrap();
        let mut bytes = Vec::new();
        builder.finish(&mut bytes).unwrap();
        assert!(opened(&bytes, 1 << 20, Effort::Little).is_none());
        assert!(opened(&bytes, 1 << 20, Effort::Any).is_some_and(|opened| opened.is_ok()));
    }
}
