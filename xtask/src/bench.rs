//! Compares the speed of programs with pasta's command line, in namespaces that it creates.
//!
//! ```text
//! [guest] == tap == (pasta in [host]) --- veth --- [peer]
//! ```

use std::fmt::Write;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context, bail, ensure};

use crate::load::Load;

const HOST: &str = "198.51.100.2";
/// The default gateway. Loads do not use this address: for guests it is mapped to the loopback address of the host.
const ROUTER: &str = "198.51.100.1";
const PEER: &str = "203.0.113.1";
const PORT: &str = "5201";

/// The parameters of a measurement.
pub(crate) struct Options {
    /// Programs, each with its letter in the output.
    pub(crate) programs: Vec<(char, String)>,
    /// Duration of each client, in seconds.
    pub(crate) seconds: f64,
    /// Number of measurements for each figure.
    pub(crate) rounds: usize,
    /// Measure only scenarios whose names contain this text.
    pub(crate) only: Option<String>,
}

/// One row of the output.
struct Scenario {
    load: Load,
    /// Whether the guest sends to the peer. If false, the peer sends to the guest.
    outbound: bool,
    mtu: &'static str,
}

impl Scenario {
    fn name(&self) -> String {
        let direction = if self.outbound { "guest to peer" } else { "peer to guest" };
        format!("tcp {} {direction}, MTU {}", self.load.name(), self.mtu).replace("tcp udp-", "udp ")
    }
}

fn scenarios() -> Vec<Scenario> {
    let of = |load, mtu| [true, false].map(|outbound| Scenario { load, outbound, mtu });
    let streams = [(Load::Up, "65520"), (Load::Down, "65520"), (Load::Up, "1500"), (Load::Down, "1500")];
    let transactions = [Load::Transactions, Load::Connections, Load::Datagrams].map(|load| (load, "65520"));
    streams.into_iter().chain(transactions).flat_map(|(load, mtu)| of(load, mtu)).collect()
}

/// Starts this program again as root of a new user namespace. This needs no privilege, and the kernel removes the
/// namespaces at the end.
pub(crate) fn enter(arguments: &[String]) -> anyhow::Result<()> {
    let unshare = ["--user", "--map-root-user", "--net", "--mount", "--fork", "--kill-child"];
    let status = Command::new("unshare")
        .args(unshare)
        .arg("--")
        .arg(std::env::current_exe()?)
        .args(["bench", "--inside"])
        .args(arguments)
        .status()
        .context("can't run unshare (util-linux)")?;
    ensure!(status.success(), "the measurement failed: {status}");
    Ok(())
}

/// Runs the measurement inside the namespace.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    println!("kernel {}", fs::read_to_string("/proc/sys/kernel/osrelease")?.trim());
    println!("{} processors", std::thread::available_parallelism()?);
    println!("{} rounds of {} s each; median [lowest, highest]", options.rounds, options.seconds);
    for (letter, program) in &options.programs {
        let version = Command::new(program).arg("--version").output();
        let version = version.with_context(|| format!("can't run {program}"))?;
        let version = String::from_utf8_lossy(&version.stdout);
        println!("{letter}: {program}: {}", version.lines().next().unwrap_or("?"));
    }
    let lab = Lab::new()?;
    for scenario in scenarios() {
        let name = scenario.name();
        if options.only.as_ref().is_some_and(|only| !name.contains(only)) {
            continue;
        }
        println!("\n{name}");
        let mut candidates: Vec<(String, Option<&str>, Vec<Figure>)> =
            vec![("limit".into(), None, Vec::new())];
        candidates.extend(
            options
                .programs
                .iter()
                .map(|(letter, program)| (letter.to_string(), Some(program.as_str()), Vec::new())),
        );
        for round in 0..options.rounds {
            let count = candidates.len();
            for turn in 0..count {
                let (letter, program, figures) = &mut candidates[(round + turn) % count];
                match lab.measure(&scenario, *program, options.seconds) {
                    Ok(figure) => figures.push(figure),
                    Err(error) => println!("  {letter}: round {}: {error:#}", round + 1),
                }
            }
        }
        let limit = median(candidates[0].2.iter().map(|figure| figure.rate));
        for (letter, _, figures) in &candidates {
            println!("  {}", row(letter, &scenario, figures, limit));
        }
    }
    Ok(())
}

/// The result of one measurement.
#[derive(Clone, Copy)]
struct Figure {
    /// Bytes or transactions per second.
    rate: f64,
    /// Processor time of the program, in seconds.
    cpu: f64,
}

fn row(letter: &str, scenario: &Scenario, figures: &[Figure], limit: f64) -> String {
    if figures.is_empty() {
        return format!("{letter:6} failed");
    }
    let (unit, scale) = if scenario.load.is_stream() { ("Gbit/s", 8e-9) } else { ("k/s", 1e-3) };
    let rates = || figures.iter().map(|figure| figure.rate);
    let (middle, low, high) =
        (median(rates()), rates().fold(f64::INFINITY, f64::min), rates().fold(0.0, f64::max));
    let mut row =
        format!("{letter:6} {:8.2} [{:.2}, {:.2}] {unit}", middle * scale, low * scale, high * scale);
    // A write to a string can't fail.
    let _ = write!(row, "  {:.2} of the limit", middle / limit);
    let cost = median(figures.iter().map(|figure| figure.cpu / figure.rate));
    if cost > 0.0 {
        let _ = match scenario.load.is_stream() {
            true => write!(row, "  {:.3} cpu-s/GB", cost * 1e9),
            false => write!(row, "  {:.1} cpu-us each", cost * 1e6),
        };
    }
    row
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => values[len / 2],
        len => f64::midpoint(values[len / 2 - 1], values[len / 2]),
    }
}

