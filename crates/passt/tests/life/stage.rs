//! The harness of these tests: users, a working directory with the programs, guests, and running processes.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio};
use std::sync::{LazyLock, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Maximum time of every wait. It is long, because test machines are slow and shared.
const PATIENCE: Duration = Duration::from_secs(20);
/// The ID of an ordinary user. The account need not exist.
const ORDINARY: &str = "23456";

/// The user that runs pasta.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum User {
    /// Root of the machine.
    Root,
    /// A user without any privilege.
    Ordinary,
    /// Root of a user namespace that an ordinary user made.
    RootOfNamespace,
    /// A user without any privilege, in a user namespace that the ordinary user made who runs the tests. That user may inspect its
    /// processes even if they are not dumpable.
    OrdinaryOfNamespace,
}

impl User {
    pub(crate) const ALL: [Self; 3] = [Self::Root, Self::Ordinary, Self::RootOfNamespace];

    /// The users whose processes the test may inspect although they are not dumpable: it needs rights over the user namespace in
    /// which they have executed their program.
    fn visible() -> &'static [Self] {
        if is_root() { &Self::ALL } else { &[Self::RootOfNamespace, Self::OrdinaryOfNamespace] }
    }

    /// Runs `test` as each user that is available here, and reports the test as skipped for the others.
    pub(crate) fn each(test: impl Fn(Self)) {
        Self::each_of(&Self::ALL, test);
    }

    /// Like [`User::each`], for users whose processes the test may inspect.
    pub(crate) fn each_visible(test: impl Fn(Self)) {
        Self::each_of(Self::visible(), test);
    }

    /// Like [`User::each`], with a guest that the user has made. Root of a namespace is left out, since it would have
    /// to make the guest inside its namespace.
    pub(crate) fn each_with_guest(test: impl Fn(Self, Guest)) {
        Self::each_of(&[Self::Root, Self::Ordinary], |user| test(user, Guest::new(user)));
    }

    /// Like [`User::each_with_guest`], for users whose processes the test may inspect.
    pub(crate) fn each_visible_with_guest(test: impl Fn(Self, Guest)) {
        let users = Self::visible().iter().copied().filter(|user| *user != Self::RootOfNamespace);
        Self::each_of(&users.collect::<Vec<_>>(), |user| test(user, Guest::new(user)));
    }

    fn each_of(users: &[Self], test: impl Fn(Self)) {
        users.iter().copied().filter(|user| user.available()).for_each(|user| {
            eprintln!("as {user:?}:");
            test(user);
        });
    }

    /// Whether this user is available here. If not, reports the test as skipped.
    pub(crate) fn available(self) -> bool {
        let works = self.command("true").output().is_ok_and(|output| output.status.success());
        let works = works && (self != Self::Root || is_root());
        if !works {
            skipped(&format!("user {self:?} is not available"));
        }
        works
    }

    /// A command that runs `program` as this user.
    pub(crate) fn command(self, program: impl AsRef<Path>) -> Command {
        let prefix: &[&str] = match (self, is_root()) {
            (Self::Root, _) | (Self::Ordinary, false) => &[],
            (Self::OrdinaryOfNamespace, _) => {
                &["nsenter", "--target", without_privilege(), "--user", "--preserve-credentials"]
            }
            (Self::Ordinary, true) => {
                &["setpriv", "--reuid", ORDINARY, "--regid", ORDINARY, "--clear-groups"]
            }
            (Self::RootOfNamespace, false) => &["unshare", "-Ur"],
            (Self::RootOfNamespace, true) => {
                &["setpriv", "--reuid", ORDINARY, "--regid", ORDINARY, "--clear-groups", "unshare", "-Ur"]
            }
        };
        // A shell's background job ignores SIGINT, and the program would inherit this.
        let mut command = Command::new("env");
        command.arg("--default-signal=INT,QUIT,HUP,TERM").args(prefix).arg(program.as_ref());
        // Without this folder, the program under test makes no socket by which pesto of the machine would find it.
        command.stdin(Stdio::null()).env_remove("XDG_RUNTIME_DIR");
        command
    }
}

