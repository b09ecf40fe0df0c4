//! Tests of the sandbox of a pasta or passt that serves a guest (behaviour §10.1).

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::thread;

use rustix::io::Errno;
use rustix::process::Signal;
use rustix::thread::{CapabilitySet, UnshareFlags};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    apply_filter,
};

use crate::stage::{Guest, Running, Stage, User, skipped, status, stderr};

fn namespace(process: &str, kind: &str) -> String {
    fs::read_link(format!("/proc/{process}/ns/{kind}")).unwrap().to_str().unwrap().to_owned()
}

/// Checks that the process has an empty, read-only root. It shares only its network namespace and, in the foreground,
/// its PID namespace.
fn assert_isolated(pid: i32, guest: &str, in_background: bool) {
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

/// A value of `kept` for the process of an ordinary user who was never root of a user namespace. Such a process can't
/// clear its bounding set.
const NO_RIGHTS: u64 = 1 << 63;

/// Checks the capabilities of every thread. The thread in the guest's namespace may only bind ports below 1024. The
/// main thread has the permitted capabilities `kept`. The thread that reads resolv.conf has none.
pub(crate) fn assert_threads_harmless(pid: i32, kept: u64) {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let mut names = Vec::new();
    for task in tasks {
        let status = fs::read_to_string(task.path().join("status")).unwrap();
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim();
        let name = field("Name:").to_owned();
        assert_eq!((field("NoNewPrivs:"), field("Seccomp:")), ("1", "2"), "{name}");
        let (effective, permitted) = match &*name {
            "pasta" | "passt" => (0, kept),
            "opener" => (CapabilitySet::NET_BIND_SERVICE.bits(), CapabilitySet::NET_BIND_SERVICE.bits()),
            _ => (0, 0),
        };
        let sets = [("Eff", effective), ("Prm", permitted), ("Inh", 0), ("Amb", 0), ("Bnd", 0)];
        // A process needs a capability to clear its bounding set. If the set remains full, no_new_privs makes it
        // harmless.
        let len = if kept == NO_RIGHTS { 4 } else { 5 };
        for (set, rights) in &sets[..len] {
            let set = format!("Cap{set}:");
            assert_eq!(u64::from_str_radix(field(&set), 16), Ok(*rights & !NO_RIGHTS), "{set} of {name}");
        }
        names.push(name);
    }
    names.sort();
    let passt = status(pid, "Name") == "passt";
    assert_eq!(
        names,
        if passt { &["passt", "resolv.conf"][..] } else { &["opener", "pasta", "resolv.conf"] }
    );
}

#[test]
fn a_daemon_of_pasta_is_isolated() {
    let stage = Stage::new();
    User::each_visible_with_guest(|user, guest| {
        let daemon = stage.attach(user, &["--config-net", "-I", "life0", &guest.pid()]);
        assert_isolated(daemon.pid, &guest.pid(), true);
    });
}

/// Passt also has its own user namespace, in which it has no privileges (behaviour §10.3).
#[test]
fn a_daemon_of_passt_is_isolated() {
    let stage = Stage::new();
    User::each_visible(|user| {
        let socket = stage.path(&format!("socket-{user:?}"));
        let daemon = stage.serve(user, &["-s", socket.to_str().unwrap()]);
        assert_threads_harmless(daemon.pid, 0);
        assert_isolated(daemon.pid, "self", true);
        assert_ne!(namespace(&daemon.pid.to_string(), "user"), namespace("self", "user"));
        daemon.send(Signal::TERM);
        daemon.assert_ends();
    });
}

/// If user namespaces are forbidden, root needs none, and the process of an ordinary user uses Landlock instead.
#[test]
fn passt_starts_without_a_user_namespace() {
    let stage = Stage::new();
    for user in [User::Root, User::Ordinary].into_iter().filter(|user| user.available()) {
        let socket = stage.path(&format!("socket-{user:?}"));
        let start = || stage.serve(user, &["-s", socket.to_str().unwrap()]);
        let daemon = refusing(&[no_unshare(UnshareFlags::NEWUSER)], Errno::PERM, start);
        assert!(daemon.output.contains("No user namespace"), "{}", daemon.output);
        assert_eq!(daemon.output.contains("Landlock"), user == User::Ordinary, "{}", daemon.output);
        assert_threads_harmless(daemon.pid, if user == User::Root { 0 } else { NO_RIGHTS });
        if user == User::Root {
            assert_isolated(daemon.pid, "self", true);
        }
    }
}

/// A process in the foreground stays in its PID namespace (behaviour §1.3.4).
#[test]
fn pasta_in_the_foreground_is_isolated() {
    let stage = Stage::new();
    User::each_visible(|user| {
        let mut command = stage.pasta(user);
        let mut pasta = Running::new(command.args(["--", "sh", "-c", "echo ready; exec sleep 1000"]));
        assert_eq!(pasta.line(), "ready");
        let pid = pasta.pid();
        let child = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        assert_isolated(pid, child.trim(), false);
        // A pasta that changed its user needs CAP_KILL to stop root's command.
        let kept = if user == User::Root { CapabilitySet::KILL } else { CapabilitySet::empty() };
        assert_threads_harmless(pid, kept.bits());
        pasta.send(Signal::TERM);
        pasta.end();
    });
}

/// Other processes do not see the mount of the empty root, even if mounts propagate.
#[test]
fn mounts_do_not_propagate_to_the_machine() {
    for user in [User::Root, User::RootOfNamespace].into_iter().filter(|user| user.available()) {
        let stage = Stage::new();
        // The guest is made here, since root of a namespace can join one of its own namespace only.
        let script = format!(
            "mount --make-rshared /; before=$(wc -l </proc/self/mountinfo); \
             unshare -n sleep 1000 >&- 2>&- & guest=$!; trap 'kill $guest' EXIT; \
             until [ $(readlink /proc/$guest/ns/net) != $(readlink /proc/$$/ns/net) ]; do sleep 0.01; done; \
             {} -P pid -I life0 $guest || exit 9; \
             test $before = $(wc -l </proc/self/mountinfo) && ls -d /tmp/. && kill $(cat pid)",
            stage.path("pasta").display(),
        );
        let mut command = user.command("unshare");
        let output = command.args(["-m", "sh", "-c", &script]).current_dir(stage.path("")).output().unwrap();
        assert!(output.status.success(), "{user:?}: {output:?}");
    }
}

/// Calls `run` while the system calls `calls` fail with `errno`. If a bit is given, a call fails only if its first
/// argument has this bit.
fn refusing<T: Send>(calls: &[(i64, Option<u64>)], errno: Errno, run: impl FnOnce() -> T + Send) -> T {
    let rules: BTreeMap<i64, Vec<SeccompRule>> = calls
        .iter()
        .map(|(number, bit)| {
            let condition = bit.map(|bit| {
                let set = SeccompCmpOp::MaskedEq(bit);
                SeccompCondition::new(0, SeccompCmpArgLen::Dword, set, bit).unwrap()
            });
            (*number, condition.into_iter().map(|it| SeccompRule::new(vec![it]).unwrap()).collect())
        })
        .collect();
    let refuse = SeccompAction::Errno(errno.raw_os_error().cast_unsigned());
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch).unwrap();
    let program: BpfProgram = filter.try_into().unwrap();
    let run = || {
        apply_filter(&program).unwrap();
        run()
    };
    // The filter applies to this thread and its children.
    thread::scope(|scope| scope.spawn(run).join().unwrap())
}

