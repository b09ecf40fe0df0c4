//! The manual page, in the format of man(7).

use std::fmt::Write;

use passt::cli::options::{Action, GROUPS, Modes, Opt};

use crate::support::supported;

const HEAD: &str = r#".SH NAME
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

const TAIL: &str = r#".SH EXIT STATUS
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
.BR namespaces (7),
.BR network_namespaces (7),
.BR user_namespaces (7)
"#;

/// The page of pasta(1).
pub(crate) fn page() -> String {
    let mut page =
        format!(".TH PASTA 1 \"\" \"passt-rs {}\"\n{HEAD}.SH OPTIONS\n", env!("CARGO_PKG_VERSION"));
    for group in &GROUPS {
        let mut options =
            group.options.iter().filter(|opt| matches!(opt.modes, Modes::Both | Modes::Pasta)).peekable();
        if options.peek().is_some() {
            page += &format!(".SS {}\n", escape(group.title));
        }
        options.for_each(|opt| push_option(&mut page, opt));
    }
    page + TAIL
}

fn push_option(page: &mut String, opt: &Opt) {
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
    if !supported(opt) {
        page.push_str(".br\nNot supported yet.\n");
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
    use crate::support::options_of_pasta;

    #[test]
    fn every_option_has_an_entry() {
        let page = page();
        for opt in options_of_pasta() {
            let name = format!("\\fB{}\\fR", escape(&format!("--{}", opt.long[0])));
            assert_eq!(page.matches(&name).count(), 1, "{name}");
        }
        assert_eq!(page.matches(".EX").count(), page.matches(".EE").count());
    }

    #[test]
    fn text_does_not_become_a_request() {
        assert_eq!(escape(".br"), "\\&.br");
        assert_eq!(escape("a\\b -c"), "a\\eb \\-c");
    }
}
