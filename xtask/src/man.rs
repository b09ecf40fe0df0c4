//! The manual pages of the programs whose options are in the table, in the format of man(7).

mod texts;

use std::fmt::Write;

use passt::cli::options::{self, Action, Modes, Opt};
use passt::config::Mode;

use crate::support::supported;

/// A program whose options are in the table, and what comes before them.
#[derive(Clone, Copy)]
pub(crate) struct Program {
    name: &'static str,
    mode: Mode,
    has: fn(Modes) -> bool,
    head: &'static str,
    /// The document with a section about each option.
    texts: &'static str,
    tail: &'static str,
}

/// `pasta`.
pub(crate) const PASTA: Program = Program {
    name: "PASTA",
    mode: Mode::Pasta,
    has: |modes| matches!(modes, Modes::Both | Modes::Pasta),
    head: PASTA_HEAD,
    texts: texts::PASST,
    tail: PASTA_TAIL,
};

/// `passt`.
pub(crate) const PASST: Program = Program {
    name: "PASST",
    mode: Mode::Passt,
    has: |modes| modes != Modes::Pasta,
    head: PASST_HEAD,
    texts: texts::PASST,
    tail: PASST_TAIL,
};

/// `slirp4netns`.
pub(crate) const SLIRP4NETNS: Program = Program {
    name: "SLIRP4NETNS",
    mode: Mode::Slirp4netns,
    has: |_| true,
    head: SLIRP4NETNS_HEAD,
    texts: texts::SLIRP4NETNS,
    tail: SLIRP4NETNS_TAIL,
};

const OPTIONS_HEAD: &str = "An option without an argument is off, unless it is given.\n";

const PASST_HEAD: &str = r#".SH NAME
passt \- connect a virtual machine to the host's network, without privileges
.SH SYNOPSIS
.SY passt
.RI [ OPTION ]...
.YS
.SH DESCRIPTION
.B passt
listens on a UNIX domain socket for a virtual machine, and forwards its traffic through ordinary sockets of the host.
It needs no privileges, and changes nothing on the host.
It prints the options of QEMU with which the machine connects, and goes to the background.
.PP
The guest may use DHCP, DHCPv6 or IPv6 autoconfiguration: it gets the host's addresses, routes and name servers.
.PP
A long option may be abbreviated to a unique prefix.
If an option is given more than once, the last one counts, unless its description says otherwise.
"#;

const PASST_TAIL: &str = r#".SH EXIT STATUS
.TP
.B 0
Success. In the background: the guest can connect. At exit: a signal requested the exit, or the only guest disconnected.
.TP
.B 1
An error, with a message on standard error.
.SH EXAMPLES
.TP
A virtual machine to which port 2222 of the host is forwarded:
.EX
passt \-s vm.socket \-t 2222:22
qemu\-system\-x86_64 ... \-device virtio\-net\-pci,netdev=n \e
    \-netdev stream,id=n,server=off,addr.type=unix,addr.path=vm.socket
.EE
.SH SEE ALSO
.BR pasta (1),
.BR pesto (1),
.BR qrap (1),
.BR passt\-rs\-policy (5),
.BR passt\-rs\-api (7)
"#;

const PASTA_HEAD: &str = r#".SH NAME
pasta \- connect a network namespace to the host's network, without privileges
.SH SYNOPSIS
.SY pasta
.RI [ OPTION ]...
.RI [ COMMAND " [" ARGUMENT ]...]
.YS
.SY pasta
.RI [ OPTION ]...
.I PID
.YS
.SY pasta
.RI [ OPTION ]...
.B \-\-netns
.IR PATH | NAME
.YS
.SH DESCRIPTION
.B pasta
gives a network namespace an interface, and forwards its traffic through ordinary sockets of the host.
It needs no privileges, and changes nothing on the host.
.PP
Without
.I PID
or
.B \-\-netns
it creates user, network and other namespaces and starts
.I COMMAND
in them, or a login shell.
It exits when the command does, with the command's exit status.
Otherwise it connects the namespace of a process, or a named one, and goes to the background as soon as
the network is ready.
It exits when the namespace is removed.
.PP
Options end at the first argument that is not an option.
A long option may be abbreviated to a unique prefix.
If an option is given more than once, the last one counts, unless its description says otherwise.
"#;

const PASTA_TAIL: &str = r#".SH EXIT STATUS
.TP
.B 0
Success. In the background: the network is ready. At exit: the namespace was removed, or a signal requested the exit.
.TP
.B 1
An error, with a message on standard error.
.TP
.I N
The command's own exit status.
.TP
.RI 128+ N
Signal
.I N
ended the command.
.SH EXAMPLES
.TP
A shell with its own network:
.EX
pasta \-\-config\-net
.EE
.TP
A command, and a port of the host that is forwarded to it:
.EX
pasta \-\-config\-net \-t 127.0.0.1/8080:80 \-\- httpd \-f \-p 80
.EE
.TP
A named namespace:
.EX
pasta \-\-config\-net \-\-netns /run/netns/x
.EE
.SH SEE ALSO
.BR passt (1),
.BR pesto (1),
.BR passt\-rs\-policy (5),
.BR namespaces (7),
.BR network_namespaces (7),
.BR passt\-rs\-api (7),
.BR user_namespaces (7)
"#;

