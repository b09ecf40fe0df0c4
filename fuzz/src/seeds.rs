//! The seeds of the corpus: one input per feature that a target should reach. `cargo run -p fuzz --bin seeds` writes
//! them. The same folders also contain inputs that were found later, and captured frames.

use control::message::{Announced, Capabilities, Pif, Update, encode_announcement, encode_update};
use control::policy;
use engine::forward::{
    Enabled, PortRange, Protocol,
    spec::{self, Direction, Spec},
};

use crate::receive_path::{RECORD, dhcp_message};

/// An input: its target, its name and its bytes.
pub type Seed = (&'static str, &'static str, Vec<u8>);

/// All seeds.
#[must_use]
pub fn all() -> Vec<Seed> {
    let mut seeds = receive_path();
    seeds.extend(formats());
    seeds.extend(dhcp());
    seeds.extend(texts());
    seeds.extend(control());
    seeds.extend(crate::vhost_user::seeds());
    seeds.extend(crate::fragments::seeds());
    seeds.extend(crate::dns::seeds());
    seeds.extend(crate::questions::seeds());
    seeds.extend(crate::first_bytes::seeds());
    seeds
}

/// Operations of [`crate::receive_path`]. Each constant has the bytes that the operation reads.
pub(crate) mod op {
    pub(crate) const START: &[u8] = &[0, 0, 3];
    pub(crate) const ROUND: &[u8] = &[31];
    /// The guest's SYN with all options. After it, the socket is connected.
    pub(crate) const SYN: &[u8] = &[0, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0];
    pub(crate) const CONNECTED: &[u8] = &[14, 0, 10];
    pub(crate) const ACK: &[u8] = &[0, 0, 0, 2, 0, 0, 0, 0];
    pub(crate) const ZERO_WINDOW: &[u8] = &[0, 0, 0, 2, 5, 0, 0, 0];
    pub(crate) const DATA: &[u8] = &[0, 0, 0, 5, 6, 0, 0, 0];
    pub(crate) const SUPER_FRAME: &[u8] = &[0, 0, 0, 5, 9, 0, 0, 0];
    pub(crate) const LATER_DATA: &[u8] = &[0, 0, 0, 8, 6, 0x20, 0, 0, 0, 0, 0, 0, 0];
    pub(crate) const FIN: &[u8] = &[0, 0, 0, 10, 0, 0, 0, 0];
    pub(crate) const RST: &[u8] = &[0, 0, 0, 11, 0, 0, 0, 0];
    pub(crate) const HOLES: &[u8] =
        &[0, 0, 0, 12, 0x40, 0, 2, 0x10, 0, 0, 4, 0, 0x30, 0, 0, 4, 0, 0, 0, 0, 0];
    /// The peer sends 60000 bytes, ends its stream, accepts more bytes, and resets the connection.
    pub(crate) const ARRIVES: &[u8] = &[14, 0, 0, 0xea, 0x60, 0];
    pub(crate) const ENDS: &[u8] = &[14, 0, 7];
    pub(crate) const WRITABLE: &[u8] = &[14, 0, 10];
    pub(crate) const RESET: &[u8] = &[14, 0, 9];
    pub(crate) const ACCEPT: &[u8] = &[23, 0];
    pub(crate) const SYN_ACK: &[u8] = &[0, 0, 0, 0, 0, 2, 1, 0, 2, 0, 0, 0];
    pub(crate) const SECOND: &[u8] = &[24, 4];
    pub(crate) const MINUTE: &[u8] = &[24, 6];
    pub(crate) const FULL: &[u8] = &[26, 0];
    pub(crate) const ROOM: &[u8] = &[26, 7];
    pub(crate) const EXHAUSTED: &[u8] = &[26, 2];
    pub(crate) const UDP4: &[u8] = &[0, 9, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0];
    pub(crate) const UDP6: &[u8] = &[0, 9, 1, 0, 0, 0, 0, 0, 3, 0, 0, 0];
    pub(crate) const TRAIN: &[u8] =
        &[0, 9, 0, 0, 0, 1, 0, 0, 7, 0, 0, 3, 1, 5, 42, 0, 0xe8, 3, 34, 0, 6, 0, 1, 0];
    pub(crate) const DNS: &[u8] = &[0, 9, 0, 0, 3, 1, 0, 2, 3, 0, 0, 0];
    pub(crate) const ANSWER: &[u8] =
        &[20, 0, 0, 3, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0, 0, 0, 0, 0, 64, 0];
    pub(crate) const UNREACHABLE: &[u8] = &[20, 0, 2, 0, 0, 3, 3, 0, 0, 0, 0, 0, 0, 0, 0];
    pub(crate) const PING4: &[u8] = &[0, 13, 0, 0, 0, 0, 0, 1, 4, 1, 2, 3, 0, 0, 0, 0];
    pub(crate) const PONG: &[u8] = &[22, 0, 0, 3, 0, 0, 0, 0, 0, 1, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0];
    pub(crate) const SOLICITATION: &[u8] = &[0, 13, 1, 2, 5, 1, 0, 0, 0, 0, 2];
    /// The same datagrams in fragments of 1480 bytes. The last fragment comes first, and one fragment comes twice.
    pub(crate) const UDP4_CUT: &[u8] = &[28, 184, 1, 2, 9, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0];
    pub(crate) const UDP6_CUT: &[u8] = &[28, 184, 0, 9, 9, 1, 0, 0, 0, 0, 0, 7, 0, 0, 0];
    pub(crate) const PING6_CUT: &[u8] = &[28, 20, 1, 0, 13, 1, 0, 0, 0, 1, 4, 1, 15, 7, 0, 0, 0];
    pub(crate) const ARP: &[u8] = &[0, 14, 0, 1, 2, 0, 0];
    pub(crate) const DHCP: &[u8] = &[0, 11, 1, 255];
}

