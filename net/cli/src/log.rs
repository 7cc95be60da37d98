//! `heddle log inspect|verify`: what a data directory holds, read without a broker.

use crate::args::LogCommand;

/// Prints what the files hold, or what is damaged in them.
///
/// # Errors
/// The files cannot be read, or `verify` found damage.
pub(crate) fn run(command: &LogCommand) -> anyhow::Result<()> {
    anyhow::bail!("this build of heddle cannot read logs ({command:?})")
}
