//! A guest whose handshake is valid or nearly valid, and whose segments then lie: options in any order and of any content,
//! urgent pointers to anywhere, retransmissions that contradict what was sent, and both ends that open at once. The
//! connection may end, but nothing panics, and a second connection, which is honest, loses nothing.

use std::time::Duration;

use proptest::prelude::*;

use crate::script::{SYN, Script};

/// An option of TCP, as bytes.
fn option() -> impl Strategy<Value = Vec<u8>> {
    let number = any::<[u8; 8]>();
    prop_oneof![
        any::<u16>().prop_map(|mss| [&[2, 4][..], &mss.to_be_bytes()].concat()),
        any::<u8>().prop_map(|scale| vec![3, 3, scale]),
        Just(vec![4, 2]),
        (any::<[u8; 8]>(), 0u8..40).prop_map(|(blocks, len)| [&[5, len][..], &blocks].concat()),
        number.prop_map(|times| [&[8, 10][..], &times].concat()),
        Just(vec![1]),
        Just(vec![0]),
        (any::<u8>(), any::<u8>()).prop_map(|(kind, len)| vec![kind, len]),
    ]
}

/// Options in any order, padded to a multiple of four bytes.
fn options() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(option(), 0..6).prop_map(|options| {
        let mut bytes = options.concat();
        bytes.truncate(40);
        bytes.resize(bytes.len().next_multiple_of(4), 1);
        bytes
    })
}

/// A segment of the guest that lies.
#[derive(Clone, Debug)]
struct Lie {
    flags: &'static str,
    at: i64,
    len: i64,
    ack: i64,
    window: u16,
    urgent: u16,
    options: Vec<u8>,
    /// The payload consists of this byte. Segments that overlap have different ones.
    byte: u8,
    /// Time that passes after the segment, in ms.
    pass: u64,
}

fn lie() -> impl Strategy<Value = Lie> {
    let flags =
        prop::sample::select(vec![".", "P.", "PU.", "U.", "F.", "FPU.", "S", "S.", "SF", "R", "-", "FSRPU."]);
    let near = prop_oneof![8 => 0i64..4000, 2 => -3i64..3, 1 => -70_000i64..70_000];
    let len = prop_oneof![1 => Just(0i64), 4 => 1i64..1400];
    let window = prop_oneof![Just(512u16), Just(0), any::<u16>()];
    let pass = prop_oneof![6 => Just(0u64), 2 => 1u64..50, 1 => 50u64..5000];
    let fields = (flags, near, len, 0i64..5000, window, any::<u16>(), options(), any::<u8>(), pass);
    fields.prop_map(|(flags, at, len, ack, window, urgent, options, byte, pass)| Lie {
        flags,
        at,
        len,
        ack,
        window,
        urgent,
        options,
        byte,
        pass,
    })
}

/// Sends a segment that lies.
fn tell(script: &mut Script, lie: &Lie) {
    let Lie { flags, at, len, ack, window, urgent, .. } = *lie;
    let line = format!("{flags} {at}:{} ack {ack} win {window} urg {urgent}", at + len);
    let mut frame = script.write_with(&line, Some(&lie.options));
    let payload = frame.len().min(54 + lie.options.len())..;
    frame[payload].fill(lie.byte);
    script.frames(&[frame]);
    script.pass(Duration::from_millis(lie.pass));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn an_honest_connection_beside_a_liar_loses_nothing(
        syn in prop::option::of(options()),
        accepted: bool,
        lies in prop::collection::vec(lie(), 1..60),
    ) {
        let mut script = Script::connected();
        let honest = (script.guest.port(), script.our_iss);
        let first = script.peer_of_first();
        script.another_port();
        if accepted {
            // Both ends open at once, if one of the lies is a SYN.
            script.accept();
        } else {
            let frame = script.write_with(SYN, syn.as_deref());
            script.frames(&[frame]);
        }
        let sockets = script.host.peers.len();
        if let Some(peer) = script.host.peers.get(1) {
            peer.state().kept = Some(Vec::new());
            peer.connect();
        }
        script.settle();
        let iss = script.sent_frames().iter().find_map(|frame| {
            let segment = testkit::guest::segment(frame)?.1;
            (segment.flags().contains(wire::tcp::Flags::SYN)).then_some(segment.seq().0)
        });
        script.our_iss = iss;
        let liar = (script.guest.port(), iss);
        let mut sent = 0;
        for (number, lie) in lies.iter().enumerate() {
            (script.guest, script.our_iss) = (at_port(&script, liar.0), liar.1);
            tell(&mut script, lie);
            script.sent_frames();
            if let Some(peer) = script.host.peers.get(1).filter(|_| number % 7 == 0) {
                peer.arrive_unless_ended(700);
                peer.acknowledge_all();
                script.settle();
                script.sent_frames();
            }
            (script.guest, script.our_iss) = (at_port(&script, honest.0), honest.1);
            script.guest(&format!("P. {}:{} ack 1 win 512", 1 + sent, 101 + sent));
            script.sent_frames();
            sent += 100;
            prop_assert_eq!(first.state().sent, sent);
            first.acknowledge_all();
            script.settle();
            prop_assert!(script.stack.tcp().len() <= 4 && script.host.peers.len() <= sockets + lies.len());
            prop_assert!(script.stack.tcp().queue_memory() <= 3 << 20);
        }
        prop_assert!(first.closed().is_none());
        script.pass(Duration::from_secs(100_000));
        prop_assert!(script.stack.tcp().is_empty() && script.stack.timers().is_empty());
        prop_assert_eq!(script.stack.tcp().queue_memory(), 0);
    }
}

/// The guest's address with another port.
fn at_port(script: &Script, port: u16) -> std::net::SocketAddr {
    std::net::SocketAddr::new(script.guest.ip(), port)
}
