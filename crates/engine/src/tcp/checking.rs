//! A connection that only a rule with a name allows. The client's first bytes decide (docs/design/guard.md).
//!
//! Until the decision, the guest's bytes wait in the receive queue, as if the socket were full. The check reads the
//! bytes in the queue. The queue never changes bytes that are in order, so the bytes that are sent later are those that
//! were checked.

use alloc::boxed::Box;
use core::{fmt, time::Duration};

use wire::{
    payload::Payload,
    tcp::{Flags, Segment},
};

use super::{
    check::Check,
    conn::{Connection, End, Phase, Turn},
    emit::{self, Fields, Sent, Size},
    queue::ChunkPool,
    receive::AckDue,
    send::{Ack, Run},
};
use crate::{
    context::{Context, World},
    first_bytes::{Found, Protocol, Why},
    guard::Claim,
    host::TcpSocket as _,
    link::Link as _,
    memory::{PayloadOf, Room as _, RoomOf},
    timer::Instant,
};

/// How long a refused client may take to close.
const LINGER: Duration = Duration::from_secs(10);
/// A TLS record with the fatal alert unrecognized_name (RFC 8446 §6.2). All clients understand the record's version.
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// Why a client has not sent a name.
#[derive(Clone, Copy, Debug)]
enum Silence {
    Closed,
    Late,
    Urgent,
}

impl fmt::Display for Silence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "closed before a server name",
            Self::Late => "no server name in time",
            Self::Urgent => "urgent data before a server name",
        })
    }
}

impl<W: World> Connection<W> {
    /// Holds the guest's bytes until the check of `claim` has passed.
    ///
    /// # Errors
    /// There is no memory for the check.
    pub(super) fn await_name(&mut self, claim: Claim) -> Result<(), End> {
        let parts = self.rare.parts().ok_or(End::Forbidden)?;
        parts.check = Some(Box::new(Check::new(claim)));
        self.receive.hold();
        Ok(())
    }

    /// Ends the handshake of a connection of the guest. Begins the check if there is one, else the data transfer.
    pub(super) fn begin_check(&mut self, now: Instant) {
        self.phase = match self.rare.check_mut() {
            Some(check) => {
                check.begin(now);
                Phase::Checking
            }
            None => Phase::Established,
        };
    }

    /// Handles a segment during the check.
    pub(super) fn while_checking(
        &mut self,
        segment: &Segment<'_, PayloadOf<'_, W::Memory>>,
        pool: &mut ChunkPool,
        cx: &mut Context<'_, W>,
    ) -> Result<(), End> {
        self.while_established(segment, pool, cx)?;
        let Some(check) = self.rare.check_mut() else { return Ok(()) };
        // The check reads an urgent byte as part of the stream, but the peer receives that byte out of band.
        if self.receive.is_urgent() {
            return self.without_name(Silence::Urgent, pool, cx);
        }
        let mut found = check.first.feed(&[]);
        let mut has_room = true;
        self.receive.ready_after(check.fed, |piece| {
            has_room = has_room && check.reserve(piece.len(), cx.guard.first_bytes());
            if has_room {
                check.fed += piece.len();
                found = check.first.feed(piece);
            }
        });
        if !has_room && matches!(found, Found::More) {
            found = Found::NoName(Why::NoRoom);
        }
        let (claim, fed) = (check.claim, check.fed);
        if let (Found::Name(name), Some(account)) = (&found, self.rare.account_mut()) {
            account.note_name(name.as_str());
        }
        match found {
            Found::Name(name) if cx.guard.admits_name(&claim, &name) => {
                if let Some(parts) = self.rare.reserved() {
                    parts.said = Some(Box::new(name));
                }
                self.pass(pool)
            }
            Found::NoName(why) if cx.guard.admits_nameless(&claim, &why) => self.pass(pool),
            Found::Name(_) | Found::NoName(_) => self.refuse(pool, cx.now),
            Found::More if !self.receive.at_end() => Ok(()),
            // The client has closed and sent nothing.
            Found::More if fed == 0 && !claim.server_first => {
                self.say_farewell(&[], pool, cx.now);
                Ok(())
            }
            Found::More => self.without_name(Silence::Closed, pool, cx),
        }
    }

    /// Passes or refuses a connection whose client will not send a name.
    fn without_name(
        &mut self,
        why: Silence,
        pool: &mut ChunkPool,
        cx: &mut Context<'_, W>,
    ) -> Result<(), End> {
        match self.rare.check() {
            Some(check) if !cx.guard.admits_nameless(&check.claim, &why) => self.refuse(pool, cx.now),
            _ => self.pass(pool),
        }
    }

