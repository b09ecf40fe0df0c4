//! The choice of the servers for a query, time-outs, and the handling of failures.

use alloc::vec::Vec;
use core::{net::SocketAddr, time::Duration};

use wire::{
    dns::{Opcode, Question},
    icmp::{v4, v6},
    payload::Payload,
};

use super::{
    Dns, MAX_KEPT,
    exchange::{Asked, Exchange, Io, Key},
    over_tcp::OverTcp,
};
use crate::{
    allocation,
    context::{Context, UdpOf, World},
    events::{Account, How},
    flow::{FlowId, Protocol},
    host::{self, Errno, Host, OutboundDatagram, QueuedError, Report, SendResult, UdpSocket},
    icmp::{self, Quote},
    idle::Timeouts,
    memory::PayloadOf,
    timer::Timers,
};

/// How long to wait for a server's answer before the next server is asked. The fourth server is asked within the 5 s
/// that most stub resolvers wait.
const SERVER_TIMEOUT: Duration = Duration::from_millis(1500);
/// How long to wait for an answer when no other server is left.
const LAST_TIMEOUT: Duration = Duration::from_secs(10);
/// Hop limit of queries. The host sends them, so it is the default of Linux.
const HOP_LIMIT: u8 = 64;
/// Maximum number of errors taken from a socket in one turn.
const MOST_ERRORS: usize = 16;

impl<W: World> Dns<W> {
    /// Handles a new query, or the first datagram of a session.
    pub(super) fn ask_first(
        &mut self,
        key: Key,
        question: Option<&Question<'_>>,
        head: &[u8],
        message: PayloadOf<'_, W::Memory>,
        traffic_class: u8,
        cx: &mut Context<'_, W>,
    ) {
        let Some(servers) = cx.settings.resolvers(key.endpoints.remote, &self.health, cx.now) else {
            self.counters.invalid += 1;
            return;
        };
        let remote = key.endpoints.remote;
        if !cx.admits_unread(Protocol::Udp, &key.endpoints, remote) {
            self.counters.refused += 1;
            let report = Report::prohibited(remote.is_ipv4());
            let quote = Quote::of_datagram(key.endpoints, message.len(), head);
            return icmp::send_router_error(report, &quote, cx);
        }
        let Some(id) = self.insert(Exchange::new(key, servers, traffic_class), cx.timers) else {
            self.counters.no_room += 1;
            return;
        };
        log::debug!("{id}: {} queries {}", key.endpoints.guest, key.endpoints.remote);
        if cx.guard.reports() {
            let account = cx.begin(Protocol::Udp, &key.endpoints, remote);
            self.open_account(id, account, question, message.len());
        }
        match question {
            Some(question) => self.store(id, question.opcode == Opcode::QUERY, head, message),
            None => self.store_unanswered(id, message),
        }
        if !self.ask_next(id, Some(message), cx) {
            self.conclude(id, cx);
        } else if question.is_none() {
            self.note_session(id, true, cx);
        }
    }

    /// Reports that an exchange begins.
    pub(super) fn open_account(
        &mut self,
        id: FlowId,
        account: Account,
        question: Option<&Question<'_>>,
        len: usize,
    ) {
        if let Some(exchange) = self.exchanges.get_mut(id) {
            exchange.open_account(account, question, len);
        }
    }

    /// Reports the end of all exchanges, because the program ends.
    pub(crate) fn report_exit(&mut self) {
        self.exchanges.values_mut().for_each(|exchange| exchange.account.close(How::Exit));
    }

    /// Handles a repeated query of the guest, or another datagram of a session.
    pub(super) fn ask_again(
        &mut self,
        id: FlowId,
        head: &[u8],
        message: PayloadOf<'_, W::Memory>,
        traffic_class: u8,
        cx: &mut Context<'_, W>,
    ) {
        let Some(exchange) = self.exchanges.get_mut(id) else { return };
        exchange.traffic_class = traffic_class;
        exchange.account.count(true, message.len(), 1);
        if exchange.key.id.is_none() {
            let current = exchange.asked.len().saturating_sub(1);
            self.store_unanswered(id, message);
            if self.send(id, current, message, cx) {
                self.note_session(id, true, cx);
            } else {
                self.ask_next_or_wait(id, cx);
            }
            return;
        }
        if exchange.next >= exchange.servers.len() {
            exchange.next = 0;
        }
        if let Some(question) = Question::parse(head) {
            self.store(id, question.opcode == Opcode::QUERY, head, message);
        }
        if !self.ask_next(id, Some(message), cx) {
            self.conclude(id, cx);
        }
    }

