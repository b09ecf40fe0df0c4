//! The event loop: one epoll set, one link, one stack of flows.

use anyhow::Context;
use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use sys::tap::TapDevice;

use crate::pasta::configure::Configured;
use crate::pasta::{Exit, Lifetime, Source};
use crate::pcap::Capture;

/// What a shard works with.
pub(crate) struct Setup {
    /// The link; none if nothing crosses one.
    pub(crate) tap: Option<Tap>,
    /// Where to record frames.
    pub(crate) capture: Option<Capture>,
}

/// A tap device that stands in its namespace.
pub(crate) struct Tap {
    /// The device.
    pub(crate) device: TapDevice,
    /// How it turned out.
    pub(crate) configured: Configured,
}

/// One event loop and all it owns.
pub(crate) struct Shard {
    setup: Setup,
}

const TAP: u64 = 0;
const SIGNALS: u64 = 1;
const NAMESPACE: u64 = 2;

impl Shard {
    /// Makes everything that can fail: our caller still learns of it.
    pub(crate) fn new(setup: Setup) -> anyhow::Result<Self> {
        Ok(Self { setup })
    }

    /// Serves the guest until the end.
    pub(crate) fn run(mut self, mut lifetime: Lifetime) -> anyhow::Result<Exit> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).context("can't create an epoll set")?;
        for (source, fd) in lifetime.sources() {
            let data = match source {
                Source::Signals => SIGNALS,
                Source::Namespace => NAMESPACE,
            };
            epoll::add(&epoll, fd, epoll::EventData::new_u64(data), epoll::EventFlags::IN)?;
        }
        if let Some(tap) = &self.setup.tap {
            log::debug!("guest's MAC address: {}", tap.configured.mac);
            epoll::add(&epoll, &tap.device.fd, epoll::EventData::new_u64(TAP), epoll::EventFlags::IN)?;
        }
        let mut events = Vec::with_capacity(16);
        let mut frame = vec![0; 1 << 17];
        loop {
            events.clear();
            match epoll::wait(&epoll, spare_capacity(&mut events), None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error).context("can't wait for events"),
            }
            for event in &events {
                let exit = match event.data.u64() {
                    SIGNALS => lifetime.on_event(Source::Signals),
                    NAMESPACE => lifetime.on_event(Source::Namespace),
                    _ => {
                        self.drop_frame(&mut frame);
                        None
                    }
                };
                if let Some(exit) = exit {
                    return Ok(exit);
                }
            }
        }
    }

    fn drop_frame(&mut self, frame: &mut [u8]) {
        let Some(tap) = &self.setup.tap else { return };
        if let Ok(len) = rustix::io::read(&tap.device.fd, &mut *frame)
            && let Some(capture) = &mut self.setup.capture
        {
            capture.add(&[frame.get(sys::tap::VNET_HDR_LEN..len).unwrap_or_default()]);
        }
    }
}
