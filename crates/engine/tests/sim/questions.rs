//! Tests of DNS over TCP with rules by name: the engine terminates the connection, and the guard judges each question
//! (docs/guard.md).

use std::time::Duration;

use engine::{
    guard::{Guard, Limits, Mode},
    policy::{Policy, spec},
};
use testkit::message::{Data::Bytes, Message, name};
use wire::{
    dns::{Question, Type},
    tcp::Flags,
};

use crate::script::{SYN, Script};

const NAME: &str = "files.example";
const DATA: &str = ". ack 1 win 512";

/// The guest has opened a connection to port 53 of an address that is not a resolver.
fn connected(rules: &str) -> Script {
    connected_within(Limits::default(), rules)
}

fn connected_within(limits: Limits, rules: &str) -> Script {
    let file = spec::parse_file(rules).unwrap();
    let mut script = Script::new();
    script.resolvers("198.51.100.53", &["192.0.2.1", "192.0.2.2"]);
    script.remote = "203.0.113.9:53".parse().unwrap();
    *script.stack.guard_mut() =
        Guard::new(Policy::new(file.rules, file.default).unwrap(), Mode::default(), [1; 16]);
    script.stack.guard_mut().limit(limits);
    open(&mut script);
    script
}

fn open(script: &mut Script) {
    script.guest(SYN);
    script.us("S. 0:0 ack 1");
    script.guest(". 1:1 ack 1 win 512");
    script.quiet();
}

/// A message after its length field.
fn framed(message: &[u8]) -> Vec<u8> {
    [&(message.len() as u16).to_be_bytes(), message].concat()
}

fn query(id: u16, of: &str) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    message.extend(name(of));
    message.extend([0, 1, 0, 1]);
    message
}

fn say(script: &mut Script, position: usize, bytes: &[u8]) {
    let frame = script.bytes(DATA, position, bytes);
    script.frames(&[frame]);
}

/// The messages that the guest received, and whether the stream has ended.
fn got(script: &mut Script) -> (Vec<Vec<u8>>, bool) {
    let heard = script.heard();
    assert!(heard.iter().all(|(flags, _)| !flags.contains(Flags::RST)), "{heard:?}");
    let ended = heard.iter().any(|(flags, _)| flags.contains(Flags::FIN));
    let bytes: Vec<u8> = heard.into_iter().flat_map(|(_, payload)| payload).collect();
    let (mut messages, mut rest) = (Vec::new(), &bytes[..]);
    while let Some((len, after)) = rest.split_first_chunk() {
        let (message, after) = after.split_at(u16::from_be_bytes(*len).into());
        messages.push(message.to_vec());
        rest = after;
    }
    (messages, ended)
}

/// The resolver accepts the connection that was opened last, and receives a query for `of`. Returns the ID of the
/// query.
fn asked(script: &mut Script, of: &str) -> u16 {
    let peer = script.peer();
    peer.state().kept = Some(Vec::new());
    peer.connect();
    script.settle();
    let sent = peer.state().kept.clone().unwrap();
    let question = Question::parse(&sent[2..]).unwrap();
    assert_eq!(sent, framed(&query(question.id, of)));
    question.id
}

fn answer(id: u16, of: &str) -> Vec<u8> {
    let message = Message::response(of, Type::A).answer(of, Type::A, &[Bytes(&[203, 0, 113, 7])]);
    let mut bytes = message.bytes();
    bytes[..2].copy_from_slice(&id.to_be_bytes());
    bytes
}

#[test]
fn a_question_is_asked_of_the_hosts_resolver_over_tcp() {
    let mut script = connected("allow files.example");
    assert_eq!(script.host.peers.len(), 0, "no socket for the guest's connection");
    say(&mut script, 0, &framed(&query(7, "Files.example")));
    let id = asked(&mut script, NAME);
    assert_eq!(script.peer().state().destination, Some("192.0.2.1:53".parse().unwrap()));
    let bytes = framed(&answer(id, NAME));
    // The answer arrives in pieces.
    for piece in bytes.chunks(20) {
        assert_eq!(got(&mut script), (vec![], false));
        script.peer().say(piece);
        script.settle();
    }
    let mut expected = answer(7, NAME);
    expected[13..18].copy_from_slice(b"Files");
    assert_eq!(got(&mut script), (vec![expected], false));
    assert!(script.peer().closed().is_some());
    assert!(script.stack.dns().is_empty());
    let names = script.stack.guard_mut().names_mut().unwrap();
    let now = engine::timer::Instant::from_micros(0);
    assert_eq!(names.lookup("203.0.113.7".parse().unwrap(), now).collect::<Vec<_>>(), [NAME]);
}

