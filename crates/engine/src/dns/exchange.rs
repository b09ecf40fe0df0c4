//! An exchange: one query, or one session with a resolver.

use alloc::{string::String, vec::Vec};
use core::net::SocketAddr;

use wire::dns::Question;

use super::over_tcp::OverTcp;
use crate::{
    context::{TcpOf, UdpOf, World},
    events::Account,
    flow::{Endpoints, FlowId, Keyed},
    host::Report,
    idle::Traffic,
    resolvers::{Health, Servers},
    timer::{Deadline, Instant},
};

/// The key of an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) endpoints: Endpoints,
    /// The query's identifier. None for a session.
    pub(super) id: Option<u16>,
    /// The TCP connection over which the guest sent the query. None: the query came over UDP.
    pub(super) stream: Option<FlowId>,
}

pub(super) struct Exchange<W: World> {
    pub(super) key: Key,
    pub(super) servers: Servers,
    /// Index of the server to ask next.
    pub(super) next: usize,
    /// The servers that were asked, in order.
    pub(super) asked: Vec<Asked<W>>,
    /// The query: the whole message if it can be sent again, else its head.
    pub(super) question: Vec<u8>,
    /// The guest's own query, if the guard judges questions. Then `question` is the rebuilt query for the servers.
    pub(super) judged: Option<Vec<u8>>,
    /// Whether the query may be sent to another server.
    pub(super) repeatable: bool,
    pub(super) traffic_class: u8,
    /// An answer whose code reports a fault of the server, so another server may have a better answer.
    pub(super) kept: Option<Vec<u8>>,
    /// The last error, translated to the guest's family.
    pub(super) error: Option<Report>,
    /// The traffic of a session so far.
    pub(super) traffic: Traffic,
    pub(super) deadline: Deadline,
    /// Reports the end of the exchange. Empty for a query of a TCP connection, since the connection itself is reported.
    pub(super) account: Account,
}

/// A server that was asked.
pub(super) struct Asked<W: World> {
    pub(super) server: SocketAddr,
    pub(super) io: Io<W>,
    /// Whether the server may still answer.
    pub(super) waits: bool,
}

/// The socket with which a server is asked.
pub(super) enum Io<W: World> {
    Datagram(UdpOf<W>),
    Stream(OverTcp<TcpOf<W>>),
}

/// How a server's datagram is handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The datagram does not answer the query.
    NoAnswer,
    /// The datagram is part of a session.
    Session,
    /// The datagram is the answer for the guest.
    Final,
    /// The datagram is an answer, but another server may have a better one.
    AskAnother,
}

impl<W: World> Keyed for Exchange<W> {
    type Key = Key;
    fn key(&self) -> Key {
        self.key
    }
}

impl<W: World> Exchange<W> {
    pub(super) const fn new(key: Key, servers: Servers, traffic_class: u8) -> Self {
        Self {
            key,
            servers,
            next: 0,
            asked: Vec::new(),
            question: Vec::new(),
            judged: None,
            repeatable: false,
            traffic_class,
            kept: None,
            error: None,
            traffic: Traffic::NONE,
            deadline: Deadline::NONE,
            account: Account::NONE,
        }
    }

    /// Stores the account of the exchange, and counts the guest's first datagram of `len` bytes. `question` is the
    /// question of the guest.
    pub(super) fn open_account(&mut self, account: Account, question: Option<&Question<'_>>, len: usize) {
        self.account = account;
        self.account.count(true, len, 1);
        if let Some(name) = question.filter(|_| self.account.is_open()).and_then(Question::name) {
            let mut text = String::new();
            // Writing to a string does not fail.
            wire::dns::write_text(name.labels(), &mut text).ok();
            self.account.note_name(&text);
        }
    }

    /// Whether `question` is the question of this exchange. `None`, a datagram of a session, belongs to any session.
    pub(super) fn is_about(&self, question: Option<&Question<'_>>) -> bool {
        match question {
            Some(question) => {
                let own = self.judged.as_deref().unwrap_or(&self.question);
                Question::parse(own).as_ref() == Some(question)
            }
            None => self.key.id.is_none(),
        }
    }

    /// Whether the query may be sent to another server.
    pub(super) const fn may_ask_another(&self) -> bool {
        self.repeatable && self.next < self.servers.len()
    }

    /// Whether a server may still answer.
    pub(super) fn waits(&self) -> bool {
        self.asked.iter().any(|asked| asked.waits)
    }

    /// Classifies a datagram of the server at `index`.
    pub(super) fn judge(&mut self, index: usize, payload: &[u8]) -> Verdict {
        if self.key.id.is_none() {
            return Verdict::Session;
        }
        let code = Question::parse(&self.question).and_then(|question| question.answered_by(payload));
        let (Some(code), Some(asked)) = (code, self.asked.get_mut(index)) else { return Verdict::NoAnswer };
        asked.waits = false;
        if code.is_server_fault() && (self.may_ask_another() || self.waits()) {
            Verdict::AskAnother
        } else {
            Verdict::Final
        }
    }

    /// Notes that the server at `index` has answered. Servers that were asked before this server and have not answered
    /// have failed.
    pub(super) fn report(&self, index: usize, health: &mut Health, now: Instant) {
        for (at, asked) in self.asked.iter().enumerate() {
            if at == index {
                health.answered(asked.server.ip());
            } else if at < index && asked.waits {
                health.failed(asked.server.ip(), now);
            }
        }
    }

    /// Memory of the stored queries and the stored answer, in bytes.
    pub(super) fn bytes(&self) -> usize {
        let stored = [&self.judged, &self.kept].into_iter().flatten();
        self.question.len() + stored.map(Vec::len).sum::<usize>()
    }
}