/// The host and the peer. A veth pair connects them. This process is in the host namespace.
struct Lab {
    peer: Process,
    /// The server in the peer namespace.
    _server: Process,
}

impl Lab {
    fn new() -> anyhow::Result<Self> {
        let mut peer =
            Process::start(Command::new("unshare").args(["--net", "sh", "-c", "echo ready; read end"]))?;
        peer.line()?;
        let pid = peer.child.id().to_string();
        let ip = |arguments: &str| command("ip", arguments);
        let ip_peer = |arguments: &str| command("nsenter", &format!("-t {pid} -n ip {arguments}"));
        ip("link set lo up")?;
        ip(&format!("link add eth0 type veth peer name eth0 netns {pid}"))?;
        ip("link set eth0 up")?;
        ip(&format!("addr add {HOST}/24 dev eth0"))?;
        ip_peer("link set lo up")?;
        ip_peer("link set eth0 up")?;
        ip_peer(&format!("addr add {ROUTER}/24 dev eth0"))?;
        ip_peer(&format!("addr add {PEER}/32 dev lo"))?;
        ip(&format!("route add default via {ROUTER}"))?;
        let mut server = Process::start(&mut in_peer(&peer, &["serve", PORT])?)?;
        server.line()?;
        Ok(Self { peer, _server: server })
    }

    /// Runs one client, through `program` or directly if there is no program.
    fn measure(&self, scenario: &Scenario, program: Option<&str>, seconds: f64) -> anyhow::Result<Figure> {
        let seconds = seconds.to_string();
        let client = |address| [scenario.load.name(), address, PORT, &seconds];
        if scenario.outbound {
            let mut client = Process::start(&mut in_guest(program, scenario.mtu, &client(PEER))?)?;
            let cpu = client.cpu();
            let rate = client.line()?.parse()?;
            return Ok(client.figure(program, rate, &seconds, cpu));
        }
        let mut server = Process::start(&mut in_guest(program, scenario.mtu, &["serve", PORT])?)?;
        server.line()?;
        let cpu = server.cpu();
        let mut client = Process::start(&mut in_peer(&self.peer, &client(HOST))?)?;
        let rate = client.line()?.parse()?;
        Ok(server.figure(program, rate, &seconds, cpu))
    }
}

fn command(program: &str, arguments: &str) -> anyhow::Result<()> {
    let status = Command::new(program).args(arguments.split_whitespace()).status();
    let status = status.with_context(|| format!("can't run {program}"))?;
    ensure!(status.success(), "{program} {arguments}: {status}");
    Ok(())
}

fn in_peer(peer: &Process, load: &[&str]) -> anyhow::Result<Command> {
    let mut command = Command::new("nsenter");
    command.args(["-t", &peer.child.id().to_string(), "-n", "--"]);
    command.arg(std::env::current_exe()?).arg("load").args(load);
    Ok(command)
}

fn in_guest(program: Option<&str>, mtu: &str, load: &[&str]) -> anyhow::Result<Command> {
    let this = std::env::current_exe()?;
    let mut command = match program {
        None => Command::new(this),
        Some(program) => {
            let mut command = Command::new(program);
            command.args([
                "--config-net",
                "--mtu",
                mtu,
                "-t",
                PORT,
                "-u",
                PORT,
                "-T",
                "none",
                "-U",
                "none",
                "--",
            ]);
            command.arg(this);
            command
        }
    };
    command.arg("load").args(load);
    Ok(command)
}

/// A child that prints one line, and exits at the end of its standard input.
struct Process {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Process {
    fn start(command: &mut Command) -> anyhow::Result<Self> {
        let mut child = command
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("can't run {}", command.get_program().display()))?;
        let out = child.stdout.take().context("no output")?;
        Ok(Self { child, out: BufReader::new(out) })
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        self.out.read_line(&mut line)?;
        if line.is_empty() {
            bail!("ended without a figure");
        }
        Ok(line.trim().to_owned())
    }

    /// Processor time of the process so far, in seconds, without its children.
    fn cpu(&self) -> f64 {
        // proc_pid_stat(5): fields after the name, in clock ticks of 10 ms.
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks =
            |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
        (ticks(11) + ticks(12)) / 100.0
    }

    /// The result of a client with `rate`. `cpu` is the processor time of the process at the client's start.
    fn figure(&self, program: Option<&str>, rate: f64, seconds: &str, cpu: f64) -> Figure {
        let seconds: f64 = seconds.parse().unwrap_or(f64::NAN);
        // Without a program, the process itself is the load.
        Figure { rate, cpu: if program.is_some() { (self.cpu() - cpu) / seconds } else { 0.0 } }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // The process has two seconds to exit.
        for _ in 0..200 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert!(median([].into_iter()).is_nan());
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0].into_iter()), 2.5);
    }

    #[test]
    fn names_of_scenarios_are_unique() {
        let mut names: Vec<String> = scenarios().iter().map(Scenario::name).collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
        assert!(names.contains(&"udp rr guest to peer, MTU 65520".to_owned()), "{names:?}");
    }
}
