//! Name service through us: `--dns-forward`, and resolvers that the guest can't reach by their own address
//! (SPEC §3.4.5, §5.2).

use crate::harness::*;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
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

/// Answers one query over UDP and one over TCP, in `server` at `at`, with an address that identifies it; asks
/// both in the guest at `to`, and checks the answers.
fn resolves(net: &Net, to: IpAddr, server: &Ns, at: impl Into<SocketAddr>) {
    let at = at.into();
    let (socket, listener) = (server.udp(at), server.listen(at));
    thread::scope(|scope| {
        scope.spawn(move || {
            let (question, from) = recv_from(&socket);
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
        let client = net.guest.udp((any(to), 0));
        client.send_to(&question, (to, 53)).unwrap();
        assert_eq!(recv_from(&client), (answer(&question, [192, 0, 2, 80]), (to, 53).into()));

        let question = query(0x4321, "peer");
        let mut client = net.guest.connect((to, 53)).unwrap();
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
        resolves(&net, MAPPED[v], &net.peer, (PEER[v], 53));
    }
}

/// As podman starts it: an address outside of any subnet, without a mapping of the gateway.
#[test]
fn dns_forward_as_podman_does() {
    let Some(net) = Net::new() else { return };
    net.pasta(&["--dns-forward", "169.254.1.1", "--no-map-gw", "--map-guest-addr", "169.254.1.2"]);
    resolves(&net, "169.254.1.1".parse().unwrap(), &net.peer, (PEER[0], 53));
}

/// a resolver on the host's loopback, which has no other name in the guest.
#[test]
fn loopback_resolver_r35() {
    let resolv_conf = "nameserver 127.0.0.53\n";
    let Some(net) = Net::with(Options { resolv_conf, ..Options::default() }) else { return };
    net.pasta(&["--dns-forward", "198.51.100.99", "--no-map-gw"]);
    resolves(&net, MAPPED[0], &net.host, ("127.0.0.53".parse::<IpAddr>().unwrap(), 53));
}

/// the gateway is the resolver and also stands for the host's loopback: queries go to the resolver.
#[test]
fn gateway_is_resolver_r36() {
    let resolv_conf = "nameserver 198.51.100.1\nnameserver 2001:db8:1::1\n";
    let Some(net) = Net::with(Options { resolv_conf, ..Options::default() }) else { return };
    net.pasta(&[]);
    for gateway in GATEWAY {
        resolves(&net, gateway, &net.peer, (gateway, 53));
    }
}

/// §3.4.5: a resolver on the host's loopback is reached by the address that stands for the loopback.
#[test]
fn loopback_resolver_by_mapping() {
    let resolv_conf = "nameserver 127.0.0.53\n";
    let Some(net) = Net::with(Options { resolv_conf, ..Options::default() }) else { return };
    net.pasta(&[]);
    resolves(&net, GATEWAY[0], &net.host, ("127.0.0.53".parse::<IpAddr>().unwrap(), 53));
}
