//! Single Ethernet frames on the guest's interface, for tests with frames that no kernel would send.
//!
//! `socat` owns the packet socket. Its standard input and output are a SEQPACKET socket, which keeps the bounds of
//! frames.

use super::net::Net;
use super::wait_until;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr,
    IpProtocol, Ipv4Packet, Ipv4Repr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber,
};
use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// The program's default MAC address (behaviour §2.2, `-M`).
const OUR_MAC: EthernetAddress = EthernetAddress([0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55]);

/// An address on the guest's network that its kernel doesn't have, so that the kernel does not answer.
pub(crate) const RAW_IP: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 55);

/// The open interface.
pub(crate) struct Raw {
    socket: Option<OwnedFd>,
    process: Child,
    mac: EthernetAddress,
    /// The last byte of the address for the next [`Raw::flush`].
    flushed: Cell<u8>,
}

/// The parts of a TCP segment that tests check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) src_port: u16,
    pub(crate) dst_port: u16,
    pub(crate) control: TcpControl,
    pub(crate) seq: u32,
    pub(crate) ack: Option<u32>,
    pub(crate) payload: Vec<u8>,
}

impl Raw {
    /// Opens `eth0` of the guest.
    pub(crate) fn open(net: &Net) -> Self {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) =
            net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        sockopt::set_socket_timeout(&ours, Timeout::Recv, Some(Duration::from_secs(1))).unwrap();
        let process = net
            .guest
            .bare_command(&["socat", "-b", "70000", "STDIO", "INTERFACE:eth0"])
            .stdin(Stdio::from(theirs.try_clone().unwrap()))
            .stdout(Stdio::from(theirs))
            .stderr(Stdio::null()) // would report frames that arrive after the end of the test
            .spawn()
            .unwrap();
        let raw = Raw {
            socket: Some(ours),
            process,
            mac: EthernetAddress(net.guest_mac()),
            flushed: Cell::new(150),
        };
        wait_until("the packet socket", || net.guest.sh("cat /proc/net/packet").lines().count() > 1);
        raw
    }

    /// Sends one frame unchanged.
    pub(crate) fn send(&self, frame: &[u8]) {
        net::send(self.socket.as_ref().unwrap(), frame, SendFlags::empty()).unwrap();
    }

    /// Waits for a frame for which `wanted` returns a result. Returns this result.
    pub(crate) fn expect<T>(&self, what: &str, mut wanted: impl FnMut(&[u8]) -> Option<T>) -> T {
        let end = Instant::now() + super::PATIENCE;
        let mut frame = vec![0; 70000];
        while Instant::now() < end {
            if let Ok((n, _)) = net::recv(self.socket.as_ref().unwrap(), &mut frame[..], RecvFlags::empty())
                && let Some(found) = wanted(&frame[..n])
            {
                return found;
            }
        }
        panic!("timed out waiting for {what}");
    }

    /// A frame with an IP packet.
    pub(crate) fn frame(&self, packet: &[u8]) -> Vec<u8> {
        let ethertype = if packet[0] >> 4 == 4 { EthernetProtocol::Ipv4 } else { EthernetProtocol::Ipv6 };
        let ethernet = EthernetRepr { src_addr: self.mac, dst_addr: OUR_MAC, ethertype };
        let mut frame = vec![0; ethernet.buffer_len()];
        ethernet.emit(&mut EthernetFrame::new_unchecked(&mut frame[..]));
        frame.extend(packet);
        frame
    }

    /// Waits until all frames that were sent before have been processed.
    pub(crate) fn flush(&self) {
        let target = Ipv4Addr::new(198, 51, 100, self.flushed.get());
        self.flushed.set(target.octets()[3] + 1);
        self.send(&self.probe_frame(target));
        while self.expect_arp_reply() != target {}
    }

    /// An ARP probe for an address (RFC 5227).
    pub(crate) fn probe_frame(&self, target: Ipv4Addr) -> Vec<u8> {
        let arp = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Request,
            source_hardware_addr: self.mac,
            source_protocol_addr: Ipv4Addr::UNSPECIFIED,
            target_hardware_addr: EthernetAddress([0; 6]),
            target_protocol_addr: target,
        };
        let ethernet = EthernetRepr {
            src_addr: self.mac,
            dst_addr: EthernetAddress::BROADCAST,
            ethertype: EthernetProtocol::Arp,
        };
        let mut frame = vec![0; 60];
        ethernet.emit(&mut EthernetFrame::new_unchecked(&mut frame[..]));
        arp.emit(&mut ArpPacket::new_unchecked(&mut frame[ethernet.buffer_len()..]));
        frame
    }

    /// Waits for an ARP reply. Returns its sender's protocol address.
    pub(crate) fn expect_arp_reply(&self) -> Ipv4Addr {
        self.expect("an ARP reply", |frame| {
            let ethernet = EthernetFrame::new_checked(frame).ok()?;
            let arp = ArpPacket::new_checked(ethernet.payload()).ok()?;
            match (ethernet.ethertype(), ArpRepr::parse(&arp)) {
                (
                    EthernetProtocol::Arp,
                    Ok(ArpRepr::EthernetIpv4 {
                        operation: ArpOperation::Reply, source_protocol_addr, ..
                    }),
                ) => Some(source_protocol_addr),
                _ => None,
            }
        })
    }

    /// A frame with an IPv4 segment from [`RAW_IP`], and `padding` bytes after the packet.
    pub(crate) fn tcp_frame(&self, to: IpAddr, segment: &Segment, padding: usize) -> Vec<u8> {
        let IpAddr::V4(to) = to else { panic!("IPv4 only") };
        let tcp = TcpRepr {
            src_port: segment.src_port,
            dst_port: segment.dst_port,
            control: segment.control,
            seq_number: TcpSeqNumber(segment.seq as i32),
            ack_number: segment.ack.map(|ack| TcpSeqNumber(ack as i32)),
            window_len: 65535,
            window_scale: None,
            max_seg_size: (segment.control == TcpControl::Syn).then_some(1460),
            sack_permitted: false,
            sack_ranges: [None; 3],
            timestamp: None,
            payload: &segment.payload,
        };
        let ip = Ipv4Repr {
            src_addr: RAW_IP,
            dst_addr: to,
            next_header: IpProtocol::Tcp,
            payload_len: tcp.buffer_len(),
            hop_limit: 64,
        };
        let ethernet =
            EthernetRepr { src_addr: self.mac, dst_addr: OUR_MAC, ethertype: EthernetProtocol::Ipv4 };
        let checksums = ChecksumCapabilities::default();
        let mut frame = vec![0; ethernet.buffer_len() + ip.buffer_len() + tcp.buffer_len() + padding];
        ethernet.emit(&mut EthernetFrame::new_unchecked(&mut frame[..]));
        let mut packet = Ipv4Packet::new_unchecked(&mut frame[ethernet.buffer_len()..]);
        ip.emit(&mut packet, &checksums);
        let mut inner = TcpPacket::new_unchecked(packet.payload_mut());
        tcp.emit(&mut inner, &ip.src_addr.into(), &ip.dst_addr.into(), &checksums);
        frame
    }

    pub(crate) fn send_tcp(&self, to: IpAddr, segment: &Segment) {
        self.send(&self.tcp_frame(to, segment, 0));
    }

    /// Waits for a segment to [`RAW_IP`] for which `wanted` is true.
    pub(crate) fn expect_tcp(&self, what: &str, mut wanted: impl FnMut(&Segment) -> bool) -> Segment {
        self.expect(what, |frame| parse_tcp(frame).filter(|segment| wanted(segment)))
    }
}

