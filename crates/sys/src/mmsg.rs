//! Datagrams with control messages: one per call, or several.

use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};

use crate::address::{RawAddress, parse_address};
use crate::cmsg::{Control, ReceiveInfo};
use crate::errno::last_errno;
use crate::iov::{Iovecs, MAX_PIECES, Room, Source, message};
use rustix::io::{self, Errno};

/// Maximum number of datagrams in one call of [`send_batch`].
pub const BATCH: usize = 64;

/// Sends a datagram with the bytes of `pieces`, in order, to `address`, without blocking. With a segment size in
/// `control`, the kernel splits the bytes into several datagrams.
///
/// # Errors
/// As sendmsg(2). The kernel may report an error of an earlier datagram. Then this datagram was not sent, and the
/// caller should call again.
pub fn send(fd: impl AsFd, address: &RawAddress, pieces: &[Source<'_>], control: &Control) -> io::Result<()> {
    let mut iovecs = Iovecs::<{ 2 * MAX_PIECES }>::new();
    if !pieces.iter().all(|&piece| iovecs.add(piece)) {
        return Err(Errno::MSGSIZE);
    }
    let header = outgoing(address, iovecs.get(0..2 * MAX_PIECES), control);
    // SAFETY: `header` points to an address, pieces and control bytes that outlive the call, and sendmsg only reads
    // them. The pieces are mapped for as long as their sources live.
    let sent = unsafe {
        libc::sendmsg(fd.as_fd().as_raw_fd(), &raw const header, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
    };
    if sent < 0 { Err(last_errno()) } else { Ok(()) }
}

/// Sends up to [`BATCH`] datagrams to one address in one call, without blocking; returns how many were sent, at least
/// one. The caller sends the rest of `datagrams` in another call.
///
/// # Errors
/// As sendmmsg(2): the error of the first datagram. No datagram was sent.
pub fn send_batch<'a>(
    fd: impl AsFd,
    address: &RawAddress,
    datagrams: impl Iterator<Item = Source<'a>>,
    control: &Control,
) -> io::Result<usize> {
    let mut iovecs = Iovecs::<{ 2 * BATCH }>::new();
    let mut ends = [0; BATCH];
    let mut count: libc::c_uint = 0;
    for (end, datagram) in ends.iter_mut().zip(datagrams) {
        if !iovecs.add(datagram) {
            break;
        }
        *end = iovecs.len();
        count += 1;
    }
    let mut start = 0;
    let mut headers: [libc::mmsghdr; BATCH] = ends.map(|end| {
        let msg_hdr = outgoing(address, iovecs.get(start..end), control);
        start = end;
        libc::mmsghdr { msg_hdr, msg_len: 0 }
    });
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // Not sendmmsg(3): that of musl makes one call for each datagram (findings/musl-sendmmsg-sends-one-by-one.sh).
    // `outgoing` sets the padding of a header to zero, so the kernel reads the header as the C library declares it.
    // SAFETY: the first `count` headers are valid as in `send`. The kernel writes only their `msg_len`.
    let sent = unsafe {
        libc::syscall(libc::SYS_sendmmsg, fd.as_fd().as_raw_fd(), headers.as_mut_ptr(), count, flags)
    };
    usize::try_from(sent).map_err(|_| last_errno())
}

// The pieces of one datagram always fit, so each call makes progress.
const _: () = assert!(2 * BATCH >= MAX_PIECES);

/// A message header for sendmsg. The header has pointers to the arguments, which must outlive the header.
fn outgoing(address: &RawAddress, pieces: &[libc::iovec], control: &Control) -> libc::msghdr {
    let mut header = message(pieces);
    header.msg_name = address.bytes.as_ptr().cast_mut().cast();
    header.msg_namelen = address.len;
    if !control.is_empty() {
        header.msg_control = control.bytes().as_ptr().cast_mut().cast();
        header.msg_controllen = control.bytes().len() as _;
    }
    header
}

/// A received datagram, or an entry of the error queue.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// Number of bytes written to the buffer or room.
    pub len: usize,
    /// The datagram was longer than the buffer or room.
    pub truncated: bool,
    /// The sender. For an entry of the error queue, the destination of the datagram that caused it.
    pub address: Option<SocketAddr>,
    /// The content of the control messages.
    pub info: ReceiveInfo,
}

/// Receives one datagram without blocking. With UDP_GRO, it may receive several datagrams of one peer.
///
/// # Errors
/// As recvmsg(2): `EAGAIN` if there is none. The kernel may report an error of a sent datagram. Then the caller should
/// call again.
pub fn receive(fd: impl AsFd, room: Room<'_>) -> io::Result<Arrival> {
    receive_with(fd, room, 0)
}

/// Removes an entry of the error queue. `buffer` gets the part of the payload that the kernel knows, of the datagram
/// that caused the error.
///
/// # Errors
/// As recvmsg(2): `EAGAIN` if the queue is empty.
pub fn receive_error(fd: impl AsFd, buffer: &mut [u8]) -> io::Result<Arrival> {
    receive_with(fd, buffer.into(), libc::MSG_ERRQUEUE)
}

