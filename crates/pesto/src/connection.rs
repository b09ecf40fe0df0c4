//! The client side of the API socket (docs/api.md).

use std::fmt::{self, Display};
use std::io::{self, BufRead, BufReader, ErrorKind, IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};

/// How long to wait for an answer.
pub(super) const TIMEOUT: Duration = Duration::from_secs(60);

/// Why a request has no result. Each has a message for the user.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The server has refused the request. The connection can be used.
    Refused(String),
    /// The connection is lost.
    Lost(String),
}

impl Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Refused(message) | Self::Lost(message)) = self;
        f.write_str(message)
    }
}

impl From<Fault> for String {
    fn from(fault: Fault) -> Self {
        let (Fault::Refused(message) | Fault::Lost(message)) = fault;
        message
    }
}

/// A connection to a server.
pub(super) struct Connection {
    reader: BufReader<UnixStream>,
}

impl Connection {
    /// Connects. Each read and write may then take as long as `patience`.
    ///
    /// # Errors
    /// A message for the user.
    pub(super) fn open(path: &Path, patience: Duration) -> Result<Self, String> {
        let open = || {
            let stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(patience))?;
            stream.set_write_timeout(Some(patience))?;
            Ok(stream)
        };
        let stream = open().map_err(|error: io::Error| {
            format!("Failed to connect to the API socket {}: {error}", path.display())
        })?;
        Ok(Self { reader: BufReader::new(stream) })
    }

    /// Length of the line of a request, in bytes, without its end.
    pub(super) fn len(name: &str, arguments: &Value) -> usize {
        line(name, arguments).trim_end().len()
    }

    /// The socket.
    pub(super) fn stream(&self) -> &UnixStream {
        self.reader.get_ref()
    }

    /// Sends a request. Returns its result.
    ///
    /// # Errors
    /// The server has refused the request, or the connection is lost.
    pub(super) fn request(&mut self, name: &str, arguments: &Value) -> Result<Value, Fault> {
        let line = line(name, arguments);
        let sent = self.reader.get_mut().write_all(line.as_bytes());
        self.answer(sent)
    }

    /// Sends a request with a descriptor. Returns its result.
    ///
    /// # Errors
    /// As [`Connection::request`].
    pub(super) fn request_with(
        &mut self,
        name: &str,
        arguments: &Value,
        descriptor: BorrowedFd<'_>,
    ) -> Result<Value, Fault> {
        let line = line(name, arguments);
        let descriptors = [descriptor];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
        let bytes = [IoSlice::new(line.as_bytes())];
        let sent = sendmsg(self.stream(), &bytes, &mut control, SendFlags::NOSIGNAL);
        // The descriptor goes with the first byte.
        let rest = sent.map(|count| line.as_bytes().get(count..).unwrap_or_default());
        let sent = rest.map_err(io::Error::from).and_then(|rest| self.reader.get_mut().write_all(rest));
        self.answer(sent)
    }

    /// Waits for the answer to a request, after the outcome of sending it.
    fn answer(&mut self, sent: io::Result<()>) -> Result<Value, Fault> {
        match sent {
            // The server may have said why it has closed the connection.
            Err(error) if error.kind() != ErrorKind::BrokenPipe => {
                return Err(Fault::Lost(format!("Error writing to the API socket: {error}")));
            }
            _ => {}
        }
        loop {
            let Some(mut answer) = self.next().map_err(Fault::Lost)? else {
                return Err(Fault::Lost(
                    "The server has closed the connection; is this the socket of --api-socket?".into(),
                ));
            };
            if let Some(error) = answer.get("error") {
                return Err(Fault::Refused(error["message"].as_str().unwrap_or("unknown error").into()));
            }
            // An event may come before the answer.
            if answer.get("event").is_none() {
                return Ok(answer.get_mut("result").map(Value::take).unwrap_or_default());
            }
        }
    }

    /// The next line. `None`: the server has closed the connection.
    ///
    /// # Errors
    /// A message for the user.
    pub(super) fn next(&mut self) -> Result<Option<Value>, String> {
        let mut line = Vec::new();
        let read = self.reader.read_until(b'\n', &mut line);
        let fault = |error: io::Error| match error.kind() {
            // Such as the control socket, which refuses what it can't read.
            ErrorKind::ConnectionReset => {
                format!("Error reading from the API socket: {error}; is this the socket of --api-socket?")
            }
            ErrorKind::WouldBlock => "Error reading from the API socket: the server doesn't answer".into(),
            _ => format!("Error reading from the API socket: {error}"),
        };
        match read.map_err(fault)? {
            0 => Ok(None),
            _ => serde_json::from_slice(&line)
                .map(Some)
                .map_err(|_| "The server does not speak JSON: use the socket of --api-socket".into()),
        }
    }
}

fn line(name: &str, arguments: &Value) -> String {
    format!("{}\n", json!({ "id": 1, "request": name, "arguments": arguments }))
}
