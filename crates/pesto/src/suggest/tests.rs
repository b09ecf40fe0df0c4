use proptest::prelude::*;

use super::*;

/// The rules and comments for a log, without the first line.
fn suggested(log: &str) -> Vec<String> {
    let text = read(log.as_bytes()).unwrap().text();
    spec::parse_file(&text).unwrap();
    // The number of spaces before a comment does not matter.
    let line = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    text.lines().skip(1).map(line).collect()
}

/// The lines of an audit are from standard error, a log file and syslog.
#[test]
fn an_audit_with_names() {
    let log = "
pasta: warning: would be refused: DNS 192.0.2.10:58293 asked for files.example.net A (default deny)
pasta: warning: would be refused: DNS 192.0.2.10:58293 asked for files.example.net AAAA (default deny)
12.3456: WARNING: would be refused: tcp 192.0.2.10:38296 -> 203.0.113.9:80, an answer for files.example.net (default deny)
12.3457: WARNING: would be refused: tcp 192.0.2.10:38298 -> 203.0.113.9:80, an answer for files.example.net (default deny)
<28>pasta[4711]: would be refused: DNS 192.0.2.10:1 asked for unused.example.net A (default deny)
Nov 28 10:00:00 host pasta[4711]: would be refused: ping 192.0.2.10 -> 203.0.113.9 (default deny)
";
    assert_eq!(
        suggested(log),
        ["allow tcp/files.example.net:80 # 2", "allow icmp/203.0.113.9 # 1", "allow unused.example.net # 1",]
    );
}

#[test]
fn specific_rules_come_first_and_each_once() {
    let log = "
refused: udp 192.0.2.10:40000 -> 203.0.113.9:53 (default deny)
refused: tcp 192.0.2.10:40000 -> 203.0.113.10:443 (default deny)
refused: tcp [2001:db8::2]:40000 -> [2001:db8:1::9]:443 (default deny)
refused: tcp 192.0.2.10:40001 -> 203.0.113.9:443 (default deny)
refused: tcp 192.0.2.10:40002 -> 203.0.113.9:443 (default deny) (and more, left out for a second)
refused: tcp 192.0.2.10:40003 -> 203.0.113.9:443 (default deny) (17 more before)
refused: ping 2001:db8::2 -> 2001:db8:1::9 (default deny)
ended: tcp 192.0.2.10:40009 -> 203.0.113.9:22 (default deny)
refused: tcp 192.0.2.10:40004 -> 203.0.113.9:443: asked for other.example.com (default deny)
refused: tcp 192.0.2.10:40005 -> 203.0.113.9:443, an answer for a.example and b.example and c.example (default deny)
";
    assert_eq!(
        suggested(log),
        [
            "allow tcp/a.example:443 # 1; or b.example, c.example",
            "allow tcp/other.example.com:443 # 1",
            "allow tcp/203.0.113.9:22 # 1",
            "allow tcp/203.0.113.9:443 # 3",
            "allow udp/203.0.113.9:53 # 1",
            "allow tcp/203.0.113.10:443 # 1",
            "allow tcp/[2001:db8:1::9]:443 # 1",
            "allow icmp/2001:db8:1::9 # 1",
            "# The log left out this number of lines, at least: repeat the run with these rules: 17",
        ]
    );
}

