//! Judges queries and sessions again when the rules are replaced (docs/design/guard.md).

use alloc::vec::Vec;

use wire::dns::Question;

use super::{Dns, exchange::Key, judge::admits};
use crate::{
    context::{Context, World},
    events::How,
    flow::{FlowId, Protocol},
};

impl<W: World> Dns<W> {
    /// Ends the queries and sessions that the current rules deny. If a query was judged by its name, the guest gets a
    /// refusal. All other queries are judged when the guest repeats them.
    pub(crate) fn review(&mut self, cx: &mut Context<'_, W>) {
        let all: Vec<(FlowId, Key)> =
            self.exchanges.iter().map(|(id, exchange)| (id, exchange.key)).collect();
        for (id, key) in all {
            let judged = self.exchanges.get(id).and_then(|exchange| exchange.judged.clone());
            let Some(message) = judged else {
                if !cx.still_admits_unread(Protocol::Udp, &key.endpoints, key.endpoints.remote) {
                    self.end(cx.timers, id, How::Forbidden);
                }
                continue;
            };
            let question = Question::parse(&message).filter(|_| cx.guard.judges_questions());
            if let Some(Err(refused)) = question.map(|question| admits(&question, key.endpoints, cx)) {
                self.end(cx.timers, id, How::Forbidden);
                self.refuse_query(&key, &message, &refused, cx);
            }
        }
    }
}
