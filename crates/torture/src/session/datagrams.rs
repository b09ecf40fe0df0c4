//! Datagrams, pings and DNS questions of the session. A client repeats what gets no answer, as programs do.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketType, ipproto, socket};

use super::flow::{End, PATIENCE};
use crate::net::Place;

/// How often a client sends a request.
const ATTEMPTS: usize = 12;
/// Time until a client repeats a request.
const REPEAT: Duration = Duration::from_millis(400);
/// A question for the address of `torture.example`: the message without its ID.
const QUESTION: &[u8] = b"\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07torture\x07example\x00\x00\x01\x00\x01";
/// The answer's record: a pointer to the name, A, IN, 60 s, 192.0.2.77.
const RECORD: &[u8] = b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04\xc0\x00\x02\x4d";

/// Starts a server that sends every datagram back.
pub(crate) fn echo(place: &Place, at: SocketAddr) -> anyhow::Result<()> {
    let socket = place.run(move || UdpSocket::bind(at))??;
    std::thread::spawn(move || {
        let mut buffer = [0; 65536];
        loop {
            if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let _lost = socket.send_to(&buffer[..length], from);
            }
        }
    });
    Ok(())
}

/// Starts a resolver, over UDP and TCP.
pub(crate) fn resolver(place: &Place, at: SocketAddr) -> anyhow::Result<()> {
    let socket = place.run(move || UdpSocket::bind(at))??;
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        loop {
            if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let _lost = socket.send_to(&answer(&buffer[..length]), from);
            }
        }
    });
    let listener = place.run(move || TcpListener::bind(at))??;
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || -> io::Result<()> {
                stream.set_read_timeout(Some(PATIENCE))?;
                loop {
                    let question = message(&mut stream)?;
                    let answer = answer(&question);
                    stream.write_all(&[&(answer.len() as u16).to_be_bytes()[..], &answer].concat())?;
                }
            });
        }
    });
    Ok(())
}

/// A message after its length (RFC 7766 §8).
fn message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut message)?;
    Ok(message)
}

fn answer(question: &[u8]) -> Vec<u8> {
    let mut answer = question.get(..2 + QUESTION.len()).unwrap_or(question).to_vec();
    if answer.len() >= 12 {
        // A response, recursion available, one answer, nothing else.
        answer[2] |= 0x80;
        answer[3] |= 0x80;
        answer[7] = 1;
        answer[8..12].fill(0);
    }
    [&answer, RECORD].concat()
}

/// Sends datagrams of several sizes from one port, and expects each of them back.
pub(crate) fn exchange(to: SocketAddr) -> End {
    let socket = match UdpSocket::bind((unspecified(to.ip()), 0)) {
        Ok(socket) => socket,
        Err(error) => return End::Ended(error.to_string()),
    };
    for length in [1_usize, 100, 1400, 9000, 1, 2, 3, 4, 5, 6, 7, 8] {
        let request = vec![length as u8; length];
        let (send, is) = (|| socket.send_to(&request, to), |answer: &[u8]| answer == request);
        if let Err(end) = repeat(&socket, send, is) {
            return end;
        }
    }
    End::Whole
}

/// Asks the resolver over UDP.
pub(crate) fn ask(resolver: IpAddr) -> End {
    let Ok(socket) = UdpSocket::bind((unspecified(resolver), 0)) else {
        return End::Ended("no socket".to_owned());
    };
    for id in 1..5_u16 {
        let question = [&id.to_be_bytes()[..], QUESTION].concat();
        let is = |answer: &[u8]| answer.starts_with(&id.to_be_bytes()) && answer.ends_with(RECORD);
        if let Err(end) = repeat(&socket, || socket.send_to(&question, (resolver, 53)), is) {
            return end;
        }
    }
    End::Whole
}

/// Asks the resolver over TCP.
pub(crate) fn ask_by_tcp(resolver: IpAddr) -> End {
    let ask = || -> io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect_timeout(&(resolver, 53).into(), PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let question = [b"\0\x07", QUESTION].concat();
        stream.write_all(&[&(question.len() as u16).to_be_bytes()[..], &question].concat())?;
        message(&mut stream)
    };
    match ask() {
        Ok(answer) if answer.ends_with(RECORD) => End::Whole,
        Ok(_) => End::Corrupt("the answer is wrong".to_owned()),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            End::Hung(error.to_string())
        }
        Err(error) => End::Ended(error.to_string()),
    }
}

/// Pings the peer.
pub(crate) fn ping(to: IpAddr) -> End {
    let Ok(socket) = socket(AddressFamily::INET, SocketType::DGRAM, Some(ipproto::ICMP)) else {
        return End::Ended("no ping socket".to_owned());
    };
    // The kernel's ping sockets work with the calls of UDP sockets.
    let socket = UdpSocket::from(socket);
    for sequence in 1..5_u8 {
        // The kernel writes the checksum and the identifier.
        let request = [8, 0, 0, 0, 0, 0, 0, sequence, b'p', b'i', b'n', b'g'];
        let is = |answer: &[u8]| answer.first() == Some(&0) && answer.ends_with(&request[6..]);
        if let Err(end) = repeat(&socket, || socket.send_to(&request, (to, 0)), is) {
            return end;
        }
    }
    End::Whole
}

fn repeat(
    socket: &UdpSocket,
    send: impl Fn() -> io::Result<usize>,
    is_answer: impl Fn(&[u8]) -> bool,
) -> Result<(), End> {
    let failed = |error: io::Error| End::Ended(error.to_string());
    socket.set_read_timeout(Some(REPEAT)).map_err(failed)?;
    let mut buffer = [0; 65536];
    for _ in 0..ATTEMPTS {
        // An error of an earlier datagram.
        let _reported = send();
        loop {
            match socket.recv_from(&mut buffer) {
                Ok((length, _)) if is_answer(&buffer[..length]) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => {
                    std::thread::sleep(REPEAT);
                    break;
                }
            }
        }
    }
    Err(End::Hung(format!("no answer to {ATTEMPTS} requests")))
}

fn unspecified(like: IpAddr) -> IpAddr {
    if like.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() }
}
