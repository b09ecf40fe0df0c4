//! Clients in the guest, and the outcomes of their attempts.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use super::fort::{ANY_SERVER, Fort, Outcome};
use crate::harness::*;

/// A TLS record with the fatal alert unrecognized_name (RFC 8446 §6.2).
const ALERT: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

impl Fort<'_> {
    /// Sends a question to [`ANY_SERVER`], over UDP.
    pub(super) fn ask(&self, message: &[u8]) -> Outcome {
        self.ask_at(ANY_SERVER, message).0
    }

    /// Sends a DNS message to a server over UDP. Returns the answer, too.
    pub(super) fn ask_at(&self, server: &str, message: &[u8]) -> (Outcome, Vec<u8>) {
        let (outcome, answer) = self.datagram(server, message);
        (outcome.unwrap_or_else(|| of_answer(message, &answer)), answer)
    }

    /// Sends DNS messages to a server over TCP, byte by byte if `slowly`. Returns the outcome of the first message.
    pub(super) fn ask_stream(&self, server: &str, messages: &[&[u8]], slowly: bool) -> Outcome {
        let stream: Vec<u8> = messages
            .iter()
            .flat_map(|message| [&(message.len() as u16).to_be_bytes(), *message].concat())
            .collect();
        let pieces: Vec<&[u8]> = if slowly { stream.chunks(1).collect() } else { vec![&stream] };
        let mut client = self.connect(server).unwrap();
        if let Some(outcome) = write(&mut client, &pieces) {
            return outcome;
        }
        let mut len = [0; 2];
        match client.read_exact(&mut len) {
            Ok(()) => {
                let mut answer = vec![0; u16::from_be_bytes(len).into()];
                client.read_exact(&mut answer).unwrap();
                of_answer(messages[0], &answer)
            }
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Outcome::Closed,
            Err(error) => of_error(&error),
        }
    }

    /// Sends a datagram. Returns the socket's error, or the answer.
    fn datagram(&self, to: &str, payload: &[u8]) -> (Option<Outcome>, Vec<u8>) {
        let to: SocketAddr = to.parse().unwrap();
        let socket = self.net.guest.udp((any(to.ip()), 0));
        socket.connect(to).unwrap();
        socket.send(payload).unwrap();
        let mut buffer = vec![0; 65_536];
        match socket.recv(&mut buffer) {
            Ok(len) => (None, buffer[..len].to_vec()),
            Err(error) => (Some(of_error(&error)), Vec::new()),
        }
    }

    /// Sends datagrams from one socket. Returns the error that comes back.
    pub(super) fn send_all(&self, to: &str, datagrams: &[Vec<u8>]) -> Outcome {
        let to: SocketAddr = to.parse().unwrap();
        let socket = self.net.guest.udp((any(to.ip()), 0));
        socket.connect(to).unwrap();
        datagrams.iter().for_each(|datagram| assert_eq!(socket.send(datagram).unwrap(), datagram.len()));
        of_error(&socket.recv(&mut [0; 1]).unwrap_err())
    }

    /// Sends a datagram. Panics if there is an answer instead of an error.
    pub(super) fn send(&self, to: &str, payload: &[u8]) -> Outcome {
        let (outcome, answer) = self.datagram(to, payload);
        outcome.unwrap_or_else(|| panic!("{to} answers {answer:?}"))
    }

    /// Sends a datagram for which the guest can't get an error.
    pub(super) fn send_blindly(&self, to: &str, payload: &[u8]) -> Outcome {
        let to: SocketAddr = to.parse().unwrap();
        let socket = self.net.guest.udp((any(to.ip()), 0));
        socket.set_broadcast(true).unwrap();
        socket.send_to(payload, to).unwrap();
        Outcome::Nothing
    }

    pub(super) fn connect(&self, to: &str) -> io::Result<TcpStream> {
        let client = self.net.guest.connect(to.parse::<SocketAddr>().unwrap())?;
        client.set_nodelay(true).unwrap();
        Ok(client)
    }

    /// Connects, and sends these pieces of a stream.
    pub(super) fn tell(&self, to: &str, pieces: &[&[u8]]) -> Outcome {
        match self.connect(to) {
            Ok(mut client) => write(&mut client, pieces).unwrap_or_else(|| end_of(client)),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Outcome::Refused,
            Err(error) => panic!("connect to {to}: {error}"),
        }
    }

    /// Connects, sends these pieces of a stream, and shuts down the sending side.
    pub(super) fn tell_all(&self, to: &str, pieces: &[&[u8]]) -> Outcome {
        let mut client = self.connect(to).unwrap();
        write(&mut client, pieces).unwrap_or_else(|| {
            let _ = client.shutdown(Shutdown::Write);
            end_of(client)
        })
    }
}

/// Sends pieces. Returns an outcome if the connection ends before all are sent.
pub(super) fn write(client: &mut TcpStream, pieces: &[&[u8]]) -> Option<Outcome> {
    pieces.iter().find_map(|piece| client.write_all(piece).err()).map(|error| of_error(&error))
}

/// How a connection ends.
pub(super) fn end_of(mut client: impl Read) -> Outcome {
    let mut got = Vec::new();
    match client.read_to_end(&mut got) {
        Ok(_) if got.is_empty() => Outcome::Closed,
        Ok(_) if got == ALERT => Outcome::Alert,
        Ok(_) => panic!("the client gets {got:?}"),
        Err(error) => of_error(&error),
    }
}

fn of_error(error: &io::Error) -> Outcome {
    match error.kind() {
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Outcome::Reset,
        // "Administratively prohibited" is EHOSTUNREACH for IPv4, and EACCES for IPv6.
        ErrorKind::HostUnreachable | ErrorKind::PermissionDenied => Outcome::Prohibited,
        _ => panic!("the client gets {error}"),
    }
}

fn of_answer(query: &[u8], answer: &[u8]) -> Outcome {
    assert_eq!((answer[..2].to_vec(), answer[2] & 0x80), (query[..2].to_vec(), 0x80), "{answer:?}");
    match (answer[3] & 0xf, answer[6..8] == [0, 0]) {
        (2, true) => Outcome::Failed,
        (3, true) => Outcome::NoName,
        (4, true) => Outcome::NotImplemented,
        (0, true) => Outcome::NoData,
        (0, false) => Outcome::Answered,
        _ => panic!("the client gets {answer:?}"),
    }
}
