use super::*;

fn announced(pif: Pif, capabilities: u32, specs: &[&str]) -> Announced {
    let name = if pif == Pif::HOST { "HOST" } else { "SPLICE" };
    let capabilities = Capabilities::from_bits_retain(capabilities);
    let (direction, option) =
        if pif == Pif::HOST { (Direction::Inbound, "-t") } else { (Direction::Outbound, "-T") };
    let table = Announced {
        pif,
        name: name.into(),
        capabilities: Capabilities::from_bits_retain(0x3f),
        rules: vec![],
    };
    let mut editor = Editor::new(vec![table], PortRange::RFC6335_DYNAMIC);
    for spec in specs {
        let (protocol, spec) = match spec.strip_prefix('u') {
            Some(spec) => (Protocol::Udp, spec),
            None => (Protocol::Tcp, *spec),
        };
        editor.ports(direction, protocol, spec, option).unwrap();
    }
    Announced { capabilities, ..editor.finish().remove(0) }
}

/// Edits a table HOST with TCP port 22 and a table SPLICE with TCP port 5000 by `options`; returns the rules as text.
fn edit(options: &str) -> Result<Vec<String>, String> {
    let tables = vec![announced(Pif::HOST, 0x3f, &["22"]), announced(Pif::SPLICE, 0x3f, &["5000"])];
    edit_tables(tables, options)
}

fn edit_tables(tables: Vec<Announced>, options: &str) -> Result<Vec<String>, String> {
    let mut editor = Editor::new(tables, PortRange::new(32768, 60999).unwrap());
    let mut words = options.split(' ');
    while let Some(word) = words.next() {
        let mut ports = |direction, protocol| Change::Ports {
            direction,
            protocol,
            spec: words.next().unwrap().into(),
            typed_as: word.into(),
        };
        let change = match word {
            "-A" => Change::Add,
            "-D" => Change::Delete,
            "-C" => Change::Clear(words.next().unwrap().into()),
            "-t" => ports(Direction::Inbound, Protocol::Tcp),
            "-u" => ports(Direction::Inbound, Protocol::Udp),
            "-T" => ports(Direction::Outbound, Protocol::Tcp),
            "-U" => ports(Direction::Outbound, Protocol::Udp),
            other => panic!("{other}"),
        };
        editor.apply(&change)?;
    }
    let mut lines = editor.warnings().to_vec();
    for table in editor.finish() {
        let rules: Vec<String> = table.rules.iter().map(|rule| rule.to_string().trim_end().into()).collect();
        lines.push(format!("{}: {}", table.name, rules.join(", ")));
    }
    Ok(lines)
}

/// behaviour §8.9: options apply in order. The results are those of the C implementation's pesto.
#[test]
fn options_act_in_order() {
    let same = |host: &str, splice: &str| Ok(vec![format!("HOST: {host}"), format!("SPLICE: {splice}")]);
    let (t22, s5000) = ("TCP [*]:22  =>  22", "TCP [*]%lo:5000  =>  5000");
    assert_eq!(edit("-A"), same(t22, s5000));
    assert_eq!(edit("-A -t 80"), same("TCP [*]:22  =>  22, TCP [*]:80  =>  80", s5000));
    // Without -A, the first specifier replaces all rules of its table, including those of the other protocol.
    assert_eq!(edit("-u 53"), same("UDP [*]:53  =>  53", s5000));
    assert_eq!(
        edit("-t 80 -u 53 -t 81"),
        same("TCP [*]:80  =>  80, UDP [*]:53  =>  53, TCP [*]:81  =>  81", s5000)
    );
    assert_eq!(edit("-t 80 -A -t 81"), same("TCP [*]:80  =>  80, TCP [*]:81  =>  81", s5000));
    assert_eq!(edit("-T 9 -A -t 24"), same("TCP [*]:22  =>  22, TCP [*]:24  =>  24", "TCP [*]%lo:9  =>  9"));
    assert_eq!(
        edit("-t 22 -D -t 22 -A -t 23 -C SPLICE -T 99"),
        same("TCP [*]:23  =>  23", "TCP [*]%lo:99  =>  99")
    );
    // -C does not change the mode of the options after it.
    assert_eq!(edit("-C SPLICE -t 23"), same("TCP [*]:23  =>  23", ""));
    assert_eq!(edit("-D -t 22"), same("", s5000));
    assert_eq!(edit("-A -t 80 -D -t 80 -t 22"), same("", s5000));
    assert_eq!(edit("-t none"), same("", s5000));
    assert_eq!(edit("-t none -t 23"), same("TCP [*]:23  =>  23", s5000));
    assert_eq!(edit("-A -u none -u 5"), same("TCP [*]:22  =>  22, UDP [*]:5  =>  5", s5000));
    assert_eq!(
        edit("-t auto -T 99,auto"),
        same(
            "TCP [*]:1-32767  =>  1-32767  (best effort) (auto-scan), \
             TCP [*]:61000-65535  =>  61000-65535  (best effort) (auto-scan)",
            "TCP [*]%lo:99  =>  99  (auto-scan)"
        )
    );
}