const NO_PIVOT: (i64, Option<u64>) = (libc::SYS_pivot_root, None);
const NO_LANDLOCK: (i64, Option<u64>) = (libc::SYS_landlock_create_ruleset, None);

fn no_unshare(namespace: UnshareFlags) -> (i64, Option<u64>) {
    (libc::SYS_unshare, Some(namespace.bits().into()))
}

/// Containers often forbid pivot_root. The log mentions Landlock.
#[test]
fn landlock_replaces_pivot_root() {
    let stage = Stage::new();
    for refused in [NO_PIVOT, no_unshare(UnshareFlags::NEWNS), (libc::SYS_mount, None)] {
        User::each_with_guest(|user, guest| {
            let start = || stage.attach(user, &["--config-net", "-I", "life0", &guest.pid()]);
            let daemon = refusing(&[refused], Errno::PERM, start);
            assert_eq!(guest.interfaces(), ["lo", "life0"]);
            let lines = daemon.output.lines().filter(|line| line.contains("Landlock")).count();
            assert_eq!(lines, 1, "{}", daemon.output);
            assert_threads_harmless(daemon.pid, 0);
            daemon.send(Signal::TERM);
            daemon.assert_ends();
        });
    }
}

#[test]
fn pasta_does_not_start_without_pivot_root_and_landlock() {
    let stage = Stage::new();
    let guest = Guest::new(User::ALL[1]);
    let start = || stage.run(User::ALL[1], &[&guest.pid()]);
    let output = refusing(&[NO_PIVOT, NO_LANDLOCK], Errno::OPNOTSUPP, start);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(stderr(&output).contains("pivot_root") && stderr(&output).contains("Landlock"), "{output:?}");
}

