//! The connections over which the guest asks DNS questions that the guard judges (docs/design/guard.md).

use alloc::vec::Vec;

use wire::{payload::Payload, tcp::Segment};

use super::{
    Tcp,
    conn::{Connection, End},
    questions::{Next, Questions},
    rare::Rare,
    socket::Socket,
};
use crate::{
    allocation::Boxed,
    context::{Context, World},
    events::{Abort, Start},
    flow::{Endpoints, FlowId, Protocol},
    forward::spec::Direction,
    host::{Errno, Readiness},
};

/// Maximum number of such connections. If there are more, the oldest one ends. Its client opens another connection when
/// it needs one (RFC 7766 §6.2.3).
const MOST_SERVICES: usize = 32;

impl<W: World> Tcp<W> {
    /// Handles a SYN of the guest to port 53 of any address.
    pub(super) fn open_service(
        &mut self,
        ends: Endpoints,
        class: u8,
        syn: &Segment<'_, impl Payload>,
        cx: &mut Context<'_, W>,
    ) {
        while self.services.len() >= MOST_SERVICES
            && let Some(oldest) = self.services.pop_front()
        {
            self.end(oldest, End::Abort(Abort::Displaced), cx);
        }
        let mut account =
            cx.guard.begin_unjudged(Start::of(Protocol::Tcp, Direction::Outbound, ends), cx.now);
        let memory =
            Boxed::new(Questions::new(cx.guard.answers().part())).zip(Rare::reserve(account.is_open()));
        let Some((questions, mut rare)) = memory else {
            self.counters.refused += 1;
            account.close_unopened(Errno::ENOMEM);
            return;
        };
        rare.set_account(account);
        let iss = self.initial_sequence(&ends, cx.now);
        let mut connection = Connection::from_guest(ends, Socket::Questions(questions), iss, syn, class, cx);
        connection.rare = rare;
        let Some(id) = self.insert(connection) else { return };
        log::debug!("{id}: {} -> {} (DNS, judged here)", ends.guest, ends.remote);
        self.services.push_back(id);
        self.on_ready(id, Readiness { writable: true, ..Readiness::default() }, cx);
    }

    /// The next question of the guest, with its connection and the connection's ends.
    pub(crate) fn next_question(&mut self, cx: &mut Context<'_, W>) -> Option<(FlowId, Endpoints, Vec<u8>)> {
        let mut index = 0;
        while let Some(&id) = self.services.get(index) {
            let Some(connection) = self.flows.get_mut(id) else {
                self.services.remove(index);
                continue;
            };
            index += 1;
            let Socket::Questions(questions) = &mut connection.socket else { continue };
            match questions.next() {
                Next::Query(query) => {
                    let ends = connection.ends.endpoints();
                    self.on_ready(id, Readiness { writable: true, ..Readiness::default() }, cx);
                    return Some((id, ends, query));
                }
                Next::TooLong => {
                    cx.guard.note_no_query(
                        Protocol::Tcp,
                        &connection.ends.endpoints(),
                        "a message longer than a query may be",
                    );
                    self.end(id, End::Abort(Abort::NoQuery), cx);
                }
                Next::None if questions.is_over() => {
                    if questions.has_rest() {
                        cx.guard.note_no_query(
                            Protocol::Tcp,
                            &connection.ends.endpoints(),
                            "the connection ends within a message",
                        );
                    }
                    let closed = Readiness { read_closed: true, ..Readiness::default() };
                    self.on_ready(id, closed, cx);
                }
                Next::None => {}
            }
        }
        None
    }

    /// Sends the answer to a question of this connection. An empty answer means that the message was not a query: the
    /// connection ends.
    pub(crate) fn answer(&mut self, id: FlowId, answer: &[u8], cx: &mut Context<'_, W>) {
        let Some(connection) = self.flows.get_mut(id) else { return };
        let Socket::Questions(questions) = &mut connection.socket else { return };
        if answer.is_empty() {
            return self.end(id, End::Abort(Abort::NoQuery), cx);
        }
        if !questions.answer(answer) {
            log::warn!("{id}: no memory left for answers over TCP: the connection ends");
            return self.end(id, End::Abort(Abort::Displaced), cx);
        }
        self.on_ready(id, Readiness { readable: true, ..Readiness::default() }, cx);
    }
}
