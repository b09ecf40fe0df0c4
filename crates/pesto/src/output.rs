//! Standard output and standard error.

use std::io::{self, Write};

/// Writes the whole text to standard output.
///
/// # Errors
/// A message for the user. The text was not written, or only a part of it.
pub(super) fn print(text: &str) -> Result<(), String> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    written.map_err(|error| format!("can't write to standard output: {error}"))
}

/// Writes a line to standard error. An error is ignored: the exit status reports the failure.
pub(super) fn report(line: &str) {
    drop(writeln!(io::stderr(), "{line}"));
}
