//! The program under test: its path, its start, and the state of its process.

use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

use super::net::{Net, User};
use super::ns::{Finished, Ns, Running};
use super::{skipped, wait_until};

/// The path of `pesto` or `qrap`, which are in other packages of the workspace. Cargo builds only the programs of the
/// package under test. So this function builds the program, once in each test process, unless `E2E_COMPANIONS` names the
/// folder of programs that have been built.
///
/// # Panics
/// If the program can't be built.
pub(crate) fn companion(name: &'static str) -> &'static str {
    const NAMES: [&str; 2] = ["pesto", "qrap"];
    static PATHS: LazyLock<[String; 2]> = LazyLock::new(|| {
        if let Ok(folder) = std::env::var("E2E_COMPANIONS") {
            return NAMES.map(|name| format!("{folder}/{name}"));
        }
        let folder = Path::new(env!("CARGO_BIN_EXE_passt")).parent().unwrap();
        let profile = if folder.ends_with("release") { "release" } else { "dev" };
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--profile", profile, "-p", "pesto", "-p", "qrap"]);
        let output = build.current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        NAMES.map(|name| folder.join(name).to_str().unwrap().to_owned())
    });
    PATHS.iter().find(|path| path.ends_with(name)).unwrap()
}

/// The program's path on the machine.
pub(crate) fn path() -> String {
    std::env::var("PASTA_UNDER_TEST").unwrap_or_else(|_| env!("CARGO_BIN_EXE_pasta").to_owned())
}

/// The path of `passt`, which is beside `pasta`.
pub(crate) fn passt_path() -> String {
    Path::new(&path()).with_file_name("passt").to_str().unwrap().to_owned()
}

/// A `pasta` or `passt` in the background that is ready to serve its guest.
pub(crate) struct Daemon<'a> {
    net: &'a Net,
    /// Its process id in the test's PID namespace.
    pub(crate) pid: u32,
}

impl Daemon<'_> {
    /// Whether the process runs. A zombie counts as not running.
    pub(crate) fn runs(&self) -> bool {
        runs(&self.net.host, self.pid)
    }

    pub(crate) fn signal(&self, name: &str) {
        self.net.host.sh(&format!("kill -{name} {}", self.pid));
    }

    /// Ends the process with SIGTERM, like a service manager, and waits until it has ended.
    pub(crate) fn terminate(&self) {
        self.signal("TERM");
        wait_until("pasta to end", || !self.runs());
    }

    /// Its resident memory, in KiB.
    pub(crate) fn memory_kib(&self) -> u64 {
        memory_kib(&self.net.host, self.pid)
    }

    /// Number of its open descriptors.
    pub(crate) fn descriptors(&self) -> usize {
        descriptors(&self.net.host, self.pid)
    }
}

/// A script that enters the user namespace of the set-up, and executes a command.
const ENTER_USER: &str = r#"exec nsenter --target $(cat /run/user.pid) --user --preserve-credentials "$@""#;

