//! Name service through us: `--dns-forward`, and resolvers that the guest can't reach by their own address
//! (behaviour §3.4.5, §5.2).

use crate::harness::*;
use crate::local::{dhclient, has, unconfigured};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::thread;

/// A query for the A record of `name.`
fn query(id: u16, name: &str) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0, name.len() as u8]);
    message.extend(name.as_bytes());
    message.extend([0, 0, 1, 0, 1]);
    message
}

/// The same message as an answer with one address.
fn answer(query: &[u8], address: [u8; 4]) -> Vec<u8> {
    let mut message = query.to_vec();
    message[2] |= 0x80;
    message[7] = 1;
    message.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
    message.extend(address);
    message
}

/// Name service, and the same over TLS or DTLS.
const PORTS: [u16; 2] = [53, 853];
const LOOPBACK_53: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53));
const LOOPBACK_RESOLVERS: &str = "nameserver 127.0.0.53\nnameserver ::1\n";
/// Loopback addresses of the host that only its resolver is at.
const AT_LOOPBACK: [IpAddr; 2] = [LOOPBACK_53, IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// What the guest asks at `to`, by UDP and TCP on either port, gets to the resolver in `server` at `at`.
fn resolves(net: &Net, to: IpAddr, server: &Ns, at: IpAddr) {
    for port in PORTS {
        resolves_by(net, (to, port), server, (at, port).into());
    }
}

/// Answers one query over UDP and one over TCP, in `server` at `at`, with an address that identifies it; asks
/// both in the guest at `to`, and checks the answers.
fn resolves_by(net: &Net, to: (IpAddr, u16), server: &Ns, at: SocketAddr) {
    let (socket, listener) = (server.udp(at), server.listen(at));
    thread::scope(|scope| {
        scope.spawn(move || {
            // Not one of those that are asked again and again until somebody hears them.
            let (question, from) = std::iter::repeat_with(|| recv_from(&socket))
                .find(|(question, _)| *question == query(0x1234, "peer"))
                .unwrap();
            socket.send_to(&answer(&question, [192, 0, 2, 80]), from).unwrap();
            let (mut stream, _) = accept(&listener);
            let mut len = [0; 2];
            stream.read_exact(&mut len).unwrap();
            let mut question = vec![0; u16::from_be_bytes(len).into()];
            stream.read_exact(&mut question).unwrap();
            let reply = answer(&question, [192, 0, 2, 81]);
            stream.write_all(&(reply.len() as u16).to_be_bytes()).unwrap();
            stream.write_all(&reply).unwrap();
        });

        let question = query(0x1234, "peer");
        let client = net.guest.udp((any(to.0), 0));
        client.send_to(&question, to).unwrap();
        assert_eq!(recv_from(&client), (answer(&question, [192, 0, 2, 80]), to.into()));

        let question = query(0x4321, "peer");
        let mut client = net.guest.connect(to).unwrap();
        client.write_all(&(question.len() as u16).to_be_bytes()).unwrap();
        client.write_all(&question).unwrap();
        let mut reply = Vec::new();
        client.read_to_end(&mut reply).unwrap();
        let expected = answer(&question, [192, 0, 2, 81]);
        assert_eq!(reply[..2], (expected.len() as u16).to_be_bytes());
        assert_eq!(reply[2..], expected);
    });
}

/// The first resolver of the host's resolv.conf, of each family, is what `--dns-forward` leads to (§3.4.4).
#[test]
fn dns_forward() {
    let Some(net) = Net::new() else { return };
    let forward = MAPPED.map(|ip| ip.to_string());
    net.pasta(&["--dns-forward", &forward[0], "--dns-forward", &forward[1]]);
    for v in 0..2 {
        resolves(&net, MAPPED[v], &net.peer, PEER[v]);
    }
}

/// A host with servers of one family has names for a guest that asks by the other (§3.4.4), even one that has only that.
#[test]
fn dns_servers_of_the_other_family() {
    for (resolv_conf, v, only) in
        [("nameserver 2001:db8:1::3\n", 0, "--ipv4-only"), ("nameserver 198.51.100.3\n", 1, "--ipv6-only")]
    {
        for more in [&[][..], &[only]] {
            let Some(net) = Net::with(Options { resolv_conf, ..Options::default() }) else { return };
            net.pasta(&[&["--dns-forward", &MAPPED[v].to_string()], more].concat());
            resolves(&net, MAPPED[v], &net.peer, PEER[1 - v]);
        }
    }
}

/// The first server is silent, or does not listen: the second one answers, by UDP and TCP.
#[test]
fn dns_servers_that_fail() {
    let silent = "nameserver 198.51.100.200\nnameserver 198.51.100.3\n";
    let deaf = "nameserver 198.51.100.4\nnameserver 2001:db8:1::4\nnameserver 198.51.100.3\n";
    for resolv_conf in [silent, deaf] {
        let Some(net) = Net::with(Options { resolv_conf, ..Options::default() }) else { return };
        net.pasta(&["--dns-forward", &MAPPED[0].to_string()]);
        for _ in 0..2 {
            resolves(&net, MAPPED[0], &net.peer, PEER[0]);
        }
    }
}

/// The first server refuses: the second one has the answer. If all refuse, the guest learns that.
#[test]
fn dns_servers_that_refuse() {
    let resolv_conf = "nameserver 198.51.100.4\nnameserver 198.51.100.3\n";
    let Some(net) = Net::with(Options { resolv_conf, ..Options::default() }) else { return };
    net.pasta(&["--dns-forward", &MAPPED[0].to_string()]);
    let (first, second) = (net.peer.udp((PEER_ALIAS[0], 53)), net.peer.udp((PEER[0], 53)));
    let client = net.guest.udp((any(MAPPED[0]), 0));
    let refused = |question: &[u8]| {
        let mut message = question.to_vec();
        (message[2], message[3]) = (0x81, 0x85);
        message
    };
    for (id, last) in [(1, answer(&query(1, "peer"), [192, 0, 2, 80])), (2, refused(&query(2, "peer")))] {
        client.send_to(&query(id, "peer"), (MAPPED[0], 53)).unwrap();
        let (question, from) = recv_from(&first);
        first.send_to(&refused(&question), from).unwrap();
        let (question, from) = recv_from(&second);
        assert_eq!(question, query(id, "peer"));
        second.send_to(&last, from).unwrap();
        let expected = if id == 1 { last } else { refused(&question) };
        assert_eq!(recv_from(&client), (expected, (MAPPED[0], 53).into()));
    }
}

/// If nobody listens, the guest learns that at once, in its own family.
#[test]
fn dns_without_any_server() {
    let resolv_conf = "nameserver 198.51.100.3\nnameserver 2001:db8:1::3\n";
    let Some(net) = Net::with(Options { resolv_conf, ..Options::default() }) else { return };
    let forward = MAPPED.map(|ip| ip.to_string());
    net.pasta(&["--dns-forward", &forward[0], "--dns-forward", &forward[1]]);
    for to in MAPPED {
        let client = net.guest.udp((any(to), 0));
        client.connect((to, 53)).unwrap();
        client.send(&query(7, "peer")).unwrap();
        let error = client.recv(&mut [0; 100]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{error}");
        let error = net.guest.connect((to, 53)).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{error}");
    }
}

/// A name server of the guest's that asks many questions from one port, and stubs with a port for each: no socket is left.
#[test]
fn dns_questions_leave_nothing_behind() {
    let Some(net) = Net::new() else { return };
    let pasta = net.pasta(&["--dns-forward", &MAPPED[0].to_string()]);
    let before = pasta.descriptors();
    let server = net.peer.udp((PEER[0], 53));
    let one = net.guest.udp((any(MAPPED[0]), 0));
    for id in 0..200 {
        let stub = net.guest.udp((any(MAPPED[0]), 0));
        for client in [&one, &stub] {
            client.send_to(&query(id, "peer"), (MAPPED[0], 53)).unwrap();
            let (question, from) = recv_from(&server);
            server.send_to(&answer(&question, [192, 0, 2, 80]), from).unwrap();
            assert_eq!(recv_from(client).0, answer(&query(id, "peer"), [192, 0, 2, 80]));
        }
    }
    assert!(pasta.descriptors() <= before + 2, "{} before, {} now", before, pasta.descriptors());
}

/// §2.2: `--dns-host` wins over resolv.conf.
#[test]
fn dns_host() {
    let Some(net) = Net::new() else { return };
    let [forward, host] = [MAPPED, PEER_ALIAS].map(|ips| ips.map(|ip| ip.to_string()));
    let given = |v: usize| ["--dns-forward", &forward[v], "--dns-host", &host[v]];
    net.pasta(&[given(0), given(1)].concat());
    for v in 0..2 {
        resolves(&net, MAPPED[v], &net.peer, PEER_ALIAS[v]);
    }
}

/// As podman starts it: an address outside of any subnet, without a mapping of the gateway.
#[test]
fn dns_forward_as_podman_does() {
    let Some(net) = Net::new() else { return };
    net.pasta(&["--dns-forward", "169.254.1.1", "--no-map-gw", "--map-guest-addr", "169.254.1.2"]);
    resolves(&net, "169.254.1.1".parse().unwrap(), &net.peer, PEER[0]);
}

/// §3.4.5, R-35: a resolver on the host's loopback, which has no other name in the guest; with a mapping of the
/// loopback, and without.
#[test]
fn loopback_resolver_by_dns_forward_r35() {
    for no_mapping in [&["--no-map-gw"][..], &[]] {
        let options = Options { resolv_conf: LOOPBACK_RESOLVERS, ..Options::default() };
        let Some(net) = Net::with(options) else { return };
        let forward = MAPPED.map(|ip| ip.to_string());
        net.pasta(&[&["--dns-forward", &forward[0], "--dns-forward", &forward[1]], no_mapping].concat());
        for v in 0..2 {
            resolves(&net, MAPPED[v], &net.host, AT_LOOPBACK[v]);
        }
    }
}

/// §3.4.5: a resolver on the host's loopback is reached by the address that stands for the loopback.
#[test]
fn loopback_resolver_by_mapping() {
    let options = Options { resolv_conf: LOOPBACK_RESOLVERS, ..Options::default() };
    let Some(net) = Net::with(options) else { return };
    net.pasta(&[]);
    for v in 0..2 {
        resolves(&net, GATEWAY[v], &net.host, AT_LOOPBACK[v]);
    }
}

/// §3.4.5, R-36: the gateway is the resolver and also stands for the host's loopback: queries go to the resolver.
#[test]
fn gateway_is_resolver_r36() {
    let resolv_conf = "nameserver 198.51.100.1\nnameserver 2001:db8:1::1\n";
    let Some(net) = Net::with(Options { resolv_conf, ..Options::default() }) else { return };
    net.pasta(&[]);
    for gateway in GATEWAY {
        resolves(&net, gateway, &net.peer, gateway);
    }
}

/// What the guest is offered in each of the four cases of §3.4.5 where the resolver is on the host's loopback.
#[test]
fn loopback_resolver_as_advertised() {
    need!("dhclient");
    for (options, offered) in [
        (&[][..], Some("198.51.100.1")),
        (&["--no-map-gw"], None),
        (&["--dns-forward", "198.51.100.99"], Some("198.51.100.99")),
        (&["--dns-forward", "198.51.100.99", "--no-map-gw"], Some("198.51.100.99")),
    ] {
        let resolv_conf = "nameserver 127.0.0.53\n";
        let Some(net) = Net::with(Options { resolv_conf, ..Options::default() }) else { return };
        unconfigured(&net, &[&["--dhcp-dns"], options].concat());
        let told = dhclient(&net, "-4", "");
        let servers = told.lines().find_map(|line| line.strip_prefix("new_domain_name_servers="));
        assert_eq!(servers, offered, "{options:?}: {told}");
        assert!(told.contains("reason=BOUND"), "{told}");
    }
}

/// Where `/etc/resolv.conf` leads to a file that a service replaces, as with systemd-resolved.
const LINKED: &str = "
mkdir -p /run/etc /run/resolver
cp /etc/passwd /etc/group /etc/ld.so.cache /etc/nsswitch.conf /run/etc/ || :
cp /etc/resolv.conf /run/resolver/stub.conf
ln -s ../run/resolver/stub.conf /run/etc/resolv.conf
mount --bind /run/etc /etc
";

/// Asks at the address for `--dns-forward` until the resolver of `THE_OTHERS` is asked.
fn wait_for_the_other(net: &Net) {
    wait_for_resolver(net, PEER_ALIAS[0]);
}

fn wait_for_resolver(net: &Net, at: IpAddr) {
    let server = net.peer.udp((at, 53));
    server.set_nonblocking(true).unwrap();
    wait_until("a query to the new resolver", || {
        let client = net.guest.udp((any(MAPPED[0]), 0));
        client.send_to(&query(1, "peer"), (MAPPED[0], 53)).unwrap();
        server.recv_from(&mut [0; 512]).is_ok()
    });
}

const THE_OTHERS: &str = "search new.test\nnameserver 198.51.100.4\nnameserver 2001:db8:1::4\n";

fn follows(who: Who, host_setup: &'static str, replace: impl Fn(&Net)) {
    let Some(net) = Net::with(Options { who, host_setup, ..Options::default() }) else { return };
    let forward = MAPPED.map(|ip| ip.to_string());
    let forward = ["--dns-forward", &forward[0], "--dns-forward", &forward[1]];
    net.pasta(&[&forward[..], &["--dhcp-dns", "--dhcp-search"]].concat());
    // Under way when the resolvers change, and not concerned.
    let listener = net.peer.listen((PEER[0], 53));
    let mut client = net.guest.connect((MAPPED[0], 53)).unwrap();
    let (mut server, _) = accept(&listener);
    drop(listener);
    for v in 0..2 {
        resolves(&net, MAPPED[v], &net.peer, PEER[v]);
    }

    replace(&net);
    wait_for_the_other(&net);
    for v in 0..2 {
        resolves(&net, MAPPED[v], &net.peer, PEER_ALIAS[v]);
    }
    client.write_all(b"still").unwrap();
    let mut still = [0; 5];
    server.read_exact(&mut still).unwrap();
    assert_eq!(&still, b"still");
    let told = dhclient(&net, "-4", "");
    has(&told, &["new_domain_name_servers=198.51.100.4"]);
    assert!(told.contains("new.test"), "{told}");
}

fn rename_over(net: &Net) {
    std::fs::write(net.path("next"), THE_OTHERS).unwrap();
    net.host.sh(&format!(
        "cp {} /run/resolver/next; mv /run/resolver/next /run/resolver/stub.conf",
        net.path("next")
    ));
}

/// A service replaces the file that `/etc/resolv.conf` is a link to.
#[test]
fn follows_a_file_that_is_renamed_over() {
    need!("dhclient");
    follows(Who::UsernsRoot, LINKED, rename_over);
}

/// The same when we have become another user meanwhile.
#[test]
fn follows_as_another_user() {
    need!("dhclient");
    follows(Who::PlainRoot, LINKED, rename_over);
}

/// The link is replaced by one to another of the directories known, and back.
#[test]
fn follows_a_link_that_is_replaced() {
    need!("dhclient");
    follows(Who::UsernsRoot, LINKED, |net| {
        std::fs::write(net.path("next"), THE_OTHERS).unwrap();
        net.host.sh(&format!(
            "cp {} /etc/vpn.conf; ln -s /etc/vpn.conf /etc/next; mv /etc/next /etc/resolv.conf",
            net.path("next")
        ));
        wait_for_the_other(net);
        net.host.sh("ln -s ../run/resolver/stub.conf /etc/next; mv /etc/next /etc/resolv.conf");
        wait_for_resolver(net, PEER[0]);
        rename_over(net);
    });
}

/// Our root is empty: a link can't lead us to what we do not hold.
#[test]
fn links_out_of_sight_change_nothing() {
    let Some(net) = Net::with(Options { host_setup: LINKED, ..Options::default() }) else { return };
    let forward = MAPPED[0].to_string();
    net.pasta(&["--dns-forward", &forward]);
    std::fs::write(net.path("next"), THE_OTHERS).unwrap();
    net.host.sh(&format!(
        "mkdir /run/vpn; cp {} /run/vpn/resolv.conf; ln -s /run/vpn/resolv.conf /etc/next; mv /etc/next /etc/resolv.conf",
        net.path("next")
    ));
    resolves(&net, MAPPED[0], &net.peer, PEER[0]);
    net.host.sh("ln -sf ../run/resolver/stub.conf /etc/resolv.conf");
    rename_over(&net);
    wait_for_the_other(&net);
}

/// As in a container: the file is a mount, and is written in place.
#[test]
fn follows_a_file_that_is_rewritten() {
    need!("dhclient");
    follows(Who::UsernsRoot, "", |net| {
        std::fs::write(net.path("resolv.conf"), THE_OTHERS).unwrap();
    });
}

/// A file that says nothing of use changes nothing; one that does later is still noticed.
#[test]
fn useless_files_change_nothing() {
    let Some(net) = Net::with(Options { host_setup: LINKED, ..Options::default() }) else { return };
    let forward = MAPPED[0].to_string();
    net.pasta(&["--dns-forward", &forward]);
    net.host.sh(
        "printf '\\377\\0nameserver x\\n' >/run/resolver/stub.conf; : >/etc/resolv.conf; rm /etc/resolv.conf",
    );
    resolves(&net, MAPPED[0], &net.peer, PEER[0]);
    net.host.sh("mkfifo /run/resolver/pipe; ln -s /run/resolver/pipe /etc/resolv.conf");
    resolves(&net, MAPPED[0], &net.peer, PEER[0]);
    rename_over(&net);
    net.host.sh("ln -sf ../run/resolver/stub.conf /etc/resolv.conf");
    wait_for_the_other(&net);
}
