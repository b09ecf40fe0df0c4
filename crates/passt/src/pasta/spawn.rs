//! Spawning a command in namespaces of its own (behaviour §1.5).
//!
//! One fork: the child starts out in its namespaces, finishes them from inside while we make the network, and
//! waits on a pipe. A byte in it means: go. Its end without one, whatever became of us, means: there will be no
//! network, end quietly.

use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
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

/// Longest host name that the kernel takes, in octets.
const HOST_NAME_MAX: usize = 64;

/// What to spawn.
pub(crate) struct Request<'a> {
    /// Command and arguments; empty: the login shell.
    pub(crate) command: &'a [OsString],
    /// Create a user namespace.
    pub(crate) user_namespace: bool,
    /// Create a PID namespace.
    pub(crate) pid_namespace: bool,
    /// Host name asked for.
    pub(crate) hostname: Option<&'a str>,
    /// What our caller left us and the command is to find.
    pub(crate) signals: &'a Inherited,
    /// Limits of open files, likewise.
    pub(crate) open_files: &'a Rlimit,
}

/// A child that waits for its network, or the command it has become.
#[derive(Debug)]
pub(crate) struct Spawned {
    pid: Pid,
    pidfd: OwnedFd,
    /// Where the child waits; closed once it has been let go.
    go: Option<OwnedFd>,
    /// Its `/proc/PID/status`, open from before we lose sight of /proc; `None` where it isn't process 1 of a
    /// PID namespace.
    status: Option<File>,
}

/// Forks the child. It runs nothing before [`Spawned::release`].
pub(crate) fn spawn(request: &Request<'_>) -> anyhow::Result<Spawned> {
    let mut namespaces = Namespaces::NET | Namespaces::IPC | Namespaces::UTS | Namespaces::MOUNT;
    namespaces.set(Namespaces::USER, request.user_namespace);
    namespaces.set(Namespaces::PID, request.pid_namespace);
    // Ids as they are here: from inside the user namespace they can't be read any more.
    let ids = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let (wait, go) = pipe_with(PipeFlags::CLOEXEC).context("can't make a pipe")?;
    match fork_into(namespaces).map_err(|error| explain_fork(error, request))? {
        Cloned::Child => {
            drop(go);
            let Err(error) = become_command(request, ids, wait);
            log::error!("{error:#}");
            std::process::exit(1);
        }
        Cloned::Parent { pid, pidfd } => {
            let status = File::open(format!("/proc/{}/status", pid.as_raw_nonzero())).ok();
            let status = status.filter(|_| request.pid_namespace);
            Ok(Spawned { pid, pidfd, go: Some(go), status })
        }
    }
}

fn explain_fork(error: io::Error, request: &Request<'_>) -> anyhow::Error {
    let hint = match error.kind() {
        io::ErrorKind::PermissionDenied if !request.user_namespace => ": --netns-only needs privileges",
        io::ErrorKind::PermissionDenied => ": this system lets you create no user namespaces",
        io::ErrorKind::StorageFull => ": see /proc/sys/user for the limits",
        _ => "",
    };
    anyhow::Error::new(error).context(format!("can't create namespaces for the command{hint}"))
}