/// Operations, each padded to a record.
pub(crate) fn records(operations: &[Vec<u8>]) -> Vec<u8> {
    let mut records = Vec::new();
    for operation in operations {
        records.extend_from_slice(operation);
        records.resize(records.len().next_multiple_of(RECORD), 0);
    }
    records
}

fn receive_path() -> Vec<Seed> {
    use op::*;
    let opened: &[&[u8]] = &[SYN, ROUND, CONNECTED, ROUND, ACK, ROUND];
    let accepted: &[&[u8]] = &[ACCEPT, ROUND, SYN_ACK, ROUND];
    let seed = |name, begin: &[&[u8]], then: &[&[u8]]| {
        let operations: Vec<_> = [&[START], begin, then].concat().iter().map(|op| op.to_vec()).collect();
        ("receive_path", name, records(&operations))
    };
    vec![
        seed(
            "upload",
            opened,
            &[DATA, ROUND, SUPER_FRAME, ROUND, WRITABLE, FIN, ROUND, ENDS, ROUND, ACK, ROUND],
        ),
        seed("download", opened, &[ARRIVES, ROUND, ACK, ROUND, ENDS, ROUND, ACK, FIN, ROUND]),
        seed("out-of-order", opened, &[LATER_DATA, LATER_DATA, DATA, ROUND, SUPER_FRAME, WRITABLE, ROUND]),
        seed("holes", opened, &[ARRIVES, ARRIVES, ROUND, HOLES, HOLES, HOLES, ROUND, SECOND, ACK, ROUND]),
        seed("zero-window", opened, &[ZERO_WINDOW, ARRIVES, ROUND, SECOND, SECOND, ACK, ROUND]),
        seed("half-close", opened, &[FIN, ROUND, ARRIVES, ROUND, ACK, ENDS, ROUND, ACK, ROUND]),
        seed("guest-resets", opened, &[LATER_DATA, RST, ROUND, SYN, ROUND]),
        seed("host-resets", opened, &[ARRIVES, RESET, ROUND, ACK, ROUND]),
        seed("refused", &[SYN, ROUND], &[&[14, 0, 0], ROUND, SYN, RST, SYN, ROUND]),
        seed("accepted", accepted, &[ARRIVES, ROUND, ACK, DATA, ROUND, ENDS, FIN, ROUND, ACK]),
        seed("accepted-unanswered", &[ACCEPT, ROUND], &[SECOND, SECOND, RST, ROUND, MINUTE]),
        seed("link-full", opened, &[FULL, ARRIVES, DATA, ROUND, SECOND, ROOM, ROUND]),
        seed("no-sockets", &[EXHAUSTED], &[SYN, UDP4, PING4, ACCEPT, ROUND, ROOM, SYN, ROUND]),
        seed("udp", &[UDP4, UDP6, DNS], &[ANSWER, ANSWER, ROUND, TRAIN, UNREACHABLE, MINUTE]),
        seed("ping", &[PING4], &[PONG, ROUND, MINUTE, MINUTE]),
        seed("fragments", &[UDP4_CUT, UDP6_CUT, PING6_CUT], &[ANSWER, ROUND, MINUTE, UDP4_CUT, MINUTE]),
        seed("neighbours", &[&[27], ARP, SOLICITATION, DHCP], &[MINUTE]),
    ]
}

