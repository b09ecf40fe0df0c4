//! The life of the process as one-way doors: each stage is a value that only the one before can be made into, so
//! that a privilege can only fall, and the compiler checks the order.
//!
//! [`Boot`] -> user and namespaces -> [`Prepared`] -> empty root -> [`Confined`] -> background -> [`Detached`] ->
//! threads -> [`Staffed`] -> capabilities -> [`Sealed`].
//!
//! The fork to the background comes behind the last namespace, since who has left for a PID namespace can start no
//! thread but can fork; it comes before the threads, which would not survive it, and these come before the
//! capabilities go, which they need to enter the guest's namespace. All of it can fail, so whoever started us waits
//! until we are sealed.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::process::{
    DumpableBehavior, Pid, Resource, Rlimit, Signal, WaitOptions, getpid, getrlimit, kill_process,
    set_dumpable_behavior, setrlimit, setsid, waitpid,
};
use rustix::thread::{CapabilitySet, ThreadNameSpaceType, capabilities, move_into_thread_name_spaces};
use sys::signal::Inherited;
use sys::spawn::{Forked, Namespaces, unshare};

use crate::config::{Config, Target, Userns};
use crate::host;
use crate::logging;
use crate::pasta::netns::{Namespace, Opener};
use crate::pasta::spawn::{Request, Spawned, spawn};
use crate::pasta::{Guest, join};
use crate::process::identity::{Identity, change_to};
use crate::process::sandbox::capabilities::renounce;
use crate::process::sandbox::landlock::Fence;
use crate::process::sandbox::seccomp::{self, Role};
use crate::process::sandbox::{namespaces, root};

/// Our caller's rights and surroundings. What needs them is done now: finding out about the host, binding ports,
/// opening files for output.
pub(crate) struct Boot {
    signals: Inherited,
    open_files: Rlimit,
}

