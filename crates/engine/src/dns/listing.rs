//! Lists queries and sessions, and ends one on request (docs/design/api.md).

use super::Dns;
use crate::{
    context::World,
    events::How,
    flow::FlowId,
    listing::{Lister, Page},
    timer::Timers,
};

impl<W: World> Dns<W> {
    /// Number of open sockets.
    #[must_use]
    pub const fn files(&self) -> usize {
        self.files
    }

    /// Lists the queries and sessions of a page. Returns the next slot, if there are more slots.
    pub(crate) fn list(&mut self, page: Page, lister: &mut Lister<'_>) -> Option<u32> {
        let (exchanges, next) = self.exchanges.page_mut(page.from, page.slots);
        for (id, exchange) in exchanges {
            let account = &exchange.account;
            lister.add((id, account), exchange.traffic.state(), None, |listed| {
                listed.totals = Some(account.counted());
            });
        }
        next
    }

    /// Ends a query or session, if it still has this number. Returns whether it has.
    pub(crate) fn end_requested(&mut self, id: FlowId, number: u64, timers: &mut Timers<FlowId>) -> bool {
        let exists = self.exchanges.get(id).is_some_and(|exchange| exchange.account.is_of(number));
        if exists {
            self.end(timers, id, How::Requested);
        }
        exists
    }
}
