//! Metrics, as OpenMetrics text.

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};

use engine::flow::Protocol;
use engine::listing::{Listed, State};

use super::ask::{About, Counts, Lag, Traffic, index_of};
use super::results::reasons;

/// The protocols, in the order of [`index_of`].
const PROTOCOLS: [&str; 3] = ["tcp", "udp", "icmp"];
/// The directions of traffic.
const DIRECTIONS: [&str; 2] = ["from_guest", "to_guest"];

/// A format of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus' text format 0.0.4, in which the name of a counter ends with `_total` everywhere.
    Prometheus,
}

impl Format {
    /// The media type.
    pub(super) const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// Metrics that are being collected: the counts, and the flows so far.
#[derive(Debug)]
pub(super) struct Scrape {
    counts: Counts,
    flows: BTreeMap<(usize, bool, State), u64>,
    traffic: [Traffic; 3],
}

/// The largest traffic that was shown. A flow that ends during a scrape may be missing in it. Then the last value is
/// shown again, since a counter must not decrease.
pub(super) type Shown = [Traffic; 3];

impl Scrape {
    /// Begins with the counts.
    pub(super) fn new(counts: Counts) -> Self {
        Self { traffic: counts.ended, counts, flows: BTreeMap::new() }
    }

    /// Adds flows.
    pub(super) fn add(&mut self, flows: &[Listed]) {
        for listed in flows {
            let start = &listed.flow.start;
            let protocol = index_of(start.protocol);
            *self.flows.entry((protocol, start.bypasses, listed.state)).or_default() += 1;
            self.traffic[protocol].add(listed.totals.as_ref());
        }
    }

    /// The text.
    pub(super) fn finish(self, format: Format, about: &About, shown: &mut Shown) -> String {
        for (shown, now) in shown.iter_mut().zip(&self.traffic) {
            shown.flows = shown.flows.max(now.flows);
            for direction in 0..2 {
                shown.bytes[direction] = shown.bytes[direction].max(now.bytes[direction]);
                shown.packets[direction] = shown.packets[direction].max(now.packets[direction]);
            }
        }
        let mut text = Text { text: String::new(), format };
        text.family("passt_info", "gauge", "The program and its version.");
        let labels =
            [("program", about.program), ("version", env!("CARGO_PKG_VERSION")), ("link", about.link)];
        text.sample("passt_info", &labels, 1);
        self.of_flows(&mut text, shown);
        self.of_frames(&mut text);
        self.of_drops(&mut text);
        self.of_resources(&mut text);
        of_loop(&mut text, &self.counts);
        if format == Format::OpenMetrics {
            text.text.push_str("# EOF\n");
        }
        text.text
    }

    fn of_flows(&self, text: &mut Text, shown: &Shown) {
        text.family("passt_flows", "gauge", "Flows that exist.");
        for ((protocol, bypasses, state), count) in &self.flows {
            let bypass = if *bypasses { "true" } else { "false" };
            let labels = [("protocol", PROTOCOLS[*protocol]), ("bypass", bypass), ("state", state.name())];
            text.sample("passt_flows", &labels, count);
        }
        text.family("passt_flows_begun", "counter", "Flows that have begun.");
        for (protocol, traffic) in PROTOCOLS.iter().zip(shown) {
            text.sample("passt_flows_begun_total", &[("protocol", protocol)], traffic.flows);
        }
        text.family("passt_bytes", "counter", "Payload of flows.");
        per_direction(text, "passt_bytes_total", shown, |traffic| traffic.bytes);
        text.family("passt_packets", "counter", "Packets of flows, except TCP that bypasses the link.");
        per_direction(text, "passt_packets_total", shown, |traffic| traffic.packets);
        text.family("passt_connections", "counter", "TCP connections, by event.");
        let (tcp, bypass) = (self.counts.tcp.1, self.counts.bypass.1);
        for (path, event, count) in [
            ("link", "opened", tcp.opened),
            ("link", "refused", tcp.refused),
            ("link", "reset", tcp.reset),
            ("bypass", "opened", bypass.opened),
            ("bypass", "refused", bypass.refused),
            ("bypass", "reset", bypass.reset),
            ("accept", "refused", self.counts.no_files),
        ] {
            text.sample("passt_connections_total", &[("path", path), ("event", event)], count);
        }
        text.family("passt_refusals", "counter", "Refusals of the guard.");
        text.sample("passt_refusals_total", &[], self.counts.refusals);
    }