/// Resident memory of a process of the test's PID namespace, in KiB.
pub(crate) fn memory_kib(host: &Ns, pid: u32) -> u64 {
    let status = host.sh(&format!("cat /proc/{pid}/status"));
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Number of open descriptors of a process of the test's PID namespace.
pub(crate) fn descriptors(host: &Ns, pid: u32) -> usize {
    host.sh(&format!("ls /proc/{pid}/fd | wc -l")).trim().parse().unwrap()
}

/// Whether a process of the test's PID namespace runs. A zombie counts as not running.
pub(crate) fn runs(host: &Ns, pid: u32) -> bool {
    let stat = host.run(&["cat", &format!("/proc/{pid}/stat")]);
    stat.status.success() && !stat.stdout.rsplit(')').next().unwrap().trim_start().starts_with('Z')
}

/// Waits until the program makes no system call for three seconds.
pub(crate) fn expect_idle(net: &Net, pasta: &Daemon<'_>) {
    // The guest's kernel sends a few frames after an interface has come up.
    let file = net.path("strace");
    let mut calls = String::new();
    for _ in 0..10 {
        net.host.sh(&format!("timeout 3 strace -f -o {file} -p {} || [ $? = 124 ]", pasta.pid));
        calls = std::fs::read_to_string(&file).unwrap();
        calls = calls.lines().filter(|l| !l.contains("resumed")).map(|l| format!("{l}\n")).collect();
        if calls.lines().all(|line| line.ends_with("<unfinished ...>") || line.ends_with("<detached ...>")) {
            return;
        }
    }
    panic!("never idle for three seconds:\n{calls}");
}

impl Net {
    /// The words that must precede a command, so that it runs as the test's user.
    pub(crate) fn as_user(&self) -> Vec<String> {
        match (self.user, rustix::process::geteuid().is_root()) {
            (User::Ordinary, true) => {
                words("setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all")
            }
            (User::Ordinary, false) => ["sh", "-c", ENTER_USER, "sh"].map(str::to_owned).to_vec(),
            _ => Vec::new(),
        }
    }

    /// The command line that runs the program under test as the test's user.
    pub(crate) fn pasta_argv(&self, args: &[&str]) -> Vec<String> {
        let mut argv = self.as_user();
        argv.push(if self.user == User::Ordinary { "/run/pasta".to_owned() } else { path() });
        argv.extend(words(&std::env::var("PASTA_UNDER_TEST_ARGS").unwrap_or_default()));
        if std::env::var_os("PASTA_UNDER_TEST_LOG").is_some() {
            argv.extend(["--trace".to_owned(), "--log-file".to_owned(), self.path("pasta.log")]);
        }
        argv.extend(args.iter().map(|s| (*s).to_owned()));
        argv
    }

    /// Starts the program in the host namespace with these arguments.
    pub(crate) fn start_pasta(&self, args: &[&str]) -> Running {
        let argv = self.pasta_argv(args);
        self.host.start(&argv.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Runs the program to its end.
    pub(crate) fn run_pasta(&self, args: &[&str]) -> Finished {
        self.start_pasta(args).wait()
    }

    /// Connects the guest namespace, and configures addresses and routes in it. Returns when the program is in the
    /// background, and so ready (behaviour §1.3).
    pub(crate) fn pasta(&self, args: &[&str]) -> Daemon<'_> {
        self.attach(&[&["--config-net"], args].concat())
    }

    /// Connects the guest namespace with exactly these options.
    pub(crate) fn attach(&self, args: &[&str]) -> Daemon<'_> {
        self.daemon(&[args, &["--netns", "/run/netns/guest"]].concat())
    }

    /// Whether the program under test reads `PASST_TEST_MISSING`. Only a debug build of this workspace reads it. If it
    /// does not, reports the test as skipped.
    pub(crate) fn can_lack_features(&self) -> bool {
        let can = cfg!(debug_assertions) && std::env::var_os("PASTA_UNDER_TEST").is_none();
        if !can {
            skipped("the program under test is not a debug build");
        }
        can
    }

    /// Like [`Net::pasta`], but the program behaves as on a kernel without `feature` (`passt::missing`).
    pub(crate) fn pasta_lacking(&self, feature: &str, args: &[&str]) -> Daemon<'_> {
        let all = [&["--config-net"], args, &["--netns", "/run/netns/guest"]].concat();
        self.daemon_with(&["env", &format!("PASST_TEST_MISSING={feature}")], &all)
    }

    /// Like [`Net::pasta`], but with the folder `runtime` for sockets by which pesto finds the program.
    pub(crate) fn pasta_found_in(&self, runtime: &str, args: &[&str]) -> Daemon<'_> {
        let all = [&["--config-net"], args, &["--netns", "/run/netns/guest"]].concat();
        self.daemon_with(&["env", &format!("XDG_RUNTIME_DIR={runtime}")], &all)
    }

    /// Starts the program, which must go to the background by itself.
    pub(crate) fn daemon(&self, args: &[&str]) -> Daemon<'_> {
        self.daemon_with(&[], args)
    }

    fn daemon_with(&self, before: &[&str], args: &[&str]) -> Daemon<'_> {
        let pid_file = self.path("pasta.pid");
        let argv = self.pasta_argv(&[&["--pid", &pid_file], args].concat());
        let argv: Vec<&str> = before.iter().copied().chain(argv.iter().map(String::as_str)).collect();
        let end = self.host.run(&argv);
        assert!(end.status.success(), "pasta {args:?}: {end:#?}");
        let pid = std::fs::read_to_string(&pid_file).unwrap();
        Daemon { net: self, pid: pid.trim().parse().unwrap() }
    }

    /// Starts `passt`, which must go to the background by itself.
    pub(crate) fn passt(&self, args: &[&str]) -> Daemon<'_> {
        let pid_file = self.path("passt.pid");
        let end = self.host.run(&[&[&passt_path()[..], "--pid", &pid_file], args].concat());
        assert!(end.status.success(), "passt {args:?}: {end:#?}");
        let pid = std::fs::read_to_string(&pid_file).unwrap();
        Daemon { net: self, pid: pid.trim().parse().unwrap() }
    }

    /// Runs pasta with a command, which runs in a new namespace.
    pub(crate) fn spawn(&self, options: &[&str], command: &[&str]) -> Finished {
        self.run_pasta(&[&["--config-net"], options, &["--"], command].concat())
    }
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}
