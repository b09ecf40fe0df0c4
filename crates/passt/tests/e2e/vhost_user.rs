//! Tests of `passt --vhost-user`, with rust-vmm's front-end in place of QEMU (behaviour §9.4).

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr,
    Icmpv4Packet, Icmpv4Repr, IpProtocol, Ipv4Packet, Ipv4Repr,
};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;

use crate::harness::*;

const GATEWAY4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
pub(crate) const PEER4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 3);
const HOST4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
const OUR_MAC: EthernetAddress = EthernetAddress([0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55]);
const NO_OFFLOAD: [u8; HEADER] = [0; HEADER];

/// Starts a `passt`. Returns it and the path of its socket.
pub(crate) fn passt<'a>(net: &'a Net, args: &[&str]) -> (Daemon<'a>, std::path::PathBuf) {
    let path = net.path("guest.socket");
    let daemon = net.passt(&[&["--vhost-user", "--socket", &path], args].concat());
    (daemon, path.into())
}

fn ethernet(kind: EthernetProtocol, to: EthernetAddress, len: usize) -> (Vec<u8>, usize) {
    let repr = EthernetRepr { src_addr: EthernetAddress(GUEST_MAC), dst_addr: to, ethertype: kind };
    let mut frame = vec![0; repr.buffer_len() + len];
    repr.emit(&mut EthernetFrame::new_unchecked(&mut frame[..]));
    (frame, repr.buffer_len())
}

fn arp_request(target: Ipv4Addr) -> Vec<u8> {
    let arp = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: EthernetAddress(GUEST_MAC),
        source_protocol_addr: HOST4,
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: target,
    };
    let (mut frame, at) = ethernet(EthernetProtocol::Arp, EthernetAddress::BROADCAST, arp.buffer_len());
    arp.emit(&mut ArpPacket::new_unchecked(&mut frame[at..]));
    frame
}

fn is_arp_reply(frame: &[u8], about: Ipv4Addr) -> bool {
    let Ok(ethernet) = EthernetFrame::new_checked(frame) else { return false };
    let Ok(arp) = ArpPacket::new_checked(ethernet.payload()) else { return false };
    ethernet.ethertype() == EthernetProtocol::Arp
        && arp.operation() == ArpOperation::Reply
        && arp.source_protocol_addr() == about.octets()
}

pub(crate) fn echo_request(to: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let icmp = Icmpv4Repr::EchoRequest { ident: 7, seq_no: 1, data: payload };
    let ip = Ipv4Repr {
        src_addr: HOST4,
        dst_addr: to,
        next_header: IpProtocol::Icmp,
        payload_len: icmp.buffer_len(),
        hop_limit: 64,
    };
    let (mut frame, at) = ethernet(EthernetProtocol::Ipv4, OUR_MAC, ip.buffer_len() + icmp.buffer_len());
    let checksums = Default::default();
    let mut packet = Ipv4Packet::new_unchecked(&mut frame[at..]);
    ip.emit(&mut packet, &checksums);
    icmp.emit(&mut Icmpv4Packet::new_unchecked(packet.payload_mut()), &checksums);
    frame
}

/// Whether the frame is the reply to [`echo_request`].
pub(crate) fn is_echo_reply(frame: &[u8], payload: &[u8]) -> bool {
    let Ok(ethernet) = EthernetFrame::new_checked(frame) else { return false };
    let Ok(ip) = Ipv4Packet::new_checked(ethernet.payload()) else { return false };
    let Ok(icmp) = Icmpv4Packet::new_checked(ip.payload()) else { return false };
    ip.next_header() == IpProtocol::Icmp
        && matches!(
            Icmpv4Repr::parse(&icmp, &Default::default()),
            Ok(Icmpv4Repr::EchoReply { ident: 7, seq_no: 1, data }) if data == payload
        )
}

/// Waits for a frame to the guest, on any queue, for which `wanted` is true.
pub(crate) fn expect(front_end: &mut FrontEnd, what: &str, mut wanted: impl FnMut(&Frame) -> bool) -> Frame {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        for queue in front_end.queues.iter_mut().step_by(2) {
            while let Some(frame) = queue.receive() {
                if wanted(&frame) {
                    return frame;
                }
            }
        }
        front_end.queues[0].wait(Duration::from_millis(20));
    }
    panic!("timed out waiting for: {what}");
}

