//! Spawns a command in new namespaces (behaviour §1.5).
//!
//! The child process is created in its new namespaces. The child configures these namespaces while the parent sets up
//! the network, and then waits on a pipe. If the parent sends a byte, the network is ready. If the pipe ends without a
//! byte, the parent has failed, and the child exits without a message.

use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use anyhow::Context;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    DumpableBehavior, Pid, Resource, Rlimit, Signal, WaitId, WaitIdOptions, pidfd_send_signal,
    set_dumpable_behavior, setrlimit, waitid,
};
use sys::signal::Inherited;
use sys::spawn::{Cloned, Namespaces, fork_into};

use super::names;
use crate::causes::Causes;

/// Maximum length of a host name that the kernel accepts, in octets.
const HOST_NAME_MAX: usize = 64;

/// The parameters of the command to spawn.
pub(crate) struct Request<'a> {
    /// Command and arguments. If empty, the login shell is spawned.
    pub(crate) command: &'a [OsString],
    /// Whether to create a user namespace.
    pub(crate) user_namespace: bool,
    /// Whether to create a PID namespace.
    pub(crate) pid_namespace: bool,
    /// Host name of `--hostname`.
    pub(crate) hostname: Option<&'a str>,
    /// The servers of which the command may ask names. `None` without rules by name: it asks as its host does.
    pub(crate) resolvers: Option<&'a [IpAddr]>,
    /// Signal mask and dispositions of the caller, which the command inherits.
    pub(crate) signals: &'a Inherited,
    /// The caller's limit of open files, which the command inherits.
    pub(crate) open_files: &'a Rlimit,
}

/// The child. It waits for the network, and then executes the command.
#[derive(Debug)]
pub(crate) struct Spawned {
    pid: Pid,
    pidfd: OwnedFd,
    /// The pipe on which the child waits. `None` when the child has been released.
    release: Option<OwnedFd>,
    /// The child's `/proc/PID/status`, opened early: /proc can't be opened later. `None` if the child is not process 1
    /// of a PID namespace.
    status: Option<File>,
}

/// Forks the child. The child does not execute the command before [`Spawned::release`].
pub(crate) fn spawn(request: &Request<'_>) -> anyhow::Result<Spawned> {
    let mut namespaces = Namespaces::NET | Namespaces::IPC | Namespaces::UTS | Namespaces::MOUNT;
    namespaces.set(Namespaces::USER, request.user_namespace);
    namespaces.set(Namespaces::PID, request.pid_namespace);
    // The IDs are read before the fork: they can't be read in the new user namespace.
    let ids = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let (wait, release) = pipe_with(PipeFlags::CLOEXEC).context("can't make a pipe")?;
    match fork_into(namespaces).map_err(|error| explain_fork(error, request))? {
        Cloned::Child => {
            drop(release);
            let Err(error) = become_command(request, ids, wait);
            log::error!("{}", Causes(&error));
            std::process::exit(1);
        }
        Cloned::Parent { pid, pidfd } => {
            let mut spawned = Spawned { pid, pidfd, release: Some(release), status: None };
            if request.pid_namespace {
                spawned.status = open_status(pid)?;
            }
            Ok(spawned)
        }
    }
}

/// Opens the file from which [`Spawned::pass_on`] learns which signals the command handles. `None`: this machine has no
/// such file.
fn open_status(pid: Pid) -> anyhow::Result<Option<File>> {
    let path = format!("/proc/{}/status", pid.as_raw_nonzero());
    match File::open(&path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => {
            log::warn!(
                "A signal that the command does not handle will not end it: can't open {path}: {error}"
            );
            Ok(None)
        }
        Err(error) => Err(error).with_context(|| format!("can't open {path}")),
    }
}

fn explain_fork(error: io::Error, request: &Request<'_>) -> anyhow::Error {
    let hint = match error.kind() {
        io::ErrorKind::PermissionDenied if !request.user_namespace => ": --netns-only needs privileges",
        io::ErrorKind::PermissionDenied => ": this system does not let you create user namespaces",
        io::ErrorKind::StorageFull => ": see /proc/sys/user for the limits",
        _ => "",
    };
    anyhow::Error::new(error).context(format!("can't create namespaces for the command{hint}"))
}

impl Spawned {
    /// The pidfd of the child.
    pub(crate) fn pidfd(&self) -> &OwnedFd {
        &self.pidfd
    }

