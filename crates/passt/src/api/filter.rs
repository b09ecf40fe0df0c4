//! Which flows a list has. The thread that handles packets applies the filter, so it compares plain values only.

use std::net::IpAddr;

use engine::flow::Protocol;
use engine::forward::spec::Direction;
use engine::listing::{Listed, State};
use ipnet::IpNet;

/// The conditions for a flow. A condition that is `None` is met by every flow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    /// The number of the flow.
    pub(crate) number: Option<u64>,
    /// The protocol.
    pub(crate) protocol: Option<Protocol>,
    /// The direction.
    pub(crate) direction: Option<Direction>,
    /// Whether the flow bypasses the link.
    pub(crate) bypasses: Option<bool>,
    /// A network that contains the address of one of the ends, before or after translation.
    pub(crate) address: Option<IpNet>,
    /// The port of one of the ends, before or after translation.
    pub(crate) port: Option<u16>,
    /// A name of the remote, in lower case, or `*.` and a name above it.
    pub(crate) name: Option<String>,
    /// The state.
    pub(crate) state: Option<State>,
}

impl Filter {
    /// Whether a flow meets all conditions.
    pub(crate) fn accepts(&self, listed: &Listed) -> bool {
        let flow = &listed.flow;
        let start = &flow.start;
        is(self.number, flow.number)
            && is(self.protocol, start.protocol)
            && is(self.direction, start.direction)
            && is(self.bypasses, start.bypasses)
            && is(self.state, listed.state)
            && self.address.is_none_or(|net| has_address(listed, net))
            && self.port.is_none_or(|port| ends(listed).any(|(_, other)| other == port))
            && self.name.as_deref().is_none_or(|name| has_name(listed, name))
    }
}

fn is<T: PartialEq>(wanted: Option<T>, value: T) -> bool {
    wanted.is_none_or(|wanted| wanted == value)
}

fn ends(listed: &Listed) -> impl Iterator<Item = (IpAddr, u16)> {
    let start = &listed.flow.start;
    let ends = [Some(start.ends.guest), Some(start.ends.remote), start.peer];
    ends.into_iter().flatten().map(|end| (end.ip().to_canonical(), end.port()))
}

fn has_address(listed: &Listed, net: IpNet) -> bool {
    ends(listed).any(|(address, _)| net.contains(&address))
}

fn has_name(listed: &Listed, wanted: &str) -> bool {
    let names = listed.flow.basis.names.iter().chain(&listed.name);
    let above = wanted.strip_prefix('*').filter(|rest| rest.starts_with('.'));
    names.into_iter().any(|name| match above {
        Some(rest) => name.len() > rest.len() && name.ends_with(rest),
        None => **name == *wanted,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use engine::events::{Basis, Flow, Start};
    use engine::flow::{Endpoints, FlowId};
    use engine::timer::Instant;

    use super::*;

    fn listed() -> Listed {
        let ends = Endpoints {
            guest: "198.51.100.2:40000".parse().unwrap(),
            remote: "198.51.100.1:443".parse().unwrap(),
        };
        let peer = "127.0.0.1:8443".parse().ok();
        let start = Start { peer, ..Start::of(Protocol::Tcp, Direction::Outbound, ends) };
        let names = vec!["www.example.com".into()];
        let basis = Basis { rule: None, names };
        Listed {
            id: FlowId::from_bits(1 << 56).unwrap(),
            flow: Arc::new(Flow {
                number: 7,
                begun: Instant::from_micros(0),
                start,
                basis,
                memory: Default::default(),
            }),
            name: Some("cdn.example.net".into()),
            state: State::Established,
            idle: None,
            local: None,
            totals: None,
            path: None,
        }
    }

    #[test]
    fn each_condition_counts() {
        let net = |text: &str| Some(text.parse().unwrap());
        let name = |text: &str| Some(text.to_owned());
        let none = Filter::default;
        for (accepted, filter) in [
            (true, none()),
            (true, Filter { number: Some(7), protocol: Some(Protocol::Tcp), ..none() }),
            (false, Filter { number: Some(8), protocol: Some(Protocol::Tcp), ..none() }),
            (false, Filter { protocol: Some(Protocol::Udp), ..none() }),
            (true, Filter { direction: Some(Direction::Outbound), bypasses: Some(false), ..none() }),
            (false, Filter { direction: Some(Direction::Inbound), ..none() }),
            (false, Filter { bypasses: Some(true), ..none() }),
            (true, Filter { address: net("198.51.100.0/24"), state: Some(State::Established), ..none() }),
            (true, Filter { address: net("127.0.0.1/32"), port: Some(8443), ..none() }),
            (true, Filter { port: Some(443), ..none() }),
            (false, Filter { address: net("192.0.2.0/24"), ..none() }),
            (false, Filter { port: Some(80), ..none() }),
            (false, Filter { state: Some(State::Closing), ..none() }),
            (true, Filter { name: name("www.example.com"), ..none() }),
            (true, Filter { name: name("cdn.example.net"), ..none() }),
            (true, Filter { name: name("*.example.com"), ..none() }),
            (false, Filter { name: name("*.www.example.com"), ..none() }),
            (false, Filter { name: name("example.com"), ..none() }),
            (false, Filter { name: name("*"), ..none() }),
        ] {
            assert_eq!(filter.accepts(&listed()), accepted, "{filter:?}");
        }
    }
}
