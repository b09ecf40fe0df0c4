//! Peers that lie or vanish, as a socket of the host shows it: errors of all kinds at any time, an end before the data or
//! instead of them, data without end, and windows that stay closed for minutes. The connection may end, but nothing
//! panics, its guest hears of its end, and a second connection, whose peer is honest, loses nothing and does not wait.

use std::time::Duration;

use engine::host::Errno;
use proptest::prelude::*;
use testkit::{guest::segment, stream::Peer};
use wire::tcp::Flags;

use crate::script::{SYN, Script};

/// Bytes that the honest connection sends after each act, in each direction.
const BYTES: u64 = 100;
/// ECONNRESET, ETIMEDOUT, EHOSTUNREACH, ENETUNREACH, ECONNREFUSED, EPIPE, EPROTO, EACCES, EPERM, ENOMEM, ENOPROTOOPT,
/// EMSGSIZE: what ICMP errors, resets, timeouts and filters of the host become.
const ERRORS: [i32; 12] = [104, 110, 113, 101, 111, 32, 71, 13, 1, 12, 92, 90];

/// What happens at the connection whose peer lies.
#[derive(Clone, Debug)]
enum Act {
    /// The peer accepts the connection.
    Connect,
    /// Bytes of the peer arrive.
    Arrive(u64),
    /// The peer has sent its FIN.
    End,
    /// The socket has failed. What has arrived stays readable.
    Fail(Errno),
    /// The peer acknowledges all bytes. Without this, the socket is full at some time.
    Acknowledge,
    /// The guest sends bytes.
    Send(u64),
    /// The guest acknowledges all bytes.
    Read,
    /// Time passes.
    Pass(Duration),
}

fn act() -> impl Strategy<Value = Act> {
    let seconds = prop_oneof![4 => 1u64..100, 2 => 100u64..5000, 1 => 60_000u64..600_000];
    prop_oneof![
        3 => Just(Act::Connect),
        4 => (1u64..60_000).prop_map(Act::Arrive),
        1 => Just(Act::End),
        1 => prop::sample::select(&ERRORS[..]).prop_map(|number| Act::Fail(Errno(number))),
        2 => Just(Act::Acknowledge),
        6 => (1u64..1400).prop_map(Act::Send),
        4 => Just(Act::Read),
        4 => seconds.prop_map(|ms| Act::Pass(Duration::from_millis(ms))),
    ]
}

/// One end of a connection, in the guest.
#[derive(Clone, Copy, Debug)]
struct End {
    port: u16,
    our_iss: Option<u32>,
    /// Bytes that the guest has sent.
    sent: u64,
    /// Bytes that have arrived in order.
    received: u64,
    /// The engine has ended the connection.
    reset: bool,
}

impl End {
    fn of(script: &Script) -> Self {
        Self { port: script.guest.port(), our_iss: script.our_iss, sent: 0, received: 0, reset: false }
    }

    /// The next segments are those of this connection.
    fn select(&self, script: &mut Script) {
        script.guest.set_port(self.port);
        script.our_iss = self.our_iss;
    }

    /// Notes what the engine has sent to this connection.
    fn hear(&mut self, frames: &[Vec<u8>]) {
        let segments = frames.iter().filter_map(|frame| segment(frame)).map(|(_, segment)| segment);
        for segment in segments.filter(|segment| segment.header.destination_port.get() == self.port) {
            if segment.flags().contains(Flags::SYN) {
                self.our_iss = Some(segment.seq().0);
            }
            self.reset |= segment.flags().contains(Flags::RST);
            if let Some(iss) = self.our_iss {
                // The SYN takes a number.
                let end = u64::from(segment.seq().0.wrapping_sub(iss)) + segment.payload.len() as u64;
                self.received = self.received.max(end.saturating_sub(1));
            }
        }
    }

    /// Sends bytes of the guest, and acknowledges all bytes of the peer.
    fn send(&mut self, script: &mut Script, len: u64) {
        self.select(script);
        let (at, end, ack) = (1 + self.sent, 1 + self.sent + len, 1 + self.received);
        let flags = if len == 0 { "." } else { "P." };
        script.guest(&format!("{flags} {at}:{end} ack {ack} win 512"));
        self.sent += len;
    }
}

/// Does `act`, if it is possible in the socket's state.
fn perform(act: &Act, script: &mut Script, liar: &mut End, peer: &Peer) {
    let (connected, over) = {
        let state = peer.state();
        (state.connected, state.failed || state.closed.is_some())
    };
    match *act {
        Act::Pass(time) => script.pass(time),
        Act::Send(len) if liar.our_iss.is_some() => liar.send(script, len),
        Act::Read if liar.our_iss.is_some() => liar.send(script, 0),
        Act::Send(_) | Act::Read => {}
        _ if over => {}
        Act::Connect if !connected => peer.connect(),
        Act::Arrive(len) if connected => peer.arrive_unless_ended(len),
        Act::End if connected => peer.end(),
        Act::Acknowledge if connected => peer.acknowledge_all(),
        Act::Fail(errno) => peer.fail(errno),
        Act::Connect | Act::Arrive(_) | Act::End | Act::Acknowledge => {}
    }
    script.settle();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn an_honest_peer_beside_one_that_lies_loses_nothing(
        acts in prop::collection::vec(act(), 1..80),
        accepted: bool,
        capacity in 1000u64..100_000,
    ) {
        let mut script = Script::connected();
        let first = script.peer_of_first();
        let mut honest = End::of(&script);
        script.host.send_capacity = Some(capacity);
        script.another_port();
        if accepted {
            script.accept();
            let mut opened = End::of(&script);
            opened.hear(&script.sent_frames());
            script.our_iss = opened.our_iss;
            script.guest("S. 0:0 ack 1 win 65535 mss 1460 wscale 7 sackok");
        } else {
            script.guest(SYN);
        }
        let peer = script.peer();
        let mut liar = End::of(&script);
        for act in &acts {
            perform(act, &mut script, &mut liar, &peer);
            first.arrive(BYTES);
            script.settle();
            let frames = script.sent_frames();
            liar.hear(&frames);
            honest.hear(&frames);
            prop_assert_eq!(honest.received, first.state().received);
            honest.send(&mut script, BYTES);
            first.acknowledge_all();
            script.settle();
            let frames = script.sent_frames();
            liar.hear(&frames);
            honest.hear(&frames);
            prop_assert_eq!(first.state().sent, honest.sent);
            prop_assert!(!honest.reset && first.closed().is_none());
            prop_assert!(script.stack.tcp().queue_memory() <= 3 << 20);
        }
        // A failed connection does not stay, and the guest hears of it at once, if nothing is readable any more. A
        // destination that does not answer does not answer the guest, either.
        let (failed, connected) = {
            let state = peer.state();
            (state.failed, state.connected)
        };
        let unread = peer.unread();
        if failed && unread == 0 {
            prop_assert!(peer.closed().is_some() && (liar.reset || !connected), "{:?} {:?}", liar, peer);
        }
        script.pass(Duration::from_secs(100_000));
        prop_assert!(script.stack.tcp().is_empty() && script.stack.timers().is_empty());
        prop_assert!(peer.closed().is_some());
        prop_assert_eq!(script.stack.tcp().queue_memory(), 0);
    }
}
