//! DNS under rules by name. The guest and the resolver send arbitrary messages. The resolver gets nothing from the
//! guest except allowed questions. The guest gets no address that the rules forbid, and no keys of Encrypted
//! ClientHello.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use engine::{
    dns::{Dns, Limits, answers::answers, ech::strip_ech},
    guard::{Guard, Mode},
    host::Readiness,
    policy::{NameVerdict, Policy, spec},
    share::{Bound, Share},
};
use testkit::{
    fixture::Fixture,
    guest,
    link::{Kept, Virtual},
    message::{
        Data::{Bytes, Name, Plain},
        Message, param,
    },
};
use wire::{
    dns::{Question, Records, Section, Type},
    domain::without_service,
    frame::{self, Body, Transport},
    offload::Offload,
};

use crate::input::Input;

const LIMITS: Limits = Limits {
    files: Share { most: 4, bound: Bound::Fixed },
    bytes: 3000,
    idle: Duration::from_secs(30),
    idle_stream: Duration::from_secs(120),
};
const RULES: [&str; 3] = [
    "allow files.example:443\nallow *.files.example:443",
    "allow www.peer.test\nallow 10.1.0.0/16:80\ndeny cdn.test",
    "deny evil.example\ndeny private\nallow all",
];
const GUEST: &str = "198.51.100.55";
const SERVER: &str = "203.0.113.53";

struct Run {
    world: Fixture,
    dns: Dns<Virtual<Kept>>,
    audit: bool,
}

/// Input: the rules, then messages of the guest and of the resolvers, each with its length.
pub fn target(data: &[u8]) {
    let mut input = Input::new(data);
    let mut run = Run::new(&mut input);
    for _ in 0..64 {
        if input.is_empty() {
            break;
        }
        run.operation(&mut input);
        run.check_sent();
        run.check_answers();
    }
}

impl Run {
    fn new(input: &mut Input<'_>) -> Self {
        let rules = spec::parse_file(input.pick(&RULES)).unwrap_or_default();
        let Ok(policy) = Policy::new(rules.rules, rules.default) else { panic!("the rules are valid") };
        let audit = input.one_in(8);
        let guard = Guard::new(policy, Mode { audit, ..Mode::default() }, [1; 16]);
        let mut world = Fixture { guard, ..Fixture::default() };
        world.settings.services.search = vec!["files.example".into()];
        Self { world, dns: Dns::new(LIMITS, [7; 16], [8; 16]), audit }
    }

    fn operation(&mut self, input: &mut Input<'_>) {
        let len = usize::from(input.u16()) % 1024;
        match input.byte() % 8 {
            0..4 => {
                let port = 4000 + u16::from(input.byte() % 4);
                let message = input.take(len);
                self.guest_sends(port, message);
            }
            4..7 => {
                let (index, keep_id) = (usize::from(input.byte()), input.one_in(8));
                let message = input.take(len);
                self.server_sends(index, keep_id, message);
            }
            _ => {
                self.world.now =
                    self.world.now + Duration::from_millis(input.pick(&[1, 1500, 10_000, 61_000]));
                while let Some(id) = self.world.timers.pop_due(self.world.now) {
                    self.dns.on_deadline(id, &mut self.world.context());
                }
            }
        }
    }

    fn guest_sends(&mut self, port: u16, message: &[u8]) {
        let (frame, _) = guest::udp(&guest::headers_of(GUEST, SERVER), (port, 53), message);
        let Ok(frame) = frame::parse(&frame) else { return };
        let Body::Ip(packet) = frame.body else { return };
        let Transport::Udp(datagram) = packet.transport else { return };
        self.dns.on_datagram(&packet, &datagram, &Offload::default(), &mut self.world.context());
    }

    /// A resolver that got a query sends this message. Unless `keep_id` is set, the message gets the ID of the query.
    fn server_sends(&mut self, index: usize, keep_id: bool, message: &[u8]) {
        let opened: Vec<_> =
            self.world.host.opened.iter().filter(|opened| !opened.closed()).cloned().collect();
        let Some(opened) = opened.get(index % opened.len().max(1)) else { return };
        let asked = opened.socket.mailbox().sent.last().map(|sent| sent.payload.clone());
        let mut message = message.to_vec();
        if let (Some(asked), Some(id), false) = (asked, message.get_mut(..2), keep_id) {
            id.copy_from_slice(&asked[..2]);
        }
        opened.socket.arrive(&SocketAddr::new(opened.address, 53).to_string(), &message);
        let readable = Readiness { readable: true, ..Readiness::default() };
        self.dns.on_ready(opened.id, readable, &mut self.world.context());
    }

