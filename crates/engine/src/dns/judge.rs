//! Queries and answers with rules by name (docs/design/guard.md). Every query is judged, and then sent to the host's
//! resolvers as a rebuilt query. Every answer is judged before the guest gets it.

use alloc::{string::String, vec::Vec};
use core::hash::BuildHasher as _;

use wire::dns::{Malformed, Question};

use super::{
    Dns,
    answers::answers,
    ech::strip_ech,
    exchange::{Exchange, Key},
    query,
    refusal::{ExtendedError, Refusal, refuse, refused_at_once},
};
use crate::{
    context::{self, Context, World},
    events::{How, Start},
    flow::{Endpoints, FlowId, Protocol},
    forward::spec::Direction,
    guard::{Asked, Guard, Refused},
    host::Report,
    icmp::{self, Quote},
    nat::is_group,
    quota::Part,
    timer::Timers,
};

/// The flag TC (truncated message), in the first byte of flags.
const TRUNCATED: u8 = 0x02;

impl<W: World> Dns<W> {
    /// Handles a message of a client on the TCP connection `stream`. [`Dns::next_answer`] returns its answer.
    pub(crate) fn on_stream_query(
        &mut self,
        endpoints: Endpoints,
        stream: FlowId,
        query: Vec<u8>,
        cx: &mut Context<'_, W>,
    ) {
        self.on_judged_query(endpoints, Some(stream), query, cx);
    }

    /// An answer for a client, and the client's TCP connection. An empty answer means that the client's message was not
    /// a query.
    pub(crate) fn next_answer(&mut self) -> Option<(FlowId, Vec<u8>, Part)> {
        self.answers.pop()
    }

    pub(super) fn on_judged_query(
        &mut self,
        endpoints: Endpoints,
        stream: Option<FlowId>,
        message: Vec<u8>,
        cx: &mut Context<'_, W>,
    ) {
        let question = Question::parse(&message).filter(|_| !is_group(endpoints.remote.ip()));
        let rebuilt = question.and_then(|_| query::rebuild(&message, self.next_query_id()));
        let (Some(question), Some(rebuilt)) = (question, rebuilt) else {
            return self.refuse_message(endpoints, stream, &message, cx);
        };
        let key = Key { endpoints, id: Some(question.id), stream };
        if let Some(id) = self.exchanges.find(&key) {
            if self.exchanges.get(id).is_some_and(|exchange| exchange.is_about(Some(&question))) {
                return self.ask_again_stored(id, cx);
            }
            self.give_up(cx.timers, id, How::Displaced);
        }
        if let Err(refused) = admits(&question, endpoints, cx) {
            return self.refuse_query(&key, &message, &refused, cx);
        }
        self.ask_judged(key, message, rebuilt, cx);
    }

    /// Refuses a message that is not a query. Its sender gets an ICMP error, or a reset of its connection.
    fn refuse_message(
        &mut self,
        endpoints: Endpoints,
        stream: Option<FlowId>,
        message: &[u8],
        cx: &mut Context<'_, W>,
    ) {
        self.counters.invalid += 1;
        let protocol = if stream.is_some() { Protocol::Tcp } else { Protocol::Udp };
        cx.guard.note_no_query(protocol, &endpoints, "not a query with one question");
        match stream {
            Some(stream) => self.answers.push((stream, Vec::new(), Part::NONE)),
            None => {
                let quote = Quote::of_datagram(endpoints, message.len(), message);
                icmp::send_router_error(Report::prohibited(endpoints.guest.is_ipv4()), &quote, cx);
            }
        }
    }

    /// Answers a query that the rules refuse.
    pub(super) fn refuse_query(
        &mut self,
        key: &Key,
        message: &[u8],
        refused: &Refused,
        cx: &mut Context<'_, W>,
    ) {
        self.counters.refused += 1;
        let useless = Question::parse(message).filter(|question| refused_at_once(question).is_some());
        let refusal = match useless {
            Some(question) if question.opcode != wire::dns::Opcode::QUERY => Refusal::NotImplemented,
            _ if refused.name_exists => Refusal::NoData,
            _ => Refusal::NoName,
        };
        let answer = blocked(message, refusal, &refused.text).unwrap_or_default();
        match key.stream {
            Some(stream) => self.answers.push((stream, answer, Part::NONE)),
            None => self.send_answer(key.endpoints, None, 0, &answer, cx),
        }
    }

