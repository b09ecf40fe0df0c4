//! Tests of requests about the policy (docs/guard.md).

use std::thread;

use engine::guard::Mode;
use engine::policy::{Policy, spec};

use super::*;
use control::policy::{encode, read_reply};

/// A guard with this number of rules.
fn guard(rules: usize) -> Guard {
    let rule = |number: usize| {
        spec::parse(engine::policy::Action::Deny, &format!("10.{}.{}.0/24", number >> 8, number & 255))
    };
    let rules = (0..rules).map(|number| rule(number).unwrap()).collect();
    Guard::new(Policy::new(rules, None).unwrap(), Mode::default(), [1; 16])
}

/// Sends a request, and reads the reply in another thread while the server works.
fn ask(world: &mut World, request: &Request<'_>, outcome: Result<&str, &str>) -> Reply {
    let client = world.connect();
    let bytes = encode(request);
    let asking = thread::spawn(move || {
        announced(&client);
        (&client).write_all(&bytes).unwrap();
        read_reply(&client).unwrap()
    });
    while !asking.is_finished() {
        world.turn(outcome);
        thread::yield_now();
    }
    world.turn(outcome);
    assert!(!world.serves());
    asking.join().unwrap()
}

#[test]
fn a_policy_of_any_length_is_shown() {
    for rules in [0, 3, 50_000] {
        let mut world = World::new();
        world.guard = guard(rules);
        let Reply::Applied(text) = ask(&mut world, &Request::Show, Ok("")) else { panic!() };
        assert_eq!(text.lines().count(), rules + 2);
        assert!(text.ends_with("\ndefault allow\n"));
    }
}

#[test]
fn a_policy_of_the_greatest_length_is_received() {
    for (len, outcome, reply) in [
        (0, Ok("rules: 0"), Reply::Applied("rules: 0".into())),
        (spec::MAX_FILE_LEN, Err("line 1"), Reply::Refused("line 1".into())),
    ] {
        let mut world = World::new();
        let text = "# comment\n".repeat(len.div_ceil(10))[..len].to_owned();
        assert_eq!(ask(&mut world, &Request::Replace(&text), outcome), reply);
        assert_eq!(world.policies, [text]);
    }
}

#[test]
fn invalid_requests_are_refused_before_their_text_arrives() {
    let mut world = World::new();
    let request =
        |verb: u32, len: u32| [&b"\xffpolicy1"[..], &verb.to_be_bytes(), &len.to_be_bytes()].concat();
    for (bytes, reason) in [
        (request(2, (spec::MAX_FILE_LEN + 1) as u32), "The policy has 16777217 bytes (max 16777216)"),
        (request(7, 0), "Unknown request 7 about the policy: the client may be newer than the server"),
        (request(1, 1), "Unknown request: the client may be newer than the server"),
        (b"\xffpolicy2verblen.".to_vec(), "Unknown request: the client may be newer than the server"),
        ([&request(2, 2)[..], b"\xff\xff"].concat(), "The policy is not UTF-8"),
    ] {
        let mut client = world.connect();
        world.turn(Ok(""));
        announced(&client);
        client.write_all(&bytes).unwrap();
        world.turn(Ok(""));
        assert_eq!(read_reply(&client).unwrap(), Reply::Refused(reason.into()));
        assert!(!world.serves() && world.policies.is_empty());
    }
}

/// If a client does not read, the server keeps only a part of the policy, and closes the client when its time has
/// expired.
#[test]
fn a_client_that_does_not_read_is_closed() {
    let mut world = World::new();
    world.guard = guard(50_000);
    let mut client = world.connect();
    world.turn(Ok(""));
    announced(&client);
    client.write_all(&encode(&Request::Show)).unwrap();
    world.turn(Ok(""));
    assert!(!world.turn(Ok("")), "it causes no events");
    assert!(world.server.client.as_ref().unwrap().output.capacity() < 4 * STEP);
    world.wait(CLIENT_TIMEOUT);
    assert!(!world.serves());
    let error = read_reply(&client).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
}

/// For one event, the server receives a limited number of bytes. It uses only as much memory as bytes have arrived.
#[test]
fn a_policy_is_received_in_steps() {
    let mut world = World::new();
    let mut client = world.connect();
    world.turn(Ok(""));
    announced(&client);
    let bytes = encode(&Request::Replace(&"# comment\n".repeat(1_000_000)));
    client.set_nonblocking(true).unwrap();
    let sent = client.write(&bytes).unwrap();
    world.turn(Ok(""));
    let input = &world.server.client.as_ref().unwrap().input;
    assert_eq!(input.len(), sent);
    assert!(input.capacity() <= 2 * (sent + STEP), "{} {sent}", input.capacity());
    drop(client);
    world.turn(Ok(""));
    assert!(!world.serves() && world.policies.is_empty());
}