/// behaviour §10.5: without pivot_root and Landlock, `--chroot-fallback` empties the root directory.
#[test]
fn chroot_fallback_replaces_landlock() {
    let stage = Stage::new();
    User::each_visible_with_guest(|user, guest| {
        let start = || stage.attach(user, &["--chroot-fallback", "-I", "life0", &guest.pid()]);
        let daemon = refusing(&[NO_PIVOT, NO_LANDLOCK], Errno::INVAL, start);
        assert!(daemon.output.contains("--chroot-fallback"), "{}", daemon.output);
        let entries = fs::read_dir(format!("/proc/{}/root/", daemon.pid)).unwrap();
        assert_eq!(entries.count(), 0);
        assert_threads_harmless(daemon.pid, 0);
    });
}

/// IPC, UTS and PID namespaces are optional.
#[test]
fn pasta_starts_without_optional_namespaces() {
    let stage = Stage::new();
    for (namespace, name) in
        [(UnshareFlags::NEWIPC, "IPC"), (UnshareFlags::NEWUTS, "UTS"), (UnshareFlags::NEWPID, "PID")]
    {
        let guest = Guest::new(User::ALL[1]);
        let start = || stage.attach(User::ALL[1], &["-I", "life0", &guest.pid()]);
        let daemon = refusing(&[no_unshare(namespace)], Errno::NOSPC, start);
        assert!(daemon.output.contains(&format!("continuing without: {name}")), "{}", daemon.output);
        assert!(daemon.lives());
    }
}

/// The kernel has no seccomp filters.
#[test]
fn pasta_does_not_start_without_seccomp() {
    let stage = Stage::new();
    let guest = Guest::new(User::ALL[1]);
    let start = || stage.run(User::ALL[1], &[&guest.pid()]);
    let output = refusing(&[(libc::SYS_seccomp, None)], Errno::NOSYS, start);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(stderr(&output).contains("CONFIG_SECCOMP_FILTER"), "{output:?}");
}

/// The loaded filters allow no system call that could escape the sandbox, with any arguments.
#[test]
fn the_filter_allows_no_system_call_that_escapes() {
    let stage = Stage::new();
    let guest = Guest::new(User::ALL[1]);
    let api = stage.path("api");
    let options = ["-I", "life0", "--api-socket", api.to_str().unwrap(), &guest.pid()];
    let daemon = stage.attach(User::ALL[1], &options);
    let mut names = Vec::new();
    for task in fs::read_dir(format!("/proc/{}/task", daemon.pid)).unwrap().flatten() {
        let tid = task.file_name().to_str().unwrap().parse().ok().and_then(rustix::process::Pid::from_raw);
        let filters = match sys::ptrace::filters(tid.unwrap()) {
            Ok(filters) => filters,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return skipped("filters can be read with CAP_SYS_ADMIN over the machine alone");
            }
            Err(error) => panic!("{error}"),
        };
        let [filter] = &filters[..] else { panic!("{} filters", filters.len()) };
        let name = fs::read_to_string(task.path().join("comm")).unwrap();
        // The filter kills the process for every number with which it does not compare (0x15 is BPF_JMP | BPF_JEQ |
        // BPF_K).
        let compares = |number: i64| filter.iter().any(|i| i.code == 0x15 && i64::from(i.k) == number);
        names.push(name.trim().to_owned());
        let opens = [libc::SYS_openat, libc::SYS_readlinkat];
        assert_eq!(opens.iter().any(|call| compares(*call)), name == "resolv.conf\n", "{name}");
        for call in [
            libc::SYS_clone,
            libc::SYS_clone3,
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_setns,
            libc::SYS_unshare,
            libc::SYS_ptrace,
            libc::SYS_mount,
            libc::SYS_bpf,
            libc::SYS_kill,
            libc::SYS_openat2,
            libc::SYS_io_uring_setup,
            libc::SYS_prctl,
            libc::SYS_setresuid,
        ] {
            assert!(!compares(call), "{call} in {name}");
        }
    }
    assert!(["opener", "api"].iter().all(|name| names.iter().any(|known| known == name)), "{names:?}");
}