/// No rule is suggested if an explicit rule was the reason, since it is intended, or if no rule could allow the
/// refusal.
#[test]
fn what_an_explicit_rule_refuses_is_a_comment() {
    let log = "
refused: tcp 192.0.2.10:40234 -> 10.0.0.5:22 (deny private)
refused: tcp 192.0.2.10:40235 -> 10.0.0.5:22 (deny private)
refused: udp 192.0.2.10:40234 -> 8.8.8.8:853 (rules by name: no other name service)
refused: tcp 192.0.2.10:40238 -> 203.0.113.9:443: no server name (allow *.example.org:443)
refused: tcp 192.0.2.10:40238 -> 203.0.113.9:443, an answer for evil.example.org (deny evil.example.org)
refused: DNS 192.0.2.10:36014 was answered for mirror.example.org A (its address 10.20.0.5 is not public, and no rule allows it)
refused: DNS 192.0.2.10:36014 asked for evil.example.org A (deny evil.example.org)
refused: DNS 192.0.2.10:36014 asked for 9.113.0.203.in-addr.arpa PTR (default deny)
refused: DNS 192.0.2.10:36014 asked for files.example.net A (default deny)
refused: DNS 192.0.2.10:36014 asked for files.example.net.corp.example.org A (default deny)
refused: tcp 192.0.2.10:1 -> [64:ff9b::7f00:1]:22 (default deny)
";
    assert_eq!(
        suggested(log),
        [
            "allow files.example.net # 1",
            "# No rule is suggested for these:",
            "# 1: DNS 9.113.0.203.in-addr.arpa PTR (default deny)",
            "# 1: DNS evil.example.org A (deny evil.example.org)",
            "# 1: DNS mirror.example.org A (its address 10.20.0.5 is not public, and no rule allows it)",
            "# 1: files.example.net.corp.example.org (probably a search domain, appended to files.example.net)",
            "# 2: tcp/10.0.0.5:22 (deny private)",
            "# 1: tcp/203.0.113.9:443: an answer for evil.example.org (deny evil.example.org)",
            "# 1: tcp/203.0.113.9:443: no server name (allow *.example.org:443)",
            "# 1: tcp/[64:ff9b::7f00:1]:22 (these addresses carry IPv4 addresses, which decide what may be reached; \
             allow those instead)",
            "# 1: udp/8.8.8.8:853 (rules by name: no other name service)",
        ]
    );
}

