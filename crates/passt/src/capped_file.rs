//! A file of lines whose size has a hard limit: the log file (behaviour §1.7.4, §1.7.5), and the flow log.
//!
//! When the file is full, its oldest part is removed in place. If the file system supports this, the range is
//! collapsed. Otherwise the remaining part is moved to the start. Neither method opens a path, so both work after the
//! root directory was replaced. If the process is killed during the removal, some lines may be in the file twice, but
//! after the first line no line is missing.

use std::borrow::Cow;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate};

/// Unit of the removed part, in bytes: file systems collapse only whole blocks.
const BLOCK: u64 = 4096;
/// Number of bytes that are moved at a time.
const CHUNK: usize = 64 * 1024;

/// A file that never exceeds its size limit. Its first line is a heading.
#[derive(Debug)]
pub(crate) struct CappedFile {
    file: File,
    /// Maximum size in bytes. `None`: the file is not a regular file, so its size needs no limit.
    limit: Option<u64>,
}

impl CappedFile {
    /// Creates the file with access for its owner only, or truncates an existing file. `heading` is the first line,
    /// without its end. `limit` is in bytes.
    ///
    /// # Errors
    /// The file can't be created or written.
    pub(crate) fn create(path: &Path, heading: &str, limit: u64) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(true).mode(0o600).open(path);
        let file = match file {
            // The file can be written but not read. Example: the terminal of another user.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                OpenOptions::new().write(true).open(path)?
            }
            file => file?,
        };
        let limit = file.metadata()?.is_file().then_some(limit);
        let mut capped = Self { file, limit };
        capped.write(&format!("{heading}\n"))?;
        Ok(capped)
    }

    /// Appends `text`, which must consist of whole lines. If the oldest lines are removed, the first line becomes
    /// `heading`.
    ///
    /// # Errors
    /// The file can't be written. If it is a regular file, it still ends with a whole line.
    pub(crate) fn add(&mut self, text: &str, heading: impl FnOnce() -> String) -> io::Result<()> {
        let Some(limit) = self.limit else { return self.write(text) };
        // A longer message would replace more than half of the file.
        let text = &*cut(text, limit / 2);
        let len = text.len() as u64;
        // The position is not stored: the child process that becomes the command writes to the same file.
        let mut end = self.file.stream_position()?;
        if end + len > limit {
            end = self.make_room(end, limit, len, &heading())?;
        }
        self.write_or_undo(end, text)
    }

    /// Writes `text` at the end of the file. If a full file system accepts only a part of `text`, this part is removed
    /// again.
    fn write_or_undo(&mut self, end: u64, text: &str) -> io::Result<()> {
        self.write(text).inspect_err(|_| {
            // If the removal fails, too, the next line follows the part directly.
            let undone = self.file.set_len(end).and_then(|()| self.file.seek(SeekFrom::Start(end)));
            drop(undone);
        })
    }

    fn write(&mut self, text: &str) -> io::Result<()> {
        self.file.write_all(text.as_bytes())
    }

    /// Removes the oldest 30 % of the file, or more if `len` bytes need more room. Also removes the lines that the new
    /// first line overwrites. Returns the new end.
    fn make_room(&mut self, size: u64, limit: u64, len: u64, heading: &str) -> io::Result<u64> {
        let cut = (limit * 3 / 10).max((size + len).saturating_sub(limit)).next_multiple_of(BLOCK).min(size);
        let size = if cut < size && fallocate(&self.file, FallocateFlags::COLLAPSE_RANGE, 0, cut).is_ok() {
            size - cut
        } else {
            self.move_down(cut, size)?
        };
        let size = self.write_heading(size, heading)?;
        self.file.set_len(size)?;
        self.file.seek(SeekFrom::Start(size))
    }

    /// Moves the bytes from `from` to `end` to the start of the file. Returns the new end.
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

    /// Overwrites the start of the file with the first line, and pads this line to the end of an old line. `size` is
    /// the old end of the file. Returns the new end.
    fn write_heading(&self, size: u64, heading: &str) -> io::Result<u64> {
        let mut line = heading.as_bytes().to_vec();
        // A line is never longer than half of the limit: see `add`.
        let end = self.end_of_line(line.len() as u64, size)?;
        line.resize(end.unwrap_or(line.len() as u64) as usize, b' ');
        line.push(b'\n');
        self.file.write_all_at(&line, 0)?;
        Ok(if end.is_some() { size } else { line.len() as u64 })
    }

    /// The position of the first end of line that is at or after `from` and before `size`.
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

/// `text`, shortened to `limit` bytes if it is longer. A shortened text still ends with an end of line.
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