impl Spawned {
    /// Handle of the process.
    pub(crate) fn pidfd(&self) -> &OwnedFd {
        &self.pidfd
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// Lets the command start: everything it needs is there. A child that is gone already has said why, and its
    /// status will tell.
    pub(crate) fn release(&mut self) {
        if let Some(go) = self.go.take()
            && let Err(error) = File::from(go).write_all(&[1])
        {
            log::debug!("the command's process ended before it could start: {error}");
        }
    }

    /// Passes on `signal`, which somebody sent us (`sent`) or the terminal sent to all of us.
    ///
    /// Process 1 of a PID namespace doesn't get a signal for which it has no handler, although anybody else would
    /// die of it. So does this: the result is true if the command has been killed in the name of `signal`.
    pub(crate) fn pass_on(&mut self, signal: Signal, sent: bool) -> io::Result<bool> {
        // Before the signal itself, which may change the answer.
        let unhandled = self.status.as_mut().is_some_and(|status| leaves_to_kernel(status, signal));
        if sent {
            pidfd_send_signal(&self.pidfd, signal)?;
        }
        if unhandled {
            pidfd_send_signal(&self.pidfd, Signal::KILL)?;
        }
        Ok(unhandled)
    }
}

/// A child that was never released ends here: nothing is left behind.
impl Drop for Spawned {
    fn drop(&mut self) {
        if self.go.take().is_none() {
            return;
        }
        // Without the right to, the end of the pipe still ends it.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        let _ = waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED);
    }
}

/// Whether a process neither handles, ignores nor blocks `signal`, by its status file.
fn leaves_to_kernel(status: &mut File, signal: Signal) -> bool {
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

/// The child's life until it executes the command.
fn become_command(
    request: &Request<'_>,
    (uid, gid): (u32, u32),
    wait: OwnedFd,
) -> anyhow::Result<Infallible> {
    if request.user_namespace {
        // A change of user may have left /proc/self to root.
        set_dumpable_behavior(DumpableBehavior::Dumpable).context("can't open /proc/self to ourselves")?;
        write_maps(uid, gid)?;
    }
    // Mounts of ours stay ours, also where no user namespace sees to that.
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .context("can't make mounts private to the command")?;
    if request.pid_namespace {
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        if let Err(error) = mount("proc", "/proc", "proc", flags, None) {
            log::warn!("can't mount /proc for the command, which will see that of the host: {error}");
        }
    }
    set_hostname(request.hostname).context("can't set the host name (--hostname)")?;
    if let Err(error) = std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0") {
        log::warn!("can't allow ping sockets in the namespace (ping_group_range): {error}");
    }
    await_network(wait);
    setrlimit(Resource::Nofile, *request.open_files).context("can't restore the limit of open files")?;
    request.signals.restore().context("can't restore signals")?;
    let (program, args) = command_line(request.command, std::env::var_os("SHELL"));
    let error = sys::spawn::exec(&program, &args, None);
    Err(error).with_context(|| format!("can't run '{}'", program.display()))
}

/// Maps our one user and group to 0, which needs no privilege (user_namespaces(7)).
fn write_maps(uid: u32, gid: u32) -> anyhow::Result<()> {
    // A map of groups is accepted only where no other group can be dropped any more.
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

/// Waits for the byte that says go; at the end of the pipe without one, there is nothing to go on for.
fn await_network(wait: OwnedFd) {
    if File::from(wait).read_exact(&mut [0]).is_err() {
        std::process::exit(1);
    }
}

/// Program and arguments, the first being its own name: the command, else the shell as a login shell.
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
    fn host_names_are_cut_to_what_the_kernel_takes() {
        assert_eq!(host_name(Some("guest"), b"host"), b"guest");
        assert_eq!(host_name(None, b"host"), b"pasta-host");
        assert_eq!(host_name(None, &[b'x'; 64]).len(), 64);
        assert_eq!(host_name(Some(&"y".repeat(253)), b"").len(), 64);
    }

    /// behaviour §1.5.7.
    #[test]
    fn without_a_command_it_is_a_login_shell() {
        let os = |s: &str| OsString::from(s);
        assert_eq!(command_line(&[], Some(os("/bin/zsh"))), (os("/bin/zsh"), vec![os("-/bin/zsh")]));
        assert_eq!(command_line(&[], None), (os("/bin/sh"), vec![os("-/bin/sh")]));
        assert_eq!(command_line(&[], Some(os(""))), (os("/bin/sh"), vec![os("-/bin/sh")]));
        let command = [os("ls"), os("-l")];
        assert_eq!(command_line(&command, None), (os("ls"), command.to_vec()));
    }

    #[test]
    fn what_a_process_does_with_signals_is_read_from_its_status() {
        let dir = tempfile::tempdir().unwrap();
        let asked = |text: &str| {
            let path = dir.path().join("status");
            std::fs::write(&path, text).unwrap();
            leaves_to_kernel(&mut File::open(path).unwrap(), Signal::TERM)
        };
        let term = "0000000000004000";
        let none = "0000000000000000";
        assert!(asked(&format!("SigBlk:\t{none}\nSigIgn:\t{none}\nSigCgt:\t{none}\n")));
        assert!(!asked(&format!("SigBlk:\t{term}\nSigIgn:\t{none}\nSigCgt:\t{none}\n")));
        assert!(!asked(&format!("SigBlk:\t{none}\nSigIgn:\t{term}\nSigCgt:\t{none}\n")));
        assert!(!asked(&format!("SigBlk:\t{none}\nSigIgn:\t{none}\nSigCgt:\t{term}\n")));
        assert!(!asked("Name:\tcat\n"));
    }
}
