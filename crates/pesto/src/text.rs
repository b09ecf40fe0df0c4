//! Flows, events and explanations as text.

use std::fmt::Write as _;

use serde_json::Value;

/// A table of flows.
pub(super) fn flows(flows: &[Value]) -> String {
    let headings =
        ["FLOW", "PROTOCOL", "STATE", "GUEST", "", "PEER", "FROM GUEST", "TO GUEST", "AGE", "NAMES, RULE"];
    let mut rows = vec![headings.map(str::to_owned)];
    rows.extend(flows.iter().map(|flow| {
        let way = if flow["direction"] == "inbound" { "<-" } else { "->" };
        let why = [names(flow), word(&flow["rule"])];
        [
            word(&flow["flow"]),
            format!("{}{}", word(&flow["protocol"]), if flow["bypass"] == true { " bypass" } else { "" }),
            word(&flow["state"]),
            end(flow, "guest"),
            way.into(),
            end(flow, "peer"),
            amount(&flow["bytes_sent"]),
            amount(&flow["bytes_received"]),
            format!("{:.0} s", flow["age"].as_f64().unwrap_or(0.0)),
            why.into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join("; "),
        ]
    }));
    table(&rows)
}

/// The rows, with columns of equal width.
pub(super) fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (content, width) in row.iter().zip(widths) {
            // Writing to a string does not fail.
            let _ = write!(line, "{content:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// An event in one line.
pub(super) fn event(event: &Value) -> String {
    let kind = word(&event["event"]);
    let ends = || {
        format!(
            "{} {} {} {}",
            word(&event["protocol"]),
            end(event, "guest"),
            arrow(event),
            end(event, "peer")
        )
    };
    let rule = if event["rule"].is_null() { String::new() } else { format!(" ({})", word(&event["rule"])) };
    let names = match names(event) {
        names if names.is_empty() => names,
        names => format!(" {names}"),
    };
    match &kind[..] {
        "begin" => format!("begin {}: {}{names}{rule}", word(&event["flow"]), ends()),
        "end" => format!(
            "end {}: {}{names}: {} after {:.1} s, {} from the guest, {} to it{}",
            word(&event["flow"]),
            ends(),
            word(&event["how"]),
            event["seconds"].as_f64().unwrap_or(0.0),
            amount(&event["bytes_sent"]),
            amount(&event["bytes_received"]),
            reason(event).map(|reason| format!(": {reason}")).unwrap_or_default(),
        ),
        "failure" => {
            let reason = reason(event).unwrap_or_default();
            format!("failure {}: {}{names}: {reason}", word(&event["flow"]), ends())
        }
        "refusal" if event["protocol"] == "dns" => {
            format!("refusal: DNS {} {}{rule}", word(&event["name"]), word(&event["type"]))
        }
        "refusal" => format!("refusal: {}{names}{rule}", ends()),
        "lost" => format!("{} events were lost", word(&event["count"])),
        "rules" => format!("new forwarding rules {}", word(&event["remark"])).trim_end().into(),
        "policy" => format!("new policy: {}", word(&event["remark"])),
        _ => event.to_string(),
    }
}

/// An explanation of what would happen to a flow.
pub(super) fn route(route: &Value) -> String {
    let verdict = match route["verdict"].as_str() {
        Some("allowed") => "allowed",
        Some("checked") => "allowed if the client asks for an allowed name in its first bytes",
        Some("questions") => "each DNS question is judged",
        _ => "refused",
    };
    let rule = match route["rule"].as_str() {
        Some(rule) => format!("{verdict}, by: {rule}"),
        None => format!("{verdict}, without a rule"),
    };
    if !route["error"].is_null() {
        return format!("{}\n  {:<12}{}\n", end(route, "peer"), "error", word(&route["error"]));
    }
    let mut text =
        format!("{} {} -> {}", word(&route["protocol"]), word(&route["guest"]), end(route, "peer"));
    if !route["name"].is_null() {
        // Writing to a string can't fail, here and below.
        let _ = write!(text, " for {}", word(&route["name"]));
    }
    text.push('\n');
    let mut add = |what: &str, content: String| {
        if !content.is_empty() {
            let _ = writeln!(text, "  {what:<12}{content}");
        }
    };
    add("verdict", rule);
    if !route["withheld"].is_null() {
        add("DNS", format!("the guest would not be given this address: {}", word(&route["withheld"])));
    }
    add("names", given(route));
    add("translated", word(&route["translated"]));
    let resolver = if route["resolver"] == true { "questions go to the host's resolvers" } else { "" };
    add("resolver", resolver.into());
    add("source", word(&route["source"]));
    if let Some(ago) = route["last"]["ago"].as_f64() {
        let outcome = reason(&route["last"]).unwrap_or_else(|| "no failure".into());
        add("last flow", format!("{} ago: {outcome}", duration(ago)));
    }
    text
}

/// Why something has failed, and the number of the error.
fn reason(value: &Value) -> Option<String> {
    let reason = value["reason"].as_str().map(|_| word(&value["reason"]))?;
    let errno = value["errno"].as_i64().map(|errno| format!(" (error {errno})")).unwrap_or_default();
    Some(reason + &errno)
}

fn arrow(value: &Value) -> &'static str {
    if value["direction"] == "inbound" { "<-" } else { "->" }
}

/// A string without quotes, or a number. Characters that control a terminal are replaced, since names come from guests
/// and servers.
pub(super) fn word(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.replace(controls, "\u{fffd}"),
        other => other.to_string(),
    }
}