    /// Ends the check. The connection continues as if there had been no check.
    pub(super) fn pass(&mut self, pool: &mut ChunkPool) -> Result<(), End> {
        self.rare.end_check();
        self.phase = Phase::Established;
        self.receive.resume(&mut self.socket, pool).or_else(|errno| self.fail(errno))
    }

    /// Refuses the connection. A TLS client gets an alert with the reason.
    fn refuse(&mut self, pool: &mut ChunkPool, now: Instant) -> Result<(), End> {
        match self.rare.check() {
            Some(check) if check.first.protocol() == Some(Protocol::Tls) && !check.claim.server_first => {
                self.say_farewell(&UNRECOGNIZED_NAME, pool, now);
                Ok(())
            }
            _ => Err(End::Refused),
        }
    }

    /// The guest gets the bytes of `farewell` and a FIN. The peer gets a FIN at once. Neither has received any bytes
    /// before.
    fn say_farewell(&mut self, farewell: &'static [u8], pool: &mut ChunkPool, now: Instant) {
        let Some(check) = self.rare.check_mut() else { return };
        (check.farewell, check.until) = (farewell, Some(now + LINGER));
        self.phase = Phase::Refused;
        self.receive.discard(pool);
        self.send.ends_after(farewell.len() as u32);
        self.socket.reset_on_close();
        self.socket.shutdown_write().ok();
    }

    /// Handles a segment of a refused client. Its payload is discarded.
    pub(super) fn while_refused(
        &mut self,
        segment: &Segment<'_, impl Payload>,
        now: Instant,
    ) -> Result<(), End> {
        let (flags, seq) = (segment.flags(), segment.seq());
        if !self.receive.acceptable(seq, segment.sequence_len()) {
            self.on_outside(segment, now);
            return Ok(());
        }
        if flags.contains(Flags::RST) {
            return Err(End::GuestReset);
        }
        if flags.contains(Flags::SYN) {
            self.receive.ack = AckDue::Now;
            return Ok(());
        }
        if flags.contains(Flags::ACK) && self.on_ack(segment, now) == Ack::OfSent {
            self.receive.skip(seq + segment.payload.len() as u32, flags.contains(Flags::FIN));
        }
        Ok(())
    }

    /// Sends the farewell and the FIN after it.
    pub(super) fn send_farewell(&mut self, cx: &mut Context<'_, W>) -> Turn {
        while let Some(run) = self.send.next_run(true, cx.link.largest_segment()) {
            let sent = if run.fin { self.send_run(run, cx) } else { self.send_farewell_run(run, cx) };
            match sent {
                Sent::Bytes(len) => self.send.sent(run.seq + len, cx.now),
                Sent::LinkFull => return Turn::LinkFull,
                Sent::End | Sent::Nothing | Sent::Failed(_) => break,
            }
        }
        Turn::Idle
    }

    fn send_farewell_run(&mut self, run: Run, cx: &mut Context<'_, W>) -> Sent {
        let farewell = self.rare.check().map_or(&[][..], |check| check.farewell);
        let start = self.send.offset(run.seq) as usize;
        let Some(bytes) = farewell.get(start..start + run.len as usize) else { return Sent::End };
        let size = Size { frame: bytes.len(), segment: self.send.segment_size(cx.link.largest_segment()) };
        let fields = self.fields(run.seq, Flags::ACK | Flags::PSH);
        let fill = |mut room: RoomOf<'_, W::Memory>, _: &mut Fields| {
            room.put(0, bytes);
            Sent::Bytes(run.len)
        };
        let sent = emit::with_payload(&self.ends, fields, size, fill, cx);
        if let Sent::Bytes(_) = sent {
            self.ack_sent();
        }
        sent
    }

    /// Handles the deadline: the client has taken too long to send a name, or to close after a refusal.
    pub(super) fn on_check_deadline(
        &mut self,
        pool: &mut ChunkPool,
        cx: &mut Context<'_, W>,
    ) -> Result<(), End> {
        let due = self.rare.check().and_then(|check| check.until).is_some_and(|until| until <= cx.now);
        match self.phase {
            Phase::Checking if due => self.without_name(Silence::Late, pool, cx),
            Phase::Refused if due => Err(End::Refused),
            _ => Ok(()),
        }
    }
}
