//! Tests of limits: which socket or flow ends to make room for a new one.

use super::listeners::listener;
use super::*;

impl Test {
    /// The guest sends a request from `port`. If `answered`, it gets an answer. Returns its socket.
    fn guest_asks(&mut self, port: u16, answered: bool) -> Opened {
        let guest = format!("198.51.100.55:{port}");
        let before = self.world.host.opened.len();
        self.guest_sends(&guest, "203.0.113.1:53", b"question");
        assert_eq!(self.world.host.opened.len(), before + 1, "port {port}");
        let socket = self.opened(before);
        assert_eq!(socket.socket.sent().len(), 1, "port {port}");
        if answered {
            let frame = self.answer(&socket, "203.0.113.1:53", b"answer");
            assert_shown(&frame, "203.0.113.1:53", &guest, b"answer");
        }
        socket
    }

    fn pass(&mut self, millis: u64) {
        self.world.now = self.world.now + Duration::from_millis(millis);
    }
}

/// A resolver that uses a new port for each query gets all answers, and streams of other ports continue.
#[test]
fn a_new_port_for_each_query() {
    let mut test = Test::new();
    test.guest_sends(GUEST, "203.0.113.2:443", b"stream");
    let stream = test.opened(0);
    for _ in 0..20 {
        test.answer(&stream, "203.0.113.2:443", b"y");
        test.guest_sends(GUEST, "203.0.113.2:443", b"x");
    }
    stream.socket.sent();
    for port in 10_000..12_000 {
        test.pass(1);
        test.guest_asks(port, true);
        assert!(test.world.host.open_files() <= 10);
    }
    assert_eq!((test.udp.flows(), test.udp.counters().total()), (10, 0));
    assert_eq!(test.udp.ended(), 2000 + 1 - 10);
    assert!(!stream.closed());
    assert_eq!(test.world.timers.len(), 10, "ended flows have no deadline");
    // An endpoint that has ended gets a new socket.
    test.guest_asks(10_000, true);
    test.wait(121);
    assert_eq!((test.udp.flows(), test.world.host.open_files()), (0, 0));
}

/// Answered endpoints end first, in the order of their last datagrams. Then endpoints that wait for an answer end, in
/// the same order.
#[test]
fn the_endpoint_that_was_idle_for_longest_ends_answered_ones_first() {
    let mut test = Test::new();
    let waiting = [test.guest_asks(1000, false), test.guest_asks(1001, false)];
    let mut answered: Vec<Opened> = (1002..1010).map(|port| test.guest_asks(port, true)).collect();
    // The oldest answered endpoint sends another request and gets an answer, so now it is the newest.
    test.guest_sends("198.51.100.55:1002", "203.0.113.1:53", b"again");
    test.answer(&answered[0], "203.0.113.1:53", b"answer");
    answered.rotate_left(1);
    let unanswered: Vec<Opened> = (2000..2008)
        .enumerate()
        .map(|(n, port)| {
            let new = test.guest_asks(port, false);
            let closed: Vec<bool> = answered.iter().map(Opened::closed).collect();
            assert_eq!(closed, [vec![true; n + 1], vec![false; 7 - n]].concat());
            new
        })
        .collect();
    assert!(!waiting[0].closed() && !waiting[1].closed());
    test.guest_asks(2008, false);
    assert!(waiting[0].closed() && !waiting[1].closed());
    // A late answer counts as an answer.
    test.answer(&unanswered[3], "203.0.113.1:53", b"answer");
    test.guest_asks(2009, false);
    assert!(unanswered[3].closed() && !waiting[1].closed());
}

