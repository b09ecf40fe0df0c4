//! Programs for the filter of sock_diag(7), with which the kernel selects the sockets to list (linux/inet_diag.h).
//!
//! A program is a list of conditions. Each condition has two jump offsets, in octets from its own start: one offset if
//! the condition is true, and one if the condition is false. The kernel lists a socket if the jumps end exactly at the
//! end of the program. A jump beyond the end leaves the socket out.
//!
//! The filter is for hosts with tens of thousands of listening sockets. A scan happens every second.

use engine::forward::scan::PortSet;
use zerocopy::{Immutable, IntoBytes, Unaligned, native_endian::U16};

/// `INET_DIAG_BC_S_GE`: the local port is greater than or equal to the port in the next entry.
const AT_LEAST: u8 = 2;
/// `INET_DIAG_BC_S_LE`: the local port is less than or equal to the port in the next entry.
const AT_MOST: u8 = 3;
/// Maximum number of octets of a program. The kernel runs it for each socket.
const MAX_LEN: usize = 4096;

/// `struct inet_diag_bc_op`. A condition has two entries. The second entry has the port in `no`.
#[derive(Clone, Copy, Debug, Immutable, IntoBytes, Unaligned)]
#[repr(C)]
struct Entry {
    code: u8,
    yes: u8,
    no: U16,
}

/// Number of octets of a condition.
const CONDITION: u16 = 2 * size_of::<Entry>() as u16;

/// A condition. If it is true, the program continues with the next condition. If it is false, the program jumps by `no`
/// octets.
fn condition(code: u8, port: u16, no: u16) -> [Entry; 2] {
    [Entry { code, yes: CONDITION as u8, no: no.into() }, Entry { code: 0, yes: 0, no: port.into() }]
}

/// Returns a program that leaves out sockets whose local port is not in `ports`. If the program would be longer than
/// [`MAX_LEN`], some sockets at high ports that are not in `ports` are listed, too.
pub(super) fn only(ports: &PortSet) -> Vec<u8> {
    let mut conditions: Vec<Condition> = Vec::new();
    for gap in ports.gaps() {
        let (first, last) = (gap.first(), gap.last());
        if (conditions.len() + 2) * usize::from(CONDITION) > MAX_LEN {
            break;
        }
        // The kernel refuses a program if it has a jump target that is not reached when all conditions are true.
        if first > 0 && last < u16::MAX {
            conditions.push(Condition { code: AT_LEAST, port: first, no: Otherwise::SkipNext });
        }
        conditions.push(match last.checked_add(1) {
            Some(next) => Condition { code: AT_LEAST, port: next, no: Otherwise::LeaveOut },
            None => Condition { code: AT_MOST, port: first.saturating_sub(1), no: Otherwise::LeaveOut },
        });
    }
    let length = conditions.len() as u16 * CONDITION;
    let entries = (0..).zip(&conditions).flat_map(|(index, it)| {
        let no = match it.no {
            Otherwise::SkipNext => 2 * CONDITION,
            // The jump target is beyond the end of the program.
            Otherwise::LeaveOut => length - index * CONDITION + size_of::<Entry>() as u16,
        };
        condition(it.code, it.port, no)
    });
    entries.flat_map(|entry| entry.as_bytes().to_vec()).collect()
}

struct Condition {
    code: u8,
    port: u16,
    no: Otherwise,
}

/// What to do if a condition is false.
enum Otherwise {
    /// Skip the next condition.
    SkipNext,
    /// Leave the socket out.
    LeaveOut,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Runs a program like the kernel. Returns true if a socket with this port is listed.
    fn lists(program: &[u8], port: u16) -> bool {
        let mut at = 0;
        while let Some(entry) = program.get(at..at + 8) {
            let number = |at: usize| u16::from_ne_bytes([entry[at], entry[at + 1]]);
            let holds = match entry[0] {
                AT_LEAST => port >= number(6),
                AT_MOST => port <= number(6),
                code => panic!("{code}"),
            };
            at += if holds { usize::from(entry[1]) } else { usize::from(number(2)) };
        }
        assert!(at == program.len() || at == program.len() + 4, "{at}");
        at == program.len()
    }

    #[test]
    fn programs() {
        let all: PortSet = (0..=u16::MAX).collect();
        assert!(only(&all).is_empty());
        // No socket has port 0.
        let nothing = only(&PortSet::default());
        assert!((1..=u16::MAX).all(|port| !lists(&nothing, port)));
        // A program for every second port would be longer than allowed, so all ports at the end of the range are
        // listed.
        let many: PortSet = (0..=u16::MAX).step_by(2).collect();
        let program = only(&many);
        assert!(program.len() <= MAX_LEN);
        assert!((0..=u16::MAX).all(|port| !many.contains(port) || lists(&program, port)));
        assert!((0..400).all(|port| many.contains(port) == lists(&program, port)));
    }

    proptest! {
        #[test]
        fn exactly_these_ports(
            ranges in prop::collection::vec((any::<u16>(), 0u16..2000), 0..20),
            edges in prop::sample::subsequence(vec![0, 1, 2, 65533, 65534, 65535], 0..=6),
            probes in prop::collection::vec(any::<u16>(), 50),
        ) {
            let in_ranges = ranges.iter().flat_map(|(first, more)| *first..=first.saturating_add(*more));
            let ports: PortSet = in_ranges.chain(edges.clone()).collect();
            let program = only(&ports);
            let borders = ranges.iter().flat_map(|(first, more)| {
                let last = first.saturating_add(*more);
                [first.saturating_sub(1), *first, last, last.saturating_add(1)]
            });
            for port in borders.filter(|port| *port != 0).chain([1, 2, 65533, 65534, 65535]).chain(probes) {
                prop_assert_eq!(lists(&program, port), ports.contains(port), "{}", port);
            }
        }
    }
}
