//! One bypassed connection.
//!
//! Bytes received on one side are sent on the other. No bytes are taken from a socket until all bytes that were taken
//! earlier have been sent. So a receiver that does not read stops its sender, and the end of a stream is forwarded
//! after its last byte. After a socket has returned "would block", the call is not repeated before the socket
//! reports readiness.
//!
//! An orderly end (FIN) of one direction does not affect the other direction. An abnormal end of one side (RST) is
//! forwarded as a reset of the other side, after all bytes that were received before it. Sockets are closed when
//! their peers have acknowledged everything. If they were closed earlier, a reset would overtake bytes that the kernel
//! still has to send, and the kernel would soon stop sending for a socket that no process has open.

use core::time::Duration;

use super::{Conduit, Side, Taken};
use crate::host::{Readiness, SocketError};
use crate::listing::State;

/// How often a direction may take bytes in one turn.
const TURN: u32 = 4;
/// Time before the first check whether everything was acknowledged. It is doubled for each further check.
const FIRST_CHECK: Duration = Duration::from_millis(4);
/// Maximum time between two such checks.
const MAX_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// What to do next with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Wait until a socket reports readiness.
    Wait,
    /// Give the connection another turn.
    Run,
    /// Check the connection after this time, even if no socket reports readiness.
    CheckAfter(Duration),
    /// The connection has ended. The caller must remove it.
    End {
        /// Whether it has ended with a reset.
        reset: bool,
    },
}

/// The state of a connection.
#[derive(Debug)]
pub(super) struct Relay<C> {
    conduit: C,
    phase: Phase,
    ends: [End; 2],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The second socket is not connected yet.
    Connecting,
    /// Both sockets are connected.
    Open,
    /// All bytes are sent, but not all are acknowledged.
    Draining { reset: bool, check_after: Duration },
}

/// The state of one socket, and of the direction that starts at this socket.
#[derive(Clone, Copy, Debug, Default)]
struct End {
    /// Whether the socket may have received bytes.
    readable: bool,
    /// Whether the socket may have received an urgent byte.
    urgent: bool,
    /// Whether the socket has received the end of its stream. The end may follow other bytes without another report.
    read_closed: bool,
    /// Whether the socket may be able to send.
    writable: bool,
    /// Whether an error was reported. Then received bytes can still be taken, but no bytes can be sent.
    failed: bool,
    /// Number of bytes that were taken from the socket but not yet sent to the other socket.
    buffered: usize,
    /// Number of bytes that were taken from the socket and sent to the other socket.
    carried: u64,
    /// Whether the stream has ended, so that there are no more bytes to take.
    ended: bool,
    /// Whether the sending half of the socket's stream was ended.
    shut: bool,
    /// With a rate limit of this direction: number of bytes that may be taken in this turn. Without a limit: none.
    granted: Option<u32>,
}

impl End {
    /// Whether the direction that starts at this socket has ended.
    const fn is_over(&self) -> bool {
        self.ended && self.buffered == 0
    }
}

impl<C: Conduit> Relay<C> {
    /// The state of a new connection. `readable` is whether bytes of the accepted socket may be taken before an event
    /// reports them. `limited` is whether bytes are taken from each side only in turns.
    pub(super) fn new(conduit: C, readable: bool, limited: [bool; 2]) -> Self {
        let [accepted, connected] =
            limited.map(|limited| End { granted: limited.then_some(0), ..End::default() });
        // The accepted socket can send.
        let accepted = End { readable, urgent: true, writable: true, ..accepted };
        Self { conduit, phase: Phase::Connecting, ends: [accepted, connected] }
    }

    pub(super) const fn conduit(&mut self) -> &mut C {
        &mut self.conduit
    }

    pub(super) const fn peek_conduit(&self) -> &C {
        &self.conduit
    }

    /// The state for lists.
    pub(super) fn state(&self) -> State {
        match self.phase {
            Phase::Connecting => State::Connecting,
            Phase::Open if self.ends.iter().any(End::is_over) => State::Closing,
            Phase::Open => State::Established,
            Phase::Draining { .. } => State::Closing,
        }
    }

    /// Number of bytes that were taken from each side and sent to the other.
    pub(super) fn carried(&self) -> [u64; 2] {
        self.ends.each_ref().map(|end| end.carried)
    }

    pub(super) fn into_conduit(self) -> C {
        self.conduit
    }

    /// Handles the readiness of a socket.
    pub(super) fn on_readiness(&mut self, side: Side, readiness: Readiness) -> Next {
        let end = &mut self.ends[side as usize];
        end.readable |= readiness.readable || readiness.read_closed || readiness.error;
        end.urgent |= readiness.urgent;
        end.read_closed |= readiness.read_closed || readiness.error;
        end.writable |= readiness.writable;
        end.failed |= readiness.error;
        // If the second connection is refused, no bytes have been taken yet, so this needs no special case.
        if self.phase == Phase::Connecting
            && (readiness.error || side == Side::Connected && readiness.writable)
        {
            self.phase = Phase::Open;
        }
        self.proceed()
    }

    /// Moves bytes, and the ends of streams, as far as possible now.
    pub(super) fn proceed(&mut self) -> Next {
        match self.phase {
            Phase::Connecting => return Next::Wait,
            Phase::Draining { reset, check_after } => return self.drain(reset, check_after),
            Phase::Open => {}
        }
        let turns_over = Side::ALL.map(|from| self.carry(from));
        if let Some(reset) = self.end() {
            return self.drain(reset, FIRST_CHECK);
        }
        if turns_over.contains(&true) { Next::Run } else { Next::Wait }
    }

