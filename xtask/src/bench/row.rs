//! The rows of the benchmark.

use super::program::Program;
use crate::load::{Load, Quantity};

/// The way of the traffic. `Out`: the guest connects. `In`: the guest serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    TapOut,
    TapIn,
    /// Between loopback addresses of guest and host.
    LocalOut,
    LocalIn,
}

/// How a guest is connected to the program under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    Tap,
    Stream,
    /// vhost-user without and with segmentation offload.
    VhostUser,
    VhostUserTso,
}

impl Link {
    /// The name in rows, and that of the kind of bridge.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tap => "tap",
            Self::Stream => "stream",
            Self::VhostUser => "vhost-user",
            Self::VhostUserTso => "vhost-user-tso",
        }
    }
}

/// What a row measures.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Task {
    Load(Way, Load),
    /// [`Load::Flood`] at this part of the rate that arrives without a program under test.
    Paced(Way, f64),
    /// The program runs a command that does nothing, again and again.
    Command,
}

#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) link: Link,
    pub(crate) task: Task,
    /// MTU of the guest, in bytes.
    pub(crate) mtu: u16,
}

impl Row {
    /// The unit in which a quantity is shown, and the factor from bytes, seconds and numbers to it.
    pub(crate) fn unit(&self, quantity: Quantity) -> (&'static str, f64) {
        let is_stream = matches!(self.task, Task::Load(_, Load::Up | Load::Down));
        let is_command = self.task == Task::Command;
        match quantity {
            Quantity::Rate if is_stream => ("Gbit/s", 8e-9),
            Quantity::Rate if is_command => ("/s", 1.0),
            Quantity::Rate => ("k/s", 1e-3),
            Quantity::Cost if is_stream => ("cpu-s/GB", 1e9),
            Quantity::Cost if is_command => ("cpu-ms", 1e3),
            Quantity::Cost => ("cpu-us", 1e6),
            Quantity::Median | Quantity::Tail if is_command => ("ms", 1e3),
            Quantity::Median | Quantity::Tail => ("us", 1e6),
            Quantity::Lost => ("%", 100.0),
            Quantity::Memory => ("MiB", 1.0 / f64::from(1 << 20)),
        }
    }

    /// Whether a program takes part. slirp4netns does without its API socket, and not with thousands of connections.
    pub(crate) fn is_for(&self, program: &Program) -> bool {
        match (program, self.task) {
            (Program::Passt(_), _) => self.link != Link::Tap,
            (Program::Pasta(_), _) => self.link == Link::Tap,
            (Program::Slirp4netns(_), Task::Load(Way::TapOut, load)) => load != Load::Hold,
            (Program::Slirp4netns(_), Task::Paced(Way::TapOut, _)) => true,
            (Program::Slirp4netns(_), _) => false,
        }
    }

    /// Whether the same can be measured without a program: virtio rings need one.
    pub(crate) fn has_limit(&self) -> bool {
        matches!(self.link, Link::Tap | Link::Stream)
    }
}

/// The rows of namespaces, in the order of the output.
pub(crate) fn rows() -> Vec<Row> {
    use Load::{Connections, Datagrams, Down, Hold, Transactions, Up};
    const LONG: u16 = 65520;
    let streams = [("tcp up", Up), ("tcp down", Down)];
    let small = [("tcp rr", Transactions), ("tcp crr", Connections), ("udp rr", Datagrams)];
    let tap = [("tap out", Way::TapOut), ("tap in", Way::TapIn)];
    let local = [("local out", Way::LocalOut), ("local in", Way::LocalIn)];
    let mut rows = Vec::new();
    let mut row = |name: String, task, mtu| rows.push(Row { name, link: Link::Tap, task, mtu });
    for mtu in [LONG, 1500] {
        for ((load_name, load), (way_name, way)) in pairs(&streams, &tap) {
            row(format!("{way_name}, {load_name}, MTU {mtu}"), Task::Load(way, load), mtu);
        }
    }
    for ((load_name, load), (way_name, way)) in pairs(&small, &tap) {
        row(format!("{way_name}, {load_name}"), Task::Load(way, load), LONG);
    }
    for (way_name, way) in tap {
        row(format!("{way_name}, udp 64 bytes at 0.6 of the limit"), Task::Paced(way, 0.6), LONG);
    }
    for ((load_name, load), (way_name, way)) in pairs(&streams, &local).chain(pairs(&small, &local)) {
        row(format!("{way_name}, {load_name}"), Task::Load(way, load), LONG);
    }
    row("command".into(), Task::Command, LONG);
    row(format!("tap out, {} connections", crate::load::HELD), Task::Load(Way::TapOut, Hold), LONG);
    rows
}

/// The rows of virtual machines.
pub(crate) fn machine_rows() -> Vec<Row> {
    use Load::{Connections, Down, Transactions, Up};
    use Way::{TapIn, TapOut};
    let loads = [
        ("out", "tcp up", TapOut, Up, &[65520, 1500][..]),
        ("out", "tcp down", TapOut, Down, &[65520, 1500]),
        ("in", "tcp up", TapIn, Up, &[65520, 1500]),
        ("out", "tcp rr", TapOut, Transactions, &[1500]),
        ("out", "tcp crr", TapOut, Connections, &[1500]),
    ];
    let mut rows = Vec::new();
    for link in [Link::Stream, Link::VhostUser, Link::VhostUserTso] {
        for (way_name, load_name, way, load, mtus) in loads {
            for &mtu in mtus {
                let name = format!("{} {way_name}, {load_name}, MTU {mtu}", link.name());
                rows.push(Row { name, link, task: Task::Load(way, load), mtu });
            }
        }
    }
    rows
}

/// Each of `first` with each of `second`.
fn pairs<'a, A: Copy, B: Copy>(first: &'a [A], second: &'a [B]) -> impl Iterator<Item = (A, B)> + 'a {
    first.iter().flat_map(|&a| second.iter().map(move |&b| (a, b)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str) -> Row {
        rows().into_iter().find(|row| row.name == name).unwrap()
    }

    #[test]
    fn rows_have_units_that_fit() {
        assert_eq!(row("local in, tcp down").unit(Quantity::Rate), ("Gbit/s", 8e-9));
        assert_eq!(row("tap out, udp rr").unit(Quantity::Cost), ("cpu-us", 1e6));
        assert_eq!(row("command").unit(Quantity::Median), ("ms", 1e3));
    }

    #[test]
    fn programs_take_part_where_they_can() {
        let [pasta, passt, slirp4netns] = ["pasta", "passt", "slirp4netns"].map(Program::new);
        let out = row("tap out, tcp up, MTU 1500");
        assert!(out.is_for(&pasta) && !out.is_for(&passt) && out.is_for(&slirp4netns));
        for name in ["tap in, tcp rr", "local out, tcp rr", "command", "tap out, 9000 connections"] {
            assert!(row(name).is_for(&pasta) && !row(name).is_for(&slirp4netns), "{name}");
        }
        for row in machine_rows() {
            assert!(row.is_for(&passt) && !row.is_for(&pasta), "{}", row.name);
            assert_eq!(row.has_limit(), row.name.starts_with("stream"));
        }
    }

    #[test]
    fn names_of_rows_are_unique() {
        let mut names: Vec<String> = rows().into_iter().chain(machine_rows()).map(|row| row.name).collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
        for name in [
            "tap in, tcp up, MTU 1500",
            "local out, udp rr",
            "tap out, tcp crr",
            "command",
            "vhost-user out, tcp up, MTU 1500",
        ] {
            assert!(names.iter().any(|known| known == name), "{name} is not in {names:?}");
        }
    }
}
