//! Tests of bulk transfers over TCP. They check every byte of 256 MiB, with a large and a small MTU, in both
//! directions, and with readers that are slower than the writer (behaviour §6.5, §6.6).

use crate::harness::*;
use rustix::net::sockopt;
use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

const LEN: u64 = 256 << 20;

/// Opens a connection: an outbound one over IPv4, or an inbound one (`-t`) over IPv6. Returns the guest's end and the
/// other end.
fn connection(net: &Net, inbound: bool) -> (TcpStream, TcpStream) {
    if inbound {
        let listener = net.guest.listen((any(HOST[1]), 7001));
        let outside = net.peer.connect((HOST[1], 7001)).unwrap();
        (accept(&listener).0, outside)
    } else {
        let listener = net.peer.listen((PEER[0], 7000));
        let guest = net.guest.connect((PEER[0], 7000)).unwrap();
        (guest, accept(&listener).0)
    }
}

fn start(mtu: u32) -> Option<Net> {
    let net = Net::with_mtu(mtu)?;
    net.pasta(&["--mtu", &mtu.to_string(), "-t", "7001"]);
    Some(net)
}

fn transfer(from: &TcpStream, to: &TcpStream, len: u64) {
    thread::scope(|scope| {
        scope.spawn(|| {
            send(from, 1, len);
            from.shutdown(Shutdown::Write).unwrap();
        });
        receive_all(to, 1, len);
    });
}

fn upload(mtu: u32) {
    let Some(net) = start(mtu) else { return };
    let (guest, outside) = connection(&net, false);
    transfer(&guest, &outside, LEN);
}

fn download(mtu: u32) {
    let Some(net) = start(mtu) else { return };
    let (guest, outside) = connection(&net, true);
    transfer(&outside, &guest, LEN);
}

#[test]
fn an_upload_is_complete_mtu_65520() {
    upload(65520);
}

#[test]
fn an_upload_is_complete_mtu_1500() {
    upload(1500);
}

#[test]
fn a_download_is_complete_mtu_65520() {
    download(65520);
}

#[test]
fn a_download_is_complete_mtu_1500() {
    download(1500);
}

/// Transfers data in both directions at once, on an outbound and on an inbound connection.
fn full_duplex(mtu: u32) {
    let Some(net) = start(mtu) else { return };
    for inbound in [false, true] {
        let (guest, outside) = connection(&net, inbound);
        thread::scope(|scope| {
            scope.spawn(|| transfer(&guest, &outside, LEN / 4));
            transfer(&outside, &guest, LEN / 4);
        });
    }
}

#[test]
fn a_full_duplex_transfer_is_complete_mtu_65520() {
    full_duplex(65520);
}

#[test]
fn a_full_duplex_transfer_is_complete_mtu_1500() {
    full_duplex(1500);
}

/// Several connections share the link.
#[test]
fn parallel_transfers_are_complete() {
    let Some(net) = start(65520) else { return };
    let connections: Vec<_> = (0..8).map(|i| connection(&net, i % 2 == 1)).collect();
    thread::scope(|scope| {
        for (guest, outside) in &connections {
            scope.spawn(|| transfer(guest, outside, 8 << 20));
            scope.spawn(|| transfer(outside, guest, 8 << 20));
        }
    });
}

/// The reader waits until the writer makes no progress, and then reads all bytes.
fn assert_slow_reader_loses_nothing(from: &TcpStream, to: &TcpStream) {
    const LEN: u64 = 48 << 20;
    let sent = AtomicU64::new(0);
    sockopt::set_socket_recv_buffer_size(to, 65536).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            for part in 0..LEN >> 16 {
                let mut stream = from;
                stream.write_all(&payload(part, 1 << 16)).unwrap();
                sent.fetch_add(1 << 16, Ordering::Relaxed);
            }
            from.shutdown(Shutdown::Write).unwrap();
        });
        let mut last = u64::MAX;
        wait_until("a stuck writer", || {
            thread::sleep(Duration::from_millis(500));
            let now = sent.load(Ordering::Relaxed);
            std::mem::replace(&mut last, now) == now
        });
        for part in 0..LEN >> 16 {
            receive(to, part, 1 << 16);
        }
        expect_end(to);
    });
}

#[test]
fn a_slow_reader_outside_loses_nothing() {
    let Some(net) = start(65520) else { return };
    let (guest, outside) = connection(&net, false);
    assert_slow_reader_loses_nothing(&guest, &outside);
}

#[test]
fn a_slow_reader_in_the_guest_loses_nothing() {
    let Some(net) = start(65520) else { return };
    let (guest, outside) = connection(&net, true);
    assert_slow_reader_loses_nothing(&outside, &guest);
}

#[test]
fn slow_readers_lose_nothing_mtu_1500() {
    let Some(net) = start(1500) else { return };
    let (guest, outside) = connection(&net, true);
    assert_slow_reader_loses_nothing(&guest, &outside);
    let (guest, outside) = connection(&net, false);
    assert_slow_reader_loses_nothing(&outside, &guest);
}

/// Routes, addresses and interfaces of the host come and go while bytes flow. The kernel repeats what was lost, and new
/// connections work afterwards.
#[test]
fn transfers_survive_changes_of_the_hosts_network() {
    const CHANGES: &str = "\
ip route replace blackhole default; ip -6 route del default
ip link add other type veth peer name another; ip link set other up; ip address add 203.0.113.77/24 dev other
ip address add 198.51.100.77/24 dev eth0; ip address del 198.51.100.77/24 dev eth0
ip link set eth0 down; ip link set eth0 up; ip link del other
ip address replace 2001:db8:1::2/64 dev eth0 nodad
ip route del blackhole default; ip route replace default via 198.51.100.1
ip -6 route replace default via 2001:db8:1::1";
    let Some(net) = start(65520) else { return };
    let (guest, outside) = connection(&net, false);
    for round in 1..=5 {
        thread::scope(|scope| {
            scope.spawn(|| net.host.sh(CHANGES));
            scope.spawn(|| send(&guest, round, 32 << 20));
            scope.spawn(|| receive(&outside, round, 32 << 20));
            scope.spawn(|| send(&outside, round, 32 << 20));
            receive(&guest, round, 32 << 20);
        });
    }
    for inbound in [false, true] {
        let (guest, outside) = connection(&net, inbound);
        transfer(&guest, &outside, 1 << 20);
    }
}
