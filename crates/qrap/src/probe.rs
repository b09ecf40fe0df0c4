//! Finds a passt that has no client yet.

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
use wire::{arp, icmp, ndp};
use zerocopy::IntoBytes;
use zerocopy::big_endian::U16;

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_millis(500);
/// How often a passt is asked again that has a client, which may be about to leave.
const ATTEMPTS: usize = 50;
/// The time between.
const PAUSE: Duration = Duration::from_millis(50);

/// Our addresses while we ask. No guest's.
const MAC: Mac = Mac([0x02, 0, 0, 0, 0, 0]);
const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0xff, 0xfe00, 0);
/// Addresses that are asked for. Nobody has them, which is no matter: all are answered for.
const DUMMY4: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);
const DUMMY6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0xffff);

/// A connection to the first passt that takes one and answers, at one of the paths that it chooses by itself.
pub(super) fn find() -> anyhow::Result<UnixStream> {
    for number in DEFAULT_SOCKETS {
        if let Some(socket) = ask(Path::new(&default_socket(number).to_string())) {
            return Ok(socket);
        }
    }
    bail!(
        "no passt without a client answers at /tmp/passt_1.socket, /tmp/passt_2.socket and on: start passt first"
    );
}

fn ask(path: &Path) -> Option<UnixStream> {
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            sleep(PAUSE);
        }
        let socket = UnixStream::connect(path).ok()?;
        match answers(&socket) {
            Ok(()) => return Some(socket),
            // Silent: no passt, or nothing that ends soon.
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                return None;
            }
            Err(_) => {}
        }
    }
    None
}

/// Asks by ARP and by Neighbour Discovery, as either may be off; whatever comes back is an answer. A second one stays for
/// the guest to ignore.
fn answers(mut socket: &UnixStream) -> io::Result<()> {
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
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
    let [.., a, b, c] = DUMMY6.octets();
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]));
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
    fn both_questions_are_understood() {
        let request = arp_request();
        assert!(matches!(parse(&request).unwrap().body, Body::Arp(packet) if packet.is_ipv4_over_ethernet()));
        let solicitation = neighbour_solicitation().unwrap();
        let Body::Ip(packet) = parse(&solicitation).unwrap().body else { panic!() };
        let Transport::Icmp(message) = packet.transport else { panic!() };
        assert_eq!(ndp::solicited_target(&message), Some(DUMMY6));
    }

    /// One that is busy at first, one that says nothing, one that is not there.
    #[test]
    fn who_answers_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        assert!(ask(&path("nobody")).is_none());

        let _silent = UnixListener::bind(path("silent")).unwrap();
        assert!(ask(&path("silent")).is_none());

        let busy = UnixListener::bind(path("busy")).unwrap();
        let server = thread::spawn(move || {
            drop(busy.accept().unwrap());
            drop(busy.accept().unwrap());
            let (mut client, _) = busy.accept().unwrap();
            let frame = arp_request();
            client.write_all(&[&prefix(frame.len())[..], &frame].concat()).unwrap();
            client
        });
        assert!(ask(&path("busy")).is_some());
        drop(server.join().unwrap());
    }
}
