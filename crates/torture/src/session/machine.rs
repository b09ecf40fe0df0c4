//! The guest of passt: the kernel of a namespace, whose tap another program bridges to passt's socket (`xtask bridge`).
//!
//! When the bridge ends, it starts again, like a virtual machine that reconnects. The interface stays meanwhile, without
//! carrier.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::datagrams;
use super::flow::End;
use crate::net::{PEER, Place};

/// Bytes that the guest has received when its link is made full.
const BEGUN: u64 = 5 << 20;
/// Maximum time until it has received them.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long the guest takes no frames.
const FULL: Duration = Duration::from_millis(200);
/// Time from then to the end of the guest's connection.
const EMPTY: Duration = Duration::from_millis(100);
/// Time until the guest connects again.
const AWAY: Duration = Duration::from_millis(30);

/// A guest that connects to passt's socket for ever.
#[derive(Clone)]
pub(crate) struct Machine {
    /// The namespace.
    pub(crate) place: Place,
    /// The process of the bridge. 0: there is none at present.
    bridge: Arc<AtomicI32>,
    /// Locked for writing while the guest is disconnected, and not by a fault.
    away: Arc<RwLock<()>>,
}

/// Does `work` while the guest is connected: without a guest, passt refuses connections of the host.
pub(super) fn while_connected<T>(machine: Option<&Machine>, work: impl FnOnce() -> T) -> T {
    let _connected = machine.map(|machine| machine.away.read().unwrap_or_else(PoisonError::into_inner));
    work()
}

impl Machine {
    /// Starts a guest, which connects to `socket` when it exists. `kind` is that of the bridge. Then it sends pings, and
    /// creates the file `ready` when one is answered.
    pub(crate) fn start(program: &Path, kind: &str, socket: &Path, ready: PathBuf) -> anyhow::Result<Self> {
        let output = Command::new("sh").args(["-ec", SETUP]).output().context("can't run a shell")?;
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "can't set up the guest: {}", text.trim());
        let machine =
            Self { place: Place::of("/run/netns/guest")?, bridge: Arc::default(), away: Arc::default() };
        ensure!(program.exists(), "{} does not exist: build it", program.display());
        let (bridge, program) = (machine.bridge.clone(), program.to_owned());
        let arguments =
            ["bridge".to_owned(), kind.to_owned(), socket.display().to_string(), "eth0".to_owned()];
        machine.place.spawn(move || {
            loop {
                let mut command = Command::new(&program);
                command.args(&arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
                if let Ok(mut process) = command.spawn() {
                    bridge.store(process.id().cast_signed(), Ordering::SeqCst);
                    // The bridge ends with its standard input, which `wait` would close.
                    let _input = process.stdin.take();
                    let _status = process.wait();
                    bridge.store(0, Ordering::SeqCst);
                }
                std::thread::sleep(AWAY);
            }
        });
        machine.place.spawn(move || (datagrams::ping(PEER) == End::Whole).then(|| fs::write(ready, "")));
        Ok(machine)
    }

    /// While the guest receives, it stops for a while, so its link is full. Then its connection ends.
    pub(crate) fn disturb(&self) -> JoinHandle<anyhow::Result<()>> {
        let (bridge, away) = (self.bridge.clone(), self.away.clone());
        let process = move || bridge.load(Ordering::SeqCst);
        let signal = |process, signal| {
            if process != 0 {
                // The fault may have ended the connection, and so the bridge.
                let _gone = kill(Pid::from_raw(process), signal);
            }
        };
        self.place.spawn(move || {
            let end = Instant::now() + PATIENCE;
            while received().is_none_or(|bytes| bytes < BEGUN) && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(1));
            }
            signal(process(), Signal::SIGSTOP);
            std::thread::sleep(FULL);
            signal(process(), Signal::SIGCONT);
            std::thread::sleep(EMPTY);
            let _disconnected = away.write().unwrap_or_else(PoisonError::into_inner);
            let old = process();
            signal(old, Signal::SIGKILL);
            let end = Instant::now() + PATIENCE;
            while [0, old].contains(&process()) && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(1));
            }
            // What does not work for ever, the later flows show.
            let _answered = datagrams::ping(PEER);
        })
    }
}

/// Bytes that the interface in the namespace of this thread has received.
fn received() -> Option<u64> {
    let interfaces = fs::read_to_string("/proc/thread-self/net/dev").ok()?;
    let line = interfaces.lines().find_map(|line| line.trim().strip_prefix("eth0:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// A tap drops frames that its queue does not hold, unlike the device of a virtual machine: so the queue is long. Receive
/// windows are large, so that more is in flight than the link holds. A reset that is in the rings when their guest is killed
/// is lost, as on a network; an end that only receives finds that out by keep-alive probes.
const SETUP: &str = r"
PATH=$PATH:/usr/sbin:/sbin
ip netns add guest
ip -n guest tuntap add dev eth0 mode tap
ip -n guest link set lo up
ip -n guest link set eth0 up txqueuelen 20000
ip -n guest addr add 198.51.100.2/24 dev eth0
ip -n guest route add default via 198.51.100.1
nsenter --net=/run/netns/guest sh -ec '
    cd /proc/sys/net/ipv4
    echo 0 2147483647 >ping_group_range
    echo 4096 4194304 6291456 >tcp_rmem
    echo 5 >tcp_keepalive_time
    echo 1 >tcp_keepalive_intvl'
";