/// The ID of a process in a user namespace in which the user of the tests has another ID, and no privilege. It is one namespace for all
/// tests: a pasta can join a guest of its own namespace only. The process ends with this one.
fn without_privilege() -> &'static str {
    static HOLDER: LazyLock<(Mutex<Child>, String)> = LazyLock::new(|| {
        let map = |kind: &str| format!("--map-{kind}={ORDINARY}");
        let mut unshare = Command::new("unshare");
        unshare.args(["--user", &map("user"), &map("group"), "sh", "-c", "echo; exec cat"]);
        let mut child = unshare.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        // The namespace is complete when the shell has written a line. If the shell failed, the read ends, too.
        let _ = child.stdout.as_mut().unwrap().read(&mut [0]);
        let pid = child.id().to_string();
        (Mutex::new(child), pid)
    });
    &HOLDER.1
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A temporary directory to which every user can write, with programs that every user can execute.
pub(crate) struct Stage {
    dir: TempDir,
}

impl Stage {
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("pasta-life-").tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        // Another process copies the program. If this process copied it, a child that another test forks could inherit
        // the descriptor that is open for writing, and executing the file would fail with ETXTBSY.
        let mut install = Command::new("install");
        install.args(["-m", "755", env!("CARGO_BIN_EXE_pasta")]).arg(dir.path().join("pasta"));
        assert!(install.status().unwrap().success());
        std::os::unix::fs::symlink("pasta", dir.path().join("passt")).unwrap();
        Self { dir }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A command that runs pasta as `user`, without arguments yet.
    pub(crate) fn pasta(&self, user: User) -> Command {
        self.program("pasta", user)
    }

    fn program(&self, name: &str, user: User) -> Command {
        let mut command = user.command(self.path(name));
        command.current_dir(self.dir.path());
        command
    }

    /// A command that runs passt as `user`, without arguments yet.
    pub(crate) fn passt(&self, user: User) -> Command {
        self.program("passt", user)
    }

    /// Runs pasta with `args` to its end.
    pub(crate) fn run(&self, user: User, args: &[&str]) -> Output {
        self.pasta(user).args(args).output().unwrap()
    }

    /// Runs the shell script `script` as pasta's command, to its end.
    pub(crate) fn run_script(&self, user: User, options: &[&str], script: &str) -> Output {
        self.pasta(user).args(options).args(["--", "sh", "-c", script]).output().unwrap()
    }

    /// Attaches pasta with `args`, and waits until it is in the background.
    pub(crate) fn attach(&self, user: User, args: &[&str]) -> Daemon {
        self.start("pasta", user, args)
    }

    /// Starts passt with `args`, and waits until it is in the background.
    pub(crate) fn serve(&self, user: User, args: &[&str]) -> Daemon {
        self.start("passt", user, args)
    }

    fn start(&self, program: &str, user: User, args: &[&str]) -> Daemon {
        let pid_file = self.path(&format!("pid-{}", unique()));
        let output = self.program(program, user).arg("--pid").arg(&pid_file).args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
        let mut daemon = Daemon::of(pid_file);
        daemon.output = stderr(&output) + &stdout(&output);
        daemon
    }
}

/// A pasta or passt in the background. Dropping the value kills it.
pub(crate) struct Daemon {
    pub(crate) pid: i32,
    pub(crate) pid_file: PathBuf,
    /// The output of its start.
    pub(crate) output: String,
}

impl Daemon {
    /// The process that has just gone to the background and written this PID file.
    pub(crate) fn of(pid_file: PathBuf) -> Self {
        // The file must be complete when the start returns (behaviour §1.3.1).
        let text = fs::read_to_string(&pid_file).unwrap();
        let pid = text.strip_suffix('\n').unwrap().parse().unwrap();
        assert!(lives(pid), "the PID file names no running process");
        Self { pid, pid_file, output: String::new() }
    }

    pub(crate) fn lives(&self) -> bool {
        lives(self.pid)
    }

    /// Waits until the process has ended.
    pub(crate) fn assert_ends(&self) {
        assert!(eventually(|| !self.lives()), "pasta is still running");
    }

    /// A field of `/proc/PID/status`.
    pub(crate) fn status(&self, field: &str) -> String {
        status(self.pid, field)
    }

    pub(crate) fn send(&self, signal: rustix::process::Signal) {
        send(self.pid, signal);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.lives() {
            send(self.pid, rustix::process::Signal::KILL);
        }
    }
}

/// An idle process in a new network namespace and, unless root made it, a new user namespace.
pub(crate) struct Guest {
    child: Child,
    stdin: Option<ChildStdin>,
}

impl Guest {
    /// Makes a guest as `user`.
    pub(crate) fn new(user: User) -> Self {
        Self::within(user, &[])
    }

    /// Like [`Guest::new`], but the process is in one more user namespace, which is nested in the owner of its network
    /// namespace.
    pub(crate) fn nested(user: User) -> Self {
        Self::within(user, &["unshare", "-U"])
    }

