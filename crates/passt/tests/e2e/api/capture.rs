//! Captures that a client begins and ends: `capture.start`, `capture.stop` and `pesto capture`.

use std::io::{IoSlice, pipe};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::thread;

use pcap_file::pcap::PcapReader;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use wire::frame::{self, Body, Transport};

use super::*;

/// Begins a capture to `file`. Returns the answer.
fn begin(client: &mut Client, file: BorrowedFd<'_>, arguments: Value) -> Value {
    let request = json!({ "id": 5, "request": "capture.start", "arguments": arguments });
    let files = [file];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&files)));
    let line = format!("{request}\n");
    let bytes = [IoSlice::new(line.as_bytes())];
    let sent = sendmsg(client.reader.get_ref(), &bytes, &mut control, SendFlags::NOSIGNAL).unwrap();
    assert_eq!(sent, line.len());
    client.answer()
}

/// The UDP ports of the frames in a capture file, source and destination. Frames of other protocols are left out.
fn ports(bytes: &[u8]) -> Vec<(u16, u16)> {
    let mut reader = PcapReader::new(bytes).unwrap();
    let mut ports = Vec::new();
    while let Some(packet) = reader.next_packet() {
        let packet = packet.unwrap();
        let Ok(parsed) = frame::parse(&packet.data) else { continue };
        if let Body::Ip(packet) = parsed.body
            && let Transport::Udp(datagram) = packet.transport
        {
            ports.push((datagram.header.source_port.get(), datagram.header.destination_port.get()));
        }
    }
    ports
}

/// Sends a datagram to the peer, and waits until the peer has it.
fn datagram(net: &Net, from: u16, to: u16) {
    let server = net.peer.udp((PEER[0], to));
    let client = net.guest.udp((HOST[0], from));
    client.send_to(b"x", (PEER[0], to)).unwrap();
    server.recv_from(&mut [0; 9]).unwrap();
}

#[test]
fn frames_that_meet_the_conditions_go_to_the_file() {
    let Some(net) = Net::new() else { return };
    start(&net, &[]);
    let mut client = Client::new(&net);
    let path = net.path("capture");
    let file = std::fs::File::create(&path).unwrap();
    let answer = begin(&mut client, file.as_fd(), json!({ "protocol": "udp", "port": 7001 }));
    assert_eq!(answer, json!({ "id": 5, "result": {} }));
    drop(file);
    datagram(&net, 5000, 7000);
    datagram(&net, 5000, 7001);

    // There is one capture at a time, and it belongs to its client.
    let mut other = Client::new(&net);
    let spare = std::fs::File::create(net.path("spare")).unwrap();
    assert_eq!(begin(&mut other, spare.as_fd(), json!({}))["error"]["code"], "refused");
    assert_eq!(other.fail("capture.stop", json!({})).0, "not-found");

    let counts = client.get("capture.stop", json!({}));
    let bytes = std::fs::read(&path).unwrap();
    assert_fields(&counts, &json!({ "frames": 1, "lost": 0, "bytes": bytes.len() }));
    assert_eq!(ports(&bytes), [(5000, 7001)]);

    // What comes later is not captured. Another one begins, and ends with its client.
    datagram(&net, 5000, 7001);
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
    let file = std::fs::File::create(&path).unwrap();
    assert!(begin(&mut other, file.as_fd(), json!({ "address": "198.51.100.0/24" }))["result"].is_object());
    datagram(&net, 5000, 7002);
    // The frames of a round are passed on at its end; this is answered in a later round.
    other.get("stats", json!({}));
    drop(other);
    wait_until("the client to be forgotten", || {
        let answer = begin(&mut client, spare.as_fd(), json!({}));
        answer["result"].is_object()
    });
    assert!(ports(&std::fs::read(&path).unwrap()).contains(&(5000, 7002)));
}

