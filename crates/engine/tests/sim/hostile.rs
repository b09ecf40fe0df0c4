//! A guest that sends valid, nearly valid and invalid segments in any order, while the socket returns any results that
//! a kernel can return. Nothing panics, and the bytes that reach the socket are a prefix of the bytes that were sent
//! (the virtual socket compares every byte).

use std::time::Duration;

use proptest::prelude::*;

use testkit::stream::{CONNECTION_RESET, Closed};

use crate::script::{SYN, Script};

/// An event.
#[derive(Clone, Debug)]
enum Event {
    /// A segment of the guest: flags as bits, position, length, acknowledgment, window, SACK blocks.
    Segment {
        flags: u8,
        at: i64,
        len: i64,
        ack: i64,
        window: u16,
        sack: Vec<(i64, i64)>,
    },
    /// The next bytes of the stream, in the segment of an honest guest, which acknowledges all received bytes.
    Honest {
        len: i64,
    },
    /// Bytes of the peer arrive.
    Arrive(u16),
    /// The peer reads some of the bytes that were sent to it, or all.
    Take(u16),
    TakeAll,
    End,
    Reset,
    /// The link becomes full, or has room again.
    Link(bool),
    Pass(u32),
}

fn event() -> impl Strategy<Value = Event> {
    // Most numbers are near the current positions, some are random.
    let near = || prop_oneof![8 => -3000i64..20_000, 2 => -10i64..10, 1 => any::<u32>().prop_map(i64::from)];
    let flags =
        prop_oneof![12 => Just(0x10u8), 4 => Just(0x11), 1 => Just(0x04), 1 => Just(0x02), 2 => any::<u8>()];
    let len = prop_oneof![3 => Just(0i64), 3 => 1i64..1460, 1 => 1460i64..60_000];
    let window = prop_oneof![3 => Just(512u16), 1 => Just(0), 1 => 0u16..20, 1 => any::<u16>()];
    let sack = prop::collection::vec((near(), near()), 0..4);
    let segment = (flags, near(), len, near(), window, sack)
        .prop_map(|(flags, at, len, ack, window, sack)| Event::Segment { flags, at, len, ack, window, sack });
    prop_oneof![
        10 => segment,
        10 => (1i64..5000).prop_map(|len| Event::Honest { len }),
        6 => any::<u16>().prop_map(Event::Arrive),
        4 => any::<u16>().prop_map(Event::Take),
        3 => Just(Event::TakeAll),
        1 => Just(Event::End),
        1 => prop_oneof![9 => Just(Event::TakeAll), 1 => Just(Event::Reset)],
        2 => any::<bool>().prop_map(Event::Link),
        3 => prop_oneof![5 => 0u32..2_000, 1 => 0u32..20_000_000].prop_map(Event::Pass),
    ]
}

/// A run: the connection, and the state of an honest guest.
struct Run {
    script: Script,
    next: i64,
    acknowledged: i64,
}

impl Run {
    fn apply(&mut self, event: &Event) {
        let peer = self.script.peer();
        match *event {
            Event::Segment { flags, at, len, ack, window, ref sack } => {
                let flags = letters(flags);
                let mut line = format!("{flags} {at}:{} ack {ack} win {window}", at + len);
                if !sack.is_empty() {
                    let blocks: Vec<_> = sack.iter().map(|(start, end)| format!("{start}:{end}")).collect();
                    line += &format!(" sack {}", blocks.join(","));
                }
                // Bytes before the start of the stream have no defined content.
                if at >= 1 && at + len < 1 << 30 || len == 0 {
                    self.script.guest(&line);
                }
            }
            Event::Honest { len } => {
                let line =
                    format!(". {}:{} ack {} win 512", self.next, self.next + len, self.acknowledged + 1);
                self.script.guest(&line);
                self.next += len;
            }
            Event::Arrive(len) => peer.arrive_unless_ended(len.into()),
            Event::Take(len) => {
                let sent = peer.state().sent;
                let until = peer.state().acknowledged + u64::from(len);
                peer.acknowledge(sent.min(until));
            }
            Event::TakeAll => peer.acknowledge_all(),
            Event::End => peer.end(),
            Event::Reset => peer.fail(CONNECTION_RESET),
            Event::Link(full) => self.script.set_link_full(full),
            Event::Pass(millis) => self.script.pass(Duration::from_millis(millis.into())),
        }
        self.script.settle();
        for line in self.script.sent() {
            self.observe(&line);
        }
    }

    /// Updates the honest guest's state.
    fn observe(&mut self, line: &str) {
        let end = line.split([' ', ':']).nth(2).and_then(|end| end.parse::<i64>().ok());
        self.acknowledged = self.acknowledged.max(end.unwrap_or(0) - 1).min(1 << 30);
        assert!(self.script.stack.tcp().queue_memory() <= (1 << 20) + (32 << 10));
    }
}

fn letters(flags: u8) -> String {
    let all = [(0x02, 'S'), (0x01, 'F'), (0x04, 'R'), (0x08, 'P'), (0x10, '.')];
    let letters: String = all.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, letter)| letter).collect();
    if letters.is_empty() { "-".into() } else { letters }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn no_guest_breaks_a_connection(
        events in prop::collection::vec(event(), 1..120),
        accepted: bool,
        guest_iss: u32,
        capacity in prop_oneof![Just(1u64 << 20), 1u64..5000],
    ) {
        let mut script = Script::new();
        script.guest_iss = guest_iss;
        if accepted {
            script.accept();
            script.us("S 0:0");
        } else {
            script.guest(SYN);
        }
        script.peer().state().send_capacity = capacity;
        script.peer().connect();
        script.settle();
        script.guest(if accepted { "S. 0:0 ack 1 win 65535 mss 1460 wscale 7 sackok" } else { ". 1:1 ack 1" });
        let mut run = Run { script, next: 1, acknowledged: 0 };
        for event in &events {
            if run.script.peer().closed().is_some() {
                break;
            }
            run.apply(event);
        }
        // When the guest no longer answers, the connection ends and returns its memory.
        run.script.set_link_full(false);
        for _ in 0..20 {
            run.script.peer().acknowledge_all();
            run.script.settle();
        }
        run.script.pass(Duration::from_secs(30_000));
        prop_assert!(run.script.stack.tcp().is_empty(), "the connection has not ended");
        prop_assert_eq!(run.script.stack.tcp().queue_memory(), 0);
        prop_assert!(run.script.peer().closed() != Some(Closed::Unread));
    }

    #[test]
    fn no_frame_breaks_the_table(frames in prop::collection::vec((any::<u8>(), any::<u32>(), any::<u32>(), 0i64..3000), 1..60)) {
        // Segments of many connections, and segments without a connection. The table stays within its limit, and resets
        // are sent only as answers.
        let mut script = Script::new();
        script.our_iss = Some(0);
        for (flags, seq, ack, len) in frames {
            script.guest.set_port(40_000 + (seq % 7) as u16);
            script.guest_iss = seq.wrapping_sub(1);
            script.guest(&format!("{} 1:{} ack {ack} win {}", letters(flags), 1 + len, ack as u16));
            prop_assert!(script.stack.tcp().len() <= 4);
            prop_assert!(script.sent().len() <= 2);
        }
    }
}
