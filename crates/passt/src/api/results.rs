//! Results as JSON, other than lists of flows and metrics.

use std::net::IpAddr;

use engine::addr::{Settings, V4, V6};
use engine::drops::Drops;
use engine::guard::Outlook;
use engine::names::Known;
use serde_json::{Value, json};
use wire::ethernet::Mac;

use super::ask::{self, About, Changed, Counts, PolicyPart, Present, Route};
use super::line::Outcome;
use crate::flow_log::seconds;
use control::message::{Announced, Pif};

/// The result of `config`.
pub(super) fn settings(about: &About, present: &Present) -> Outcome {
    let Present { settings, addresses, policy } = present;
    let Settings { our_mac, mtu, v4, v6, services, .. } = settings;
    let policy = match policy {
        None => "none",
        Some(true) => "audit",
        Some(false) => "enforced",
    };
    Ok(json!({
        "program": about.program,
        "version": env!("CARGO_PKG_VERSION"),
        "link": about.link,
        "pid": about.pid,
        "serves": about.guest,
        "mac": our_mac.to_string(),
        "mtu": mtu,
        "guest": addresses,
        "ipv4": v4.as_ref().map(ipv4),
        "ipv6": v6.as_ref().map(ipv6),
        "services": {
            "tcp": services.tcp,
            "udp": services.udp,
            "icmp": services.icmp,
            "multicast": services.multicast,
            "dhcp": services.dhcp,
            "dhcpv6": services.dhcpv6,
            "ndp": services.ndp,
            "ra": services.ra,
        },
        "search": services.search,
        "policy": policy,
    })
    .to_string())
}

fn ipv4(v4: &V4) -> Value {
    json!({
        "assigned": v4.assigned,
        "prefix_length": v4.prefix_len,
        "gateway": v4.our_address,
        "map_host_loopback": v4.map_host_loopback,
        "map_guest_address": v4.map_guest_address,
        "dns_forward": v4.dns_forward,
        "dns_servers": v4.dns_servers,
        "dns_advertised": v4.dns,
    })
}

fn ipv6(v6: &V6) -> Value {
    json!({
        "assigned": v6.assigned,
        "prefix_length": 64,
        "gateway": v6.our_link_local,
        "map_host_loopback": v6.map_host_loopback,
        "map_guest_address": v6.map_guest_address,
        "dns_forward": v6.dns_forward,
        "dns_servers": v6.dns_servers,
        "dns_advertised": v6.dns,
    })
}

/// The result of `stats`.
pub(super) fn counts(counts: &Counts) -> Outcome {
    let [received, sent, lost] = counts.frames;
    let useless = &counts.useless;
    let (tcp_open, tcp) = counts.tcp;
    let (bypass_open, bypass) = counts.bypass;
    let datagrams = counts.datagrams.map(|(name, open, drops, ended)| {
        (name, json!({ "open": open, "ended": ended, "dropped": dropped(&drops) }))
    });
    let files: serde_json::Map<String, Value> =
        counts.files.iter().map(|files| (files.class.into(), json!(files.open))).collect();
    let mut result = json!({
        "uptime": seconds(counts.uptime),
        "frames": {
            "from_guest": received,
            "to_guest": sent,
            "lost": lost,
            "malformed": useless.malformed,
            "fragments": useless.fragments,
            "unsupported": useless.unsupported,
            "checksums": useless.checksums,
            "groups": useless.groups,
        },
        "tcp": {
            "open": tcp_open,
            "opened": tcp.opened,
            "refused": tcp.refused,
            "reset": tcp.reset,
            "no_files": counts.no_files,
        },
        "tcp_bypass": {
            "open": bypass_open,
            "opened": bypass.opened,
            "refused": bypass.refused,
            "reset": bypass.reset,
        },
        "refusals": counts.refusals,
        "names": { "known": counts.names.0, "not_learned": counts.names.1 },
        "neighbours": counts.neighbours,
        "files": files,
        "queue_memory": counts.queue_memory,
        "loop": {
            "rounds": counts.lag.rounds,
            "seconds": seconds(counts.lag.all),
            "longest": seconds(counts.lag.longest),
        },
    });
    for (name, value) in datagrams {
        result[name] = value;
    }
    Ok(result.to_string())
}

