//! The log file, with its hard limit of size (behaviour §1.7.4, §1.7.5).
//!
//! A full file loses its oldest part in place: where the file system can collapse a range it does, else what stays is
//! moved towards the start. Neither needs a path or another file, so it works without any view of the file system.
//! Killed in between, the file may have lines twice, but none is missing behind the oldest.

use std::borrow::Cow;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate};

/// What is cut off is a multiple of this, in bytes: file systems collapse whole blocks.
const BLOCK: u64 = 4096;
/// Bytes moved at a time.
const CHUNK: usize = 64 * 1024;

/// A file that never gets larger than its limit, and starts with a line that says what it is.
#[derive(Debug)]
pub(super) struct LogFile {
    file: File,
    /// What the first line says.
    title: String,
    /// Largest size in bytes; none if this is no regular file, which has no size.
    limit: Option<u64>,
}

impl LogFile {
    /// Creates the file, for its owner alone, or empties the one there is. `limit` is in bytes.
    pub(super) fn create(path: &Path, title: String, limit: u64) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(true).mode(0o600).open(path);
        let file = match file {
            // What can only be written to, as a terminal of somebody else.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                OpenOptions::new().write(true).open(path)?
            }
            file => file?,
        };
        let limit = file.metadata()?.is_file().then_some(limit);
        let mut log = Self { file, title, limit };
        log.write(&format!("{}\n", log.title))?;
        Ok(log)
    }

    /// Adds `text`, lines each with its end; `now` is the time that a cut is told with.
    pub(super) fn add(&mut self, text: &str, now: &str) -> io::Result<()> {
        let Some(limit) = self.limit else { return self.write(text) };
        // Nobody reads a message of half a file, and the other half would go for it.
        let text = &*cut(text, limit / 2);
        let len = text.len() as u64;
        // Asked each time, as the child that becomes the command shares the file with us.
        let size = self.file.stream_position()?;
        if size + len > limit {
            self.make_room(size, limit, len, now)?;
        }
        self.write(text)
    }

    fn write(&mut self, text: &str) -> io::Result<()> {
        self.file.write_all(text.as_bytes())
    }

    /// Drops the oldest 30 % (or more, if a text of `len` bytes needs it), and whatever the first line then covers.
    fn make_room(&mut self, size: u64, limit: u64, len: u64, now: &str) -> io::Result<()> {
        let cut = (limit * 3 / 10).max((size + len).saturating_sub(limit)).next_multiple_of(BLOCK).min(size);
        let size = if cut < size && fallocate(&self.file, FallocateFlags::COLLAPSE_RANGE, 0, cut).is_ok() {
            size - cut
        } else {
            self.move_down(cut, size)?
        };
        let size = self.write_title(size, now)?;
        self.file.set_len(size)?;
        self.file.seek(SeekFrom::Start(size)).map(drop)
    }

    /// Moves what is from `from` up to `end` to the start; returns the new end.
    fn move_down(&self, from: u64, end: u64) -> io::Result<u64> {
        let mut chunk = vec![0; CHUNK];
        let (mut read, mut written) = (from, 0);
        while read < end {
            let len = self.file.read_at(&mut chunk, read)?;
            if len == 0 {
                break;
            }
            self.file.write_all_at(&chunk[..len], written)?;
            read += len as u64;
            written += len as u64;
        }
        Ok(written)
    }

    /// Puts the first line over the start, up to an end of line; returns the end of the file, which was `size`.
    fn write_title(&self, size: u64, now: &str) -> io::Result<u64> {
        let mut line = format!("{} - log truncated at {now}", self.title).into_bytes();
        // A line never spans more than half of the limit: see `add`.
        let end = self.end_of_line(line.len() as u64, size)?;
        line.resize(end.unwrap_or(line.len() as u64) as usize, b' ');
        line.push(b'\n');
        self.file.write_all_at(&line, 0)?;
        Ok(if end.is_some() { size } else { line.len() as u64 })
    }

    /// Where the first end of line at or behind `from` is, if there is one before `size`.
    fn end_of_line(&self, from: u64, size: u64) -> io::Result<Option<u64>> {
        let mut chunk = vec![0; CHUNK];
        let mut at = from;
        while at < size {
            let len = self.file.read_at(&mut chunk, at)?.min((size - at) as usize);
            if len == 0 {
                break;
            }
            if let Some(place) = chunk[..len].iter().position(|byte| *byte == b'\n') {
                return Ok(Some(at + place as u64));
            }
            at += len as u64;
        }
        Ok(None)
    }
}

/// A text of at most `limit` bytes: if it is longer, its beginning, with the end of line that the whole has.
fn cut(text: &str, limit: u64) -> Cow<'_, str> {
    const MARK: &str = " [...]\n";
    if text.len() as u64 <= limit {
        return Cow::Borrowed(text);
    }
    let end = text.floor_char_boundary(limit as usize - MARK.len());
    Cow::Owned(format!("{}{MARK}", &text[..end]))
}

#[cfg(test)]
mod tests;
