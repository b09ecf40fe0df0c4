//! Tests of `auto` and announced ports. An announced port is open on the other side before the receiver of the
//! announcement can use the port (behaviour §8.4). Active FTP, SIP and DCC need this. So no test waits for a port to
//! open.

use crate::harness::*;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, UdpSocket};

/// Number of announcements per connection. A full budget would not pay for this many scans, since other payload uses
/// the budget, too.
const ROUNDS: u16 = 24;
/// Payload that uses the budget without an announcement.
const OTHER: &str = "RETR some-file-of-no-interest\r\n";

/// Opens a control connection from `client` to `listener`, which is bound to `at`.
fn control(client: &Ns, at: (IpAddr, u16), listener: &TcpListener) -> (TcpStream, BufReader<TcpStream>) {
    let stream = client.connect(at).unwrap();
    (stream, BufReader::new(accept(listener).0))
}

fn line(from: &mut BufReader<TcpStream>) -> String {
    let mut line = String::new();
    from.read_line(&mut line).unwrap();
    line
}

/// FTP's PORT command (RFC 959 §4.1.2), and EPRT for IPv6 (RFC 2428 §2).
fn port_command(address: IpAddr, port: u16) -> String {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            format!("PORT {a},{b},{c},{d},{},{}\r\n", port >> 8, port & 0xff)
        }
        IpAddr::V6(v6) => format!("EPRT |2|{v6}|{port}|\r\n"),
    }
}

/// The server connects as soon as it has read the command.
#[test]
fn active_ftp_connects_at_once() {
    let Some(net) = Net::new() else { return };
    net.pasta(&["-u", "none"]);
    for (family, host) in HOST.into_iter().enumerate() {
        let server = net.peer.listen((any(host), 2121));
        let (mut client, mut commands) = control(&net.guest, (PEER[family], 2121), &server);
        for port in (7000..).take(ROUNDS.into()) {
            let data = net.guest.listen((any(host), port));
            client.write_all(port_command(host, port).as_bytes()).unwrap();
            line(&mut commands);
            let connection =
                net.peer.connect((host, port)).unwrap_or_else(|e| panic!("[{host}]:{port}: {e}"));
            accept(&data);
            drop((connection, data));
            client.write_all(OTHER.as_bytes()).unwrap();
            line(&mut commands);
        }
    }
}

/// The payload is encrypted, as in TLS, so no announcement can be found in it. The announced port is open nevertheless.
#[test]
fn encrypted_announcements_work_too() {
    let Some(net) = Net::new() else { return };
    net.pasta(&["-u", "none"]);
    let server = net.peer.listen((any(PEER[0]), 2121));
    let (mut client, mut commands) = control(&net.guest, (PEER[0], 2121), &server);
    for port in 7000..7008 {
        let data = net.guest.listen((any(HOST[0]), port));
        client.write_all(b"\x17\x03\x03\x00\x20 something encrypted\n").unwrap();
        line(&mut commands);
        net.peer.connect((HOST[0], port)).unwrap_or_else(|e| panic!("{port}: {e}"));
        accept(&data);
    }
}

/// The invitation announces two RTP ports. The media, which is not sent again, follows the invitation at once.
#[test]
fn media_is_forwarded_right_after_a_sip_invitation() {
    let Some(net) = Net::new() else { return };
    net.pasta(&["-t", "none"]);
    let (host, peer) = (HOST[0], PEER[0]);
    let server = net.peer.udp((any(peer), 5060));
    let client = net.guest.udp((any(host), 5060));
    for port in (6000..).step_by(2).take(ROUNDS.into()) {
        let media: [UdpSocket; 2] = [port, port + 1].map(|port| net.guest.udp((any(host), port)));
        let invite = format!(
            "INVITE sip:b@{peer} SIP/2.0\r\nVia: SIP/2.0/UDP {host}:5060\r\nCSeq: 1 INVITE\r\n\r\n\
             c=IN IP4 {host}\r\nm=audio {port} RTP/AVP 0\r\na=rtcp:{}\r\n",
            port + 1
        );
        client.send_to(invite.as_bytes(), (peer, 5060)).unwrap();
        recv_from(&server);
        for (port, socket) in (port..).zip(&media) {
            server.send_to(b"media", (host, port)).unwrap();
            assert_eq!(recv_from(socket).0, b"media", "{port}");
        }
        client.send_to(OTHER.as_bytes(), (peer, 5060)).unwrap();
        recv_from(&server);
    }
}

/// The connections are between loopback addresses, and come from the guest and from the host.
#[test]
fn announcements_bypass_the_link_as_well() {
    need!("ss");
    let Some(net) = Net::new() else { return };
    let loopback = IpAddr::from(Ipv4Addr::LOCALHOST);
    let server = net.host.listen((loopback, 2121));
    let rendezvous = net.host.udp((loopback, 2122));
    net.pasta(&[]);
    let (mut client, mut commands) = control(&net.guest, (loopback, 2121), &server);
    let mut replies = BufReader::new(client.try_clone().unwrap());
    let mut service = commands.get_ref().try_clone().unwrap();
    for port in (7000..).take(ROUNDS.into()) {
        let data = net.guest.listen((any(loopback), port));
        client.write_all(port_command(loopback, port).as_bytes()).unwrap();
        line(&mut commands);
        net.host.connect((loopback, port)).unwrap_or_else(|e| panic!("host to {port}: {e}"));
        accept(&data);
        client.write_all(OTHER.as_bytes()).unwrap();
        line(&mut commands);
    }
    for port in (8000..).take(ROUNDS.into()) {
        let data = net.host.listen((loopback, port));
        let reply = port_command(loopback, port).replace("PORT ", "227 Entering Passive Mode ");
        service.write_all(reply.as_bytes()).unwrap();
        line(&mut replies);
        net.guest.connect((loopback, port)).unwrap_or_else(|e| panic!("guest to {port}: {e}"));
        accept(&data);
        service.write_all(OTHER.as_bytes()).unwrap();
        line(&mut replies);
    }
    let speaker = net.guest.udp((loopback, 0));
    for port in 9000..9008 {
        let media = net.guest.udp((any(loopback), port));
        speaker.send_to(format!("media is expected at {port}").as_bytes(), (loopback, 2122)).unwrap();
        recv_from(&rendezvous);
        net.host.udp((loopback, 0)).send_to(b"media", (loopback, port)).unwrap();
        assert_eq!(recv_from(&media).0, b"media", "{port}");
    }
}
