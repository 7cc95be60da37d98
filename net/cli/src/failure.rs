//! How `heddle` ends: one line on standard error, and an exit code that a script can act on.

use std::fmt;
use std::io;
use std::process::ExitCode;

/// The exit codes, as `heddle --help` documents them. 2 comes from the parser of the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// The work was understood and failed.
    Failed = 1,
    /// The command line asks for something that cannot be.
    Usage = 2,
    /// No broker answered.
    Unreachable = 3,
    /// Something that was named does not exist.
    NotFound = 4,
}

/// An error that knows its exit code. Any other error exits with [`Exit::Failed`].
#[derive(Debug)]
pub(crate) struct Failure {
    exit: Exit,
    message: String,
}

impl Failure {
    /// A failure that prints `message` (no full stop, no "error:" in front) and exits with `exit`.
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// Reports how the command ended, and gives the process its exit code.
///
/// A reader that went away (`heddle consume t | head -1`) is the end of the work, not a failure.
pub(crate) fn conclude(result: anyhow::Result<()>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    if is_broken_pipe(&error) {
        return ExitCode::SUCCESS;
    }
    let exit = error.downcast_ref::<Failure>().map_or(Exit::Failed, |failure| failure.exit);
    #[expect(clippy::print_stderr, reason = "the one place that reports a failure")]
    {
        eprintln!("heddle: {error:#}");
    }
    ExitCode::from(exit as u8)
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>()).any(|it| it.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn a_closed_pipe_is_no_failure() {
        let error: io::Error = io::ErrorKind::BrokenPipe.into();
        assert!(is_broken_pipe(&anyhow::Error::from(error).context("standard output")));
        let other: io::Error = io::ErrorKind::NotFound.into();
        assert!(!is_broken_pipe(&anyhow::Error::from(other)));
    }

    #[test]
    fn the_exit_code_survives_context() {
        let error = Err::<(), _>(Failure::new(Exit::NotFound, "no such topic")).context("describe").unwrap_err();
        assert_eq!(error.downcast_ref::<Failure>().unwrap().exit, Exit::NotFound);
    }
}
