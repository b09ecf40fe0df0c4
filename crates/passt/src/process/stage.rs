//! The stages of the process. Each stage is a value that only the previous stage can be converted to: rights can only
//! be given up, and the compiler checks the order.
//!
//! [`Boot`] -> user and namespaces -> [`Prepared`] -> empty root -> [`Confined`] -> background -> [`Detached`] ->
//! threads -> [`Staffed`] -> capabilities -> [`Sealed`].
//!
//! The order follows from the kernel's rules. A process that has unshared its PID namespace can't start threads until
//! it has forked, so the fork to the background comes after the last new namespace. Threads do not survive a fork, so
//! threads are started after the fork. The threads need capabilities to enter the guest's namespace, so the
//! capabilities are given up last. Each of these steps can fail, so the caller waits until the process is sealed.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use rustix::process::{
    DumpableBehavior, Pid, Resource, Rlimit, Signal, WaitOptions, getpid, getrlimit, kill_process,
    parent_process_death_signal, set_dumpable_behavior, set_parent_process_death_signal, setrlimit, setsid,
    waitpid,
};
use rustix::thread::{CapabilitySet, ThreadNameSpaceType, capabilities, move_into_thread_name_spaces};
use sys::signal::Inherited;
use sys::spawn::{Forked, Namespaces, unshare};

use super::identity::{Identity, change_to};
use super::made_files::MadeFiles;
use super::pid_file::PidFile;
use super::sandbox::capabilities::reduce_to;
use super::sandbox::landlock::FileRules;
use super::sandbox::seccomp::{self, Role};
use super::sandbox::{namespaces, root};
use super::service::{PassedSockets, ServiceManager};
use crate::api;
use crate::causes::Causes;
use crate::config::{ApiSocket, Config, GuestLink, Mode, Target, Userns};
use crate::errno::retry;
use crate::host;
use crate::logging;
use crate::pasta::netns::{Namespace, Opener};
use crate::pasta::quit::Watch;
use crate::pasta::spawn::{Request, Spawned, spawn};
use crate::pasta::{Guest, join};

/// Blocks from this size on have pages of their own, in bytes: the tables of many flows, and buffers.
const LARGE_BLOCK: u16 = 32 << 10;

/// The caller's rights and environment. Every step that needs them belongs to this stage: reading the host's
/// configuration, binding ports, opening files for output.
pub(crate) struct Boot {
    identity: Identity,
    signals: Inherited,
    open_files: Rlimit,
    guest_socket: Option<OwnedFd>,
    /// `--api-fd`.
    api_socket: Option<OwnedFd>,
    /// `--exit-fd`.
    exit: Option<OwnedFd>,
    readers: Readers,
    sockets: PassedSockets,
    /// The signal that the caller has chosen for the case that it ends first (prctl(2), PR_SET_PDEATHSIG).
    death_signal: Option<Signal>,
}