impl Boot {
    /// First thing of all: rid of what our caller left open, but for `keep`, and with room for as many
    /// sockets as we may have.
    pub(crate) fn new(keep: Option<BorrowedFd<'_>>) -> anyhow::Result<Self> {
        sys::spawn::close_inherited(keep.map(|fd| fd.as_raw_fd()));
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

    /// Door: to the user we run as, where the guest is at a socket of ours, which our caller's rights have made.
    pub(crate) fn serve_socket(self, config: &Config) -> anyhow::Result<Prepared> {
        let identity = Identity::choose(config.runas.as_ref())?;
        if let Identity::InsteadOfRoot(_) = identity {
            log::info!("Started as root, will change to nobody");
        }
        change_identity(identity)?;
        // With rights over nothing but what is made in it.
        if let Err(error) = unshare(Namespaces::USER) {
            log::info!("No user namespace of our own: {error}");
        }
        Prepared::new(CapabilitySet::empty())
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

    /// Door: out of sight of the machine's files, and of its processes if we go to the background.
    ///
    /// After everything that opens a file; but `resolver` goes on seeing the directories that it holds.
    pub(crate) fn confine(
        self,
        how: Confine,
        resolver: Option<&mut host::Watch>,
    ) -> anyhow::Result<Confined> {
        let fence = match leave_files(how, resolver) {
            Ok(()) => None,
            Err(error) => {
                let fence = Fence::new([]).with_context(|| {
                    format!("can't leave the file system ({error:#}), and Landlock is not there to deny it")
                })?;
                log::info!("Files can't be put out of sight ({error:#}): Landlock denies them instead");
                Some(fence)
            }
        };
        Ok(Confined { kept: self.kept, null: self.null, foreground: how.foreground, fence })
    }
}

fn leave_files(how: Confine, resolver: Option<&mut host::Watch>) -> anyhow::Result<()> {
    namespaces::leave(!how.foreground)?;
    root::make_private()?;
    resolver.into_iter().for_each(host::Watch::keep_in_sight);
    root::enter_empty(how.chroot_fallback)
}

/// How to be out of sight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Confine {
    /// We stay in the foreground, and so in the PID namespace that we are in.
    pub(crate) foreground: bool,
    /// `--chroot-fallback`.
    pub(crate) chroot_fallback: bool,
}

/// In namespaces of our own, with an empty root; or about to be fenced off from all files, thread by thread.
pub(crate) struct Confined {
    kept: CapabilitySet,
    null: File,
    foreground: bool,
    fence: Option<Fence>,
}

impl Confined {
    /// Door: to the background, unless we stay. Our caller goes on waiting: see [`Sealed::announce`].
    pub(crate) fn detach(self, pid_file: Option<PidFile>) -> anyhow::Result<Detached> {
        if self.foreground {
            let herald = Herald::Foreground { pid_file };
            return Ok(Detached { kept: self.kept, fence: self.fence, herald });
        }
        let (child, mut caller) = UnixStream::pair().context("can't make a socket")?;
        match sys::spawn::fork().context("can't fork to the background")? {
            Forked::Parent { pid } => {
                drop(caller);
                leave_in_background(pid, child, pid_file)
            }
            Forked::Child => {
                drop(child);
                setsid().context("can't start a session")?;
                // For ourselves we are process 1.
                let mut pid = [0; 4];
                caller.read_exact(&mut pid).context("can't learn our process id")?;
                logging::set_pid(u32::from_ne_bytes(pid));
                let herald = Herald::Background { caller, null: self.null };
                Ok(Detached { kept: self.kept, fence: self.fence, herald })
            }
        }
    }
}

/// The end of the process that our caller started: once the one in the background says that the network is there,
/// with status 0, the PID file complete (behaviour §1.3.1).
fn leave_in_background(
    child: Pid,
    mut herald: UnixStream,
    pid_file: Option<PidFile>,
) -> anyhow::Result<Detached> {
    // If it can't be told any more, its end will be noticed.
    drop(herald.write_all(&child.as_raw_nonzero().get().to_ne_bytes()));
    if herald.read_exact(&mut [0]).is_err() {
        // It has said why.
        let status = waitpid(Some(child), WaitOptions::empty());
        if let Ok(Some((_, status))) = status
            && let Some(signal) = status.terminating_signal()
        {
            bail!("the process in the background was killed by signal {signal}");
        }
        std::process::exit(1);
    }
    if let Err(error) = pid_file.map_or(Ok(()), |file| file.write(child)) {
        let _ = kill_process(child, Signal::KILL);
        return Err(error);
    }
    std::process::exit(0);
}

/// Tells our caller that the network is there.
enum Herald {
    Foreground { pid_file: Option<PidFile> },
    Background { caller: UnixStream, null: File },
}

/// Where it will stay: threads may be started now.
pub(crate) struct Detached {
    kept: CapabilitySet,
    fence: Option<Fence>,
    herald: Herald,
}

impl Detached {
    /// Door: with all threads that there will be.
    pub(crate) fn staff(
        self,
        namespace: Option<Namespace>,
        resolver: Option<host::Watch>,
    ) -> anyhow::Result<(Staffed, Option<Opener>, Option<host::News>)> {
        let fenced = self.fence.is_some();
        let fence = |resolver: Option<&host::Watch>| -> anyhow::Result<Option<Fence>> {
            let readable = resolver.into_iter().flat_map(host::Watch::directories);
            if fenced { Fence::new(readable).map(Some) } else { Ok(None) }
        };
        // Ports below 1024 may come to be listened on in the namespace at any time (behaviour §8.4).
        let openers = fence(None)?;
        let keep_binding = || {
            let held = capabilities(None).context("can't read capabilities")?.permitted;
            let binding = CapabilitySet::NET_BIND_SERVICE;
            give_up(openers, held & binding, binding, Role::Opener)
        };
        let opener = namespace.map(|namespace| Opener::start(namespace, keep_binding)).transpose()?;
        let readers = fence(resolver.as_ref())?;
        let keep_nothing = || give_up(readers, CapabilitySet::empty(), CapabilitySet::empty(), Role::Reader);
        let news = resolver.map(|watch| watch.start(keep_nothing)).transpose()?;
        let role = if opener.is_some() { Role::Pasta } else { Role::Passt };
        Ok((Staffed { kept: self.kept, fence: self.fence, herald: self.herald, role }, opener, news))
    }
}

/// All threads run.
pub(crate) struct Staffed {
    kept: CapabilitySet,
    fence: Option<Fence>,
    herald: Herald,
    /// What the calling thread is there for.
    role: Role,
}

impl Staffed {
    /// Door: no privileges from here on.
    ///
    /// After all that needs them, and before anything of the guest is read.
    pub(crate) fn seal(self) -> anyhow::Result<Sealed> {
        // Nobody of the same user may look into the process.
        set_dumpable_behavior(DumpableBehavior::NotDumpable).context("can't close /proc/self to others")?;
        give_up(self.fence, self.kept, CapabilitySet::empty(), self.role)?;
        Ok(Sealed { herald: self.herald })
    }
}

/// What each thread does for itself before it does anything else: files if they are in sight, capabilities but those
/// `kept` (and `effective`), system calls but those of its role.
fn give_up(
    fence: Option<Fence>,
    kept: CapabilitySet,
    effective: CapabilitySet,
    role: Role,
) -> anyhow::Result<()> {
    fence.map_or(Ok(()), Fence::enter)?;
    renounce(kept, effective)?;
    seccomp::restrict(role)
}

/// Without privileges, and with no system call that it does not need.
pub(crate) struct Sealed {
    herald: Herald,
}

impl Sealed {
    /// Tells our caller that the network is there, and leaves its terminal if we are in the background.
    ///
    /// After everything that can fail.
    pub(crate) fn announce(self) -> anyhow::Result<()> {
        match self.herald {
            Herald::Foreground { pid_file } => pid_file.map_or(Ok(()), |file| file.write(getpid())),
            Herald::Background { mut caller, null } => {
                rustix::stdio::dup2_stdin(&null).context("can't leave standard input")?;
                rustix::stdio::dup2_stdout(&null).context("can't leave standard output")?;
                logging::leave_stderr();
                rustix::stdio::dup2_stderr(&null).context("can't leave standard error")?;
                caller.write_all(&[1]).context("can't tell that the network is there")
            }
        }
    }
}

/// A PID file, opened with our caller's rights and written when there is a process to tell of (behaviour §1.3.6).
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