    /// Adds an exchange. None if there is no memory.
    pub(super) fn insert(&mut self, exchange: Exchange<W>, timers: &mut Timers<FlowId>) -> Option<FlowId> {
        let id = self.exchanges.next_timed_id(timers).filter(|id| self.links.reserve(id.index()))?;
        self.exchanges.insert(exchange).ok()?;
        self.links.push(&mut self.by_age, id.index());
        Some(id)
    }

    /// Stores a query. A `repeatable` query is stored as a whole if there is room. Otherwise only `head` is stored,
    /// which is needed to recognise the answer.
    fn store(&mut self, id: FlowId, repeatable: bool, head: &[u8], message: PayloadOf<'_, W::Memory>) {
        let Some(exchange) = self.exchanges.get_mut(id) else { return };
        self.bytes -= exchange.question.len();
        let len = message.len();
        let fits = len <= MAX_KEPT && self.bytes + len <= self.limits.bytes;
        exchange.repeatable = repeatable && fits;
        exchange.question = Vec::new();
        let stored = if exchange.repeatable { len } else { head.len() };
        // Without memory, no answer is recognised, as if the query was lost.
        if exchange.question.try_reserve_exact(stored).is_err() {
            exchange.repeatable = false;
        } else if exchange.repeatable {
            exchange.question.resize(len, 0);
            message.copy_to(&mut exchange.question);
            // The guest may have changed its memory since the head was parsed. So the parsed head is stored, not the
            // head in that memory.
            let same = head.len().min(len);
            exchange.question[..same].copy_from_slice(&head[..same]);
        } else {
            exchange.question.extend_from_slice(head);
        }
        self.bytes += exchange.question.len();
    }

    /// Stores a datagram of a session that no server has answered yet, so that it can be sent to another server.
    fn store_unanswered(&mut self, id: FlowId, message: PayloadOf<'_, W::Memory>) {
        if self.exchanges.get(id).is_some_and(|exchange| !exchange.traffic.has_replies()) {
            self.store(id, true, &[], message);
        }
    }

    /// Handles the first answer in a session: the session continues with the server that answered.
    pub(super) fn settle(&mut self, id: FlowId, index: usize) {
        let Some(exchange) = self.exchanges.get_mut(id) else { return };
        if exchange.traffic.has_replies() || index >= exchange.asked.len() {
            return;
        }
        let answered = exchange.asked.swap_remove(index);
        self.health.answered(answered.server.ip());
        self.bytes -= exchange.question.len();
        exchange.question = Vec::new();
        exchange.repeatable = false;
        self.files -= exchange.asked.len();
        exchange.asked.clear();
        exchange.asked.push(answered);
    }

    /// Stores an answer that is used only if no better answer arrives. Does nothing if such an answer is already
    /// stored. Returns false if there is no room for the answer.
    pub(super) fn keep(&mut self, id: FlowId, payload: &[u8]) -> bool {
        let Some(exchange) = self.exchanges.get_mut(id) else { return false };
        let fits = payload.len() <= MAX_KEPT && self.bytes + payload.len() <= self.limits.bytes;
        if exchange.kept.is_none() && fits {
            exchange.kept = allocation::copied(payload);
            self.bytes += exchange.kept.as_ref().map_or(0, Vec::len);
        }
        exchange.kept.is_some()
    }

