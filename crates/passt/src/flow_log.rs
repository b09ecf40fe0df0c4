//! The flow log (`--flow-log`): a line of JSON for each flow that begins, ends or is refused (docs/flow-log.md).
//!
//! The engine reports events to a queue. At the end of each round, the event loop writes the events of the round. The
//! API socket has the same lines (`docs/api.md`). The
//! file is opened at the start, so it can be written after the root directory was replaced.

mod line;
pub(crate) mod reason;

use std::path::Path;
use std::time::SystemTime;

use anyhow::Context;
use engine::events::Event;
use engine::share::Notice;
use engine::timer::Instant;

use crate::capped_file::CappedFile;
pub(crate) use line::{Line, seconds};

/// When this number of bytes waits, they are written. With one more line, which is shorter than 12 KiB, they are still
/// less than half of the minimum size limit of the file. A longer text would be cut.
const CHUNK: usize = 4 << 10;

/// The file.
pub(crate) struct FlowLog {
    file: CappedFile,
    program: &'static str,
    notice: Notice,
}

impl FlowLog {
    /// Creates the file, which never exceeds `limit` bytes. `program` is the name in the first line.
    ///
    /// # Errors
    /// The file can't be created or written.
    pub(crate) fn create(path: &Path, limit: u64, program: &'static str) -> anyhow::Result<Self> {
        let file = CappedFile::create(path, &heading(program, false), limit)
            .with_context(|| format!("can't open flow log {} (--flow-log)", path.display()))?;
        Ok(Self { file, program, notice: Notice::default() })
    }

    /// Writes the events of the round that began at `now`.
    pub(crate) fn write(&mut self, events: &[Event], now: Instant) {
        let time = since_epoch();
        let mut text = String::new();
        for event in events {
            Line::of(event, time, now).add_to(&mut text);
            if text.len() >= CHUNK {
                self.flush(&mut text, now);
            }
        }
        self.flush(&mut text, now);
    }

    /// Writes the lines of `text`, and removes them from it.
    fn flush(&mut self, text: &mut String, now: Instant) {
        let added = self.file.add(text, || heading(self.program, true));
        text.clear();
        if let Err(error) = added
            && self.notice.is_due(now)
        {
            log::warn!("can't write the flow log, lines are lost: {error}");
        }
    }
}

/// Logs the failures of flows as debug messages, one line for each.
pub(crate) fn debug_failures(events: &[Event]) {
    if log::log_enabled!(log::Level::Debug) {
        events.iter().filter_map(reason::sentence).for_each(|sentence| log::debug!("{sentence}"));
    }
}

/// The first line of the file, without the end of line. `truncated` is whether older lines were removed.
fn heading(program: &'static str, truncated: bool) -> String {
    let mut text = String::new();
    Line::heading(program, truncated, since_epoch()).add_to(&mut text);
    text.truncate(text.trim_end().len());
    text
}

/// The time in seconds since 1970 (UTC), with microseconds.
pub(crate) fn since_epoch() -> f64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    since.as_micros() as f64 / 1e6
}

#[cfg(test)]
mod tests;
