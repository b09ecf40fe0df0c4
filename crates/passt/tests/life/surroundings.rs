//! Where it starts: machines and containers that lack something (behaviour §10.3).

use std::process::Output;

use crate::stage::{Stage, User, stderr};

/// What becomes of a start.
enum Outcome {
    /// The command has its network.
    Works,
    /// Status 1, and a message with this in it.
    Fails(&'static str),
}

use Outcome::{Fails, Works};

/// Runs `$PASTA` by `script`, by the shell, below `unshare OPTIONS`.
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
/// A root without /tmp, which chroot(2) has led to: user namespaces can't be made from there.
const CHROOT: &str = "mount -t tmpfs none mnt; cd mnt; mkdir usr dev proc etc; \
    for d in usr dev proc etc; do mount --rbind /$d $d; done; ln -s usr/bin usr/lib usr/lib64 .; \
    cp ../pasta .; chroot . /pasta -q --config-net -I life0";

#[test]
fn of_root() {
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
            // In name only, as in some containers.
            ("setpriv --bounding-set=-all --inh-caps=-all $PASTA", Fails("uid_map")),
        ],
    );
}

#[test]
fn of_root_in_another_root() {
    let in_chroot = format!("mkdir mnt; {CHROOT} --netns-only");
    let with_users = format!("mkdir mnt2; cd mnt2; mkdir mnt; cp ../pasta .; {CHROOT}");
    check(User::Root, "-m", &[(&in_chroot, Works), (&with_users, Fails("can't create namespaces"))]);
}

/// `unshare -Ur` and rootless containers: root of a user namespace stays who it is (behaviour §10.2).
#[test]
fn of_root_of_a_user_namespace() {
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
            // The command's one is the last: Landlock steps in.
            ("echo 2 >/proc/sys/user/max_mnt_namespaces; $PASTA --netns-only", Works),
        ],
    );
}
