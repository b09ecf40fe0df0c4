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
/// How long to wait for the greeting before another kind of socket is considered. A server greets when it begins to serve
/// a client. On the API socket, the client speaks first.
const GREETING: Duration = Duration::from_millis(300);
/// How long such a socket may take to answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);

/// A connection to a server, which has announced its tables.
pub(super) struct Client {
    path: PathBuf,
    stream: UnixStream,
}

/// What a server says first.
pub(super) enum Greeting<C, T> {
    /// Its tables.
    Tables(C, Vec<Announced>),
    /// Nothing: it is another kind of socket.
    Other(T),
}

/// Connects, and receives the tables of the server. If it says nothing, or refuses in JSON, `other` may find that it is
/// another kind of socket.
///
/// # Errors
/// A message for the user.
pub(super) fn connect<T>(
    path: &Path,
    other: impl FnOnce() -> Option<T>,
) -> Result<Greeting<Client, T>, String> {
    let connect = || {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(GREETING))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        Ok(stream)
    };
    let failed = |error| format!("Failed to connect to {}: {}", path.display(), plain(&error));
    let stream = connect().map_err(failed)?;
    let greeting = receive(&stream, |is_silent| {
        let other = other();
        if other.is_none() && is_silent {
            report(&format!(
                "{} has sent nothing yet: another client may be connected, or it is not the socket of --conf-path",
                path.display()
            ));
        }
        other
    })?;
    Ok(match greeting {
        Greeting::Tables((), tables) => Greeting::Tables(Client { path: path.to_owned(), stream }, tables),
        Greeting::Other(other) => Greeting::Other(other),
    })
}

impl Client {
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
        match connect(&self.path, || None::<()>)? {
            Greeting::Tables(_, present) if present == tables => Ok(None),
            _ => Err("The server has not taken the update".into()),
        }
    }
}

/// Receives the tables. Calls `other` once if the server says nothing (true) within the time that is set for reading, and
/// then waits longer, unless that has found another kind of socket; or if the server begins as with JSON (false), such as an API
/// socket that refuses this client.
fn receive<T>(
    mut stream: &UnixStream,
    other: impl FnOnce(bool) -> Option<T>,
) -> Result<Greeting<(), T>, String> {
    let mut other = Some(other);
    let (mut bytes, mut needs) = (Vec::new(), 1);
    loop {
        let have = bytes.len();
        bytes.resize(needs, 0);
        if let Err(error) = stream.read_exact(&mut bytes[have..]) {
            // Nothing is lost: the first read is of one byte.
            if have == 0
                && error.kind() == io::ErrorKind::WouldBlock
                && let Some(other) = other.take()
            {
                if let Some(other) = other(true) {
                    return Ok(Greeting::Other(other));
                }
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
        if have == 0 {
            stream.set_read_timeout(Some(TIMEOUT)).map_err(|error| error.to_string())?;
        }
        if bytes == b"{"
            && let Some(other) = other.take()
            && let Some(other) = other(false)
        {
            return Ok(Greeting::Other(other));
        }
        match message::decode_announcement(&bytes).map_err(|error| error.to_string())? {
            Decoded::Whole(tables) => return Ok(Greeting::Tables((), tables)),
            Decoded::Needs(more) => needs = more,
        }
    }
}

/// A table in one line.
pub(super) fn summary(table: &Announced) -> String {
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
        let end = receive(&client, |is_silent| {
            assert!(is_silent);
            reported += 1;
            server.shutdown(Shutdown::Both).unwrap();
            None::<()>
        });
        assert_eq!(end.err(), Some("Couldn't read server greeting: No data available".into()));
        assert_eq!(reported, 1);
    }

    #[test]
    fn another_kind_of_socket_is_found_when_the_server_says_nothing() {
        let (client, _server) = UnixStream::pair().unwrap();
        client.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        assert!(matches!(receive(&client, |is_silent| is_silent.then_some(7)), Ok(Greeting::Other(7))));
    }

    /// A server needs time for a large policy.
    #[test]
    fn a_server_that_has_greeted_may_take_its_time() {
        let (client, mut server) = UnixStream::pair().unwrap();
        client.set_read_timeout(Some(GREETING)).unwrap();
        server.write_all(&message::encode_announcement(&[])).unwrap();
        assert!(matches!(receive(&client, |_| None::<()>), Ok(Greeting::Tables((), _))));
        assert_eq!(client.read_timeout().unwrap(), Some(TIMEOUT));
    }

    /// An API socket that refuses a client says so at once.
    #[test]
    fn another_kind_of_socket_is_found_when_the_server_begins_with_json() {
        let (client, mut server) = UnixStream::pair().unwrap();
        server.write_all(b"{\"id\":null").unwrap();
        assert!(matches!(receive(&client, |is_silent| (!is_silent).then_some(7)), Ok(Greeting::Other(7))));
        let (client, mut server) = UnixStream::pair().unwrap();
        server.write_all(b"{garbage of another server").unwrap();
        let end = receive(&client, |_| None::<()>);
        assert_eq!(end.err().as_deref(), Some("Bad magic number from server"));
    }
}
