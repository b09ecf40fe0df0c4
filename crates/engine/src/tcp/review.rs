//! Judges the guest's connections again when the rules are replaced (docs/design/guard.md).

use alloc::vec::Vec;

use super::{
    Tcp,
    conn::{Connection, End, Phase},
    queue::ChunkPool,
    socket::Socket,
};
use crate::{
    context::{Context, World},
    flow::{FlowId, Protocol},
    guard::{Admission, Claim},
};

impl<W: World> Tcp<W> {
    /// Ends the connections of the guest that the current rules deny.
    pub(crate) fn review(&mut self, cx: &mut Context<'_, W>) {
        let all: Vec<FlowId> = self.flows.iter().map(|(id, _)| id).collect();
        for id in all {
            let Some(connection) = self.flows.get_mut(id) else { continue };
            let waited = connection.phase == Phase::Checking;
            match connection.review(&mut self.pool, cx) {
                Ok(()) if waited => self.touch(id),
                Ok(()) => {}
                Err(end) => self.end(id, end, cx),
            }
        }
    }
}

impl<W: World> Connection<W> {
    fn review(&mut self, pool: &mut ChunkPool, cx: &mut Context<'_, W>) -> Result<(), End> {
        if !self.is_guests || self.phase == Phase::Refused || self.is_finished() {
            return Ok(());
        }
        if let Socket::Questions(_) = &self.socket {
            // The guard judges each question of such a connection.
            return if cx.guard.judges_questions() { Ok(()) } else { Err(End::Forbidden) };
        }
        let ends = self.ends.endpoints();
        let destination = cx.settings.to_host(Protocol::Tcp, ends.remote).unwrap_or(ends.remote);
        let admission = cx.still_admits(Protocol::Tcp, &ends, destination, self.rare.said());
        if matches!(admission, Admission::AdmitByName | Admission::Named(_))
            && let Some(parts) = self.rare.parts()
            && parts.hold.is_none()
        {
            parts.hold = cx.guard.hold(ends.remote.ip(), cx.now);
        }
        match admission {
            Admission::Admit | Admission::AdmitByName => self.need_no_name(pool),
            Admission::Named(claim) => self.need_name(claim, cx),
            Admission::Refuse => Err(End::Forbidden),
        }
    }

    /// Ends the check of the first bytes, if there is one: the rules allow the connection, whatever its client sends.
    fn need_no_name(&mut self, pool: &mut ChunkPool) -> Result<(), End> {
        if self.phase == Phase::Checking {
            return self.pass(pool);
        }
        if self.rare.end_check() {
            self.receive.stop_holding();
        }
        Ok(())
    }

    /// Continues or begins the check of the first bytes: only a rule by name allows the connection.
    fn need_name(&mut self, claim: Claim, cx: &mut Context<'_, W>) -> Result<(), End> {
        match (self.rare.check_mut(), self.phase) {
            (Some(check), _) => check.claim = claim.begun_with(&check.claim),
            (None, Phase::Connecting | Phase::SynReceived) => self.await_name(claim)?,
            // The first bytes were forwarded without a check.
            (None, _) if !cx.guard.still_admits_nameless(&claim) => return Err(End::Forbidden),
            (None, _) => {}
        }
        Ok(())
    }
}