impl Boot {
    /// Must be called first. Closes inherited descriptors, except those of options (`--fd`, `--api-fd`,
    /// `--exit-fd`, `--ready-fd`) and those of the service manager, and raises the limit of open files.
    ///
    /// # Errors
    /// A descriptor is not open or of the wrong kind, or signal dispositions can't be read.
    pub(crate) fn new(config: &Config) -> anyhow::Result<Self> {
        // pasta finds namespaces there, and tells the kernel about those of its command.
        let needs_proc = config.mode != Mode::Passt;
        ensure!(!needs_proc || Path::new("/proc/self").exists(), "/proc is not mounted: mount it");
        let guest_socket = match config.passt.link {
            GuestLink::Fd(fd) => Some(inherited(fd, "--fd")?),
            GuestLink::Path(_) | GuestLink::Probe => None,
        };
        let api_socket = match config.api {
            Some(ApiSocket::Fd(fd)) => Some(inherited(fd, "--api-fd")?),
            Some(ApiSocket::Path(_) | ApiSocket::Registry) | None => None,
        };
        let slirp4netns = &config.slirp4netns;
        let exit = slirp4netns.exit_fd.map(|fd| inherited(fd, "--exit-fd")).transpose()?;
        let ready = slirp4netns.ready_fd.map(|fd| inherited(fd, "--ready-fd")).transpose()?;
        let kept = [&guest_socket, &api_socket, &exit, &ready].into_iter().flatten().map(AsRawFd::as_raw_fd);
        let sockets = PassedSockets::inherited()?;
        sys::spawn::close_inherited(&kept.chain(sockets.descriptors()).collect::<Vec<_>>());
        // A command reports itself when it is ready.
        let has_command = matches!(config.pasta.target, Target::Spawn { .. }) && config.mode == Mode::Pasta;
        let manager = if has_command { None } else { ServiceManager::of_this_process() };
        let readers = Readers { ready, manager };
        sys::heap::share();
        sys::heap::map_blocks_from(LARGE_BLOCK);
        let signals = Inherited::take().context("can't take over signal dispositions")?;
        let open_files = getrlimit(Resource::Nofile);
        let raised = Rlimit { current: open_files.maximum, maximum: open_files.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            log::debug!("can't raise the limit of open files: {error}");
        }
        let death_signal = parent_process_death_signal().ok().flatten().filter(|_| config.foreground);
        let identity = Identity::choose(config.runas.as_ref())?;
        Ok(Self {
            identity,
            signals,
            open_files,
            guest_socket,
            api_socket,
            exit,
            readers,
            sockets,
            death_signal,
        })
    }

    /// The guest's socket, if the caller has opened it (`--fd`).
    pub(crate) fn take_guest_socket(&mut self) -> Option<OwnedFd> {
        self.guest_socket.take()
    }

    /// The sockets that the service manager has opened.
    pub(crate) fn take_sockets(&mut self) -> PassedSockets {
        std::mem::take(&mut self.sockets)
    }

    /// Whether the process keeps its user.
    pub(crate) fn keeps_user(&self) -> bool {
        self.identity == Identity::Callers
    }

    /// The API socket, if the caller has opened it (`--api-fd`).
    pub(crate) fn take_api_socket(&mut self) -> Option<OwnedFd> {
        self.api_socket.take()
    }

    /// Next stage: the process runs under its final user, and has rights over the guest's namespace.
    ///
    /// Must be called before any thread exists: a process with two threads can't change its user namespace. Must be
    /// called after every step that needs the caller's rights over the host: the process loses these rights here.
    ///
    /// With rules by name, a command that is spawned resolves names by the servers `resolvers` only.
    ///
    /// # Errors
    /// The user, the command or the namespace can't be used.
    pub(crate) fn prepare(
        mut self,
        config: &Config,
        resolvers: Option<&[IpAddr]>,
    ) -> anyhow::Result<(Prepared, Guest)> {
        let identity = self.identity;
        if let Identity::InsteadOfRoot(_) = identity {
            log::info!("Started as root, will change to nobody");
        }
        let (mut kept, mut guest) = match config.mode {
            Mode::Pasta | Mode::Slirp4netns => self.join_guest(config, identity, resolvers)?,
            Mode::Passt => (CapabilitySet::empty(), serve_socket(identity)?),
        };
        if let Some(exit) = self.exit.take() {
            guest.watch = Some(Watch::descriptor(exit));
        }
        if config.slirp4netns.api_socket.is_some() {
            // A client of root may request to forward a port below 1024.
            let held = capabilities(None).context("can't read capabilities")?.permitted;
            kept |= held & CapabilitySet::NET_BIND_SERVICE;
        }
        let Self { readers, death_signal, .. } = self;
        Ok((Prepared::new(kept, readers, death_signal)?, guest))
    }

