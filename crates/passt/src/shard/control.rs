//! The control socket's part in the event loop (behaviour §8.9).

use engine::forward::Enabled;
use engine::timer::Instant;
use rustix::event::epoll::EventFlags;

use super::{Receivers, Shard};
use crate::control::Server;
use crate::event::Source;
use control::message::Update;

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
        if let Some(update) = server.on_client(self.sockets.epoll()) {
            self.on_update(&update, now);
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
        let Some(control) = &mut self.control else { return };
        let rx = Receivers {
            acceptors: &mut self.acceptors,
            udp: self.stack.udp_mut(),
            sockets: &mut self.sockets,
        };
        let outcome = self.forwarder.update(update, control.enabled, now, rx);
        let outcome = outcome.as_deref().map_err(String::as_str);
        control.server.conclude(outcome, self.sockets.epoll());
    }
}

impl Control {
    /// Watches the listening socket for clients.
    pub(super) fn new(setup: super::ControlSetup, epoll: impl std::os::fd::AsFd) -> rustix::io::Result<Self> {
        Source::Control.watch(epoll, &setup.listener, EventFlags::IN)?;
        Ok(Self { server: Server::new(setup.listener), enabled: setup.enabled })
    }
}