    /// Sends `message` to the next server that can be reached. If `message` is none, sends the stored query. Returns
    /// false if there is no such server.
    pub(super) fn ask_next(
        &mut self,
        id: FlowId,
        message: Option<PayloadOf<'_, W::Memory>>,
        cx: &mut Context<'_, W>,
    ) -> bool {
        while let Some(exchange) = self.exchanges.get_mut(id) {
            let Some(&server) = exchange.servers.all().get(exchange.next) else { return false };
            exchange.next += 1;
            let known = exchange.asked.iter().position(|asked| asked.server == server);
            let Some(index) = known.or_else(|| self.open(id, server, cx)) else { continue };
            let sent = match message {
                Some(message) => self.send(id, index, message, cx),
                None => self.send_kept(id, index, cx),
            };
            if sent {
                self.schedule(id, cx);
                return true;
            }
        }
        false
    }

    /// Opens the socket for a server. Returns the server's index in `asked`.
    fn open(&mut self, id: FlowId, server: SocketAddr, cx: &mut Context<'_, W>) -> Option<usize> {
        let share = self.limits.files;
        while share.is_full(self.files) {
            if self.notice.is_due(cx.now) {
                log::warn!(
                    "DNS: {} queries wait for servers: the oldest ones are dropped{}",
                    share.most,
                    share.bound
                );
            }
            if !self.end_oldest(cx.timers, id) {
                return None;
            }
        }
        let over_tcp = self.exchanges.get(id)?.key.stream.is_some();
        let io = match open_socket(id, server, over_tcp, cx) {
            Err(errno) if errno.is_exhaustion() && self.end_oldest(cx.timers, id) => {
                open_socket(id, server, over_tcp, cx)
            }
            opened => opened,
        };
        let io = match io {
            Ok(io) => io,
            Err(errno) => {
                if !errno.is_exhaustion() {
                    self.note_failure(id, server, errno, cx);
                }
                return None;
            }
        };
        let exchange = self.exchanges.get_mut(id)?;
        exchange.asked.push(Asked { server, io, waits: true });
        self.files += 1;
        Some(exchange.asked.len() - 1)
    }

    /// Ends the oldest exchange, to make room for `id`. Returns false if `id` itself is the oldest.
    fn end_oldest(&mut self, timers: &mut Timers<FlowId>, id: FlowId) -> bool {
        let oldest = self.by_age.first().and_then(|index| self.exchanges.id_at(index));
        let oldest = oldest.filter(|oldest| *oldest != id);
        let ended = oldest.and_then(|oldest| self.give_up(timers, oldest, How::Displaced)).is_some();
        self.ended += u64::from(ended);
        self.counters.no_room += u64::from(!ended);
        ended
    }

    fn send_kept(&mut self, id: FlowId, index: usize, cx: &mut Context<'_, W>) -> bool {
        let Some(exchange) = self.exchanges.get_mut(id) else { return false };
        let question = core::mem::take(&mut exchange.question);
        let sent = self.send(id, index, (&question[..]).into(), cx);
        if let Some(exchange) = self.exchanges.get_mut(id) {
            exchange.question = question;
        }
        sent
    }

    /// Sends `message` to a server that has a socket. Returns false if the server can't be reached.
    fn send(
        &mut self,
        id: FlowId,
        index: usize,
        payload: PayloadOf<'_, W::Memory>,
        cx: &mut Context<'_, W>,
    ) -> bool {
        let Some(exchange) = self.exchanges.get_mut(id) else { return false };
        let traffic_class = exchange.traffic_class;
        let Some(asked) = exchange.asked.get_mut(index) else { return false };
        let server = asked.server;
        let io = match &mut asked.io {
            Io::Datagram(io) => io,
            Io::Stream(stream) => {
                asked.waits = stream.ask(payload);
                return asked.waits;
            }
        };
        let outbound = OutboundDatagram {
            destination: server,
            source: None,
            hop_limit: HOP_LIMIT,
            traffic_class,
            payload,
            segment_size: None,
            dont_fragment: false,
        };
        let drop_errors = |io: &mut UdpOf<W>| {
            drain(io, |_| {});
            None
        };
        let sent = host::send(io, |io| io.send(&outbound), drop_errors);
        asked.waits = !matches!(sent, SendResult::Refused(..));
        match sent {
            SendResult::Sent => true,
            SendResult::Full => {
                self.counters.not_sent += 1;
                true
            }
            SendResult::Refused(errno, _) => {
                self.counters.not_sent += 1;
                self.note_failure(id, server, errno, cx);
                false
            }
        }
    }

