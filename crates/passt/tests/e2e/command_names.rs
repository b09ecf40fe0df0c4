//! Tests of how pasta's command resolves names under rules by name (behaviour §1.5.11). The namespaces `host` have
//! daemons that resolve names over UNIX sockets, as many machines do.

use crate::harness::*;
use crate::names::{AT_FAR, DNS_ALONE};
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use wire::dns::Type;

const ROWS: &[Row] = &[("index.example.org", Type::A, AT_FAR), ("other.example.com", Type::A, AT_FAR)];
/// The address of systemd-resolved's stub.
const STUB: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53));
const RULE: [&str; 2] = ["--allow", "index.example.org:443"];
/// Shows resolv.conf, and resolves a name.
const LOOK: &str = "cat /etc/resolv.conf; getent ahostsv4 index.example.org";
/// The sockets of daemons, below `/run`.
const SOCKETS: [&str; 4] =
    ["nscd/socket", "systemd/resolve/io.systemd.Resolve", "avahi-daemon/socket", "dbus/system_bus_socket"];

fn net(user: User, host_setup: &'static str) -> Option<Net> {
    let resolv_conf = "search corp.example\nnameserver 127.0.0.53\noptions ndots:2\n";
    Net::with(Options { user, resolv_conf, host_setup, ..Options::default() })
}

/// One listener behind all [`SOCKETS`] of the host. It counts the clients that ask for hosts, and closes connections.
/// Programs that run before pasta's command may ask for users.
struct Daemons(Arc<AtomicUsize>);

