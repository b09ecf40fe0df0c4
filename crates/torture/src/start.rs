//! The sweep of the start: each system call from the execution of the program to its event loop fails once.
//!
//! Then the program either starts and works, or it ends with an error that says what failed, and leaves nothing behind.

mod guests;
mod trace;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::fault::{Cell, Site};
use crate::net::{Net, Place};
use crate::session::flow::{End, Reports};
use crate::session::{LOG, SOCKET, Session, arguments, child};
use crate::way::Way;
use trace::{Seen, Starting};

/// Where the program's messages go.
const STDERR: &str = "/run/torture/stderr";
/// The namespace that the program joins.
const JOINED: &str = "/run/netns/guest";
/// Maximum time from the start to the report that the network is ready, or to the end.
const PATIENCE: Duration = Duration::from_secs(20);
/// Maximum time for the end of processes.
const QUIT: Duration = Duration::from_secs(6);

/// The command that starts a program.
fn command(way: Way, programs: &Path, dir: &Path) -> Command {
    let file = |name: &str| dir.join(name).display().to_string();
    let mut command = Command::new(programs.join(way.program()));
    command.args(["--pid", &file("pid")]);
    match way {
        Way::Command | Way::Joining => command.args(arguments(way, dir, false)),
        Way::Passt | Way::VhostUser => command.args([
            "-t",
            "8001",
            "-u",
            "8002",
            "--socket",
            &file(SOCKET),
            "--conf-path",
            &file("conf"),
        ]),
    };
    match way {
        Way::Command => {
            let script = format!("echo >{}; exec sleep 1000", file("ready"));
            command.args(["--foreground", "--", "sh", "-c", &script])
        }
        Way::Joining => command.args(["--netns", JOINED]),
        Way::Passt => &mut command,
        Way::VhostUser => command.arg("--vhost-user"),
    };
    command
}

/// What happened at one start.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Outcome {
    /// The fault was injected.
    pub(crate) hit: bool,
    /// The program has reported that the network is ready.
    pub(crate) ready: bool,
    /// What did not work then.
    pub(crate) broken: Option<String>,
    /// The exit status of the first process. `None`: it did not end.
    pub(crate) status: Option<i32>,
    /// The program's messages.
    pub(crate) messages: String,
    /// Files, interfaces and processes that remained.
    pub(crate) left: Vec<String>,
    /// Number of calls at each place, without a fault.
    pub(crate) counts: Vec<(Site, u64)>,
}

/// Starts the program once for each cell, in this process, which is process 1 of new namespaces. Without cells, the
/// calls are recorded.
pub(crate) fn run(programs: &Path, way: Way, cells: &[Cell]) -> anyhow::Result<Vec<Outcome>> {
    let net = Net::new()?;
    let programs = hide(programs)?;
    let guest = net.host.clone();
    let session = Session {
        net,
        guest,
        machine: None,
        pesto: PathBuf::new(),
        plain: false,
        reports: Reports::default(),
    };
    session.start_servers()?;
    if cells.is_empty() {
        return Ok(vec![start(&programs, way, None, &session)?]);
    }
    cells.iter().map(|cell| start(&programs, way, Some(cell.clone()), &session)).collect()
}

/// Makes folders for temporary files that no other process uses. Returns where the programs are then.
fn hide(programs: &Path) -> anyhow::Result<PathBuf> {
    let script = "mkdir /run/programs; mount --bind \"$0\" /run/programs; mount -t tmpfs tmpfs /tmp; \
                  mount -t tmpfs tmpfs /dev/shm";
    shell(&[script, &programs.display().to_string()])?;
    Ok("/run/programs".into())
}

fn shell(arguments: &[&str]) -> anyhow::Result<()> {
    let status = Command::new("sh").arg("-ec").args(arguments).status().context("can't run a shell")?;
    ensure!(status.success(), "a shell failed: {arguments:?}");
    Ok(())
}

fn start(programs: &Path, way: Way, cell: Option<Cell>, session: &Session) -> anyhow::Result<Outcome> {
    let dir = &session.net.dir;
    for name in ["pid", SOCKET, "conf", "api", LOG, "flows.log", "ready", "stderr"] {
        // It may not exist.
        let _removed = fs::remove_file(dir.join(name));
    }
    if way == Way::Joining {
        shell(&["PATH=$PATH:/usr/sbin:/sbin; ip netns add guest; ip -n guest link set lo up; \
                 nsenter --net=/run/netns/guest \
                 sh -c 'echo 0 2147483647 >/proc/sys/net/ipv4/ping_group_range'"])?;
    }
    let before = files();
    let program = Starting::new(command(way, programs, dir), cell)?;
    let mut outcome = Outcome { ready: await_ready(&program, way, dir), ..Outcome::default() };
    if outcome.ready {
        outcome.broken = use_it(&program, way, session).err().map(|error| format!("{error:#}"));
        if let Err(error) = end(&program, way, dir) {
            outcome.broken.get_or_insert_with(|| format!("{error:#}"));
        }
    } else if program.seen().status.is_some() {
        outcome.left = left(&before, way)?;
    }
    // Before all processes are killed.
    outcome.status = program.seen().status;
    outcome.messages = fs::read_to_string(STDERR).unwrap_or_default();
    let Seen { counts, hit, .. } = clean_up(program)?;
    outcome.hit = hit;
    outcome.counts = counts.into_iter().collect();
    if way == Way::Joining {
        shell(&["PATH=$PATH:/usr/sbin:/sbin; ip netns del guest"])?;
    }
    Ok(outcome)
}

