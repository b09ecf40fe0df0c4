use std::sync::Arc;

use engine::flow::Endpoints;
use engine::host::Totals;
use engine::timer::Instant;

use super::*;

fn flow(protocol: Protocol, direction: Direction, bypasses: bool) -> Arc<Flow> {
    let [guest, remote] = ["192.0.2.2:40000", "203.0.113.1:80"].map(|end| end.parse().unwrap());
    let start = Start { bypasses, ..Start::of(protocol, direction, Endpoints { guest, remote }) };
    Arc::new(Flow {
        number: 7,
        begun: Instant::from_micros(0),
        start,
        basis: Default::default(),
        memory: Default::default(),
    })
}

fn end(flow: Arc<Flow>, how: How, opened: bool) -> End {
    End { flow, name: None, how, opened, failure: None, totals: None }
}

/// The table of docs/troubleshooting.md: each text of this module is in it.
#[test]
fn each_reason_is_documented() {
    let page = include_str!("../../../../../docs/troubleshooting.md");
    let code = include_str!("../reason.rs");
    let texts = code.split('"').skip(1).step_by(2).filter(|text| text.len() > 12 && !text.contains('{'));
    let missing: Vec<&str> = texts.filter(|text| !page.contains(&format!("`{text}`"))).collect();
    assert_eq!(missing, [""; 0]);
}

#[test]
fn reasons_depend_on_the_step_and_the_side() {
    use Direction::{Inbound, Outbound};
    let tcp = |direction, bypasses| flow(Protocol::Tcp, direction, bypasses);
    let failed = |errno: Errno| How::Failed(engine::host::Errno(errno.raw_os_error()));
    for (ended, expected) in [
        (end(tcp(Outbound, false), How::Closed, true), None),
        (end(tcp(Outbound, false), failed(Errno::CONNREFUSED), false), Some("refused by the peer: ")),
        (end(tcp(Inbound, true), failed(Errno::CONNREFUSED), false), Some("refused by the guest: ")),
        (end(tcp(Inbound, false), How::GuestReset, false), Some("refused by the guest: ")),
        (end(tcp(Inbound, false), How::GuestReset, true), None),
        (
            end(tcp(Outbound, false), failed(Errno::TIMEDOUT), false),
            Some("time-out: the peer does not answer"),
        ),
        (end(tcp(Outbound, false), failed(Errno::TIMEDOUT), true), Some("time-out: the peer does not ack")),
        (
            end(tcp(Inbound, false), How::Aborted(Abort::Silent), false),
            Some("time-out: the guest does not answer"),
        ),
        (end(tcp(Outbound, false), failed(Errno::ACCESS), false), Some("not permitted: a firewall")),
        (
            end(flow(Protocol::Icmp, Outbound, false), failed(Errno::ACCESS), false),
            Some("not permitted: net.ipv4.ping_group_range"),
        ),
    ] {
        let reason = of_end(&ended);
        let matches =
            reason.zip(expected).map_or(reason == expected, |(text, start)| text.starts_with(start));
        assert!(matches, "{ended:?}: {reason:?}");
    }
}

/// A flow of datagrams that ends by its time-out has failed if there was no answer. The last failure is the reason.
#[test]
fn flows_without_an_answer() {
    let idle = |totals, failure| End {
        totals: Some(totals),
        failure,
        ..end(flow(Protocol::Udp, Direction::Outbound, false), How::Idle, true)
    };
    assert_eq!(of_end(&idle(Totals::bytes(5, 7), None)), None);
    assert_eq!(of_end(&idle(Totals::bytes(5, 0), None)), Some("time-out: no answer of the peer"));
    let refused = idle(Totals::bytes(5, 0), Some(engine::host::Errno(Errno::CONNREFUSED.raw_os_error())));
    assert!(of_end(&refused).unwrap().starts_with("refused by the peer"));
    let line = "UDP 192.0.2.2:40000 -> 203.0.113.1:80 has failed: refused by the peer: nothing listens at this \
                address and port (error 111)";
    assert_eq!(sentence(&Event::End(refused)).as_deref(), Some(line));
}
