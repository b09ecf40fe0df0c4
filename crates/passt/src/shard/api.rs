//! The API socket's part in the event loop: answers one ask of the API thread in each round (docs/design/api.md).

use std::net::{IpAddr, SocketAddr};

use engine::events::{Event, Events};
use engine::flow::{Endpoints, FlowId, Kind, Protocol};
use engine::forward::{Enabled, PortRange};
use engine::listing::{Lister, Page};
use engine::policy::{Name, Reason};
use engine::timer::Instant;
use rustix::event::epoll::EventFlags;

use super::Shard;
use super::outcomes::Outcomes;
use crate::api::ask::{
    self, Changed, Counts, Files, Lag, Listing, NAMES, Place, PolicyPart, Present, RULES, Route, SLOTS,
    Traffic,
};
use crate::api::{About, Answer, Ask, Content, Note, ShardEnd};
use crate::config::{Config, GuestLink, Mode, Target};
use crate::event::Source;
use crate::flow_log::since_epoch;
use control::edit::{Change, Editor};
use control::message::Update;

/// The parameters of the API socket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ApiSetup {
    /// The families and protocols that rules may use.
    pub(crate) enabled: Enabled,
    /// The ephemeral ports, which `all` and `auto` exclude.
    pub(crate) ephemeral: PortRange,
    /// Number of files that the API thread may use.
    pub(crate) files: usize,
}

/// The state of the API socket in the event loop.
#[derive(Debug)]
pub(super) struct Api {
    pub(super) setup: ApiSetup,
    /// The channel to the API thread, when the thread has started.
    end: Option<ShardEnd>,
    lag: Lag,
    /// The traffic of flows that have ended, by [`ask::index_of`].
    ended: [Traffic; 3],
    /// What happened last to flows of the guest.
    outcomes: Outcomes,
}

impl Api {
    pub(super) fn new(setup: ApiSetup) -> Self {
        Self {
            setup,
            end: None,
            lag: Lag::default(),
            ended: Default::default(),
            outcomes: Outcomes::default(),
        }
    }

    /// Counts the flows that have ended, and passes events on to the API thread.
    pub(super) fn on_events(&mut self, events: Vec<Event>, now: Instant) {
        for event in &events {
            if let Event::End(end) = event {
                self.ended[ask::index_of(end.flow.start.protocol)].add(end.totals.as_ref());
            }
            self.outcomes.note(event, now);
        }
        if let Some(end) = self.end.as_ref().filter(|end| end.is_subscribed()) {
            end.publish(Content::Flows(events), since_epoch(), now);
        }
    }
}

/// What the program serves, in a few words.
fn served(config: &Config) -> String {
    match (config.mode, &config.pasta.target, &config.passt.link) {
        (Mode::Passt, _, GuestLink::Path(path)) => path.display().to_string(),
        (Mode::Passt, _, GuestLink::Fd(fd)) => format!("descriptor {fd}"),
        (Mode::Passt, _, GuestLink::Probe) => "default socket".into(),
        (_, Target::Netns(path), _) => path.display().to_string(),
        (_, Target::Pid(pid), _) => format!("process {pid}"),
        (_, Target::Spawn { command }, _) => {
            command.first().map_or_else(|| "shell".into(), |word| word.to_string_lossy().into())
        }
    }
}

impl Shard {
    /// Facts about this process.
    pub(crate) fn about(&self, config: &Config) -> About {
        let limits = self.budgets.memory.api;
        About { program: config.mode.name(), link: self.link.name(), guest: served(config), pid: 0, limits }
    }

    /// Number of files that the API thread may use.
    pub(crate) fn api_files(&self) -> usize {
        self.api.as_ref().map_or(0, |api| api.setup.files)
    }

    /// Starts to answer the API thread.
    pub(super) fn start_api(&mut self, end: ShardEnd) -> rustix::io::Result<()> {
        Source::Api.watch(self.sockets.epoll(), &end, EventFlags::IN)?;
        if let Some(api) = &mut self.api {
            api.end = Some(end);
        }
        Ok(())
    }

    /// The handle of the reports of flows, if something reads them.
    /// `bytes` is the memory for them.
    pub(super) fn wants_reports(flow_log: bool, api: bool, bytes: usize) -> Events {
        let explains = log::log_enabled!(log::Level::Debug);
        if flow_log || api || explains { Events::within(bytes) } else { Events::default() }
    }

