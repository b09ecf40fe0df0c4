//! Tests of a pasta that is attached to an existing namespace (behaviour §1.3, §1.4, §10).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use rustix::process::Signal;

use crate::sandbox::assert_threads_harmless;
use crate::stage::{Daemon, Guest, Running, Stage, User, processes_with, skipped, stderr, unique};

/// A named network namespace of the machine. Dropping the value removes it.
pub(crate) struct Named(pub(crate) String);

impl Named {
    /// Creates the namespace. If ip(8) is not installed, reports the test as skipped and returns none.
    pub(crate) fn new() -> Option<Self> {
        if Command::new("ip").arg("-V").output().is_err() {
            skipped("ip (iproute2) is not installed");
            return None;
        }
        let name = format!("pasta-life-{}", unique());
        assert!(Command::new("ip").args(["netns", "add", &name]).status().unwrap().success());
        Some(Self(name))
    }

    pub(crate) fn remove(&self) {
        assert!(Command::new("ip").args(["netns", "del", &self.0]).status().unwrap().success());
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        if fs::exists(format!("/run/netns/{}", self.0)).unwrap_or(false) {
            let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
        }
    }
}

/// behaviour §10.1, §10.2: checks that the daemon has given up its privileges.
fn assert_harmless(daemon: &Daemon, user: User) {
    assert_threads_harmless(daemon.pid, 0);
    let uid: u32 = daemon.status("Uid").split('\t').next().unwrap().parse().unwrap();
    assert_ne!(uid, 0, "a pasta started by root must change its user");
    if user == User::Root {
        assert_eq!(daemon.status("Groups").trim(), "");
    }
}

/// behaviour §1.3: checks that the daemon has its own session, and keeps neither the caller's terminal nor the caller's
/// directory.
fn assert_in_background(daemon: &Daemon) {
    let stat = fs::read_to_string(format!("/proc/{}/stat", daemon.pid)).unwrap();
    let session = stat.rsplit_once(") ").unwrap().1.split(' ').nth(3).unwrap();
    assert_eq!(session, daemon.pid.to_string(), "the daemon leads no session");
    // Only root can read these entries, since the process is not dumpable.
    if let Ok(entries) = fs::read_dir(format!("/proc/{}/fd", daemon.pid)) {
        for entry in entries.flatten().filter(|entry| ["0", "1", "2"].iter().any(|n| entry.file_name() == *n))
        {
            assert_eq!(fs::read_link(entry.path()).unwrap().to_str(), Some("/dev/null"));
        }
        assert_eq!(fs::read_link(format!("/proc/{}/cwd", daemon.pid)).unwrap().to_str(), Some("/"));
    }
}

/// behaviour §10.3: `pasta PID` joins the user namespace of the process, if it has one.
#[test]
fn a_process_can_be_joined() {
    let stage = Stage::new();
    User::each_with_guest(|user, guest| {
        let daemon = stage.attach(user, &["--config-net", "-I", "life0", &guest.pid()]);
        assert_eq!(guest.interfaces(), ["lo", "life0"]);
        assert_harmless(&daemon, user);
        assert_in_background(&daemon);
        let mode = daemon.pid_file.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        daemon.send(Signal::TERM);
        daemon.assert_ends();
    });
}

/// Root can serve a guest of another user. Pasta keeps no privileges over this guest.
#[test]
fn root_can_join_a_process_of_another_user() {
    if !User::Root.available() || !User::Ordinary.available() {
        return;
    }
    let stage = Stage::new();
    let guest = Guest::new(User::Ordinary);
    let daemon = stage.attach(User::Root, &["--config-net", "-I", "life0", &guest.pid()]);
    assert_eq!(guest.interfaces(), ["lo", "life0"]);
    assert_harmless(&daemon, User::Root);
}

/// behaviour §10.3: bubblewrap leaves a process in a user namespace that is nested in the owner of its network
/// namespace. Capabilities in the nested user namespace give no privileges over the network.
#[test]
fn a_process_in_a_nested_user_namespace_can_be_joined() {
    let stage = Stage::new();
    for user in [User::Root, User::Ordinary].into_iter().filter(|user| user.available()) {
        let guest = Guest::nested(user);
        let userns = guest.namespace("user");
        let output = stage.run(user, &["-I", "life0", "--userns", &userns, &guest.pid()]);
        assert_eq!(output.status.code(), Some(1), "--userns must have precedence: {output:?}");
        let daemon = stage.attach(user, &["--config-net", "-I", "life0", &guest.pid()]);
        assert_eq!(guest.interfaces(), ["lo", "life0"]);
        assert_harmless(&daemon, user);
        let daemon = stage.attach(user, &["-I", "life1", "--netns", &guest.namespace("net")]);
        assert_eq!(guest.interfaces(), ["lo", "life0", "life1"]);
        assert_harmless(&daemon, user);
    }
}