/// Returns whether the network is ready. If not, the program has ended, or neither has happened for [`PATIENCE`].
fn await_ready(program: &Starting, way: Way, dir: &Path) -> bool {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        match (way, program.seen().status) {
            (Way::Command, None) if dir.join("ready").exists() => return true,
            (Way::Joining | Way::Passt | Way::VhostUser, Some(0)) => return true,
            (_, Some(_)) => return false,
            (_, None) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
    false
}

/// Uses the network.
fn use_it(program: &Starting, way: Way, session: &Session) -> anyhow::Result<()> {
    match way {
        Way::Command | Way::Joining => {
            let of = if way == Way::Command {
                format!("/proc/{}/ns/net", child(program.pid)?)
            } else {
                JOINED.to_owned()
            };
            let session = Session { guest: Place::of(of)?, reports: Reports::default(), ..session.clone() };
            session.start_guests_servers()?;
            session.short_traffic()?;
            let lost = session.reports.take().into_iter().find(|report| report.end != End::Whole);
            ensure!(lost.is_none(), "{lost:?}");
            Ok(())
        }
        Way::Passt => guests::ask_for_hardware_address(&session.net.dir.join(SOCKET)),
        Way::VhostUser => guests::ask_for_features(&session.net.dir.join(SOCKET)),
    }
}

/// Ends the program by SIGTERM. A command is left.
fn end(program: &Starting, way: Way, dir: &Path) -> anyhow::Result<()> {
    let pid = if way == Way::Command {
        program.pid
    } else {
        let text = fs::read_to_string(dir.join("pid")).context("no PID file")?;
        text.trim().parse().with_context(|| format!("the PID file has '{text}'"))?
    };
    kill(Pid::from_raw(pid), Signal::SIGTERM).context("it has ended already")?;
    let deadline = Instant::now() + QUIT;
    while is_running(pid) {
        ensure!(Instant::now() < deadline, "it does not end after SIGTERM");
        std::thread::sleep(Duration::from_millis(2));
    }
    if way == Way::Command {
        let status = program.seen().status;
        // The signal is passed on to the command, which is process 1 of its namespace, and does not handle it.
        ensure!(matches!(status, None | Some(143)), "status {status:?} after SIGTERM");
    }
    Ok(())
}

/// What remains of a start that has failed, except the logs. A killed process and its interface need a moment to vanish.
fn left(before: &BTreeSet<PathBuf>, way: Way) -> anyhow::Result<Vec<String>> {
    let deadline = Instant::now() + QUIT;
    loop {
        let left = left_now(before, way)?;
        if left.is_empty() || Instant::now() > deadline {
            return Ok(left);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn left_now(before: &BTreeSet<PathBuf>, way: Way) -> anyhow::Result<Vec<String>> {
    let mut left: Vec<String> = others().into_iter().map(|pid| format!("process {}", title(pid))).collect();
    let is_log = |path: &Path| path.extension().is_some_and(|extension| extension == "log");
    let files = files().into_iter().filter(|path| !before.contains(path) && !is_log(path));
    left.extend(files.map(|path| path.display().to_string()));
    if way == Way::Joining {
        let interfaces = Place::of(JOINED)?.run(|| fs::read_to_string("/proc/thread-self/net/dev"))??;
        let names = interfaces.lines().filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()));
        left.extend(names.filter(|name| name != "lo").map(|name| format!("interface {name}")));
    }
    Ok(left)
}

/// All files that programs make at places of their own choice.
fn files() -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut folders: Vec<PathBuf> = ["/run", "/tmp", "/dev/shm"].map(PathBuf::from).into();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path == Path::new("/run/programs") || path == Path::new(STDERR) {
                continue;
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(path.clone());
            }
            found.insert(path);
        }
    }
    found
}

/// The processes of this namespace, without this one.
fn others() -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| *pid != 1 && is_running(*pid)).collect()
}

/// Whether a process exists and is not a zombie.
fn is_running(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next()).map(str::to_owned);
    state.is_some_and(|state| !["Z", "X"].contains(&state.as_str()))
}

fn title(pid: i32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).replace('\0', " ")
}

/// Kills all processes of this namespace.
fn clean_up(program: Starting) -> anyhow::Result<Seen> {
    // Nothing is left to kill.
    let _nothing = kill(Pid::from_raw(-1), Signal::SIGKILL);
    let seen = program.finish()?;
    // Processes that lost their parent are children of this one.
    while !matches!(waitpid(None, Some(WaitPidFlag::__WALL)), Err(_) | Ok(WaitStatus::StillAlive)) {}
    Ok(seen)
}
