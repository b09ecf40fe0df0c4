//! Options about what the guest may reach (docs/guard.md).

use std::ffi::OsStr;

use engine::policy::{Action as Verdict, spec};

use super::{Opt, flag, value};
use crate::cli::{finish::Args, value::path};

pub(super) const OPTIONS: &[Opt] = &[
    value(
        &["allow"],
        "WHAT",
        allow,
        "Let the guest reach it:\n[PROTOCOL/]DESTINATION[:PORTS]\nPROTOCOL: tcp, udp or icmp; DESTINATION: an\naddress, a prefix or a group: public, private,\nlinklocal, metadata, host, multicast, all.\nThe first --allow or --deny that matches decides.\nWhat none matches is refused if any is --allow",
    )
    .extension(),
    value(&["deny"], "WHAT", deny, "Do not let the guest reach this").extension(),
    value(
        &["policy"],
        "PATH",
        policy,
        "Read more rules from this file, one in each line:\nallow WHAT, deny WHAT, default allow|deny",
    )
    .extension(),
    flag(&["policy-audit"], policy_audit, "Refuse nothing; log what the rules would refuse").extension(),
];

fn allow(args: &mut Args, what: &OsStr) -> Result<(), String> {
    rule(args, Verdict::Allow, "--allow", what)
}

fn deny(args: &mut Args, what: &OsStr) -> Result<(), String> {
    rule(args, Verdict::Deny, "--deny", what)
}

fn rule(args: &mut Args, verdict: Verdict, option: &str, what: &OsStr) -> Result<(), String> {
    let text = what.to_str().ok_or_else(|| format!("{option}: not UTF-8: {}", what.display()))?;
    args.config.rules.push(spec::parse(verdict, text).map_err(|error| format!("{option}: {error}"))?);
    Ok(())
}

fn policy(args: &mut Args, value: &OsStr) -> Result<(), String> {
    if let Some(first) = &args.config.policy {
        return Err(format!("--policy was given before, with {}", first.display()));
    }
    args.config.policy = Some(path(value, "policy file")?);
    Ok(())
}

fn policy_audit(args: &mut Args) {
    args.config.policy_audit = true;
}
