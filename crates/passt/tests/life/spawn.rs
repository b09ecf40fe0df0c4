//! Tests of a pasta with a command, which runs in new namespaces (behaviour §1.4, §1.5).

use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::stage::{Running, Stage, User, eventually, processes_with, skipped, stderr, stdout, unique};

/// behaviour §1.5: the test checks the environment of the command. Q19: this also applies if root starts pasta, which
/// then changes its own user.
#[test]
fn the_command_is_root_in_new_namespaces() {
    let stage = Stage::new();
    User::each(|user| {
        let host = std::fs::read_link("/proc/self/ns/net").unwrap();
        let script = "id -u; id -g; echo $$; hostname; cat /proc/sys/net/ipv4/ping_group_range; \
            readlink /proc/self/ns/net; cat /proc/self/setgroups; grep -c . /proc/self/uid_map; \
            grep CapEff /proc/self/status; ls /proc | grep -c '^[0-9]'";
        let output = stage.run_script(user, &["--config-net"], script);
        let text = stdout(&output);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[..3], ["0", "0", "1"], "{text}");
        assert!(lines[3].starts_with("pasta-"), "{text}");
        assert_eq!(lines[4], "0\t0");
        assert_ne!(lines[5], host.to_str().unwrap());
        assert_eq!(lines[6..8], ["deny", "1"]);
        assert!(lines[8].ends_with("ffffffffff"), "{text}");
        // The command has a new /proc, which shows only the command's processes.
        assert!(lines[9].parse::<u32>().unwrap() < 6, "{text}");
        assert_eq!(stderr(&output), "");
    });
}

#[test]
fn files_of_the_command_belong_to_the_caller() {
    let stage = Stage::new();
    User::each(|user| {
        let name = format!("file-{user:?}");
        let output = stage.run_script(user, &[], &format!("touch {name}"));
        assert!(output.status.success(), "{output:?}");
        let theirs = stage.path(&format!("theirs-{user:?}"));
        assert!(user.command("touch").arg(&theirs).status().unwrap().success());
        let owner = |path: &std::path::Path| path.metadata().map(|meta| (meta.uid(), meta.gid())).unwrap();
        assert_eq!(owner(&stage.path(&name)), owner(&theirs));
    });
}

/// behaviour §1.5.6: the option is `--hostname`.
#[test]
fn hostname_sets_the_host_name() {
    let output = Stage::new().run_script(User::ALL[1], &["--hostname", "guest.example"], "hostname");
    assert_eq!(stdout(&output), "guest.example\n");
}

/// behaviour §1.5.3: the option is `--no-pidns`.
#[test]
fn no_pidns_keeps_the_hosts_process_ids() {
    let stage = Stage::new();
    User::each(|user| {
        let text = stdout(&stage.run_script(user, &["--no-pidns"], "echo $$; readlink /proc/self/ns/pid"));
        let (pid, namespace) = text.trim().split_once('\n').unwrap();
        assert_ne!(pid, "1");
        assert_eq!(namespace, std::fs::read_link("/proc/self/ns/pid").unwrap().to_str().unwrap());
    });
}

/// behaviour §1.5.7: the default command is $SHELL. If it is not set, the command is /bin/sh.
#[test]
fn the_default_command_is_a_login_shell() {
    let stage = Stage::new();
    for shell in [Some("/bin/sh"), None] {
        let mut command = stage.pasta(User::Ordinary);
        match shell {
            Some(shell) => command.env("SHELL", shell),
            None => command.env_remove("SHELL"),
        };
        std::fs::write(stage.path("script"), "echo $0\n").unwrap();
        let output = command.stdin(std::fs::File::open(stage.path("script")).unwrap()).output().unwrap();
        assert_eq!(stdout(&output), "-/bin/sh\n");
    }
}

/// pasta passes options after the command on to the command.
#[test]
fn options_after_the_command_belong_to_it_r2() {
    let output = Stage::new().run(User::Ordinary, &["echo", "-d", "--netns", "x", "--", "-q"]);
    assert_eq!(stdout(&output), "-d --netns x -- -q\n");
    assert_eq!(stderr(&output), "");
}

