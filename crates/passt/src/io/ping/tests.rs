use rustix::event::{PollFd, PollFlags, Timespec, poll};
use wire::icmp::{Header, Message};

use super::*;
use crate::{
    isolated::{add_link, isolated, sysctl},
    plan,
};

fn pings() -> Pings {
    let v4 = plan::Outbound { address: None, interface: None };
    let v6 = plan::Outbound { address: None, interface: None };
    Pings::new(Arc::new(Outbound::new(&v4, &v6, false).unwrap()))
}

fn allow() {
    // A user namespace has no other group.
    sysctl("net/ipv4/ping_group_range", "0 0");
}

fn request<'a>(to: IpAddr, header: &'a Header, payload: &'a [u8]) -> EchoRequest<'a, Payload<'a>> {
    EchoRequest {
        destination: SocketAddr::new(to, 0),
        header,
        payload: payload.into(),
        hop_limit: 9,
        traffic_class: 0,
        dont_fragment: false,
    }
}

#[track_caller]
fn receive(socket: &mut PingSocket) -> (Received, Vec<u8>) {
    let mut polled = [PollFd::new(socket, PollFlags::IN)];
    let ready = poll(&mut polled, Some(&Timespec { tv_sec: 5, tv_nsec: 0 })).unwrap();
    assert_eq!(ready, 1, "nothing in 5 s");
    let mut buffer = vec![0; 65535];
    let received = socket.receive(&mut buffer).unwrap();
    buffer.truncate(received.len);
    (received, buffer)
}

/// behaviour §4.5, R-46, R-47: the first reply arrives, too, with its sequence number and payload. This is also true
/// for an identifier that is in use, and for the identifiers 0 and 0xffff.
#[test]
fn echo_r46_r47() {
    isolated(|| {
        allow();
        for (to, kind, reply) in [("127.0.0.1", 8, 0), ("::1", 128, 129)] {
            let to: IpAddr = to.parse().unwrap();
            let mut sockets: Vec<_> =
                [77, 77, 0, 0xffff].map(|id| pings().open(None, to, id).unwrap()).into();
            for socket in &mut sockets {
                for number in 1..3 {
                    let header = Header::new(kind, 0, 77 << 16 | number);
                    socket.send(&request(to, &header, b"payload")).unwrap();
                    let (received, message) = receive(socket);
                    let message = Message::parse(&message).unwrap();
                    assert_eq!(
                        (message.header.kind, u32::from(message.header.echo_sequence())),
                        (reply, number)
                    );
                    assert_eq!((message.payload, received.from.ip()), (&b"payload"[..], to));
                    assert!(received.hop_limit.is_some());
                }
                assert_eq!(socket.receive(&mut [0; 10]), Err(SocketError::WouldBlock));
            }
        }
    });
}

/// One socket serves hosts and multicast groups. The kernel has separate hop limits for them.
#[test]
fn hop_limits_of_hosts_and_groups() {
    isolated(|| {
        allow();
        let host: IpAddr = "127.0.0.1".parse().unwrap();
        let mut socket = pings().open(None, host, 77).unwrap();
        let header = Header::new(8, 0, 77 << 16);
        for to in [host, "224.0.0.1".parse().unwrap()] {
            // No route leads to the group.
            let _sent = socket.send(&EchoRequest { hop_limit: 9, ..request(to, &header, b"payload") });
        }
        assert_eq!((sockopt::ip_ttl(&socket), sockopt::ip_multicast_ttl(&socket)), (Ok(9), Ok(9)));
    });
}

/// If a host can't be reached, the error queue reports the router's ICMP error, which quotes the request.
#[test]
fn errors_quote_the_request() {
    isolated(|| {
        allow();
        // The neighbour does not answer, so the host's own kernel reports an error.
        add_link("out0", "10.0.1.1/24");
        sysctl("net/ipv4/neigh/out0/retrans_time_ms", "10");
        let to: IpAddr = "10.0.1.2".parse().unwrap();
        let mut socket = pings().open(None, to, 77).unwrap();
        let header = Header::new(8, 0, 77 << 16 | 5);
        socket.send(&request(to, &header, b"payload")).unwrap();
        let mut polled = [PollFd::new(&socket, PollFlags::empty())];
        poll(&mut polled, Some(&Timespec { tv_sec: 5, tv_nsec: 0 })).unwrap();
        assert!(polled[0].revents().contains(PollFlags::ERR), "no error in 5 s");
        let mut quote = [0; 100];
        let error = socket.take_queued_error(&mut quote).unwrap();
        assert_eq!(error.destination.ip(), to);
        let report = error.report.unwrap();
        assert_eq!((report.kind, report.code), (3, 1));
        assert_eq!(error.offender, "10.0.1.1".parse().ok());
        let message = Message::parse(&quote[..error.quoted]).unwrap();
        assert_eq!((message.header.kind, message.header.echo_sequence()), (8, 5));
        assert_eq!(message.payload, b"payload");
    });
}

/// behaviour §4.5: if the kernel allows no ping sockets, opening fails, and a warning is logged once.
#[test]
fn no_ping_sockets() {
    isolated(|| {
        // A new network namespace allows them to no group.
        let mut pings = pings();
        for _ in 0..2 {
            assert_eq!(pings.open(None, "127.0.0.1".parse().unwrap(), 7).unwrap_err(), io::Errno::ACCESS);
            assert!(pings.warned);
        }
    });
}