    /// Finds or creates the guest's namespace, and changes user. Also returns the capabilities to keep.
    fn join_guest(
        &self,
        config: &Config,
        identity: Identity,
        resolvers: Option<&[IpAddr]>,
    ) -> anyhow::Result<(CapabilitySet, Guest)> {
        let quit = !config.pasta.no_netns_quit;
        let userns = &config.pasta.userns;
        let mut kept = CapabilitySet::empty();
        let guest = match &config.pasta.target {
            Target::Spawn { command } => {
                let command = self.spawn(config, command, identity, resolvers)?;
                if let Identity::InsteadOfRoot(_) = identity
                    && *userns != Userns::None
                {
                    // The capability applies only to the command's user namespace. Without it, this process could not
                    // forward signals to root's command.
                    kept = CapabilitySet::KILL;
                }
                let pidfd = command.pidfd().try_clone().context("can't duplicate a descriptor")?;
                let namespace = Some(Namespace::of_process(pidfd, command.pid()));
                Guest { namespace, command: Some(command), watch: None }
            }
            Target::Pid(pid) => {
                change_identity(identity)?;
                let (namespace, watch) = join::process(*pid, userns, quit)?;
                Guest { namespace: Some(namespace), command: None, watch }
            }
            Target::Netns(path) => {
                change_identity(identity)?;
                let (namespace, watch) = join::path(path, userns, quit)?;
                Guest { namespace: Some(namespace), command: None, watch }
            }
        };
        Ok((kept, guest))
    }

