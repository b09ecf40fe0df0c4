//! Port specifiers. The result of any text is a set of valid rules, or an error with a message.

use engine::forward::{
    Enabled, PortRange, Protocol, Table,
    spec::{Context, Direction, Spec, parse},
};

use crate::input::Input;

/// Input: a byte that selects the option, then the text.
pub fn target(data: &[u8]) {
    let mut input = Input::new(data);
    let switches = input.byte();
    let on = |bit: u8| switches & bit == 0;
    let text = String::from_utf8_lossy(input.rest());
    let Some(ephemeral) = PortRange::new(32_768, 60_999) else { panic!("a range") };
    let enabled = Enabled { ipv4: on(1), ipv6: on(2), tcp: on(4), udp: on(8) };
    let context = Context {
        protocol: if on(16) { Protocol::Tcp } else { Protocol::Udp },
        direction: if on(32) { Direction::Inbound } else { Direction::Outbound },
        enabled,
        ephemeral,
    };
    let rules = match parse(&text, &context) {
        Ok(Spec::None) => return,
        Ok(Spec::Forward { rules, .. }) => rules,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let mut table = Table::new();
    for rule in rules {
        let target = rule.target_ports();
        assert_eq!(target.len(), rule.ports.len(), "{rule}");
        assert_eq!(rule.target_port(rule.ports.last()), Some(target.last()), "{rule}");
        if let Err(error) = table.add(rule, enabled) {
            assert!(!error.to_string().is_empty());
        }
    }
}