    /// Makes a guest. The command `enter` starts its process.
    fn within(user: User, enter: &[&str]) -> Self {
        let options = if user == User::Root { "-n" } else { "-Urn" };
        let mut command = user.command("unshare");
        command.arg(options).args(enter).args(["sh", "-c", "echo ready; exec cat"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let stdin = child.stdin.take();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "no namespaces for {user:?}");
        Self { child, stdin }
    }

    pub(crate) fn pid(&self) -> String {
        self.child.id().to_string()
    }

    pub(crate) fn namespace(&self, kind: &str) -> String {
        format!("/proc/{}/ns/{kind}", self.child.id())
    }

    /// Names of the guest's network interfaces.
    pub(crate) fn interfaces(&self) -> Vec<String> {
        let text = fs::read_to_string(format!("/proc/{}/net/dev", self.child.id())).unwrap();
        text.lines().filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect()
    }

    pub(crate) fn end(&mut self) {
        drop(self.stdin.take());
        self.child.wait().unwrap();
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let _ = self.child.wait();
    }
}

/// A pasta in the foreground. Dropping the value kills it.
pub(crate) struct Running {
    child: Child,
    /// The standard input is kept outside `child`, because `Child::wait` would close it.
    stdin: Option<ChildStdin>,
}

impl Running {
    pub(crate) fn new(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stdin = child.stdin.take();
        Self { child, stdin }
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    /// The next line of the process's standard output.
    pub(crate) fn line(&mut self) -> String {
        line(self.child.stdout.as_mut().unwrap())
    }

    /// The next line of the process's standard error.
    pub(crate) fn error_line(&mut self) -> String {
        line(self.child.stderr.as_mut().unwrap())
    }

    pub(crate) fn send(&self, signal: rustix::process::Signal) {
        send(self.pid(), signal);
    }

    /// Writes to the process's standard input, which must be a pipe.
    pub(crate) fn write(&mut self, octets: &[u8]) {
        self.stdin.as_mut().unwrap().write_all(octets).unwrap();
    }

    /// Waits until the process has ended.
    pub(crate) fn end(&mut self) -> ExitStatus {
        let ended = eventually(|| self.child.try_wait().unwrap().is_some());
        assert!(ended, "pasta is still running");
        let status = self.child.wait().unwrap();
        assert_ne!(status.signal(), Some(31), "killed by the seccomp filter (SIGSYS)");
        status
    }

    /// The rest of the process's standard error. Must be called after the process has ended.
    pub(crate) fn rest_of_errors(&mut self) -> String {
        let mut text = String::new();
        self.child.stderr.as_mut().unwrap().read_to_string(&mut text).unwrap();
        text
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads exactly one line.
fn line(from: &mut impl Read) -> String {
    let mut line = Vec::new();
    let mut octet = [0];
    while from.read(&mut octet).unwrap() == 1 && octet != *b"\n" {
        line.push(octet[0]);
    }
    String::from_utf8(line).unwrap()
}

/// Whether the process runs. A zombie counts as not running.
pub(crate) fn lives(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|text| {
        !text.lines().any(|line| line.starts_with("State:\tZ") || line.starts_with("State:\tX"))
    })
}

/// A field of a process's `/proc/PID/status`.
pub(crate) fn status(pid: i32, field: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(":\t"));
    line.unwrap_or_else(|| panic!("no {field} in the status of {pid}")).to_owned()
}

pub(crate) fn send(pid: i32, signal: rustix::process::Signal) {
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// Processes that have `text` in their command lines.
pub(crate) fn processes_with(text: &str) -> Vec<String> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().into_string().ok()?.parse::<i32>().ok());
    let lines = pids.filter_map(|pid| {
        let line =
            String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/cmdline")).ok()?).replace('\0', " ");
        Some((pid, line))
    });
    lines.filter(|(pid, line)| line.contains(text) && lives(*pid)).map(|(_, line)| line).collect()
}

/// Polls `condition`. Returns true when the condition is true, and false if it is not true within [`PATIENCE`].
pub(crate) fn eventually(mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        if Instant::now() > end {
            return false;
        }
        thread::sleep(Duration::from_millis(5));
    }
    true
}

pub(crate) fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Reports on the real standard error, which the test runner does not capture, that this test is skipped.
///
/// # Panics
/// If `CI` is set: then no test may be skipped.
#[track_caller]
pub(crate) fn skipped(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "would be skipped, but CI is set: {why}");
    let line = format!("SKIPPED: {}: {why}\n", thread::current().name().unwrap_or("?"));
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}

/// A text that no other test on this machine uses.
pub(crate) fn unique() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}
