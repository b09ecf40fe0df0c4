//! One bypassed connection.
//!
//! What is received on one side is sent on the other, and nothing is taken from a socket before all that was taken
//! earlier has left again. So a receiver that does not read stops its sender, and an end of a stream is passed on behind
//! the last byte before it. What a socket was found unable to do is not tried again before it reports a change
//!
//!
//! An orderly end (FIN) of one direction leaves the other as it is. An abnormal end of one side (RST) is told to the
//! other side as what it is, behind all that was received before it. Sockets are closed when their
//! peers have acknowledged everything: before, a reset would overtake what the kernel still has to send, and the kernel
//! would soon give up sending what belongs to nobody.

use core::time::Duration;

use super::{Conduit, Side, Taken};
use crate::host::{Readiness, SocketError};

/// How often a direction may take bytes before others get their turn.
const TURN: u32 = 4;
/// How long to wait before looking for the first time whether everything was acknowledged; twice as long each further
/// time.
const FIRST_LOOK: Duration = Duration::from_millis(4);
/// The longest time between two such looks.
const LAST_LOOK: Duration = Duration::from_secs(1);

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Nothing to do before a socket reports readiness.
    Waits,
    /// Its turn is over, but not its work.
    Runnable,
    /// To be looked at again after some time, if no socket reports readiness before.
    LooksAgain(Duration),
    /// To be dropped.
    Over {
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
    /// The second connection does not stand yet.
    Connecting,
    /// Bytes move.
    Open,
    /// All is sent; peers have still to acknowledge it.
    Leaving { reset: bool, look: Duration },
}

/// One socket, and the direction that starts from it.
#[derive(Clone, Copy, Debug, Default)]
struct End {
    /// It may have something to take.
    readable: bool,
    /// It may have an urgent byte to take.
    urgent: bool,
    /// All that it will ever receive is there: the end may follow other bytes without another report.
    read_closed: bool,
    /// It may be able to send.
    writable: bool,
    /// An error was reported. Received bytes can still be taken, but nothing sent.
    failed: bool,
    /// Bytes taken from it that have not been sent on.
    under_way: usize,
    /// There is nothing more to take.
    ended: bool,
    /// Our half of its stream was ended.
    shut: bool,
}

impl End {
    /// Whether the direction from here has nothing more to carry.
    const fn is_over(&self) -> bool {
        self.ended && self.under_way == 0
    }
}

impl<C: Conduit> Relay<C> {
    pub(super) fn new(conduit: C) -> Self {
        // What was accepted may have received something by now, and can be sent to.
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
    pub(super) fn on_readiness(&mut self, side: Side, readiness: Readiness) -> Fate {
        let end = &mut self.ends[side as usize];
        end.readable |= readiness.readable || readiness.read_closed || readiness.error;
        end.urgent |= readiness.urgent;
        end.read_closed |= readiness.read_closed || readiness.error;
        end.writable |= readiness.writable;
        end.failed |= readiness.error;
        // A connection that was refused has failed before anything could be taken: no case of its own.
        if self.phase == Phase::Connecting
            && (readiness.error || side == Side::Connected && readiness.writable)
        {
            self.phase = Phase::Open;
        }
        self.proceed()
    }

    /// Does what can be done now.
    pub(super) fn proceed(&mut self) -> Fate {
        match self.phase {
            Phase::Connecting => return Fate::Waits,
            Phase::Leaving { reset, look } => return self.leave(reset, look),
            Phase::Open => {}
        }
        let turns_over = Side::ALL.map(|from| self.carry(from));
        if let Some(reset) = self.end() {
            return self.leave(reset, FIRST_LOOK);
        }
        if turns_over.contains(&true) { Fate::Runnable } else { Fate::Waits }
    }

    /// Moves bytes from one side to the other; true if the turn ended before that came to rest.
    fn carry(&mut self, from: Side) -> bool {
        for _ in 0..TURN {
            if !self.give(from) {
                return false;
            }
            let [source, sink] = pair(&mut self.ends, from);
            // Not without an outlook that they leave again.
            if source.ended || !source.readable || !sink.writable {
                return false;
            }
            match self.conduit.take(from, source.urgent) {
                Ok(Taken { len: 0, .. }) => source.ended = true,
                Ok(Taken { len, more }) => {
                    source.under_way = len;
                    source.readable = more || source.urgent || source.read_closed;
                }
                Err(SocketError::WouldBlock) => {
                    // The urgent byte is past, if there was one: other ones will be reported.
                    source.readable = source.urgent && source.read_closed;
                    source.urgent = false;
                }
                Err(SocketError::Failed(_)) => (source.ended, source.failed) = (true, true),
            }
        }
        self.give(from) && self.ends[from as usize].readable
    }

    /// Sends what is under way from one side, and the end behind it. False if that is not all out, or can't be.
    fn give(&mut self, from: Side) -> bool {
        let [source, sink] = pair(&mut self.ends, from);
        while source.under_way > 0 && sink.writable && !sink.failed {
            match self.conduit.give(from) {
                Ok(len) => source.under_way = source.under_way.saturating_sub(len),
                Err(SocketError::WouldBlock) => sink.writable = false,
                Err(SocketError::Failed(_)) => (sink.failed, sink.readable) = (true, true),
            }
        }
        if source.under_way > 0 || sink.failed {
            return false;
        }
        // Behind the end of both, the close will say it.
        if source.ended && !source.failed && !sink.is_over() {
            self.shut(from.other());
        }
        true
    }

    /// Ends our half of a socket's stream.
    fn shut(&mut self, side: Side) {
        let end = &mut self.ends[side as usize];
        if !core::mem::replace(&mut end.shut, true)
            && let Err(SocketError::Failed(_)) = self.conduit.shutdown_write(side)
        {
            (end.failed, end.readable) = (true, true);
        }
    }

    /// Whether nothing more will move, and if so, whether that is to be told as a reset.
    fn end(&self) -> Option<bool> {
        let [accepted, connected] = &self.ends;
        if accepted.is_over() && connected.is_over() && !accepted.failed && !connected.failed {
            return Some(false);
        }
        let broken = |end: &End, other: &End| end.failed && (other.failed || end.is_over());
        (broken(accepted, connected) || broken(connected, accepted)).then_some(true)
    }

    /// Ends the connection by a reset.
    pub(super) fn reset(&mut self) -> Fate {
        self.conduit.reset_on_close();
        Fate::Over { reset: true }
    }

    /// Ends the connection, or waits for that until what was sent has arrived.
    fn leave(&mut self, mut reset: bool, look: Duration) -> Fate {
        let mut arrived = true;
        for side in Side::ALL {
            let end = &self.ends[side as usize];
            // A FIN may stay behind: the kernel repeats it, and a reset says more.
            arrived &= end.failed || self.conduit.unacknowledged(side) <= u32::from(end.shut);
        }
        if !arrived {
            if !reset {
                Side::ALL.into_iter().for_each(|side| self.shut(side));
            }
            self.phase = Phase::Leaving { reset, look: (look * 2).min(LAST_LOOK) };
            return Fate::LooksAgain(look);
        }
        reset |= self.ends.iter().any(|end| end.failed);
        if reset {
            self.conduit.reset_on_close();
        }
        Fate::Over { reset }
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