    fn of_frames(&self, text: &mut Text) {
        let [received, sent, lost] = self.counts.frames;
        text.family("passt_frames", "counter", "Frames that crossed the link.");
        for (direction, count) in DIRECTIONS.iter().zip([received, sent]) {
            text.sample("passt_frames_total", &[("direction", direction)], count);
        }
        text.family("passt_frames_dropped", "counter", "Frames that were dropped.");
        let useless = &self.counts.useless;
        for (reason, count) in [
            ("lost", lost),
            ("malformed", useless.malformed),
            ("fragments", useless.fragments),
            ("unsupported", useless.unsupported),
            ("checksums", useless.checksums),
            ("groups", useless.groups),
        ] {
            text.sample("passt_frames_dropped_total", &[("reason", reason)], count);
        }
    }

    fn of_drops(&self, text: &mut Text) {
        text.family("passt_datagrams_dropped", "counter", "Datagrams and echo messages that were dropped.");
        for (service, _, drops, _) in &self.counts.datagrams {
            for (reason, count) in reasons(drops) {
                let labels = [("service", *service), ("reason", reason)];
                text.sample("passt_datagrams_dropped_total", &labels, count);
            }
        }
        text.family("passt_displaced", "counter", "Flows that ended to make room for others.");
        for (service, _, _, ended) in &self.counts.datagrams {
            text.sample("passt_displaced_total", &[("service", service)], ended);
        }
    }

    fn of_resources(&self, text: &mut Text) {
        let (counts, budgets) = (&self.counts, &self.counts.budgets);
        text.family("passt_files", "gauge", "Open files of flows and listening sockets.");
        for files in &counts.files {
            text.sample("passt_files", &[("class", files.class)], files.open);
        }
        text.family("passt_files_reserved", "gauge", "Files that only this class may use.");
        for files in &counts.files {
            text.sample("passt_files_reserved", &[("class", files.class)], files.reserved);
        }
        text.family("passt_files_pool", "gauge", "Files that classes share when their reserves are used up.");
        text.sample("passt_files_pool", &[], budgets.pool);
        text.family("passt_flows_limit", "gauge", "Maximum number of flows, by what begins them.");
        for (protocol, direction, most) in [
            ("tcp", "both", budgets.memory.connections),
            ("udp", "outbound", budgets.flows.most),
            ("udp", "inbound", budgets.inbound.most),
        ] {
            text.sample("passt_flows_limit", &[("protocol", protocol), ("direction", direction)], most);
        }
        text.family("passt_queue_memory_bytes", "gauge", "Memory of the receive queues of TCP.");
        text.sample("passt_queue_memory_bytes", &[], counts.queue_memory);
        text.family("passt_queue_memory_limit_bytes", "gauge", "Limit of this memory.");
        text.sample("passt_queue_memory_limit_bytes", &[], budgets.queue_memory);
        text.family("passt_names", "gauge", "Names of addresses that the guard knows.");
        text.sample("passt_names", &[], counts.names.0);
        text.family(
            "passt_names_not_learned",
            "counter",
            "Names that were not learned, since there was no room.",
        );
        text.sample("passt_names_not_learned_total", &[], counts.names.1);
        text.family(
            "passt_flows_not_reported",
            "counter",
            "Flows that are missing in the flow log and at the API socket, since there was no room.",
        );
        text.sample("passt_flows_not_reported_total", &[], counts.unreported);
        text.family("passt_neighbours", "gauge", "Neighbours of the host that are known.");
        text.sample("passt_neighbours", &[], counts.neighbours);
    }
}

fn per_direction(text: &mut Text, name: &str, all: &Shown, of: fn(&Traffic) -> [u64; 2]) {
    for (protocol, traffic) in PROTOCOLS.iter().zip(all) {
        for (direction, count) in DIRECTIONS.iter().zip(of(traffic)) {
            text.sample(name, &[("protocol", protocol), ("direction", direction)], count);
        }
    }
}

fn of_loop(text: &mut Text, counts: &Counts) {
    let lag = &counts.lag;
    text.family("passt_round_seconds", "histogram", "Duration of the rounds of the event loop.");
    for (bound, count) in Lag::BOUNDS.iter().zip(lag.within) {
        let bound = (*bound as f64 / 1e6).to_string();
        text.sample("passt_round_seconds_bucket", &[("le", &bound)], count);
    }
    text.sample("passt_round_seconds_bucket", &[("le", "+Inf")], lag.rounds);
    text.sample("passt_round_seconds_sum", &[], lag.all.as_secs_f64());
    text.sample("passt_round_seconds_count", &[], lag.rounds);
    text.family("passt_round_longest_seconds", "gauge", "Duration of the longest round since the start.");
    text.sample("passt_round_longest_seconds", &[], lag.longest.as_secs_f64());
    text.family("passt_uptime_seconds", "gauge", "Time since the start.");
    text.sample("passt_uptime_seconds", &[], counts.uptime.as_secs_f64());
}

/// The text of metrics.
struct Text {
    text: String,
    format: Format,
}

impl Text {
    /// Begins a family of samples.
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string does not fail, here and below.
        let suffix = if kind == "counter" && self.format == Format::Prometheus { "_total" } else { "" };
        let _ = write!(self.text, "# TYPE {name}{suffix} {kind}\n# HELP {name}{suffix} {help}\n");
    }