    fn ask_judged(&mut self, key: Key, message: Vec<u8>, rebuilt: Vec<u8>, cx: &mut Context<'_, W>) {
        let servers = cx.settings.any_resolvers(key.endpoints.remote, &self.health, cx.now);
        // The guest's traffic class could carry data.
        let mut exchange = Exchange::new(key, servers, 0);
        (exchange.question, exchange.judged, exchange.repeatable) = (rebuilt, Some(message), true);
        let bytes = exchange.bytes();
        if self.bytes + bytes > self.limits.bytes {
            return self.refuse_for_room(&exchange);
        }
        let Some(id) = self.insert(exchange, cx.timers) else { return };
        self.bytes += bytes;
        log::debug!("{id}: {} queries {}", key.endpoints.guest, key.endpoints.remote);
        if key.stream.is_none() && cx.guard.reports() {
            self.report_judged(id, key.endpoints, cx);
        }
        if !self.ask_next(id, None, cx) {
            self.conclude(id, cx);
        }
    }

    /// Reports the beginning of an exchange whose question the guard has judged.
    fn report_judged(&mut self, id: FlowId, endpoints: Endpoints, cx: &Context<'_, W>) {
        let start = Start::of(Protocol::Udp, Direction::Outbound, endpoints);
        let account = cx.guard.begin_unjudged(start, cx.now);
        let Some(exchange) = self.exchanges.get_mut(id) else { return };
        let Some(message) = exchange.judged.take() else { return };
        exchange.open_account(account, Question::parse(&message).as_ref(), message.len());
        exchange.judged = Some(message);
    }

    fn refuse_for_room(&mut self, exchange: &Exchange<W>) {
        self.counters.no_room += 1;
        self.answers.extend(exchange.failure());
    }

    /// Handles a repeated query of the guest: asks the next server.
    fn ask_again_stored(&mut self, id: FlowId, cx: &mut Context<'_, W>) {
        let Some(exchange) = self.exchanges.get_mut(id) else { return };
        let len = exchange.judged.as_ref().map_or(0, Vec::len);
        exchange.account.count(true, len, 1);
        if exchange.next >= exchange.servers.len() {
            exchange.next = 0;
        }
        if !self.ask_next(id, None, cx) {
            self.conclude(id, cx);
        }
    }

    /// Sends the answer of a server to the guest, after the guard has judged it.
    pub(super) fn answer(
        &mut self,
        exchange: &Exchange<W>,
        (hop_limit, traffic_class): (Option<u8>, u8),
        payload: &[u8],
        cx: &mut Context<'_, W>,
    ) {
        let judged = exchange.judged.as_deref().map(|query| judge_answer(query, payload, exchange, cx));
        match (exchange.key.stream, judged) {
            (Some(stream), Some(answer)) => self.keep_for(stream, answer, cx.guard),
            (_, Some(answer)) => {
                self.send_answer(exchange.key.endpoints, hop_limit, traffic_class, &answer, cx);
            }
            (_, None) => self.send_answer(exchange.key.endpoints, hop_limit, traffic_class, payload, cx),
        }
    }

    /// Stores an answer until the connection of the client takes it. If there is no memory, the connection ends.
    fn keep_for(&mut self, stream: FlowId, answer: Vec<u8>, guard: &Guard) {
        match guard.answers().take(answer.capacity()) {
            Some(memory) => self.answers.push((stream, answer, memory)),
            None => {
                self.counters.no_room += 1;
                self.answers.push((stream, Vec::new(), Part::NONE));
            }
        }
    }

    /// Ends an exchange without an answer. A client on a TCP connection gets SERVFAIL, since such a client may have no
    /// time-out.
    pub(super) fn give_up(
        &mut self,
        timers: &mut Timers<FlowId>,
        id: FlowId,
        how: How,
    ) -> Option<Exchange<W>> {
        let exchange = self.end(timers, id, how)?;
        self.answers.extend(exchange.failure());
        Some(exchange)
    }

