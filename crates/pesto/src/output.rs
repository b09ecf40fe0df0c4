//! Standard output and standard error.

use std::io::{self, Write};

/// Writes to standard output, whole.
///
/// # Errors
/// A message for the user: not all of it was written.
pub(super) fn print(text: &str) -> Result<(), String> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    written.map_err(|error| format!("can't write to standard output: {error}"))
}

/// Writes a line to standard error. If that fails, the exit status still reports the failure.
pub(super) fn report(line: &str) {
    drop(writeln!(io::stderr(), "{line}"));
}
