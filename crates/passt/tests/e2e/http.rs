//! Tests with curl, over both families.

use crate::harness::*;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, TcpListener};
use std::thread;

const BODY_LEN: usize = 5_000_000;

/// Serves `count` requests, one after another.
fn serve(listener: TcpListener, count: usize) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        for _ in 0..count {
            let (mut stream, _) = accept(&listener);
            let mut request = BufReader::new(stream.try_clone().unwrap());
            let mut line = String::new();
            while request.read_line(&mut line).unwrap() > 2 {
                line.clear();
            }
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {BODY_LEN}\r\nConnection: close\r\n\r\n")
                .unwrap();
            send(&stream, 80, BODY_LEN as u64);
        }
    })
}

fn url(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => format!("http://{ip}/"),
        IpAddr::V6(ip) => format!("http://[{ip}]/"),
    }
}

#[test]
fn curl_works_in_an_attached_guest() {
    need!("curl");
    let Some(net) = Net::new() else { return };
    net.pasta(&[]);
    for ip in PEER {
        let server = serve(net.peer.listen((ip, 80)), 2);
        for _ in 0..2 {
            let file = net.path("body");
            net.guest.sh(&format!("curl -gsSf -o {file} '{}'", url(ip)));
            assert!(std::fs::read(file).unwrap() == payload(80, BODY_LEN));
        }
        server.join().unwrap();
    }
}

/// `pasta --config-net -- curl http://peer/`, as in the README.
#[test]
fn curl_works_as_the_command() {
    need!("curl");
    let Some(net) = Net::new() else { return };
    for ip in PEER {
        let server = serve(net.peer.listen((ip, 80)), 1);
        let file = net.path("body");
        let end = net.spawn(&[], &["curl", "-gsSf", "-o", &file, &url(ip)]);
        assert_eq!(end.code(), 0, "{end:?}");
        assert!(std::fs::read(file).unwrap() == payload(80, BODY_LEN));
        server.join().unwrap();
    }
}

/// The client is on the peer, the server is in the guest.
#[test]
fn curl_reaches_a_server_in_the_guest() {
    need!("curl");
    let Some(net) = Net::new() else { return };
    net.pasta(&["-t", "80"]);
    for ip in HOST {
        let server = serve(net.guest.listen((any(ip), 80)), 1);
        let file = net.path("body");
        net.peer.sh(&format!("curl -gsSf -o {file} '{}'", url(ip)));
        assert!(std::fs::read(file).unwrap() == payload(80, BODY_LEN));
        server.join().unwrap();
    }
}