/// behaviour §10.3: `--netns` with and without `--userns`.
#[test]
fn a_namespace_can_be_joined_by_path() {
    let stage = Stage::new();
    User::each_with_guest(|user, guest| {
        let netns = guest.namespace("net");
        let userns = guest.namespace("user");
        let daemon =
            stage.attach(user, &["--config-net", "-I", "life0", "--netns", &netns, "--userns", &userns]);
        assert_eq!(guest.interfaces(), ["lo", "life0"]);
        assert_harmless(&daemon, user);

        // By default, pasta joins the owner of the network namespace.
        let daemon = stage.attach(user, &["-I", "life1", "--netns", &netns]);
        assert_eq!(guest.interfaces(), ["lo", "life0", "life1"]);
        assert_harmless(&daemon, user);

        // --netns-only needs capabilities over the guest's network namespace.
        let args = ["-I", "life2", "--netns", &netns, "--netns-only"];
        if user == User::Root {
            assert_harmless(&stage.attach(user, &args), user);
        } else {
            let output = stage.run(user, &args);
            assert_eq!(output.status.code(), Some(1), "{output:?}");
            assert_eq!(guest.interfaces(), ["lo", "life0", "life1"]);
        }
    });
}

/// behaviour §10.3: a namespace that belongs to an ancestor of our user namespace can't be joined. The message gives
/// this reason.
#[test]
fn a_namespace_of_an_ancestor_cannot_be_joined() {
    let user = User::RootOfNamespace;
    if !user.available() {
        return;
    }
    let stage = Stage::new();
    let output = stage.run(user, &["-I", "life0", "--netns", "/proc/self/ns/net"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(stderr(&output).contains("outside of ours"), "{output:?}");
}

/// behaviour §10.3: root of the owning user namespace starts pasta with only `--netns`, as in a rootless container.
#[test]
fn a_namespace_that_our_user_namespace_owns_can_be_joined() {
    let stage = Stage::new();
    let user = User::RootOfNamespace;
    if !user.available() {
        return;
    }
    let script = format!(
        "unshare -n sh -c 'echo $$; exec sleep 1000' > guest & sleep=$!; \
         while ! [ -s guest ]; do sleep 0.01; done; \
         {} --config-net -I life0 -P pid --netns /proc/$sleep/ns/net || exit 9; \
         grep -o life0 /proc/$sleep/net/dev; grep -E '^(CapEff|Uid)' /proc/$(cat pid)/status; \
         kill $(cat pid) $sleep",
        stage.path("pasta").display()
    );
    let output = user.command("sh").args(["-c", &script]).current_dir(stage.path("")).output().unwrap();
    let text = crate::stage::stdout(&output);
    assert!(text.starts_with("life0\n"), "{text}");
    assert!(text.contains("CapEff:\t0000000000000000"), "{text}");
    assert!(text.contains("Uid:\t0\t"), "{text}");
}

/// behaviour §2.2 `--netns`: a name is a file in /run/netns, or in `--nsrun-dir`. Q19: root has no user namespace.
#[test]
fn a_namespace_can_be_joined_by_name() {
    if !User::Root.available() {
        return;
    }
    let stage = Stage::new();
    let Some(named) = Named::new() else { return };
    let daemon = stage.attach(User::Root, &["--config-net", "-I", "life0", "--netns", &named.0]);
    assert_harmless(&daemon, User::Root);
    let output = Command::new("ip").args(["-n", &named.0, "link", "show", "life0"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    daemon.send(Signal::QUIT);
    daemon.assert_ends();

    let daemon = stage.attach(User::Root, &["--nsrun-dir", "/run/netns", "--netns", &named.0]);
    assert!(daemon.lives());
}

/// behaviour §10.2: the four forms of `--runas`. No supplementary group remains.
#[test]
fn runas_selects_user_and_group() {
    if !User::Root.available() {
        return;
    }
    let stage = Stage::new();
    let guest = Guest::new(User::Root);
    let id = |option: &str| {
        let output = Command::new("id").args([option, "nobody"]).output().unwrap();
        crate::stage::stdout(&output).trim().to_owned()
    };
    let (nobody, nogroup) = (id("-u"), id("-g"));
    for (runas, uid, gid) in [
        ("12345", "12345", "12345"),
        ("12345:12346", "12345", "12346"),
        ("nobody", &nobody, &nogroup),
        ("nobody:root", &nobody, "0"),
    ] {
        let daemon = stage.attach(User::Root, &["--runas", runas, "-I", "life0", &guest.pid()]);
        assert_eq!(daemon.status("Uid"), [uid; 4].join("\t"), "{runas}");
        assert_eq!(daemon.status("Gid"), [gid; 4].join("\t"), "{runas}");
        assert_harmless(&daemon, User::Root);
        daemon.send(Signal::TERM);
        daemon.assert_ends();
    }
}

/// behaviour §1.3.2: a start that fails names the cause, exits with status 1, and leaves no process.
#[test]
fn a_failed_start_names_the_cause() {
    let stage = Stage::new();
    let missing = stage.path("missing/file");
    let missing = missing.to_str().unwrap();
    User::each_with_guest(|user, guest| {
        let pid = guest.pid();
        let ours = stage.path("pasta");
        let cases: [(&[&str], &str); 6] = [
            (&["2147483647"], "2147483647"),
            (&["--netns", missing], missing),
            (&["--netns", ours.to_str().unwrap()], ours.to_str().unwrap()),
            (&["--netns", &guest.namespace("net"), "--userns", missing], missing),
            (&["--pid", missing, &pid], "--pid"),
            (&["-I", "lo", &pid], "'lo'"),
        ];
        for (args, named) in cases {
            let mark = format!("mark-{}", unique());
            let output = stage.run(user, &[&["--hostname", &mark], args].concat());
            assert_eq!(output.status.code(), Some(1), "{args:?}: {output:?}");
            assert!(stderr(&output).contains(named), "{args:?}: {output:?}");
            assert_eq!(processes_with(&mark), Vec::<String>::new());
        }
    });
}

/// behaviour §1.4: SIGTERM and SIGQUIT end pasta with status 0. Other signals kill it.
#[test]
fn signals_end_pasta_in_the_foreground() {
    let stage = Stage::new();
    let user = User::Ordinary;
    let guest = Guest::new(user);
    for (signal, code, killed_by) in [
        (Signal::TERM, Some(0), None),
        (Signal::QUIT, Some(0), None),
        (Signal::HUP, None, Some(1)),
        (Signal::INT, None, Some(2)),
    ] {
        let _ = fs::remove_file(stage.path("pid"));
        let mut pasta = Running::new(stage.pasta(user).args(["-f", "-P", "pid", &guest.pid()]));
        let written = || fs::read_to_string(stage.path("pid")).is_ok_and(|text| text.ends_with('\n'));
        assert!(crate::stage::eventually(written));
        pasta.send(signal);
        let status = pasta.end();
        assert_eq!((status.code(), status.signal()), (code, killed_by));
    }
}

/// `--debug` does not imply `--foreground`.
#[test]
fn debug_still_runs_in_the_background_r6() {
    let stage = Stage::new();
    let guest = Guest::new(User::Ordinary);
    let daemon = stage.attach(User::Ordinary, &["--debug", &guest.pid()]);
    assert_in_background(&daemon);
}

/// in the foreground, pasta keeps writing to standard error.
#[test]
fn messages_go_to_standard_error_in_the_foreground_r7() {
    let stage = Stage::new();
    let mut guest = Guest::new(User::Ordinary);
    let mut pasta = Running::new(stage.pasta(User::Ordinary).args(["-f", "-P", "pid", &guest.pid()]));
    assert!(!pasta.error_line().is_empty());
    // If the namespace ended before the PID file is written, the start would fail.
    let written = || fs::read_to_string(stage.path("pid")).is_ok_and(|text| text.ends_with('\n'));
    assert!(crate::stage::eventually(written));
    let pid = guest.pid();
    guest.end();
    assert_eq!(pasta.end().code(), Some(0));
    let rest = pasta.rest_of_errors();
    assert!(rest.contains(&format!("network namespace of process {pid} is gone")), "{rest}");
}

/// behaviour §2.3: podman shows any output of a successful start as a warning.
#[test]
fn a_quiet_start_prints_nothing() {
    let stage = Stage::new();
    User::each_with_guest(|user, guest| {
        let daemon = stage.attach(user, &["--quiet", "--config-net", &guest.pid()]);
        assert_eq!(daemon.output, "");
    });
}
