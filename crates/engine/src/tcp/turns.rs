//! Connections under a rate limit take turns, in both directions (docs/design/rate-limit.md).

use alloc::collections::VecDeque;

use super::{
    Tcp,
    conn::{Connection, End, Turn},
    queue::ChunkPool,
    send::Run,
    socket::Socket,
};
use crate::{
    allocation,
    context::{Context, World},
    flow::FlowId,
    forward::spec::Direction,
    link::Link as _,
    pressure::Pressure,
    rate_limit::{Bucket, Class},
};

/// The connections that wait for tokens, in the order of their turns. Some of them may have ended.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    pub(super) to_host: VecDeque<FlowId>,
    pub(super) to_guest: VecDeque<FlowId>,
}

impl<W: World> Tcp<W> {
    /// Sends the guest's bytes to the host's sockets, as far as there are tokens.
    pub(super) fn take_turns_to_host(&mut self, cx: &mut Context<'_, W>) {
        for index in 0..self.touched.len() {
            self.await_turn_to_host(self.touched[index]);
        }
        while let Some(granted) = grant(Direction::Outbound, self.waiting.to_host.len(), cx) {
            let Some(id) = self.waiting.to_host.pop_front() else { return };
            let Some(connection) = self.flows.get_mut(id) else { continue };
            connection.awaits_turn_to_host = false;
            match connection.give(granted, &mut self.pool) {
                Ok(sent) => {
                    spend(Direction::Outbound, sent, cx);
                    self.touch(id);
                    self.await_turn_to_host(id);
                }
                Err(end) => self.end(id, end, cx),
            }
        }
    }

    /// Adds a connection to the list of those that wait, if it has bytes that wait for a turn.
    fn await_turn_to_host(&mut self, id: FlowId) {
        let Some(connection) = self.flows.get_mut(id) else { return };
        if connection.wants_turn_to_host() && !connection.awaits_turn_to_host {
            connection.awaits_turn_to_host = true;
            allocation::push(&mut self.waiting.to_host, id, |&id| self.flows.get(id).is_some());
            self.forget_ended(Direction::Outbound);
        }
    }

    /// Sends the bytes of the host's sockets to the guest, as far as there are tokens and the link has room. `pressure`
    /// is the pressure after the turns of connections without a limit.
    pub(crate) fn take_turns_to_guest(&mut self, pressure: Pressure, cx: &mut Context<'_, W>) -> Pressure {
        if pressure == Pressure::LinkFull {
            self.await_link(cx);
            return pressure;
        }
        while let Some(granted) = grant(Direction::Inbound, self.waiting.to_guest.len(), cx) {
            let Some(id) = self.waiting.to_guest.pop_front() else { break };
            let Some(connection) = self.flows.get_mut(id) else { continue };
            connection.awaits_turn_to_guest = false;
            let turn = self.send_due(id, granted, cx);
            if turn == Turn::LinkFull {
                self.await_link(cx);
                return Pressure::LinkFull;
            }
        }
        if self.runnable.is_empty() { Pressure::None } else { Pressure::MoreToSend }
    }

    /// Notes that connections wait for the link and not for tokens. Otherwise the deadline for tokens would be due
    /// repeatedly while the link is full.
    fn await_link(&self, cx: &mut Context<'_, W>) {
        if let Some(bucket) = cx.rate_limit.of(Direction::Inbound) {
            bucket.set_waiting(Class::Tcp, false);
        }
    }

    /// Adds a connection whose socket has bytes for the guest to the list of those that wait.
    pub(super) fn await_turn_to_guest(&mut self, id: FlowId) {
        let Some(connection) = self.flows.get_mut(id) else { return };
        if !connection.awaits_turn_to_guest {
            connection.awaits_turn_to_guest = true;
            allocation::push(&mut self.waiting.to_guest, id, |&id| self.flows.get(id).is_some());
            self.forget_ended(Direction::Inbound);
        }
    }

    /// Limits the length of a list. Each connection is in the list at most once, so a longer list has connections that
    /// ended.
    fn forget_ended(&mut self, direction: Direction) {
        let list = match direction {
            Direction::Outbound => &mut self.waiting.to_host,
            Direction::Inbound => &mut self.waiting.to_guest,
        };
        if list.len() > 2 * self.flows.len() {
            list.retain(|&id| self.flows.get(id).is_some());
        }
    }
}

impl<W: World> Connection<W> {
    /// Whether bytes of the guest wait only for a turn.
    fn wants_turn_to_host(&self) -> bool {
        !self.has_failed() && self.receive.wants_turn()
    }

    /// Sends at most `granted` bytes of the guest to the socket. Returns how many bytes the socket accepted.
    fn give(&mut self, granted: u32, pool: &mut ChunkPool) -> Result<u32, End> {
        match self.receive.take_turn(granted, &mut self.socket, pool) {
            Ok(sent) => Ok(sent),
            Err(errno) => self.fail(errno).map(|()| 0),
        }
    }

    /// Whether the bytes for the guest need tokens. The engine's own answers need none, since they do not come from a
    /// socket of the host.
    pub(super) fn is_limited_to_guest(&self, cx: &Context<'_, W>) -> bool {
        cx.rate_limit.is_limited(Direction::Inbound) && matches!(self.socket, Socket::Host(_))
    }

    /// The part of a run with at most `granted` new bytes. None if there is no such part.
    pub(super) fn within_grant(&self, run: Run, granted: u32, cx: &Context<'_, W>) -> Option<Run> {
        let lacking = self.send.new_bytes(run).saturating_sub(granted);
        if lacking == 0 {
            return Some(run);
        }
        let segment = u32::from(self.send.segment_size(cx.link.largest_segment()));
        let len = run.len - lacking;
        let len = if len > segment { len - len % segment } else { len };
        (len > 0).then_some(Run { len, ..run })
    }

    /// Takes the tokens for the new bytes of a run after it was sent. Returns how many new bytes may still be sent.
    pub(super) fn spend_grant(&self, run: Run, granted: u32, cx: &mut Context<'_, W>) -> u32 {
        let new = self.send.new_bytes(run);
        spend(Direction::Inbound, new, cx);
        let left = granted.saturating_sub(new);
        // The remaining tokens may only allow a small segment.
        if left < u32::from(self.send.segment_size(cx.link.largest_segment())) { 0 } else { left }
    }
}

fn grant<W: World>(direction: Direction, waiting: usize, cx: &mut Context<'_, W>) -> Option<u32> {
    let now = cx.now;
    cx.rate_limit.of(direction).and_then(|bucket: &mut Bucket| bucket.grant(Class::Tcp, waiting, now))
}

fn spend<W: World>(direction: Direction, bytes: u32, cx: &mut Context<'_, W>) {
    if let Some(bucket) = cx.rate_limit.of(direction) {
        bucket.spend(Class::Tcp, bytes.into());
    }
}
