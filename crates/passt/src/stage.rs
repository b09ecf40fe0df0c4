//! The life of the process as one-way doors: each stage is a value that only the one before can be made into, so
//! that a privilege can only fall, and the compiler checks the order.
//!
//! [`Boot`] -> user and namespaces -> [`Prepared`] -> capabilities -> [`Confined`] -> background -> [`Detached`].

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::process::{
    DumpableBehavior, Pid, Resource, Rlimit, Signal, getpid, getrlimit, kill_process, set_dumpable_behavior,
    setrlimit, setsid,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, ThreadNameSpaceType, clear_ambient_capability_set,
    move_into_thread_name_spaces, remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};
use sys::signal::Inherited;
use sys::spawn::Forked;

use crate::config::{Config, Target, Userns};
use crate::identity::{Identity, change_to};
use crate::logging;
use crate::pasta::spawn::{Request, Spawned, spawn};
use crate::pasta::{Guest, Namespace, join};

/// Our caller's rights and surroundings. What needs them is done now: finding out about the host, binding ports,
/// opening files for output.
pub(crate) struct Boot {
    signals: Inherited,
    open_files: Rlimit,
}

impl Boot {
    /// First thing of all: rid of what our caller left open, but for `keep`, and with room for as many
    /// sockets as we may have.
    pub(crate) fn new(keep: Option<RawFd>) -> anyhow::Result<Self> {
        sys::spawn::close_inherited(keep);
        let signals = Inherited::take().context("can't take over signal dispositions")?;
        let open_files = getrlimit(Resource::Nofile);
        let raised = Rlimit { current: open_files.maximum, maximum: open_files.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            log::debug!("can't raise the limit of open files: {error}");
        }
        Ok(Self { signals, open_files })
    }

    /// Door: to the user we run as, and next to the guest.
    ///
    /// It comes before any thread exists, since a process with two can't change its user namespace, and after
    /// all that needs our caller's rights over the host, which end here.
    pub(crate) fn join_guest(self, config: &Config) -> anyhow::Result<(Prepared, Guest)> {
        let identity = Identity::choose(config.runas.as_ref())?;
        if let Identity::InsteadOfRoot(_) = identity {
            log::info!("Started as root, will change to nobody");
        }
        let quit = !config.pasta.no_netns_quit;
        let userns = &config.pasta.userns;
        let mut kept = CapabilitySet::empty();
        let guest = match &config.pasta.target {
            Target::Spawn { command } => {
                let command = self.spawn(config, command, identity)?;
                if let Identity::InsteadOfRoot(_) = identity
                    && *userns != Userns::None
                {
                    // Over the command's user namespace alone: root's command can be stopped by nobody else.
                    kept = CapabilitySet::KILL;
                }
                let pidfd = command.pidfd().try_clone().context("can't duplicate a descriptor")?;
                let namespace = Namespace::of_process(pidfd, command.pid());
                Guest { namespace, command: Some(command), watch: None }
            }
            Target::Pid(pid) => {
                change_identity(identity)?;
                let (namespace, watch) = join::process(*pid, userns, quit)?;
                Guest { namespace, command: None, watch }
            }
            Target::Netns(path) => {
                change_identity(identity)?;
                let (namespace, watch) = join::path(path, userns, quit)?;
                Guest { namespace, command: None, watch }
            }
        };
        Ok((Prepared::new(kept)?, guest))
    }

    /// Spawns the command as our caller, or as the user of `--runas`, and joins it in its user namespace.
    fn spawn(&self, config: &Config, command: &[OsString], identity: Identity) -> anyhow::Result<Spawned> {
        if let Identity::Asked(user) = identity {
            change_to(user)?;
        }
        let user_namespace = config.pasta.userns != Userns::None;
        let spawned = spawn(&Request {
            command,
            user_namespace,
            pid_namespace: !config.pasta.no_pidns,
            hostname: config.hostname.as_deref(),
            signals: &self.signals,
            open_files: &self.open_files,
        })?;
        // Not before the fork: root's command stays root's.
        if let Identity::InsteadOfRoot(user) = identity {
            change_to(user)?;
        }
        if user_namespace {
            move_into_thread_name_spaces(spawned.pidfd().as_fd(), ThreadNameSpaceType::USER)
                .context("can't join the command's user namespace")?;
        }
        Ok(spawned)
    }
}

