//! Options about port forwarding (behaviour §2.4).

use engine::forward::{Protocol, spec::Direction};

use super::{Action, Modes, Opt};

pub(super) const OPTIONS: &[Opt] = &[
    ports(&["tcp-ports"], Direction::Inbound, Protocol::Tcp, INBOUND_HELP).short('t'),
    ports(&["udp-ports"], Direction::Inbound, Protocol::Udp, "The same for UDP").short('u'),
    ports(
        &["tcp-ns"],
        Direction::Outbound,
        Protocol::Tcp,
        "TCP ports of the namespace's loopback to forward\nto the host's: none, or PORTS as above\ndefault: auto, those in use on the host",
    )
    .short('T')
    .only(Modes::Pasta),
    ports(&["udp-ns"], Direction::Outbound, Protocol::Udp, "The same for UDP").short('U').only(Modes::Pasta),
];

/// The grammar of a port specifier (SPEC).
const INBOUND_HELP: &str = "\
TCP ports to forward to the guest, may be repeated
none                no port
[ADDR[%IF]/]PORTS   listen on address, interface
PORTS is a list, separated by commas, of
  22, 22-30         these ports
  22:2222           forward to another port
  22-30:122-130     forward to other ports
  22:ADDR[/2222]    forward to another address
  ~25, ~20-29       except these ports
  all               all except ephemeral ports
  auto              ports the guest uses (pasta)
default: auto (pasta), none (passt)";

const fn ports(
    long: &'static [&'static str],
    direction: Direction,
    protocol: Protocol,
    help: &'static str,
) -> Opt {
    Opt {
        long,
        short: None,
        action: Action::Ports(direction, protocol),
        modes: Modes::Both,
        help,
        extension: false,
    }
}
