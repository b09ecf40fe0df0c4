//! Tests of starts on machines and in containers that lack a feature or a right (behaviour §10.3).

use std::process::Output;

use crate::stage::{Stage, User, stderr};

/// The result of a start.
enum Outcome {
    /// The command has its network.
    Works,
    /// The status is 1, and the message contains this text.
    Fails(&'static str),
}

use Outcome::{Fails, Works};

/// Runs the shell script `script`, which starts `$PASTA`, under `unshare OPTIONS`.
fn start(stage: &Stage, user: User, options: &str, script: &str) -> Output {
    let pasta = stage.path("pasta").display().to_string();
    let mut command = user.command("unshare");
    command
        .arg(options)
        .args(["sh", "-ec", script])
        .env("PASTA", format!("{pasta} -q --config-net -I life0"));
    command.current_dir(stage.path("")).output().unwrap()
}

fn check(user: User, options: &str, cases: &[(&str, Outcome)]) {
    if !user.available() {
        return;
    }
    let stage = Stage::new();
    for (script, outcome) in cases {
        let output = start(&stage, user, options, &format!("{script} -- grep -o life0 /proc/net/dev"));
        let (status, out) = (output.status.code(), String::from_utf8_lossy(&output.stdout));
        match outcome {
            Works => assert_eq!((status, &*out), (Some(0), "life0\n"), "{script}: {output:?}"),
            Fails(text) => {
                assert_eq!((status, &*out), (Some(1), ""), "{script}: {output:?}");
                assert!(stderr(&output).contains(text), "{script}: {output:?}");
            }
        }
    }
}

const READ_ONLY: &str = "mount --make-rprivate /; mount -o remount,bind,ro /; $PASTA";
const NO_TUN: &str = "mount -t tmpfs none /dev/net; $PASTA";
const OTHER_TUN: &str = "mount --bind /dev/null /dev/net/tun; $PASTA";
const NO_PROC: &str = "mount -t tmpfs none /proc; $PASTA";
const NO_DEV: &str = "mount -t tmpfs none /dev; $PASTA";
/// A script that enters a root directory without /tmp with chroot(2). The kernel refuses to create user namespaces in a
/// chroot.
const CHROOT: &str = "mount -t tmpfs none mnt; cd mnt; mkdir usr dev proc etc; \
    for d in usr dev proc etc; do mount --rbind /$d $d; done; ln -s usr/bin usr/lib usr/lib64 .; \
    cp ../pasta .; chroot . /pasta -q --config-net -I life0";

#[test]
fn root_starts_where_the_machine_allows_it() {
    check(
        User::Root,
        "-m",
        &[
            (READ_ONLY, Works),
            (NO_TUN, Fails("/dev/net/tun")),
            (OTHER_TUN, Fails("tap device")),
            (NO_PROC, Fails("/proc is not mounted")),
            (NO_DEV, Fails("/dev/null")),
            ("setpriv --no-new-privs $PASTA", Works),
            // Root has no capabilities, as in some containers.
            ("setpriv --bounding-set=-all --inh-caps=-all $PASTA", Fails("uid_map")),
        ],
    );
}

#[test]
fn root_starts_in_a_chroot_without_a_user_namespace() {
    let in_chroot = format!("mkdir mnt; {CHROOT} --netns-only");
    let with_users = format!("mkdir mnt2; cd mnt2; mkdir mnt; cp ../pasta .; {CHROOT}");
    check(User::Root, "-m", &[(&in_chroot, Works), (&with_users, Fails("can't create namespaces"))]);
}

/// `unshare -Ur` and rootless containers: root of a user namespace keeps its user (behaviour §10.2).
#[test]
fn root_of_a_user_namespace_starts_where_it_is_allowed() {
    check(
        User::Ordinary,
        "-Urm",
        &[
            ("mount -o remount,bind,ro /; $PASTA", Works),
            (NO_TUN, Fails("/dev/net/tun")),
            (NO_PROC, Fails("/proc is not mounted")),
            ("$PASTA --netns-only", Works),
            ("unshare -Ur unshare -Ur $PASTA", Works),
            ("setpriv --no-new-privs $PASTA", Works),
            ("echo 0 >/proc/sys/user/max_user_namespaces; $PASTA", Fails("/proc/sys/user")),
            ("echo 0 >/proc/sys/user/max_user_namespaces; $PASTA --netns-only", Works),
            // The command's mount namespace is the last one that the limit allows. So pasta uses Landlock instead of
            // its own mount namespace.
            ("echo 2 >/proc/sys/user/max_mnt_namespaces; $PASTA --netns-only", Works),
        ],
    );
}