    /// A query ID that an attacker can't guess (RFC 5452 §9.2).
    fn next_query_id(&mut self) -> u16 {
        self.queries += 1;
        self.secret.hash_one(self.queries) as u16
    }
}

impl<W: World> Exchange<W> {
    /// The answer for a client on a TCP connection, if no server has answered.
    fn failure(&self) -> Option<(FlowId, Vec<u8>, Part)> {
        let query = self.judged.as_deref()?;
        Some((self.key.stream?, refuse(query, Refusal::Failure, None)?, Part::NONE))
    }
}

/// Calls `judge` with a question of the guest, in the form that the guard needs.
fn with_asked<R>(
    question: &Question<'_>,
    endpoints: Endpoints,
    search: &[String],
    judge: impl FnOnce(&Asked<'_>) -> R,
) -> R {
    let mut name = String::new();
    if let Some(asked) = question.name() {
        // Writing to a string does not fail.
        wire::dns::write_text(asked.labels(), &mut name).ok();
    }
    judge(&Asked {
        client: endpoints.guest,
        name: &name,
        kind: question.kind(),
        useless: refused_at_once(question),
        search,
    })
}

/// Whether the guest may ask a question. A refusal is counted and logged.
pub(super) fn admits<W: World>(
    question: &Question<'_>,
    endpoints: Endpoints,
    cx: &mut Context<'_, W>,
) -> Result<(), Refused> {
    let Context { settings, guard, now, .. } = cx;
    with_asked(question, endpoints, &settings.services.search, |asked| {
        guard.admits_question(asked, |address| settings.is_local(address), *now)
    })
}

/// The message that the guest gets when a server answers `query` with `answer`.
fn judge_answer<W: World>(
    query: &[u8],
    answer: &[u8],
    exchange: &Exchange<W>,
    cx: &mut Context<'_, W>,
) -> Vec<u8> {
    let is_truncated = answer.get(2).is_some_and(|flags| flags & TRUNCATED != 0);
    if is_truncated && !cx.guard.audits() {
        // Records of a truncated answer may be incomplete, so the client must ask over TCP.
        return refuse(query, Refusal::Truncated, None).unwrap_or_default();
    }
    let admitted = match admitted(query, answer, exchange, cx) {
        Ok(admitted) => Ok(admitted),
        Err(_) if cx.guard.audits() => Ok(answer.to_vec()),
        Err(Fault::Malformed) => Err((Refusal::Failure, "malformed answer".into())),
        Err(Fault::Refused(refused)) => Err((Refusal::NoData, refused.text)),
    };
    match admitted {
        Ok(mut answer) => {
            query::restore(&mut answer, query);
            answer
        }
        Err((refusal, text)) => {
            log::debug!("{}: the answer was replaced: {text}", exchange.key.endpoints.guest);
            blocked(query, refusal, &text).unwrap_or_default()
        }
    }
}

/// The reason why the guest does not get an answer.
enum Fault {
    Malformed,
    Refused(Refused),
}

impl From<Malformed> for Fault {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

/// The answer without the keys of Encrypted ClientHello, if the guest may have it. In an audit, the unchanged answer.
fn admitted<W: World>(
    query: &[u8],
    answer: &[u8],
    exchange: &Exchange<W>,
    cx: &mut Context<'_, W>,
) -> Result<Vec<u8>, Fault> {
    let question = Question::parse(query).ok_or(Malformed)?;
    let given = answers(answer)?;
    let Context { settings, guard, host, now, .. } = cx;
    let leads_to_host = |address| context::leads_to_host(settings, *host, address);
    with_asked(&question, exchange.key.endpoints, &[], |asked| {
        guard.admits_answer(asked, &given, leads_to_host, *now)
    })
    .map_err(Fault::Refused)?;
    let stripped = if guard.audits() { None } else { strip_ech(answer)? };
    Ok(stripped.unwrap_or_else(|| answer.to_vec()))
}

fn blocked(query: &[u8], refusal: Refusal, text: &str) -> Option<Vec<u8>> {
    refuse(query, refusal, Some(ExtendedError { code: ExtendedError::BLOCKED, text }))
}