/// A socket ends with all of its flows.
#[test]
fn flows_end_with_their_socket() {
    let mut test = Test::new();
    for port in 1..=20_u16 {
        test.guest_sends(GUEST, &format!("203.0.113.2:{port}"), b"x");
    }
    let socket = test.opened(0);
    for port in 21..=30_u16 {
        test.answer(&socket, &format!("203.0.113.2:{port}"), b"of a stranger");
    }
    assert_eq!(test.udp.flows(), 30);
    (0..10).for_each(|n| drop(test.guest_asks(1000 + n, false)));
    assert!(socket.closed());
    assert_eq!((test.udp.flows(), test.world.host.open_files(), test.world.timers.len()), (10, 10, 10));
    // An event of the closed socket is ignored, and the endpoint gets a new socket.
    test.ready(&socket, READABLE);
    test.guest_sends(GUEST, "203.0.113.2:1", b"x");
    assert_shown(&test.answer(&test.opened(11).clone(), "203.0.113.2:1", b"y"), "203.0.113.2:1", GUEST, b"y");
}

/// any number of remotes can only end flows that remotes began. Each datagram reaches the guest.
#[test]
fn remotes_end_only_flows_of_remotes_r90() {
    let mut test = Test::new();
    let listener = test.listen(listener(None, 5353, None, 5353));
    test.guest_sends(GUEST, "203.0.113.1:8", b"x");
    let socket = test.opened(0);
    socket.socket.sent();
    for port in 1..=200_u16 {
        test.pass(1);
        for socket in [&socket, &listener] {
            let frame = test.answer(socket, &format!("192.0.2.1:{port}"), b"flood");
            assert_eq!(datagram(&frame).0, format!("192.0.2.1:{port}").parse().unwrap());
        }
    }
    assert_eq!((test.udp.flows(), test.udp.counters().no_room), (41, 0));
    // A remote whose flow has ended gets a new flow with its next datagram, and answers reach the remote.
    test.answer(&socket, "192.0.2.1:1", b"again");
    test.guest_sends(GUEST, "192.0.2.1:1", b"answer");
    test.guest_sends(GUEST, "203.0.113.1:8", b"still here");
    assert_eq!(socket.socket.sent().len(), 2);
    assert_shown(&test.answer(&socket, "203.0.113.1:8", b"y"), "203.0.113.1:8", GUEST, b"y");
}

/// If the guest writes to more remotes than there may be flows, all remotes get the datagrams, and answers arrive.
#[test]
fn more_remotes_than_flows() {
    let mut test = Test::new();
    let server = test.listen(listener(None, 5353, None, 5353));
    test.answer(&server, "192.0.2.1:9", b"of a stranger");
    for port in 1..=200_u16 {
        test.pass(1);
        test.guest_sends(GUEST, &format!("203.0.113.2:{port}"), b"x");
    }
    let socket = test.opened(0);
    assert_eq!((socket.socket.sent().len(), test.udp.flows()), (200, 61));
    assert_eq!((test.udp.ended(), test.udp.counters().no_room), (140, 0));
    let frame = test.answer(&socket, "203.0.113.2:1", b"late");
    assert_shown(&frame, "203.0.113.2:1", GUEST, b"late");
    test.guest_sends("198.51.100.55:5353", "192.0.2.1:9", b"answer");
    assert_eq!((server.socket.sent().len(), test.world.host.opened.len()), (1, 1));
}

/// At the limit of open files, an endpoint ends to make room for a new one, even if there are fewer endpoints than the
/// share allows. If no endpoint can end, the guest's datagram is lost, but its next datagram causes another attempt.
#[test]
fn at_the_limit_of_open_files() {
    let mut test = Test::new();
    test.world.host.files = Some(3);
    (5000..5020).for_each(|port| drop(test.guest_asks(port, true)));
    assert_eq!((test.world.host.open_files(), test.udp.counters().no_room), (3, 0));
    test.wait(31);
    test.world.host.files = Some(0);
    test.guest_sends(GUEST, "203.0.113.1:8", b"x");
    assert_eq!((test.udp.flows(), test.udp.counters().no_room), (0, 1));
    test.world.host.files = None;
    test.guest_sends(GUEST, "203.0.113.1:8", b"x");
    assert_eq!(test.udp.flows(), 1);
}
