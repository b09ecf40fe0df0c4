//! Clients of the API socket that are slow, hostile, or silent.

use std::thread;

use super::*;

#[test]
fn malformed_and_too_long_requests() {
    let Some(net) = Net::new() else { return };
    let pasta = start(&net, &[]);
    let mut client = Client::new(&net);
    for (line, code) in [
        (&b"nonsense"[..], "invalid-json"),
        (b"{\"request\":\"stats\"", "invalid-json"),
        (b"\xff\xfe", "invalid-json"),
        (b"[1]", "invalid-request"),
        (b"{\"id\":[1],\"request\":\"stats\"}", "invalid-request"),
        (b"{\"request\":\"stat\"}", "unknown-request"),
        (b"{\"request\":\"capture.start\"}", "invalid-arguments"),
        (b"{\"request\":\"capture.stop\"}", "not-found"),
        (b"{\"request\":\"stats\",\"arguments\":{\"x\":1}}", "invalid-arguments"),
        (b"{\"request\":\"flow.end\",\"arguments\":{\"flow\":-1}}", "invalid-arguments"),
        (b"{\"request\":\"why\",\"arguments\":{\"address\":\"x\"}}", "invalid-arguments"),
        (&[b'['; 60_000], "invalid-json"),
        (&[b'x'; 65_537], "too-long"),
        (&[b'x'; 1_000_000], "too-long"),
    ] {
        client.write(line);
        client.write(b"\n");
        let answer = client.answer();
        assert_eq!(answer["error"]["code"], code, "{}", String::from_utf8_lossy(&line[..line.len().min(60)]));
    }
    // Empty lines are ignored. The connection still works.
    client.write(b"\n  \r\n");
    client.get("stats", json!({}));

    // A request of exactly 64 KiB.
    let request = |id: &str| json!({ "id": id, "request": "rules" }).to_string();
    let request = request(&"x".repeat(65_536 - request("").len()));
    assert_eq!(request.len(), 65_536);
    client.write(format!("{request}\n").as_bytes());
    assert!(client.answer()["result"]["tables"].is_array());
    assert!(pasta.runs());
}

