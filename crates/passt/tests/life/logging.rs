//! Tests of the destinations of log messages (behaviour §1.7).

use std::fs;
use std::os::unix::fs::PermissionsExt;

use rustix::process::Signal;

use crate::stage::{Daemon, Guest, Running, Stage, User, stderr};

/// behaviour §1.7.1, §1.7.4: the first line names the program, each further line has a time and a level. During the
/// start, messages also go to standard error. The file is opened with the caller's rights. R-10: the file is complete
/// at the end.
#[test]
fn the_log_file_is_complete_r10() {
    let stage = Stage::new();
    User::each_with_guest(|user, mut guest| {
        // A pasta of root changes its user. The new user can't enter this folder.
        let folder = stage.path(&format!("folder-{user:?}"));
        assert!(user.command("mkdir").args(["-m", "0700"]).arg(&folder).status().unwrap().success());
        let path = folder.join("log");
        let daemon = stage.attach(user, &["--config-net", "-l", path.to_str().unwrap(), &guest.pid()]);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let at_start = fs::read_to_string(&path).unwrap();
        let pid = guest.pid();
        guest.end();
        daemon.assert_ends();

        let text = fs::read_to_string(&path).unwrap();
        let rest = text.strip_prefix(&at_start).unwrap();
        let title = format!("pasta {}: {} (", env!("CARGO_PKG_VERSION"), stage.path("pasta").display());
        assert!(text.starts_with(&title), "{text}");
        for line in text.lines().skip(1) {
            let (time, message) = line.split_once(": ").unwrap();
            assert_eq!(time.split_once('.').unwrap().1.len(), 4, "{line}");
            assert!(["info:    ", "WARNING: "].iter().any(|prefix| message.starts_with(prefix)), "{line}");
        }
        assert!(rest.contains(&format!("info:    network namespace of process {pid} is gone")), "{rest}");
        assert!(rest.ends_with('\n'));
        // The messages of the start also went to standard error.
        let logged =
            at_start.lines().skip(1).map(|line| line.split_once(": ").unwrap().1[9..].to_owned() + "\n");
        let logged: String = logged.collect();
        assert_eq!(daemon.output.replace("pasta: warning: ", ""), logged);
    });
}

/// Pasta forwards SIGTERM to the command, and logs this. This differs from behaviour §1.4, where SIGTERM ends pasta and
/// leaves the command without a network.
#[test]
fn a_signal_passed_on_to_the_command_is_logged() {
    let stage = Stage::new();
    let log = stage.path("log");
    for (script, message) in [
        ("trap 'exit 5' TERM; echo ready; sleep 1000 & wait", "signal 15 is passed on to the command"),
        ("echo ready; exec sleep 1000", "signal 15: the command does not handle it and is killed"),
    ] {
        let mut command = stage.pasta(User::Ordinary);
        command.args(["-d", "-l"]).arg(&log).args(["--", "sh", "-c", script]);
        let mut pasta = Running::new(&mut command);
        assert_eq!(pasta.line(), "ready");
        pasta.send(Signal::TERM);
        pasta.end();
        let text = fs::read_to_string(&log).unwrap();
        assert!(text.contains(&format!("info:    {message}\n")), "{text}");
    }
}

/// Pasta does not end when the limit of file sizes (`ulimit -f`) is reached, neither during the start nor later.
#[test]
fn a_file_size_limit_does_not_end_pasta() {
    let stage = Stage::new();
    let guest = Guest::new(User::Ordinary);
    let mut command = User::Ordinary.command("prlimit");
    let log = stage.path("log");
    command.current_dir(stage.path("")).arg("--fsize=1024").arg(stage.path("pasta"));
    let output = command.args(["--debug", "-P", "pid", "-l"]).arg(&log).arg(guest.pid()).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let daemon = Daemon::of(stage.path("pid"));
    let text = fs::read_to_string(&log).unwrap();
    // If a line did not fit, no part of it was written.
    assert!((512..=1024).contains(&text.len()) && text.ends_with('\n'), "the limit was not reached: {text}");
    daemon.send(Signal::TERM);
    daemon.assert_ends();
}

#[test]
fn an_unwritable_log_is_an_error() {
    let stage = Stage::new();
    let guest = Guest::new(User::Ordinary);
    for option in ["--log-file", "--flow-log"] {
        for path in ["/nonexistent/log", "/tmp", "/dev/full", "/proc/version"] {
            let output = stage.run(User::Ordinary, &[option, path, &guest.pid()]);
            assert_eq!(output.status.code(), Some(1), "{output:?}");
            assert!(stderr(&output).contains(&format!("{path} ({option})")), "{output:?}");
        }
    }
}
