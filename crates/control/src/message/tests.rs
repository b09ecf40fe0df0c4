use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;

/// Sent by the C implementation's pasta with
/// `-t 2200-2202:3300-3302 -t 127.0.0.1/80:10.0.0.1/8080 -u '[::1]%lo/53' -T 5000`.
static ANNOUNCEMENT: LazyLock<Vec<u8>> = LazyLock::new(|| hex(include_str!("announcement.hex")));
/// Sent by the C implementation's pesto with `-A -t 6000 -T 7000`.
static UPDATE: LazyLock<Vec<u8>> = LazyLock::new(|| hex(include_str!("update.hex")));

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks_exact(2).map(byte).collect()
}

fn rule(protocol: Protocol, listen: &str, ports: (u16, u16), target: Option<&str>, to: u16) -> Rule {
    let (address, interface) = listen.split_once('%').unwrap_or((listen, ""));
    Rule {
        protocol,
        listen: Listen { addr: address.parse().ok(), interface: interface.parse().ok() },
        ports: PortRange::new(ports.0, ports.1).unwrap(),
        target_addr: target.map(|target| target.parse().unwrap()),
        target_first: to,
        best_effort: false,
        scan: false,
    }
}

fn golden_tables() -> [Vec<Rule>; 2] {
    [
        vec![
            rule(Protocol::Tcp, "*", (2200, 2202), None, 3300),
            rule(Protocol::Tcp, "127.0.0.1", (80, 80), Some("10.0.0.1"), 8080),
            rule(Protocol::Udp, "::1%lo", (53, 53), None, 53),
        ],
        vec![rule(Protocol::Tcp, "*%lo", (5000, 5000), None, 5000)],
    ]
}

/// behaviour §8.9: the same bytes as from the C implementation's server.
#[test]
fn golden_announcement() {
    let [host, splice] = golden_tables();
    let table = |pif, name: &str, rules| Announced {
        pif,
        name: name.into(),
        capabilities: Capabilities::from_bits_retain(0x3f),
        rules,
    };
    let tables = vec![table(Pif::HOST, "HOST", host), table(Pif::SPLICE, "SPLICE", splice)];
    assert_eq!(encode_announcement(&tables), *ANNOUNCEMENT);
    assert_eq!(decode_announcement(&ANNOUNCEMENT), Ok(Decoded::Whole(tables)));
}

/// behaviour §8.9: the same bytes as from the C implementation's client.
#[test]
fn golden_update() {
    let [mut host, mut splice] = golden_tables();
    host.push(rule(Protocol::Tcp, "*", (6000, 6000), None, 6000));
    splice.push(rule(Protocol::Tcp, "*%lo", (7000, 7000), None, 7000));
    let update = Update(vec![(Pif::HOST, host), (Pif::SPLICE, splice)]);
    assert_eq!(encode_update(&update), *UPDATE);
    assert_eq!(decode_update(&UPDATE), Ok(Decoded::Whole(update)));
}

/// behaviour §8.9: errors for other versions and sizes have the texts of the C implementation's client.
#[test]
fn greetings_of_other_versions() {
    let altered = |at: usize, byte: u8| {
        let mut bytes = ANNOUNCEMENT.clone();
        bytes[at] = byte;
        decode_announcement(&bytes).map(drop).map_err(|error| error.to_string())
    };
    let refused = |text: &str| Err(text.to_owned());
    assert_eq!(altered(0, b'B'), refused("Bad magic number from server"));
    assert_eq!(altered(11, 3), refused("Unknown server protocol version 3 > 2"));
    assert_eq!(altered(11, 1), Ok(()));
    assert_eq!(altered(11, 0), refused("Unsupported experimental server protocol"));
    assert_eq!(altered(15, 127), refused("Server has unexpected pif name size (127 not 128)"));
    assert_eq!(altered(19, 15), refused("Server has unexpected IFNAMSIZ (15 not 16)"));
    assert_eq!(altered(21, 0x1b), refused("Table 1 has an invalid name"));
    // Unknown bits are kept.
    let mut bytes = ANNOUNCEMENT.clone();
    bytes[149] = 0x80;
    let Ok(Decoded::Whole(tables)) = decode_announcement(&bytes) else { panic!() };
    assert_eq!(tables[0].capabilities.bits(), 0x8000_003f);
    assert_eq!(encode_announcement(&tables), bytes);
}

