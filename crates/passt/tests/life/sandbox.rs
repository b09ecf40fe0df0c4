//! What pasta has taken from itself once it serves a guest (SPEC §10.1).

use std::fs;

use rustix::process::Signal;

use crate::stage::{Guest, Running, Stage, User, is_root, skipped, status};

/// Whether we may look into processes of others; says so if not.
fn may_look() -> bool {
    if !is_root() {
        skipped("only root may look at a process that is not dumpable");
    }
    is_root()
}

fn namespace(process: &str, kind: &str) -> String {
    fs::read_link(format!("/proc/{process}/ns/{kind}")).unwrap().to_str().unwrap().to_owned()
}

/// Its root is empty and can't be written to, and its namespaces are nobody else's but for those that have to be.
fn assert_apart(pid: i32, guest: &str, in_background: bool) {
    let pid = pid.to_string();
    let entries = fs::read_dir(format!("/proc/{pid}/root/")).unwrap();
    assert_eq!(entries.flatten().map(|entry| entry.file_name()).collect::<Vec<_>>(), [""; 0]);
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    let fields: Vec<&str> = mounts.split_whitespace().collect();
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    assert_eq!(fields[3..5], ["/", "/"], "{mounts}");
    for option in ["ro", "nosuid", "nodev", "noexec"] {
        assert!(fields[5].split(',').any(|word| word == option), "{mounts}");
    }
    for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten() {
        let thread = format!("{pid}/task/{}", task.file_name().to_str().unwrap());
        for kind in ["mnt", "ipc", "uts"] {
            let ours = namespace(&thread, kind);
            assert!(![namespace("self", kind), namespace(guest, kind)].contains(&ours), "{kind}");
        }
        let apart = namespace(&thread, "pid") != namespace("self", "pid");
        assert_eq!(apart, in_background);
        let opener = fs::read_to_string(format!("/proc/{thread}/comm")).unwrap() == "opener\n";
        let net = namespace(if opener { guest } else { "self" }, "net");
        assert_eq!(namespace(&thread, "net"), net);
    }
    let last = status(pid.parse().unwrap(), "NSpid").split_whitespace().last().unwrap().to_owned();
    assert_eq!(last == "1", in_background, "process {last} of its PID namespace");
}

#[test]
fn a_daemon_is_apart_from_everything() {
    if !may_look() {
        return;
    }
    let stage = Stage::new();
    User::each_with_guest(|user, guest| {
        let daemon = stage.attach(user, &["--config-net", "-I", "life0", &guest.pid()]);
        assert_apart(daemon.pid, &guest.pid(), true);
    });
}

/// Who stays in the foreground stays in its PID namespace (SPEC §1.3.4).
#[test]
fn in_the_foreground_it_is_apart_too() {
    if !may_look() {
        return;
    }
    let stage = Stage::new();
    User::each(|user| {
        let mut command = stage.pasta(user);
        let mut pasta = Running::new(command.args(["--", "sh", "-c", "echo ready; exec sleep 1000"]));
        assert_eq!(pasta.line(), "ready");
        let pid = pasta.pid();
        let child = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        assert_apart(pid, child.trim(), false);
        pasta.send(Signal::TERM);
        pasta.end();
    });
}

/// What is mounted for the empty root is seen by nobody else, also where mounts are shared with others.
#[test]
fn the_machine_keeps_its_mounts() {
    if !User::Root.available() {
        return;
    }
    let stage = Stage::new();
    let guest = Guest::new(User::Root);
    let script = format!(
        "mount --make-rshared /; before=$(wc -l </proc/self/mountinfo); \
         {} -P pid -I life0 {} || exit 9; \
         test $before = $(wc -l </proc/self/mountinfo) && ls -d /tmp/. && kill $(cat pid)",
        stage.path("pasta").display(),
        guest.pid()
    );
    let mut command = User::Root.command("unshare");
    let output = command.args(["-m", "sh", "-c", &script]).current_dir(stage.path("")).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}
