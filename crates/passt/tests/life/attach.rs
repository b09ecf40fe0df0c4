//! Next to a namespace that exists (behaviour §1.3, §1.4, §10).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use rustix::process::Signal;

use crate::sandbox::assert_threads_harmless;
use crate::stage::{Daemon, Guest, Running, Stage, User, processes_with, skipped, stderr, unique};

/// A namespace of the machine with a name, removed with this value.
pub(crate) struct Named(pub(crate) String);

impl Named {
    /// Skips the test, with None, where there is no ip(8).
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

/// behaviour §10.1, §10.2: what is left of us once we serve a guest.
fn assert_harmless(daemon: &Daemon, user: User) {
    assert_threads_harmless(daemon.pid, 0);
    let uid: u32 = daemon.status("Uid").split('\t').next().unwrap().parse().unwrap();
    assert_ne!(uid, 0, "root's pasta changes to nobody");
    if user == User::Root {
        assert_eq!(daemon.status("Groups").trim(), "");
    }
}

/// behaviour §1.3: in the background, with nothing of the foreground left.
fn assert_in_background(daemon: &Daemon) {
    let stat = fs::read_to_string(format!("/proc/{}/stat", daemon.pid)).unwrap();
    let session = stat.rsplit_once(") ").unwrap().1.split(' ').nth(3).unwrap();
    assert_eq!(session, daemon.pid.to_string(), "no session of its own");
    // Only root may look: the process is closed to others, its own user too.
    if let Ok(entries) = fs::read_dir(format!("/proc/{}/fd", daemon.pid)) {
        for entry in entries.flatten().filter(|entry| ["0", "1", "2"].iter().any(|n| entry.file_name() == *n))
        {
            assert_eq!(fs::read_link(entry.path()).unwrap().to_str(), Some("/dev/null"));
        }
        assert_eq!(fs::read_link(format!("/proc/{}/cwd", daemon.pid)).unwrap().to_str(), Some("/"));
    }
}

/// behaviour §10.3: `pasta PID`, its user namespace joined where it has one.
#[test]
fn by_process() {
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

/// Root serves the guests of others, too, and has no rights left over them.
#[test]
fn by_process_of_another_user() {
    if !User::Root.available() || !User::Ordinary.available() {
        return;
    }
    let stage = Stage::new();
    let guest = Guest::new(User::Ordinary);
    let daemon = stage.attach(User::Root, &["--config-net", "-I", "life0", &guest.pid()]);
    assert_eq!(guest.interfaces(), ["lo", "life0"]);
    assert_harmless(&daemon, User::Root);
}

/// behaviour §10.3: by a process whose user namespace is nested in the owner of its network namespace, as bubblewrap leaves
/// it. Rights in the process's own give none over the network.
#[test]
fn by_process_in_a_nested_user_namespace() {
    let stage = Stage::new();
    for user in [User::Root, User::Ordinary].into_iter().filter(|user| user.available()) {
        let guest = Guest::nested(user);
        let userns = guest.namespace("user");
        let output = stage.run(user, &["-I", "life0", "--userns", &userns, &guest.pid()]);
        assert_eq!(output.status.code(), Some(1), "--userns has precedence: {output:?}");
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
fn by_path() {
    let stage = Stage::new();
    User::each_with_guest(|user, guest| {
        let netns = guest.namespace("net");
        let userns = guest.namespace("user");
        let daemon =
            stage.attach(user, &["--config-net", "-I", "life0", "--netns", &netns, "--userns", &userns]);
        assert_eq!(guest.interfaces(), ["lo", "life0"]);
        assert_harmless(&daemon, user);

        // By default the owner is joined.
        let daemon = stage.attach(user, &["-I", "life1", "--netns", &netns]);
        assert_eq!(guest.interfaces(), ["lo", "life0", "life1"]);
        assert_harmless(&daemon, user);

        // Without joining it takes rights over the guest's.
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

/// behaviour §10.3: a namespace that a user namespace outside of ours owns can't be joined, and the message says so.
#[test]
fn by_path_from_below_the_owner() {
    let user = User::RootOfNamespace;
    if !user.available() {
        return;
    }
    let stage = Stage::new();
    let output = stage.run(user, &["-I", "life0", "--netns", "/proc/self/ns/net"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(stderr(&output).contains("outside of ours"), "{output:?}");
}

/// behaviour §10.3: `--netns` alone, by root of the namespace that the guest's belongs to, as in a rootless container.
#[test]
fn by_path_within_our_user_namespace() {
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

/// behaviour §2.2 `--netns`: names are files in /run/netns, or in `--nsrun-dir` (Q19: as plain root).
#[test]
fn by_name() {
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

/// behaviour §10.2: as the user of `--runas`, in its four forms, with no other group.
#[test]
fn as_the_user_asked_for() {
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

/// behaviour §1.3.2: a start that fails says why, with status 1, and leaves nothing running.
#[test]
fn failures_are_told() {
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

/// behaviour §1.4.
#[test]
fn signals_in_the_foreground() {
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

/// to debug is not to stay in the foreground.
#[test]
fn debugging_goes_to_the_background_r6() {
    let stage = Stage::new();
    let guest = Guest::new(User::Ordinary);
    let daemon = stage.attach(User::Ordinary, &["--debug", &guest.pid()]);
    assert_in_background(&daemon);
}

/// in the foreground standard error stays ours; detached, nobody is bothered.
#[test]
fn standard_error_is_ours_in_the_foreground_r7() {
    let stage = Stage::new();
    let mut guest = Guest::new(User::Ordinary);
    let mut pasta = Running::new(stage.pasta(User::Ordinary).args(["-f", "-P", "pid", &guest.pid()]));
    assert!(!pasta.error_line().is_empty());
    // A namespace that goes away any earlier is an error at start.
    let written = || fs::read_to_string(stage.path("pid")).is_ok_and(|text| text.ends_with('\n'));
    assert!(crate::stage::eventually(written));
    let pid = guest.pid();
    guest.end();
    assert_eq!(pasta.end().code(), Some(0));
    let rest = pasta.rest_of_errors();
    assert!(rest.contains(&format!("network namespace of process {pid} is gone")), "{rest}");
}

/// behaviour §2.3: podman takes all output of a successful start for a warning.
#[test]
fn quiet_is_silent() {
    let stage = Stage::new();
    User::each_with_guest(|user, guest| {
        let daemon = stage.attach(user, &["--quiet", "--config-net", &guest.pid()]);
        assert_eq!(daemon.output, "");
    });
}