/// Splits an IPv4 frame into fragments with `room` bytes of payload each.
pub(crate) fn fragments_of(frame: &[u8], room: usize) -> Vec<Vec<u8>> {
    let (headers, upper) = frame.split_at(34);
    let cut = upper.chunks(room).zip((0..).step_by(room)).map(|(chunk, offset)| {
        let mut fragment = [headers, chunk].concat();
        let mut packet = Ipv4Packet::new_unchecked(&mut fragment[14..]);
        packet.set_total_len(20 + chunk.len() as u16);
        packet.set_ident(7);
        packet.set_dont_frag(false);
        packet.set_frag_offset(offset);
        packet.set_more_frags(usize::from(offset) + room < upper.len());
        packet.fill_checksum();
        fragment
    });
    cut.collect()
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.socket = None;
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The TCP segment to [`RAW_IP`] in a frame. The checksum is not verified: on the guest's interface, it may be
/// incomplete (checksum offload).
fn parse_tcp(frame: &[u8]) -> Option<Segment> {
    let ethernet = EthernetFrame::new_checked(frame).ok()?;
    if ethernet.ethertype() != EthernetProtocol::Ipv4 {
        return None;
    }
    let ip = Ipv4Packet::new_checked(ethernet.payload()).ok()?;
    if ip.dst_addr() != RAW_IP || ip.next_header() != IpProtocol::Tcp {
        return None;
    }
    let tcp = TcpPacket::new_checked(ip.payload()).ok()?;
    let control = match (tcp.syn(), tcp.fin(), tcp.rst(), tcp.psh()) {
        (true, ..) => TcpControl::Syn,
        (_, true, ..) => TcpControl::Fin,
        (.., true, _) => TcpControl::Rst,
        (.., true) => TcpControl::Psh,
        _ => TcpControl::None,
    };
    Some(Segment {
        src_port: tcp.src_port(),
        dst_port: tcp.dst_port(),
        control,
        seq: tcp.seq_number().0 as u32,
        ack: tcp.ack().then(|| tcp.ack_number().0 as u32),
        payload: tcp.payload().to_vec(),
    })
}
