//! Tests of the program as a service: sockets that the service manager passes, and the report that it is ready
//! (docs/design/systemd.md).

use std::io::Read;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixStream};

use crate::harness::*;

/// A service manager: opens sockets and becomes the program. Before `--`, each argument is a setting NAME=VALUE of the
/// environment, in which `@` is the process ID, or a socket: kind, address (or path) and port, separated by blanks.
const MANAGER: &str = r#"
import fcntl, os, socket, sys
at = sys.argv.index("--")
sockets = []
for word in sys.argv[1:at]:
    if "=" in word:
        name, value = word.split("=", 1)
        os.environ[name] = value.replace("@", str(os.getpid()))
        continue
    kind, address, *port = word.split(" ")
    if kind == "unix":
        s = socket.socket(socket.AF_UNIX)
        s.bind(address)
        os.chmod(address, 0o666)
    else:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        s = socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
        if address == "::":
            s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        s.bind((address, int(port[0])))
    if kind != "udp":
        s.listen()
    # The numbers of the descriptors are chosen below, so none of them may be in use.
    sockets.append(fcntl.fcntl(s, fcntl.F_DUPFD, 100))
for number, fd in enumerate(sockets):
    os.dup2(fd, 3 + number)
    os.close(fd)
os.environ.setdefault("LISTEN_PID", str(os.getpid()))
os.environ["LISTEN_FDS"] = str(len(sockets))
os.execvp(sys.argv[at + 1], sys.argv[at + 1:])
"#;

/// Starts a program by the service manager.
fn start(net: &Net, settings: &[&str], program: &[String]) -> Running {
    let program = program.iter().map(String::as_str);
    let argv = ["python3", "-c", MANAGER].iter().chain(settings).copied().chain(["--"]).chain(program);
    net.host.start(&argv.collect::<Vec<_>>())
}

/// The command line of pasta in the foreground for the guest.
fn pasta(net: &Net, options: &[&str]) -> Vec<String> {
    net.pasta_argv(&[&["-f", "--config-net", "--netns", "/run/netns/guest"], options].concat())
}

/// The socket to which services report.
struct Reports {
    socket: UnixDatagram,
    setting: String,
}

impl Reports {
    fn new(net: &Net) -> Self {
        let path = net.path("reports");
        let socket = UnixDatagram::bind(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, setting: format!("NOTIFY_SOCKET={path}") }
    }

    fn next(&self) -> String {
        let mut buffer = [0; 256];
        let len = self.socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..len]).into_owned()
    }

    fn is_empty(&self) -> bool {
        self.socket.set_nonblocking(true).unwrap();
        self.socket.recv(&mut [0; 256]).is_err()
    }
}

fn has_python() -> bool {
    let has = has_tool("python3");
    if !has {
        skipped("python3 is not installed");
    }
    has
}

/// An ordinary user's pasta serves ports below 1024, by each kind of address.
#[test]
fn pasta_forwards_by_sockets_that_it_was_passed() {
    let Some(net) = Net::new().filter(|_| has_python()) else { return };
    let reports = Reports::new(&net);
    let host4 = HOST[0].to_string();
    let sockets = ["tcp :: 80".to_owned(), format!("tcp {host4} 81"), "udp :: 53".to_owned()];
    let settings: Vec<&str> =
        sockets.iter().map(String::as_str).chain([&*reports.setting, "SYSTEMD_EXEC_PID=@"]).collect();
    let rule = format!("{host4}/81:8081");
    let program = pasta(&net, &["-t", "80:8080", "-t", &rule, "-u", "53:5300"]);
    let _pasta = start(&net, &settings, &program);
    assert_eq!(reports.next(), "READY=1\n");

    let servers = [8080, 8081].map(|port| net.guest.listen((Ipv6Addr::UNSPECIFIED, port)));
    for (to, server) in [
        (SocketAddr::from((HOST[0], 80)), &servers[0]),
        (SocketAddr::from((HOST[1], 80)), &servers[0]),
        (SocketAddr::from((HOST[0], 81)), &servers[1]),
    ] {
        let client = net.peer.connect(to).unwrap();
        let (accepted, _) = accept(server);
        send(&client, 1, 100_000);
        receive(&accepted, 1, 100_000);
    }
    for (host, peer) in [(HOST[0], PEER[0]), (HOST[1], PEER[1])] {
        let server = net.guest.udp((any(host), 5300));
        let client = net.peer.udp((peer, 0));
        client.send_to(b"question", (host, 53)).unwrap();
        let (question, from) = recv_from(&server);
        assert_eq!(question, b"question");
        server.send_to(b"answer", from).unwrap();
        assert_eq!(recv_from(&client), (b"answer".to_vec(), (host, 53).into()));
    }
}