/// Checks that `passt` answers a request on a queue.
fn assert_answers(front_end: &mut FrontEnd, queue: usize) {
    assert!(front_end.queues[queue].send(NO_OFFLOAD, &arp_request(GATEWAY4)));
    expect(front_end, "an answer", |frame| is_arp_reply(&frame.bytes, GATEWAY4));
}

/// Checks that `passt` serves a new front-end.
fn assert_serves(path: &Path) {
    assert_answers(&mut FrontEnd::new(path, DriverConfig::default()), 1);
}

#[test]
fn arp_and_ping_are_answered_r110_r111() {
    let Some(net) = Net::new() else { return };
    let (_daemon, path) = passt(&net, &[]);
    let mut front_end = FrontEnd::new(&path, DriverConfig::default());
    assert_eq!(front_end.frontend.get_queue_num().unwrap(), 16);
    assert_answers(&mut front_end, 1);
    let payload = vec![0x5a; 30_000]; // eight buffers
    front_end.queues[1].send(NO_OFFLOAD, &echo_request(PEER4, &payload));
    let reply = expect(&mut front_end, "an echo reply", |frame| is_echo_reply(&frame.bytes, &payload));
    assert_eq!(reply.header[10], 8);
    // The shortest frame is padded.
    front_end.queues[1].send(NO_OFFLOAD, &echo_request(PEER4, b"x"));
    let reply = expect(&mut front_end, "an echo reply", |frame| is_echo_reply(&frame.bytes, b"x"));
    assert_eq!(reply.bytes.len(), 60);
}

fn tcp_both_ways(driver: DriverConfig, mtu: usize) -> Option<usize> {
    let net = Net::new()?;
    let (_daemon, path) = passt(&net, &["-t", "7777"]);
    let front_end = FrontEnd::new(&path, driver);
    let mut guest = SmolGuest::new(front_end, mtu, address(), IpAddr::V4(GATEWAY4));
    const LEN: usize = 3 << 20;
    let data: Vec<u8> = (0..LEN).map(|i| (i / 251 + i % 253) as u8).collect();

    // Data from the guest.
    let listener = net.peer.listen((PEER4, 5001));
    let sink = std::thread::spawn(move || {
        let mut stream = accept(&listener).0;
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        stream.write_all(b"thanks").unwrap();
        got
    });
    let up = guest.connect((IpAddr::V4(PEER4), 5001));
    let mut sent = 0;
    guest.run("upload", up, |socket| {
        if socket.can_send() {
            sent += socket.send_slice(&data[sent..]).unwrap();
        }
        if sent == LEN {
            socket.close();
        }
        sent == LEN
    });
    let mut thanks = Vec::new();
    guest.run("the peer's end", up, |socket| {
        let _ = socket.recv(|bytes| {
            thanks.extend_from_slice(bytes);
            (bytes.len(), ())
        });
        thanks.len() == 6 && !socket.may_recv()
    });
    assert_eq!(thanks, b"thanks");
    assert!(sink.join().unwrap() == data);

    // Data to the guest.
    let down = guest.listen(7777);
    let mut stream = net.peer.connect((HOST4, 7777)).unwrap();
    let expected = data.clone();
    let source = std::thread::spawn(move || stream.write_all(&data).unwrap());
    let mut got = Vec::new();
    guest.run("download", down, |socket| {
        let _ = socket.recv(|bytes| {
            got.extend_from_slice(bytes);
            (bytes.len(), ())
        });
        got.len() == LEN
    });
    source.join().unwrap();
    assert!(got == expected);
    Some(guest.port.super_frames)
}

#[test]
fn tcp_works_with_offloads() {
    let Some(super_frames) = tcp_both_ways(DriverConfig::default(), 1500) else { return };
    assert!(super_frames > 0);
}

/// Each frame has one buffer and complete checksums.
#[test]
fn tcp_works_without_offloads() {
    let driver =
        DriverConfig { features: VERSION_1 | PROTOCOL_FEATURES, buffer: 1600, ..DriverConfig::default() };
    let Some(super_frames) = tcp_both_ways(driver, 1500) else { return };
    assert_eq!(super_frames, 0);
}