    /// Tells the subscribers of the API socket about a change of rules.
    pub(super) fn publish(&self, note: Note, now: Instant) {
        if let Some(end) = self.api.as_ref().and_then(|api| api.end.as_ref()) {
            end.publish(Content::Note(note), since_epoch(), now);
        }
    }

    /// Counts the time that a round has taken. The round began at `now`.
    pub(super) fn note_lag(&mut self, now: Instant) {
        if self.api.is_some() {
            let took = self.now().since(now);
            self.api.iter_mut().for_each(|api| api.lag.note(took));
        }
    }

    /// Handles an event of the channel: an ask has arrived.
    pub(super) fn on_api(&mut self, now: Instant) {
        let Some(ask) = self.api.as_ref().and_then(|api| api.end.as_ref()?.next()) else { return };
        let answer = self.answer(ask, now);
        if let Some(end) = self.api.as_ref().and_then(|api| api.end.as_ref()) {
            end.answer(answer);
        }
    }

    fn answer(&mut self, ask: Ask, now: Instant) -> Answer {
        match ask {
            Ask::Settings => Answer::Settings(Box::new(self.present())),
            Ask::Counts => Answer::Counts(Box::new(self.all_counts(now))),
            Ask::Flows(place, filter, detail) => {
                let (mut flows, page) = (Vec::new(), Page { from: place.slot, slots: SLOTS });
                let mut wants = |listed: &_| filter.accepts(listed);
                let mut lister = Lister::new(now, detail, &mut wants, &mut flows);
                let next = match place.table {
                    Listing::Stack(table) => self.stack.list(table, page, &mut lister),
                    Listing::Bypass => self.bypass.list(page, &mut lister),
                };
                let next = next.map(|slot| Place { slot, ..place }).or_else(|| place.next_table());
                Answer::Flows { now, flows, next }
            }
            Ask::Complete(mut flows) => {
                flows.iter_mut().for_each(|listed| self.stack.complete(listed));
                Answer::Complete { now, flows }
            }
            Ask::End(id, number) => Answer::Ended(self.end_flow(id, number, now)),
            Ask::Rules => {
                let enabled = self.api.as_ref().map_or(Enabled::ALL, |api| api.setup.enabled);
                Answer::Rules(self.forwarder.announce(enabled))
            }
            Ask::Change { replaces, changes } => {
                Answer::Changed(self.change_rules(replaces, &changes, now).map(Box::new))
            }
            Ask::Policy(first) => Answer::Policy(self.policy_from(first)),
            Ask::Replace(policy) => Answer::Replaced(self.replace_policy(*policy, now)),
            Ask::Why { protocol, guest, remote, name } => {
                Answer::Why(self.why((protocol, remote), guest, name.as_ref(), now).map(Box::new))
            }
            Ask::Names(first) => {
                let page = self.stack.guard().names().map(|names| names.page(first, NAMES, now));
                let (names, next) = page.unwrap_or_default();
                Answer::Names(names, next)
            }
            Ask::Capture(live) => Answer::Capture(self.link.capture(live.map(|live| *live))),
            Ask::Neighbours => Answer::Neighbours(self.stack.settings().neighbours.iter().collect()),
        }
    }

    fn present(&self) -> Present {
        let guard = self.stack.guard();
        let addresses = self.stack.guest().addresses().iter().map(|entry| entry.address);
        Present {
            settings: self.stack.settings().clone(),
            addresses: addresses.collect(),
            policy: guard.policy().map(|_| guard.audits()),
        }
    }

    fn end_flow(&mut self, id: FlowId, number: u64, now: Instant) -> bool {
        let ended = match id.kind() {
            Kind::Splice => self.bypass.end_requested(id, number, now),
            _ => self.round(now).end_flow(id, number),
        };
        if ended {
            log::info!("Flow {number} was ended by a client of the API socket");
        }
        ended
    }

