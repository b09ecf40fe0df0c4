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
    (peer, Stream::new(accepted.into(), Shared::new(method), None))
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
        let taken_out = self.gone + self.socket.kept.len();
        while sys::stream::unread(&self.socket).unwrap() as usize != self.sent.len() - taken_out {
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
            let stuck =
                matches!(self.socket.kept.shared.method, PeekMethod::Scratch(_)) && self.urgent == Some(at);
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

/// Small messages leave the socket at once, so nothing has to be discarded there. More than fits is peeked at.
#[test]
fn small_messages_are_kept_and_bulk_stays_in_the_socket() {
    isolated(|| {
        for method in [PeekMethod::probe(), PeekMethod::scratch()] {
            let mut line = Line::new(method);
            let unread = |line: &Line| sys::stream::unread(&line.socket).unwrap() as usize;
            for _ in 0..100 {
                line.act(Act::Send(700));
                assert!(line.peek(5000));
                assert_eq!((line.offset, unread(&line), line.socket.kept.len()), (700, 0, 700));
                // A retransmission of a part, together with new bytes.
                line.act(Act::Send(10));
                line.offset = 600;
                assert!(line.peek(5000));
                assert_eq!((line.offset, unread(&line)), (710, 10));
                line.discard(650);
                line.discard(60);
                assert_eq!((line.offset, unread(&line), line.socket.kept.len()), (0, 0, 0));
            }
            line.act(Act::Send(10_000));
            assert!(line.peek(9000));
            assert_eq!((line.offset, unread(&line)), (9000, 10_000 - kept::LEN));
            line.offset = 1000;
            assert!(line.peek(20_000));
            assert_eq!(line.offset, 10_000);
            line.discard(10_000);
            line.act(Act::Send(5000));
            assert!(line.peek(5000));
            assert_eq!((unread(&line), line.socket.kept.len()), (5000, 0));
        }
    });
}

/// The buffers for small messages are few. A socket that gets none leaves its bytes in the socket.
#[test]
fn without_a_buffer_small_messages_stay_in_the_socket() {
    isolated(|| {
        let shared = Shared::new(PeekMethod::probe());
        let buffers = &shared.buffers;
        let mut all = Vec::new();
        while let Some(buffer) = buffers.take() {
            all.push(buffer);
        }
        let mut line = Line::new(PeekMethod::probe());
        line.socket.kept = Kept::new(shared.clone());
        line.act(Act::Send(10));
        assert!(line.peek(100));
        assert_eq!((sys::stream::unread(&line.socket), line.socket.kept.len()), (Ok(10), 0));
        line.discard(10);
        // A socket that ends gives its buffer back.
        all.pop().into_iter().for_each(|buffer| buffers.give_back(buffer));
        line.act(Act::Send(10));
        assert!(line.peek(100));
        assert!(buffers.take().is_none());
        drop(line);
        assert!(buffers.take().is_some());
    });
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

/// A peer that sends a small message and then resets the connection: the message is returned first, and then the error,
/// without another event.
#[test]
fn an_error_after_a_message_is_not_forgotten() {
    isolated(|| {
        let (mut peer, mut socket) = pair(PeekMethod::Offset);
        peer.write_all(&[7; kept::LEN]).unwrap();
        sockopt::set_socket_linger(&peer, Some(Duration::ZERO)).unwrap();
        drop(peer);
        let peek = |socket: &mut Stream, offset: usize| {
            let mut bytes = vec![0; 2 * kept::LEN];
            socket.peek(offset as u32, bytes.as_mut_slice().into())
        };
        assert_eq!(peek(&mut socket, 0), Ok(kept::LEN));
        assert!(socket.has_error());
        assert_eq!(peek(&mut socket, kept::LEN), Err(stream_error(io::Errno::CONNRESET)));
        assert!(!socket.has_error());
    });
}

/// There may be ten thousands of sockets.
#[test]
fn a_socket_is_small() {
    assert!(size_of::<Stream>() <= 40, "{}", size_of::<Stream>());
}