/// behaviour §1.4: if a signal kills the command, the status is 128 plus the number of the signal.
#[test]
fn the_exit_status_is_that_of_the_command() {
    let stage = Stage::new();
    User::each(|user| {
        for status in [0, 7, 255] {
            let output = stage.run_script(user, &[], &format!("exit {status}"));
            assert_eq!(output.status.code(), Some(status), "{output:?}");
        }
        // The kernel discards signals that process 1 of a PID namespace sends to itself (behaviour §1.5.2).
        assert_eq!(stage.run_script(user, &[], "kill -9 $$").status.code(), Some(0));
        assert_eq!(stage.run_script(user, &["--no-pidns"], "kill -9 $$").status.code(), Some(137));
        assert_eq!(stage.run_script(user, &["--no-pidns"], "kill -15 $$").status.code(), Some(143));
    });
}

/// the status is 1, and the message names the command.
#[test]
fn a_command_that_cannot_be_executed_is_an_error_r13() {
    let stage = Stage::new();
    std::fs::write(stage.path("not-executable"), "").unwrap();
    User::each(|user| {
        for command in ["no-such-command", "/no/such/path", "./not-executable", ""] {
            let output = stage.run(user, &["--", command]);
            assert_eq!(output.status.code(), Some(1), "{command}: {output:?}");
            assert!(stderr(&output).contains(&format!("'{command}'")), "{output:?}");
        }
    });
}

/// the command inherits neither pasta's descriptors nor descriptors that the caller left open.
#[test]
fn the_command_inherits_three_descriptors_r13_r11() {
    let stage = Stage::new();
    User::each(|user| {
        let pasta = stage.path("pasta");
        let script = format!("exec 7</dev/null 9</; exec {} -- sh -c 'ls /proc/$$/fd'", pasta.display());
        let output = user.command("sh").args(["-c", &script]).output().unwrap();
        assert_eq!(stdout(&output), "0\n1\n2\n");
    });
}

/// The command has the signal dispositions, signal mask and limits of the caller, and not those that pasta sets for
/// itself.
#[test]
fn the_command_inherits_signals_and_limits_of_the_caller() {
    let stage = Stage::new();
    let pasta = stage.path("pasta");
    let show = "grep -E '^Sig(Blk|Ign)' /proc/self/status; ulimit -Sn";
    let run = |script: &str| stdout(&User::Ordinary.command("sh").args(["-c", script]).output().unwrap());
    for before in ["ulimit -Sn 123", "trap '' PIPE CHLD TERM XFSZ; ulimit -Sn 1234"] {
        let direct = run(&format!("{before}; exec sh -c \"{show}\""));
        let through = run(&format!("{before}; exec {} -- sh -c \"{show}\"", pasta.display()));
        assert_eq!(through, direct);
    }
}

