//! The program under test: which one, how it is started, and what it left.

use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

use super::net::{Net, Who};
use super::ns::{Finished, Ns, Running};
use super::{skipped, wait_until};

/// The path of `pesto` or `qrap`, which other packages of the workspace make. Cargo builds only the programs of the
/// package under test, so they are built here, once for each test process.
///
/// # Panics
/// They can't be built.
pub(crate) fn companion(name: &'static str) -> &'static str {
    static PATHS: LazyLock<[String; 2]> = LazyLock::new(|| {
        let folder = Path::new(env!("CARGO_BIN_EXE_passt")).parent().unwrap();
        let profile = if folder.ends_with("release") { "release" } else { "dev" };
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--profile", profile, "-p", "pesto", "-p", "qrap"]);
        let output = build.current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        ["pesto", "qrap"].map(|name| folder.join(name).to_str().unwrap().to_owned())
    });
    PATHS.iter().find(|path| path.ends_with(name)).unwrap()
}

/// The program's path on the machine.
pub(crate) fn path() -> String {
    std::env::var("PASTA_UNDER_TEST").unwrap_or_else(|_| env!("CARGO_BIN_EXE_pasta").to_owned())
}

/// A `pasta` that went to the background after its initialisation.
pub(crate) struct Daemon<'a> {
    net: &'a Net,
    /// Its process id in the test's PID namespace.
    pub(crate) pid: u32,
}

impl Daemon<'_> {
    /// Whether it still runs (a zombie does not).
    pub(crate) fn runs(&self) -> bool {
        runs(&self.net.host, self.pid)
    }

    pub(crate) fn signal(&self, name: &str) {
        self.net.host.sh(&format!("kill -{name} {}", self.pid));
    }

    /// Ends it as a service manager would, and waits for that.
    pub(crate) fn terminate(&self) {
        self.signal("TERM");
        wait_until("the end of pasta", || !self.runs());
    }

    /// What it has in memory, in KiB.
    pub(crate) fn memory_kib(&self) -> u64 {
        let status = self.net.host.sh(&format!("cat /proc/{}/status", self.pid));
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Number of its open descriptors.
    pub(crate) fn descriptors(&self) -> usize {
        self.net.host.sh(&format!("ls /proc/{}/fd | wc -l", self.pid)).trim().parse().unwrap()
    }
}

/// Into the user namespace that the set-up has made.
const ENTER_USER: &str = r#"exec nsenter --target $(cat /run/user.pid) --user --preserve-credentials "$@""#;

/// Whether a process of the test's PID namespace runs.
pub(crate) fn runs(host: &Ns, pid: u32) -> bool {
    let stat = host.run(&["cat", &format!("/proc/{pid}/stat")]);
    stat.status.success() && !stat.stdout.rsplit(')').next().unwrap().trim_start().starts_with('Z')
}

impl Net {
    /// What to put before a command so that it runs as the user the test asked for.
    pub(crate) fn as_user(&self) -> Vec<String> {
        match (self.who, rustix::process::geteuid().is_root()) {
            (Who::OrdinaryUser, true) => {
                words("setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all")
            }
            (Who::OrdinaryUser, false) => ["sh", "-c", ENTER_USER, "sh"].map(str::to_owned).to_vec(),
            _ => Vec::new(),
        }
    }

    /// The command line of the program under test, as the user the test asked for.
    pub(crate) fn pasta_argv(&self, args: &[&str]) -> Vec<String> {
        let mut argv = self.as_user();
        argv.push(if self.who == Who::OrdinaryUser { "/run/pasta".to_owned() } else { path() });
        argv.extend(words(&std::env::var("PASTA_UNDER_TEST_ARGS").unwrap_or_default()));
        if std::env::var_os("PASTA_UNDER_TEST_LOG").is_some() {
            argv.extend(["--trace".to_owned(), "--log-file".to_owned(), self.path("pasta.log")]);
        }
        argv.extend(args.iter().map(|s| (*s).to_owned()));
        argv
    }

    /// Starts the program in the host namespace, in whatever form the arguments say.
    pub(crate) fn start_pasta(&self, args: &[&str]) -> Running {
        let argv = self.pasta_argv(args);
        self.host.start(&argv.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Runs the program to its end.
    pub(crate) fn run_pasta(&self, args: &[&str]) -> Finished {
        self.start_pasta(args).wait()
    }

    /// Connects the empty guest namespace, with addresses and routes configured, and returns once the program
    /// is in the background: that is the sign that everything is ready (behaviour §1.3).
    pub(crate) fn pasta(&self, args: &[&str]) -> Daemon<'_> {
        self.attach(&[&["--config-net"], args].concat())
    }

    /// Connects the empty guest namespace with exactly these options.
    pub(crate) fn attach(&self, args: &[&str]) -> Daemon<'_> {
        self.daemon(&[args, &["--netns", "/run/netns/guest"]].concat())
    }

    /// Whether the program under test can be told that the kernel lacks a feature: only a build for tests.
    pub(crate) fn can_lack_features(&self) -> bool {
        let can = cfg!(debug_assertions) && std::env::var_os("PASTA_UNDER_TEST").is_none();
        if !can {
            skipped("the program under test is no build for tests");
        }
        can
    }

    /// The same as [`Net::pasta`], on a kernel that lacks a feature (`crate::missing` in the program).
    pub(crate) fn pasta_lacking(&self, feature: &str, args: &[&str]) -> Daemon<'_> {
        let all = [&["--config-net"], args, &["--netns", "/run/netns/guest"]].concat();
        self.daemon_with(&["env", &format!("PASST_TEST_MISSING={feature}")], &all)
    }

    /// Starts the program, which has to go to the background by itself.
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

    /// Starts `passt`, which has to go to the background by itself.
    pub(crate) fn passt(&self, args: &[&str]) -> Daemon<'_> {
        let pid_file = self.path("passt.pid");
        let end = self.host.run(&[&[env!("CARGO_BIN_EXE_passt"), "--pid", &pid_file], args].concat());
        assert!(end.status.success(), "passt {args:?}: {end:#?}");
        let pid = std::fs::read_to_string(&pid_file).unwrap();
        Daemon { net: self, pid: pid.trim().parse().unwrap() }
    }

    /// Runs a command in a guest that the program spawns.
    pub(crate) fn spawn(&self, options: &[&str], command: &[&str]) -> Finished {
        self.run_pasta(&[&["--config-net"], options, &["--"], command].concat())
    }
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}
