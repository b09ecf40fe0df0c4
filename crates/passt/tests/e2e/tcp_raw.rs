//! Tests of TCP with single segments that no kernel would send (behaviour §6).

use crate::harness::*;
use smoltcp::wire::TcpControl;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};

const GUEST_PORT: u16 = 40000;
const PEER_PORT: u16 = 7000;
const ISS: u32 = 0xffff_fff0; // close to the wrap-around

fn segment(control: TcpControl, seq: u32, ack: Option<u32>, payload: &[u8]) -> Segment {
    Segment { src_port: GUEST_PORT, dst_port: PEER_PORT, control, seq, ack, payload: payload.to_vec() }
}

fn peer() -> IpAddr {
    PEER[0]
}

/// A listener of the peer.
fn listen(net: &Net) -> TcpListener {
    net.peer.listen((peer(), PEER_PORT))
}

/// Makes the three-way handshake. Returns the peer's end of the connection, and the program's next sequence number.
fn handshake(raw: &Raw, listener: &TcpListener) -> (TcpStream, u32) {
    raw.send_tcp(peer(), &segment(TcpControl::Syn, ISS, None, b""));
    let answer = raw.expect_tcp("SYN,ACK", |s| s.control == TcpControl::Syn && s.dst_port == GUEST_PORT);
    assert_eq!(answer.ack, Some(ISS.wrapping_add(1)));
    let next = answer.seq.wrapping_add(1);
    raw.send_tcp(peer(), &segment(TcpControl::None, ISS.wrapping_add(1), Some(next), b""));
    (accept(listener).0, next)
}

/// frames are padded to 60 bytes.
#[test]
fn padding_of_short_frames_is_no_data_r50() {
    need!("socat");
    let Some(net) = Net::new() else { return };
    net.pasta(&[]);
    let (listener, raw) = (listen(&net), Raw::open(&net));
    let (mut outside, next) = handshake(&raw, &listener);
    let mut seq = ISS.wrapping_add(1);
    for data in [b"a", b"b"] {
        raw.send(&raw.tcp_frame(peer(), &segment(TcpControl::Psh, seq, Some(next), data), 5));
        seq = seq.wrapping_add(1);
    }
    // The guest sends a bare acknowledgment, which is padded, too, and then the FIN.
    raw.send(&raw.tcp_frame(peer(), &segment(TcpControl::None, seq, Some(next), b""), 6));
    raw.send(&raw.tcp_frame(peer(), &segment(TcpControl::Fin, seq, Some(next), b""), 6));
    let mut got = Vec::new();
    outside.read_to_end(&mut got).unwrap();
    assert_eq!(got, b"ab");
}

/// R-59, behaviour §6.7, rows 1 and 2: the reset follows RFC 9293 §3.10.7.1.
#[test]
fn a_segment_of_no_connection_is_reset_r59() {
    need!("socat");
    let Some(net) = Net::new() else { return };
    net.pasta(&[]);
    let raw = Raw::open(&net);
    raw.send_tcp(peer(), &segment(TcpControl::None, 1000, Some(5000), b"data"));
    let reset = raw.expect_tcp("RST", |s| s.control == TcpControl::Rst);
    assert_eq!((reset.seq, reset.src_port, reset.dst_port), (5000, PEER_PORT, GUEST_PORT));
    raw.send_tcp(peer(), &segment(TcpControl::None, 1000, None, b"data"));
    let reset = raw.expect_tcp("RST,ACK", |s| s.control == TcpControl::Rst);
    assert_eq!((reset.seq, reset.ack), (0, Some(1004)));
}

/// in the state SYN-SENT, a guest ignores a RST without an acceptable ACK.
#[test]
fn a_refusal_has_an_acknowledgement_r59() {
    need!("socat");
    let Some(net) = Net::new() else { return };
    net.pasta(&[]);
    let raw = Raw::open(&net);
    raw.send_tcp(peer(), &segment(TcpControl::Syn, ISS, None, b""));
    let reset = raw.expect_tcp("RST,ACK", |s| s.control == TcpControl::Rst);
    assert_eq!(reset.ack, Some(ISS.wrapping_add(1)));
}

/// the SYN is sent again before the peer has answered.
#[test]
fn a_duplicate_syn_is_ignored_r60() {
    need!("socat");
    let Some(net) = Net::new() else { return };
    net.pasta(&[]);
    let (listener, raw) = (listen(&net), Raw::open(&net));
    net.peer.sh(&format!("ip route add blackhole {}", HOST[0]));
    for _ in 0..3 {
        raw.send_tcp(peer(), &segment(TcpControl::Syn, ISS, None, b""));
    }
    net.peer.sh(&format!("ip route del blackhole {}", HOST[0]));
    let mut first = None;
    raw.expect_tcp("SYN,ACK", |s| {
        assert_ne!(s.control, TcpControl::Rst);
        first = (s.control == TcpControl::Syn).then_some(s.seq);
        first.is_some()
    });
    let (mut outside, _) = accept(&listener);
    let (seq, next) = (ISS.wrapping_add(1), first.unwrap().wrapping_add(1));
    raw.send_tcp(peer(), &segment(TcpControl::None, seq, Some(next), b""));
    raw.send_tcp(peer(), &segment(TcpControl::Psh, seq, Some(next), b"x"));
    outside.read_exact(&mut [0; 1]).unwrap();
    assert!(listener.set_nonblocking(true).is_ok() && listener.accept().is_err(), "one SYN, two connections");
}

