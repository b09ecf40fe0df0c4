//! Datagrams that the guest sends one right after the other, joined so that one call sends them all (`UDP_SEGMENT`).
//!
//! A train exists within one round of the event loop: it is sent at its end, so no datagram waits for one that may never
//! come. Joining costs a copy, which one datagram alone is not worth. So a train begins only if the flow has sent in this
//! round or the one before: then it is a stream, and more will follow.

use alloc::vec::Vec;

use wire::payload::Payload;

use crate::{flow::FlowId, host::Outbound};

/// Most datagrams in a train: as many as any kernel cuts (Linux before 6.9: 64).
pub(super) const MAX_DATAGRAMS: usize = 64;
/// Longest train in bytes: what fits a packet of either family.
pub(super) const MAX_TRAIN_LEN: usize = 65_487;
/// Longest datagram that is joined, in bytes: longer ones are not worth the copy.
pub(super) const MAX_DATAGRAM_LEN: usize = 16_384;

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
    /// Length of each datagram but the last.
    pub(super) size: u16,
    /// Length of all.
    pub(super) len: usize,
    /// Nothing may follow: the last datagram was shorter.
    complete: bool,
}

impl Train {
    /// Whether a train could begin with this datagram.
    pub(super) fn suits(datagram: &Outbound<impl Payload>) -> bool {
        datagram.segment_size.is_none() && (1..=MAX_DATAGRAM_LEN).contains(&datagram.payload.len())
    }

    /// Whether there is a train of this flow.
    pub(super) fn is_of(&self, flow: FlowId) -> bool {
        self.head.is_some_and(|head| head.flow == flow)
    }

    /// Appends a datagram; false if it does not fit in.
    pub(super) fn join(&mut self, flow: FlowId, datagram: &Outbound<impl Payload>) -> bool {
        let Some(head) = &mut self.head else { return false };
        let (len, size) = (datagram.payload.len(), usize::from(head.size));
        let like = head.flow == flow
            && head.hop_limit == datagram.hop_limit
            && head.traffic_class == datagram.traffic_class
            && head.dont_fragment == datagram.dont_fragment;
        let room = len <= size && head.len + len <= MAX_TRAIN_LEN.min(MAX_DATAGRAMS * size);
        if !like || !room || head.complete || !Self::suits(datagram) {
            return false;
        }
        head.complete = len < size;
        head.len += datagram.payload.copy_to(self.payload.get_mut(head.len..).unwrap_or_default());
        true
    }

    /// Begins a train with a datagram that [suits](Self::suits); there must be none.
    pub(super) fn begin(&mut self, flow: FlowId, datagram: &Outbound<impl Payload>) {
        debug_assert!(self.head.is_none());
        let Outbound { hop_limit, traffic_class, dont_fragment, payload, .. } = *datagram;
        self.payload.resize(MAX_TRAIN_LEN, 0);
        let len = payload.copy_to(&mut self.payload);
        let size = len as u16;
        self.head = Some(Head { flow, hop_limit, traffic_class, dont_fragment, size, len, complete: false });
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
