//! Lists connections, and ends one on request (docs/design/api.md).

use super::{
    Tcp,
    conn::{Connection, End, Phase},
};
use crate::{
    context::{Context, World},
    flow::FlowId,
    host::TcpSocket as _,
    listing::{Listed, Lister, Page, State},
};

impl<W: World> Tcp<W> {
    /// Lists the connections of a page. Returns the next slot, if there are more slots.
    pub(crate) fn list(&mut self, page: Page, lister: &mut Lister<'_>) -> Option<u32> {
        let (flows, next) = self.flows.page_mut(page.from, page.slots);
        for (id, connection) in flows {
            let account = connection.rare.take_account();
            let asks_host = lister.asks_host();
            lister.add((id, &account), connection.state(), Some(connection.active), |listed| {
                if asks_host {
                    connection.complete(listed);
                }
            });
            connection.rare.set_account(account);
        }
        next
    }

    /// Adds to a listed connection what the host knows about its socket, if it still exists.
    pub(crate) fn complete(&mut self, listed: &mut Listed) {
        let number = listed.flow.number;
        let connection = self.flows.get_mut(listed.id).filter(|connection| connection.rare.is_of(number));
        connection.into_iter().for_each(|connection| connection.complete(listed));
    }

    /// Resets a connection on both sides, if it still has this number. Returns whether it has.
    pub(crate) fn end_requested(&mut self, id: FlowId, number: u64, cx: &mut Context<'_, W>) -> bool {
        let exists = self.flows.get(id).is_some_and(|connection| connection.rare.is_of(number));
        if exists {
            self.end(id, End::Requested, cx);
        }
        exists
    }
}

impl<W: World> Connection<W> {
    fn complete(&mut self, listed: &mut Listed) {
        listed.local = self.socket.local();
        let info = self.info();
        listed.totals = info.map(|info| info.totals);
        listed.path = info.and_then(|info| info.path);
    }

    fn state(&self) -> State {
        match self.phase {
            Phase::Connecting => State::Connecting,
            Phase::SynReceived | Phase::SynSent => State::Handshake,
            Phase::Checking => State::Checking,
            Phase::Established if self.receive.finished() || self.send.finished() => State::Closing,
            Phase::Established => State::Established,
            Phase::Refused => State::Refused,
        }
    }
}
