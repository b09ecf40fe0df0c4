//! A reader of the engine's reports about flows.

use std::{collections::BTreeMap, sync::Arc, vec::Vec};

use engine::{
    events::{End, Event, Events, Failure, Flow, How, Refusal},
    flow::Protocol,
};

/// Reads events and checks that flows begin once and end once.
#[derive(Debug)]
pub struct Journal {
    /// The handle for the engine.
    pub events: Events,
    open: BTreeMap<u64, Arc<Flow>>,
    begun: u64,
    /// The ends so far, in order.
    pub ends: Vec<End>,
    /// The refusals so far, in order.
    pub refusals: Vec<Refusal>,
    /// The failures of flows, in order.
    pub failures: Vec<Failure>,
}

impl Default for Journal {
    fn default() -> Self {
        let events = Events::new();
        let (ends, failures, refusals) = (Vec::new(), Vec::new(), Vec::new());
        Self { events, open: BTreeMap::new(), begun: 0, ends, failures, refusals }
    }
}

impl Journal {
    /// Reads the events since the last call.
    pub fn read(&mut self) {
        for event in self.events.take() {
            match event {
                Event::Begin(flow) => {
                    self.begun += 1;
                    assert_eq!(flow.number, self.begun, "{flow:?}");
                    self.open.insert(flow.number, flow);
                }
                Event::End(end) => {
                    let begun = self.open.remove(&end.flow.number);
                    assert_eq!(begun.as_ref(), Some(&end.flow), "an end without a begin");
                    self.ends.push(end);
                }
                Event::Failure(failure) => {
                    assert_eq!(self.open.get(&failure.flow.number), Some(&failure.flow), "not an open flow");
                    self.failures.push(failure);
                }
                Event::Refusal(refusal) => self.refusals.push(refusal),
            }
        }
    }

    /// The flows that have begun and not ended.
    pub fn open(&self) -> impl Iterator<Item = &Flow> {
        self.open.values().map(|flow| &**flow)
    }

    /// How many flows of a protocol have begun and not ended.
    pub fn count(&self, protocol: Protocol) -> usize {
        self.open().filter(|flow| flow.start.protocol == protocol).count()
    }

    /// How the flows ended so far, in order.
    pub fn how(&self) -> Vec<How> {
        self.ends.iter().map(|end| end.how).collect()
    }
}
