//! Captures the frames that the host sends. `socat` receives them from a packet socket at the peer's end of the link.

use super::{HOST, Net, PEER, port, wait_until};
use rustix::net::{self, AddressFamily, RecvFlags, SocketFlags, SocketType};
use smoltcp::wire::{EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, Ipv6Packet, TcpPacket};
use std::net::SocketAddr;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

const MARK: &[u8] = b"all frames before this one were captured";

/// A running capture.
pub(crate) struct Capture<'a> {
    net: &'a Net,
    frames: Arc<Mutex<Vec<Vec<u8>>>>,
    process: Child,
}

impl<'a> Capture<'a> {
    /// Starts a capture.
    pub(crate) fn start(net: &'a Net) -> Self {
        let (ours, theirs) =
            net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let process = net
            .peer
            .bare_command(&["socat", "-u", "-b", "70000", "INTERFACE:eth0", "STDOUT"])
            .stdin(Stdio::null())
            .stdout(Stdio::from(theirs))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let frames: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
        let kept = frames.clone();
        thread::spawn(move || {
            let mut frame = vec![0; 70_000];
            while let Ok((len @ 1.., _)) = net::recv(&ours, &mut frame[..], RecvFlags::empty()) {
                kept.lock().unwrap().push(frame[..len].to_vec());
            }
        });
        wait_until("the packet socket", || net.peer.sh("cat /proc/net/packet").lines().count() > 1);
        Capture { net, frames, process }
    }

    /// All frames of the host and of the peer until now.
    pub(crate) fn frames(&self) -> Vec<Vec<u8>> {
        let to = self.net.peer.udp((PEER[0], 0));
        let from = self.net.host.udp((HOST[0], 0));
        from.send_to(MARK, (PEER[0], port(&to))).unwrap();
        let position = || self.frames.lock().unwrap().iter().position(|frame| contains(frame, MARK));
        wait_until("the mark in the capture", || position().is_some());
        let end = position().unwrap();
        let mut frames = self.frames.lock().unwrap();
        // The mark is removed, so that the next call waits for a new mark.
        frames.remove(end);
        frames[..end].to_vec()
    }

    /// The payload of all TCP segments to a server, in the order of arrival, including retransmissions.
    pub(crate) fn sent_to(&self, server: impl Into<SocketAddr>) -> Vec<u8> {
        let server = server.into();
        let frames = self.frames();
        frames
            .iter()
            .filter_map(|frame| tcp(frame))
            .filter(|(to, _)| *to == server)
            .flat_map(|(_, payload)| payload)
            .collect()
    }

    /// Whether these bytes are in a frame.
    pub(crate) fn has(&self, bytes: &[u8]) -> bool {
        self.frames().iter().any(|frame| contains(frame, bytes))
    }
}

/// Destination and payload of a TCP segment.
fn tcp(frame: &[u8]) -> Option<(SocketAddr, Vec<u8>)> {
    let ethernet = EthernetFrame::new_checked(frame).ok()?;
    let (ip, protocol, content) = match ethernet.ethertype() {
        EthernetProtocol::Ipv4 => {
            let packet = Ipv4Packet::new_checked(ethernet.payload()).ok()?;
            (packet.dst_addr().into(), packet.next_header(), packet.payload().to_vec())
        }
        EthernetProtocol::Ipv6 => {
            let packet = Ipv6Packet::new_checked(ethernet.payload()).ok()?;
            (packet.dst_addr().into(), packet.next_header(), packet.payload().to_vec())
        }
        _ => return None,
    };
    let segment = TcpPacket::new_checked(&content[..]).ok().filter(|_| protocol == IpProtocol::Tcp)?;
    Some((SocketAddr::new(ip, segment.dst_port()), segment.payload().to_vec()))
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
