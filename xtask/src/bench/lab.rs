//! The namespaces of the measurements, and one measurement.
//!
//! ```text
//! [guest] == tap == (program in [host]) --- veth --- [peer]
//! ```

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::machine::Machine;
use super::process::{self, Process};
use super::program::Program;
use super::row::{Link, Row, Task, Way};
use crate::load::{HELD, Load, Quantity, Sample};

pub(super) const HOST: &str = "198.51.100.2";
/// The default gateway. Loads do not use this address: for guests it is mapped to the loopback address of the host.
pub(super) const ROUTER: &str = "198.51.100.1";
pub(super) const PEER: &str = "203.0.113.1";
const LOOPBACK: &str = "127.0.0.1";
/// Port of the servers in the peer and in the guest.
pub(super) const PORT: &str = "5201";
/// Port of the server on the host.
const HOST_PORT: &str = "5202";
/// Maximum time until a program has configured the guest's interface.
const START: Duration = Duration::from_secs(10);

/// The host and the peer. A veth pair connects them. This process is in the host namespace.
pub(super) struct Lab {
    peer: Process,
    /// The servers in the peer and in the host namespace.
    _servers: [Process; 2],
}

impl Lab {
    pub(super) fn new() -> anyhow::Result<Self> {
        let mut peer = namespace()?;
        peer.line()?;
        let pid = peer.id();
        let ip = |arguments: &str| process::run("ip", arguments);
        let in_peer = |command: &str| process::run("nsenter", &format!("-t {pid} -n {command}"));
        ip("link set lo up")?;
        ip(&format!("link add eth0 type veth peer name eth0 netns {pid}"))?;
        ip("link set eth0 up")?;
        ip(&format!("addr add {HOST}/24 dev eth0"))?;
        in_peer("ip link set lo up")?;
        in_peer("ip link set eth0 up")?;
        in_peer(&format!("ip addr add {ROUTER}/24 dev eth0"))?;
        in_peer(&format!("ip addr add {PEER}/32 dev lo"))?;
        // Replies to datagrams come from the address that the client has sent to.
        in_peer(&format!("ip route replace {HOST}/32 dev eth0 src {PEER}"))?;
        ip(&format!("route add default via {ROUTER}"))?;
        // Connections that wait in TIME-WAIT would use up the ports.
        process::run("sysctl", "-qw net.ipv4.tcp_max_tw_buckets=1000")?;
        in_peer("sysctl -qw net.ipv4.tcp_max_tw_buckets=1000")?;
        let mut servers = [
            Process::start(&mut in_namespace(pid, &["load", "serve", PORT])?)?,
            Process::start(&mut this_program(&["load", "serve", HOST_PORT])?)?,
        ];
        for server in &mut servers {
            server.line()?;
        }
        Ok(Self { peer, _servers: servers })
    }

    /// The rate of datagrams that arrive without a program under test.
    pub(super) fn limit_of_flood(&self, way: Way, seconds: f64) -> anyhow::Result<f64> {
        let row =
            Row { name: String::new(), link: Link::Tap, task: Task::Load(way, Load::Flood), mtu: 65520 };
        self.measure(&row, None, seconds, None)?.get(Quantity::Rate).context("no rate")
    }

    /// Does one measurement, through `program` or directly if there is no program. `pace` is the number of datagrams per
    /// second of a flood.
    pub(super) fn measure(
        &self,
        row: &Row,
        program: Option<&Program>,
        seconds: f64,
        pace: Option<f64>,
    ) -> anyhow::Result<Sample> {
        let (way, kind) = match row.task {
            Task::Load(way, load) => (way, load),
            Task::Paced(way, _) => (way, Load::Flood),
            Task::Command => return commands(program, seconds),
        };
        let client = |address: &str, port: &str| -> Vec<String> {
            let words = ["load", kind.name(), address, port, &seconds.to_string()].map(str::to_owned);
            words.into_iter().chain(pace.map(|pace| pace.to_string())).collect()
        };
        let serve = || ["load", "serve", PORT].map(str::to_owned);
        let (mut sample, usage) = match way {
            Way::TapOut => Guest::start(program, row, &client(PEER, PORT))?.run(None),
            Way::LocalOut => Guest::start(program, row, &client(LOOPBACK, HOST_PORT))?.run(None),
            Way::TapIn => {
                let guest = Guest::start(program, row, &serve())?;
                if guest.machine.is_some() && program.is_some() {
                    // passt refuses connections until its guest has sent a frame.
                    wait_until("passt does not listen", || {
                        let sockets =
                            fs::read_to_string("/proc/net/tcp6")? + &fs::read_to_string("/proc/net/tcp")?;
                        Ok(listens(&sockets, PORT.parse()?))
                    })?;
                }
                let far = guest.machine.as_ref().and_then(Machine::far).unwrap_or(self.peer.id());
                guest.run(Some(in_namespace(far, &client(HOST, PORT))?))
            }
            Way::LocalIn => {
                let client = this_program(&client(LOOPBACK, PORT))?;
                Guest::start(program, row, &serve())?.run(Some(client))
            }
        }?;
        let (Some((cpu, memory)), Some(rate)) = (usage, sample.get(Quantity::Rate)) else {
            return Ok(sample);
        };
        let count = if kind == Load::Hold { HELD.into() } else { rate * seconds };
        if count > 0.0 {
            sample.0.push((Quantity::Cost, cpu / count));
        }
        if kind == Load::Hold {
            sample.0.extend(memory.map(|bytes| (Quantity::Memory, bytes)));
        }
        Ok(sample)
    }
}

/// Processor time in seconds and resident memory in bytes of a program under test.
type Usage = Option<(f64, Option<f64>)>;

