//! The two ends of a measurement: a server, and clients that print one result.

mod client;
mod quantity;
mod server;

use std::io::{Read, Write};
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, bail};
pub(crate) use quantity::{Quantity, Sample};

/// Number of bytes for each system call.
const CHUNK: usize = 256 << 10;
/// The name in a ClientHello.
const HELLO_NAME: &str = "bench.example";
/// Length of a ClientHello in bytes, without the record's header: a common one of today.
const HELLO_LEN: usize = 1500;
/// The first byte of a TLS record with a handshake message.
const HANDSHAKE: u8 = 22;
/// Length of the datagrams of [`Load::Flood`], in bytes. The server answers shorter ones.
const FLOOD_LEN: usize = 64;
/// Number of connections of [`Load::Hold`].
pub(crate) const HELD: u32 = 9000;
/// Maximum time without progress. After this time, a load has stalled.
const PATIENCE: Duration = Duration::from_secs(10);

/// The task of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    /// The client sends. The result is the number of bytes per second that have arrived.
    Up,
    /// The client receives. The result is the number of bytes per second.
    Down,
    /// The client sends a byte and receives a byte, repeatedly. The result is the number of transactions per second.
    Transactions,
    /// The client sends a byte and receives a byte. It opens a new connection for each transaction.
    Connections,
    /// Like [`Load::Connections`], but the client sends a ClientHello with the name [`HELLO_NAME`] instead of a byte.
    Hellos,
    /// The client sends a datagram and receives a datagram, repeatedly. The result is the number of transactions per
    /// second.
    Datagrams,
    /// The client sends a datagram and receives a datagram. It uses a new port for each transaction.
    Ports,
    /// The client sends datagrams of [`FLOOD_LEN`] bytes, at a given rate or as fast as it can. The result is the number
    /// of datagrams per second that have arrived.
    Flood,
    /// The client opens [`HELD`] connections, each with a transaction, and keeps them. The result is the number of
    /// connections per second.
    Hold,
}

impl Load {
    const ALL: [(&str, Self); 9] = [
        ("up", Self::Up),
        ("down", Self::Down),
        ("rr", Self::Transactions),
        ("crr", Self::Connections),
        ("hello", Self::Hellos),
        ("udp-rr", Self::Datagrams),
        ("udp-ports", Self::Ports),
        ("flood", Self::Flood),
        ("keep", Self::Hold),
    ];

    /// The load's name on the command line.
    pub(crate) fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, load)| *load == self).map_or("", |(name, _)| name)
    }

    /// The first byte of a connection. It tells the server which load to run.
    fn mark(self) -> u8 {
        self.name().as_bytes()[0]
    }
}

/// `xtask load serve PORT`, or `xtask load NAME ADDRESS PORT SECONDS [PER_SECOND]`.
pub(crate) fn main(arguments: &[&str]) -> anyhow::Result<()> {
    raise_open_files()?;
    match *arguments {
        ["serve", port] => server::serve(port.parse()?),
        [name, address, port, seconds, ref pace @ ..] if pace.len() < 2 => {
            let load = Load::ALL.iter().find(|(known, _)| *known == name);
            let load = load.with_context(|| format!("no such load: {name}"))?.1;
            let address: IpAddr = address.parse()?;
            let pace = pace.first().map(|pace| pace.parse()).transpose()?;
            let sample = client::run(load, (address, port.parse()?).into(), seconds.parse()?, pace)?;
            print_and_wait(&sample.to_line())
        }
        _ => bail!("load: wrong arguments"),
    }
}

/// Allows as many open files as the process may have: [`Load::Hold`] needs one for each connection.
fn raise_open_files() -> anyhow::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
        .context("can't raise the limit of open files")
}

/// Prints a line, and waits for the end of standard input: the reader first measures the processes.
fn print_and_wait(line: &str) -> anyhow::Result<()> {
    println!("{line}");
    std::io::stdout().flush()?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_can_tell_loads_apart() {
        for load in [Load::Up, Load::Down, Load::Flood, Load::Hold] {
            let same = Load::ALL.iter().filter(|(name, _)| name.as_bytes()[0] == load.mark()).count();
            // The marks of the transactions are not looked at.
            let expected = if load == Load::Up { 3 } else { 1 };
            assert_eq!(same, expected, "{load:?}");
        }
    }
}