    /// Notes that the host can't send to a server.
    pub(super) fn note_failure(
        &mut self,
        id: FlowId,
        server: SocketAddr,
        errno: Errno,
        cx: &mut Context<'_, W>,
    ) {
        self.health.failed(server.ip(), cx.now);
        let Some(exchange) = self.exchanges.get_mut(id) else { return };
        log::debug!("{id}: can't send to {server} (error {})", errno.0);
        exchange.account.note_failure(errno);
        let v4 = exchange.key.endpoints.guest.is_ipv4();
        exchange.error = Report::of_refusal(errno, v4).or_else(|| Report::of_refusal(Errno::ENETUNREACH, v4));
    }

    /// Sets the deadline of an exchange.
    fn schedule(&mut self, id: FlowId, cx: &mut Context<'_, W>) {
        let Some(exchange) = self.exchanges.get_mut(id) else { return };
        let wait = match exchange.key.id {
            _ if exchange.may_ask_another() || exchange.kept.is_some() => SERVER_TIMEOUT,
            Some(_) => LAST_TIMEOUT,
            None => self.limits.idle,
        };
        exchange.deadline.set(Some(cx.now + wait), cx.timers, id);
    }

    /// Handles the failure of a server: asks the next server, waits for the other servers, or ends the exchange.
    pub(super) fn ask_next_or_wait(&mut self, id: FlowId, cx: &mut Context<'_, W>) {
        let Some(exchange) = self.exchanges.get(id) else { return };
        if exchange.may_ask_another() && self.ask_next(id, None, cx) {
            return;
        }
        if self.exchanges.get(id).is_some_and(Exchange::waits) {
            self.schedule(id, cx);
        } else {
            self.conclude(id, cx);
        }
    }

    /// Ends an exchange that has no server left: sends the stored answer or error to the guest, if there is one.
    pub(super) fn conclude(&mut self, id: FlowId, cx: &mut Context<'_, W>) {
        if self.exchanges.get(id).is_some_and(|exchange| exchange.key.id.is_some() && exchange.waits()) {
            return;
        }
        let Some(exchange) = self.exchanges.get_mut(id) else { return };
        let kept = exchange.kept.take();
        self.bytes -= kept.as_ref().map_or(0, Vec::len);
        let ended = match &kept {
            Some(answer) => {
                exchange.account.count(false, answer.len(), 1);
                self.end(cx.timers, id, How::Closed)
            }
            None => self.give_up(cx.timers, id, How::Idle),
        };
        let Some(exchange) = ended else { return };
        let endpoints = exchange.key.endpoints;
        if let Some(answer) = kept {
            self.answer(&exchange, (None, 0), &answer, cx);
        } else if exchange.key.stream.is_some() {
            // The client's TCP connection has its answer now.
        } else if let Some(report) = exchange.error {
            let v4 = endpoints.guest.is_ipv4();
            let remote = endpoints.remote.ip();
            let source =
                if is_port_unreachable(report, v4) { remote } else { icmp::router(cx.settings, remote) };
            let quoted = &exchange.question;
            icmp::send_error(source, report, &Quote::of_datagram(endpoints, quoted.len(), quoted), cx);
        }
    }