/// Whether the character has no place of its own on a terminal: control characters, and the marks that reverse or hide
/// text (Unicode's bidirectional controls, zero-width characters, separators of lines).
fn controls(letter: char) -> bool {
    letter.is_control()
        || matches!(letter, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// A duration in two units.
pub(super) fn duration(seconds: f64) -> String {
    let seconds = seconds as u64;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match () {
        () if days > 0 => format!("{days} d {} h", hours % 24),
        () if hours > 0 => format!("{hours} h {} min", minutes % 60),
        () if minutes > 0 => format!("{minutes} min {} s", seconds % 60),
        () => format!("{seconds} s"),
    }
}

/// An address and its port, if there is one.
pub(super) fn end(value: &Value, which: &str) -> String {
    let address = word(&value[which]);
    match value[format!("{which}_port")].as_u64() {
        Some(port) if address.contains(':') => format!("[{address}]:{port}"),
        Some(port) => format!("{address}:{port}"),
        None => address,
    }
}

/// The names for which the guest was given the remote address.
fn given(value: &Value) -> String {
    value["names"].as_array().into_iter().flatten().map(word).collect::<Vec<_>>().join(", ")
}

/// The names of the remote: first the name that the client has sent.
pub(super) fn names(value: &Value) -> String {
    let mut names: Vec<String> = value["names"].as_array().into_iter().flatten().map(word).collect();
    let said = word(&value["name"]);
    if !said.is_empty() && !names.contains(&said) {
        names.insert(0, said);
    }
    names.join(", ")
}

/// A number of bytes with a unit.
pub(super) fn amount(bytes: &Value) -> String {
    let Some(bytes) = bytes.as_u64() else { return "?".into() };
    let mut value = bytes as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 1000.0 {
            let decimals = usize::from(unit != "B");
            return format!("{value:.decimals$} {unit}");
        }
        value /= 1000.0;
    }
    format!("{value:.1} TB")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn table_of_flows() {
        let list = [
            json!({
                "flow": 7, "protocol": "tcp", "direction": "outbound", "state": "established",
                "guest": "198.51.100.2", "guest_port": 40000, "peer": "2001:db8::1", "peer_port": 443,
                "names": ["example.com"], "name": "www.example.com", "rule": "allow example.com",
                "bytes_sent": 1500, "bytes_received": 2_500_000_u64, "age": 12.4,
            }),
            json!({
                "flow": 12, "protocol": "icmp", "direction": "outbound", "state": "answered", "guest": "192.0.2.1",
                "peer": "192.0.2.2", "bytes_sent": 56, "age": 1.0,
            }),
        ];
        let text = flows(&list);
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split("  ").map(str::trim).filter(|word| !word.is_empty()).collect())
            .collect();
        assert_eq!(
            lines[1],
            [
                "7",
                "tcp",
                "established",
                "198.51.100.2:40000",
                "->",
                "[2001:db8::1]:443",
                "1.5 kB",
                "2.5 MB",
                "12 s",
                "www.example.com, example.com; allow example.com"
            ]
        );
        assert_eq!(lines[2], ["12", "icmp", "answered", "192.0.2.1", "->", "192.0.2.2", "56 B", "?", "1 s"]);
        let column = |line: &str| line.find("->");
        let found: Vec<_> = text.lines().skip(1).map(column).collect();
        assert_eq!(found[0], found[1]);
    }

    #[test]
    fn events_in_one_line() {
        let ends = json!({
            "event": "end", "flow": 3, "protocol": "udp", "direction": "inbound", "guest": "192.0.2.1",
            "guest_port": 53, "peer": "192.0.2.9", "peer_port": 4000, "how": "idle", "seconds": 30.04,
            "bytes_sent": 1, "bytes_received": 0,
        });
        assert_eq!(
            event(&ends),
            "end 3: udp 192.0.2.1:53 <- 192.0.2.9:4000: idle after 30.0 s, 1 B from the guest, 0 B to it"
        );
        let refused = json!({ "event": "refusal", "protocol": "dns", "name": "a\u{1b}b", "type": "A", "rule": "deny a" });
        assert_eq!(event(&refused), "refusal: DNS a\u{fffd}b A (deny a)");
        assert_eq!(event(&json!({ "event": "lost", "count": 5 })), "5 events were lost");
    }

    #[test]
    fn characters_that_control_a_terminal_are_replaced() {
        for letter in ["\u{1b}", "\n", "\u{7f}", "\u{9b}", "\u{202e}", "\u{200b}", "\u{2028}"] {
            assert_eq!(word(&json!(format!("a{letter}b"))), "a\u{fffd}b", "{letter:?}");
        }
        assert_eq!(word(&json!("bücher.example")), "bücher.example");
    }

    #[test]
    fn durations() {
        for (seconds, text) in
            [(0.9, "0 s"), (61.0, "1 min 1 s"), (7260.0, "2 h 1 min"), (90_000.0, "1 d 1 h"), (-1.0, "0 s")]
        {
            assert_eq!(duration(seconds), text);
        }
    }

    #[test]
    fn explanation() {
        let answer = json!({
            "protocol": "tcp", "guest": "198.51.100.2", "peer": "198.51.100.1", "peer_port": 22,
            "verdict": "refused", "rule": "deny host", "names": [], "translated": "127.0.0.1", "resolver": false,
            "source": null,
        });
        assert_eq!(
            route(&answer),
            "tcp 198.51.100.2 -> 198.51.100.1:22\n  verdict     refused, by: deny host\n  translated  127.0.0.1\n"
        );
        let mut for_a_name = answer.clone();
        for_a_name["name"] = json!("example.com");
        for_a_name["withheld"] = json!("deny example.com");
        let text = route(&for_a_name);
        assert!(text.starts_with("tcp 198.51.100.2 -> 198.51.100.1:22 for example.com\n"), "{text}");
        assert!(
            text.contains("\n  DNS         the guest would not be given this address: deny example.com\n"),
            "{text}"
        );
        assert_eq!(
            route(&json!({ "peer": "::1", "error": "no address" })),
            "::1\n  error       no address\n"
        );
    }
}
