//! What pasta has taken from itself once it serves a guest (behaviour §10.1).

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

use crate::stage::{Guest, Running, Stage, User, is_root, skipped, status, stderr};

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

/// As what an ordinary user keeps who has never been root of a user namespace.
const NO_RIGHTS: u64 = 1 << 63;

/// Every thread: the one in the guest's namespace may open ports below 1024 there, and nothing else; the first keeps the
/// right to rights of `kept`; the one that reads resolv.conf may do nothing that any user can't.
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
        // Without any right one can't empty the bounding set either, which no_new_privs makes up for.
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

/// Passt has a user namespace of its own, too, in which it is nobody (behaviour §10.3).
#[test]
fn passt_is_apart_from_everything() {
    let stage = Stage::new();
    for user in User::ALL.into_iter().filter(|user| user.available()) {
        let socket = stage.path(&format!("socket-{user:?}"));
        let daemon = stage.serve(user, &["-s", socket.to_str().unwrap()]);
        assert_threads_harmless(daemon.pid, 0);
        if may_look() {
            assert_apart(daemon.pid, "self", true);
            assert_ne!(namespace(&daemon.pid.to_string(), "user"), namespace("self", "user"));
        }
        daemon.send(Signal::TERM);
        daemon.assert_ends();
    }
}

/// Where user namespaces are forbidden: root needs none, for others there is Landlock.
#[test]
fn passt_without_a_user_namespace() {
    let stage = Stage::new();
    for user in [User::Root, User::Ordinary].into_iter().filter(|user| user.available()) {
        let socket = stage.path(&format!("socket-{user:?}"));
        let start = || stage.serve(user, &["-s", socket.to_str().unwrap()]);
        let daemon = refusing(&[no_unshare(UnshareFlags::NEWUSER)], Errno::PERM, start);
        assert!(daemon.output.contains("No user namespace"), "{}", daemon.output);
        assert_eq!(daemon.output.contains("Landlock"), user == User::Ordinary, "{}", daemon.output);
        assert_threads_harmless(daemon.pid, if user == User::Root { 0 } else { NO_RIGHTS });
        if user == User::Root && may_look() {
            assert_apart(daemon.pid, "self", true);
        }
    }
}

/// Who stays in the foreground stays in its PID namespace (behaviour §1.3.4).
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
        // Nobody else could stop root's command.
        let kept = if user == User::Root { CapabilitySet::KILL } else { CapabilitySet::empty() };
        assert_threads_harmless(pid, kept.bits());
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

/// Does something with system calls of some numbers failing, or only with a bit in the first argument.
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
    // It holds for one thread and its children.
    thread::scope(|scope| scope.spawn(run).join().unwrap())
}

const NO_PIVOT: (i64, Option<u64>) = (libc::SYS_pivot_root, None);
const NO_LANDLOCK: (i64, Option<u64>) = (libc::SYS_landlock_create_ruleset, None);

fn no_unshare(namespace: UnshareFlags) -> (i64, Option<u64>) {
    (libc::SYS_unshare, Some(namespace.bits().into()))
}

/// As in containers: where the root directory can't be replaced, Landlock denies files, and the log says so.
#[test]
fn landlock_denies_files_where_the_root_cannot_be_replaced() {
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
fn without_landlock_either_it_does_not_start() {
    let stage = Stage::new();
    let guest = Guest::new(User::ALL[1]);
    let start = || stage.run(User::ALL[1], &[&guest.pid()]);
    let output = refusing(&[NO_PIVOT, NO_LANDLOCK], Errno::OPNOTSUPP, start);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(stderr(&output).contains("pivot_root") && stderr(&output).contains("Landlock"), "{output:?}");
}

/// behaviour §10.5.
#[test]
fn chroot_fallback() {
    if !may_look() {
        return;
    }
    let stage = Stage::new();
    User::each_with_guest(|user, guest| {
        let start = || stage.attach(user, &["--chroot-fallback", "-I", "life0", &guest.pid()]);
        let daemon = refusing(&[NO_PIVOT, NO_LANDLOCK], Errno::INVAL, start);
        assert!(daemon.output.contains("--chroot-fallback"), "{}", daemon.output);
        let entries = fs::read_dir(format!("/proc/{}/root/", daemon.pid)).unwrap();
        assert_eq!(entries.count(), 0);
        assert_threads_harmless(daemon.pid, 0);
    });
}

/// The namespaces that matter less.
#[test]
fn without_some_namespaces_it_starts() {
    let stage = Stage::new();
    for (namespace, name) in
        [(UnshareFlags::NEWIPC, "IPC"), (UnshareFlags::NEWUTS, "UTS"), (UnshareFlags::NEWPID, "PID")]
    {
        let guest = Guest::new(User::ALL[1]);
        let start = || stage.attach(User::ALL[1], &["-I", "life0", &guest.pid()]);
        let daemon = refusing(&[no_unshare(namespace)], Errno::NOSPC, start);
        assert!(daemon.output.contains(&format!("can't be our own: {name}")), "{}", daemon.output);
        assert!(daemon.lives());
    }
}

/// A kernel without filters of system calls.
#[test]
fn without_seccomp_it_does_not_start() {
    let stage = Stage::new();
    let guest = Guest::new(User::ALL[1]);
    let start = || stage.run(User::ALL[1], &[&guest.pid()]);
    let output = refusing(&[(libc::SYS_seccomp, None)], Errno::NOSYS, start);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(stderr(&output).contains("CONFIG_SECCOMP_FILTER"), "{output:?}");
}

/// What the loaded filters allow, whatever the arguments: nothing that leads out.
#[test]
fn what_leads_out_is_forbidden() {
    if !may_look() {
        return;
    }
    let stage = Stage::new();
    let guest = Guest::new(User::ALL[1]);
    let daemon = stage.attach(User::ALL[1], &["-I", "life0", &guest.pid()]);
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
        // All comparisons with a number lead to a list of those that are looked at; the others are fatal.
        let compares = |number: i64| filter.iter().any(|i| i.code == 0x15 && i64::from(i.k) == number);
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
}