/// behaviour §8.9: errors have the texts of the C implementation's pesto.
#[test]
fn invalid_changes_are_refused() {
    let refused = |options: &str, message: &str| assert_eq!(edit(options), Err(message.into()), "{options}");
    refused("-t 22,", "Invalid port specifier '22,'");
    refused("-C TAP", "Unsupported pif name TAP");
    refused("-A -t none", "-t none conflicts with previous options");
    refused("-D -t none", "-t none conflicts with previous options");
    refused("-t 23 -t none", "-t none conflicts with previous options");
    refused("-T 0.0.0.0/3", "Listening address not allowed for -T 0.0.0.0/3");
    refused(
        "-A -t 22",
        "Forwarding configuration conflict: TCP [*]:22  =>  22  versus TCP [*]:22  =>  22 \n\
         Unable to add rule TCP [*]:22  =>  22 ",
    );
    refused(
        "-D -t 6001",
        "Couldn't find forwarding rule to delete: TCP [*]:6001  =>  6001 \n\
         Unable to delete rule TCP [*]:6001  =>  6001 ",
    );
    refused(
        "-D -t 22-23",
        "Specifier TCP [*]:22-23  =>  22-23  conflicts with rule TCP [*]:22  =>  22 , but doesn't match it, \
         can't delete\nUnable to delete rule TCP [*]:22-23  =>  22-23 ",
    );
}

/// behaviour §8.9: an update does not request features that the server does not have.
#[test]
fn rules_respect_capabilities() {
    let host = |capabilities: u32, options: &str| {
        edit_tables(vec![announced(Pif::HOST, capabilities, &["22"])], options)
    };
    assert_eq!(host(0x3f, "-T 22"), Err("Can't use -T, no outbound interface".into()));
    assert_eq!(host(0x3f, "-C SPLICE"), Err("Unsupported pif name SPLICE".into()));
    assert_eq!(host(0x2f, "-t auto"), Err("'auto' port forwarding is only allowed for pasta".into()));
    assert_eq!(
        host(0x37, "-u 23"),
        Err("Can't add UDP forwarding rule, UDP not enabled\nUnable to add rule UDP [*]:23  =>  23 ".into())
    );
    assert_eq!(host(0x3d, "-u 23"), Ok(vec!["HOST: UDP [0.0.0.0]:23  =>  23".into()]));
    assert_eq!(
        host(0x3d, "-u ::1/23"),
        Err("IPv6 forward, but IPv6 not enabled\nUnable to add rule UDP [::1]:23  =>  23 ".into())
    );
    assert_eq!(
        host(0x1f, "-u %lo/23"),
        Err("Device binding for '-u %lo/23' unsupported (requires kernel 5.7+)".into())
    );
    // behaviour §2.4.7
    assert_eq!(
        edit_tables(vec![announced(Pif::SPLICE, 0x1f, &[])], "-T 23"),
        Ok(vec![
            "SO_BINDTODEVICE unavailable, forwarding only 127.0.0.1 and ::1 for '-T 23'".into(),
            "SPLICE: TCP [127.0.0.1]:23  =>  23, TCP [::1]:23  =>  23".into()
        ])
    );
}

/// Unknown tables are sent back unchanged.
#[test]
fn unknown_tables_are_kept() {
    let mut other = announced(Pif::HOST, 0x3f, &["99"]);
    (other.pif, other.name) = (Pif(2), "TAP".into());
    let tables = vec![announced(Pif::HOST, 0x3f, &["22"]), other];
    assert_eq!(
        edit_tables(tables.clone(), "-t 23"),
        Ok(vec!["HOST: TCP [*]:23  =>  23".into(), "TAP: TCP [*]:99  =>  99".into()])
    );
    assert_eq!(edit_tables(tables, "-C TAP"), Ok(vec!["HOST: TCP [*]:22  =>  22".into(), "TAP: ".into()]));
}