fn receive_with(fd: impl AsFd, mut room: Room<'_>, flags: libc::c_int) -> io::Result<Arrival> {
    let mut name = [0_u8; size_of::<libc::sockaddr_in6>()];
    let mut control = Control::default();
    let mut pieces = Iovecs::<MAX_PIECES>::new();
    let _all_fit = pieces.add_room(&mut room);
    let mut header = pieces.message();
    header.msg_name = name.as_mut_ptr().cast();
    header.msg_namelen = name.len() as _;
    let messages = control.room();
    header.msg_control = messages.as_mut_ptr().cast();
    header.msg_controllen = messages.len() as _;
    // SAFETY: `header` points to a name, the pieces of `room` and a buffer for control messages. All are writable for
    // the given lengths, and live until the call returns.
    let got = unsafe { libc::recvmsg(fd.as_fd().as_raw_fd(), &raw mut header, libc::MSG_DONTWAIT | flags) };
    let len = usize::try_from(got).map_err(|_| last_errno())?;
    control.set_len(header.msg_controllen as _);
    let name_len = (header.msg_namelen as usize).min(name.len());
    Ok(Arrival {
        len,
        truncated: header.msg_flags & libc::MSG_TRUNC != 0,
        address: parse_address(&name[..name_len]),
        info: control.received(),
    })
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, UdpSocket};

    use super::*;
    use crate::{
        cmsg::{Origin, SendInfo},
        sockopt::{IpVersion, Metadata, request_metadata, udp_gro},
    };

    fn pair(address: &str) -> (UdpSocket, UdpSocket, SocketAddr) {
        let (a, b) = (UdpSocket::bind((address, 0)).unwrap(), UdpSocket::bind((address, 0)).unwrap());
        let to = b.local_addr().unwrap();
        (a, b, to)
    }

    #[test]
    fn segmented_datagrams_are_received_together() {
        let (a, b, to) = pair("127.0.0.1");
        udp_gro(&b).unwrap();
        request_metadata(&b, IpVersion::V4, Metadata::DESTINATION | Metadata::HOP_LIMIT).unwrap();
        let payload: Vec<u8> = (0..3500_u16).map(|i| i as u8).collect();
        let info = SendInfo { segment_size: Some(1000), hop_limit: Some(9), ..SendInfo::default() };
        send(&a, &RawAddress::new(to, false), &[payload[..].into()], &Control::to_send(&info, true)).unwrap();
        let mut buffer = [0; 65535];
        let got = receive(&b, (&mut buffer[..]).into()).unwrap();
        assert_eq!((got.len, got.truncated, got.address), (3500, false, a.local_addr().ok()));
        assert_eq!(buffer[..3500], payload[..]);
        assert_eq!((got.info.segment_size, got.info.hop_limit), (Some(1000), Some(9)));
        assert_eq!(got.info.destination, Some(to.ip()));
        assert_eq!(got.info.local, Some(to.ip()));
        assert_eq!(receive(&b, (&mut buffer[..]).into()).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_batch_arrives_in_order_and_truncation_is_reported() {
        let (a, b, to) = pair("::1");
        let datagrams: Vec<Vec<u8>> = (0..70_u8).map(|i| vec![i; usize::from(i)]).collect();
        let raw = RawAddress::new(to, true);
        let sent =
            send_batch(&a, &raw, datagrams.iter().map(|datagram| datagram[..].into()), &Control::default())
                .unwrap();
        assert_eq!(sent, BATCH);
        let mut buffer = [0; 60];
        for want in &datagrams[..BATCH] {
            let got = receive(&b, (&mut buffer[..]).into()).unwrap();
            assert_eq!(got.len, want.len().min(60));
            assert_eq!(got.truncated, want.len() > 60);
        }
    }

    /// A dual-stack socket reports the IPv4 address of an IPv4 peer, and can send to that address.
    #[test]
    fn ipv4_peers_of_a_dual_stack_socket() {
        let dual = UdpSocket::bind("[::]:0").unwrap();
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, dual.local_addr().unwrap().port()));
        let all = Metadata::DESTINATION | Metadata::HOP_LIMIT | Metadata::TRAFFIC_CLASS;
        request_metadata(&dual, IpVersion::V4, all).unwrap();
        request_metadata(&dual, IpVersion::V6, all).unwrap();
        let v4 = UdpSocket::bind("127.0.0.5:0").unwrap();
        v4.send_to(b"x", to).unwrap();
        let got = receive(&dual, (&mut [0; 10][..]).into()).unwrap();
        assert_eq!(got.address, v4.local_addr().ok());
        assert_eq!((got.info.local, got.info.destination), (Some(to.ip()), Some(to.ip())));
        assert!(got.info.hop_limit.is_some());
        assert_eq!(got.info.traffic_class, Some(0));
        let info = SendInfo {
            source: Some("127.0.0.9".parse().unwrap()),
            hop_limit: Some(3),
            ..SendInfo::default()
        };
        let raw = RawAddress::new(v4.local_addr().unwrap(), true);
        send(&dual, &raw, &[b"y"[..].into()], &Control::to_send(&info, true)).unwrap();
        let (_, from) = v4.recv_from(&mut [0; 10]).unwrap();
        assert_eq!(from, SocketAddr::new("127.0.0.9".parse().unwrap(), to.port()));
    }

    #[test]
    fn the_error_queue_reports_origin_and_destination() {
        let (a, b, to) = pair("127.0.0.1");
        drop(b);
        request_metadata(&a, IpVersion::V4, Metadata::ERRORS).unwrap();
        send(&a, &RawAddress::new(to, false), &[b"quoted"[..].into()], &Control::default()).unwrap();
        let mut buffer = [0; 100];
        let got = receive_error(&a, &mut buffer).unwrap();
        assert_eq!((&buffer[..got.len], got.address), (&b"quoted"[..], Some(to)));
        let error = got.info.error.unwrap();
        assert_eq!((error.origin, error.kind, error.code), (Origin::Icmp, 3, 3));
        assert_eq!(error.offender, Some(to.ip()));
        assert_eq!(receive_error(&a, &mut buffer).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    }
}
