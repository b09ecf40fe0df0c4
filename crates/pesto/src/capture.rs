//! `pesto capture`: frames of the guest's link, as a capture file.

use std::fs::OpenOptions;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use serde_json::{Map, Value, json};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tempfile::NamedTempFile;

use crate::connection::Connection;
use crate::output::report;

/// The thread that copies frames to standard output.
type Relay = JoinHandle<io::Result<()>>;

/// Captures frames that meet the conditions of `filter`, until a signal arrives, the server ends, or the file can't be
/// written to.
///
/// # Errors
/// A message for the user.
pub(super) fn run(
    connection: &mut Connection,
    file: &Path,
    filter: &Map<String, Value>,
) -> Result<(), String> {
    // The signals are taken over before the capture begins: each of them then ends it in order.
    let signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(|error| error.to_string())?;
    let Sink { descriptor, replaces, relay } = Sink::open(file)?;
    connection.request_with("capture.start", &json!(filter), descriptor.as_fd())?;
    // The server has the only end that writes.
    drop(descriptor);
    if let Some((new, path)) = replaces {
        new.persist(path).map_err(|error| cannot_write(file, &error.error))?;
    }
    let patient = connection.stream().set_read_timeout(None);
    let stream = patient.and_then(|()| connection.stream().try_clone());
    stop_by_signal(signals, stream.map_err(|error| error.to_string())?);
    let end = last_line(connection);
    let relayed = relay.map_or(Ok(()), |relay| relay.join().unwrap_or(Ok(())));
    let counts = end?;
    report(&format!("{} frames, {} lost", counts["frames"], counts["lost"]));
    match (relayed, counts["reason"].as_str()) {
        // Who reads standard output has had enough.
        (Err(error), _) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        (Err(error), _) => Err(format!("can't write to standard output: {error}")),
        (Ok(()), Some(reason)) => Err(format!("the capture has ended: {reason}")),
        (Ok(()), None) => Ok(()),
    }
}

/// Where the server writes to.
struct Sink {
    descriptor: OwnedFd,
    /// A new file, and the path of the file that it replaces as soon as the server has accepted it.
    replaces: Option<(NamedTempFile, PathBuf)>,
    /// Copies from a pipe to standard output.
    relay: Option<Relay>,
}

fn cannot_write(file: &Path, error: &io::Error) -> String {
    format!("can't write to {}: {error}", file.display())
}

impl Sink {
    /// Opens the file. For standard output, the server writes to a pipe: it would otherwise change the mode of a file that
    /// others use, too.
    fn open(file: &Path) -> Result<Self, String> {
        if file == "-" {
            let (descriptor, relay) = standard_output()?;
            return Ok(Self { descriptor, replaces: None, relay: Some(relay) });
        }
        // A pipe or a device is not replaced.
        if file.metadata().is_ok_and(|present| !present.is_file()) {
            let opened =
                OpenOptions::new().write(true).open(file).map_err(|error| cannot_write(file, &error))?;
            return Ok(Self { descriptor: opened.into(), replaces: None, relay: None });
        }
        // A link is not replaced, but the file to which it leads.
        let path = file.canonicalize().unwrap_or_else(|_| file.to_owned());
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let made = NamedTempFile::new_in(folder).and_then(|new| Ok((new.as_file().try_clone()?, new)));
        let (descriptor, new) = made.map_err(|error| cannot_write(file, &error))?;
        Ok(Self { descriptor: descriptor.into(), replaces: Some((new, path)), relay: None })
    }
}

/// A pipe from which a thread copies to standard output.
fn standard_output() -> Result<(OwnedFd, Relay), String> {
    if io::stdout().is_terminal() {
        return Err("standard output is a terminal: redirect it, or give a FILE".into());
    }
    let (mut reader, writer) = io::pipe().map_err(|error| format!("can't make a pipe: {error}"))?;
    let relay = move || {
        let mut stdout = io::stdout().lock();
        let mut buffer = [0; 1 << 16];
        loop {
            match io::Read::read(&mut reader, &mut buffer)? {
                0 => return stdout.flush(),
                count => stdout.write_all(buffer.get(..count).unwrap_or_default())?,
            }
            stdout.flush()?;
        }
    };
    Ok((writer.into(), thread::spawn(relay)))
}

/// Asks the server to end the capture when a signal arrives.
fn stop_by_signal(mut signals: Signals, mut stream: UnixStream) {
    thread::spawn(move || {
        for _ in signals.forever() {
            let line = json!({ "id": "stop", "request": "capture.stop" });
            // If this fails, the connection is lost, and the main thread ends.
            let _ = stream.write_all(format!("{line}\n").as_bytes());
        }
    });
}

/// Waits for the end of the capture. Returns the counts.
fn last_line(connection: &mut Connection) -> Result<Value, String> {
    while let Some(mut line) = connection.next()? {
        if line["event"] == "capture" {
            return Ok(line);
        }
        if let Some(counts) = line.get_mut("result").map(Value::take) {
            return Ok(counts);
        }
    }
    Err("The server has ended".into())
}