/// Rings are enabled from the start, notifications use flags, and buffers are small.
#[test]
fn tcp_works_without_protocol_features() {
    let features = VERSION_1 | MRG_RXBUF | GUEST_CSUM;
    tcp_both_ways(DriverConfig { features, buffer: 600, entries: 128, ..DriverConfig::default() }, 9000);
}

/// The log reports a front-end with more than 16 pairs of queues. It does not matter whether the front-end requests the
/// maximum, like QEMU. The next front-end is served.
#[test]
fn too_many_queues_are_reported() {
    let Some(net) = Net::new() else { return };
    let log = net.path("log");
    let (_daemon, path) = passt(&net, &["--log-file", &log]);
    let reported = |what: &str| {
        wait_until(what, || std::fs::read_to_string(&log).is_ok_and(|log| log.contains(what)));
    };
    let mut asks = FrontEnd::connect(&path, DriverConfig::default());
    asks.negotiate(DriverConfig::default().features);
    assert_eq!(asks.frontend.get_queue_num().unwrap(), 16);
    drop(asks);
    reported("There are 16 pairs of queues: if it asks for more, lower that");

    let driver = DriverConfig { pairs: 17, ..DriverConfig::default() };
    let mut takes = FrontEnd::connect(&path, driver);
    takes.negotiate(driver.features);
    takes.share_memory();
    takes.frontend.set_vring_num(31, 256).unwrap();
    takes.frontend.set_vring_num(32, 256).unwrap_err();
    reported("there is no queue 32, as there are 16 pairs of queues at most");
    drop(takes);
    assert_serves(&path);
}

#[test]
fn several_queue_pairs_work() {
    let Some(net) = Net::new() else { return };
    let (_daemon, path) = passt(&net, &[]);
    let driver = DriverConfig {
        pairs: 4,
        features: DriverConfig::default().features | 1 << 22,
        ..DriverConfig::default()
    };
    let mut front_end = FrontEnd::new(&path, driver);
    for queue in [1, 3, 5, 7] {
        assert_answers(&mut front_end, queue);
    }
    // The front-end disables the other pairs, as for a guest that uses only one pair.
    for queue in 2..8 {
        front_end.frontend.set_vring_enable(queue, false).unwrap();
    }
    front_end.queues[3].send(NO_OFFLOAD, &arp_request(PEER4)); // discarded
    wait_until("the queue is empty", || front_end.queues[3].take_used().is_some());
    front_end.queues[1].send(NO_OFFLOAD, &arp_request(GATEWAY4));
    let reply = expect(&mut front_end, "an answer", |frame| frame.bytes[12..14] == [8, 6]);
    assert!(is_arp_reply(&reply.bytes, GATEWAY4));
}

#[test]
fn a_front_end_can_reconnect_r110() {
    let Some(net) = Net::new() else { return };
    let (daemon, path) = passt(&net, &[]);
    let before = daemon.descriptors();
    for _ in 0..3 {
        let mut front_end = FrontEnd::new(&path, DriverConfig::default());
        assert_answers(&mut front_end, 1);
        // In the meantime, another front-end is refused.
        let mut other = UnixStream::connect(&path).unwrap();
        assert_eq!(other.read(&mut [0; 1]).unwrap_or(0), 0);
        // The guest is reset.
        for _ in 0..2 {
            assert!(front_end.stop_queue(1) > 0);
            front_end.stop_queue(0);
            front_end.start();
            assert_answers(&mut front_end, 1);
        }
        // The memory table is sent again, as after memory hotplug.
        front_end.share_memory();
        assert_answers(&mut front_end, 1);
    }
    wait_until("nothing left of it", || daemon.descriptors() == before);
}

#[test]
fn one_off_ends_with_the_front_end() {
    let Some(net) = Net::new() else { return };
    let (daemon, path) = passt(&net, &["--one-off"]);
    assert_serves(&path);
    wait_until("the end", || !daemon.runs());
}