    /// Reads the errors of a socket. A server that can't be reached will not answer.
    pub(super) fn on_errors(&mut self, id: FlowId, index: usize, cx: &mut Context<'_, W>) {
        let Some(exchange) = self.exchanges.get_mut(id) else { return };
        let to_v4 = exchange.key.endpoints.guest.is_ipv4();
        let Some(asked) = exchange.asked.get_mut(index) else { return };
        let server = asked.server;
        let Io::Datagram(io) = &mut asked.io else { return };
        let mut last = None;
        drain(io, |error| {
            let about = (error.destination.ip(), error.destination.port());
            let report = error.report.filter(|report| !report.is_too_big(server.is_ipv4()));
            if about == (server.ip(), server.port()) {
                last = report.or(last);
            }
        });
        let (Some(report), true) = (last, asked.waits) else { return };
        asked.waits = false;
        exchange.error = report.translated(server.is_ipv4(), to_v4).or(exchange.error);
        if let Some(errno) = report.errno(server.is_ipv4()) {
            exchange.account.note_failure(errno);
        }
        log::debug!("{id}: {server} can't be reached (ICMP type {}, code {})", report.kind, report.code);
        self.health.failed(server.ip(), cx.now);
        self.ask_next_or_wait(id, cx);
    }

    /// Handles a failed server: the server at `index` will not answer.
    pub(super) fn on_silent(&mut self, id: FlowId, index: usize, cx: &mut Context<'_, W>) {
        let asked = self.exchanges.get_mut(id).and_then(|exchange| exchange.asked.get_mut(index));
        let Some(asked) = asked.filter(|asked| asked.waits) else { return };
        asked.waits = false;
        self.ask_next_or_wait(id, cx);
    }

    /// Handles the deadline of an exchange, if it has been reached.
    pub fn on_deadline(&mut self, id: FlowId, cx: &mut Context<'_, W>) {
        let Some(exchange) = self.exchanges.get_mut(id) else { return };
        if !exchange.deadline.reached(cx.now, cx.timers, id) {
            return;
        }
        if exchange.may_ask_another() && self.ask_next(id, None, cx) {
            return;
        }
        // The servers that have not answered are given up.
        if let Some(exchange) = self.exchanges.get_mut(id) {
            exchange.asked.iter_mut().for_each(|asked| asked.waits = false);
            exchange.error = None;
        }
        self.conclude(id, cx);
    }

    /// Notes a datagram of a session: moves the session's deadline, and makes it the youngest exchange.
    pub(super) fn note_session(&mut self, id: FlowId, sent: bool, cx: &mut Context<'_, W>) {
        let Some(exchange) = self.exchanges.get_mut(id) else { return };
        self.links.move_to_end(&mut self.by_age, id.index());
        exchange.traffic.note(sent);
        let timeouts = Timeouts { idle: self.limits.idle, stream: self.limits.idle_stream };
        let wait = if exchange.may_ask_another() { SERVER_TIMEOUT } else { timeouts.after(exchange.traffic) };
        exchange.deadline.set(Some(cx.now + wait), cx.timers, id);
    }

    /// Ends an exchange and closes its sockets.
    pub(super) fn end(&mut self, timers: &mut Timers<FlowId>, id: FlowId, how: How) -> Option<Exchange<W>> {
        let mut exchange = self.exchanges.remove(id)?;
        exchange.account.close(how);
        exchange.deadline.withdraw(timers, id);
        self.links.unlink(&mut self.by_age, id.index());
        self.files -= exchange.asked.len();
        self.bytes -= exchange.bytes();
        Some(exchange)
    }
}

/// Opens a socket for a server.
fn open_socket<W: World>(
    id: FlowId,
    server: SocketAddr,
    over_tcp: bool,
    cx: &mut Context<'_, W>,
) -> Result<Io<W>, Errno> {
    if over_tcp {
        cx.host
            .tcp_connect(id, None, server, 0)
            .map(|io| Io::Stream(OverTcp::new(io, cx.guard.answers().part())))
    } else {
        cx.host.udp_open(id, server.ip(), 0).map(Io::Datagram)
    }
}

/// Reads the errors of a socket. See [`host::drain`].
fn drain(io: &mut impl UdpSocket, mut on_error: impl FnMut(&QueuedError)) {
    host::drain(io, &mut [0; 1], MOST_ERRORS, |error, _| on_error(error));
}

/// Whether the report means that the server's port is closed. The server itself sends such a report, not a router.
const fn is_port_unreachable(report: Report, v4: bool) -> bool {
    match v4 {
        true => report.kind == v4::UNREACHABLE && report.code == 3,
        false => report.kind == v6::UNREACHABLE && report.code == 4,
    }
}