fn change_identity(identity: Identity) -> anyhow::Result<()> {
    match identity {
        Identity::Callers => Ok(()),
        Identity::Asked(user) | Identity::InsteadOfRoot(user) => change_to(user),
    }
}

/// The user we stay, with rights over the guest's network namespace: now the link is made.
pub(crate) struct Prepared {
    kept: CapabilitySet,
    null: File,
}

impl Prepared {
    fn new(kept: CapabilitySet) -> anyhow::Result<Self> {
        // For the daemon to come, which may have no /dev to find it in.
        let null =
            OpenOptions::new().read(true).write(true).open("/dev/null").context("can't open /dev/null")?;
        logging::open_syslog();
        Ok(Self { kept, null })
    }

    /// Door: no privileges from here on.
    ///
    /// After the link, which needs them, and before anything of the guest is read. A root of our own without
    /// files and the filter of system calls belong here, too.
    pub(crate) fn confine(self) -> anyhow::Result<Confined> {
        rustix::process::chdir("/").context("can't change to the root directory")?;
        drop_capabilities(self.kept).context("can't drop capabilities")?;
        set_no_new_privs(true).context("can't rule out new privileges")?;
        // Nobody of the same user may look into the process.
        set_dumpable_behavior(DumpableBehavior::NotDumpable).context("can't close /proc/self to others")?;
        Ok(Confined { null: self.null })
    }
}

/// Leaves no capability but those `kept`, which are not effective until asked for.
fn drop_capabilities(kept: CapabilitySet) -> rustix::io::Result<()> {
    // An exec could give these back. It fails behind the last that the kernel knows; and with the first for who
    // has no right to drop them, which is no matter, as then new privileges are ruled out still.
    (0..u64::BITS)
        .map(|bit| CapabilitySet::from_bits_retain(1 << bit))
        .take_while(|capability| remove_capability_from_bounding_set(*capability).is_ok())
        .for_each(drop);
    let _ = clear_ambient_capability_set();
    let empty = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: empty, permitted: kept, inheritable: empty })
}

/// Without privileges.
pub(crate) struct Confined {
    null: File,
}

impl Confined {
    /// Door: to the background, unless `foreground`.
    ///
    /// After everything that can fail, since our caller takes the end of the process it started, with status 0, as
    /// the sign that the network is there; the PID file is complete by then (SPEC §1.3.1).
    pub(crate) fn detach(self, foreground: bool, pid_file: Option<PidFile>) -> anyhow::Result<Detached> {
        if foreground {
            pid_file.map_or(Ok(()), |file| file.write(getpid()))?;
            return Ok(Detached(()));
        }
        match sys::spawn::fork().context("can't fork to the background")? {
            Forked::Parent { pid } => {
                if let Err(error) = pid_file.map_or(Ok(()), |file| file.write(pid)) {
                    let _ = kill_process(pid, Signal::KILL);
                    return Err(error);
                }
                std::process::exit(0);
            }
            Forked::Child => {
                setsid().context("can't start a session")?;
                rustix::stdio::dup2_stdin(&self.null).context("can't leave standard input")?;
                rustix::stdio::dup2_stdout(&self.null).context("can't leave standard output")?;
                logging::leave_stderr();
                rustix::stdio::dup2_stderr(&self.null).context("can't leave standard error")?;
                Ok(Detached(()))
            }
        }
    }
}

/// Where it will stay: threads may be started now.
pub(crate) struct Detached(());

/// A PID file, opened with our caller's rights and written when there is a process to tell of (SPEC §1.3.6).
pub(crate) struct PidFile {
    path: PathBuf,
    file: File,
}

impl PidFile {
    /// Creates the file, for its owner alone, or empties the one there is.
    pub(crate) fn create(path: &Path) -> anyhow::Result<Self> {
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
        let file = file.with_context(|| format!("can't open PID file {} (--pid)", path.display()))?;
        Ok(Self { path: path.to_owned(), file })
    }

    fn write(mut self, pid: Pid) -> anyhow::Result<()> {
        let line = format!("{}\n", pid.as_raw_nonzero());
        self.file
            .write_all(line.as_bytes())
            .with_context(|| format!("can't write to PID file {} (--pid)", self.path.display()))
    }
}