    /// Spawns the command as the caller, or as the user of `--runas`. Joins the command's user namespace.
    fn spawn(
        &self,
        config: &Config,
        command: &[OsString],
        identity: Identity,
        resolvers: Option<&[IpAddr]>,
    ) -> anyhow::Result<Spawned> {
        if let Identity::Asked(user) = identity {
            change_to(user)?;
        }
        let user_namespace = config.pasta.userns != Userns::None;
        let spawned = spawn(&Request {
            command,
            user_namespace,
            pid_namespace: !config.pasta.no_pidns,
            hostname: config.hostname.as_deref(),
            resolvers,
            signals: &self.signals,
            open_files: &self.open_files,
        })?;
        // The user is not changed before the fork: a command of root must still run as root.
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

/// The descriptor `fd`, which the caller has opened for `option`.
fn inherited(fd: RawFd, option: &str) -> anyhow::Result<OwnedFd> {
    sys::spawn::inherited(fd).with_context(|| format!("can't use descriptor {fd} ({option})"))
}

fn change_identity(identity: Identity) -> anyhow::Result<()> {
    match identity {
        Identity::Callers => Ok(()),
        Identity::Asked(user) | Identity::InsteadOfRoot(user) => change_to(user),
    }
}

/// Changes user for a guest that connects only by a socket. If the process creates its own user namespace, it has
/// rights over nothing outside this namespace.
fn serve_socket(identity: Identity) -> anyhow::Result<Guest> {
    change_identity(identity)?;
    if let Err(error) = unshare(Namespaces::USER) {
        log::info!("No user namespace of this process's own: {error}");
    }
    Ok(Guest::default())
}

/// The values that each stage passes to the next stage.
struct Carried {
    /// Capabilities that stay permitted until the process ends.
    kept: CapabilitySet,
    /// `/dev/null`, for the standard streams in the background. It is opened early: it can't be opened later.
    null: File,
    /// Denies access to files. Used if the root directory could not be replaced.
    file_rules: Option<FileRules>,
    /// The process that waits for this process in the background. `None` in the foreground.
    caller: Option<UnixStream>,
    /// The PID file that this process must write. In the background, the waiting process writes the file.
    pid_file: Option<PidFile>,
    /// The files that the start has made. They are removed if it fails.
    made: MadeFiles,
    readers: Readers,
    /// The signal for the end of the caller. The kernel forgets it when the process changes its user.
    death_signal: Option<Signal>,
}

/// Those that wait for the report that the network is ready, besides the caller.
struct Readers {
    /// `--ready-fd`.
    ready: Option<OwnedFd>,
    manager: Option<ServiceManager>,
}

/// The process runs under its final user, and has rights over the guest's network namespace. The link is created in
/// this stage.
pub(crate) struct Prepared(Carried);

impl Prepared {
    fn new(kept: CapabilitySet, readers: Readers, death_signal: Option<Signal>) -> anyhow::Result<Self> {
        let null =
            OpenOptions::new().read(true).write(true).open("/dev/null").context("can't open /dev/null")?;
        logging::open_syslog();
        Ok(Self(Carried {
            kept,
            null,
            file_rules: None,
            caller: None,
            pid_file: None,
            made: MadeFiles::default(),
            readers,
            death_signal,
        }))
    }

    /// Next stage: the process has no access to the machine's files and, in the background, no access to its processes.
    ///
    /// Must be called after every step that opens a file. `resolver` keeps access to the directories that it holds, `api` to
    /// the folder of its socket. Without this access, the socket is given up.
    ///
    /// # Errors
    /// The root directory can't be replaced, and the kernel has no Landlock to deny access to the root directory.
    pub(crate) fn confine(
        mut self,
        config: &Config,
        resolver: Option<&mut host::Watch>,
        api: &mut Option<api::Start>,
    ) -> anyhow::Result<Confined> {
        if let Err(error) = replace_root(config, resolver, api) {
            let rules = FileRules::new([], []).with_context(|| {
                format!(
                    "can't leave the file system ({}), and Landlock is not there to deny it",
                    Causes(&error)
                )
            })?;
            log::info!("Can't replace the root directory ({}): using Landlock instead", Causes(&error));
            self.0.file_rules = Some(rules);
        }
        Ok(Confined(self.0))
    }
}

fn replace_root(
    config: &Config,
    resolver: Option<&mut host::Watch>,
    api: &mut Option<api::Start>,
) -> anyhow::Result<()> {
    namespaces::leave(!config.foreground)?;
    root::make_private()?;
    resolver.into_iter().for_each(host::Watch::keep_accessible);
    if let Some(file) = api.as_mut().and_then(api::Start::file)
        && let Err(errno) = file.keep_accessible()
    {
        log::debug!("No API socket: can't keep its folder accessible: {errno}");
        api.iter_mut().for_each(|api| api.entry = None);
    }
    root::enter_empty(config.chroot_fallback)
}

/// The process has new namespaces and an empty root directory. If the root directory could not be replaced, each thread
/// will deny itself access to all files.
pub(crate) struct Confined(Carried);

impl Confined {
    /// Next stage: the process is in the background, unless `--foreground` was given. The caller continues to wait, see
    /// [`Sealed::announce`].
    ///
    /// # Errors
    /// The process can't fork, or the process that waits has ended.
    pub(crate) fn detach(
        self,
        config: &Config,
        pid_file: Option<PidFile>,
        made: MadeFiles,
        api: Option<&mut api::Start>,
    ) -> anyhow::Result<Detached> {
        if config.foreground {
            api.into_iter().for_each(|api| api.set_pid(std::process::id()));
            return Ok(Detached(Carried { pid_file, made, ..self.0 }));
        }
        let (child, mut caller) = UnixStream::pair().context("can't make a socket")?;
        match sys::spawn::fork().context("can't fork to the background")? {
            Forked::Parent { pid } => {
                drop(caller);
                leave_in_background(pid, child, pid_file, made, self.0.readers.manager)
            }
            Forked::Child => {
                drop(child);
                setsid().context("can't start a session")?;
                // In its PID namespace, this process has the process ID 1.
                let mut pid = [0; 4];
                caller.read_exact(&mut pid).context("can't learn our process id")?;
                let pid = u32::from_ne_bytes(pid);
                logging::set_pid(pid);
                api.into_iter().for_each(|api| api.set_pid(pid));
                Ok(Detached(Carried { caller: Some(caller), made, ..self.0 }))
            }
        }
    }
}

/// Ends the process that the caller started, with status 0, when the process in the background reports that the network
/// is ready and the PID file is complete (behaviour §1.3.1).
fn leave_in_background(
    child: Pid,
    mut background: UnixStream,
    pid_file: Option<PidFile>,
    made: MadeFiles,
    manager: Option<ServiceManager>,
) -> anyhow::Result<Detached> {
    let pid = child.as_raw_nonzero().get().to_ne_bytes();
    let reported = background.write_all(&pid).and_then(|()| background.read_exact(&mut [0]));
    if let Err(error) = reported {
        let ended = matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe);
        if !ended {
            let _ = kill_process(child, Signal::KILL);
        }
        // Without this end, the process in the background does not wait for its process ID for ever.
        drop(background);
        let status = waitpid(Some(child), WaitOptions::empty());
        if !ended {
            return Err(error).context("can't exchange messages with the process in the background");
        }
        // That process has reported the reason itself, unless a signal killed it.
        if let Ok(Some((_, status))) = status
            && let Some(signal) = status.terminating_signal()
        {
            bail!("the process in the background was killed by signal {signal}");
        }
        // The other process has not removed them if it had given up the right to.
        drop(made);
        std::process::exit(1);
    }
    if let Err(error) = pid_file.map_or(Ok(()), |file| file.write(child)) {
        let _ = kill_process(child, Signal::KILL);
        return Err(error);
    }
    manager.iter().for_each(|manager| manager.report_ready(Some(child)));
    std::process::exit(0);
}

/// The process will not fork again, so threads can be started.
pub(crate) struct Detached(Carried);

/// Handles by which the main thread uses the other threads.
pub(crate) struct Threads {
    /// Opens sockets in the guest's namespace, if the guest has one.
    pub(crate) opener: Option<Opener>,
    /// Reports changes of resolv.conf, if a setting depends on the file.
    pub(crate) news: Option<host::News>,
    /// Asks on behalf of the clients of the API socket, if there is one.
    pub(crate) api: Option<api::ShardEnd>,
}

impl Detached {
    /// Next stage: all threads run. Each thread has given up the rights that it does not need; the API thread has done so in
    /// the next stage.
    ///
    /// # Errors
    /// A thread can't be started, can't enter the namespace, or can't give up its rights.
    pub(crate) fn staff(
        self,
        namespace: Option<Namespace>,
        resolver: Option<host::Watch>,
        api: Option<api::Start>,
    ) -> anyhow::Result<(Staffed, Threads)> {
        let opener = namespace.map(|namespace| self.start_opener(namespace)).transpose()?;
        let news = resolver.map(|resolver| self.start_reader(resolver)).transpose()?;
        let (api, api_ready) = api.map(|api| self.start_api(api)).transpose()?.unzip();
        let role = if opener.is_some() { Role::Pasta } else { Role::Passt };
        Ok((Staffed { carried: self.0, role, api_ready }, Threads { opener, news, api }))
    }

