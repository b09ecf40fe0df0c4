//! Tests of trains (segmentation offload) in both directions.

use super::*;

/// One call sends a train of the guest, and a train for the guest is sent as one super-frame.
#[test]
fn trains_are_not_split() {
    for (guest, remote) in [(GUEST, "203.0.113.1:443"), (GUEST6, "[2001:db8:2::1]:443")] {
        let mut test = Test::new();
        let train: Vec<u8> = (0..50_000_u32).map(|i| i as u8).collect();
        let segmentation = Some(Segmentation { kind: SegmentKind::Udp, size: 1200, ecn: false });
        let offload = Offload { segmentation, ..Offload::default() };
        test.guest_sends_as(guest, remote, &train, 64, 0, &offload);
        let socket = test.opened(0);
        let sent = socket.socket.sent();
        assert_eq!((sent[0].segment_size, sent[0].payload.len()), (Some(1200), train.len()));
        // A payload that is not longer than a segment is not a train.
        test.guest_sends_as(guest, remote, &train[..1200], 64, 0, &offload);
        assert_eq!(socket.socket.sent()[0].segment_size, None);

        socket.socket.arrive_as(Received { segment_size: Some(1300), ..received(remote) }, &train);
        test.ready(&socket, READABLE);
        let (frame, offload) = test.world.frame();
        assert_shown(&frame, remote, guest, &train);
        let segmentation = offload.segmentation.unwrap();
        assert_eq!((segmentation.kind, segmentation.size), (SegmentKind::Udp, 1300));
        assert!(offload.checksum.is_some());
    }
}

/// Payload lengths and segment sizes of the sent datagrams.
fn shapes(socket: &Opened) -> Vec<(usize, Option<u16>)> {
    socket.socket.sent().iter().map(|sent| (sent.payload.len(), sent.segment_size)).collect()
}

fn queue(test: &mut Test, to: &str, payload: &[u8]) {
    test.guest_queues(GUEST, to, payload, 64, 0, &Offload::default());
}

/// A single datagram is sent at once. Datagrams that follow soon are joined, in order.
#[test]
fn a_stream_is_joined() {
    let mut test = Test::new();
    queue(&mut test, "203.0.113.1:8", &[0; 100]);
    let socket = test.opened(0);
    assert_eq!(shapes(&socket), [(100, None)]);
    test.end_round();
    test.end_round();
    queue(&mut test, "203.0.113.1:8", &[0; 100]);
    assert_eq!(shapes(&socket), [(100, None)]);

    test.end_round();
    for number in 1..=10 {
        queue(&mut test, "203.0.113.1:8", &[number; 100]);
    }
    assert_eq!(shapes(&socket), []);
    test.end_round();
    let sent = socket.socket.sent();
    let joined: Vec<u8> = (1..=10).flat_map(|number| [number; 100]).collect();
    assert_eq!((sent.len(), sent[0].segment_size, &sent[0].payload), (1, Some(100), &joined));
    test.end_round();
    assert_eq!(shapes(&socket), []);
    // A single datagram is not a train.
    queue(&mut test, "203.0.113.1:8", &[0; 100]);
    test.end_round();
    assert_eq!(shapes(&socket), [(100, None)]);
}

/// A datagram that can't be part of a train ends it. The order of a flow's datagrams does not change.
#[test]
fn what_ends_a_train_r56() {
    let lengths = |lengths: &[usize]| {
        let mut test = Test::new();
        queue(&mut test, "203.0.113.1:8", b"first");
        for &len in lengths {
            queue(&mut test, "203.0.113.1:8", &vec![7; len]);
        }
        test.end_round();
        let socket = test.opened(0);
        shapes(&socket)[1..].to_vec()
    };
    // A shorter datagram ends the train, a longer datagram begins another train, and an empty datagram is sent alone.
    assert_eq!(lengths(&[50, 50, 20, 50]), [(120, Some(50)), (50, None)]);
    assert_eq!(lengths(&[50, 50, 60, 60]), [(100, Some(50)), (120, Some(60))]);
    assert_eq!(lengths(&[50, 0, 50]), [(50, None), (0, None), (50, None)]);
    // A train has at most 64 datagrams, and at most the length of a packet. Very long datagrams are not joined.
    assert_eq!(lengths(&[1; 100]), [(64, Some(1)), (36, Some(1))]);
    assert_eq!(lengths(&[16_000; 5]), [(64_000, Some(16_000)), (16_000, None)]);
    assert_eq!(lengths(&[20_000; 2]), [(20_000, None); 2]);

    let mut test = Test::new();
    for ttl in [64, 64, 9, 9] {
        test.guest_queues(GUEST, "203.0.113.1:8", b"x", ttl, 0, &Offload::default());
    }
    // A datagram of another flow ends the train.
    queue(&mut test, "203.0.113.2:8", b"one");
    queue(&mut test, "203.0.113.2:8", b"two");
    // The guest itself sends a train.
    let segmentation = Some(Segmentation { kind: SegmentKind::Udp, size: 1, ecn: false });
    let offload = Offload { segmentation, ..Offload::default() };
    test.guest_queues(GUEST, "203.0.113.2:8", b"abc", 64, 0, &offload);
    test.end_round();
    let got: Vec<_> = test.opened(0).socket.sent().into_iter().map(|s| (s.hop_limit, s.payload)).collect();
    let want: [(u8, &[u8]); 6] =
        [(64, b"x"), (64, b"x"), (64, b"one"), (9, b"xx"), (64, b"two"), (64, b"abc")];
    assert_eq!(got, want.map(|(ttl, payload)| (ttl, payload.to_vec())));
}

