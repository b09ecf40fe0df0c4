//! A resolver whose answers the test provides. It records the queries that it gets.

use super::Ns;
use super::server::{TICK, accept_until};
use std::io::{Read, Write};
use std::net::{IpAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use testkit::message::{Data, Message};
use wire::dns::{Question, Records, Type, write_text};

/// AD and CD.
const AUTHENTIC_AND_CHECKING: u8 = 0x30;
const DNSSEC_OK: u16 = 0x8000;

/// A query that a resolver got.
#[derive(Clone, Debug)]
pub(crate) struct Query {
    /// The name in the question, in dotted form.
    pub(crate) name: String,
    pub(crate) kind: Type,
    pub(crate) over_tcp: bool,
    pub(crate) message: Vec<u8>,
}

/// A resource record: its owner, type and data.
pub(crate) type Row = (&'static str, Type, &'static [Data<'static>]);

/// A running resolver. It ends when this value is dropped.
pub(crate) struct Resolver {
    asked: Arc<Mutex<Vec<Query>>>,
    over: Arc<AtomicBool>,
}

impl Query {
    /// Parses a query.
    ///
    /// # Panics
    /// If the message is not a query with one question.
    pub(crate) fn parse(message: &[u8], over_tcp: bool) -> Self {
        let question = Question::parse(message).expect("a query");
        let mut name = String::new();
        write_text(question.name().unwrap().labels(), &mut name).unwrap();
        Query { name, kind: question.kind(), over_tcp, message: message.to_vec() }
    }

    /// The flags of the query's OPT record, if there is one.
    pub(crate) fn opt_flags(&self) -> Option<u16> {
        let opt = Records::of(&self.message).unwrap().find(|record| record.unwrap().kind == Type::OPT);
        opt.map(|record| record.unwrap().ttl as u16)
    }

    /// A response without records.
    pub(crate) fn response(&self) -> Message {
        Message::response(&self.name, self.kind)
    }

    /// The answer with the records of `rows` for the name in the question. Aliases are followed.
    pub(crate) fn answer_from(&self, rows: &[Row]) -> Vec<u8> {
        let (mut message, mut owner) = (self.response(), self.name.as_str());
        loop {
            let of_owner = || rows.iter().filter(|(name, ..)| *name == owner);
            for (_, kind, data) in of_owner().filter(|(_, kind, _)| *kind == self.kind) {
                message = message.answer(owner, *kind, data);
            }
            match of_owner().find(|(_, kind, _)| *kind == Type::CNAME && *kind != self.kind) {
                Some(&(_, _, data @ &[Data::Name(target)])) => {
                    message = message.answer(owner, Type::CNAME, data);
                    owner = target;
                }
                _ => break,
            }
        }
        let mut bytes = message.bytes();
        if !rows.iter().any(|(name, ..)| *name == owner) {
            bytes[3] |= 3; // NXDOMAIN
        }
        bytes
    }

    /// Completes an answer: sets the ID of the query, and copies the flags AD and CD and the OPT record, if the query
    /// has one.
    pub(crate) fn seal(&self, mut answer: Vec<u8>) -> Vec<u8> {
        answer[..2].copy_from_slice(&self.message[..2]);
        answer[3] |= self.message[3] & AUTHENTIC_AND_CHECKING;
        if let Some(flags) = self.opt_flags() {
            answer[11] += 1;
            answer.extend(b"\0\0\x29\x04\xd0\0\0");
            answer.extend((flags & DNSSEC_OK).to_be_bytes());
            answer.extend([0, 0]);
        }
        answer
    }
}

impl Resolver {
    /// Listens in `ns` at port 53 of `at`, over UDP and TCP. `script` returns the answer to a query. If it returns
    /// none, the query gets no answer.
    pub(crate) fn start(
        ns: &Ns,
        at: IpAddr,
        script: impl Fn(&Query) -> Option<Vec<u8>> + Send + Sync + 'static,
    ) -> Self {
        let resolver = Resolver { asked: Arc::default(), over: Arc::default() };
        let script = Arc::new(script);
        let (socket, listener) = (ns.udp((at, 53)), ns.listen((at, 53)));
        let (asked, over) = (resolver.asked.clone(), resolver.over.clone());
        let answer = move |message: &[u8], over_tcp| {
            // If the message is not a query, the panic poisons the lock, and the test fails.
            let mut asked = asked.lock().unwrap();
            let query = Query::parse(message, over_tcp);
            asked.push(query.clone());
            drop(asked);
            script(&query).map(|answer| query.seal(answer))
        };
        let over_tcp = answer.clone();
        thread::spawn(move || serve_datagrams(&socket, &answer, &over));
        let over = resolver.over.clone();
        thread::spawn(move || {
            let serve = |stream| {
                let answer = over_tcp.clone();
                thread::spawn(move || serve_stream(stream, answer));
            };
            accept_until(&over, &listener, serve);
        });
        resolver
    }

    /// Starts a resolver that answers with these records.
    pub(crate) fn with(ns: &Ns, at: IpAddr, rows: &'static [Row]) -> Self {
        Resolver::start(ns, at, |query| Some(query.answer_from(rows)))
    }

    /// The queries so far.
    pub(crate) fn asked(&self) -> Vec<Query> {
        self.asked.lock().unwrap().clone()
    }

    /// Name and type of each query so far.
    pub(crate) fn questions(&self) -> Vec<String> {
        self.asked().iter().map(|query| format!("{} {}", query.name, query.kind)).collect()
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

fn serve_datagrams(socket: &UdpSocket, answer: impl Fn(&[u8], bool) -> Option<Vec<u8>>, over: &AtomicBool) {
    socket.set_read_timeout(Some(TICK)).unwrap();
    let mut buffer = [0; 4096];
    while !over.load(Ordering::Relaxed) {
        let Ok((len, from)) = socket.recv_from(&mut buffer) else { continue };
        if let Some(answer) = answer(&buffer[..len], false) {
            let _ = socket.send_to(&answer, from);
        }
    }
}

/// A length field comes before each message (RFC 7766 §8).
fn serve_stream(mut stream: TcpStream, answer: impl Fn(&[u8], bool) -> Option<Vec<u8>>) {
    let mut len = [0; 2];
    while stream.read_exact(&mut len).is_ok() {
        let mut query = vec![0; u16::from_be_bytes(len).into()];
        stream.read_exact(&mut query).unwrap();
        let Some(answer) = answer(&query, true) else { return };
        let framed = [&(answer.len() as u16).to_be_bytes()[..], &answer].concat();
        stream.write_all(&framed).unwrap();
    }
}
