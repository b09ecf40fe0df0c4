//! Tests of hostile guests, which try to reach another name or to exhaust memory.

use super::*;

#[test]
fn first_datagrams_without_a_name_are_refused_at_once() {
    let long_header =
        |kind: u8, version: u32| [&[0xc0 | kind << 4][..], &version.to_be_bytes(), &[0; 40]].concat();
    let retry = [&[0xf0, 0, 0, 0, 1, 4][..], b"some", &[0; 30]].concat();
    let mut damaged = first(b"connection", ALLOWED);
    damaged[1000] ^= 1;
    let mut short = first(b"connection", ALLOWED);
    short.truncate(1100);
    let two_versions = [&first(b"connection", ALLOWED)[..], &long_header(0, 0x1a2a_3a4a)].concat();
    let datagrams = [
        (b"".to_vec(), "nothing"),
        (b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x07example\x03com\0\0\x01\0\x01".to_vec(), "DNS"),
        (b"\x16\xfe\xff\0\0\0\0\0\0\0\0\0\x40\x01\0\0\x34".to_vec(), "DTLS"),
        (b"\0\x01\0\0\x21\x12\xa4\x42".to_vec(), "STUN"),
        (SHORT.to_vec(), "of a connection that is not known"),
        (long_header(0, 0), "Version Negotiation"),
        (long_header(0, 0xff00_001d), "a draft"),
        (long_header(0, 0x1a2a_3a4a), "a reserved version"),
        (retry, "Retry"),
        (damaged, "damaged"),
        (short, "cut off"),
        (two_versions, "a name, and a version that is not known"),
        (initial(b"connection", 0, &crypto(0, &client_hello(&[]))), "no server_name"),
        (
            initial(b"connection", 0, &[crypto(0, &hello(ALLOWED)), crypto(60, b"x")].concat()),
            "a contradiction",
        ),
    ];
    for (datagram, what) in datagrams {
        let mut test = Test::named(RULES);
        test.sends(&datagram);
        test.assert_nothing();
        test.assert_prohibited(&datagram);
        assert_eq!(test.refused(), (1, 1), "{what}");
        test.end();
    }
}

/// Each connection of a flow has its own verdict, although the ports are the same.
#[test]
fn another_connection_of_the_same_flow_has_to_say_a_name_as_well() {
    let mut test = Test::named(RULES);
    test.sends(&first(b"connection", ALLOWED));
    test.assert_open();
    let refused = first(b"another id", OTHER);
    test.sends(&refused);
    assert_eq!((test.left().len(), test.udp.flows()), (0, 1));
    test.assert_prohibited(&refused);
    let [a, b] = two(b"a third id", OTHER);
    test.sends(&a);
    test.sends(&b);
    assert_eq!(test.left().len(), 0);
    test.assert_prohibited(&a);
    assert_eq!(test.refused(), (2, 2));
    // The first connection continues, and new connections to the allowed name are possible.
    test.sends(&initial(b"connection", 1, &[2, 0, 0, 0, 0]));
    let [a, b] = two(b"a fourth id", ALLOWED);
    test.sends(&a);
    assert_eq!(test.left().len(), 1);
    test.sends(&SHORT);
    assert_eq!(test.left(), [SHORT]);
    test.sends(&b);
    assert_eq!(test.left(), [a, b]);
    test.assert_open();
    test.end();
}

/// A server may have dropped a datagram that the engine has read, for example because the datagram is too short. So a
/// client must not be able to send another ClientHello afterwards.
#[test]
fn a_hello_does_not_change_after_the_verdict() {
    let (message, other) = (long_client_hello(ALLOWED, 1100), long_client_hello(OTHER, 1100));
    let mut test = Test::named(RULES);
    let piece =
        |number, at: usize, message: &[u8]| initial(b"connection", number, &crypto(at, &message[at..]));
    test.sends(&piece(0, 0, &message));
    assert_eq!(test.left().len(), 1);
    test.sends(&piece(1, 500, &message));
    assert_eq!(test.left().len(), 1);
    let changed = piece(2, 500, &other);
    test.sends(&changed);
    test.assert_prohibited(&changed);
    test.sends(&piece(3, 0, &message));
    assert_eq!((test.left().len(), test.refused()), (0, (2, 2)), "the refusal is final");
    test.sends(&SHORT);
    assert_eq!(test.left(), [SHORT]);
}

#[test]
fn dtls_after_quic_is_refused() {
    let mut test = Test::named(RULES);
    test.sends(&first(b"connection", ALLOWED));
    test.left();
    let dtls = [&b"\x16\xfe\xfd\0\0\0\0\0\0\0\0"[..], &hello(OTHER)].concat();
    test.sends(&dtls);
    test.assert_prohibited(&dtls);
    assert_eq!(test.left().len(), 0);
}

/// A server accepts packets of one connection from any port, and may have dropped some. If each port had its own
/// verdict, a client could send parts of one ClientHello from several ports.
#[test]
fn a_connection_belongs_to_one_flow_also_after_its_end() {
    let datagram = first(b"connection", ALLOWED);
    let mut test = Test::named(RULES);
    test.sends(&datagram);
    assert_eq!(test.left().len(), 1);
    test.guest_sends("198.51.100.55:4001", SERVER, &datagram);
    assert_eq!((test.left().len(), test.refused()), (0, (1, 1)));
    test.wait(31);
    assert_eq!(test.udp.flows(), 0);
    test.sends(&datagram);
    assert_eq!((test.left().len(), test.refused()), (0, (2, 2)));
    // Two flows that wait at the same time.
    let [a, b] = two(b"another id", ALLOWED);
    for guest in [GUEST, "198.51.100.55:4001"] {
        test.guest_sends(guest, SERVER, &a);
    }
    test.sends(&b);
    assert_eq!((test.left().len(), test.refused()), (2, (2, 2)));
    test.guest_sends("198.51.100.55:4001", SERVER, &b);
    assert_eq!((test.left().len(), test.refused()), (0, (3, 3)));
    test.end();
}

#[test]
fn a_train_is_read_datagram_by_datagram() {
    let [a, b] = two(b"connection", ALLOWED);
    assert_eq!(a.len(), b.len());
    let size = a.len() as u16;
    let mut evil = first(b"another id", OTHER);
    evil.resize(1200, 0);
    let mut test = Test::named(RULES);
    test.guest_sends_as(GUEST, SERVER, &[&a[..], &b, &SHORT].concat(), 64, 0, &train(size));
    assert_eq!(test.left(), [a.clone(), b.clone(), SHORT.to_vec()]);
    // Datagrams with short headers are not read, and stay a train.
    let data: Vec<u8> = [0x41; 5000].to_vec();
    test.guest_sends_as(GUEST, SERVER, &data, 64, 0, &train(1200));
    let sent = test.opened(0).socket.sent();
    assert_eq!((sent.len(), &sent[0].payload, sent[0].segment_size), (1, &data, Some(1200)));
    // A datagram with a long header among them is read.
    let mixed = [&[0x41; 1200][..], &evil, &[0x42; 100]].concat();
    test.guest_sends_as(GUEST, SERVER, &mixed, 64, 0, &train(1200));
    assert_eq!((test.left(), test.refused()), (vec![vec![0x41; 1200], vec![0x42; 100]], (1, 1)));
    test.world.frames();

    // If the first datagrams of a train are refused, the rest of the train is dropped.
    let [a, b] = two(b"connection", OTHER);
    let mut test = Test::named(RULES);
    test.guest_sends_as(GUEST, SERVER, &[&a[..], &b, &a, &b].concat(), 64, 0, &train(size));
    test.assert_nothing();
    test.assert_prohibited(&a);
    test.end();
}

/// A flow that waits has no socket. But its endpoint may have a socket for another remote.
#[test]
fn the_server_does_not_reach_a_guest_that_waits() {
    let [a, b] = two(b"connection", ALLOWED);
    let mut test = Test::named(RULES);
    test.guest_sends(GUEST, "203.0.113.1:8", b"question");
    let socket = test.opened(0);
    test.sends(&a);
    socket.socket.arrive(SERVER, b"server first");
    test.ready(&socket, READABLE);
    assert_eq!((test.world.frames().len(), test.udp.flows(), test.refused()), (0, 1, (1, 1)));
    socket.socket.sent();
    test.sends(&b);
    assert_eq!(test.left(), [a, b]);
    test.assert_open();
    test.end();
}

/// A name is checked for one destination: each flow of one guest port has its own verdict.
#[test]
fn each_remote_of_a_port_has_its_own_verdict() {
    let mut test = Test::named(RULES);
    let address = "203.0.113.10".parse().unwrap();
    assert!(test.world.guard.names_mut().unwrap().learn(address, ALLOWED, 300, START));
    test.sends(&first(b"connection", ALLOWED));
    assert_eq!(test.left().len(), 1);
    for datagram in [&SHORT[..], &first(b"another id", OTHER)] {
        test.guest_sends(GUEST, "203.0.113.10:443", datagram);
        test.guest_sends("198.51.100.55:4001", SERVER, datagram);
    }
    assert_eq!((test.left().len(), test.udp.flows(), test.refused()), (0, 1, (4, 4)));
    // The guest was not given this address for any name.
    test.guest_sends(GUEST, "203.0.113.11:443", &first(b"a third id", ALLOWED));
    assert_eq!((test.left().len(), test.refused()), (0, (5, 5)));
    test.guest_sends(GUEST, "203.0.113.10:443", &first(b"a fourth id", ALLOWED));
    assert_eq!((test.left().len(), test.udp.flows()), (1, 2));
    test.end();
}

/// A guest can't exhaust memory by flows that wait. The flows that have waited for the longest time are dropped.
#[test]
fn the_number_of_flows_that_wait_is_bounded() {
    let [a, b] = two(b"connection", ALLOWED);
    let guest = |port: u16| format!("198.51.100.55:{port}");
    let mut test = Test::named(RULES);
    for port in 10_000..10_300 {
        test.guest_sends(&guest(port), SERVER, &a);
    }
    assert_eq!(test.udp.checks.waiting(), (256, 256 * a.len()));
    assert_eq!((test.udp.counters().no_room, test.refused()), (44, (0, 0)));
    test.guest_sends(&guest(10_000), SERVER, &b);
    test.assert_nothing();
    test.guest_sends(&guest(10_299), SERVER, &b);
    assert_eq!(test.left(), [a, b]);
    test.end();
}

#[test]
fn the_bytes_that_are_held_are_bounded() {
    let [a, b] = two(b"connection", ALLOWED);
    let early =
        [&[0xd0, 0, 0, 0, 1, 10][..], b"connection", &[0, 0x80, 0, 0xea, 0x60], &[7; 60_000]].concat();
    let guest = |port: u16| format!("198.51.100.55:{port}");
    let mut test = Test::named(RULES);
    for port in 10_000..10_030 {
        test.guest_sends(&guest(port), SERVER, &a);
        test.guest_sends(&guest(port), SERVER, &early);
        assert!(test.udp.checks.waiting().1 <= 1 << 20);
    }
    assert_eq!(test.udp.counters().no_room, 26);
    // No single flow can use the whole limit.
    test.guest_sends(&guest(10_029), SERVER, &early);
    assert_eq!((test.refused(), test.udp.checks.waiting().0), ((1, 1), 16));
    test.guest_sends(&guest(10_028), SERVER, &b);
    assert_eq!(test.left(), [a.clone(), early, b]);
    test.world.frames();
    test.sends(&a);
    for _ in 1..64 {
        test.sends(&SHORT);
    }
    test.assert_waiting();
    test.sends(&SHORT);
    test.assert_prohibited(&a);
    test.end();
}

/// A flow from this port of the guest.
fn opening(port: u16) -> crate::guard::Opening {
    let guest = SocketAddr::from(([198, 51, 100, 55], port));
    let remote = SERVER.parse().unwrap();
    crate::guard::Opening {
        protocol: Protocol::Udp,
        ends: Endpoints { guest, remote },
        destination: remote,
        asks_resolver: false,
    }
}

#[test]
fn the_memory_of_readers_is_bounded() {
    let mut guard = guard(RULES, Mode::default());
    let (endpoints, flow) = (|port| opening(port).ends, opening(1));
    let Admission::Named(claim) = guard.admits(&flow, START, |_| false) else { panic!() };
    let last = initial(b"connection", 0, &crypto(16_383, b"x"));
    let datagram = GuestDatagram {
        hop_limit: 64,
        traffic_class: 0,
        dont_fragment: false,
        payload: last,
        segment_size: None,
    };
    let (mut checks, mut timers) =
        (Checks::new(CheckLimits::DEFAULT, [1; 16]), crate::timer::Timers::default());
    let mut begun = vec![];
    while let Some(id) = checks.begin(endpoints(1 + begun.len() as u16), Some(claim)) {
        assert_eq!(checks.read(id, datagram.clone(), START, &mut timers), Found::More);
        begun.push(id);
    }
    assert_eq!(begun.len(), 1025);
    assert!(checks.begin(endpoints(5000), None).is_some(), "a flow whose datagrams are not read");
    assert_eq!(checks.remove(begun[0], &mut timers), None);
    assert!(checks.begin(endpoints(1), Some(claim)).is_some());
}

/// With a limit of memory, it is enough for some checks, and each check that ends returns its part. Flows whose datagrams
/// are not read are not affected.
#[test]
fn checks_have_their_memory() {
    const MEMORY: usize = 100_000;
    let mut guard = guard(RULES, Mode::default());
    let flow = opening(1);
    let Admission::Named(claim) = guard.admits(&flow, START, |_| false) else { panic!() };
    let endpoints = |port| opening(port).ends;
    let payload = initial(b"connection", 0, &crypto(8000, &[b'x'; 100]));
    let datagram =
        GuestDatagram { hop_limit: 64, traffic_class: 0, dont_fragment: false, payload, segment_size: None };
    let limits = CheckLimits { memory: MEMORY, ..CheckLimits::DEFAULT };
    let (mut checks, mut timers) = (Checks::new(limits, [1; 16]), crate::timer::Timers::default());
    let mut begun = vec![];
    while let Some(id) = checks.begin(endpoints(1 + begun.len() as u16), Some(claim)) {
        begun.push(id);
    }
    assert!((10..100).contains(&begun.len()), "{}", begun.len());
    assert!(checks.begin(endpoints(5000), None).is_some(), "its datagrams are not read");
    let no_room = Found::NoName(crate::first_bytes::Why::NoRoom);
    assert_eq!(checks.read(begun[0], datagram.clone(), START, &mut timers), no_room);
    for id in begun.drain(1..) {
        assert_eq!(checks.remove(id, &mut timers), None);
    }
    assert_eq!(checks.read(begun[0], datagram, START, &mut timers), Found::More);
    let used = checks.used_memory();
    assert!((9_000..30_000).contains(&used), "{used}");
    drop(checks.take_held(begun[0], &mut timers));
    assert!(checks.used_memory() < used);
    assert_eq!(checks.remove(begun[0], &mut timers), None);
    assert_eq!(checks.used_memory(), 0);
}

/// The first datagrams of a client. The ClientHello is cut into frames at any positions. The frames overlap, have any
/// order, and are mixed with other frames, packets and datagrams.
fn first_flight(name: &'static str) -> impl Strategy<Value = Vec<Vec<u8>>> {
    let cuts = prop::collection::vec((0..1500usize, 0..200usize), 0..10);
    let frames = (300..1500usize, cuts).prop_flat_map(move |(len, cuts)| {
        let message = long_client_hello(name, len);
        let mut starts: Vec<usize> = cuts.iter().map(|&(start, _)| start % len).chain([0]).collect();
        starts.sort_unstable();
        starts.dedup();
        let ends: Vec<usize> = starts[1..].iter().copied().chain([len]).collect();
        let overlap = |at: usize| cuts.get(at).map_or(0, |&(_, overlap)| overlap);
        let piece = |at: usize| &message[starts[at]..(ends[at] + overlap(at)).min(len)];
        let frames: Vec<Vec<u8>> = (0..starts.len()).map(|at| crypto(starts[at], piece(at))).collect();
        Just(frames).prop_shuffle()
    });
    (frames, 1..8usize, prop::collection::vec(0..4u8, 1..20)).prop_map(|(frames, in_a_packet, others)| {
        let early = [&[0xd0, 0, 0, 0, 1, 10][..], b"connection", &[0, 30], &[7; 30]].concat();
        let packets = frames.chunks(in_a_packet).enumerate();
        let datagram = |(number, frames): (usize, &[Vec<u8>])| {
            let packet = initial(b"connection", number as u32, &frames.concat());
            match others[number % others.len()] {
                0 => vec![packet],
                1 => vec![packet.clone(), packet],
                2 => vec![early.clone(), packet],
                _ => vec![[packet, early.clone()].concat(), SHORT.to_vec()],
            }
        };
        packets.flat_map(datagram).collect()
    })
}

proptest! {
    /// For any cuts, order and repetition of a client's first datagrams, no datagram is sent before the name is
    /// complete. Then all datagrams are sent in order if the name is allowed, else none is sent.
    #[test]
    fn no_datagram_leaves_before_the_verdict(
        (allowed, datagrams) in prop_oneof![
            (Just(true), first_flight(ALLOWED)),
            (Just(false), first_flight(OTHER)),
        ],
        as_trains: bool,
    ) {
        let mut test = Test::named(RULES);
        let mut first_bytes = crate::first_bytes::FirstDatagrams::new(crate::first_bytes::Ech::OuterName);
        let mut complete = false;
        let mut fed = vec![];
        for datagram in &datagrams {
            // A packet with a short header does not begin a connection.
            if fed.is_empty() && datagram[0] & 0x80 == 0 {
                continue;
            }
            let found = first_bytes.feed_datagram(datagram, START);
            prop_assert!(!matches!(found, Found::NoName(_)), "{:?}", found);
            let known = !complete && found != Found::More;
            complete |= known;
            if complete && !allowed && !known {
                break;
            }
            fed.push(datagram.clone());
            if as_trains {
                let train_of_two = [&datagram[..], datagram].concat();
                test.guest_sends_as(GUEST, SERVER, &train_of_two, 64, 0, &train(datagram.len() as u16));
                fed.push(datagram.clone());
            } else {
                test.sends(datagram);
            }
            prop_assert_eq!(test.world.host.opened.len(), usize::from(complete && allowed));
        }
        prop_assert!(complete);
        prop_assert_eq!(test.left(), if allowed { fed } else { vec![] });
        test.end();
    }
}
