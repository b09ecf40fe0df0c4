//! UDP flows that only a rule by name allows: the client's first datagrams decide (docs/design/guard.md).
//!
//! Until the decision, the datagrams are held back, and neither a flow nor a socket exists. The guest can change its
//! memory at any time. So a datagram is copied before it is read, and later the copy is sent.

use core::fmt;

use wire::payload::Payload as _;

use super::{
    Udp,
    check::{Check, Held},
    datagram::GuestDatagram,
    report_unsent,
};
use crate::{
    context::{Context, World},
    first_bytes::Found,
    flow::{Endpoints, FlowId, Protocol},
    guard::{Admission, Claim, Guard},
    host::Report,
    memory::PayloadOf,
    timer::{Instant, Timers},
};

/// The reason for a refusal if the client has not sent the rest of a ClientHello.
#[derive(Clone, Copy, Debug)]
struct Late;

impl fmt::Display for Late {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no server name in time")
    }
}

impl<W: World> Udp<W> {
    /// Begins a flow that only a rule by name allows, with its first datagram or train.
    pub(super) fn begin_checked(
        &mut self,
        endpoints: Endpoints,
        claim: Claim,
        datagram: &GuestDatagram<PayloadOf<'_, W::Memory>>,
        cx: &mut Context<'_, W>,
    ) {
        match self.begin_check(endpoints, Some(claim), cx.guard, cx.now) {
            Some(id) => self.check(id, datagram, cx),
            None => self.counters.no_room += 1,
        }
    }

    /// Adds a check to a new flow, if its admission requires a check.
    pub(super) fn attach(&mut self, id: FlowId, admission: Admission, guard: &mut Guard, now: Instant) {
        let claim = match admission {
            Admission::Admit | Admission::Refuse => return,
            Admission::AdmitByName => None,
            Admission::Named(claim) => Some(claim),
        };
        let Some(endpoints) = self.flows.get(id).map(|flow| flow.endpoints) else { return };
        // There may be a check already that holds datagrams for this flow.
        let check = self.checks.find(&endpoints);
        let check = check.or_else(|| self.begin_check(endpoints, claim, guard, now));
        self.pair(id, check);
    }

    fn begin_check(
        &mut self,
        endpoints: Endpoints,
        claim: Option<Claim>,
        guard: &mut Guard,
        now: Instant,
    ) -> Option<FlowId> {
        let id = self.checks.begin(endpoints, claim)?;
        self.checks.get_mut(id)?.hold = guard.hold(endpoints.remote.ip(), now);
        Some(id)
    }

    /// Makes a flow and a check refer to each other.
    fn pair(&mut self, flow_id: FlowId, check_id: Option<FlowId>) {
        if let Some(flow) = self.flows.get_mut(flow_id) {
            flow.check = check_id;
        }
        if let Some(check) = check_id.and_then(|id| self.checks.get_mut(id)) {
            check.flow = Some(flow_id);
        }
    }

    /// Handles a datagram or train of a flow with a check: forwards it, holds it back, or refuses it.
    pub(super) fn check(
        &mut self,
        id: FlowId,
        datagram: &GuestDatagram<PayloadOf<'_, W::Memory>>,
        cx: &mut Context<'_, W>,
    ) {
        if let Some(&Check { flow: Some(flow), reader: None, .. }) = self.checks.get(id) {
            return self.send_to_peer(flow, datagram, cx);
        }
        let mut copy = core::mem::take(&mut self.checks.copy);
        if copy.len() < datagram.payload.len() {
            copy.resize(datagram.payload.len(), 0);
        }
        let len = datagram.payload.copy_to(&mut copy);
        self.check_copy(id, &datagram.with(&copy[..len]), cx);
        self.checks.copy = copy;
    }

    fn check_copy(&mut self, id: FlowId, datagram: &GuestDatagram<&[u8]>, cx: &mut Context<'_, W>) {
        if let Some(check) = self.checks.get(id)
            && let Some(flow) = check.flow
            && !datagram.payloads().any(|payload| check.must_read(payload))
        {
            return self.send_to_peer(flow, &datagram.with(datagram.payload.into()), cx);
        }
        for payload in datagram.payloads() {
            // A refusal removes the check. Then the rest of the train is dropped.
            let Some(check) = self.checks.get(id) else { return };
            match check.flow.filter(|_| !check.must_read(payload)) {
                Some(flow) => self.send_to_peer(flow, &datagram.single(payload.into()), cx),
                None => {
                    let found = self.checks.read(id, datagram.single(payload.to_vec()), cx.now, cx.timers);
                    self.on_found(id, &found, cx);
                }
            }
        }
    }