impl Daemons {
    fn start(net: &Net) -> Self {
        let path = net.path("daemons");
        let listener = UnixListener::bind(&path).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
        for socket in SOCKETS {
            net.host.sh(&format!(
                "s=/run/{socket}; mkdir -p ${{s%/*}}; touch $s; mount --bind {path} $s
                 [ /var/run -ef /run ] || {{ echo 'no /var/run' >&2; exit 1; }}"
            ));
        }
        let clients = Arc::new(AtomicUsize::new(0));
        let count = clients.clone();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                // The first message of a client of nscd is the name of a database, or the name that is asked for.
                let mut message = [0; 512];
                let len = client.and_then(|mut client| client.read(&mut message)).unwrap_or(0);
                let has = |text: &[u8]| message[..len].windows(text.len()).any(|part| part == text);
                if has(b"hosts") || has(b"example") {
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Daemons(clients)
    }

    fn clients(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// Checks the output of [`LOOK`]: the command asks the gateway, which is the DNS address for a resolver on the host's
/// loopback.
fn assert_resolves(end: &Finished) {
    assert_eq!(end.code(), 0, "{end:?}");
    let lines: Vec<&str> = end.stdout.lines().collect();
    assert!(lines.contains(&"nameserver 198.51.100.1"), "{end:?}");
    assert!(!end.stdout.contains("127.0.0.53"), "{end:?}");
    assert!(lines.contains(&"search corp.example") && lines.contains(&"options ndots:2"), "{end:?}");
    assert!(lines.iter().any(|line| line.starts_with("203.0.113.2 ")), "{end:?}");
}

fn command_as(user: User, options: &[&str]) {
    let Some(net) = net(user, DNS_ALONE) else { return };
    let resolver = Resolver::with(&net.host, STUB, ROWS);
    let daemons = Daemons::start(&net);
    let options = [&RULE, options].concat();
    assert_resolves(&net.spawn(&options, &["sh", "-ec", LOOK]));
    let refused = net.spawn(&options, &["getent", "ahostsv4", "other.example.com"]);
    assert_eq!(refused.code(), 2, "{refused:?}");
    assert!(refused.stderr.contains("asked for other.example.com A (default deny)"), "{refused:?}");
    assert_eq!(daemons.clients(), 0);
    assert!(resolver.asked().iter().all(|query| query.name == "index.example.org"), "{:?}", resolver.asked());

    let hidden = SOCKETS.map(|socket| format!("[ ! -e /run/{socket} ] && [ ! -e /var/run/{socket} ]"));
    assert_eq!(net.spawn(&options, &["sh", "-c", &hidden.join(" && ")]).code(), 0);
    // The host has its files and sockets still.
    assert!(net.host.sh("cat /etc/resolv.conf").contains("127.0.0.53"));
    SOCKETS.iter().for_each(|socket| drop(net.host.sh(&format!("[ -S /run/{socket} ]"))));
}

#[test]
fn a_command_of_userns_root_resolves_names_over_the_link_only() {
    command_as(User::UsernsRoot, &[]);
}

#[test]
fn a_command_of_an_ordinary_user_resolves_names_over_the_link_only() {
    command_as(User::Ordinary, &[]);
}

#[test]
fn a_command_of_plain_root_resolves_names_over_the_link_only() {
    command_as(User::PlainRoot, &[]);
    command_as(User::PlainRoot, &["--netns-only"]);
}

/// An audit judges all questions, too.
#[test]
fn a_command_under_audit_resolves_names_over_the_link_only() {
    let Some(net) = net(User::UsernsRoot, DNS_ALONE) else { return };
    let _resolver = Resolver::with(&net.host, STUB, ROWS);
    let daemons = Daemons::start(&net);
    let audit = [&RULE[..], &["--policy-audit"]].concat();
    let end = net.spawn(&audit, &["getent", "ahostsv4", "other.example.com"]);
    assert_eq!(end.code(), 0, "{end:?}");
    assert!(end.stderr.contains("would be refused: DNS "), "{end:?}");
    assert_eq!(daemons.clients(), 0);
}

/// Without rules by name, nothing is changed. This also shows that the daemon of these tests would be asked.
#[test]
fn without_rules_by_name_the_command_asks_as_the_host_does() {
    let Some(net) = net(User::UsernsRoot, DNS_ALONE) else { return };
    let daemons = Daemons::start(&net);
    let look = "cat /etc/resolv.conf; getent ahostsv4 index.example.org || :";
    let end = net.spawn(&["--deny", "metadata"], &["sh", "-ec", look]);
    assert_eq!(end.code(), 0, "{end:?}");
    assert!(end.stdout.contains("nameserver 127.0.0.53"), "{end:?}");
    if net.host.run(&["sh", "-c", "getent --version | grep -qE 'GLIBC|GNU'"]).code() != 0 {
        return skipped("the C library is not glibc, which asks nscd");
    }
    assert_ne!(daemons.clients(), 0, "{end:?}");
}

/// Shell commands that give the host an `/etc` of its own, without resolv.conf.
macro_rules! own_etc {
    ($($more:literal),*) => {
        concat!(
            "mkdir /run/etc
             for file in passwd group protocols services ld.so.cache; do
                 [ ! -e /etc/$file ] || cp /etc/$file /run/etc
             done
             echo 'hosts: dns' >/run/etc/nsswitch.conf
             mount --bind /run/etc /etc\n",
            $($more),*
        )
    };
}

/// The link may lead into the directory of systemd-resolved, which is hidden, or into another one.
#[test]
fn resolv_conf_may_be_a_symbolic_link() {
    const INTO_RESOLVED: &str = own_etc!(
        "mkdir -p /run/systemd/resolve; echo 'nameserver 127.0.0.53' >/run/systemd/resolve/stub-resolv.conf
         printf 'search corp.example\\noptions ndots:2\\n' >>/run/systemd/resolve/stub-resolv.conf
         ln -s ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf"
    );
    const INTO_ANOTHER: &str = own_etc!(
        "mkdir -p /run/NetworkManager; echo 'nameserver 127.0.0.53' >/run/NetworkManager/resolv.conf
         printf 'search corp.example\\noptions ndots:2\\n' >>/run/NetworkManager/resolv.conf
         ln -s /run/NetworkManager/resolv.conf /etc/resolv.conf"
    );
    for host_setup in [INTO_RESOLVED, INTO_ANOTHER] {
        let Some(net) = net(User::UsernsRoot, host_setup) else { return };
        let _resolver = Resolver::with(&net.host, STUB, ROWS);
        assert_resolves(&net.spawn(&RULE, &["sh", "-ec", LOOK]));
    }
}

#[test]
fn a_missing_resolv_conf_is_a_warning() {
    const DANGLING: &str = own_etc!("ln -s ../run/nowhere/resolv.conf /etc/resolv.conf");
    for host_setup in [own_etc!(), DANGLING] {
        let Some(net) = net(User::UsernsRoot, host_setup) else { return };
        let end = net.spawn(&RULE, &["sh", "-c", "[ ! -e /etc/resolv.conf ]"]);
        assert_eq!(end.code(), 0, "{end:?}");
        assert!(end.stderr.contains("warning: /etc/resolv.conf does not exist"), "{end:?}");
    }
}

/// The command does not run if the rules would not hold.
#[test]
fn a_resolv_conf_that_cannot_be_replaced_is_an_error() {
    let Some(net) = net(User::UsernsRoot, own_etc!("mkdir /etc/resolv.conf")) else { return };
    let end = net.spawn(&RULE, &["echo", "it runs"]);
    assert_eq!((end.code(), &*end.stdout), (1, ""), "{end:?}");
    assert!(end.stderr.contains("can't mount over /etc/resolv.conf"), "{end:?}");
    assert!(end.stderr.contains("rules by name"), "{end:?}");
    // The end of the command's process causes no other message.
    assert!(!end.stderr.contains("namespace"), "{end:?}");
}

/// A root directory as bubblewrap makes it: a read-only tmpfs with mounts, of which resolv.conf is one.
const SMALL_ROOT: &str = r#"
mkdir /run/root; mount -t tmpfs none /run/root
cp /etc/resolv.conf /run/resolv.conf
cd /run/root
mkdir dev etc old proc run tmp usr
for d in bin lib lib64 sbin; do
    if [ -L /$d ]; then cp -P /$d .; elif [ -d /$d ]; then mkdir $d; mount --rbind /$d $d; fi
done
for d in dev proc tmp usr; do mount --rbind /$d $d; done
touch pasta etc/resolv.conf
mount --bind /run/pasta pasta
mount --bind /run/resolv.conf etc/resolv.conf
mount -o remount,bind,ro etc/resolv.conf
echo 'hosts: dns' >etc/nsswitch.conf
mount -o remount,ro .
pivot_root . old
umount -l old
cd /
exec /pasta --config-net --allow index.example.org:443 -- sh -ec "$1"
"#;

#[test]
fn the_root_directory_may_be_read_only() {
    need!("pivot_root");
    let Some(net) = net(User::UsernsRoot, "") else { return };
    let _resolver = Resolver::with(&net.host, STUB, ROWS);
    let end = net.host.run(&["unshare", "--mount", "sh", "-ec", SMALL_ROOT, "sh", LOOK]);
    assert_resolves(&end);
}