    fn start_opener(&self, namespace: Namespace) -> anyhow::Result<Opener> {
        let rules = self.file_rules(None)?;
        Opener::start(namespace, || {
            // The thread may have to listen on a port below 1024 at any time (behaviour §8.4).
            let binding = CapabilitySet::NET_BIND_SERVICE;
            let held = capabilities(None).context("can't read capabilities")?.permitted;
            drop_rights(rules, held & binding, binding, Role::Opener)
        })
    }

    fn start_reader(&self, resolver: host::Watch) -> anyhow::Result<host::News> {
        let rules = self.file_rules(Some(&resolver))?;
        let none = CapabilitySet::empty();
        resolver.start(move || drop_rights(rules, none, none, Role::Reader))
    }

    fn start_api(&self, mut api: api::Start) -> anyhow::Result<(api::ShardEnd, api::Ready)> {
        let folder = api.file().map(|file| file.folder());
        let rules = self.0.file_rules.as_ref().map(|_| FileRules::new([], folder)).transpose()?;
        let none = CapabilitySet::empty();
        api::start(api, move || drop_rights(rules, none, none, Role::Api))
    }

    /// The rules for another thread, if rules are needed: Landlock restricts each thread separately.
    fn file_rules(&self, resolver: Option<&host::Watch>) -> anyhow::Result<Option<FileRules>> {
        let readable = resolver.into_iter().flat_map(host::Watch::directories);
        self.0.file_rules.as_ref().map(|_| FileRules::new(readable, [])).transpose()
    }
}

/// All threads are running.
pub(crate) struct Staffed {
    carried: Carried,
    /// The role of the calling thread.
    role: Role,
    /// Tells when the API thread has given up its rights.
    api_ready: Option<api::Ready>,
}

impl Staffed {
    /// Next stage: the process has no rights.
    ///
    /// Must be called after every step that needs rights, and before data from the guest are read. In the foreground,
    /// it writes the PID file.
    ///
    /// # Errors
    /// A right can't be given up, or the PID file can't be written.
    pub(crate) fn seal(mut self) -> anyhow::Result<Sealed> {
        // Other processes of the same user must not be able to trace this process or to read its memory.
        set_dumpable_behavior(DumpableBehavior::NotDumpable).context("can't close /proc/self to others")?;
        if let Some(signal) = self.carried.death_signal {
            set_parent_process_death_signal(Some(signal))
                .context("can't restore the signal for the caller's end")?;
        }
        let rules = self.carried.file_rules.take();
        self.api_ready.map_or(Ok(()), api::Ready::wait)?;
        // From now on, the files that the start has made can't be removed. In the background, the process that waits
        // writes the PID file, and removes files.
        self.carried.pid_file.take().map_or(Ok(()), |file| file.write(getpid()))?;
        // CAP_KILL is needed for single calls only, see `Lifetime`.
        drop_rights(rules, self.carried.kept, CapabilitySet::NET_BIND_SERVICE, self.role)?;
        std::mem::take(&mut self.carried.made).keep();
        Ok(Sealed(self.carried))
    }
}

/// Each thread calls this function before it starts its work. The thread loses access to files, all capabilities except
/// `kept` (of which `effective` are in effect), and all system calls except those of its role.
fn drop_rights(
    rules: Option<FileRules>,
    kept: CapabilitySet,
    effective: CapabilitySet,
    role: Role,
) -> anyhow::Result<()> {
    rules.map_or(Ok(()), FileRules::enforce)?;
    reduce_to(kept, effective)?;
    seccomp::restrict(role)
}

/// The process has no rights left, and can make only the system calls that it needs.
pub(crate) struct Sealed(Carried);

impl Sealed {
    /// Reports to the caller that the network is ready. In the background, the process leaves the caller's terminal
    /// first.
    ///
    /// Must be called after every step that can fail.
    ///
    /// # Errors
    /// The standard streams can't be replaced.
    pub(crate) fn announce(self) -> anyhow::Result<()> {
        let Carried { caller, null, readers: Readers { ready, manager }, .. } = self.0;
        let Some(mut caller) = caller else {
            if let Some(Err(error)) = ready.map(|ready| File::from(ready).write_all(b"1")) {
                // The network is ready, even if the caller does not wait for it any more.
                log::warn!("can't write to the descriptor of --ready-fd: {error}");
            }
            manager.iter().for_each(|manager| manager.report_ready(None));
            return Ok(());
        };
        retry(|| rustix::stdio::dup2_stdin(&null)).context("can't leave standard input")?;
        retry(|| rustix::stdio::dup2_stdout(&null)).context("can't leave standard output")?;
        retry(|| rustix::stdio::dup2_stderr(&null)).context("can't leave standard error")?;
        // Only now, so that the caller sees the errors above.
        logging::limit_stderr(log::LevelFilter::Off);
        caller.write_all(&[1]).context("can't report that the network is ready")
    }
}
