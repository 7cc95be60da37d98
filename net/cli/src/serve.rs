//! `heddle serve`: hands the flags to the broker and runs it until a signal ends it.

use crate::args::ServeArgs;

/// Runs a broker until SIGTERM or SIGINT.
///
/// # Errors
/// A sentence that says what stops the broker from starting and what to do about it.
pub(crate) fn run(args: &ServeArgs) -> anyhow::Result<()> {
    anyhow::bail!("this build of heddle has no broker (asked to log at {:?})", args.level())
}