/// Q2: the second SYN,ACK is equal to the first one. Q3: the data of the ACK that completes the handshake arrives.
#[test]
fn a_syn_ack_is_sent_again_and_the_last_ack_can_carry_data() {
    need!("socat");
    let Some(net) = Net::new() else { return };
    net.pasta(&[]);
    let (listener, raw) = (listen(&net), Raw::open(&net));
    raw.send_tcp(peer(), &segment(TcpControl::Syn, ISS, None, b""));
    let first = raw.expect_tcp("SYN,ACK", |s| s.control == TcpControl::Syn);
    let again = raw.expect_tcp("SYN,ACK again", |s| s.control == TcpControl::Syn);
    assert_eq!(first, again);
    let (mut outside, _) = accept(&listener);
    let next = first.seq.wrapping_add(1);
    raw.send_tcp(peer(), &segment(TcpControl::Psh, ISS.wrapping_add(1), Some(next), b"early"));
    let mut got = [0; 5];
    outside.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"early");
}

/// after the FIN was sent again, the connection ends on both sides.
#[test]
fn lost_fin_is_sent_again_r69() {
    need!("socat");
    let Some(net) = Net::new() else { return };
    net.pasta(&[]);
    let (listener, raw) = (listen(&net), Raw::open(&net));
    let (mut outside, next) = handshake(&raw, &listener);
    outside.write_all(b"last words").unwrap();
    outside.shutdown(std::net::Shutdown::Write).unwrap();
    let data = raw.expect_tcp("data", |s| !s.payload.is_empty());
    assert_eq!((data.seq, data.payload.as_slice()), (next, &b"last words"[..]));
    let end = next.wrapping_add(10);
    let seq = ISS.wrapping_add(1);
    raw.send_tcp(peer(), &segment(TcpControl::None, seq, Some(end), b""));
    for _ in 0..2 {
        let fin = raw.expect_tcp("FIN", |s| s.control == TcpControl::Fin && s.payload.is_empty());
        assert_eq!(fin.seq, end);
    }
    // The guest's FIN acknowledges the program's FIN.
    raw.send_tcp(peer(), &segment(TcpControl::Fin, seq, Some(end.wrapping_add(1)), b""));
    expect_end(&outside);
    raw.expect_tcp("ACK of FIN", |s| s.ack == Some(seq.wrapping_add(1)));
}

/// R-71, behaviour §6.6: the guest does not acknowledge the data.
#[test]
fn lost_data_is_sent_again_r71() {
    need!("socat");
    let Some(net) = Net::new() else { return };
    net.pasta(&[]);
    let (listener, raw) = (listen(&net), Raw::open(&net));
    let (mut outside, next) = handshake(&raw, &listener);
    outside.write_all(b"data").unwrap();
    for _ in 0..2 {
        let data = raw.expect_tcp("data", |s| !s.payload.is_empty());
        assert_eq!((data.seq, data.payload.as_slice()), (next, &b"data"[..]));
    }
}

/// the FIN counts only when the data before it has arrived.
#[test]
fn a_fin_after_a_gap_is_not_the_end_r72() {
    need!("socat");
    let Some(net) = Net::new() else { return };
    net.pasta(&[]);
    let (listener, raw) = (listen(&net), Raw::open(&net));
    let (mut outside, next) = handshake(&raw, &listener);
    let seq = ISS.wrapping_add(1);
    raw.send_tcp(peer(), &segment(TcpControl::Fin, seq.wrapping_add(4), Some(next), b"last"));
    outside.set_nonblocking(true).unwrap();
    raw.expect_tcp("an ACK of what is there", |s| s.ack == Some(seq) && s.payload.is_empty());
    assert_eq!(outside.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::WouldBlock);
    outside.set_nonblocking(false).unwrap();
    raw.send_tcp(peer(), &segment(TcpControl::Psh, seq, Some(next), b"gap "));
    // The program may have dropped the segment after the gap, so the guest sends it again.
    raw.send_tcp(peer(), &segment(TcpControl::Fin, seq.wrapping_add(4), Some(next), b"last"));
    let mut got = String::new();
    outside.read_to_string(&mut got).unwrap();
    assert_eq!(got, "gap last");
}

/// the ports can be used at once.
#[test]
fn the_same_ports_can_be_used_after_a_reset_r62() {
    need!("socat");
    let Some(net) = Net::new() else { return };
    net.pasta(&[]);
    let (listener, raw) = (listen(&net), Raw::open(&net));
    let (mut old, next) = handshake(&raw, &listener);
    raw.send_tcp(peer(), &segment(TcpControl::Rst, ISS.wrapping_add(1), Some(next), b""));
    let (mut new, next) = handshake(&raw, &listener);
    assert_eq!(old.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    raw.send_tcp(peer(), &segment(TcpControl::Psh, ISS.wrapping_add(1), Some(next), b"new"));
    new.read_exact(&mut [0; 3]).unwrap();
}