fn formats() -> Vec<Seed> {
    const TCP4: [u8; 54] = [
        2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, // Ethernet
        0x45, 0, 0, 90, 0, 0, 64, 0, 64, 6, 0, 0, 198, 51, 100, 2, 192, 0, 2, 1, // IPv4
        156, 64, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 24, 255, 255, 0, 0, 0, 0, // TCP
    ];
    let tcp4 = [&TCP4[..], &[0x61; 50]].concat();
    let mut udp6 = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x86, 0xdd, 0x60, 0, 0, 0, 0, 56, 0, 64];
    udp6.extend_from_slice(&[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2].repeat(2));
    udp6.extend_from_slice(&[17, 0, 1, 4, 0, 0, 0, 0]); // hop-by-hop options
    udp6.extend_from_slice(&[156, 64, 0, 53, 0, 48, 0, 0]);
    udp6.extend_from_slice(&[0x62; 40]);
    let train = |header: &[u8], frame: &[u8]| [header, frame].concat();
    let segment = |name, kind: u8, start: u8, offset: u8, frame: &[u8]| {
        ("segment", name, train(&[1, kind, 54, 0, 20, 0, start, 0, offset, 0, 1, 0], frame))
    };
    let mut plain = udp6.clone();
    plain.drain(54..62);
    (plain[20], plain[19]) = (17, 48);
    let (mut next4, mut last4) = (tcp4.clone(), tcp4.clone());
    (next4[41], last4[41]) = (51, 101); // sequence numbers
    vec![
        ("frames", "tcp4", tcp4.clone()),
        ("frames", "udp6-extension", udp6),
        segment("tcp4", 1, 34, 16, &tcp4),
        segment("udp6", 5, 54, 6, &plain),
        segment("plain", 0, 34, 16, &tcp4),
        ("stream", "train", on_a_stream(7, &[&tcp4, &next4, &last4, &plain])),
        ("stream", "bytes", on_a_stream(0, &[&plain, &[0xee; 14], &tcp4])),
        ("stream", "bad-length", [&on_a_stream(90, &[&tcp4])[..], &[0, 1, 0, 0, 1, 2, 3]].concat()),
        ("stream", "short", on_a_stream(3, &[&tcp4, &[], &[0xee; 13], &next4])),
        ("stream", "cut-off", [&on_a_stream(5, &[&[0; 300]])[..], &[0, 0, 255, 255, 1, 2, 3]].concat()),
        ("options", "syn", vec![2, 4, 5, 180, 4, 2, 1, 3, 3, 7]),
        ("options", "sack", vec![1, 1, 5, 18, 0, 0, 0, 9, 0, 0, 0, 12, 0, 0, 1, 0, 0, 0, 1, 9]),
        (
            "arp",
            "request",
            [&[0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 9, 198, 51, 100, 2][..], &[0; 6], &[198, 51, 100, 1]]
                .concat(),
        ),
        ("ndp", "router", vec![133, 0, 1, 1, 2, 0, 0, 0, 0, 9]),
        ("ndp", "neighbour", [&[135, 0, 0xfe, 0x80][..], &[0; 13], &[1, 1, 1, 2, 0, 0, 0, 0, 9]].concat()),
        ("icmp_error", "port", vec![0, 0, 0, 0, 0, 3, 3, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4]),
        ("icmp_error", "too-big", vec![1, 0, 0, 6, 0, 2, 0, 0, 0, 5, 0, 0, 6, 0, 1, 2, 3, 4, 2]),
    ]
}

/// An input of [`crate::stream`].
fn on_a_stream(cut: u8, frames: &[&[u8]]) -> Vec<u8> {
    let mut bytes = vec![cut];
    for frame in frames {
        bytes.extend_from_slice(&wire::stream::prefix(frame.len()));
        bytes.extend_from_slice(frame);
    }
    bytes
}