/// The counts of drops, by reason.
pub(super) const fn reasons(drops: &Drops) -> [(&'static str, u64); 7] {
    [
        ("invalid", drops.invalid),
        ("refused", drops.refused),
        ("over_limit", drops.over_limit),
        ("no_room", drops.no_room),
        ("not_sent", drops.not_sent),
        ("link_full", drops.link_full),
        ("undeliverable", drops.undeliverable),
    ]
}

fn dropped(drops: &Drops) -> Value {
    reasons(drops).into_iter().map(|(reason, count)| (reason.to_owned(), json!(count))).collect()
}

/// The result of `rules`.
pub(super) fn rules(announced: &[Announced]) -> Outcome {
    Ok(json!({ "tables": tables(announced) }).to_string())
}

/// The result of a change of the forwarding rules.
pub(super) fn changed(changed: &Changed) -> Outcome {
    Ok(json!({
        "remark": changed.remark,
        "previous": tables(&changed.previous),
        "tables": tables(&changed.tables),
    })
    .to_string())
}

fn tables(tables: &[Announced]) -> Vec<Value> {
    let table = |table: &Announced| {
        json!({
            "name": table.name,
            "direction": if table.pif == Pif::HOST { "inbound" } else { "outbound" },
            "capabilities": table.capabilities.names().collect::<Vec<_>>(),
            "rules": table.rules.iter().map(rule).collect::<Vec<_>>(),
        })
    };
    tables.iter().map(table).collect()
}

fn rule(rule: &engine::forward::Rule) -> Value {
    let target = rule.target_ports();
    json!({
        "protocol": rule.protocol.to_string().to_ascii_lowercase(),
        "address": rule.listen.addr,
        "interface": rule.listen.interface.as_ref().map(ToString::to_string),
        "first": rule.ports.first(),
        "last": rule.ports.last(),
        "target_address": rule.target_addr,
        "target_first": target.first(),
        "target_last": target.last(),
        "best_effort": rule.best_effort,
        "auto": rule.scan,
    })
}

/// The result of `policy`: the rules from the index `first` on. `rules` are as many of them as fit.
pub(super) fn policy(part: &PolicyPart, first: usize, rules: &[String]) -> Outcome {
    let shown = first + rules.len();
    let next = part.all.filter(|all| shown < *all).map(|_| shown);
    let mut result = json!({
        "exists": part.all.is_some(),
        "audit": part.audit,
        "default": part.default,
        "rules": rules,
    });
    if let Some(next) = next {
        result["next"] = json!(next);
    }
    Ok(result.to_string())
}

/// The result of `why`.
pub(super) fn route(protocol: &str, remote: &str, name: Option<&str>, route: &Route) -> Outcome {
    let Route { guest, prospect, source, last } = route;
    let verdict = match prospect.outlook {
        Outlook::Allowed => "allowed",
        Outlook::Checked => "checked",
        Outlook::Refused => "refused",
        Outlook::Questions => "questions",
    };
    let peer = prospect.destination;
    let translated = peer.ip().to_canonical().to_string() != remote;
    let mut result = json!({
        "protocol": protocol,
        "guest": guest,
        "peer": remote,
        "peer_port": peer.port(),
        "verdict": verdict,
        "rule": prospect.basis.rule,
        "names": prospect.basis.names,
        "translated": translated.then(|| peer.ip().to_canonical()),
        "resolver": prospect.asks_resolver,
        "source": source,
    });
    if let Some(name) = name {
        result["name"] = json!(name);
        result["withheld"] = json!(prospect.withheld);
    }
    if let Some(last) = last {
        result["last"] = outcome(last);
    }
    if protocol == "icmp"
        && let Some(result) = result.as_object_mut()
    {
        result.remove("peer_port");
    }
    Ok(result.to_string())
}

fn outcome(last: &ask::Outcome) -> Value {
    let mut outcome = json!({ "ago": seconds(last.ago) });
    if let Some(reason) = last.reason {
        outcome["reason"] = json!(reason);
    }
    if let Some(errno) = last.errno {
        outcome["errno"] = json!(errno);
    }
    outcome
}

/// Appends an address of the list of names.
pub(super) fn add_names(text: &mut String, known: &Known) {
    let names: Vec<Value> =
        known.names.iter().map(|(name, ttl)| json!({ "name": name, "seconds": ttl })).collect();
    let entry = json!({ "address": known.address, "names": names, "flows": known.flows });
    if !text.is_empty() {
        text.push(',');
    }
    text.push_str(&entry.to_string());
}

/// The result of `neighbours`.
pub(super) fn neighbours(list: &[(IpAddr, Mac)]) -> Outcome {
    let list: Vec<Value> =
        list.iter().map(|(address, mac)| json!({ "address": address, "mac": mac.to_string() })).collect();
    Ok(json!({ "neighbours": list }).to_string())
}
