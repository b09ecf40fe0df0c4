//! Resets to the guest. A reset of a connection is sent once, so it is kept while the link is full, and while no guest is
//! connected: an end of the guest that only receives sends nothing that another reset could answer (behaviour §6.7.1, R-118).

use alloc::collections::VecDeque;

use wire::{
    payload::Payload,
    tcp::{Flags, Options, Segment, Seq},
};

use super::{
    Tcp,
    emit::{self, Fields},
};
use crate::{
    context::{Context, World},
    flow::Ends,
    link::Full,
};

/// A RST segment to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reset {
    pub(super) ends: Ends,
    pub(super) seq: Seq,
    pub(super) ack: Seq,
    pub(super) flags: Flags,
    /// The traffic class of the packet, without ECN bits.
    pub(super) class: u8,
}

impl Reset {
    /// The answer to a segment that does not belong to a connection (RFC 9293 §3.10.7.1; behaviour §6.7, R-59).
    pub(super) fn answering(ends: Ends, class: u8, segment: &Segment<'_, impl Payload>) -> Self {
        let (seq, ack, flags) = if segment.flags().contains(Flags::ACK) {
            (segment.ack(), Seq(0), Flags::RST)
        } else {
            (Seq(0), segment.seq() + segment.sequence_len(), Flags::RST | Flags::ACK)
        };
        Self { ends, seq, ack, flags, class }
    }

    /// Sends the reset.
    ///
    /// # Errors
    /// [`Full`], if the link takes no frame now.
    pub(super) fn send<W: World>(&self, cx: &mut Context<'_, W>) -> Result<(), Full> {
        let Self { ends, seq, ack, flags, class } = *self;
        let fields = Fields { seq, ack, flags, window: 0, urgent: 0, class, options: Options::default() };
        emit::bare(&ends, fields, cx)
    }
}

/// Minimum number of resets for which the list grows. It grows to twice its length, but not beyond its limit.
const LEAST_ROOM: usize = 8;

impl<W: World> Tcp<W> {
    /// Sends the reset of a connection that has ended, or keeps it until the guest can get it. At most as many resets are
    /// kept as there may be connections. Without memory, the reset is lost, as on a network.
    pub(super) fn send_or_keep(&mut self, reset: Reset, cx: &mut Context<'_, W>) {
        if !cx.guest.is_away() && reset.send(cx).is_ok() {
            return;
        }
        let kept = &mut self.kept_resets;
        let room = self.flows.limit().saturating_sub(kept.len());
        let more = if kept.len() < kept.capacity() { 0 } else { kept.len().max(LEAST_ROOM).min(room) };
        if room > 0 && kept.try_reserve_exact(more).is_ok() {
            kept.push_back(reset);
        }
    }

    /// Sends the resets that were kept.
    ///
    /// # Errors
    /// [`Full`], if the link takes no frame now. A later call continues.
    pub(super) fn send_kept(&mut self, cx: &mut Context<'_, W>) -> Result<(), Full> {
        if cx.guest.is_away() || self.kept_resets.is_empty() {
            return Ok(());
        }
        while let Some(reset) = self.kept_resets.front() {
            // A new connection with these ends means that the guest has forgotten the old one.
            if self.flows.find(&reset.ends).is_none() {
                reset.send(cx)?;
            }
            self.kept_resets.pop_front();
        }
        self.forget_kept();
        Ok(())
    }

    /// Forgets the resets that were kept, and frees their memory.
    pub(super) fn forget_kept(&mut self) {
        self.kept_resets = VecDeque::new();
    }
}