    fn on_found(&mut self, id: FlowId, found: &Found, cx: &mut Context<'_, W>) {
        let Some(reader) = self.checks.reader(id) else { return };
        let claim = reader.claim;
        let admitted = match found {
            Found::More => return self.limit_waiting(id, cx),
            Found::Name(name) => {
                let admitted = reader.admitted.contains(name) || cx.guard.admits_name(&claim, name);
                if admitted {
                    reader.note_admitted(name);
                }
                let noted = if admitted { self.checks.note_forwarded(id, cx.now) } else { Ok(()) };
                admitted && noted.map_or_else(|why| cx.guard.admits_nameless(&claim, &why), |()| true)
            }
            Found::NoName(why) => {
                let admitted = cx.guard.admits_nameless(&claim, why);
                return if admitted { self.pass_unread(id, cx) } else { self.refuse(id, cx) };
            }
        };
        if admitted { self.pass(id, cx) } else { self.refuse(id, cx) }
    }

    /// Forwards the datagrams that a check holds, after the guard has admitted them.
    fn pass(&mut self, id: FlowId, cx: &mut Context<'_, W>) {
        let held = self.checks.take_held(id, cx.timers);
        let Some(&Check { endpoints, flow, .. }) = self.checks.get(id) else { return };
        let flow = flow.or_else(|| self.flows.find(&endpoints)).or_else(|| self.open_checked(endpoints, cx));
        let Some(flow) = flow else { return self.end_check(id, cx.guard, cx.timers) };
        self.pair(flow, Some(id));
        for datagram in &held {
            self.send_to_peer(flow, &datagram.with(datagram.payload.as_slice().into()), cx);
        }
    }

    /// Forwards the datagrams that a check holds. Later datagrams of the flow are not read.
    pub(super) fn pass_unread(&mut self, id: FlowId, cx: &mut Context<'_, W>) {
        self.pass(id, cx);
        self.checks.stop_reading(id);
    }

    fn open_checked(&mut self, endpoints: Endpoints, cx: &mut Context<'_, W>) -> Option<FlowId> {
        match cx.settings.to_host(Protocol::Udp, endpoints.remote) {
            Ok(peer) => self.open_flow(endpoints, peer, cx),
            Err(_) => {
                self.counters.invalid += 1;
                None
            }
        }
    }

    /// Drops the datagrams that a check holds, and reports to the guest that they are prohibited. If the flow exists,
    /// it continues, since the guard has admitted other datagrams of this flow.
    pub(super) fn refuse(&mut self, id: FlowId, cx: &mut Context<'_, W>) {
        self.counters.refused += 1;
        let held = self.checks.take_held(id, cx.timers);
        let Some(&Check { endpoints, flow, .. }) = self.checks.get(id) else { return };
        if let Some(Held { payload, .. }) = held.first() {
            let report = Report::prohibited(endpoints.guest.is_ipv4());
            report_unsent(report, endpoints, payload.as_slice(), None, cx);
        }
        match flow {
            Some(_) => self.checks.begin_anew(id),
            None => self.end_check(id, cx.guard, cx.timers),
        }
    }

    /// Drops the datagrams of other checks, the oldest check first, until the limits are met.
    fn limit_waiting(&mut self, newest: FlowId, cx: &mut Context<'_, W>) {
        while let Some(oldest) = self.checks.surplus().filter(|&oldest| oldest != newest) {
            if self.notices.checks.is_due(cx.now) {
                log::warn!(
                    "UDP: too many flows wait for a server name: those that have waited for longest are dropped"
                );
            }
            self.counters.no_room += self.checks.take_held(oldest, cx.timers).len() as u64;
            if self.checks.get(oldest).is_some_and(|check| check.flow.is_none()) {
                self.end_check(oldest, cx.guard, cx.timers);
            }
        }
    }

    /// Handles the deadline of a check, if it has been reached.
    pub(super) fn on_check_deadline(&mut self, id: FlowId, cx: &mut Context<'_, W>) {
        if !self.checks.has_expired(id, cx.now, cx.timers) {
            return;
        }
        let Some(reader) = self.checks.reader(id) else { return };
        let claim = reader.claim;
        if cx.guard.admits_nameless(&claim, &Late) { self.pass_unread(id, cx) } else { self.refuse(id, cx) }
    }

    /// Ends a check whose flow has ended or was refused.
    pub(super) fn end_check(&mut self, id: FlowId, guard: &mut Guard, timers: &mut Timers<FlowId>) {
        if let Some(hold) = self.checks.remove(id, timers) {
            guard.release(hold);
        }
    }
}
