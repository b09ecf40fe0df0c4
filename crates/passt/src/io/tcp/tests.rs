//! TCP sockets with urgent bytes in their streams, for both methods of peeking.

use std::io::Write;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use rustix::net::{RecvFlags, recv};

use super::*;
use crate::isolated::isolated;

/// Maximum time of every wait. No wait should come close to this time.
const PATIENCE: Duration = Duration::from_secs(60);

/// An action on a connection.
#[derive(Clone, Copy, Debug)]
enum Act {
    /// The peer sends this number of bytes.
    Send(usize),
    /// The peer sends an urgent byte.
    SendUrgent,
    /// Up to this number of bytes is peeked at and sent to the guest.
    Peek(usize),
    /// A retransmission: the next peek starts at this percentage of the unacknowledged bytes.
    GoBack(u32),
    /// The guest acknowledges this percentage of the bytes that were peeked at.
    Discard(u32),
}

/// A socket, its peer, and how far the test has read the stream.
struct Line {
    peer: TcpStream,
    socket: Stream,
    sent: Vec<u8>,
    urgent: Option<usize>,
    /// Three positions: the number of discarded bytes, the end of the bytes that were peeked at (both from the start of
    /// the stream), and the next offset to peek at (from the first byte in the socket).
    gone: usize,
    seen: usize,
    offset: usize,
}

fn pair(method: PeekMethod) -> (TcpStream, Stream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    sockopt::set_socket_oobinline(&listener, true).unwrap();
    let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    peer.set_nodelay(true).unwrap();
    let accepted = listener.accept().unwrap().0;
    assert!(sockopt::socket_oobinline(&accepted).unwrap(), "inherited");
    (peer, Stream::new(accepted.into(), method, None))
}

impl Line {
    fn new(method: PeekMethod) -> Self {
        let (peer, socket) = pair(method);
        Self { peer, socket, sent: Vec::new(), urgent: None, gone: 0, seen: 0, offset: 0 }
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Send(len) => {
                let bytes: Vec<u8> =
                    (self.sent.len()..).map(|at| (at * 31 + at / 251) as u8).take(len).collect();
                self.peer.write_all(&bytes).unwrap();
                self.sent.extend(bytes);
                self.arrived();
            }
            Act::SendUrgent => {
                rustix::net::send(&self.peer, b"!", SendFlags::OOB).unwrap();
                self.urgent = Some(self.sent.len());
                self.sent.push(b'!');
                self.arrived();
            }
            Act::Peek(len) => _ = self.peek(len),
            Act::GoBack(percent) => self.offset -= self.offset * percent as usize / 100,
            Act::Discard(percent) => self.discard((self.seen - self.gone) * percent as usize / 100),
        }
        let expected = self.urgent.and_then(|urgent| urgent.checked_sub(self.gone));
        assert_eq!(self.socket.urgent_mark(), expected.map(|mark| mark as u32));
    }

    /// Waits until all sent bytes have arrived.
    fn arrived(&self) {
        let end = Instant::now() + PATIENCE;
        while sys::stream::unread(&self.socket).unwrap() as usize != self.sent.len() - self.gone {
            assert!(Instant::now() < end, "it does not arrive");
            thread::yield_now();
        }
    }

    /// Peeks at bytes from the offset on. Returns false if there are no bytes.
    fn peek(&mut self, len: usize) -> bool {
        let mut bytes = vec![0; len];
        let peeked = self.socket.peek(self.offset as u32, bytes.as_mut_slice().into());
        let at = self.gone + self.offset;
        let Ok(peeked) = peeked else {
            assert_eq!(peeked, Err(SocketError::WouldBlock));
            let stuck = matches!(self.socket.method, PeekMethod::Scratch(_)) && self.urgent == Some(at);
            assert!(at == self.sent.len() || stuck && self.gone < at);
            return false;
        };
        assert_eq!(bytes[..peeked], self.sent[at..at + peeked]);
        assert!(self.urgent.is_none_or(|urgent| urgent <= at || at + peeked <= urgent), "beyond the mark");
        self.offset += peeked;
        self.seen = self.seen.max(at + peeked);
        peeked > 0
    }

    fn discard(&mut self, len: usize) {
        if len > 0 {
            assert_eq!(self.socket.discard(len as u32), Ok(len as u32));
            self.gone += len;
            self.offset = self.offset.saturating_sub(len);
        }
    }
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        3 => (1_usize..3000).prop_map(Act::Send),
        2 => Just(Act::SendUrgent),
        4 => (1_usize..2000).prop_map(Act::Peek),
        1 => (0_u32..=100).prop_map(Act::GoBack),
        3 => (0_u32..=100).prop_map(Act::Discard),
    ];
    proptest::collection::vec(act, 0..60)
}

proptest! {
    /// No byte is skipped or read twice, and the urgent mark is found at any position.
    #[test]
    fn urgent_bytes_are_bytes_of_the_stream(acts in acts(), scratch: bool) {
        isolated(move || {
            let mut line = Line::new(if scratch { PeekMethod::scratch() } else { PeekMethod::probe() });
            for act in acts {
                line.act(act);
            }
            while line.gone < line.sent.len() {
                while line.peek(1000) {}
                line.discard(line.seen - line.gone);
            }
            line.act(Act::SendUrgent);
        });
    }
}

#[test]
fn urgent_bytes_are_sent_as_such() {
    isolated(|| {
        let (peer, mut socket) = pair(PeekMethod::probe());
        assert_eq!(socket.send(b"before"[..].into()), Ok(6));
        assert_eq!(socket.send_urgent(b'!'), Ok(()));
        let end = Instant::now() + PATIENCE;
        let mut byte = [0];
        while recv(&peer, &mut byte, RecvFlags::OOB | RecvFlags::DONTWAIT).is_err() {
            assert!(Instant::now() < end, "it does not arrive");
            thread::yield_now();
        }
        assert_eq!(byte, [b'!']);
        let mut filled = 0;
        while socket.send([0; 1000][..].into()).is_ok() {
            filled += 1;
        }
        assert!(filled > 0);
        assert_eq!(socket.send_urgent(b'!'), Err(SocketError::WouldBlock));
    });
}