/// after a fatal error, the forked child ends and does not run the command.
#[test]
fn a_fatal_error_leaves_no_process_r1() {
    let stage = Stage::new();
    User::each(|user| {
        let mark = format!("mark-{}", unique());
        // An interface with this name already exists.
        let output = stage.run(user, &["--ns-ifname", "lo", "--", "touch", &mark]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(stderr(&output).contains("'lo'"), "{output:?}");
        assert_eq!(processes_with(&mark), Vec::<String>::new());
        assert!(!stage.path(&mark).exists());
    });
}

/// behaviour §1.3.5: a successful start prints nothing.
#[test]
fn a_start_with_a_command_prints_nothing() {
    let output = Stage::new().run(User::Ordinary, &["--config-net", "true"]);
    assert!(output.status.success());
    assert_eq!((output.stdout.len(), stderr(&output)), (0, String::new()));
}

/// behaviour §1.3.4: in the foreground, the process ID does not change.
#[test]
fn the_pid_file_names_the_foreground_process() {
    let stage = Stage::new();
    let file = stage.path("pid");
    let mut pasta = Running::new(stage.pasta(User::Ordinary).arg("-P").arg(&file).args([
        "--",
        "sh",
        "-c",
        "echo ready; exec sleep 1000",
    ]));
    assert_eq!(pasta.line(), "ready");
    assert_eq!(std::fs::read_to_string(file).unwrap(), format!("{}\n", pasta.pid()));
    pasta.send(Signal::TERM);
    pasta.end();
}

/// Pasta passes SIGTERM and SIGHUP on to the command, and ends with the command.
#[test]
fn signals_are_passed_on_to_the_command() {
    let stage = Stage::new();
    User::each(|user| {
        let script = "trap 'exit 5' TERM; trap 'exit 6' HUP; echo ready; sleep 1000 & wait";
        for (signal, status) in [(Signal::TERM, 5), (Signal::HUP, 6)] {
            let mut pasta = Running::new(stage.pasta(user).args(["--", "sh", "-c", script]));
            assert_eq!(pasta.line(), "ready");
            pasta.send(signal);
            assert_eq!(pasta.end().code(), Some(status));
        }
    });
}

/// The kernel does not deliver a signal without a handler to process 1 of a PID namespace, so pasta kills the command
/// instead.
#[test]
fn signals_without_a_handler_end_the_command() {
    let stage = Stage::new();
    User::each(|user| {
        for options in [&[][..], &["--no-pidns"]] {
            let mark = format!("1000.{}", unique().replace('-', ""));
            let script = format!("echo ready; exec sleep {mark}");
            let mut pasta = Running::new(stage.pasta(user).args(options).args(["--", "sh", "-c", &script]));
            assert_eq!(pasta.line(), "ready");
            // The test waits until the shell has executed sleep.
            assert!(eventually(|| processes_with(&format!("sleep {mark}"))
                .iter()
                .any(|l| l.starts_with("sleep"))));
            pasta.send(Signal::TERM);
            assert_eq!(pasta.end().code(), Some(143), "{options:?}");
            assert!(eventually(|| processes_with(&mark).is_empty()));
        }
    });
}

/// Pasta keeps serving a command that ignores the signal.
#[test]
fn an_ignored_signal_does_not_end_pasta() {
    let stage = Stage::new();
    let script = "trap '' TERM; echo ready; read line; echo $line; exit 3";
    let mut command = stage.pasta(User::Ordinary);
    command.args(["--", "sh", "-c", script]);
    let mut pasta = Running::new(command.stdin(Stdio::piped()));
    assert_eq!(pasta.line(), "ready");
    pasta.send(Signal::TERM);
    pasta.write(b"still here\n");
    assert_eq!(pasta.line(), "still here");
    assert_eq!(pasta.end().code(), Some(3));
}

/// behaviour §1.5.8: a killed pasta does not end the command.
#[test]
fn the_command_survives_pasta() {
    let stage = Stage::new();
    let mut command = stage.pasta(User::Ordinary);
    command.args(["--", "sh", "-c", "echo ready; read line; echo done"]);
    let mut pasta = Running::new(command.stdin(Stdio::piped()));
    assert_eq!(pasta.line(), "ready");
    pasta.send(Signal::KILL);
    assert_eq!(pasta.end().signal(), Some(9));
    pasta.write(b"\n");
    assert_eq!(pasta.line(), "done");
}

/// behaviour §1.5.9, R-3: pasta reaps children that it inherits from the caller, and continues. They end while it starts, or before.
#[test]
fn inherited_children_are_reaped_r3() {
    let stage = Stage::new();
    let during = ("sh", "-c", "for i in 1 2 3 4 5 6 7 8; do sleep 0.0$i & done; exec \"$0\" \"$@\"");
    // A shell would reap the child.
    let ended = "if ($p = fork) { do { open F, \"/proc/$p/stat\"; $_ = <F> } until / Z /; exec @ARGV }";
    for (interpreter, option, script) in [during, ("perl", "-e", ended)] {
        if Command::new(interpreter).args([option, ""]).status().is_err() {
            skipped(&format!("{interpreter} is not installed"));
            continue;
        }
        let mut command = User::Ordinary.command(interpreter);
        command.args([option, script]).arg(stage.path("pasta"));
        command.args(["--", "sh", "-c", "echo ready; read line; exit 4"]);
        let mut pasta = Running::new(command.stdin(Stdio::piped()));
        assert_eq!(pasta.line(), "ready");
        let pid = pasta.pid();
        let children = || std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        assert!(eventually(|| children().split_whitespace().count() == 1), "children: {}", children());
        pasta.write(b"\n");
        assert_eq!(pasta.end().code(), Some(4));
    }
}

/// behaviour §10.2: `--runas` applies to pasta and the command.
#[test]
fn runas_applies_to_the_command() {
    if !User::Root.available() {
        return;
    }
    let stage = Stage::new();
    for (runas, uid, gid) in [("12345", 12345, 12345), ("12345:12346", 12345, 12346), ("0", 0, 0)] {
        let name = format!("file-{runas}");
        let script = format!("touch {name}; id -u; id -G");
        let output = stage.run_script(User::Root, &["--runas", runas], &script);
        assert_eq!(stdout(&output), "0\n0\n");
        let meta = stage.path(&name).metadata().unwrap();
        assert_eq!((meta.uid(), meta.gid()), (uid, gid), "{runas}");
    }
    let output = stage.run(User::Root, &["--runas", "root", "true"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("--runas"), "{output:?}");
}

/// behaviour §10.3: `--netns-only` needs privileges.
#[test]
fn netns_only_needs_privileges() {
    let stage = Stage::new();
    User::each(|user| {
        let output = stage.run_script(user, &["--netns-only", "--config-net"], "readlink /proc/self/ns/user");
        if user == User::Ordinary {
            assert_eq!(output.status.code(), Some(1));
            assert!(stderr(&output).contains("--netns-only"), "{output:?}");
            return;
        }
        let text = stdout(&output);
        let ours = std::fs::read_link("/proc/self/ns/user").unwrap();
        assert_eq!(text.trim() == ours.to_str().unwrap(), user == User::Root);
        // The mount of the command's /proc does not hide the host's.
        assert!(std::path::Path::new(&format!("/proc/{}/stat", std::process::id())).exists());
    });
}

/// If root has no capabilities to change its user, pasta starts and stays root.
#[test]
fn root_without_setuid_capability_starts() {
    if !User::Root.available() {
        return;
    }
    let stage = Stage::new();
    let mut command = User::Root.command("setpriv");
    command.args(["--bounding-set", "-sys_admin,-setuid", "--inh-caps", "-sys_admin,-setuid"]);
    let output = command.arg(stage.path("pasta")).args(["--config-net", "--", "id", "-u"]).output().unwrap();
    assert_eq!(stdout(&output), "0\n");
    assert_eq!(stderr(&output), "");
}

/// docs/api.md: pesto finds pasta by a socket, which is gone when pasta has ended. A process that becomes another user
/// has none, since it could not remove it.
#[test]
fn a_socket_for_pesto_exists_while_pasta_runs() {
    let stage = Stage::new();
    User::each(|user| {
        let runtime = stage.path(&format!("run-{user:?}"));
        assert!(user.command("mkdir").arg("-m700").arg(&runtime).status().unwrap().success());
        let mut pasta = stage.pasta(user);
        pasta.args(["--config-net", "--", "sh", "-c", "cd $XDG_RUNTIME_DIR; ls -d passt/* || true"]);
        let output = pasta.env("XDG_RUNTIME_DIR", &runtime).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let seen = stdout(&output);
        let pid = seen.strip_prefix("passt/").and_then(|rest| rest.strip_suffix(".api\n"));
        assert_eq!(pid.is_some_and(|pid| pid.parse::<u32>().is_ok()), user != User::Root, "{output:?}");
        let left: Vec<_> = std::fs::read_dir(runtime.join("passt")).into_iter().flatten().collect();
        assert!(left.is_empty(), "{left:?}");
    });
}
