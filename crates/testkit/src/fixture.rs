//! The objects that a test of one part of the engine needs.

use std::vec::Vec;

use engine::{
    addr::{Guest, Settings},
    context::Context,
    flow::FlowId,
    guard::Guard,
    rate_limit::RateLimit,
    timer::{Instant, Timers},
};
use wire::offload::Offload;

use super::{
    host::VirtualHost,
    link::{Capture, Kept, Virtual},
    settings::{START, guest, settings},
};

/// The parts of a [`Context`].
#[derive(Debug)]
#[allow(missing_docs, reason = "see Context")]
pub struct Fixture {
    pub now: Instant,
    pub settings: Settings,
    pub guest: Guest,
    pub guard: Guard,
    pub rate_limit: RateLimit,
    pub host: VirtualHost,
    pub link: Capture,
    pub timers: Timers<FlowId>,
}

impl Default for Fixture {
    fn default() -> Self {
        let settings = settings();
        Self {
            now: START,
            guest: guest(&settings),
            guard: Guard::default(),
            rate_limit: RateLimit::default(),
            settings,
            host: VirtualHost::default(),
            link: Capture::default(),
            timers: Timers::default(),
        }
    }
}

impl Fixture {
    /// The context for a step of the engine.
    pub const fn context(&mut self) -> Context<'_, Virtual<Kept>> {
        Context {
            now: self.now,
            settings: &self.settings,
            guest: &self.guest,
            guard: &mut self.guard,
            rate_limit: &mut self.rate_limit,
            host: &mut self.host,
            link: &mut self.link,
            timers: &mut self.timers,
        }
    }

    /// The frames sent to the guest since the last call.
    pub fn frames(&mut self) -> Vec<(Vec<u8>, Offload)> {
        self.link.take()
    }

    /// The one frame sent to the guest since the last call.
    #[track_caller]
    pub fn frame(&mut self) -> (Vec<u8>, Offload) {
        let mut frames = self.frames();
        assert_eq!(frames.len(), 1, "{frames:?}");
        frames.remove(0)
    }
}