    /// Adds a sample. The values of labels must not need escapes.
    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.text.push_str(name);
        for (index, (label, content)) in labels.iter().enumerate() {
            let _ = write!(self.text, "{}{label}=\"{content}\"", if index == 0 { '{' } else { ',' });
        }
        let _ = writeln!(self.text, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }
}

/// The name of a protocol in metrics is its name in rules.
const _: () = assert!(Protocol::ALL.len() == PROTOCOLS.len());

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use super::*;
    use crate::api::Limits;
    use crate::api::ask::Files;
    use crate::budgets::resources::Resources;
    use crate::budgets::{Budgets, Needs};

    fn text(format: Format) -> String {
        let budgets = Budgets::new(&Resources { files: 1 << 20, memory: 1 << 30 }, &Needs::default());
        let counts = Counts {
            uptime: Duration::ZERO,
            frames: [0; 3],
            useless: Default::default(),
            tcp: Default::default(),
            no_files: 0,
            bypass: Default::default(),
            datagrams: ["udp", "dns", "ping"].map(|service| (service, 0, Default::default(), 0)),
            refusals: 0,
            names: (0, 0),
            neighbours: 0,
            unreported: 0,
            files: vec![Files { class: "tcp_out", open: 0, reserved: 0 }],
            queue_memory: 0,
            budgets,
            ended: Default::default(),
            lag: Lag::default(),
        };
        let about =
            About { program: "pasta", link: "tap", guest: String::new(), pid: 1, limits: Limits::DEFAULT };
        Scrape::new(counts).finish(format, &about, &mut Shown::default())
    }

    /// The names in a text that begin like those of metrics.
    fn names(text: &str) -> BTreeSet<&str> {
        let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
        words.filter(|word| word.starts_with("passt_")).collect()
    }

    fn read(path: &str) -> String {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../");
        std::fs::read_to_string(format!("{root}{path}")).unwrap()
    }

    /// Each metric is in the documentation, and each one that a page or the dashboard names exists.
    #[test]
    fn documentation_and_dashboard_name_the_metrics() {
        let (open, prometheus) = (text(Format::OpenMetrics), text(Format::Prometheus));
        let families: BTreeSet<&str> =
            open.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
        let page = read("docs/api.md");
        assert_eq!(names(&page), families);
        let dashboard = read("docs/grafana/passt-rs.json");
        let dashboard: serde_json::Value = serde_json::from_str(&dashboard).unwrap();
        let (dashboard, samples) = (dashboard["panels"].to_string(), names(&prometheus));
        let used = names(&dashboard);
        let unknown: Vec<_> = used.difference(&samples).collect();
        assert!(unknown.is_empty() && used.len() > 15, "{unknown:?}");
    }

    /// In the text format of Prometheus, a counter has one name everywhere, and there is no end.
    #[test]
    fn names_of_counters_in_both_formats() {
        let (open, prometheus) = (text(Format::OpenMetrics), text(Format::Prometheus));
        assert!(open.contains("# TYPE passt_bytes counter\n") && open.ends_with("\n# EOF\n"));
        assert!(prometheus.contains("# HELP passt_bytes_total Payload") && !prometheus.contains("# EOF"));
        let samples = |text: &str| -> Vec<String> {
            text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
        };
        assert_eq!(samples(&open), samples(&prometheus));
    }
}
