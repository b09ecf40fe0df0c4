//! The sources of epoll events, and the 64-bit word with which the kernel reports a source.

use std::os::fd::AsFd;

use engine::flow::{FlowId, Kind};
use engine::splice::Side;
use rustix::event::epoll::{self, EventData, EventFlags};

/// A source of epoll events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// Signals.
    Signals,
    /// The watch for the end of the namespace.
    Namespace,
    /// Changes of resolv.conf.
    Resolvers,
    /// Changes of the neighbours on the host's links, or changes of the host's addresses.
    Neighbours,
    /// The control socket, to which clients connect.
    Control,
    /// The client of the control socket.
    ControlClient,
    /// The API socket of slirp4netns, to which clients connect.
    HostFwd,
    /// A client of the API socket of slirp4netns. Only its server interprets the number.
    HostFwdClient(u32),
    /// The API thread.
    Api,
    /// One of the link's descriptors. Only the link interprets the number.
    Link(u32),
    /// A listening TCP socket.
    Listener(FlowId),
    /// A socket of a connection that bypasses the link.
    Bypass(FlowId, Side),
    /// A socket of a flow through the link, or of a UDP listener.
    Flow(FlowId),
}

// The word of a flow is its `FlowId`. The highest byte of a `FlowId` is the flow's kind, and the highest bit of this
// byte is not used. For a bypassed connection, this bit marks the connected socket. In all other words, the highest
// byte is 0, and the other bytes contain a class and a number.
const CONNECTED: u64 = 1 << 63;
const CLASS_SHIFT: u32 = 32;
const FIXED: u64 = 1;
const LINK: u64 = 2;
const HOSTFWD_CLIENT: u64 = 3;
const FIXED_SOURCES: [Source; 8] = [
    Source::Signals,
    Source::Namespace,
    Source::Resolvers,
    Source::Neighbours,
    Source::Control,
    Source::ControlClient,
    Source::HostFwd,
    Source::Api,
];

impl Source {
    /// Makes `epoll` report `events` of `fd` for this source.
    pub(crate) fn watch(self, epoll: impl AsFd, fd: impl AsFd, events: EventFlags) -> rustix::io::Result<()> {
        epoll::add(epoll, fd, EventData::new_u64(self.word()), events)
    }

    /// Changes the events that `epoll` reports of `fd`. `epoll` must watch `fd` already.
    pub(crate) fn rewatch(
        self,
        epoll: impl AsFd,
        fd: impl AsFd,
        events: EventFlags,
    ) -> rustix::io::Result<()> {
        rewatch(epoll, fd, self.word(), events)
    }

    /// The word that the kernel reports for this source.
    pub(crate) fn word(self) -> u64 {
        let fixed = |number: u64| FIXED << CLASS_SHIFT | number;
        match self {
            Self::Signals => fixed(0),
            Self::Namespace => fixed(1),
            Self::Resolvers => fixed(2),
            Self::Neighbours => fixed(3),
            Self::Control => fixed(4),
            Self::ControlClient => fixed(5),
            Self::HostFwd => fixed(6),
            Self::Api => fixed(7),
            Self::HostFwdClient(number) => HOSTFWD_CLIENT << CLASS_SHIFT | number as u64,
            Self::Link(number) => LINK << CLASS_SHIFT | number as u64,
            Self::Listener(id) | Self::Bypass(id, Side::Accepted) | Self::Flow(id) => id.to_bits(),
            Self::Bypass(id, Side::Connected) => CONNECTED | id.to_bits(),
        }
    }

    /// Returns the source of a word. `None`: no source has this word.
    pub(crate) fn of(word: u64) -> Option<Self> {
        let number = word as u32;
        match word >> CLASS_SHIFT {
            FIXED => FIXED_SOURCES.get(number as usize).copied(),
            LINK => Some(Self::Link(number)),
            HOSTFWD_CLIENT => Some(Self::HostFwdClient(number)),
            _ => {
                let side = if word & CONNECTED == 0 { Side::Accepted } else { Side::Connected };
                let id = FlowId::from_bits(word & !CONNECTED)?;
                match (id.kind(), side) {
                    (Kind::Splice, side) => Some(Self::Bypass(id, side)),
                    (_, Side::Connected) => None,
                    (Kind::Listener, _) => Some(Self::Listener(id)),
                    _ => Some(Self::Flow(id)),
                }
            }
        }
    }
}

/// Changes the events that `epoll` reports of `fd` with `word`. If the kernel refuses that, `fd` is removed and added
/// again: a descriptor that is not watched would never be served again.
pub(crate) fn rewatch(
    epoll: impl AsFd,
    fd: impl AsFd,
    word: u64,
    events: EventFlags,
) -> rustix::io::Result<()> {
    let (epoll, fd) = (epoll.as_fd(), fd.as_fd());
    epoll::modify(epoll, fd, EventData::new_u64(word), events).or_else(|_refused| {
        // This fails only if an earlier attempt has removed it.
        let _absent = epoll::delete(epoll, fd);
        epoll::add(epoll, fd, EventData::new_u64(word), events)
    })
}

#[cfg(test)]
mod tests {
    use engine::flow::Slots;

    use super::*;

    /// A descriptor that an earlier attempt has removed is watched again.
    #[test]
    fn a_lost_descriptor_is_watched_again() {
        use rustix::event::{EventfdFlags, eventfd};
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let ready = eventfd(1, EventfdFlags::CLOEXEC).unwrap();
        rewatch(&epoll, &ready, 7, EventFlags::IN).unwrap();
        let mut events = Vec::with_capacity(1);
        epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), None).unwrap();
        assert_eq!(events[0].data.u64(), 7);
    }

    #[test]
    fn each_source_has_a_word_of_its_own() {
        let mut sources = FIXED_SOURCES.to_vec();
        sources.extend([0, 1, u32::MAX].map(Source::Link));
        sources.extend([0, 1, u32::MAX].map(Source::HostFwdClient));
        // IDs with different slots and generations.
        let ids = |kind| {
            let mut slots = Slots::new(kind, 10);
            let first = slots.insert(()).unwrap();
            slots.remove(first);
            [first, slots.insert(()).unwrap(), slots.insert(()).unwrap()]
        };
        sources.extend(ids(Kind::Listener).map(Source::Listener));
        for kind in [Kind::Tcp, Kind::Udp, Kind::Ping, Kind::Dns] {
            sources.extend(ids(kind).map(Source::Flow));
        }
        for id in ids(Kind::Splice) {
            sources.extend([Source::Bypass(id, Side::Accepted), Source::Bypass(id, Side::Connected)]);
        }
        for (at, source) in sources.iter().enumerate() {
            assert_eq!(Source::of(source.word()), Some(*source));
            assert!(!sources[..at].iter().any(|other| other.word() == source.word()), "{source:?}");
        }
        for word in [0, 1, FIXED << 32 | 8, 4 << 32, CONNECTED | 1 << 56, 99 << 56, u64::MAX] {
            assert_eq!(Source::of(word), None, "{word:#x}");
        }
    }
}