/// Queries and answers over TCP have a bounded amount of memory. Without it, a server counts as failed, and the connection
/// ends.
#[test]
fn without_memory_for_answers_the_connection_ends() {
    for answers in [0, 40] {
        let mut script = connected_within(Limits { answers, ..Limits::default() }, "allow files.example");
        let asks = framed(&query(7, NAME));
        say(&mut script, 0, &asks);
        if answers > asks.len() {
            // There is memory for the query, but not for the answer of a server. The other server is silent.
            let id = asked(&mut script, NAME);
            assert_eq!(script.host.peers.len(), 1);
            script.peer().say(&framed(&answer(id, NAME)));
            script.settle();
            asked(&mut script, NAME);
            script.pass(Duration::from_secs(11));
        }
        assert_eq!(script.host.peers.len(), 2);
        let heard = script.heard();
        assert!(heard.last().unwrap().0.contains(Flags::RST), "{heard:?}");
        assert!(script.stack.tcp().is_empty() && script.stack.dns().is_empty());
    }
}

/// Several questions in one stream (RFC 7766 §6.2.1.1), which is cut at any position. A refused question is answered at
/// once.
#[test]
fn questions_in_a_stream() {
    let mut script = connected("allow files.example");
    let stream =
        [framed(&query(1, "evil.test")), framed(&query(2, NAME)), framed(&query(3, "evil.test"))].concat();
    for (index, byte) in stream.iter().enumerate() {
        say(&mut script, index, &[*byte]);
    }
    let (messages, ended) = got(&mut script);
    let ids: Vec<_> = messages.iter().map(|message| (message[1], message[3] & 0xf)).collect();
    assert_eq!((ids, ended), (vec![(1, 3), (3, 3)], false));
    assert_eq!(script.host.peers.len(), 1, "one question was asked");
    let id = asked(&mut script, NAME);
    // The guest ends its stream, and waits for the answer.
    let received = messages.iter().map(|message| message.len() + 2).sum::<usize>();
    let fin = script.bytes(&format!("F. ack {} win 512", received + 1), stream.len(), &[]);
    script.frames(&[fin]);
    assert_eq!(got(&mut script), (vec![], false));
    script.peer().say(&framed(&answer(id, NAME)));
    script.settle();
    assert_eq!(got(&mut script), (vec![answer(2, NAME)], true));
}

#[test]
fn a_stream_without_questions_ends() {
    let mut script = connected("allow files.example");
    let fin = script.bytes("F. ack 1 win 512", 0, &[]);
    script.frames(&[fin]);
    assert_eq!(got(&mut script), (vec![], true));
    script.guest(". 2:2 ack 2 win 512");
    script.quiet();
    assert!(script.stack.tcp().is_empty());
}

#[test]
fn what_is_no_query_ends_the_connection() {
    for bytes in [framed(b"a tunnel through port 53"), framed(b""), vec![0xff; 3]] {
        let mut script = connected("allow files.example");
        say(&mut script, 0, &bytes);
        let heard = script.heard();
        assert!(heard.iter().any(|(flags, _)| flags.contains(Flags::RST)), "{heard:?}");
        assert_eq!((script.host.peers.len(), script.stack.guard().refused()), (0, 1));
        assert!(script.stack.tcp().is_empty());
    }
}

#[test]
fn a_message_that_does_not_end_is_refused() {
    let mut script = connected("allow files.example");
    let part = &framed(&query(7, NAME))[..20];
    let fin = script.bytes("F. ack 1 win 512", 0, part);
    script.frames(&[fin]);
    assert_eq!(got(&mut script), (vec![], true));
    assert_eq!((script.host.peers.len(), script.stack.guard().refused()), (0, 1));
}

/// If no resolver answers, the client gets SERVFAIL, and the connection stays open.
#[test]
fn silent_and_failing_resolvers() {
    let mut script = connected("allow files.example");
    say(&mut script, 0, &framed(&query(7, NAME)));
    asked(&mut script, NAME);
    script.peer().fail(testkit::stream::CONNECTION_RESET);
    script.settle();
    assert_eq!(script.host.peers.len(), 2, "the next server is asked");
    asked(&mut script, NAME);
    assert_eq!(script.peer().state().destination, Some("192.0.2.2:53".parse().unwrap()));
    script.pass(Duration::from_secs(20));
    let (mut messages, ended) = got(&mut script);
    messages.dedup(); // the guest has not acknowledged the last message
    assert_eq!((messages.len(), messages[0][1], messages[0][3] & 0xf, ended), (1, 7, 2, false));
    assert!(script.stack.dns().is_empty());
    assert_eq!(script.stack.tcp().len(), 1);
}

/// The engine stops reading from a client that sends questions but does not read answers.
#[test]
fn questions_wait_for_answers() {
    let mut script = connected("allow files.example");
    let mut position = 0;
    for id in 0..100 {
        let message = framed(&query(id, NAME));
        say(&mut script, position, &message);
        position += message.len();
    }
    assert_eq!(script.stack.dns().len(), 8);
    assert_eq!(script.host.peers.len(), 8);
}