    /// The process id.
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// Lets the command start: the network is ready. If the child has already ended, it has logged the reason, and its
    /// exit status is handled like the command's.
    pub(crate) fn release(&mut self) {
        if let Some(release) = self.release.take()
            && let Err(error) = File::from(release).write_all(&[1])
        {
            log::debug!("the command's process ended before it could start: {error}");
        }
    }

    /// Forwards `signal` to the command. If `sent` is false, the terminal has sent the signal, and has sent it to the
    /// command, too.
    ///
    /// The kernel drops a signal to process 1 of a PID namespace if the process would take the default action. Without
    /// a PID namespace, such a signal would kill the command, so this function kills the command by SIGKILL. Returns
    /// true if the command was killed this way.
    pub(crate) fn pass_on(&mut self, signal: Signal, sent: bool) -> io::Result<bool> {
        // The status is read before the signal is sent: the command's handler may change the status.
        let unhandled = self.status.as_mut().is_some_and(|status| has_default_action(status, signal));
        if sent {
            pidfd_send_signal(&self.pidfd, signal)?;
        }
        if unhandled {
            pidfd_send_signal(&self.pidfd, Signal::KILL)?;
        }
        Ok(unhandled)
    }
}

/// Kills a child that was not released, and waits for its end.
impl Drop for Spawned {
    fn drop(&mut self) {
        if self.release.take().is_none() {
            return;
        }
        // If the kill is not permitted, the child ends by itself: the pipe is closed.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        let _ = waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED);
    }
}

/// Whether a process neither handles, ignores nor blocks `signal`, according to its `/proc/PID/status`.
fn has_default_action(status: &mut File, signal: Signal) -> bool {
    use std::io::Seek;
    let mut text = String::new();
    if status.rewind().and_then(|()| status.read_to_string(&mut text)).is_err() {
        return false;
    }
    let bit = 1_u64 << (signal.as_raw() - 1);
    let set = |field: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(field))?;
        u64::from_str_radix(value.trim(), 16).ok()
    };
    ["SigBlk:", "SigIgn:", "SigCgt:"].iter().all(|field| set(field).is_some_and(|set| set & bit == 0))
}

/// Configures the child's namespaces, waits for the network, and executes the command.
fn become_command(
    request: &Request<'_>,
    (uid, gid): (u32, u32),
    wait: OwnedFd,
) -> anyhow::Result<Infallible> {
    if request.user_namespace {
        // After a change of user, /proc/self belongs to root until the process is dumpable.
        set_dumpable_behavior(DumpableBehavior::Dumpable).context("can't get access to /proc/self")?;
        write_maps(uid, gid)?;
    }
    // The command's mounts must not propagate to the host. The kernel ensures this only with a new user namespace.
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .context("can't make mounts private to the command")?;
    if request.pid_namespace {
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        if let Err(error) = mount("proc", "/proc", "proc", flags, None) {
            log::warn!("can't mount /proc for the command, which will see the host's: {error}");
        }
    }
    set_hostname(request.hostname).context("can't set the host name (--hostname)")?;
    if let Err(error) = std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0") {
        log::warn!("can't allow ping sockets in the namespace (ping_group_range): {error}");
    }
    await_network(wait);
    // Only now, so that a failure is the only message: the parent needs this process to set up the network.
    if let Some(servers) = request.resolvers {
        names::resolve_over_link(servers)
            .context("rules by name need the command to resolve names by DNS only, which can't be ensured")?;
    }
    setrlimit(Resource::Nofile, *request.open_files).context("can't restore the limit of open files")?;
    request.signals.restore().context("can't restore signals")?;
    let (program, args) = command_line(request.command, std::env::var_os("SHELL"));
    let error = sys::spawn::exec(&program, &args, None);
    Err(error).with_context(|| cannot_run(&program))
}

/// What failed. `pasta PID --debug` means a command with an argument, since options come before (behaviour §1.2).
fn cannot_run(program: &OsStr) -> String {
    let number = program.as_encoded_bytes().iter().all(u8::is_ascii_digit);
    let hint = if number { " (is it a process ID? Then it must be the last argument)" } else { "" };
    format!("can't run '{}'{hint}", program.display())
}

