//! Options about the destinations that the guest may reach (docs/guard.md).

use std::ffi::OsStr;

use engine::first_bytes::Ech;
use engine::policy::{Action as Verdict, spec};

use super::{Opt, flag, value};
use crate::cli::{finish::Args, value::path};
use crate::config::NameCheck;

pub(super) const OPTIONS: &[Opt] = &[
    value(
        &["allow"],
        "WHAT",
        allow,
        "Let the guest reach it:\n[PROTOCOL/]DESTINATION[:PORTS]\nPROTOCOL: tcp, udp or icmp; DESTINATION: an\naddress, a prefix, a name, *.NAME or a group:\npublic, private, linklocal, metadata, host,\nmulticast, all.\nThe first --allow or --deny that matches decides.\nWhat none matches is refused if any is --allow",
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
    value(
        &["policy-names"],
        "CHECK",
        policy_names,
        "What rules by name check:\nclient: the address was an answer for the name,\nand the client asks its server for it (TLS, HTTP,\nQUIC); address: the answer alone (default: client)",
    )
    .extension(),
    value(
        &["policy-ech"],
        "allow|deny",
        policy_ech,
        "With deny, refuse a ClientHello with an encrypted\npart, as browsers send it to every server\n(default: allow, and check the outer name)",
    )
    .extension(),
    flag(&["policy-audit"], policy_audit, "Refuse nothing; log what the rules would refuse").extension(),
    value(
        &["limit"],
        "RATES",
        limit,
        "Limit the bits per second of the guest:\nout=20M,in=100M, or one of them; suffixes k, M, G.\nTCP is slowed down; datagrams above the rate are\ndropped",
    )
    .extension(),
];

fn allow(args: &mut Args, what: &OsStr) -> Result<(), String> {
    rule(args, Verdict::Allow, what)
}

fn deny(args: &mut Args, what: &OsStr) -> Result<(), String> {
    rule(args, Verdict::Deny, what)
}

fn rule(args: &mut Args, verdict: Verdict, what: &OsStr) -> Result<(), String> {
    let text = what.to_str().ok_or_else(|| format!("not UTF-8: {}", what.display()))?;
    args.config.rules.push(spec::parse(verdict, text).map_err(|error| error.to_string())?);
    Ok(())
}

fn policy(args: &mut Args, value: &OsStr) -> Result<(), String> {
    if let Some(first) = &args.config.policy {
        return Err(format!("given before, with {}", first.display()));
    }
    args.config.policy = Some(path(value, "policy file")?);
    Ok(())
}

fn policy_names(args: &mut Args, value: &OsStr) -> Result<(), String> {
    args.config.policy_names = match value.to_str() {
        Some("client") => NameCheck::FirstBytes,
        Some("address") => NameCheck::Address,
        _ => return Err(format!("unknown check {}; use client or address", value.display())),
    };
    Ok(())
}

fn policy_ech(args: &mut Args, value: &OsStr) -> Result<(), String> {
    args.config.policy_ech = match value.to_str() {
        Some("allow") => Ech::OuterName,
        Some("deny") => Ech::Refuse,
        _ => return Err(format!("{} is unknown; use allow or deny", value.display())),
    };
    Ok(())
}

fn limit(args: &mut Args, value: &OsStr) -> Result<(), String> {
    let text = value.to_str().unwrap_or_default();
    for part in text.split(',') {
        let (direction, rate) = part.split_once('=').unwrap_or((part, ""));
        let limit = match direction {
            "out" => &mut args.config.limit.outbound,
            "in" => &mut args.config.limit.inbound,
            _ => return Err(format!("'{part}' is neither out=RATE nor in=RATE, such as out=20M,in=100M")),
        };
        if let Some(first) = limit {
            return Err(format!("{direction} was given before, with {first}"));
        }
        *limit = Some(rate.parse().map_err(|error| format!("{direction}={rate}: {error}"))?);
    }
    Ok(())
}

fn policy_audit(args: &mut Args) {
    args.config.policy_audit = true;
}
