//! The client side of the control socket.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use control::message::{self, Announced, Capabilities, Decoded, Update};
use control::policy;
use control::reply::{self, Reply};

use crate::output::report;

/// How long to wait for the server. The server serves one client at a time, so it may serve other clients first.
const TIMEOUT: Duration = Duration::from_secs(60);
/// How long to wait for the greeting before the user is told that this may be another kind of socket. A server greets
/// when it begins to serve a client. On the API socket, the client speaks first.
const PATIENCE: Duration = Duration::from_secs(3);

/// A connection to a server, which has announced its tables.
pub(super) struct Client {
    path: PathBuf,
    stream: UnixStream,
}

impl Client {
    /// Connects, and receives the tables of the server. With `debug`, prints them to standard error.
    ///
    /// # Errors
    /// A message for the user.
    pub(super) fn connect(path: &Path, debug: bool) -> Result<(Self, Vec<Announced>), String> {
        let stream = UnixStream::connect(path)
            .and_then(|stream| {
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(TIMEOUT))?;
                Ok(stream)
            })
            .map_err(|error| unreachable(path, &error))?;
        if debug {
            report("Connected to passt/pasta control socket");
        }
        let tables = receive(&stream, || {
            report(&format!("{} has sent nothing yet: is it the socket of --conf-path?", path.display()));
        })?;
        if debug {
            tables.iter().for_each(|table| report(&summary(table)));
        }
        Ok((Self { path: path.to_owned(), stream }, tables))
    }

    /// Sends the tables back, and checks that they took effect. Returns the remark of the server, if it has one.
    ///
    /// # Errors
    /// A message for the user. Nothing has changed.
    pub(super) fn update(&mut self, tables: &[Announced]) -> Result<Option<String>, String> {
        let update = Update(tables.iter().map(|table| (table.pif, table.rules.clone())).collect());
        let sent = self.stream.write_all(&message::encode_update(&update));
        // If sending fails, the server may have sent the reason before it closed the connection.
        let sent = sent.and_then(|()| self.stream.shutdown(Shutdown::Write));
        match reply::read(&self.stream) {
            Ok(Reply::Applied(remark)) => return Ok((!remark.is_empty()).then_some(remark)),
            Ok(Reply::Refused(reason)) => return Err(reason),
            Ok(Reply::Unsupported) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                return Err("The server has refused the update".into());
            }
            Err(error) => return Err(format!("Error reading from control socket: {}", plain(&error))),
        }
        sent.map_err(|error| format!("Error writing to control socket: {}", plain(&error)))?;
        self.compare(tables)
    }

    /// Sends a request about the policy. Returns the server's text.
    ///
    /// # Errors
    /// A message for the user. Nothing has changed.
    pub(super) fn request(
        &mut self,
        tables: &[Announced],
        request: &policy::Request<'_>,
    ) -> Result<String, String> {
        let path = self.path.display();
        let unsupported = || {
            format!(
                "{path}: this server can't show or replace a policy; it needs a passt or pasta of passt-rs with the guard"
            )
        };
        if !tables.iter().any(|table| table.capabilities.contains(Capabilities::POLICY)) {
            return Err(unsupported());
        }
        // If sending fails, the server may have sent the reason before it closed the connection.
        let sent = self.stream.write_all(&policy::encode(request));
        match (policy::read_reply(&self.stream), sent) {
            (Ok(Reply::Applied(text)), _) => Ok(text),
            (Ok(Reply::Refused(reason)), _) => Err(reason),
            (_, Err(error)) => Err(format!("Error writing to control socket: {}", plain(&error))),
            (Ok(Reply::Unsupported), _) => Err(unsupported()),
            (Err(error), _) => Err(format!("Error reading from control socket: {}", plain(&error))),
        }
    }

    /// Checks the update on a server that sends no reply: requests the tables again and compares them. This does not
    /// show whether the server could open the ports.
    fn compare(&self, tables: &[Announced]) -> Result<Option<String>, String> {
        let (_, present) = Self::connect(&self.path, false)?;
        if present == tables { Ok(None) } else { Err("The server has not taken the update".into()) }
    }
}

/// Receives the tables. Calls `silent` once if the server says nothing within the time that is set for reading, and then
/// waits longer.
fn receive(mut stream: &UnixStream, silent: impl FnOnce()) -> Result<Vec<Announced>, String> {
    let mut silent = Some(silent);
    let (mut bytes, mut needs) = (Vec::new(), 1);
    loop {
        let have = bytes.len();
        bytes.resize(needs, 0);
        if let Err(error) = stream.read_exact(&mut bytes[have..]) {
            // Nothing is lost: the first read is of one byte.
            if have == 0
                && error.kind() == io::ErrorKind::WouldBlock
                && let Some(silent) = silent.take()
            {
                silent();
                stream.set_read_timeout(Some(TIMEOUT)).map_err(|error| error.to_string())?;
                bytes.clear();
                continue;
            }
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

/// A table in one line.
fn summary(table: &Announced) -> String {
    let names: Vec<&str> = table.capabilities.names().collect();
    format!(
        "PIF {}: {}, {} rules, capabilities {:#x}: {}",
        table.pif.0,
        table.name,
        table.rules.len(),
        table.capabilities.bits(),
        names.join(" ")
    )
}

/// Why no server can be reached at `path`.
fn unreachable(path: &Path, error: &io::Error) -> String {
    let number = path.to_str().is_some_and(|path| path.parse::<u32>().is_ok());
    if number && error.kind() == io::ErrorKind::NotFound {
        return format!(
            "{}: a process ID does not lead to the rules; give the PATH of the socket of --conf-path",
            path.display()
        );
    }
    format!("Failed to connect to {}: {}", path.display(), plain(error))
}

/// The text of an error, without its errno.
fn plain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::WouldBlock => "the server doesn't answer".into(),
        _ => {
            let text = error.to_string();
            text.split(" (os error").next().unwrap_or_default().into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Such as the API socket, where the client speaks first.
    #[test]
    fn a_server_that_says_nothing_is_reported_once() {
        let (client, server) = UnixStream::pair().unwrap();
        client.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        let mut reported = 0;
        let end = receive(&client, || {
            reported += 1;
            server.shutdown(Shutdown::Both).unwrap();
        });
        assert_eq!(end, Err("Couldn't read server greeting: No data available".into()));
        assert_eq!(reported, 1);
    }

    #[test]
    fn a_process_id_is_no_path() {
        let missing = io::Error::from(io::ErrorKind::NotFound);
        assert!(unreachable(Path::new("4711"), &missing).contains("socket of --conf-path"));
        assert!(unreachable(Path::new("/4711"), &missing).starts_with("Failed to connect to /4711: "));
    }
}
