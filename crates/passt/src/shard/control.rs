//! The control socket's part in the event loop (behaviour §8.9).

use engine::forward::Enabled;
use engine::guard::Ended;
use engine::policy::Policy;
use engine::timer::Instant;
use rustix::event::epoll::EventFlags;

use super::{Receivers, Shard};
use crate::api::Note;
use crate::control::{Message, Server, parse_policy};
use crate::event::Source;
use crate::logging::{self, LIST};
use control::message::{Decoded, Update};
use control::policy::{self, Request};

/// The control socket, and the families and protocols that its clients may use.
#[derive(Debug)]
pub(super) struct Control {
    pub(super) server: Server,
    pub(super) enabled: Enabled,
}

impl Shard {
    /// Handles an event of the control socket: a client may be waiting.
    pub(super) fn on_control(&mut self, now: Instant) {
        if let Some(Control { server, enabled }) = &mut self.control {
            server.on_listener(now, self.sockets.epoll(), || self.forwarder.announce(*enabled));
        }
    }

    /// Handles an event of the client's socket: the client has sent bytes, can receive bytes, or has disconnected.
    pub(super) fn on_control_client(&mut self, now: Instant) {
        let Some(Control { server, .. }) = &mut self.control else { return };
        match server.on_client(self.sockets.epoll(), self.stack.guard()) {
            Some(Message::Update(update)) => self.on_update(&update, now),
            Some(Message::Request(message)) => self.on_request(&message, now),
            None => {}
        }
    }

    /// Returns the time at which [`Shard::on_control_deadline`] must be called next.
    pub(super) fn control_deadline(&self) -> Option<Instant> {
        self.control.as_ref()?.server.next_deadline()
    }

    /// Handles expired deadlines of the control socket.
    pub(super) fn on_control_deadline(&mut self, now: Instant) {
        if let Some(control) = &mut self.control {
            control.server.on_deadline(now, self.sockets.epoll());
        }
    }

    fn on_update(&mut self, update: &Update, now: Instant) {
        let Some(enabled) = self.control.as_ref().map(|control| control.enabled) else { return };
        let outcome = self.update_rules(update, enabled, now);
        if let Some(control) = &mut self.control {
            control.server.conclude(outcome.as_deref().map_err(String::as_str), self.sockets.epoll());
        }
    }

    /// Puts other forwarding rules in force. See [`Forwarder::update`](crate::forward::Forwarder::update).
    pub(super) fn update_rules(
        &mut self,
        update: &Update,
        enabled: Enabled,
        now: Instant,
    ) -> Result<String, String> {
        let rx = Receivers {
            acceptors: &mut self.acceptors,
            udp: self.stack.udp_mut(),
            sockets: &mut self.sockets,
        };
        let remark = self.forwarder.update(update, enabled, now, rx)?;
        self.publish(Note::Rules(remark.clone()), now);
        Ok(remark)
    }

    /// Handles a complete request about the policy.
    fn on_request(&mut self, message: &[u8], now: Instant) {
        let outcome = match policy::decode(message) {
            Ok(Decoded::Whole(Request::Replace(text))) => {
                parse_policy(text).and_then(|policy| self.replace_policy(policy, now))
            }
            Ok(Decoded::Whole(Request::Show) | Decoded::Needs(_)) => {
                let Some(Control { server, .. }) = &mut self.control else { return };
                return server.list(self.stack.guard(), self.sockets.epoll());
            }
            Err(error) => Err(error.to_string()),
        };
        if let Some(Control { server, .. }) = &mut self.control {
            server.conclude_request(outcome.as_deref().map_err(String::as_str), self.sockets.epoll());
        }
    }

    /// Replaces the rules in force. Ends the flows that the new rules deny, including flows that bypass the link. Returns
    /// a report for the client.
    ///
    /// # Errors
    /// A message for the user: the rules can't be applied, and nothing has changed.
    pub(super) fn replace_policy(&mut self, policy: Policy, now: Instant) -> Result<String, String> {
        if policy.needs_own_addresses() && !self.sockets.follows_addresses() {
            return Err("Rules by group or by name need the host's addresses, and these could not be read at the start; \
                        use rules by address, or start with --api-socket or --conf-path"
                .into());
        }
        policy.rules().iter().for_each(|rule| log::debug!(target: LIST, "Rule: {rule}"));
        let in_force = format!("rules: {}, default {}", policy.rules().len(), policy.default_action());
        logging::show_refusals();
        self.round(now).replace_policy(policy);
        self.bypass.review(self.stack.guard_mut(), now);
        let Ended { tcp, udp, icmp } = self.stack.guard().ended();
        let what = if self.stack.guard().audits() { "flows that would end" } else { "flows ended" };
        let report = format!("{in_force}; {what}: TCP {tcp}, UDP {udp}, ping {icmp}");
        log::info!("The policy was replaced: {report}");
        self.publish(Note::Policy(report.clone()), now);
        Ok(report)
    }
}

impl Control {
    /// Watches the listening socket for clients.
    pub(super) fn new(setup: super::ControlSetup, epoll: impl std::os::fd::AsFd) -> rustix::io::Result<Self> {
        Source::Control.watch(epoll, &setup.listener, EventFlags::IN)?;
        Ok(Self { server: Server::new(setup.listener), enabled: setup.enabled })
    }
}