/// Starts a process that keeps a new network namespace until it ends.
pub(super) fn namespace() -> anyhow::Result<Process> {
    Process::start(Command::new("unshare").args(["--net", "sh", "-c", "echo ready; read end"]))
}

fn this_program<T: AsRef<str>>(arguments: &[T]) -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(arguments.iter().map(AsRef::as_ref));
    Ok(command)
}

/// This program in the network namespace of process `pid`.
pub(super) fn in_namespace<T: AsRef<str>>(pid: u32, arguments: &[T]) -> anyhow::Result<Command> {
    let mut command = Command::new("nsenter");
    command.args(["-t", &pid.to_string(), "-n", "--"]);
    command.arg(std::env::current_exe()?).args(arguments.iter().map(AsRef::as_ref));
    Ok(command)
}

/// A guest with a load in it, and the program under test.
struct Guest {
    load: Process,
    /// The process of the program under test.
    pid: Option<u32>,
    /// slirp4netns and the namespace that it serves.
    slirp4netns: Option<(Process, Process)>,
    machine: Option<Machine>,
}

impl Guest {
    fn start(program: Option<&Program>, row: &Row, arguments: &[String]) -> anyhow::Result<Self> {
        let mtu = row.mtu.to_string();
        let (mut pid, mut slirp4netns, mut machine) = (None, None, None);
        let mut command = match program {
            _ if row.link != Link::Tap => {
                let started = Machine::start(program.map(Program::path), row.link, row.mtu)?;
                let guest = started.guest();
                pid = started.passt();
                machine = Some(started);
                in_namespace(guest, arguments)?
            }
            None => this_program(arguments)?,
            Some(Program::Pasta(path) | Program::Passt(path)) => {
                let mut command = Command::new(path);
                command.args(["--quiet", "--config-net", "--mtu", &mtu, "-t", PORT, "-u", PORT]);
                command.args(["-T", HOST_PORT, "-U", HOST_PORT, "--"]);
                command.arg(std::env::current_exe()?).args(arguments);
                command
            }
            Some(Program::Slirp4netns(path)) => {
                let mut space = namespace()?;
                space.line()?;
                let guest = space.id();
                let mut command = Command::new(path);
                command.args(["--configure", "--mtu", &mtu, &guest.to_string(), "tap0"]);
                let started = Process::start(command.stderr(Stdio::null()))?;
                pid = Some(started.id());
                slirp4netns = Some((started, space));
                wait_for_route(guest)?;
                in_namespace(guest, arguments)?
            }
        };
        let load = Process::start(&mut command)?;
        if let Some(Program::Pasta(_)) = program {
            pid = Some(load.id());
        }
        Ok(Self { load, pid, slirp4netns, machine })
    }

    /// Waits for the result of the load in the guest. With `client`, the load in the guest is a server.
    fn run(mut self, client: Option<Command>) -> anyhow::Result<(Sample, Usage)> {
        if client.is_some() {
            self.load.line()?;
        }
        let before = self.pid.map_or(0.0, process::cpu);
        let mut client = client.map(|mut command| Process::start(&mut command)).transpose()?;
        let line = client.as_mut().unwrap_or(&mut self.load).line()?;
        let usage = self.pid.map(|pid| (process::cpu(pid) - before, process::memory(pid)));
        Ok((Sample::parse(&line)?, usage))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if let Some((slirp4netns, _namespace)) = self.slirp4netns.take() {
            slirp4netns.kill();
        }
    }
}

fn wait_until(what: &str, mut condition: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let start = Instant::now();
    while !condition()? {
        ensure!(start.elapsed() < START, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Waits until the namespace of process `pid` has a default route.
fn wait_for_route(pid: u32) -> anyhow::Result<()> {
    wait_until("the guest has no default route", || {
        let routes = fs::read_to_string(format!("/proc/{pid}/net/route"))?;
        Ok(routes.lines().any(|line| line.split_whitespace().nth(1) == Some("00000000")))
    })
}

/// Whether a list of sockets (proc_net(5)) has one that listens on a port.
fn listens(sockets: &str, port: u16) -> bool {
    let port = format!(":{port:04X}");
    sockets.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).any(|fields| {
        fields.get(1).is_some_and(|local| local.ends_with(&port)) && fields.get(3) == Some(&"0A")
    })
}

/// Runs a command that does nothing, again and again, in new namespaces of the program. Without a program, unshare(1)
/// makes them, and there is no network.
fn commands(program: Option<&Program>, seconds: f64) -> anyhow::Result<Sample> {
    let (program, arguments) = match program {
        None => ("unshare", vec!["--user", "--map-root-user", "--net", "true"]),
        Some(program) => (program.path(), vec!["--quiet", "--config-net", "--", "true"]),
    };
    let (start, before) = (Instant::now(), process::cpu_of_children());
    let mut times = Vec::new();
    while start.elapsed().as_secs_f64() < seconds {
        let begin = Instant::now();
        let status = Command::new(program).args(&arguments).stdin(Stdio::null()).status();
        let status = status.with_context(|| format!("can't run {program}"))?;
        ensure!(status.success(), "{program}: {status}");
        times.push(begin.elapsed());
    }
    let (count, elapsed) = (times.len() as f64, start.elapsed().as_secs_f64());
    let mut sample = Sample::with_times(count / elapsed, times);
    sample.0.push((Quantity::Cost, (process::cpu_of_children() - before) / count));
    Ok(sample)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listening_sockets_are_found() {
        let sockets = "  sl  local_address remote_address st\n\
                       0: 00000000:1451 00000000:0000 0A 0\n\
                       1: 0100007F:0050 0100007F:1452 01 0\n";
        assert!(listens(sockets, 5201));
        assert!(!listens(sockets, 80));
        assert!(!listens(sockets, 5202));
    }
}
