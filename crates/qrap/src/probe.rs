//! Finds a passt that has no client.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::bail;
use wire::ethernet::{self, Mac, ethertype};
use wire::frame::Outgoing;
use wire::stream::{DEFAULT_SOCKETS, MAX_FRAME_LEN, PREFIX_LEN, default_socket, prefix};
use wire::{arp, icmp, ipv6, ndp};
use zerocopy::IntoBytes;
use zerocopy::big_endian::U16;

/// How long to wait for an answer to a probe.
const TIMEOUT: Duration = Duration::from_millis(500);
/// How often to connect to a passt that has a client. The client may be about to disconnect.
const ATTEMPTS: usize = 50;
/// Time between attempts.
const PAUSE: Duration = Duration::from_millis(50);

/// Source addresses of the probes. No guest has them.
const MAC: Mac = Mac([0x02, 0, 0, 0, 0, 0]);
const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0xff, 0xfe00, 0);
/// Target addresses of the probes. No host has them: passt answers for all addresses.
const DUMMY4: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);
const DUMMY6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0xffff);

/// Connects to the first default path at which a passt accepts the connection and answers.
pub(super) fn find() -> anyhow::Result<UnixStream> {
    for number in DEFAULT_SOCKETS {
        if let Some(socket) = probe(Path::new(&default_socket(number).to_string())) {
            return Ok(socket);
        }
    }
    bail!(
        "no passt without a client answers at /tmp/passt_1.socket, /tmp/passt_2.socket and so on: start passt first"
    );
}

/// Connects to the passt at `path`, and tries again while that passt has another client. None if nothing answers.
fn probe(path: &Path) -> Option<UnixStream> {
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            sleep(PAUSE);
        }
        let socket = UnixStream::connect(path).ok()?;
        match await_answer(&socket) {
            Ok(()) => return Some(socket),
            // No answer in time: not a passt.
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                return None;
            }
            Err(_) => {}
        }
    }
    None
}

/// Sends an ARP request and a neighbour solicitation, since IPv4 or IPv6 may be disabled, and waits for any frame. If
/// both are answered, the guest receives the second answer and ignores it.
fn await_answer(mut socket: &UnixStream) -> io::Result<()> {
    socket.set_read_timeout(Some(TIMEOUT))?;
    socket.set_write_timeout(Some(TIMEOUT))?;
    for question in [Some(arp_request()), neighbour_solicitation()].into_iter().flatten() {
        socket.write_all(&prefix(question.len()))?;
        socket.write_all(&question)?;
    }
    let mut len = [0; PREFIX_LEN];
    socket.read_exact(&mut len)?;
    let mut frame = vec![0; (u32::from_be_bytes(len) as usize).min(MAX_FRAME_LEN)];
    socket.read_exact(&mut frame)?;
    socket.set_read_timeout(None)?;
    socket.set_write_timeout(None)
}

fn arp_request() -> Vec<u8> {
    let header =
        ethernet::Header { destination: Mac::BROADCAST, source: MAC, ethertype: U16::new(ethertype::ARP) };
    let unknown = (Mac([0; 6]), DUMMY4);
    let packet = arp::Packet::new(arp::REQUEST, (MAC, Ipv4Addr::UNSPECIFIED), unknown);
    let mut frame = [header.as_bytes(), packet.as_bytes()].concat();
    frame.resize(ethernet::MIN_FRAME_LEN, 0);
    frame
}

fn neighbour_solicitation() -> Option<Vec<u8>> {
    let group = ipv6::solicited_node(DUMMY6);
    let outgoing = Outgoing {
        source_mac: MAC,
        destination_mac: Mac::of_multicast(IpAddr::V6(group))?,
        source: LINK_LOCAL.into(),
        destination: group.into(),
        hop_limit: ndp::HOP_LIMIT,
        traffic_class: 0,
        flow_label: 0,
    };
    let (header, body) = ndp::solicitation(DUMMY6, MAC);
    let (body, at) = (body.as_bytes(), outgoing.headroom(icmp::HEADER_LEN));
    let mut frame = vec![0; at + body.len()];
    frame.get_mut(at..)?.copy_from_slice(body);
    let written = outgoing.icmp(&mut frame, header, body.len())?;
    frame.truncate(written.len);
    Some(frame)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use wire::frame::{Body, Transport, parse};

    use super::*;

    #[test]
    fn probes_are_valid_frames() {
        let request = arp_request();
        assert!(matches!(parse(&request).unwrap().body, Body::Arp(packet) if packet.is_ipv4_over_ethernet()));
        let solicitation = neighbour_solicitation().unwrap();
        let Body::Ip(packet) = parse(&solicitation).unwrap().body else { panic!() };
        let Transport::Icmp(message) = packet.transport else { panic!() };
        assert_eq!(ndp::neighbour_target(&message), Some(DUMMY6));
    }

    /// Three cases: a passt that is busy at first, a server that does not answer, and no server.
    #[test]
    fn a_passt_that_answers_is_used() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        assert!(probe(&path("missing")).is_none());

        let _silent = UnixListener::bind(path("silent")).unwrap();
        assert!(probe(&path("silent")).is_none());

        let busy = UnixListener::bind(path("busy")).unwrap();
        let server = thread::spawn(move || {
            drop(busy.accept().unwrap());
            drop(busy.accept().unwrap());
            let (mut client, _) = busy.accept().unwrap();
            let frame = arp_request();
            client.write_all(&[&prefix(frame.len())[..], &frame].concat()).unwrap();
            client
        });
        assert!(probe(&path("busy")).is_some());
        drop(server.join().unwrap());
    }
}