#[test]
fn a_broken_ring_is_reported_and_works_after_a_reset() {
    let Some(net) = Net::new() else { return };
    let (daemon, path) = passt(&net, &[]);
    let mut front_end = FrontEnd::new(&path, DriverConfig::default());
    let breaks: [&dyn Fn(&mut Queue); 9] = [
        &|queue| queue.describe(0, GUEST, 64, NEXT, 0),      // a loop
        &|queue| queue.describe(0, GUEST - 1, 64, 0, 0),     // before the memory
        &|queue| queue.describe(0, u64::MAX - 10, 64, 0, 0), // far after the memory
        &|queue| queue.describe(0, GUEST, u32::MAX, 0, 0),
        &|queue| queue.describe(0, GUEST, 0, 0, 0),      // empty
        &|queue| queue.describe(0, GUEST, 64, WRITE, 0), // the wrong direction
        &|queue| queue.describe(0, GUEST, 64, NEXT, 0xffff),
        &|queue| queue.describe(0, u64::MAX - 10, 1 << 20, INDIRECT, 0),
        &|queue| queue.describe(0, GUEST, 7, INDIRECT, 0),
    ];
    for (number, break_it) in breaks.iter().enumerate() {
        assert_answers(&mut front_end, 1);
        let queue = &mut front_end.queues[1];
        break_it(queue);
        queue.offer(0);
        queue.kick.write(1).unwrap();
        assert!(wait_for(&queue.error, PATIENCE), "{number}: not reported");
        queue.error.read().unwrap();
        front_end.stop_queue(1);
        front_end.start_queue(1);
    }
    assert_answers(&mut front_end, 1);
    // On the other queue, an index is too far ahead.
    front_end.queues[0].set_available(0x7fff);
    front_end.queues[1].send(NO_OFFLOAD, &arp_request(GATEWAY4));
    assert!(wait_for(&front_end.queues[0].error, PATIENCE));
    front_end.stop_queue(0);
    front_end.start_queue(0);
    assert_answers(&mut front_end, 1);
    assert!(daemon.runs());
}

#[test]
fn many_kicks_do_no_harm() {
    let Some(net) = Net::new() else { return };
    let (_daemon, path) = passt(&net, &[]);
    let mut front_end = FrontEnd::new(&path, DriverConfig::default());
    for _ in 0..100_000 {
        front_end.queues[0].kick.write(1).unwrap();
        front_end.queues[1].kick.write(1).unwrap();
    }
    assert_answers(&mut front_end, 1);
}

/// A front-end that shortens a file under the memory that it shares ends only its own session.
#[test]
fn shortened_memory_ends_only_the_session() {
    let Some(net) = Net::new() else { return };
    let log_file = net.path("passt.log");
    let (daemon, path) = passt(&net, &["--log-file", &log_file]);
    let reports = || std::fs::read_to_string(&log_file).unwrap().matches("has shortened a file").count();
    for (number, len) in [0, 4096].into_iter().enumerate() {
        let mut front_end = FrontEnd::new(&path, DriverConfig::default());
        assert_answers(&mut front_end, 1);
        front_end.memory.file.set_len(len).unwrap();
        for queue in &front_end.queues {
            queue.kick.write(1).unwrap();
        }
        wait_until("the report", || reports() > number);
        drop(front_end);
        assert_serves(&path);
    }
    // The log of written pages.
    let mut front_end = FrontEnd::new(&path, DriverConfig::default());
    let log = tempfile::tempfile().unwrap();
    log.set_len(4096).unwrap();
    front_end.log_to(&log, DriverConfig::default().features);
    log.set_len(0).unwrap();
    assert!(front_end.queues[1].send(NO_OFFLOAD, &arp_request(GATEWAY4)));
    wait_until("the report", || reports() > 2);
    drop(front_end);
    assert_serves(&path);
    assert!(daemon.runs());
}

/// The guest changes rings, descriptors and buffers while the back-end reads them, and kicks without end.
#[test]
fn rings_that_change_while_they_are_read_do_no_harm() {
    let Some(net) = Net::new() else { return };
    let (daemon, path) = passt(&net, &[]);
    let mut front_end = FrontEnd::new(&path, DriverConfig::default());
    assert_answers(&mut front_end, 1);
    let (memory, kick) = (front_end.memory.clone(), front_end.queues[1].kick.try_clone().unwrap());
    let kicks = std::thread::spawn(move || (0..50_000).for_each(|_| kick.write(1).unwrap()));
    let mut random: u32 = 1;
    for _ in 0..3_000_000 {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        // The rings of both queues, and the first buffers.
        let at = 2 * ((random >> 8) as usize % 0x3_0000);
        memory.word(at).store((random >> 13) as u16 % 300, Ordering::Relaxed);
    }
    kicks.join().unwrap();
    drop(front_end);
    assert!(daemon.runs());
    assert_serves(&path);
}

