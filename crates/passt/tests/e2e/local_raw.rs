//! Tests of the local services (behaviour §4), with a client that reads raw frames and has no checksum offload.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetFrame, EthernetProtocol, IpAddress, IpProtocol, Ipv4Packet, Ipv6Packet, UdpPacket, UdpRepr,
};
use wire::ethernet::Mac;
use wire::frame::Outgoing;
use wire::segment::complete_checksum;
use wire::{icmp, ndp, udp};
use zerocopy::IntoBytes;

use crate::harness::*;

/// A link-local address that the guest's kernel doesn't have.
const RAW_IP6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x55);
/// All_DHCP_Relay_Agents_and_Servers (RFC 8415 §7.1).
const DHCPV6_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);

/// A datagram to the guest. Its checksum was verified.
struct Answer {
    source: IpAddr,
    destination: IpAddr,
    message: Vec<u8>,
}

/// Sends a datagram. Returns the answer to `client_port`.
fn ask(net: &Net, (source, client_port): (IpAddr, u16), to: (IpAddr, u16), message: &[u8]) -> Answer {
    let raw = Raw::open(net);
    raw.send(&datagram(Mac(net.guest_mac()), (source, client_port), to, message));
    raw.expect("an answer", |frame| answer(frame, (to.1, client_port)))
}

/// A frame of the guest with a UDP datagram.
fn datagram(mac: Mac, from: (IpAddr, u16), to: (IpAddr, u16), message: &[u8]) -> Vec<u8> {
    let outgoing = Outgoing {
        source_mac: mac,
        destination_mac: Mac::BROADCAST,
        source: from.0,
        destination: to.0,
        hop_limit: 64,
        traffic_class: 0,
        flow_label: 0,
    };
    let mut frame = vec![0; outgoing.headroom(udp::HEADER_LEN)];
    frame.extend_from_slice(message);
    let written = outgoing.udp(&mut frame, (from.1, to.1), message.len(), None).unwrap();
    assert!(complete_checksum(&mut frame, &written.offload));
    frame
}

fn answer(frame: &[u8], ports: (u16, u16)) -> Option<Answer> {
    let ethernet = EthernetFrame::new_checked(frame).ok()?;
    let (source, destination, datagram): (IpAddress, IpAddress, _) = match ethernet.ethertype() {
        EthernetProtocol::Ipv4 => {
            let packet = Ipv4Packet::new_checked(ethernet.payload()).ok()?;
            let udp = packet.next_header() == IpProtocol::Udp;
            udp.then_some((packet.src_addr().into(), packet.dst_addr().into(), packet.payload()))?
        }
        EthernetProtocol::Ipv6 => {
            let packet = Ipv6Packet::new_checked(ethernet.payload()).ok()?;
            let udp = packet.next_header() == IpProtocol::Udp;
            udp.then_some((packet.src_addr().into(), packet.dst_addr().into(), packet.payload()))?
        }
        _ => return None,
    };
    let datagram = UdpPacket::new_checked(datagram).ok()?;
    if (datagram.src_port(), datagram.dst_port()) != ports {
        return None;
    }
    assert_ne!(datagram.checksum(), 0);
    let checksums = ChecksumCapabilities::default();
    UdpRepr::parse(&datagram, &source, &destination, &checksums).expect("a complete checksum");
    Some(Answer {
        source: source.into(),
        destination: destination.into(),
        message: datagram.payload().to_vec(),
    })
}

/// A message of a DHCP or BOOTP client up to its options (RFC 2131 §2), from a client at `address`.
fn bootp(address: Ipv4Addr, options: &[u8]) -> Vec<u8> {
    let mut message = vec![0; 236];
    message[..8].copy_from_slice(&[1, 1, 6, 0, 1, 2, 3, 4]);
    message[12..16].copy_from_slice(&address.octets());
    message[28..34].copy_from_slice(&[2, 0, 0, 0, 0, 0x55]);
    message.extend_from_slice(options);
    message.resize(message.len().max(300), 0);
    message
}

const COOKIE: [u8; 4] = [99, 130, 83, 99];

fn discover() -> Vec<u8> {
    bootp(Ipv4Addr::UNSPECIFIED, &[&COOKIE[..], &[53, 1, 1, 255]].concat())
}

/// behaviour §4: a client that reads from a packet socket and verifies checksums itself, such as ConnMan, gets an
/// address.
#[test]
fn dhcp_answers_have_complete_checksums() {
    need!("socat");
    let Some(net) = Net::new() else { return };
    net.pasta(&[]);
    let client = (Ipv4Addr::UNSPECIFIED.into(), 68);
    let offer = ask(&net, client, (Ipv4Addr::BROADCAST.into(), 67), &discover());
    assert_eq!((offer.source, offer.destination), (GATEWAY[0], HOST[0]));
    assert_eq!(offer.message[16..20], [198, 51, 100, 2]);
    let solicit = [1, 0xab, 0xcd, 0xef, 0, 1, 0, 3, 1, 2, 3, 0, 3, 0, 12, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0];
    let advertise = ask(&net, (RAW_IP6.into(), 546), (DHCPV6_SERVERS.into(), 547), &solicit);
    assert_eq!((advertise.destination, advertise.message[0]), (RAW_IP6.into(), 2));
}

