//! One bypassed connection.
//!
//! Bytes received on one side are sent on the other. No bytes are taken from a socket until all that were taken earlier
//! have been sent. So a receiver that does not read stops its sender, and the end of a stream follows its last byte
//! . After a socket has returned "would block", the call is not repeated before the socket reports readiness
//!
//!
//! An orderly end (FIN) of one direction leaves the other as it is. An abnormal end of one side (RST) becomes a reset
//! of the other side, after all bytes that were received before it. Sockets are closed when their peers have
//! acknowledged everything: earlier, a reset would overtake bytes that the kernel still has to send, and the kernel
//! soon stops sending for sockets that no process has open.

use core::time::Duration;

use super::{Conduit, Side, Taken};
use crate::host::{Readiness, SocketError};

/// How often a direction may take bytes in one turn.
const TURN: u32 = 4;
/// How long to wait before the first check whether everything was acknowledged; doubled for each further check.
const FIRST_CHECK: Duration = Duration::from_millis(4);
/// The longest time between two such checks.
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
    /// The connection has ended: remove it.
    End {
        /// By a reset.
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
    /// Everything is sent, and not all of it is acknowledged.
    Draining { reset: bool, check_after: Duration },
}

/// One socket, and the direction that starts from it.
#[derive(Clone, Copy, Debug, Default)]
struct End {
    /// The socket may have bytes to take.
    readable: bool,
    /// The socket may have an urgent byte to take.
    urgent: bool,
    /// The socket has received the end of its stream, which may follow other bytes without another report.
    read_closed: bool,
    /// The socket may be able to send.
    writable: bool,
    /// An error was reported. Received bytes can still be taken, but nothing sent.
    failed: bool,
    /// Bytes taken from the socket that have not been sent on.
    buffered: usize,
    /// The stream has ended: there are no more bytes to take.
    ended: bool,
    /// The sending half of its stream was ended.
    shut: bool,
}

impl End {
    /// Whether the direction from here has ended.
    const fn is_over(&self) -> bool {
        self.ended && self.buffered == 0
    }
}

impl<C: Conduit> Relay<C> {
    pub(super) fn new(conduit: C) -> Self {
        // The accepted socket may have received bytes already, and can send.
        let accepted = End { readable: true, urgent: true, writable: true, ..End::default() };
        Self { conduit, phase: Phase::Connecting, ends: [accepted, End::default()] }
    }

    pub(super) const fn conduit(&mut self) -> &mut C {
        &mut self.conduit
    }

    pub(super) fn into_conduit(self) -> C {
        self.conduit
    }

    /// A socket reported readiness.
    pub(super) fn on_readiness(&mut self, side: Side, readiness: Readiness) -> Next {
        let end = &mut self.ends[side as usize];
        end.readable |= readiness.readable || readiness.read_closed || readiness.error;
        end.urgent |= readiness.urgent;
        end.read_closed |= readiness.read_closed || readiness.error;
        end.writable |= readiness.writable;
        end.failed |= readiness.error;
        // If the second connection is refused, no bytes have been taken: it needs no special case.
        if self.phase == Phase::Connecting
            && (readiness.error || side == Side::Connected && readiness.writable)
        {
            self.phase = Phase::Open;
        }
        self.proceed()
    }

    /// Moves bytes and ends as far as possible now.
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

    /// Moves bytes from one side to the other. True if the turn ended with more to move.
    fn carry(&mut self, from: Side) -> bool {
        for _ in 0..TURN {
            if !self.give(from) {
                return false;
            }
            let [source, sink] = pair(&mut self.ends, from);
            // Take bytes only if they can probably be sent.
            if source.ended || !source.readable || !sink.writable {
                return false;
            }
            match self.conduit.take(from, source.urgent) {
                Ok(Taken { len: 0, .. }) => source.ended = true,
                Ok(Taken { len, more }) => {
                    source.buffered = len;
                    source.readable = more || source.urgent || source.read_closed;
                }
                Err(SocketError::WouldBlock) => {
                    // If there was an urgent byte, it has been taken. The next one causes a new event.
                    source.readable = source.urgent && source.read_closed;
                    source.urgent = false;
                }
                Err(SocketError::Failed(_)) => (source.ended, source.failed) = (true, true),
            }
        }
        self.give(from) && self.ends[from as usize].readable
    }

    /// Sends the buffered bytes of one side, then the end of its stream. False if bytes are left, or can't be sent.
    fn give(&mut self, from: Side) -> bool {
        let [source, sink] = pair(&mut self.ends, from);
        while source.buffered > 0 && sink.writable && !sink.failed {
            match self.conduit.give(from) {
                Ok(len) => source.buffered = source.buffered.saturating_sub(len),
                Err(SocketError::WouldBlock) => sink.writable = false,
                Err(SocketError::Failed(_)) => (sink.failed, sink.readable) = (true, true),
            }
        }
        if source.buffered > 0 || sink.failed {
            return false;
        }
        // If both directions have ended, the close sends the FIN.
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
        }
    }

    /// Whether no more bytes will move. If so: whether to end the connection by a reset.
    fn end(&self) -> Option<bool> {
        let [accepted, connected] = &self.ends;
        if accepted.is_over() && connected.is_over() && !accepted.failed && !connected.failed {
            return Some(false);
        }
        let broken = |end: &End, other: &End| end.failed && (other.failed || end.is_over());
        (broken(accepted, connected) || broken(connected, accepted)).then_some(true)
    }

    /// Ends the connection by a reset.
    pub(super) fn reset(&mut self) -> Next {
        self.conduit.reset_on_close();
        Next::End { reset: true }
    }

    /// Ends the connection, or waits until everything sent is acknowledged.
    fn drain(&mut self, mut reset: bool, check_after: Duration) -> Next {
        let mut acknowledged = true;
        for side in Side::ALL {
            let end = &self.ends[side as usize];
            // An unacknowledged FIN need not be waited for: the kernel retransmits it, and a reset replaces it.
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

/// The end `from`, and the other.
fn pair(ends: &mut [End; 2], from: Side) -> [&mut End; 2] {
    let [accepted, connected] = ends;
    match from {
        Side::Accepted => [accepted, connected],
        Side::Connected => [connected, accepted],
    }
}