#[test]
fn written_pages_are_logged() {
    let Some(net) = Net::new() else { return };
    let (_daemon, path) = passt(&net, &[]);
    let mut front_end = FrontEnd::new(&path, DriverConfig::default());
    let log = tempfile::tempfile().unwrap();
    log.set_len(4096).unwrap();
    front_end.log_to(&log, DriverConfig::default().features);
    assert_answers(&mut front_end, 1);
    let mut bits = vec![0; 4096];
    log.read_exact_at(&mut bits, 0).unwrap();
    let page = |address: u64| bits[(address / 4096 / 8) as usize] >> (address / 4096 % 8) & 1 == 1;
    let logged = |queue: &Queue| (0..256).any(|index| page(GUEST + queue.buffer_at(index) as u64));
    assert!(logged(&front_end.queues[0]));
    assert!(!logged(&front_end.queues[1]));
}

/// The messages are malformed, unknown, or have values out of range.
#[test]
fn an_invalid_message_ends_the_connection() {
    let Some(net) = Net::new() else { return };
    let (daemon, path) = passt(&net, &[]);
    let message = |request: u32, flags: u32, body: &[u8]| {
        let mut bytes: Vec<u8> = request.to_ne_bytes().into();
        bytes.extend(flags.to_ne_bytes());
        bytes.extend((body.len() as u32).to_ne_bytes());
        bytes.extend(body);
        bytes
    };
    let state = |index: u32, number: u32| [index.to_ne_bytes(), number.to_ne_bytes()].concat();
    let mut oversize = message(1, 1, &[]);
    oversize[8..].copy_from_slice(&u32::MAX.to_ne_bytes());
    for bytes in [
        message(24, 1, &state(0, 0)), // GET_CONFIG, which was never offered
        message(4711, 1, &[]),        // unknown
        message(1, 0, &[]),           // no version
        message(1, 5, &[]),           // a reply
        oversize,
        message(8, 1, &state(99, 256)), // no such queue
        message(8, 1, &state(0, 255)),  // not a power of two
        message(8, 1, &state(0, 1 << 16)),
        message(11, 1, &state(32, 0)),
        message(2, 1, &u64::MAX.to_ne_bytes()), // features that were never offered
        message(2, 1, &0_u64.to_ne_bytes()),    // a driver from before virtio 1.0
        message(5, 1, &[1, 0, 0, 0, 0, 0, 0, 0]), // a table without its entries
        message(12, 1, &0_u64.to_ne_bytes()),   // a kick without a descriptor
        message(6, 1, &[0xff; 16]),
        message(42, 1, &[0xff; 8]),
        vec![1; 4096],
    ] {
        let mut socket = UnixStream::connect(&path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.write_all(&bytes).unwrap();
        let end = socket.read_to_end(&mut Vec::new());
        assert!(end.is_ok() || end.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset));
    }
    // An incomplete message does not block others.
    let mut socket = UnixStream::connect(&path).unwrap();
    socket.write_all(&message(1, 1, &[])[..7]).unwrap();
    assert!(daemon.runs());
    socket.shutdown(std::net::Shutdown::Both).unwrap();
    // A front-end that reads no replies does not block others either.
    let mut deaf = UnixStream::connect(&path).unwrap();
    deaf.set_write_timeout(Some(PATIENCE)).unwrap();
    let request = message(1, 1, &[]);
    let end = std::iter::repeat_with(|| deaf.write_all(&request)).find_map(Result::err).unwrap();
    let closed = [std::io::ErrorKind::BrokenPipe, std::io::ErrorKind::ConnectionReset];
    assert!(closed.contains(&end.kind()), "{end}");
    assert_serves(&path);
    assert!(daemon.runs());
}

/// The request is refused with a reply, and the connection stays open.
#[test]
fn a_failed_request_with_need_reply_is_answered() {
    let Some(net) = Net::new() else { return };
    let (_daemon, path) = passt(&net, &[]);
    let mut front_end = FrontEnd::new(&path, DriverConfig::default());
    assert!(front_end.frontend.set_vring_num(1, 8).is_err()); // the ring is in use
    assert!(front_end.frontend.set_vring_base(0, 3).is_err());
    assert_answers(&mut front_end, 1);
}