impl Test {
    /// The payloads and segment sizes of the frames that the guest gets if these datagrams arrive while the socket has
    /// a stream.
    fn stream(
        &mut self,
        socket: &Opened,
        arriving: impl IntoIterator<Item = (Received, Vec<u8>)>,
    ) -> Vec<(Vec<u8>, Option<u16>)> {
        socket.socket.arrive("203.0.113.1:8", b"a short one");
        self.ready(socket, READABLE);
        self.world.frames();
        self.udp.sockets.get_mut(socket.id).unwrap().last_taken = MAX_BATCH;
        arriving.into_iter().for_each(|(received, payload)| socket.socket.arrive_as(received, &payload));
        self.ready(socket, READABLE);
        assert!(socket.socket.mailbox().arriving.is_empty());
        let frames = self.world.frames();
        let shape = |(frame, offload): &(Vec<u8>, Offload)| {
            let size = offload.segmentation.map(|segmentation| segmentation.size);
            (datagram(frame).2.to_vec(), size)
        };
        frames.iter().map(shape).collect()
    }
}

/// A stream for the guest is joined to super-frames, in order.
#[test]
fn a_stream_for_the_guest_is_joined() {
    for (guest, remote) in [(GUEST, "203.0.113.1:8"), (GUEST6, "[2001:db8:2::1]:8")] {
        let mut test = Test::new();
        test.world.settings.mtu = u16::MAX;
        test.guest_sends(guest, remote, b"x");
        let socket = test.opened(0);
        let lengths = |lengths: &[usize]| -> Vec<(Received, Vec<u8>)> {
            let payload = |(i, &len): (usize, &usize)| (received(remote), vec![i as u8; len]);
            lengths.iter().enumerate().map(payload).collect()
        };
        let mut shapes = |sent: &[usize]| -> Vec<(usize, Option<u16>)> {
            let arriving = lengths(sent);
            let all: Vec<u8> = arriving.iter().flat_map(|(_, payload)| payload.clone()).collect();
            let got = test.stream(&socket, arriving);
            assert_eq!(got.iter().flat_map(|(payload, _)| payload.clone()).collect::<Vec<_>>(), all);
            got.iter().map(|(payload, size)| (payload.len(), *size)).collect()
        };
        assert_eq!(shapes(&[100; 10]), [(1000, Some(100))]);
        assert_eq!(shapes(&[50, 50, 20, 50]), [(120, Some(50)), (50, None)]);
        assert_eq!(shapes(&[50, 50, 60, 60]), [(100, Some(50)), (120, Some(60))]);
        assert_eq!(shapes(&[50, 0, 50]), [(50, None), (0, None), (50, None)]);
        assert_eq!(shapes(&[0, 0]), [(0, None), (0, None)]);
        assert_eq!(shapes(&[16_000; 5]), [(64_000, Some(16_000)), (16_000, None)]);
        assert_eq!(shapes(&[1000, 65_487, 1000]), [(1000, None), (65_487, None), (1000, None)]);
    }
}

/// Datagrams that differ in more than their length are not joined. Trains with the same segment size are joined.
#[test]
fn other_senders_and_trains_in_a_stream() {
    let mut test = Test::new();
    test.guest_sends(GUEST, "203.0.113.1:8", b"x");
    let socket = test.opened(0);
    let peer = received("203.0.113.1:8");
    let train = Received { segment_size: Some(10), ..peer };
    let got = test.stream(
        &socket,
        [
            (peer, b"one".to_vec()),
            (received("203.0.113.1:9"), b"two".to_vec()),
            (Received { hop_limit: Some(9), ..peer }, b"far".to_vec()),
            (Received { traffic_class: 3, ..peer }, b"ecn".to_vec()),
            (received("203.0.113.1:0"), b"not".to_vec()),
            (train, vec![1; 30]),
            (train, vec![2; 25]),
            (train, vec![3; 20]),
            (peer, vec![4; 10]),
            (peer, vec![5; 11]),
        ],
    );
    let want = [
        (b"one".to_vec(), None),
        (b"two".to_vec(), None),
        (b"far".to_vec(), None),
        (b"ecn".to_vec(), None),
        ([vec![1; 30], vec![2; 25]].concat(), Some(10)),
        ([vec![3; 20], vec![4; 10]].concat(), Some(10)),
        (vec![5; 11], None),
    ];
    assert_eq!(got, want);
    assert_eq!(test.udp.counters().undeliverable, 1);
    // If the link is full, the train is lost, and the next train begins empty.
    test.world.link.full = true;
    test.stream(&socket, [(peer, b"lost".to_vec()), (peer, b"lost".to_vec())]);
    assert!(test.udp.counters().link_full > 0);
}
