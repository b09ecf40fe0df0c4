//! Lists of flows, and flows that end on request (docs/design/api.md).

use alloc::format;

use wire::tcp::Flags;

use super::{
    events::{observed, ping, segment, settle},
    *,
};
use crate::{
    events::{Flow, How},
    flow::{Endpoints, Protocol},
    guard::Outlook,
    host::Totals,
    listing::{Detail, Listed, Lister, Page, State, Table},
    testkit::host::READABLE,
};

/// All flows of a table, listed in pages of one slot.
fn list(test: &mut Test, table: Table) -> Vec<Listed> {
    list_with(test, table, Detail::Sockets)
}

fn list_with(test: &mut Test, table: Table, detail: Detail) -> Vec<Listed> {
    let (mut listed, mut next) = (Vec::new(), Some(0));
    while let Some(from) = next {
        let mut all = |_: &Listed| true;
        let mut lister = Lister::new(test.now, detail, &mut all, &mut listed);
        next = test.stack.list(table, Page { from, slots: 1 }, &mut lister);
    }
    listed
}

fn states(listed: &[Listed]) -> Vec<State> {
    listed.iter().map(|flow| flow.state).collect()
}

#[test]
fn connections_are_listed_with_their_state_and_traffic() {
    let (mut test, mut journal) = observed("allow 203.0.113.0/24");
    assert!(list(&mut test, Table::Tcp).is_empty());
    test.receive(&segment(GUEST, PEER, 7, Flags::SYN), &Offload::default());
    assert_eq!(states(&list(&mut test, Table::Tcp)), [State::Connecting]);
    test.host.peers[0].clone().connect();
    settle(&mut test);
    test.wait(Duration::from_millis(2500));
    let listed = list(&mut test, Table::Tcp).remove(0);
    assert_eq!((listed.state, listed.flow.number), (State::Handshake, 1));
    assert_eq!(listed.totals, Some(Totals::bytes(0, 0)));
    assert!(listed.idle.unwrap() >= Duration::from_secs(2));
    assert_eq!(listed.flow.basis.rule.as_deref(), Some("allow 203.0.113.0/24"));

    // The same in two steps. Nothing is added to a connection that has ended.
    let known = list_with(&mut test, Table::Tcp, Detail::Known).remove(0);
    assert_eq!(known, Listed { totals: None, path: None, local: None, ..listed.clone() });
    let mut complete = known.clone();
    test.stack.complete(&mut complete);
    assert_eq!(complete, listed);
    let other = Flow { number: 2, ..(*known.flow).clone() };
    let mut other = Listed { flow: other.into(), ..known };
    test.stack.complete(&mut other);
    assert_eq!(other.totals, None);

    // Another number is another flow, even in the same slot.
    assert!(!test.round().end_flow(listed.id, 2));
    assert!(test.round().end_flow(listed.id, 1));
    assert!(!test.round().end_flow(listed.id, 1));
    test.wait(Duration::ZERO);
    journal.read();
    assert_eq!(journal.how(), [How::Requested]);
    assert!(list(&mut test, Table::Tcp).is_empty());
}

#[test]
fn datagrams_are_listed_with_their_state_and_traffic() {
    let (mut test, mut journal) = observed("");
    test.receive(&datagram(GUEST, PEER, b"one").1, &Offload::default());
    assert_eq!(states(&list(&mut test, Table::Udp)), [State::Unanswered]);
    let (id, socket) = (test.socket().id, test.socket().socket.clone());
    socket.arrive(PEER, b"reply");
    test.round().ready(id, READABLE);
    test.wait(Duration::from_secs(3));
    let listed = list(&mut test, Table::Udp).remove(0);
    assert_eq!((listed.state, listed.idle), (State::Answered, Some(Duration::from_secs(3))));
    assert_eq!(listed.totals.map(|totals| (totals.sent.bytes, totals.received.bytes)), Some((3, 5)));
    for _ in 0..2 {
        test.receive(&datagram(GUEST, PEER, b"more").1, &Offload::default());
        test.wait(Duration::ZERO);
    }
    assert_eq!(states(&list(&mut test, Table::Udp)), [State::Stream]);

    assert!(test.round().end_flow(listed.id, listed.flow.number));
    assert!(list(&mut test, Table::Udp).is_empty());
    test.receive(&datagram(GUEST, PEER, b"again").1, &Offload::default());
    assert_eq!(list(&mut test, Table::Udp)[0].flow.number, listed.flow.number + 1);
    journal.read();
    assert_eq!(journal.how(), [How::Requested]);
}

/// Each destination of a ping socket is listed, and ends by itself.
#[test]
fn destinations_of_pings_end_one_by_one() {
    let (mut test, mut journal) = observed("");
    for host in [1, 2] {
        test.receive(&ping(GUEST, &format!("203.0.113.{host}:0")), &Offload::default());
    }
    let listed = list(&mut test, Table::Ping);
    assert_eq!(listed.iter().map(|flow| flow.flow.number).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(listed[0].id, listed[1].id);
    assert!(test.round().end_flow(listed[0].id, 1) && !test.round().end_flow(listed[0].id, 1));
    assert_eq!((list(&mut test, Table::Ping).len(), test.stack.ping().flows()), (1, 1));
    assert!(test.round().end_flow(listed[1].id, 2));
    assert_eq!((list(&mut test, Table::Ping).len(), test.stack.ping().flows()), (0, 0));
    journal.read();
    assert_eq!(journal.how(), [How::Requested, How::Requested]);
}

/// An explanation has no effect: nothing is counted, and no flow begins.
#[test]
fn an_explanation_has_no_effect() {
    let (mut test, mut journal) = observed("deny 203.0.113.7");
    for (remote, outlook, rule) in [
        ("203.0.113.7:80", Outlook::Refused, "deny 203.0.113.7"),
        ("203.0.113.8:80", Outlook::Allowed, "default allow"),
    ] {
        let ends = Endpoints { guest: GUEST.parse().unwrap(), remote: remote.parse().unwrap() };
        let prospect = test.round().explain(Protocol::Tcp, &ends, None).unwrap();
        assert_eq!((prospect.outlook, prospect.basis.rule.as_deref()), (outlook, Some(rule)));
        assert_eq!(prospect.destination, ends.remote);
    }
    let ends = Endpoints { guest: GUEST.parse().unwrap(), remote: "0.0.0.0:80".parse().unwrap() };
    assert!(test.round().explain(Protocol::Tcp, &ends, None).is_err());
    assert_eq!((test.stack.guard().refused(), test.stack.tcp().len()), (0, 0));
    journal.read();
    assert_eq!(journal.how(), []);
}
