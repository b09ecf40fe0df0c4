//! Trains of consecutive datagrams of the guest. They are joined, so that one call sends all of them (`UDP_SEGMENT`).
//!
//! A train exists only within one round of the event loop. It is sent at the end of the round, so no datagram waits for
//! another datagram that may never come. Joining costs a copy, which does not pay for a single datagram. So a train
//! begins only if the flow has sent in this round or the previous round. Then the flow is a stream, and more datagrams
//! will follow.

use alloc::vec::Vec;

use wire::payload::Payload;

use crate::{flow::FlowId, host::OutboundDatagram};

/// Maximum number of datagrams in a train. Every kernel accepts this number (Linux before 6.9: at most 64).
const MAX_DATAGRAMS: usize = 64;
/// Maximum length of a train, in bytes. It fits in a packet of either family.
const MAX_TRAIN_LEN: usize = 65_487;
/// Maximum length of a datagram that is joined, in bytes. For a longer datagram, the copy costs more than it saves.
pub(super) const MAX_DATAGRAM_LEN: usize = 16_384;

/// Lengths of a train's datagrams. Segmentation splits a train at fixed offsets. So all datagrams have the same length,
/// except that the last one may be shorter. No datagram can follow a shorter one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// Length of each datagram except the last, in bytes.
    pub(super) size: usize,
    /// Length of all datagrams together, in bytes.
    pub(super) len: usize,
}

impl Extent {
    /// A datagram of `len` bytes, or a train of `len` bytes with datagrams of `segment_size` bytes.
    pub(super) fn new(len: usize, segment_size: Option<u16>) -> Self {
        Self { size: segment_size.map_or(len, usize::from), len }
    }

    /// Whether another datagram or train may follow.
    pub(super) fn takes(&self, next: &Self) -> bool {
        // A single shorter datagram may follow as the last one. A train of shorter datagrams must not follow.
        let single = next.size == next.len;
        let fits = next.size == self.size || single && (1..self.size).contains(&next.len);
        let whole = self.size > 0 && self.len.is_multiple_of(self.size);
        whole && fits && self.len + next.len <= MAX_TRAIN_LEN.min(MAX_DATAGRAMS * self.size)
    }

    /// Adds a datagram or train that [may follow](Self::takes).
    pub(super) fn add(&mut self, next: &Self) {
        self.len += next.len;
    }

    /// Number of datagrams.
    pub(super) fn count(&self) -> usize {
        if self.size == 0 { 1 } else { self.len.div_ceil(self.size) }
    }

    /// The size of the datagrams for segmentation. None if the train is a single datagram.
    pub(super) fn segment_size(&self) -> Option<u16> {
        u16::try_from(self.size).ok().filter(|_| self.len > self.size)
    }
}

/// A train of one flow, to which datagrams are added.
#[derive(Debug)]
pub(super) struct Train {
    head: Option<Head>,
    /// A buffer. The train's payload is at its start.
    payload: Vec<u8>,
}

/// The fields that the datagrams of a train have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) flow: FlowId,
    pub(super) hop_limit: u8,
    pub(super) traffic_class: u8,
    pub(super) dont_fragment: bool,
    pub(super) extent: Extent,
}

impl Train {
    /// Whether a train could begin with this datagram.
    pub(super) fn suits(datagram: &OutboundDatagram<impl Payload>) -> bool {
        datagram.segment_size.is_none() && (1..=MAX_DATAGRAM_LEN).contains(&datagram.payload.len())
    }

    /// Whether there is a train of this flow.
    pub(super) fn is_of(&self, flow: FlowId) -> bool {
        self.head.is_some_and(|head| head.flow == flow)
    }

    /// An empty train. All memory is allocated now.
    pub(super) fn new() -> Self {
        Self { head: None, payload: Vec::with_capacity(MAX_TRAIN_LEN) }
    }

    /// Appends a datagram. Returns false if the datagram must not be joined with the train.
    pub(super) fn join(&mut self, flow: FlowId, datagram: &OutboundDatagram<impl Payload>) -> bool {
        let Some(head) = &mut self.head else { return false };
        let like = head.flow == flow
            && head.hop_limit == datagram.hop_limit
            && head.traffic_class == datagram.traffic_class
            && head.dont_fragment == datagram.dont_fragment;
        let next = Extent::new(datagram.payload.len(), None);
        let joins = like && Self::suits(datagram) && head.extent.takes(&next);
        if joins {
            datagram.payload.copy_to(self.payload.get_mut(head.extent.len..).unwrap_or_default());
            head.extent.add(&next);
        }
        joins
    }

    /// Begins a train with a datagram that [suits](Self::suits). There must be no train.
    pub(super) fn begin(&mut self, flow: FlowId, datagram: &OutboundDatagram<impl Payload>) {
        debug_assert!(self.head.is_none());
        let OutboundDatagram { hop_limit, traffic_class, dont_fragment, payload, .. } = *datagram;
        self.payload.resize(MAX_TRAIN_LEN, 0);
        let extent = Extent::new(payload.copy_to(&mut self.payload), None);
        self.head = Some(Head { flow, hop_limit, traffic_class, dont_fragment, extent });
    }

    /// Removes and returns the train. The caller should return the payload's memory ([`Self::recycle`]).
    pub(super) fn take(&mut self) -> Option<(Head, Vec<u8>)> {
        let head = self.head.take()?;
        Some((head, core::mem::take(&mut self.payload)))
    }

    pub(super) fn recycle(&mut self, payload: Vec<u8>) {
        self.payload = payload;
    }
}