/// Answers come in the order of the requests. The last request needs no end of line.
#[test]
fn pipelined_and_half_open_requests() {
    const COUNT: u64 = 3000;
    let Some(net) = Net::new() else { return };
    start(&net, &[]);
    let client = Client::new(&net);
    let mut writer = client.reader.get_ref().try_clone().unwrap();
    let requests = thread::spawn(move || {
        let names = ["stats", "rules", "nothing", "flows", "log.level"];
        for number in 0..COUNT {
            let name = names[number as usize % names.len()];
            let end = if number + 1 == COUNT { "" } else { "\n" };
            write!(writer, "{}{end}", json!({ "id": number, "request": name })).unwrap();
        }
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut client = client;
    for number in 0..COUNT {
        assert_eq!(client.line().unwrap()["id"], number);
    }
    assert_eq!(client.line(), None, "the server closes the connection after the last answer");
    requests.join().unwrap();

    // A part of a request, and nothing more; and a client that goes away without reading.
    let mut half = UnixStream::connect(net.path("s")).unwrap();
    half.write_all(b"{\"request\":").unwrap();
    let mut gone = UnixStream::connect(net.path("s")).unwrap();
    gone.write_all("{\"request\":\"metrics\"}\n".repeat(100).as_bytes()).unwrap();
    drop(gone);
    Client::new(&net).get("stats", json!({}));

    // A client that is subscribed gets events although it sends nothing more.
    let mut client = Client::new(&net);
    client.get("subscribe", json!({}));
    client.reader.get_ref().shutdown(Shutdown::Write).unwrap();
    net.guest.udp((HOST[0], 7000)).send_to(b"x", (PEER[0], 7000)).unwrap();
    client.event(&json!({ "event": "begin", "peer_port": 7000 }));
}

/// There are 64 clients, and half of them never read. A transfer continues and is complete. The other half gets all
/// answers, and clients that have not read learn how many events they have lost.
#[test]
fn slow_clients_do_not_disturb_traffic() {
    const CLIENTS: usize = 64;
    const LEN: u64 = 64 << 20;
    const REFUSALS: usize = 6000;
    let Some(net) = Net::new() else { return };
    let daemon = start(&net, &["--deny", "udp/198.51.100.4"]);
    let silent: Vec<UnixStream> = (0..CLIENTS / 2).map(|_| silent_subscriber(&net)).collect();
    let reading: Vec<UnixStream> =
        (silent.len()..CLIENTS).map(|_| UnixStream::connect(net.path("s")).unwrap()).collect();
    // All are accepted. One more is refused.
    for stream in &reading {
        Client::of(stream.try_clone().unwrap()).get("stats", json!({}));
    }
    let mut surplus = Client::new(&net);
    assert_eq!(surplus.line().unwrap()["error"]["code"], "busy");
    assert_eq!(surplus.line(), None);

    let listener = net.peer.listen((PEER[0], 7000));
    let out = net.guest.connect((PEER[0], 7000)).unwrap();
    let far = accept(&listener).0;
    thread::scope(|scope| {
        scope.spawn(|| {
            send(&out, 1, LEN);
            out.shutdown(Shutdown::Write).unwrap();
        });
        scope.spawn(|| receive_all(&far, 1, LEN));
        scope.spawn(|| {
            // Each datagram to another port is refused, and is an event.
            let sender = net.guest.udp((HOST[0], 0));
            for number in 0..REFUSALS {
                let port = 10_000 + u16::try_from(number).unwrap();
                // The refusal of an earlier datagram is an error of the socket.
                let again = || sender.send_to(b"x", (PEER_ALIAS[0], port)).is_ok() || !daemon.runs();
                if sender.send_to(b"x", (PEER_ALIAS[0], port)).is_err() {
                    wait_until("a datagram", again);
                }
            }
        });
        // The clients that do not read send as much as their sockets take.
        for mut stream in &silent {
            while stream.write(request("metrics").as_bytes()).is_ok() {}
        }
        for stream in reading.iter().take(8) {
            scope.spawn(|| {
                let mut client = Client::of(stream.try_clone().unwrap());
                for _ in 0..20 {
                    client.get("metrics", json!({}));
                    client.get("flows", json!({ "sort": "bytes" }));
                }
            });
        }
    });
    // All refusals have happened when the last one was counted.
    let mut watcher = Client::of(reading[0].try_clone().unwrap());
    wait_until("all refusals", || {
        watcher.get("stats", json!({}))["refusals"].as_u64().unwrap() >= REFUSALS as u64
    });

    // Each event was sent, or was counted as lost.
    for stream in silent.into_iter().take(4) {
        stream.set_nonblocking(false).unwrap();
        let (seen, lost) = count_refusals(Client::of(stream), REFUSALS as u64);
        assert!(lost > 0 && seen > 0, "{seen} seen, {lost} lost");
    }
}

fn request(name: &str) -> String {
    format!("{}\n", json!({ "id": 1, "request": name }))
}

/// A client that is subscribed, and then reads nothing.
fn silent_subscriber(net: &Net) -> UnixStream {
    let mut stream = UnixStream::connect(net.path("s")).unwrap();
    stream.write_all(request("subscribe").as_bytes()).unwrap();
    // The answer is the last line that this client reads.
    let mut byte = [0];
    while byte != *b"\n" {
        stream.read_exact(&mut byte).unwrap();
    }
    stream.set_nonblocking(true).unwrap();
    stream
}

/// Reads until `all` refusals have arrived or were reported as lost. Returns the numbers of both.
fn count_refusals(mut client: Client, all: u64) -> (u64, u64) {
    let (mut seen, mut lost) = (0, 0);
    while seen + lost < all {
        let line = client.line().expect("more events");
        match line["event"].as_str() {
            Some("refusal") => seen += 1,
            Some("lost") => lost += line["count"].as_u64().unwrap(),
            _ => {}
        }
    }
    (seen, lost)
}

/// behaviour §12: an idle process makes no system calls, even if a client is connected and subscribed.
#[test]
fn a_silent_client_costs_nothing() {
    need!("strace");
    let Some(net) = Net::new() else { return };
    let pasta = start(&net, &["-t", "7001", "-u", "7001", "-T", "7001", "-U", "7001"]);
    let mut client = Client::new(&net);
    client.get("subscribe", json!({}));
    client.get("flows", json!({}));
    let mut half = UnixStream::connect(net.path("s")).unwrap();
    half.write_all(b"{\"request\":").unwrap();
    expect_idle(&net, &pasta);
    client.get("stats", json!({}));
}
