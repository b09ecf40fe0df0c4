//! Datagrams that the guest sends one right after the other, joined so that one call sends them all (`UDP_SEGMENT`).
//!
//! A train exists within one round of the event loop: it is sent at its end, so no datagram waits for one that may
//! never come. Joining costs a copy, which one datagram alone is not worth. So a train begins only if the flow has sent
//! in this round or the one before: then it is a stream, and more will follow.

use alloc::vec::Vec;

use wire::payload::Payload;

use crate::{flow::FlowId, host::OutboundDatagram};

/// Maximum number of datagrams in a train: as many as any kernel cuts (Linux before 6.9: 64).
const MAX_DATAGRAMS: usize = 64;
/// Longest train in bytes: what fits a packet of either family.
const MAX_TRAIN_LEN: usize = 65_487;
/// Longest datagram that is joined, in bytes: longer ones are not worth the copy.
pub(super) const MAX_DATAGRAM_LEN: usize = 16_384;

/// Lengths of a train's datagrams. Segmentation cuts at fixed offsets, so all have the same length, except the last,
/// which may be shorter: nothing can follow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// Length of each datagram except the last, in bytes.
    pub(super) size: usize,
    /// Length of all, in bytes.
    pub(super) len: usize,
}

impl Extent {
    /// A datagram of `len` bytes, or a train of as many with datagrams of `segment_size`.
    pub(super) fn new(len: usize, segment_size: Option<u16>) -> Self {
        Self { size: segment_size.map_or(len, usize::from), len }
    }

    /// Whether another datagram or train may follow.
    pub(super) fn takes(&self, next: &Self) -> bool {
        // A single shorter datagram may follow, as the last one. A train of shorter datagrams may not.
        let single = next.size == next.len;
        let fits = next.size == self.size || single && (1..self.size).contains(&next.len);
        let whole = self.size > 0 && self.len.is_multiple_of(self.size);
        whole && fits && self.len + next.len <= MAX_TRAIN_LEN.min(MAX_DATAGRAMS * self.size)
    }

    /// Adds one that [may follow](Self::takes).
    pub(super) fn add(&mut self, next: &Self) {
        self.len += next.len;
    }

    /// The size to cut the train at; none if it is a single datagram.
    pub(super) fn segment_size(&self) -> Option<u16> {
        u16::try_from(self.size).ok().filter(|_| self.len > self.size)
    }
}

/// A train that is being put together, of one flow.
#[derive(Debug, Default)]
pub(super) struct Train {
    head: Option<Head>,
    /// A train's payload at its start.
    payload: Vec<u8>,
}

/// What the datagrams of a train have in common.
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

    /// Appends a datagram; false if it does not fit in.
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

    /// Begins a train with a datagram that [suits](Self::suits); there must be none.
    pub(super) fn begin(&mut self, flow: FlowId, datagram: &OutboundDatagram<impl Payload>) {
        debug_assert!(self.head.is_none());
        let OutboundDatagram { hop_limit, traffic_class, dont_fragment, payload, .. } = *datagram;
        self.payload.resize(MAX_TRAIN_LEN, 0);
        let extent = Extent::new(payload.copy_to(&mut self.payload), None);
        self.head = Some(Head { flow, hop_limit, traffic_class, dont_fragment, extent });
    }

    /// Takes the train. The payload's memory should be [given back](Self::recycle).
    pub(super) fn take(&mut self) -> Option<(Head, Vec<u8>)> {
        let head = self.head.take()?;
        Some((head, core::mem::take(&mut self.payload)))
    }

    pub(super) fn recycle(&mut self, payload: Vec<u8>) {
        self.payload = payload;
    }
}
