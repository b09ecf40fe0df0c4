//! Tests of all kinds of starts, for every user, in the background and in the foreground (behaviour §1.2, §1.3, §10.2,
//! §10.3), and of the socket of passt.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;

use rustix::process::Signal;

use crate::attach::Named;
use crate::stage::{Guest, Running, Stage, User, eventually, stderr};

/// Starts and stops pasta, in the background and in the foreground. Checks that the interface appears and disappears,
/// and that the status is 0.
fn starts_and_stops(stage: &Stage, user: User, target: &[&str], has_interface: &dyn Fn() -> bool) {
    let daemon = stage.attach(user, &[&["--quiet", "--config-net", "-I", "life0"], target].concat());
    assert_eq!(daemon.output, "");
    assert!(has_interface(), "{target:?}");
    daemon.send(Signal::TERM);
    daemon.assert_ends();
    assert!(eventually(|| !has_interface()), "{target:?}");

    let file = stage.path(&format!("pid-{user:?}-{}", target.len()));
    let _ = fs::remove_file(&file);
    let mut command = stage.pasta(user);
    command.args(["-f", "--config-net", "-I", "life0", "-P"]).arg(&file).args(target);
    let mut pasta = Running::new(&mut command);
    let pid = || fs::read_to_string(&file).ok()?.strip_suffix('\n')?.parse::<i32>().ok();
    assert!(eventually(|| pid().is_some()), "{target:?}");
    assert_eq!(pid(), Some(pasta.pid()));
    assert!(has_interface(), "{target:?}");
    pasta.send(Signal::TERM);
    assert_eq!(pasta.end().code(), Some(0));
    assert!(eventually(|| !has_interface()), "{target:?}");
}

#[test]
fn every_user_can_start_pasta_in_every_way() {
    let stage = Stage::new();
    User::each_with_guest(|user, guest| {
        let (net, userns) = (guest.namespace("net"), guest.namespace("user"));
        let has_interface = || guest.interfaces().contains(&"life0".to_owned());
        starts_and_stops(&stage, user, &[&guest.pid()], &has_interface);
        starts_and_stops(&stage, user, &["--netns", &net, "--userns", &userns], &has_interface);
        if user == User::Root {
            starts_and_stops(&stage, user, &["--netns", &net], &has_interface);
            starts_and_stops(&stage, user, &["--netns-only", &guest.pid()], &has_interface);
        }
    });
    if User::Root.available()
        && let Some(named) = Named::new()
    {
        let has_interface = || {
            let mut ip = std::process::Command::new("ip");
            ip.args(["-n", &named.0, "link", "show", "life0"]).output().unwrap().status.success()
        };
        starts_and_stops(&stage, User::Root, &["--netns", &named.0], &has_interface);
    }
}

/// behaviour §1.3.2: a start that fails leaves no files behind. A PID file that existed before stays.
#[test]
fn a_start_that_fails_leaves_no_files() {
    let stage = Stage::new();
    User::each(|user| {
        for foreground in [&["--foreground"][..], &[]] {
            let path = |name: &str| stage.path(&format!("left-{user:?}-{name}"));
            let (old, missing) = (path("old"), path("missing"));
            let new = ["pid", "control", "api"].map(path);
            let start = |pid: &std::path::Path| {
                let mut command = stage.pasta(user);
                command.args(foreground).arg("--pid").arg(pid).arg("--conf-path").arg(&new[1]);
                command.arg("--api-socket").arg(&new[2]).arg("--netns").arg(&missing);
                if user == User::Root {
                    // Another user could not remove root's files.
                    command.args(["--runas", "0"]);
                }
                let mut pasta = Running::new(&mut command);
                assert_eq!(pasta.end().code(), Some(1), "{user:?}");
                let errors = pasta.rest_of_errors();
                assert!(errors.contains(&*missing.to_string_lossy()), "{user:?}: {errors}");
            };
            start(&new[0]);
            for file in &new {
                assert!(!file.exists(), "{user:?} {foreground:?}: {}", file.display());
            }
            fs::write(&old, "1\n").unwrap();
            fs::set_permissions(&old, fs::Permissions::from_mode(0o666)).unwrap();
            start(&old);
            assert!(old.exists(), "{user:?}");
            fs::remove_file(&old).unwrap();
        }
    });
}

/// `--fd` can name descriptor 0. passt ends when the peer closes the socket (behaviour §1.9).
#[test]
fn the_guest_socket_can_be_standard_input_r12() {
    let stage = Stage::new();
    User::each(|user| {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut command = stage.passt(user);
        command
            .args(["-f", "--fd", "0", "-t", "none", "-u", "none"])
            .stdin(std::os::fd::OwnedFd::from(theirs));
        let mut passt = Running::new(&mut command);
        drop(command);
        drop(ours);
        assert_eq!(passt.end().code(), Some(0), "{}", passt.rest_of_errors());
    });
}

/// a socket path that can't be bound is an error. passt does not use another path instead.
#[test]
fn an_unusable_socket_path_is_an_error_r12() {
    let stage = Stage::new();
    User::each(|user| {
        let output = stage.passt(user).args(["-s", "/nonexistent/socket"]).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(stderr(&output).contains("/nonexistent/socket"), "{output:?}");
        assert!(!stderr(&output).contains("/tmp/passt_"), "{output:?}");
    });
}

/// passt changes its user, and the socket can be in a directory that the new user can't enter. R-15: its path may
/// have 107 bytes.
#[test]
fn the_socket_is_created_with_the_callers_rights_r39_r15() {
    if !User::Root.available() {
        return;
    }
    let stage = Stage::new();
    let folder = stage.path("folder");
    fs::create_dir(&folder).unwrap();
    chown(&folder, Some(12346), Some(12346)).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
    let length = folder.as_os_str().len() + 1;
    let socket = folder.join("s".repeat(107 - length));
    let pid = stage.path("pid");
    let mut command = stage.passt(User::Root);
    command.args(["-q", "-t", "none", "-u", "none", "--runas", "12345", "-P"]).arg(&pid);
    let output = command.arg("-s").arg(&socket).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let daemon = crate::stage::Daemon::of(pid);
    assert_eq!(daemon.status("Uid"), "12345\t12345\t12345\t12345");
    drop(UnixStream::connect(&socket).unwrap());
    daemon.send(Signal::TERM);
    daemon.assert_ends();
    // The socket file remains (behaviour §1.3.7).
    assert!(socket.exists());
}

/// Unlike in behaviour §1.6.3, a target that is a zombie counts as ended.
#[test]
fn pasta_ends_when_its_target_is_a_zombie() {
    let stage = Stage::new();
    for user in [User::Root, User::Ordinary].into_iter().filter(|user| user.available()) {
        for path in [false, true] {
            let guest = Guest::new(user);
            let (number, net, userns) = (guest.pid(), guest.namespace("net"), guest.namespace("user"));
            let daemon = match path {
                false => stage.attach(user, &[&number]),
                true => stage.attach(user, &["--netns", &net, "--userns", &userns]),
            };
            let pid = number.parse().unwrap();
            crate::stage::send(pid, Signal::KILL);
            daemon.assert_ends();
            assert!(crate::stage::status(pid, "State").starts_with('Z'));
        }
    }
}