fn dhcp() -> Vec<Seed> {
    let v6 = |kind: u8, options: &[u8]| {
        let duid = [0, 1, 0, 10, 0, 3, 0, 1, 2, 0, 0, 0, 0, 0x55];
        [&[kind, 1, 2, 3][..], &duid, options].concat()
    };
    let association = [0, 3, 0, 12, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut with_address = vec![0, 3, 0, 40, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 24];
    with_address.extend_from_slice(&[0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    with_address.extend_from_slice(&[0; 8]);
    vec![
        ("dhcp", "discover", dhcp_message(&[53, 1, 1, 55, 7, 1, 3, 6, 12, 26, 119, 121, 255])),
        ("dhcp", "discover-rapid", dhcp_message(&[53, 1, 1, 80, 0, 55, 2, 81, 3, 255])),
        ("dhcp", "request", dhcp_message(&[0, 0, 53, 1, 3, 50, 4, 198, 51, 100, 2, 255])),
        ("dhcp", "bootp", dhcp_message(&[255])),
        ("dhcpv6", "solicit", v6(1, &association)),
        (
            "dhcpv6",
            "solicit-rapid",
            v6(1, &[&association[..], &[0, 14, 0, 0, 0, 39, 0, 3, 1, 1, b'g']].concat()),
        ),
        ("dhcpv6", "confirm", v6(4, &with_address)),
        ("dhcpv6", "rebind", v6(6, &with_address)),
        ("dhcpv6", "information", v6(11, &[0, 6, 0, 4, 0, 23, 0, 24])),
        ("dhcpv6", "prefix", v6(1, &[0, 25, 0, 12, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0])),
    ]
}

fn control() -> Vec<Seed> {
    let Some(ephemeral) = PortRange::new(32_768, 60_999) else { return vec![] };
    let (enabled, direction) = (Enabled::ALL, Direction::Inbound);
    let context = spec::Context { protocol: Protocol::Tcp, direction, enabled, ephemeral };
    let rules = |text| match spec::parse(text, &context) {
        Ok(Spec::Forward { rules, .. }) => rules,
        _ => vec![],
    };
    let update =
        Update(vec![(Pif::HOST, rules("22-25:10022-10025,80")), (Pif::SPLICE, rules("[::1]%lo/53"))]);
    let capabilities = Capabilities::of(enabled);
    let table =
        |pif, name: &str, text| Announced { pif, name: name.into(), capabilities, rules: rules(text) };
    let tables = [table(Pif::HOST, "HOST", "8080:192.0.2.1/80"), table(Pif::SPLICE, "SPLICE", "none")];
    vec![
        ("control", "update", [&[0][..], &encode_update(&update)].concat()),
        ("control", "show", [&[2][..], &policy::encode(&policy::Request::Show)].concat()),
        ("control", "replace", [&[2][..], &policy::encode(&policy::Request::Replace("deny all\n"))].concat()),
        ("control", "reply", [&[3][..], &policy::encode_reply(Ok("deny all\n"))].concat()),
        ("control", "nothing", [&[0][..], &encode_update(&Update::default())].concat()),
        ("control", "announcement", [&[1][..], &encode_announcement(&tables)].concat()),
    ]
}

fn texts() -> Vec<Seed> {
    let seed = |target, name, bytes: &[u8]| (target, name, bytes.to_vec());
    vec![
        seed("port_spec", "ranges", b"\x00127.0.0.1%lo/22-25:10022-10025,80,~23"),
        seed("port_spec", "all", b"\x00[2001:db8::1]/all,~1-1023"),
        seed("port_spec", "target", b"\x108080:192.0.2.1/80,9000-9009:[2001:db8::2]/1"),
        seed("port_spec", "outbound", b"\x20auto,53,~5000-6000"),
        seed("port_spec", "interface", b"\x00*%eth0/1-65535"),
        seed("port_spec", "none", b"\x00none"),
        seed("policy", "addresses", b"\x00\x00\xc0\x00\x02\x01\x01\xbb\0allow tcp/192.0.2.0/24:443,~22\ndeny [2001:db8::/32]:1-9"),
        seed("policy", "carried", &[&[1, 1, 0x20, 2, 10, 0, 0, 1][..], &[0; 10], &[0, 80, 0], b"deny 2002::/16\nallow private"].concat()),
        seed("policy", "names", b"\x01\x00\xc0\x00\x02\x01\x01\xbba.example\0allow a.example:443 # the index\nallow *.b\xc3\xbccher.example\n\ndefault deny"),
        seed("policy", "groups", b"\x02\x02\x0a\x00\x00\x01\x00\x00\0deny metadata\ndeny host\nallow icmp/public\nallow udp/multicast:1900\ndefault allow\n"),
        seed("policy", "errors", b"\x00\x00\xc0\x00\x02\x01\x01\xbb\0icmp/all:80"),
        seed(
            "resolv_conf",
            "usual",
            b"# made\nnameserver 192.0.2.1\nsearch a.example b.example\noptions ndots:5\n",
        ),
        seed("resolv_conf", "zones", b"nameserver fe80::1%eth0\nsortlist 130.155.160.0/255.255.240.0\n"),
        seed("resolv_conf", "odd", b"nameserver\nnameserver 1.2.3\n\xff\xfe\ndomain x.example\r\n"),
        seed("command_line", "shell", b"\x00--config-net\0-t\0auto\0-u\0none\0--\0sh\0-c\0true"),
        seed(
            "command_line",
            "namespace",
            b"\x00-fqa\x0010.0.2.15/24\0--netns=/run/netns/x\0-I\0tap0\0-m65520",
        ),
        seed(
            "command_line",
            "machine",
            b"\x01--socket\0/tmp/s\0-t\0~1-10\0--mac-addr\x0002:00:00:00:00:01\0-D\0::1",
        ),
        seed("command_line", "help", b"\x02--help"),
    ]
}