    /// Whether the rate of a side is limited, and its bytes wait only for a turn.
    pub(super) fn wants_turn(&self, from: Side) -> bool {
        let (source, sink) = (&self.ends[from as usize], &self.ends[from.other() as usize]);
        source.granted.is_some()
            && self.phase == Phase::Open
            && !source.ended
            && source.readable
            && source.buffered == 0
            && sink.writable
            && !sink.failed
    }

    /// Moves at most `granted` bytes from one side to the other. Also returns how many bytes were taken.
    pub(super) fn take_turn(&mut self, from: Side, granted: u32) -> (Next, u32) {
        self.ends[from as usize].granted = Some(granted);
        let next = self.proceed();
        let left = self.ends[from as usize].granted.replace(0);
        (next, granted - left.unwrap_or(0))
    }

    /// Moves bytes from one side to the other. Returns true if the turn has ended and there are more bytes to move.
    fn carry(&mut self, from: Side) -> bool {
        for _ in 0..TURN {
            if !self.give(from) {
                return false;
            }
            let [source, sink] = pair(&mut self.ends, from);
            // Bytes are taken only if they can probably be sent.
            if source.ended || !source.readable || !sink.writable || source.granted == Some(0) {
                return false;
            }
            let at_most = source.granted.map_or(usize::MAX, |granted| granted as usize);
            match self.conduit.take(from, source.urgent, at_most) {
                Ok(Taken { len: 0, .. }) => source.ended = true,
                Ok(Taken { len, more }) => {
                    source.granted = source.granted.map(|granted| granted.saturating_sub(len as u32));
                    source.buffered = len;
                    source.readable = more || source.urgent || source.read_closed;
                }
                Err(SocketError::WouldBlock) => {
                    // If there was an urgent byte, it has been taken. The next urgent byte causes a new event.
                    source.readable = source.urgent && source.read_closed;
                    source.urgent = false;
                }
                Err(SocketError::Failed(_)) => (source.ended, source.failed) = (true, true),
            }
        }
        let given = self.give(from);
        let source = &self.ends[from as usize];
        given && source.readable && source.granted != Some(0)
    }

    /// Sends the buffered bytes of one side, then the end of its stream. Returns false if bytes are left, or can't be
    /// sent.
    fn give(&mut self, from: Side) -> bool {
        let [source, sink] = pair(&mut self.ends, from);
        while source.buffered > 0 && sink.writable && !sink.failed {
            match self.conduit.give(from) {
                Ok(len) => {
                    source.buffered = source.buffered.saturating_sub(len);
                    source.carried += len as u64;
                }
                Err(SocketError::WouldBlock) => sink.writable = false,
                Err(SocketError::Failed(_)) => {
                    (sink.failed, sink.readable) = (true, true);
                    // After some errors, such as a lack of memory, the peer would send for ever.
                    self.conduit.abandon(from.other());
                }
            }
        }
        if source.buffered > 0 || sink.failed {
            return false;
        }
        // If both directions have ended, closing the socket sends the FIN.
        if source.ended && !source.failed && !sink.is_over() {
            self.shut(from.other());
        }
        true
    }

    /// Ends the sending half of a socket's stream.
    fn shut(&mut self, side: Side) {
        let end = &mut self.ends[side as usize];
        if !core::mem::replace(&mut end.shut, true)
            && let Err(SocketError::Failed(_)) = self.conduit.shutdown_write(side)
        {
            (end.failed, end.readable) = (true, true);
            self.conduit.abandon(side);
        }
    }

    /// Whether to end the connection with a reset. None if more bytes may be moved.
    fn end(&self) -> Option<bool> {
        let [accepted, connected] = &self.ends;
        if accepted.is_over() && connected.is_over() && !accepted.failed && !connected.failed {
            return Some(false);
        }
        let broken = |end: &End, other: &End| end.failed && (other.failed || end.is_over());
        (broken(accepted, connected) || broken(connected, accepted)).then_some(true)
    }

    /// Ends the connection with a reset.
    pub(super) fn reset(&mut self) -> Next {
        self.conduit.reset_on_close();
        Next::End { reset: true }
    }

    /// Ends the connection, or waits until all sent bytes are acknowledged.
    fn drain(&mut self, mut reset: bool, check_after: Duration) -> Next {
        let mut acknowledged = true;
        for side in Side::ALL {
            let end = &self.ends[side as usize];
            // There is no need to wait until a FIN is acknowledged: the kernel retransmits it after the close, or a
            // reset replaces it.
            acknowledged &= end.failed || self.conduit.unacknowledged(side) <= u32::from(end.shut);
        }
        if !acknowledged {
            if !reset {
                Side::ALL.into_iter().for_each(|side| self.shut(side));
            }
            self.phase = Phase::Draining { reset, check_after: (check_after * 2).min(MAX_CHECK_INTERVAL) };
            return Next::CheckAfter(check_after);
        }
        reset |= self.ends.iter().any(|end| end.failed);
        if reset {
            self.conduit.reset_on_close();
        }
        Next::End { reset }
    }
}

/// The state of the side `from`, and the state of the other side.
fn pair(ends: &mut [End; 2], from: Side) -> [&mut End; 2] {
    let [accepted, connected] = ends;
    match from {
        Side::Accepted => [accepted, connected],
        Side::Connected => [connected, accepted],
    }
}
