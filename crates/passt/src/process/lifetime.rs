//! The events that terminate the process: signals, the end of the command, the end of the namespace (behaviour §1.4,
//! §1.6).

use std::os::fd::{AsFd, BorrowedFd};
use std::process::ExitCode;

use anyhow::Context;
use rustix::process::{Signal, WaitOptions, WaitStatus, wait};
use rustix::thread::{CapabilitySets, capabilities, set_capabilities};
use sys::signal::{Received, SignalFd};

use crate::config::Mode;
use crate::errno::retry;
use crate::event::Source;
use crate::pasta::quit::Watch;
use crate::pasta::spawn::Spawned;

/// The signals that the process handles. All other signals have the kernel's default action.
const OURS: [Signal; 3] = [Signal::TERM, Signal::QUIT, Signal::CHILD];
/// The signals that the process handles if it has spawned a command. The process forwards these signals to the command.
const WITH_COMMAND: [Signal; 5] = [Signal::TERM, Signal::QUIT, Signal::CHILD, Signal::INT, Signal::HUP];

/// The same in slirp4netns mode: other signals end the process as they end the C program, which does not handle them.
const IN_SLIRP4NETNS: [Signal; 1] = [Signal::CHILD];

/// The reason for the end of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// A signal requested the end of the process.
    Asked,
    /// The guest's namespace has ended.
    NamespaceGone,
    /// The virtual machine has closed its connection, and no other connection is accepted (`--one-off`).
    GuestGone,
    /// The command ended with this status: its own exit status, or 128 plus the number of the signal that killed it.
    Command(u8),
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        match exit {
            Exit::Asked | Exit::NamespaceGone | Exit::GuestGone => Self::SUCCESS,
            Exit::Command(status) => Self::from(status),
        }
    }
}

/// The event sources that can end the process.
#[derive(Debug)]
pub(crate) struct Lifetime {
    signals: SignalFd,
    watch: Option<Watch>,
    command: Option<Spawned>,
    /// The signal that caused the process to kill the command by SIGKILL, see [`Spawned::pass_on`].
    killed_by: Option<Signal>,
}

impl Lifetime {
    /// Blocks the signals that the process handles. Must be called after the command was spawned: the command inherits
    /// the caller's signal mask.
    pub(crate) fn new(command: Option<Spawned>, watch: Option<Watch>, mode: Mode) -> anyhow::Result<Self> {
        let signals: &[Signal] = match (&command, mode) {
            (Some(_), _) => &WITH_COMMAND,
            (None, Mode::Slirp4netns) => &IN_SLIRP4NETNS,
            (None, Mode::Passt | Mode::Pasta) => &OURS,
        };
        sys::signal::block(signals).context("can't block signals")?;
        let signals = SignalFd::new(signals).context("can't open a descriptor for signals")?;
        Ok(Self { signals, watch, command, killed_by: None })
    }

    /// Lets the command start, if there is a command. Returns whether there is a command.
    pub(crate) fn release_command(&mut self) -> bool {
        self.command.as_mut().map(Spawned::release).is_some()
    }

    /// The descriptors of these event sources. A descriptor is readable (level-triggered) when [`Lifetime::on_signals`]
    /// or [`Lifetime::on_namespace`] must be called.
    ///
    /// The descriptors must be added to the epoll set after the last fork: for a signalfd, epoll watches the signals of
    /// the process that added it.
    pub(crate) fn sources(&self) -> impl Iterator<Item = (Source, BorrowedFd<'_>)> {
        let watch = self.watch.as_ref().map(|watch| (Source::Namespace, watch.as_fd()));
        [(Source::Signals, self.signals.as_fd())].into_iter().chain(watch)
    }

    /// Checks whether the namespace has ended. `Some`: the process must exit.
    pub(crate) fn on_namespace(&self) -> Option<Exit> {
        let watch = self.watch.as_ref().filter(|watch| watch.gone())?;
        log::info!("{}", watch.farewell());
        Some(Exit::NamespaceGone)
    }

