//! Tests that no process, interface or mount remains after a kill at any time, and after many starts (behaviour §1.3.2,
//! §1.5.8, R-1).

use std::fs;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use rustix::process::Signal;

use crate::stage::{Guest, Stage, User, eventually, lives, processes_with, send, unique};

/// Delays before a kill, which cover the duration of a start. The tests are valid for any delay.
fn moments() -> impl Iterator<Item = Duration> {
    (0..24).map(|step| Duration::from_micros(step * step * 60))
}

/// Waits until no process has `mark` in its command line, within the time limit of [`eventually`].
fn assert_no_process(mark: &str, when: &str) {
    assert!(eventually(|| processes_with(mark).is_empty()), "{when}: {:?}", processes_with(mark));
}

/// The processes in the network namespace `link` (`net:[number]`), and the processes that hold it open. Only root sees
/// all of them.
fn holders(link: &str) -> Vec<String> {
    let mut found = Vec::new();
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let is_it =
            |path: std::path::PathBuf| fs::read_link(path).is_ok_and(|target| target.to_str() == Some(link));
        let open = fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        let mut tasks = fs::read_dir(process.path().join("task")).into_iter().flatten().flatten();
        if tasks.any(|task| is_it(task.path().join("ns/net"))) || open.map(|fd| fd.path()).any(is_it) {
            found.push(process.path().display().to_string());
        }
    }
    found
}

fn children(pid: i32) -> Vec<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

/// Kills a process, which may already have ended.
fn kill(pid: i32) {
    let _ = rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), Signal::KILL);
}

/// Kills every process that has `mark` in its command line.
fn kill_all_with(mark: &str) {
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let pid = process.file_name().to_str().and_then(|name| name.parse().ok());
        let text = fs::read(process.path().join("cmdline")).unwrap_or_default();
        if let Some(pid) = pid
            && String::from_utf8_lossy(&text).contains(mark)
        {
            kill(pid);
        }
    }
}

/// A command that still waits for its network ends with pasta. A command that has its network survives (behaviour
/// §1.5.8). Here, it runs until the end of its input.
#[test]
fn killing_pasta_while_it_spawns_leaves_no_process() {
    let stage = Stage::new();
    User::each(|user| {
        for moment in moments() {
            let mark = unique();
            let mut command = stage.pasta(user);
            command.args(["--config-net", "--", "sh", "-c", "cat", &mark]);
            let mut child = command.stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
            thread::sleep(moment);
            child.kill().unwrap();
            child.wait().unwrap();
            drop(child.stdin.take());
            assert_no_process(&mark, &format!("{user:?}, after {moment:?}"));
        }
    });
}

/// The killed child is the process that becomes the command. Pasta ends with a status other than 0.
#[test]
fn killing_the_command_ends_pasta() {
    let stage = Stage::new();
    for moment in moments() {
        let mark = unique();
        let mut command = stage.pasta(User::Ordinary);
        command.args(["--config-net", "--", "sh", "-c", "cat", &mark]);
        let mut child = command.stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        assert!(eventually(|| !children(pid).is_empty()));
        thread::sleep(moment);
        children(pid).into_iter().for_each(kill);
        assert!(eventually(|| child.try_wait().unwrap().is_some()), "after {moment:?}");
        assert_ne!(child.wait().unwrap().code(), Some(0), "after {moment:?}");
        assert_no_process(&mark, &format!("after {moment:?}"));
    }
}

/// During the start, either the process that the caller started or the process in the background is killed. If the
/// process in the background was ready, it serves the guest until it is killed, too.
#[test]
fn killing_a_background_start_leaves_no_process() {
    let stage = Stage::new();
    User::each_with_guest(|user, mut guest| {
        let mark = unique();
        for moment in moments() {
            for parent in [true, false] {
                let mut command = stage.pasta(user);
                command.args(["--config-net", "--hostname", &mark, "-I"]);
                command.arg(format!("k{}", moment.as_micros())).arg(guest.pid());
                let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
                let pid = i32::try_from(child.id()).unwrap();
                thread::sleep(moment);
                if parent {
                    child.kill().unwrap();
                } else {
                    children(pid).into_iter().for_each(kill);
                }
                assert!(eventually(|| child.try_wait().unwrap().is_some()), "{parent}, after {moment:?}");
                // If the daemon was ready in time, it serves the guest with this interface name, which is unique.
                let ready = |line: &String| line.contains(&format!("k{} ", moment.as_micros()));
                if child.wait().unwrap().code() != Some(0) {
                    let gone = || !processes_with(&mark).iter().any(ready);
                    assert!(parent || eventually(gone), "after {moment:?}");
                }
                let none_left = || {
                    kill_all_with(&mark);
                    processes_with(&mark).is_empty()
                };
                assert!(eventually(none_left), "after {moment:?}: {:?}", processes_with(&mark));
            }
        }
        // Each interface disappears when the process that has made it ends.
        assert!(eventually(|| guest.interfaces() == ["lo"]), "{:?}", guest.interfaces());
        guest.end();
    });
}

/// The killed process is the process whose namespace pasta joins.
#[test]
fn killing_the_target_ends_pasta() {
    let stage = Stage::new();
    for user in [User::Root, User::Ordinary].into_iter().filter(|user| user.available()) {
        for moment in moments() {
            let mut guest = Guest::new(user);
            let namespace = fs::read_link(guest.namespace("net")).unwrap();
            let mark = unique();
            let mut command = stage.pasta(user);
            command.args(["--config-net", "--hostname", &mark, &guest.pid()]);
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            thread::sleep(moment);
            kill(guest.pid().parse().unwrap());
            assert!(eventually(|| child.try_wait().unwrap().is_some()), "after {moment:?}");
            assert_no_process(&mark, &format!("{user:?}, after {moment:?}"));
            guest.end();
            let holders = || holders(namespace.to_str().unwrap());
            assert!(eventually(|| holders().is_empty()), "{:?}", holders());
        }
    }
}

/// Starts and stops many times (`LIFE_STARTS`, default 200), in the background and with a command. No process,
/// interface, mount or reference to the namespace remains.
#[test]
fn many_starts_leave_nothing_behind() {
    let starts: usize = std::env::var("LIFE_STARTS").map_or(200, |count| count.parse().unwrap());
    let stage = Stage::new();
    let mounts = |stage: &Stage| {
        let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
        text.lines().filter(|line| line.contains(stage.path("").to_str().unwrap())).count()
    };
    User::each_with_guest(|user, mut guest| {
        let mark = unique();
        let namespace = fs::read_link(guest.namespace("net")).unwrap();
        let inside = holders(namespace.to_str().unwrap());
        for _ in 0..starts / 4 {
            let daemon = stage.attach(user, &["-q", "--config-net", "--hostname", &mark, &guest.pid()]);
            send(daemon.pid, Signal::TERM);
            assert!(eventually(|| !lives(daemon.pid)));
            assert!(stage.run(user, &["--config-net", "--hostname", &mark, "true"]).status.success());
        }
        assert_no_process(&mark, "stopped");
        assert_eq!(holders(namespace.to_str().unwrap()), inside);
        assert_eq!(guest.interfaces(), ["lo"]);
        assert_eq!(mounts(&stage), 0);
        guest.end();
        let holders = || holders(namespace.to_str().unwrap());
        assert!(eventually(|| holders().is_empty()), "{:?}", holders());
    });
}