    /// Checks that the resolvers got only questions that the guest may ask.
    fn check_sent(&mut self) {
        let now = self.world.now;
        for opened in &self.world.host.opened {
            let Some(payload) = opened.socket.mailbox().sent.last().map(|sent| sent.payload.clone()) else {
                continue;
            };
            let Some(question) = Question::parse(&payload) else { panic!("a query: {payload:?}") };
            let opt =
                if Records::of(&payload).is_ok_and(|mut records| records.next().is_some()) { 11 } else { 0 };
            assert_eq!(payload.len(), 12 + question.section().len() + opt, "nothing but the question");
            assert!(!question.section().iter().any(u8::is_ascii_uppercase) || has_letters_in_type(&question));
            let name = question.name().map_or_else(String::new, |name| name.to_string());
            let guard = &mut self.world.guard;
            let Some(policy) = guard.policy() else { continue };
            let allowed = |name: &str| matches!(policy.name_verdict(name), NameVerdict::Allow(_));
            let by_rule = allowed(&name) || allowed(without_service(&name));
            let by_kind = matches!(question.kind(), Type::PTR | Type::DS | Type::DNSKEY);
            // A target may have expired since the question was asked, and an audit refuses nothing.
            let by_target = guard
                .names_mut()
                .is_some_and(|names| names.lookup_target(&name, now).next().is_some() || !names.is_empty());
            assert!(by_rule || by_kind || by_target || self.audit, "{name}");
        }
    }

    fn check_answers(&mut self) {
        let audit = self.audit;
        for (frame, _) in self.world.frames() {
            let Ok(frame) = frame::parse(&frame) else { panic!("a frame") };
            let Body::Ip(packet) = frame.body else { continue };
            let Transport::Udp(datagram) = packet.transport else { continue };
            if audit {
                continue;
            }
            let payload = datagram.payload;
            assert_eq!(strip_ech(payload), Ok(None), "no key");
            let Ok(given) = answers(payload) else { panic!("a well-formed answer") };
            let Some(policy) = self.world.guard.policy() else { continue };
            assert!(
                given
                    .addresses
                    .iter()
                    .all(|given| policy.may_answer(given.address, is_loopback(given.address)))
            );
        }
    }
}

fn is_loopback(address: IpAddr) -> bool {
    address.is_loopback()
}

/// Whether the bytes of type and class are upper-case letters.
fn has_letters_in_type(question: &Question<'_>) -> bool {
    question.section().iter().rev().take(4).any(u8::is_ascii_uppercase)
}

/// Seeds of the corpus.
#[must_use]
pub fn seeds() -> Vec<crate::seeds::Seed> {
    let query = |name: &str, kind: Type, opt: &[u8]| {
        let head = [0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(!opt.is_empty())];
        let name = testkit::message::name(name);
        [&head[..], &name, &kind.0.to_be_bytes(), &[0, 1], opt].concat()
    };
    let says = |kind: u8, more: &[u8], message: &[u8]| {
        [&(message.len() as u16).to_be_bytes()[..], &[kind], more, message].concat()
    };
    let guest = |message: &[u8]| says(0, &[1], message);
    let server = |message: &Message| says(4, &[0, 1], &message.bytes());
    let opt = [0, 0, 41, 4, 0xd0, 0, 0, 0x80, 0, 0, 12, 0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8];
    let address = Message::response("www.peer.test", Type::A)
        .answer("www.peer.test", Type::CNAME, &[Name("alias.test")])
        .answer("alias.test", Type::A, &[Bytes(&[203, 0, 113, 1])]);
    let private = Message::response("a.files.example", Type::A).answer(
        "a.files.example",
        Type::A,
        &[Bytes(&[10, 0, 0, 1])],
    );
    let params = [param(1, b"\x02h3"), param(4, &[203, 0, 113, 1]), param(5, &[9; 40])].concat();
    let https = Message::response("files.example", Type::HTTPS)
        .answer("files.example", Type::HTTPS, &[Bytes(&[0, 1]), Plain(""), Bytes(&params)])
        .record(Section::Additional, "", Type::OPT, 0x8000, &[]);
    let head = |rules: u8| vec![rules, 1];
    vec![
        (
            "questions",
            "chain",
            [
                head(1),
                guest(&query("www.peer.test", Type::A, &[])),
                server(&address),
                guest(&query("alias.test", Type::A, &opt)),
            ]
            .concat(),
        ),
        (
            "questions",
            "private",
            [head(0), guest(&query("a.files.example", Type::A, &opt)), server(&private)].concat(),
        ),
        (
            "questions",
            "keys",
            [head(0), guest(&query("files.example", Type::HTTPS, &opt)), server(&https)].concat(),
        ),
        (
            "questions",
            "refused",
            [
                head(0),
                guest(&query("evil.example", Type::TXT, &opt)),
                guest(&query("evil.example.files.example", Type::TXT, &[])),
                says(7, &[1], &[]),
            ]
            .concat(),
        ),
    ]
}