/// A pipe that nobody reads loses frames, and they are counted. The traffic goes on.
#[test]
fn a_pipe_that_nobody_reads_does_not_stop_traffic() {
    const LEN: u64 = 32 << 20;
    let Some(net) = Net::new() else { return };
    let pasta = start(&net, &[]);
    let mut client = Client::new(&net);
    let (reader, writer) = pipe().unwrap();
    assert!(begin(&mut client, writer.as_fd(), json!({}))["result"].is_object());
    let listener = net.peer.listen((PEER[0], 7000));
    let out = net.guest.connect((PEER[0], 7000)).unwrap();
    let far = accept(&listener).0;
    thread::scope(|scope| {
        scope.spawn(|| {
            send(&out, 1, LEN);
            out.shutdown(Shutdown::Write).unwrap();
        });
        receive_all(&far, 1, LEN);
    });
    // Other requests are answered meanwhile.
    client.get("stats", json!({}));
    let counts = client.get("capture.stop", json!({}));
    assert!(counts["lost"].as_u64().unwrap() > 0, "{counts}");

    // The reader goes away: the client is told.
    assert!(begin(&mut client, writer.as_fd(), json!({}))["result"].is_object());
    drop(reader);
    let event = client.event(&json!({ "event": "capture" }));
    assert!(event["reason"].as_str().unwrap().contains("ipe"), "{event}");
    assert_eq!(client.fail("capture.stop", json!({})).0, "not-found");
    assert!(pasta.runs());
}

#[test]
fn what_can_not_be_written_to_is_refused() {
    let Some(net) = Net::new() else { return };
    let pasta = start(&net, &[]);
    let mut client = Client::new(&net);
    let (reader, _writer) = pipe().unwrap();
    let null = std::fs::File::create("/dev/null").unwrap();
    for file in [reader.as_fd(), null.as_fd()] {
        assert_eq!(begin(&mut client, file, json!({}))["error"]["code"], "refused");
    }
    assert_eq!(client.fail("capture.start", json!({})).0, "invalid-arguments");
    let file = std::fs::File::create(net.path("capture")).unwrap();
    for arguments in [json!({ "port": 70000 }), json!({ "address": "x" }), json!({ "flow": 1 })] {
        assert_eq!(begin(&mut client, file.as_fd(), arguments)["error"]["code"], "invalid-arguments");
    }
    // Descriptors that no request uses do not add up.
    let before = pasta.descriptors();
    let mut holders: Vec<Client> = (0..9).map(|_| Client::new(&net)).collect();
    for holder in &mut holders {
        let files = [file.as_fd()];
        for _ in 0..3 {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            assert!(control.push(SendAncillaryMessage::ScmRights(&files)));
            sendmsg(holder.reader.get_ref(), &[IoSlice::new(b"\n")], &mut control, SendFlags::NOSIGNAL)
                .unwrap();
        }
        holder.get("stats", json!({}));
    }
    assert!(pasta.descriptors() <= before + 9 + 4, "{} {before}", pasta.descriptors());
}

/// A signal ends the capture in order.
#[test]
fn pesto_captures_to_a_file_and_to_standard_output() {
    let Some(net) = Net::new() else { return };
    start(&net, &[]);
    let (socket, file) = (net.path("s"), net.path("capture"));
    for target in [&file[..], "-"] {
        // The file of the previous capture.
        let _ = std::fs::remove_file(&file);
        let script = format!(
            "echo $$; exec {} capture {target} {socket} protocol=udp {}",
            companion("pesto"),
            if target == "-" { format!(">{file}") } else { String::new() }
        );
        let out = net.path("out");
        let mut pesto =
            net.host.start(&["sh", "-c", &script.replacen("echo $$", &format!("echo $$ >{out}"), 1)]);
        // The header is written when the capture has begun.
        wait_until("the capture to begin", || {
            assert!(pesto.is_running());
            std::fs::metadata(&file).is_ok_and(|file| file.len() >= 24)
        });
        datagram(&net, 5000, 7000);
        wait_until("the frame", || std::fs::metadata(&file).unwrap().len() > 24);
        net.host.sh(&format!("kill -INT $(cat {out})"));
        let end = pesto.wait();
        assert!(end.code() == 0 && end.stderr.contains("1 frames, 0 lost"), "{end:?}");
        assert_eq!(ports(&std::fs::read(&file).unwrap()), [(5000, 7000)]);
    }
    // A capture that is refused leaves the file, and no other one, behind.
    let before = std::fs::read(&file).unwrap();
    let files = || std::fs::read_dir(net.path("")).unwrap().count();
    let count = files();
    let end = net.host.run(&[companion("pesto"), "capture", &file, &socket, "missing=1"]);
    assert!(end.code() == 1 && end.stderr.contains("missing"), "{end:?}");
    assert_eq!((std::fs::read(&file).unwrap(), files()), (before, count));
    let end = net.host.run(&[companion("pesto"), "capture", "/missing/x", &socket]);
    assert!(end.code() == 1 && end.stderr.contains("can't write to /missing/x"), "{end:?}");
}