/// The checksums are complete over vhost-user, too, although the guest's driver could complete them.
#[test]
fn dhcp_answers_have_no_offload_over_vhost_user() {
    let Some(net) = Net::new() else { return };
    let path = net.path("guest.socket");
    let _passt = net.passt(&["--vhost-user", "--socket", &path]);
    let mut front_end = FrontEnd::new(path.as_ref(), DriverConfig::default());
    let client = (Ipv4Addr::UNSPECIFIED.into(), 68);
    let frame = datagram(Mac(GUEST_MAC), client, (Ipv4Addr::BROADCAST.into(), 67), &discover());
    assert!(front_end.queues[1].send([0; HEADER], &frame));
    let mut offer = None;
    wait_until("an offer", || {
        offer = std::iter::from_fn(|| front_end.queues[0].receive())
            .find(|frame| answer(&frame.bytes, (67, 68)).is_some());
        offer.is_some()
    });
    assert_eq!(offer.unwrap().header[0], 0, "no flags in the virtio-net header");
}

/// RFC 951: a request without the magic cookie of RFC 1048 is answered.
#[test]
fn bootp_without_a_cookie() {
    need!("socat");
    let Some(net) = Net::new() else { return };
    net.pasta(&[]);
    let client = (Ipv4Addr::UNSPECIFIED.into(), 68);
    let request = bootp(Ipv4Addr::UNSPECIFIED, &[]);
    let reply = ask(&net, client, (Ipv4Addr::BROADCAST.into(), 67), &request);
    assert_eq!((reply.destination, reply.message.len()), (HOST[0], 300));
    assert_eq!(
        (&reply.message[..8], &reply.message[16..20]),
        (&[2, 1, 6, 0, 1, 2, 3, 4][..], &[198, 51, 100, 2][..])
    );
    assert_eq!(reply.message[236..246], [99, 130, 83, 99, 1, 4, 255, 255, 255, 0]);
}

/// RFC 2131 §4.3.5: a host that has an address requests other parameters.
#[test]
fn dhcp_inform() {
    need!("socat");
    let Some(net) = Net::new() else { return };
    net.pasta(&["--dhcp-dns"]);
    let inform = bootp(RAW_IP, &[&COOKIE[..], &[53, 1, 8, 55, 2, 6, 51, 255]].concat());
    let ack = ask(&net, (RAW_IP.into(), 68), (GATEWAY[0], 67), &inform);
    assert_eq!((ack.destination, &ack.message[16..20]), (RAW_IP.into(), &[0; 4][..]));
    assert_eq!(ack.message[240..249], [53, 1, 5, 6, 4, 198, 51, 100, 3]);
}

/// RFC 8415 §18.3.9: no prefix is delegated, so rapid commit is not used, and the answer is an Advertise.
#[test]
fn dhcpv6_rapid_commit_without_a_binding() {
    need!("socat");
    let Some(net) = Net::new() else { return };
    net.pasta(&[]);
    let client_id = [0, 1, 0, 3, 1, 2, 3];
    let ia_pd = [0, 25, 0, 12, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0];
    let solicit = [&[1, 0xab, 0xcd, 0xef][..], &client_id, &[0, 14, 0, 0], &ia_pd].concat();
    let answer = ask(&net, (RAW_IP6.into(), 546), (DHCPV6_SERVERS.into(), 547), &solicit);
    assert_eq!(answer.message[0], 2, "an Advertise");
    assert!(!answer.message.windows(4).any(|option| option == [0, 14, 0, 0]), "without rapid commit");
    let no_prefix_avail = |option: &[u8]| option[..2] == [0, 13] && option[4..] == [0, 6];
    assert!(answer.message.windows(6).any(no_prefix_avail), "with the status NoPrefixAvail");
}

/// RFC 4861 §7.2.4: the source of a solicited advertisement is its target.
#[test]
fn neighbour_advertisements_come_from_the_target() {
    need!("socat");
    let Some(net) = Net::new() else { return };
    net.pasta(&[]);
    let raw = Raw::open(&net);
    let IpAddr::V6(target) = PEER[1] else { panic!() };
    let (header, body) = ndp::solicitation(target, Mac(net.guest_mac()));
    let outgoing = Outgoing {
        source_mac: Mac(net.guest_mac()),
        destination_mac: Mac::BROADCAST,
        source: RAW_IP6.into(),
        destination: target.into(),
        hop_limit: 255,
        traffic_class: 0,
        flow_label: 0,
    };
    let mut frame = vec![0; outgoing.headroom(icmp::HEADER_LEN)];
    frame.extend_from_slice(body.as_bytes());
    assert!(outgoing.icmp(&mut frame, header, body.as_bytes().len()).is_some());
    raw.send(&frame);
    let source = raw.expect("a Neighbor Advertisement", |frame| {
        let ethernet = EthernetFrame::new_checked(frame).ok()?;
        let packet = Ipv6Packet::new_checked(ethernet.payload()).ok()?;
        let advertisement = ethernet.ethertype() == EthernetProtocol::Ipv6
            && packet.next_header() == IpProtocol::Icmpv6
            && packet.dst_addr() == RAW_IP6
            && packet.payload()[0] == icmp::v6::NEIGHBOUR_ADVERTISEMENT;
        advertisement.then(|| packet.src_addr())
    });
    assert_eq!(source, target);
}