const SLIRP4NETNS_HEAD: &str = r#".SH NAME
slirp4netns \- connect a network namespace to the host through a virtual network, without privileges
.SH SYNOPSIS
.SY slirp4netns
.RI [ OPTION ]...
.I PID
.I TAPNAME
.YS
.SY slirp4netns
.RI [ OPTION ]...
.B \-\-netns\-type=path
.I PATH
.I TAPNAME
.YS
.SH DESCRIPTION
.B slirp4netns
makes the interface
.I TAPNAME
in a network namespace, and forwards its traffic through ordinary sockets of the host.
It needs no privileges, and changes nothing on the host.
It has the command line, the addresses and the API of slirp4netns 1.2, and is another program of passt\-rs.
.PP
It stays in the foreground, until
.B \-\-exit\-fd
ends or a signal arrives.
Unlike
.BR pasta (1),
it does not copy the host's addresses.
The addresses in the namespace are, with the default network:
.TP
10.0.2.2
The gateway.
It leads to the host's loopback, unless
.B \-\-disable\-host\-loopback
is given.
.TP
10.0.2.3
The name server.
Queries go to the servers of the host's
.IR /etc/resolv.conf .
.TP
10.0.2.15
The address that DHCP offers.
.TP
10.0.2.100
The address of the interface, with
.BR \-\-configure .
.PP
With
.BR \-\-enable\-ipv6 ,
router advertisements announce fd00::/64, with the gateway fe80::2, the host at fd00::2, and the name server
fd00::3.
.PP
A long option may be abbreviated to a unique prefix.
"#;

const SLIRP4NETNS_TAIL: &str = r#".SH API SOCKET
A client of
.B \-\-api\-socket
sends one request in JSON, of less than 4096 bytes, and gets one reply.
.TP
Forward a port:
.EX
{"execute": "add_hostfwd", "arguments": {"proto": "tcp", "host_addr": "0.0.0.0",
 "host_port": 8080, "guest_addr": "10.0.2.100", "guest_port": 80}}
{"return": {"id": 1}}
.EE
The protocol is tcp, udp, tcp4, udp4, tcp6 or udp6.
The addresses may be left out.
.TP
List the forwarded ports:
.EX
{"execute": "list_hostfwd"}
{"return": {"entries": [...]}, "entries": [...]}
.EE
.TP
Forward a port no longer:
.EX
{"execute": "remove_hostfwd", "arguments": {"id": 1}}
{"return": {}}
.EE
.TP
An error:
.EX
{"error": {"desc": "bad request: ..."}}
.EE
.SH EXIT STATUS
.TP
.B 0
.B \-\-exit\-fd
has ended.
.TP
.B 1
An error, with a message on standard error.
.SH EXAMPLES
.EX
unshare \-\-user \-\-map\-root\-user \-\-net sh \-c 'echo $$ >pid; exec sh' &
slirp4netns \-\-configure $(cat pid) tap0
.EE
.SH SEE ALSO
.BR pasta (1),
.BR network_namespaces (7),
.BR user_namespaces (7)
"#;

/// The page of a program.
pub(crate) fn page(program: Program) -> String {
    let Program { name, mode, has, head, tail, .. } = program;
    let version = env!("CARGO_PKG_VERSION");
    let mut page = format!(".TH {name} 1 \"\" \"passt-rs {version}\"\n{head}.SH OPTIONS\n{OPTIONS_HEAD}");
    for group in options::groups(mode) {
        let mut options = group.options.iter().filter(|opt| has(opt.modes)).peekable();
        if options.peek().is_some() {
            page += &format!(".SS {}\n", escape(group.title));
        }
        options.for_each(|opt| push_option(&mut page, opt, program));
    }
    page + tail
}

/// The options in the page of a program.
#[cfg(test)]
fn options_of(program: Program) -> impl Iterator<Item = &'static Opt> {
    options::groups(program.mode)
        .iter()
        .flat_map(|group| group.options)
        .filter(move |opt| (program.has)(opt.modes))
}

fn push_option(page: &mut String, opt: &Opt, program: Program) {
    let mut names: Vec<String> = opt.short.map(|letter| format!("-{letter}")).into_iter().collect();
    names.extend(opt.long.iter().map(|name| format!("--{name}")));
    let names = names.iter().map(|name| format!("\\fB{}\\fR", escape(name))).collect::<Vec<_>>().join(", ");
    let argument = match opt.action {
        Action::Value(name, _) => format!(" \\fI{}\\fR", escape(name)),
        Action::Ports(..) => " \\fISPEC\\fR".into(),
        Action::Flag(_) | Action::Show(_) => String::new(),
    };
    // A write to a string can't fail.
    let _ = writeln!(page, ".TP\n{names}{argument}");
    for paragraph in paragraphs(opt.help) {
        page.push_str(&paragraph);
    }
    if program.mode != Mode::Slirp4netns && !supported(opt) {
        page.push_str(".br\nNot supported yet.\n");
    }
    if let Some(section) = texts::sections(program.texts).find(|section| section.name == opt.long[0]) {
        page.push_str(&section.format(&program.name.to_lowercase()));
    }
}