/// Each socket that no rule names is an error, which says what is missing.
#[test]
fn a_socket_without_a_rule_is_refused() {
    let Some(net) = Net::new().filter(|_| has_python()) else { return };
    let path = net.path("unused.socket");
    let unix = format!("unix {path}");
    for (socket, options, expected) in [
        ("tcp :: 80", &["-t", "81"][..], "needs -t 80[:PORT]"),
        ("tcp 127.0.0.1 80", &["-t", "80"], "needs -t 127.0.0.1/80[:PORT]"),
        ("udp ::1 53", &["-u", "127.0.0.1/53"], "needs -u ::1/53[:PORT]"),
        ("tcp :: 80", &[], "needs -t 80[:PORT]"),
        (&unix, &["-t", "80"], &path),
    ] {
        let end = start(&net, &[socket], &pasta(&net, options)).wait();
        assert_eq!(end.code(), 1, "{socket}: {end:?}");
        assert!(end.stderr.contains(expected), "{socket}: {end:?}");
        assert!(end.stderr.contains("the service manager passes"), "{socket}: {end:?}");
    }
}

/// Sockets and reports for another process are left alone: podman may run as a service and start pasta.
#[test]
fn what_is_for_another_process_is_left_alone() {
    let Some(net) = Net::new().filter(|_| has_python()) else { return };
    let reports = Reports::new(&net);
    let settings = ["tcp :: 80", "LISTEN_PID=1", &reports.setting, "SYSTEMD_EXEC_PID=1"];
    let program = net.pasta_argv(&["--config-net", "--pid", &net.path("pid"), "--netns", "/run/netns/guest"]);
    let end = start(&net, &settings, &program).wait();
    assert_eq!(end.code(), 0, "{end:?}");
    assert!(reports.is_empty());
    // A command reports itself.
    let settings = [&*reports.setting, "SYSTEMD_EXEC_PID=@"];
    let end =
        start(&net, &settings, &net.pasta_argv(&["--config-net", "--", "printenv", "NOTIFY_SOCKET"])).wait();
    assert_eq!((end.code(), end.stdout.trim()), (0, &*net.path("reports")), "{end:?}");
    assert!(reports.is_empty());
}

/// In the background, the report names the process that stays.
#[test]
fn the_report_names_the_process_in_the_background() {
    let Some(net) = Net::new().filter(|_| has_python()) else { return };
    let reports = Reports::new(&net);
    let settings = [&*reports.setting, "SYSTEMD_EXEC_PID=@"];
    let file = net.path("pid");
    let program = net.pasta_argv(&["--config-net", "--pid", &file, "--netns", "/run/netns/guest"]);
    let end = start(&net, &settings, &program).wait();
    assert_eq!(end.code(), 0, "{end:?}");
    let pid = std::fs::read_to_string(file).unwrap();
    assert_eq!(reports.next(), format!("MAINPID={}\nREADY=1\n", pid.trim()));
}

/// The client of the virtual machine's socket may come before passt.
#[test]
fn passt_serves_the_socket_that_it_was_passed() {
    let Some(net) = Net::new().filter(|_| has_python()) else { return };
    let path = net.path("vm.socket");
    let unix = format!("unix {path}");
    let program = [env!("CARGO_BIN_EXE_passt"), "-f", "--one-off", "--socket", &path].map(str::to_owned);
    // The shell starts the program only when a client is connected.
    let script = format!("touch {0}.bound; while ! [ -e {0}.go ]; do sleep 0.05; done; exec \"$@\"", path);
    let waiting: Vec<String> =
        ["sh", "-c", &script, "sh"].map(str::to_owned).into_iter().chain(program).collect();
    let passt = start(&net, &[&unix], &waiting);
    wait_until("the socket", || std::path::Path::new(&format!("{path}.bound")).exists());
    let mut client = UnixStream::connect(&path).unwrap();
    std::fs::write(format!("{path}.go"), "").unwrap();
    // A frame that no guest may send ends nothing; an ARP request for the gateway is answered.
    let mut request = [0_u8; 46];
    request[..4].copy_from_slice(&42_u32.to_be_bytes());
    request[4..10].fill(0xff);
    request[10..16].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    request[16..26].copy_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    request[26..32].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    request[42..46].copy_from_slice(&Ipv4Addr::new(198, 51, 100, 1).octets());
    std::io::Write::write_all(&mut client, &request).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut length = [0; 4];
    client.read_exact(&mut length).unwrap();
    drop(client);
    let end = passt.wait();
    assert_eq!(end.code(), 0, "{end:?}");
}