    fn change_rules(&mut self, replaces: bool, changes: &[Change], now: Instant) -> Result<Changed, String> {
        let Some(ApiSetup { enabled, ephemeral, .. }) = self.api.as_ref().map(|api| api.setup) else {
            return Err("there is no API socket".into());
        };
        let previous = self.forwarder.announce(enabled);
        let mut tables = previous.clone();
        if replaces {
            tables.iter_mut().for_each(|table| table.rules.clear());
        }
        let mut editor = Editor::new(tables, ephemeral);
        changes.iter().try_for_each(|change| editor.apply(change))?;
        let warnings = editor.warnings().join("\n");
        let tables = editor.finish();
        let update = tables.iter().map(|table| (table.pif, table.rules.clone())).collect();
        let remark = self.update_rules(&Update(update), enabled, now)?;
        let remarks: Vec<_> = [warnings, remark].into_iter().filter(|text| !text.is_empty()).collect();
        Ok(Changed { remark: remarks.join("\n"), previous, tables })
    }

    fn policy_from(&self, first: usize) -> PolicyPart {
        let guard = self.stack.guard();
        let Some(policy) = guard.policy() else {
            return PolicyPart { rules: Vec::new(), all: None, default: "allow".into(), audit: false };
        };
        let all = policy.rules().len();
        let part = first.min(all)..first.saturating_add(RULES).min(all);
        let rules = part.map(|index| policy.text(Reason::Rule(index)).to_owned()).collect();
        let default = policy.default_action().to_string();
        PolicyPart { rules, all: Some(all), default, audit: guard.audits() }
    }

    fn why(
        &mut self,
        (protocol, remote): (Protocol, SocketAddr),
        guest: Option<IpAddr>,
        name: Option<&Name>,
        now: Instant,
    ) -> Result<Route, String> {
        let main = self.stack.guest();
        let main = if remote.is_ipv4() { main.v4().map(IpAddr::V4) } else { main.v6().map(IpAddr::V6) };
        let guest = guest.or(main).ok_or("the guest has no address of this family")?;
        if guest.is_ipv4() != remote.is_ipv4() {
            return Err("the guest's address and the destination are of different families".into());
        }
        let ends = Endpoints { guest: SocketAddr::new(guest, 0), remote };
        let prospect = self.round(now).explain(protocol, &ends, name)?;
        let source = prospect.source.or_else(|| self.sockets.usual_source(prospect.destination));
        let last = self.api.as_ref().and_then(|api| api.outcomes.last(protocol, remote, now));
        Ok(Route { guest, prospect, source, last })
    }

    fn all_counts(&self, now: Instant) -> Counts {
        let (link, stack) = (self.link.counters(), &self.stack);
        let (udp, dns, ping) = (stack.udp(), stack.dns(), stack.ping());
        let ledger = self.sockets.ledger();
        let classes = ledger.classes().map(|(class, open, reserved)| Files { class, open, reserved });
        let (lag, ended) = self.api.as_ref().map(|api| (api.lag, api.ended)).unwrap_or_default();
        Counts {
            uptime: now.since(Instant::from_micros(0)),
            frames: [link.received, link.sent, link.dropped],
            useless: *stack.counters(),
            tcp: (stack.tcp().len(), stack.tcp().counters),
            no_files: self.acceptors.refused,
            bypass: (self.bypass.flows().len(), self.bypass.flows().counters),
            datagrams: [
                ("udp", udp.flows(), *udp.counters(), udp.ended()),
                ("dns", dns.len(), *dns.counters(), dns.ended()),
                ("ping", ping.flows(), *ping.counters(), ping.ended()),
            ],
            refusals: stack.guard().refused(),
            names: stack.guard().names().map_or((0, 0), |names| (names.len(), names.dropped())),
            unreported: self.reports.unreported().flows,
            neighbours: stack.settings().neighbours.iter().count(),
            files: classes.chain(self.shares()).collect(),
            queue_memory: stack.tcp().queue_memory(),
            budgets: self.budgets,
            ended,
            lag,
        }
    }

    /// The files of flows that the engine counts.
    fn shares(&self) -> [Files; 4] {
        let stack = &self.stack;
        let [ports, clients] = stack.udp().files();
        let of = |class, open, share: engine::share::Share| Files { class, open, reserved: share.most };
        let budgets = &self.budgets;
        [
            of("udp_ports", ports, budgets.udp_ports),
            of("udp_clients", clients, budgets.udp_clients),
            of("dns", stack.dns().files(), budgets.questions),
            of("ping", stack.ping().flows(), budgets.pings),
        ]
    }
}