/// Formats a help text. Text is filled. From the first line with columns on, line breaks are kept. A default value
/// starts a new line.
fn paragraphs(help: &str) -> Vec<String> {
    let has_columns = |line: &str| line.contains("   ");
    let mut out = Vec::new();
    let mut table = false;
    for line in help.lines() {
        if line.starts_with("default:") {
            if std::mem::take(&mut table) {
                out.push(".EE\n".into());
            }
            out.push(".br\n".into());
        } else if !table && has_columns(line) {
            table = true;
            out.push(".EX\n".into());
        }
        out.push(format!("{}\n", escape(line)));
    }
    if table {
        out.push(".EE\n".into());
    }
    out
}

/// Escapes text, so that no line starts with a request and hyphens are real hyphens.
fn escape(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-").replace('~', "\\(ti").replace('^', "\\(ha");
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The manual page names each request of docs/api.md.
    #[test]
    fn the_page_of_the_api_is_complete() {
        let read = |name: &str| std::fs::read_to_string(crate::house::root().join(name)).unwrap();
        let (guide, page) = (read("docs/api.md"), read("packaging/man/passt-rs-api.7"));
        let table =
            guide.split("| request | arguments | result |").nth(1).unwrap().split("\n\n").next().unwrap();
        let cells = table.lines().filter_map(|line| line.split('|').nth(1));
        let requests: Vec<&str> = cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect();
        assert!(requests.contains(&"flows"), "{requests:?}");
        for request in requests {
            assert!(page.split([' ', '\n']).any(|word| word == request), "{request}");
        }
    }

    /// The manual page names each group of addresses.
    #[test]
    fn the_page_of_the_policy_is_complete() {
        let read = |name: &str| std::fs::read_to_string(crate::house::root().join(name)).unwrap();
        let (guide, page) = (read("docs/guard.md"), read("packaging/man/passt-rs-policy.5"));
        let table = guide.split("| group | addresses |").nth(1).unwrap().split("\n\n").next().unwrap();
        let groups: Vec<&str> = table.lines().filter_map(|line| line.split('`').nth(1)).collect();
        assert_eq!(groups.len(), 7);
        for group in groups {
            assert!(page.contains(&format!(".It Cm {group}\n")), "{group}");
        }
    }

    /// How often a page has an entry for this option.
    fn entries(page: &str, option: &str) -> usize {
        let name = format!("\\fB{}\\fR", escape(option));
        page.split("\n.TP\n").skip(1).filter(|entry| entry.lines().next().unwrap().contains(&name)).count()
    }

    #[test]
    fn every_option_has_an_entry() {
        for program in [PASTA, PASST, SLIRP4NETNS] {
            let page = page(program);
            for opt in options_of(program) {
                assert_eq!(entries(&page, &format!("--{}", opt.long[0])), 1, "{:?}", opt.long);
            }
            assert_eq!(page.matches(".EX\n").count(), page.matches(".EE\n").count());
        }
    }

    #[test]
    fn each_program_has_its_own_options() {
        let (pasta, passt) = (page(PASTA), page(PASST));
        for (option, of_pasta, of_passt) in [("--config-net", 1, 0), ("--vhost-user", 0, 1), ("--mtu", 1, 1)]
        {
            assert_eq!((entries(&pasta, option), entries(&passt, option)), (of_pasta, of_passt), "{option}");
        }
    }

    /// mandoc finds neither errors nor warnings in any page, except that the generated ones have no date.
    #[test]
    fn mandoc_accepts_each_page() {
        let folder = tempfile::tempdir().unwrap();
        let mut pages = Vec::new();
        for (name, program) in [("pasta", PASTA), ("passt", PASST), ("slirp4netns", SLIRP4NETNS)] {
            pages.push(folder.path().join(format!("{name}.1")));
            std::fs::write(pages.last().unwrap(), page(program)).unwrap();
        }
        let written = std::fs::read_dir(crate::house::root().join("packaging/man")).unwrap();
        pages.extend(written.map(|entry| entry.unwrap().path()));
        assert_eq!(pages.len(), 7);
        let mut lint = std::process::Command::new("mandoc");
        let output = match lint.args(["-T", "lint", "-W", "warning"]).args(&pages).output() {
            Ok(output) => output,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return eprintln!("SKIPPED: mandoc is not installed (apt-get install mandoc)");
            }
            Err(error) => panic!("can't run mandoc: {error}"),
        };
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        let faults: Vec<&str> = text.lines().filter(|line| !line.contains("WARNING: missing date")).collect();
        assert!(faults.is_empty(), "{}", faults.join("\n"));
    }

    #[test]
    fn text_does_not_become_a_request() {
        assert_eq!(escape(".br"), "\\&.br");
        assert_eq!(escape("a\\b -c"), "a\\eb \\-c");
    }
}
