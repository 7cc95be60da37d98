//! `heddle decode`: captured bytes of the protocol as JSON, one line for each line.

use crate::args::DecodeArgs;

/// Decodes every line; a bad line is answered with an error and never stops the rest.
///
/// # Errors
/// The input cannot be read or the output cannot be written.
pub(crate) fn run(args: &DecodeArgs) -> anyhow::Result<()> {
    anyhow::bail!("this build of heddle cannot decode ({args:?})")
}
