//! Datagrams of the guest on their way to a socket.

/// A datagram of the guest, or a train of datagrams, without its addresses.
#[derive(Clone, Copy, Debug)]
pub(super) struct GuestDatagram<P> {
    /// Time to live or hop limit; not zero.
    pub(super) hop_limit: u8,
    /// DSCP and ECN.
    pub(super) traffic_class: u8,
    /// Whether the host must not fragment the datagram.
    pub(super) dont_fragment: bool,
    pub(super) payload: P,
    /// If given, the payload is split into datagrams of this many bytes. The last datagram may be shorter. Not zero.
    pub(super) segment_size: Option<u16>,
}

impl<P> GuestDatagram<P> {
    /// The same datagram or train with another representation of its payload.
    pub(super) const fn with<Q>(&self, payload: Q) -> GuestDatagram<Q> {
        let Self { hop_limit, traffic_class, dont_fragment, segment_size, .. } = *self;
        GuestDatagram { hop_limit, traffic_class, dont_fragment, payload, segment_size }
    }

    /// One datagram of the train. Its payload is `payload`.
    pub(super) const fn single<Q>(&self, payload: Q) -> GuestDatagram<Q> {
        let Self { hop_limit, traffic_class, dont_fragment, .. } = *self;
        GuestDatagram { hop_limit, traffic_class, dont_fragment, payload, segment_size: None }
    }
}

impl<'a> GuestDatagram<&'a [u8]> {
    /// The payloads of the datagrams of a train, in order.
    pub(super) fn payloads(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let size = self.segment_size.map_or(self.payload.len(), usize::from).max(1);
        let empty = self.payload.is_empty().then_some(self.payload);
        self.payload.chunks(size).chain(empty)
    }
}
