//! One session: pasta with a command, or passt with a guest, all kinds of traffic and of clients, at most one fault, and
//! the end by SIGTERM.

mod clients;
mod datagrams;
pub(crate) mod flow;
mod machine;

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::fault::Site;
use crate::net::{GATEWAY, HOST, Net, PEER, Place, RESOLVER};
use crate::trace::{Descriptors, Task, Tracee};
use crate::way::Way;
use flow::{End, Report, Reports, Work};
use machine::Machine;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
/// Maximum time until the descriptors of ended flows are closed.
const REST: Duration = Duration::from_secs(10);
/// How long the process is watched at rest.
const IDLE: Duration = Duration::from_millis(700);
/// Maximum time from SIGTERM to the end.
const QUIT: Duration = Duration::from_secs(6);

/// The ports of each group of TCP connections: its server's. Local connections are those between the guest and the host's
/// loopback interface: those of pasta bypass the link.
pub(crate) const PORTS: [(&str, u16); 5] =
    [("out", 7001), ("in", 8001), ("local-out", 7005), ("local-in", 8003), ("new-rule", 8010)];
/// The groups whose connections passt refuses while no guest is connected.
pub(crate) const TO_MACHINE: [&str; 3] = ["in", "local-in", "new-rule"];
/// Bytes that the guest sends through the link in a plain session.
const SMALL: u32 = 10_000;
const UDP_OUT: u16 = 7004;
const UDP_IN: u16 = 8002;
const UDP_LOCAL_OUT: u16 = 7006;

/// What a session is about.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Subject {
    /// The folder with the programs.
    pub(crate) programs: PathBuf,
    /// Which program runs, and with which guest.
    pub(crate) way: Way,
    /// The program that connects a guest to passt.
    pub(crate) guest: PathBuf,
    /// The session has only what any pasta can do: no API, no control socket and no rules. Bulk of the guest that goes
    /// through the link is small: on some machines the reference stalls for seconds.
    pub(crate) plain: bool,
    /// What the program's filters of system calls allow is not known.
    pub(crate) foreign: bool,
}

/// What happened in a session.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Outcome {
    /// The fault was injected.
    pub(crate) hit: bool,
    /// The ports of the socket that was hit.
    pub(crate) ports: Vec<u16>,
    /// How flows ended during which the fault happened.
    pub(crate) flows: Vec<Report>,
    /// How flows ended that began afterwards.
    pub(crate) later: Vec<Report>,
    /// Open descriptors at rest, by kind.
    pub(crate) descriptors: BTreeMap<String, usize>,
    /// CPU time of the process at rest, in ticks of 10 ms.
    pub(crate) ticks: u64,
    /// Number of times that its threads have waited, at rest.
    pub(crate) waits: u64,
    /// The lines of the log.
    pub(crate) log: Vec<String>,
    /// The exit status. `None`: it did not end.
    pub(crate) status: Option<i32>,
    /// The first SIGTERM had no effect.
    pub(crate) asked_twice: bool,
    /// It ended before SIGTERM.
    pub(crate) ended_early: bool,
    /// The symbols of called functions, in the order of their first calls.
    pub(crate) functions: Vec<String>,
    /// Number of calls at each place before the later flows, if the session is recorded. Of places that are reached only
    /// afterwards, all calls.
    pub(crate) counts: Vec<(Site, u64)>,
}