    /// Handles pending signals. `Some`: the process must exit.
    pub(crate) fn on_signals(&mut self) -> Option<Exit> {
        loop {
            match self.signals.read() {
                Ok(Some(signal)) => {
                    if let Some(exit) = self.on_signal(signal) {
                        return Some(exit);
                    }
                }
                Ok(None) => return None,
                Err(error) => {
                    log::error!("can't read signals: {error}");
                    return None;
                }
            }
        }
    }

    fn on_signal(&mut self, received: Received) -> Option<Exit> {
        let signal = Signal::from_named_raw(received.number)?;
        if signal == Signal::CHILD {
            return self.reap();
        }
        let Some(command) = &mut self.command else { return Some(Exit::Asked) };
        let sent = !received.from_kernel;
        match with_own_capabilities(|| command.pass_on(signal, sent)) {
            Ok(true) => {
                log::info!("signal {}: the command does not handle it and is killed", received.number);
                self.killed_by = Some(signal);
            }
            Ok(false) if sent => log::info!("signal {} is passed on to the command", received.number),
            Ok(false) => {}
            Err(error) => log::warn!("can't pass signal {} on to the command: {error}", received.number),
        }
        None
    }

    /// Reaps all children that have ended, including adopted ones (behaviour §1.5.9). `Some`: the command has ended.
    pub(crate) fn reap(&mut self) -> Option<Exit> {
        let command = self.command.as_ref().map(Spawned::pid);
        loop {
            match retry(|| wait(WaitOptions::NOHANG)) {
                Ok(Some((pid, status))) if Some(pid) == command => {
                    return Some(Exit::Command(exit_status(status, self.killed_by)));
                }
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return None,
            }
        }
    }
}

/// The exit status that a shell would report: the command's status, or 128 plus the number of the signal (behaviour
/// §1.4). `killed_by` replaces SIGKILL, see [`Spawned::pass_on`].
fn exit_status(status: WaitStatus, killed_by: Option<Signal>) -> u8 {
    let signal = status.terminating_signal();
    let signal =
        if signal == Some(Signal::KILL.as_raw()) { killed_by.map(Signal::as_raw).or(signal) } else { signal };
    let number = signal.map_or_else(|| status.exit_status().unwrap_or(1), |signal| 128 + signal);
    u8::try_from(number).unwrap_or(u8::MAX)
}

/// Runs `work` with all permitted capabilities effective. If the command runs as root and this process does not, one
/// permitted capability is left, see [`crate::process::stage`].
fn with_own_capabilities<T>(work: impl FnOnce() -> std::io::Result<T>) -> std::io::Result<T> {
    let before = capabilities(None)?;
    if before.permitted.is_empty() {
        return work();
    }
    set_capabilities(None, CapabilitySets { effective: before.permitted, ..before })?;
    let result = work();
    set_capabilities(None, before)?;
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    /// behaviour §1.4: exit statuses are like those of a shell.
    #[test]
    fn statuses_are_those_of_a_shell() {
        let status_of = |mut command: std::process::Command| {
            let mut child = command.spawn().unwrap();
            let pid = rustix::process::Pid::from_child(&child);
            let status = rustix::process::waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap().1;
            // The child was reaped above, without the handle.
            assert!(child.wait().is_err());
            status
        };
        let sh = |script: &str| {
            let mut command = std::process::Command::new("sh");
            command.args(["-c", script]);
            status_of(command)
        };
        assert_eq!(exit_status(sh("exit 7"), None), 7);
        assert_eq!(exit_status(sh("exit 255"), None), 255);
        let killed = sh("kill -9 $$");
        assert_eq!(exit_status(killed, None), 137);
        assert_eq!(exit_status(killed, Some(Signal::TERM)), 143);
        assert_eq!(exit_status(sh("kill -15 $$"), Some(Signal::INT)), 143);
    }
}