/// Maps a single user and a single group to 0. This needs no privilege (user_namespaces(7)).
fn write_maps(uid: u32, gid: u32) -> anyhow::Result<()> {
    // Without privilege, the kernel accepts gid_map only after setgroups(2) was disabled.
    let files = [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("0 {uid} 1")),
        ("gid_map", format!("0 {gid} 1")),
    ];
    for (name, text) in files {
        let path = format!("/proc/self/{name}");
        std::fs::write(&path, text)
            .with_context(|| format!("can't configure the user namespace: can't write to {path}"))?;
    }
    Ok(())
}

fn set_hostname(asked: Option<&str>) -> io::Result<()> {
    let name = host_name(asked, rustix::system::uname().nodename().to_bytes());
    Ok(rustix::system::sethostname(&name)?)
}

/// behaviour §1.5.6.
fn host_name(asked: Option<&str>, host: &[u8]) -> Vec<u8> {
    let mut name = match asked {
        Some(asked) => asked.as_bytes().to_vec(),
        None => [b"pasta-", host].concat(),
    };
    name.truncate(HOST_NAME_MAX);
    name
}

/// Waits for the byte from the parent. If the pipe ends without the byte, the parent has failed, and this function
/// exits.
fn await_network(wait: OwnedFd) {
    if File::from(wait).read_exact(&mut [0]).is_err() {
        std::process::exit(1);
    }
}

/// Program and arguments (including argument 0): the command, or `shell` as a login shell if there is no command.
/// Argument 0 of a login shell starts with `-`.
fn command_line(command: &[OsString], shell: Option<OsString>) -> (OsString, Vec<OsString>) {
    if let Some(program) = command.first() {
        return (program.clone(), command.to_vec());
    }
    let shell = shell.filter(|shell| !shell.is_empty()).unwrap_or_else(|| "/bin/sh".into());
    let mut name = OsString::from("-");
    name.push(OsStr::from_bytes(shell.as_bytes()));
    (shell, vec![name])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// behaviour §1.5.6.
    #[test]
    fn host_names_are_truncated_to_the_kernels_limit() {
        assert_eq!(host_name(Some("guest"), b"host"), b"guest");
        assert_eq!(host_name(None, b"host"), b"pasta-host");
        assert_eq!(host_name(None, &[b'x'; 64]).len(), 64);
        assert_eq!(host_name(Some(&"y".repeat(253)), b"").len(), 64);
    }

    /// behaviour §1.5.7.
    #[test]
    fn without_a_command_a_login_shell_is_started() {
        let os = |s: &str| OsString::from(s);
        assert_eq!(command_line(&[], Some(os("/bin/zsh"))), (os("/bin/zsh"), vec![os("-/bin/zsh")]));
        assert_eq!(command_line(&[], None), (os("/bin/sh"), vec![os("-/bin/sh")]));
        assert_eq!(command_line(&[], Some(os(""))), (os("/bin/sh"), vec![os("-/bin/sh")]));
        let command = [os("ls"), os("-l")];
        assert_eq!(command_line(&command, None), (os("ls"), command.to_vec()));
    }

    #[test]
    fn a_number_that_is_no_program_may_be_a_process() {
        assert_eq!(cannot_run(OsStr::new("ls")), "can't run 'ls'");
        assert!(cannot_run(OsStr::new("4711")).contains("the last argument"));
    }

    #[test]
    fn signal_actions_are_read_from_the_status_file() {
        let dir = tempfile::tempdir().unwrap();
        let default_action = |text: &str| {
            let path = dir.path().join("status");
            std::fs::write(&path, text).unwrap();
            has_default_action(&mut File::open(path).unwrap(), Signal::TERM)
        };
        let term = "0000000000004000";
        let none = "0000000000000000";
        assert!(default_action(&format!("SigBlk:\t{none}\nSigIgn:\t{none}\nSigCgt:\t{none}\n")));
        assert!(!default_action(&format!("SigBlk:\t{term}\nSigIgn:\t{none}\nSigCgt:\t{none}\n")));
        assert!(!default_action(&format!("SigBlk:\t{none}\nSigIgn:\t{term}\nSigCgt:\t{none}\n")));
        assert!(!default_action(&format!("SigBlk:\t{none}\nSigIgn:\t{none}\nSigCgt:\t{term}\n")));
        assert!(!default_action("Name:\tcat\n"));
    }
}