/// Runs a session. `limits` are the numbers of descriptors below which the process is at rest.
pub(crate) fn run(
    subject: &Subject,
    task: Task,
    limits: &BTreeMap<String, usize>,
) -> anyhow::Result<Outcome> {
    let net = Net::new()?;
    let (record, functions) = (matches!(task, Task::Record), matches!(task, Task::Functions));
    let ready = net.dir.join("ready");
    let programs = &subject.programs;
    let machine = subject
        .way
        .bridge()
        .map(|kind| Machine::start(&subject.guest, kind, &net.dir.join(SOCKET), ready.clone()));
    let machine = machine.transpose()?;
    let tracee = Tracee::start(command(subject, &net)?, ready, task, subject.foreign)?;
    let guest = match &machine {
        Some(machine) => machine.place.clone(),
        None => Place::of(format!("/proc/{}/ns/net", child(tracee.pid)?))?,
    };
    let session = Session {
        net,
        guest,
        machine,
        pesto: programs.join("pesto"),
        plain: subject.plain,
        reports: Reports::default(),
    };
    session.start_servers()?;
    session.start_guests_servers()?;
    if functions {
        // First what the program does at rest, then what every connection needs, then what every flow needs.
        std::thread::sleep(IDLE * 3);
        session.connections()?;
        session.short_traffic()?;
    }
    session.traffic()?;
    let mut outcome = Outcome { flows: session.reports.take(), ..Outcome::default() };
    tracee.end_traffic();
    if tracee.seen().status.is_none() {
        session.short_traffic()?;
        outcome.later = session.reports.take();
        rest(tracee.pid, limits, &mut outcome)?;
    }
    outcome.functions = tracee.seen().functions;
    outcome.ended_early = tracee.seen().status.is_some();
    if !outcome.ended_early {
        kill(Pid::from_raw(tracee.pid), Signal::SIGTERM)?;
        outcome.asked_twice = !tracee.wait(QUIT);
        if outcome.asked_twice {
            kill(Pid::from_raw(tracee.pid), Signal::SIGTERM)?;
            tracee.wait(QUIT);
        }
    }
    let seen = tracee.seen();
    outcome.status = seen.status;
    outcome.hit = seen.hit.is_some();
    outcome.ports = seen.hit.map(|hit| hit.ports).unwrap_or_default();
    if record {
        let mut counts = seen.counts;
        counts.extend(seen.of_traffic);
        outcome.counts = counts.into_iter().collect();
    }
    let log = fs::read_to_string(session.net.dir.join(LOG)).unwrap_or_default();
    outcome.log = log.lines().map(str::to_owned).collect();
    Ok(outcome)
}

