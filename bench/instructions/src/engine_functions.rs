//! Functions of `engine`.

use std::hint::black_box;
use std::net::SocketAddr;

use engine::dns::answers::answers;
use engine::first_bytes::{Ech, FirstBytes, FirstDatagrams};
use engine::flow::{self, Endpoints, Flows, Keyed, Kind};
use engine::forward::{Enabled, Listen, PortRange, Protocol, Rule, Table};
use engine::policy::{NoNames, Policy, Question, spec};
use testkit::hello::{long_client_hello, records};
use testkit::quic::{Initial, V1, crypto};
use testkit::settings::START;

use crate::repeat;

/// Length of a ClientHello with a post-quantum key share.
const HELLO: usize = 1800;

/// A flow that is nothing but its key.
struct Flow(Endpoints);

impl Keyed for Flow {
    type Key = Endpoints;

    fn key(&self) -> Endpoints {
        self.0
    }
}

pub(crate) fn find_flow(count: u32) {
    let endpoints = |port: u16| Endpoints {
        guest: SocketAddr::from(([192, 0, 2, 1], port)),
        remote: SocketAddr::from(([198, 51, 100, 1], 443)),
    };
    let mut flows = Flows::new(Kind::Tcp, 1000, [7; 16]);
    for port in 1..=1000 {
        black_box(flows.insert(Flow(endpoints(port))).is_ok());
    }
    let key = endpoints(500);
    repeat(count, || flows.find(black_box(&key)));
}

pub(crate) fn match_rule(count: u32) {
    let mut table = Table::new();
    for port in (1..=64).map(|number| number * 100) {
        let rule = Rule {
            protocol: Protocol::Tcp,
            listen: Listen::ANY,
            ports: PortRange::single(port),
            target_addr: None,
            target_first: port,
            best_effort: false,
            scan: false,
        };
        black_box(table.add(rule, Enabled::ALL).is_ok());
    }
    let address = [192, 0, 2, 1].into();
    repeat(count, || {
        table.lookup(Protocol::Tcp, black_box(address), black_box(6400), None).map(|(at, _)| at)
    });
}

/// One prefix of 10000 covers the address, and another one that one.
pub(crate) fn judge(count: u32) {
    let within = (0..9_999).map(|n: u32| format!("allow tcp/10.{}.{}.0/24:443\n", n >> 8, n & 0xff));
    let text: String = within.chain(["deny 10.0.0.0/8".into()]).collect();
    let Ok(file) = spec::parse_file(&text) else { return };
    let Ok(policy) = Policy::new(file.rules, file.default) else { return };
    let destination = SocketAddr::from(([10, 20, 30, 40], 443));
    let question = Question { protocol: flow::Protocol::Tcp, destination, leads_to_host: false };
    repeat(count, || policy.verdict(black_box(&question), &NoNames));
}

/// Two aliases and eight addresses, as of a content delivery network.
pub(crate) fn read_answer(count: u32) {
    let mut message = b"\0\x07\x81\x80\0\x01\0\x0a\0\0\0\0\x03www\x07example\x04test\0\0\x01\0\x01".to_vec();
    let alias = |owner: u8, data: &[u8]| {
        [&[0xc0, owner, 0, 5, 0, 1, 0, 0, 1, 0x2c, 0, data.len() as u8], data].concat()
    };
    message.extend(alias(12, b"\x03www\x07example\x03cdn\xc0\x18"));
    message.extend(alias(46, b"\x04edge\xc0\x32"));
    for host in 1..=8 {
        message.extend([0xc0, 76, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, host]);
    }
    assert!(answers(&message).is_ok_and(|answers| answers.addresses.len() == 8));
    repeat(count, || answers(black_box(&message)));
}

/// A ClientHello in two segments.
pub(crate) fn name_in_tls(count: u32) {
    let stream = records(&long_client_hello("files.example.org", HELLO), HELLO);
    let (start, end) = stream.split_at(1460);
    repeat(count, || {
        let mut first = FirstBytes::new(Ech::OuterName);
        first.feed(black_box(start));
        first.feed(black_box(end))
    });
}

/// A ClientHello in two datagrams of 1200 bytes.
pub(crate) fn name_in_quic(count: u32) {
    let message = long_client_hello("files.example.org", HELLO);
    let (start, end) = message.split_at(1130);
    let header = Initial::first(V1, b"an id");
    let mut rest = crypto(start.len(), end);
    rest.resize(crypto(0, start).len(), 0);
    let datagrams = [header.seal(&crypto(0, start)), Initial { number: 1, ..header }.seal(&rest)];
    repeat(count, || {
        let mut first = FirstDatagrams::new(Ech::OuterName);
        first.feed_datagram(black_box(&datagrams[0]), START);
        first.feed_datagram(black_box(&datagrams[1]), START)
    });
}
