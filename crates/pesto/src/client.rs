//! The client's end of the control socket.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use control::message::{self, Announced, Decoded, Update};
use control::reply::{self, Reply};

use crate::output::report;
use crate::tables;

/// How long to wait for a server that says nothing. It may have other clients before us, each with a time of its own.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection to a server, which has announced its tables.
pub(super) struct Client {
    path: PathBuf,
    stream: UnixStream,
}

impl Client {
    /// Connects, and receives what is announced. `debug` reports it on standard error.
    ///
    /// # Errors
    /// A message for people.
    pub(super) fn connect(path: &Path, debug: bool) -> Result<(Self, Vec<Announced>), String> {
        let stream = UnixStream::connect(path)
            .and_then(|stream| {
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                Ok(stream)
            })
            .map_err(|error| format!("Failed to connect to {}: {}", path.display(), plain(&error)))?;
        if debug {
            report("Connected to passt/pasta control socket");
        }
        let tables = receive(&stream)?;
        if debug {
            tables.iter().for_each(|table| report(&outline(table)));
        }
        Ok((Self { path: path.to_owned(), stream }, tables))
    }

    /// Sends the tables back, and makes sure that they hold. Returns what the server has to say about it.
    ///
    /// # Errors
    /// A message for people: nothing has changed.
    pub(super) fn update(&mut self, tables: &[Announced]) -> Result<Option<String>, String> {
        let update = Update(tables.iter().map(|table| (table.pif, table.rules.clone())).collect());
        let sent = self.stream.write_all(&message::encode_update(&update));
        // A server that has had enough before the end still may have said why.
        let sent = sent.and_then(|()| self.stream.shutdown(Shutdown::Write));
        match reply::read(&self.stream) {
            Ok(Reply::Holds(remark)) => return Ok((!remark.is_empty()).then_some(remark)),
            Ok(Reply::Refused(reason)) => return Err(reason),
            Ok(Reply::Silence) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                return Err("The server has refused the update".into());
            }
            Err(error) => return Err(format!("Error reading from control socket: {}", plain(&error))),
        }
        sent.map_err(|error| format!("Error writing to control socket: {}", plain(&error)))?;
        self.look_again(tables)
    }

    /// Whether a server that says nothing has taken the update. Whether it could open the ports, nobody can tell.
    fn look_again(&self, tables: &[Announced]) -> Result<Option<String>, String> {
        let (_, present) = Self::connect(&self.path, false)?;
        if present == tables { Ok(None) } else { Err("The server has not taken the update".into()) }
    }
}

fn receive(mut stream: &UnixStream) -> Result<Vec<Announced>, String> {
    let (mut bytes, mut needs) = (Vec::new(), 1);
    loop {
        let have = bytes.len();
        bytes.resize(needs, 0);
        if let Err(error) = stream.read_exact(&mut bytes[have..]) {
            return Err(match error.kind() {
                io::ErrorKind::UnexpectedEof if have == 0 => {
                    "Couldn't read server greeting: No data available".into()
                }
                _ => format!("Error reading from control socket: {}", plain(&error)),
            });
        }
        match message::decode_announcement(&bytes).map_err(|error| error.to_string())? {
            Decoded::Whole(tables) => return Ok(tables),
            Decoded::Needs(more) => needs = more,
        }
    }
}

/// A table in a line.
fn outline(table: &Announced) -> String {
    let names: Vec<&str> = tables::capabilities(table.capabilities).collect();
    format!(
        "PIF {}: {}, {} rules, capabilities {:#x}: {}",
        table.pif.0,
        table.name,
        table.rules.len(),
        table.capabilities.bits(),
        names.join(" ")
    )
}

/// The error without its number.
fn plain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::WouldBlock => "the server doesn't answer".into(),
        _ => {
            let text = error.to_string();
            text.split(" (os error").next().unwrap_or_default().into()
        }
    }
}