fn command(subject: &Subject, net: &Net) -> anyhow::Result<Command> {
    let program = subject.programs.join(subject.way.program());
    anyhow::ensure!(program.exists(), "{} does not exist: build it", program.display());
    let ready = net.dir.join("ready");
    let mut command = Command::new(program);
    command.args(arguments(subject.way, &net.dir, subject.plain)).arg("--foreground");
    if subject.way.bridge().is_none() {
        command.args(["--", "sh", "-c", &format!("echo >{}; exec sleep 1000", ready.display())]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(fs::File::create(net.dir.join("stderr.log"))?);
    Ok(command)
}

/// The name of the log file, and of passt's socket for its guest.
pub(crate) const LOG: &str = "main.log";
pub(crate) const SOCKET: &str = "guest";

/// The options with which all of the session's traffic works. `plain`: see [`Subject::plain`].
pub(crate) fn arguments(way: Way, dir: &Path, plain: bool) -> Vec<String> {
    let in_dir = |name: &str| dir.join(name).display().to_string();
    let mut arguments: Vec<String> = ["-t", "8001,8003", "-u", "8002"].map(str::to_owned).into();
    match way {
        Way::Command | Way::Joining => {
            // The port is open once a scan has found the server: a client repeats a datagram, but not a connection.
            arguments.extend(["-T", "7005", "-U", "7006,auto", "--config-net"].map(str::to_owned));
        }
        Way::Passt => arguments.extend(["--socket".to_owned(), in_dir(SOCKET)]),
        Way::VhostUser => {
            arguments.extend(["--vhost-user".to_owned(), "--socket".to_owned(), in_dir(SOCKET)]);
        }
    }
    arguments.extend(["--dns-forward", &RESOLVER.to_string()].map(str::to_owned));
    arguments.extend(["--log-file".to_owned(), in_dir(LOG)]);
    if plain {
        // The reference can't change its user in this network.
        arguments.extend(["--netns-only", "--runas", "0"].map(str::to_owned));
        return arguments;
    }
    arguments.extend(["--allow", "all"].map(str::to_owned));
    for (option, file) in [("--conf-path", "conf"), ("--api-socket", "api"), ("--flow-log", "flows.log")] {
        arguments.extend([option.to_owned(), in_dir(file)]);
    }
    arguments
}

/// The command that pasta has started.
pub(crate) fn child(pid: i32) -> anyhow::Result<i32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    list.split_whitespace().next().and_then(|word| word.parse().ok()).context("pasta has no child")
}

/// The parts of a session.
#[derive(Clone)]
pub(crate) struct Session {
    /// Host and peer.
    pub(crate) net: Net,
    /// The guest's namespace.
    pub(crate) guest: Place,
    /// What connects the guest to passt.
    pub(crate) machine: Option<Machine>,
    /// The program.
    pub(crate) pesto: PathBuf,
    /// See [`Subject::plain`].
    pub(crate) plain: bool,
    /// How flows end.
    pub(crate) reports: Reports,
}

impl Session {
    /// Starts the servers of host and peer.
    pub(crate) fn start_servers(&self) -> anyhow::Result<()> {
        self.serve(&[("out", &self.net.peer, PEER), ("local-out", &self.net.host, LOOPBACK)])?;
        datagrams::echo(&self.net.peer, (PEER, UDP_OUT).into())?;
        datagrams::echo(&self.net.host, (LOOPBACK, UDP_LOCAL_OUT).into())?;
        datagrams::resolver(&self.net.peer, (PEER, 53).into())
    }

    /// Starts the guest's servers.
    pub(crate) fn start_guests_servers(&self) -> anyhow::Result<()> {
        self.serve(&[
            ("in", &self.guest, ANY),
            ("local-in", &self.guest, ANY),
            ("new-rule", &self.guest, ANY),
        ])?;
        datagrams::echo(&self.guest, (ANY, UDP_IN).into())
    }

    fn serve(&self, groups: &[(&str, &Place, IpAddr)]) -> anyhow::Result<()> {
        for (group, place, address) in groups {
            let port = PORTS.iter().find(|(name, _)| name == group).map_or(0, |(_, port)| *port);
            flow::serve(place, (*address, port).into(), group, &self.reports)?;
        }
        Ok(())
    }

    /// The address of the host's loopback interface, for the guest.
    fn local(&self) -> IpAddr {
        if self.machine.is_some() { GATEWAY } else { LOOPBACK }
    }

    /// The client's namespace and the server's address, of each group of TCP connections.
    fn tcp(&self) -> impl Iterator<Item = (&'static str, &Place, SocketAddr)> {
        let clients = [
            (&self.guest, PEER),
            (&self.net.peer, HOST),
            (&self.guest, self.local()),
            (&self.net.host, LOOPBACK),
            (&self.net.peer, HOST),
        ];
        clients.into_iter().zip(PORTS).map(|((place, to), (group, port))| (group, place, (to, port).into()))
    }

    fn client(&self, group: &'static str, place: &Place, work: impl Fn() -> End + Send + 'static) -> Running {
        let reports = self.reports.clone();
        place.spawn(move || reports.add(group, work()))
    }

    /// The function that opens a connection of a group. passt refuses those to the guest while no guest is connected.
    fn opens(&self, group: &str) -> fn(SocketAddr, Work) -> End {
        if self.machine.is_some() && TO_MACHINE.contains(&group) {
            flow::patient_client
        } else {
            flow::client
        }
    }

    /// All traffic, at once.
    fn traffic(&self) -> anyhow::Result<()> {
        // More than the link to a virtual machine holds.
        let length = if self.machine.is_some() { 8 << 20 } else { 3 << 20 };
        let bulk = |group| match group {
            "out" if self.plain => Work::Bulk { up: SMALL, down: length },
            "in" if self.plain => Work::Bulk { up: length, down: SMALL },
            _ => Work::Bulk { up: length, down: length },
        };
        let mut running = Vec::new();
        for (group, place, to) in self.tcp().filter(|(group, ..)| *group != "new-rule") {
            let client = self.opens(group);
            running.push(self.client(group, place, move || client(to, Work::Paced)));
            let bulk = bulk(group);
            running.push(self.client(group, place, move || client(to, bulk)));
            let (reports, machine) = (self.reports.clone(), self.machine.clone());
            running.push(place.spawn(move || {
                for number in 0..15 {
                    let work = Work::Bulk { up: 50 + number * 200, down: 3000 - number * 199 };
                    reports.add(group, machine::while_connected(machine.as_ref(), || client(to, work)));
                }
            }));
        }
        running.extend(self.datagrams());
        if !self.plain {
            running.push(self.clients()?);
        }
        running.extend(self.machine.as_ref().map(Machine::disturb));
        join(running)
    }

    /// Connections through the link, one after the other: short ones, then those that wait for messages.
    fn connections(&self) -> anyhow::Result<()> {
        for work in [Work::Bulk { up: 1, down: 1 }, Work::Paced] {
            for (group, place, to) in self.tcp().filter(|(group, ..)| ["out", "in"].contains(group)) {
                let client = self.opens(group);
                join(vec![self.client(group, place, move || client(to, work))])?;
            }
        }
        Ok(())
    }

    fn datagrams(&self) -> Vec<Running> {
        let local = self.local();
        vec![
            self.client("udp-out", &self.guest, || datagrams::exchange((PEER, UDP_OUT).into())),
            self.client("udp-in", &self.net.peer, || datagrams::exchange((HOST, UDP_IN).into())),
            self.client("udp-local-out", &self.guest, move || {
                datagrams::exchange((local, UDP_LOCAL_OUT).into())
            }),
            self.client("udp-local-in", &self.net.host, || datagrams::exchange((LOOPBACK, UDP_IN).into())),
            self.client("ping", &self.guest, || datagrams::ping(PEER)),
            self.client("dns", &self.guest, || datagrams::ask(RESOLVER)),
            self.client("dns-tcp", &self.guest, || datagrams::ask_by_tcp(RESOLVER)),
        ]
    }

    /// Clients of the control socket and of the API socket, one after the other, and a new resolv.conf.
    fn clients(&self) -> anyhow::Result<Running> {
        self.net.set_resolvers("nameserver 198.51.100.3\nnameserver 198.51.100.1\n")?;
        let (reports, pesto, dir) = (self.reports.clone(), self.pesto.clone(), self.net.dir.clone());
        let client = self.opens("new-rule");
        let (peer, host, machine) = (self.net.peer.clone(), self.net.host.clone(), self.machine.clone());
        Ok(host.spawn(move || {
            let (conf, api) = (dir.join("conf"), dir.join("api"));
            reports.add("api", clients::api(&api));
            // A command that fails is repeated once, as its user would do.
            let repeated = |arguments: &[&str]| match clients::pesto(&pesto, arguments, &conf) {
                End::Ended(error) => {
                    reports.add("pesto", End::Ended(error));
                    clients::pesto(&pesto, arguments, &conf)
                }
                end => end,
            };
            let added = repeated(&["-A", "-t", "8010"]);
            let opened = added == End::Whole;
            reports.add("pesto", added);
            if opened {
                let work = Work::Bulk { up: 1000, down: 1000 };
                let reached = machine::while_connected(machine.as_ref(), || {
                    peer.run(move || client((HOST, 8010).into(), work))
                });
                reports.add("new-rule", reached.unwrap_or_else(|error| End::Ended(error.to_string())));
            }
            reports.add("pesto", repeated(&["-D", "-t", "8010"]));
        }))
    }

    /// One flow of each group, to see whether everything works.
    pub(crate) fn short_traffic(&self) -> anyhow::Result<()> {
        let length = if self.plain { SMALL } else { 100_000 };
        let short = Work::Bulk { up: length, down: length };
        let mut running = self.datagrams();
        for (group, place, to) in self.tcp().filter(|(group, ..)| *group != "new-rule") {
            let client = self.opens(group);
            running.push(self.client(group, place, move || client(to, short)));
        }
        let api = self.net.dir.join("api");
        if !self.plain {
            running.push(self.client("api", &self.net.host, move || clients::api(&api)));
        }
        join(running)
    }
}

type Running = JoinHandle<anyhow::Result<()>>;

fn join(running: Vec<Running>) -> anyhow::Result<()> {
    for thread in running {
        let Ok(result) = thread.join() else { bail!("a thread of the session panicked") };
        result?;
    }
    Ok(())
}

/// Waits until the descriptors of ended flows are closed, and measures the process at rest.
fn rest(pid: i32, limits: &BTreeMap<String, usize>, outcome: &mut Outcome) -> anyhow::Result<()> {
    let Ok(descriptors) = Descriptors::of(pid) else { return Ok(()) };
    let end = Instant::now() + REST;
    loop {
        let before = std::mem::take(&mut outcome.descriptors);
        let start = work(pid);
        std::thread::sleep(IDLE);
        let idle = work(pid);
        outcome.ticks = idle.0.saturating_sub(start.0);
        outcome.waits = idle.1.saturating_sub(start.1);
        outcome.descriptors = descriptors.count();
        let few = |(kind, count): (&String, &usize)| *count <= limits.get(kind).copied().unwrap_or(0);
        let rests = outcome.descriptors.iter().all(few) || limits.is_empty() && before == outcome.descriptors;
        if rests && !is_busy(outcome) || Instant::now() > end {
            return Ok(());
        }
    }
}

/// Whether a process uses so much time at rest that it may be in a loop.
pub(crate) const fn is_busy(outcome: &Outcome) -> bool {
    outcome.ticks > 20 || outcome.waits > 300
}

/// CPU time of a process in ticks, and how often its threads have waited.
fn work(pid: i32) -> (u64, u64) {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let field = |at: usize| fields.get(at).and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
    let mut waits = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        waits += line.and_then(|count| count.trim().parse::<u64>().ok()).unwrap_or(0);
    }
    (field(11) + field(12), waits)
}