/// Errors name the table and the position of the rule.
#[test]
fn invalid_rules_and_tables_are_refused() {
    let altered = |at: usize, byte: u8| {
        let mut bytes = UPDATE.clone();
        bytes[5 + at] = byte;
        decode_update(&bytes).unwrap_err().to_string()
    };
    assert_eq!(altered(54, 58), "Rule 1 of table 1: unknown protocol");
    assert_eq!(altered(55, 0x41), "Rule 1 of table 1: unknown flags");
    assert_eq!(altered(0, 0xfe), "Rule 1 of table 1: an address for both families");
    assert_eq!(altered(56 + 51, 0), "Rule 2 of table 1: reversed range of ports");
    assert_eq!(altered(112 + 34, b'/'), "Rule 3 of table 1: invalid interface name");
    // A name that is not terminated.
    let mut bytes = UPDATE.clone();
    bytes[5 + 32..5 + 48].fill(b'a');
    assert!(decode_update(&bytes).is_err());

    assert_eq!(decode_update(&[1, 0, 0, 1, 0]), Err(Error::TooManyRules(256)));
    assert_eq!(decode_update(&[1, 255, 255, 255, 255]), Err(Error::TooManyRules(u32::MAX)));
    assert_eq!(decode_update(&[1, 0, 0, 0, 0, 1]), Err(Error::Duplicate(1)));
    let many: Vec<u8> = (1..=9).flat_map(|pif| [pif, 0, 0, 0, 0]).collect();
    assert_eq!(decode_update(&many), Err(Error::TooManyTables));
    assert_eq!(decode_update(&[0, 1, 2, 3]), Ok(Decoded::Whole(Update::default())));
}

/// An unspecified target of either family means none. A wildcard keeps its family.
#[test]
fn unspecified_addresses() {
    let through = |listen: &str, target: Option<&str>| {
        let rule = rule(Protocol::Tcp, listen, (1, 1), target, 1);
        let Ok(Decoded::Whole(Update(tables))) =
            decode_update(&encode_update(&Update(vec![(Pif::HOST, vec![rule])])))
        else {
            panic!()
        };
        tables[0].1[0].to_string()
    };
    assert_eq!(through("*", None), "TCP [*]:1  =>  1 ");
    assert_eq!(through("0.0.0.0", Some("0.0.0.0")), "TCP [0.0.0.0]:1  =>  1 ");
    assert_eq!(through("::%a", Some("::")), "TCP [::]%a:1  =>  1 ");
    assert_eq!(through("192.0.2.1", Some("192.0.2.2")), "TCP [192.0.2.1]:1  =>  192.0.2.2:1 ");
}

/// A part of a message is not an error. Decoding requests more bytes, but at most the length of the whole message.
#[test]
fn incomplete_messages_need_more_bytes() {
    for end in 0..ANNOUNCEMENT.len() {
        let Ok(Decoded::Needs(needs)) = decode_announcement(&ANNOUNCEMENT[..end]) else { panic!() };
        assert!(needs > end && needs <= ANNOUNCEMENT.len(), "{end}: {needs}");
    }
    for end in 0..UPDATE.len() {
        let Ok(Decoded::Needs(needs)) = decode_update(&UPDATE[..end]) else { panic!() };
        assert!(needs > end && needs <= UPDATE.len(), "{end}: {needs}");
    }
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let address = || {
        prop_oneof![
            Just(None),
            any::<u32>().prop_map(|bits| Some(IpAddr::V4(bits.into()))),
            any::<u128>().prop_map(|bits| Some(IpAddr::from(bits.to_be_bytes()).to_canonical())),
        ]
    };
    let specified = |address: Option<IpAddr>| address.filter(|address| !address.is_unspecified());
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    let ports = (any::<u16>(), any::<u16>(), any::<u16>());
    (flags, address(), proptest::option::of("[a-z0-9.@-]{3,15}"), ports, address()).prop_map(
        move |((tcp, best_effort, scan), addr, interface, (a, b, target_first), target)| Rule {
            protocol: if tcp { Protocol::Tcp } else { Protocol::Udp },
            listen: Listen { addr, interface: interface.map(|name| name.parse().unwrap()) },
            ports: PortRange::new(a.min(b), a.max(b)).unwrap(),
            target_addr: specified(target),
            target_first,
            best_effort,
            scan,
        },
    )
}

proptest! {
    /// Every update survives encoding and decoding.
    #[test]
    fn round_trip(host in proptest::collection::vec(any_rule(), 0..20), splice in proptest::collection::vec(any_rule(), 0..3)) {
        let update = Update(vec![(Pif::SPLICE, splice), (Pif::HOST, host)]);
        prop_assert_eq!(decode_update(&encode_update(&update)), Ok(Decoded::Whole(update)));
    }

    /// Any input is decoded, is refused, or needs more bytes, up to the length of the longest message.
    #[test]
    fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..400), start in 0..700usize, at in 0..700usize, byte: u8) {
        let check = |needs: Option<usize>, len: usize| {
            assert!(needs.is_none_or(|needs| needs > len && needs <= MAX_LEN), "{needs:?} of {len}");
        };
        let mut altered = ANNOUNCEMENT.clone();
        if let Some(place) = altered.get_mut(at) {
            *place = byte;
        }
        let half = [&UPDATE[..start.min(UPDATE.len())], &bytes].concat();
        for bytes in [&bytes, &altered, &half] {
            check(needs(decode_announcement(bytes)), bytes.len());
            check(needs(decode_update(bytes)), bytes.len());
        }
    }
}

fn needs<T>(decoded: Result<Decoded<T>, Error>) -> Option<usize> {
    match decoded {
        Ok(Decoded::Needs(needs)) => Some(needs),
        _ => None,
    }
}