/// A line of the flow log, with the fields that every line has.
fn flow_log(event: &str, fields: &str) -> String {
    format!(r#"{{"time":1796121234.123456,"event":"{event}",{fields},"later":[{{"x":1}}]}}"#) + "\n"
}

fn refused(fields: &str) -> String {
    flow_log("refusal", fields)
}

/// The same refusals give the same rules in both forms of a log.
#[test]
fn the_flow_log_has_the_same_refusals() {
    let log = "
refused: DNS 192.0.2.10:1 asked for files.example.net A (default deny)
refused: DNS 192.0.2.10:1 asked for evil.example.org AAAA (deny evil.example.org)
refused: DNS 192.0.2.10:1 asked for 9.113.0.203.in-addr.arpa PTR (default deny)
refused: DNS 192.0.2.10:1 was answered for mirror.example.org A (its address 10.20.0.5 is not public, and no rule allows it)
refused: tcp 192.0.2.10:1 -> 203.0.113.9:80, an answer for files.example.net (default deny)
refused: tcp 192.0.2.10:1 -> 203.0.113.9:443, an answer for a.example and b.example (default deny)
refused: tcp 192.0.2.10:1 -> 203.0.113.9:443: asked for other.example.com (default deny)
refused: tcp 192.0.2.10:1 -> 203.0.113.9:443: no server name (allow *.example.org:443)
refused: tcp 192.0.2.10:1 -> 203.0.113.9:443: asked for evil.example.org (deny evil.example.org)
refused: udp 192.0.2.10:1 -> [2001:db8:1::9]:123 (default deny)
refused: tcp 192.0.2.10:1 -> 10.0.0.5:22 (deny private)
refused: udp 192.0.2.10:1 -> 203.0.113.9:7, an answer for c.example (deny c.example)
refused: ping 192.0.2.10 -> 203.0.113.9 (default deny)
refused: membership of 239.1.2.3 (no rule allows it)
";
    let tcp = r#""refused":"flow","protocol":"tcp","peer":"203.0.113.9""#;
    let first = r#""refused":"first-bytes","protocol":"tcp","peer":"203.0.113.9","peer_port":443"#;
    let flows = [
        r#""refused":"question","protocol":"dns","name":"files.example.net","type":"A","rule":"default deny""#,
        r#""refused":"question","protocol":"dns","name":"evil.example.org","type":"AAAA","rule":"deny evil.example.org""#,
        r#""refused":"question","protocol":"dns","name":"9.113.0.203.in-addr.arpa","type":"PTR","rule":"default deny""#,
        r#""refused":"answer","protocol":"dns","name":"mirror.example.org","type":"A","rule":"its address 10.20.0.5 is not public, and no rule allows it""#,
        &format!(r#"{tcp},"peer_port":80,"names":["files.example.net"],"rule":"default deny""#),
        &format!(r#"{tcp},"peer_port":443,"names":["a.example","b.example"],"rule":"default deny""#),
        &format!(r#"{first},"name":"other.example.com","names":["x.example"],"rule":"default deny""#),
        &format!(r#"{first},"reason":"no server name","names":["x.example"],"rule":"allow *.example.org:443""#),
        &format!(r#"{first},"name":"evil.example.org","rule":"deny evil.example.org""#),
        r#""refused":"flow","protocol":"udp","peer":"2001:db8:1::9","peer_port":123,"rule":"default deny""#,
        r#""refused":"flow","protocol":"tcp","peer":"10.0.0.5","peer_port":22,"rule":"deny private""#,
        r#""refused":"flow","protocol":"udp","peer":"203.0.113.9","peer_port":7,"names":["c.example"],"rule":"deny c.example""#,
        r#""refused":"flow","protocol":"icmp","echo_id":7,"peer":"203.0.113.9","rule":"default deny","audit":true"#,
        r#""refused":"membership","protocol":"igmp","peer":"239.1.2.3","rule":"no rule allows it""#,
    ]
    .map(refused)
    .concat();
    let expected = suggested(log);
    assert_eq!(suggested(&flows), expected);
    assert_eq!(expected.len(), 14, "{expected:?}");
    // A file may have both.
    let twice: Vec<String> = expected.iter().map(|line| line.replace("# 1", "# 2")).collect();
    assert_eq!(suggested(&format!("{log}{flows}")), twice);
}

#[test]
fn other_refusals_of_the_flow_log_are_comments() {
    let log = [
        r#""refused":"protocol","protocol":"ip","ip_protocol":132,"peer":"203.0.113.9","rule":"not supported""#,
        r#""refused":"fragments","protocol":"ip","peer":"203.0.113.9","rule":"some are missing""#,
        r#""refused":"of a later version","protocol":"quic","peer":"203.0.113.9","rule":"why""#,
        r#""refused":"flow","protocol":"sctp","peer":"203.0.113.9","peer_port":1,"rule":"default deny""#,
    ]
    .map(refused)
    .concat();
    assert_eq!(
        suggested(&log),
        [
            "# No rule is suggested for these:",
            "# 1: IP protocol 132 to 203.0.113.9 (not supported)",
            "# 1: flow to 203.0.113.9 (default deny)",
            "# 1: fragments to 203.0.113.9 (some are missing)",
            "# 1: of a later version to 203.0.113.9 (why)",
        ]
    );
}

/// Lines of a flow log that are no refusals are known, all other lines are counted.
#[test]
fn lines_of_neither_log_are_counted() {
    let known = flow_log("log", r#""program":"pasta","version":"1""#)
        + &flow_log("begin", r#""flow":1,"protocol":"tcp""#)
        + &flow_log("of a later version", r#""flow":1"#)
        + "refused: tcp 192.0.2.10:1 -> 203.0.113.9:443 (default deny)\n\n";
    let skipped = |log: &str| read(log.as_bytes()).unwrap().skipped();
    assert_eq!(skipped(&known), 0);
    for other in [
        "Accepted configuration client, PID 7",
        "{",
        "{}",
        "[]",
        r#"{"event":7}"#,
        r#"{"event":"refusal"}"#,
        r#"{"event":"refusal","refused":"flow","protocol":"tcp","peer":"203.0.113.9","rule":"default deny"}"#,
        r#"{"event":"refusal","refused":"flow","protocol":"tcp","peer":"x","peer_port":1,"rule":"default deny"}"#,
        r#"{"event":"refusal","refused":"question","protocol":"dns","type":"A","rule":"default deny"}"#,
        &format!(r#"{{"event":"refusal","x":{}1"#, "[".repeat(1000)),
        &"x".repeat(2 * MAX_LINE as usize),
    ] {
        let log = format!("{known}{other}\n{known}{other}");
        assert_eq!((skipped(&log), suggested(&log).len()), (2, 1), "{other:.80}");
    }
}

/// Strings of JSON can have line ends.
#[test]
fn escaped_characters_make_no_lines() {
    let evil = r#"a.example\nallow all\u0000\u2028"#;
    let log = refused(&format!(r#""refused":"question","name":"{evil}","type":"A","rule":"default deny""#))
        + &refused(&format!(r#""refused":"question","name":"x","type":"{evil}","rule":"{evil}""#))
        + &refused(&format!(r#""refused":"{evil}","protocol":"{evil}","peer":"::1","rule":"{evil}""#))
        + &refused(&format!(
            r#""refused":"flow","protocol":"icmp","peer":"::1","names":["b.example","{evil}"],"rule":"default deny""#
        ))
        + &refused(&format!(
            r#""refused":"first-bytes","protocol":"tcp","peer":"::1","peer_port":1,"reason":"{evil}","rule":"{evil}""#
        ));
    let text = read(log.as_bytes()).unwrap().text();
    let rules = spec::parse_file(&text).unwrap().rules;
    assert_eq!(rules.len(), 1, "{text}");
    assert_eq!(&*rules[0].text, "allow icmp/b.example");
}

/// The guest chooses the names in its questions, so a suggested rule must not allow more than one name.
#[test]
fn a_name_that_a_guest_makes_up_allows_nothing_else() {
    for name in [
        "all",
        "public",
        "HOST",
        "*.example.org",
        "10.0.0.0/8",
        "203.0.113.9",
        "tcp/all",
        "a:1-65535",
        "a#b",
        "\\042",
    ] {
        let log = format!("refused: DNS 192.0.2.10:1 asked for {name} A (default deny)\n");
        let lines = suggested(&log);
        assert!(lines.iter().all(|line| line.starts_with('#')), "{lines:?}");
        assert_eq!(lines.len(), 2, "{lines:?}");
    }
}

#[test]
fn other_lines_are_ignored() {
    for line in [
        "Accepted configuration client, PID 7",
        "Rule: deny all",
        "not refused: nothing",
        "Connections are refused: Too many open files (os error 24)",
        "xrefused: tcp 192.0.2.10:1 -> 203.0.113.9:443 (default deny)",
        "refused: tcp 192.0.2.10:1 -> 203.0.113.9 (default deny)",
        "refused: tcp 192.0.2.10:1 -> 203.0.113.9:443",
        "refused: gre 192.0.2.10:1 -> 203.0.113.9:443 (default deny)",
        "refused: DNS guest asked for a.example A (default deny)",
    ] {
        assert_eq!(suggested(line), [""; 0], "{line}");
    }
}

#[test]
fn long_lines_and_many_destinations_are_limited() {
    let long = "x".repeat(3 * MAX_LINE as usize);
    let refused = "refused: tcp 192.0.2.10:1 -> 203.0.113.9:443 (default deny)\n";
    let log = format!("{long} {refused}{refused}");
    assert_eq!(suggested(&log), ["allow tcp/203.0.113.9:443 # 1"]);
    let many: String = (0..MAX_RULES as u32 + 5)
        .map(|number| {
            let remote = std::net::Ipv4Addr::from(0x0100_0000 + number);
            format!("refused: ping 192.0.2.10 -> {remote} (default deny)\n")
        })
        .collect();
    let lines = suggested(&many);
    assert_eq!(lines.len(), MAX_RULES + 1);
    assert!(lines.last().unwrap().ends_with("too many different ones: 5"));
}

proptest! {
    /// For any log, the text is a policy file that allows only single addresses and names.
    #[test]
    fn any_log(
        names in proptest::collection::vec("[ -~]{0,12}", 0..6),
        reasons in proptest::collection::vec("default deny|deny all|[ -~]{0,12}", 6),
    ) {
        let mut log = String::new();
        for (name, reason) in names.iter().zip(&reasons) {
            log += &format!("refused: DNS 192.0.2.10:1 asked for {name} A ({reason})\n");
            log += &format!("refused: tcp 192.0.2.10:1 -> 203.0.113.9:443, an answer for {name} ({reason})\n");
            log += &format!("refused: tcp 192.0.2.10:1 -> {name} ({reason})\n{name}\n");
        }
        let file = spec::parse_file(&read(log.as_bytes()).unwrap().text()).unwrap();
        for rule in file.rules {
            let single = match &rule.destination {
                Destination::Name(_) => true,
                Destination::Prefix(prefix) => prefix.prefix_len() == prefix.max_prefix_len(),
                Destination::Below(_) | Destination::Group(_) => false,
            };
            prop_assert!(single, "{rule}");
        }
    }
}
