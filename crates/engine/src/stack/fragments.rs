//! Fragments of the guest: reassembled into packets, or reported to the guest if that fails.

use core::net::IpAddr;

use wire::{
    fragment::{Fragment, Piece},
    frame::{Packet, Transport},
    icmp, ipv6,
    offload::Offload,
    payload::Payload,
    verify,
};

use super::round::Round;
use crate::{
    context::World,
    host::Report,
    icmp::{MAX_QUOTE, Quote, router, send_error},
    memory::PayloadOf,
    reassembly::{Invalid, Outcome},
};

/// Offset of the payload length in an IPv6 header, in bytes.
const PAYLOAD_LEN_AT: u32 = 4;
/// Offset of the fragment offset in a fragment header right after the IPv6 header, in bytes.
const OFFSET_AT: u32 = ipv6::HEADER_LEN as u32 + 2;
/// Part of the payload that is quoted as a transport header, in bytes.
const TRANSPORT_LEN: usize = 8;

/// A fragment that the guest gets an error about.
struct Failed<'a> {
    source: IpAddr,
    destination: IpAddr,
    piece: Piece,
    payload: &'a [u8],
}

impl<W: World> Round<'_, W> {
    /// Adds a fragment. If it completes a packet, the packet is processed like any other.
    pub(super) fn on_fragment<'a>(
        &mut self,
        packet: &Packet<'_, PayloadOf<'a, W::Memory>>,
        fragment: &Fragment<PayloadOf<'a, W::Memory>>,
    ) {
        match self.stack.reassembly.add(packet, fragment, self.now) {
            Outcome::Waiting => {}
            Outcome::Complete(whole, bytes) => {
                match whole.packet(&bytes, bytes.as_slice().into()) {
                    // A fragmented packet of an unsupported protocol gets no error.
                    Ok(Packet { transport: Transport::Other(..), .. }) => {
                        self.stack.counters.unsupported += 1
                    }
                    Ok(packet) if !verify::transport(&packet) => self.count_wrong_checksum(),
                    Ok(packet) => self.on_packet(&packet, &Offload::VERIFIED),
                    Err(_) => self.stack.counters.malformed += 1,
                }
                self.stack.reassembly.recycle(bytes);
            }
            Outcome::Conflict => self.stack.counters.fragments += 1,
            Outcome::Invalid(reason) => {
                self.stack.counters.fragments += 1;
                let Some(report) = report(reason, packet.source) else { return };
                let mut payload = [0; TRANSPORT_LEN + MAX_QUOTE];
                let len = fragment.payload.copy_to(&mut payload);
                let (source, destination) = (packet.source, packet.destination);
                let Fragment { id, protocol, offset, more, .. } = *fragment;
                let piece = Piece { protocol, id, offset, more };
                let failed = Failed { source, destination, piece, payload: &payload[..len] };
                self.report_fragment(&failed, report);
            }
        }
    }

    /// Drops datagrams that have waited too long for their fragments.
    pub(super) fn expire_fragments(&mut self) {
        while let Some(expired) = self.stack.reassembly.expire(self.now) {
            self.stack.counters.fragments += 1;
            let Some((whole, payload)) = expired.first else { continue };
            let kind = match whole.source {
                IpAddr::V4(_) => icmp::v4::TIME_EXCEEDED,
                IpAddr::V6(_) => icmp::v6::TIME_EXCEEDED,
            };
            let failed = Failed {
                source: whole.source,
                destination: whole.destination,
                piece: Piece { protocol: whole.protocol, id: expired.id, offset: 0, more: true },
                payload: &payload,
            };
            let report = Report { kind, code: icmp::REASSEMBLY_TIME_EXCEEDED, info: 0 };
            self.report_fragment(&failed, report);
        }
    }

    fn report_fragment(&mut self, failed: &Failed<'_>, report: Report) {
        if !self.stack.settings.valid_guest_source(failed.source) {
            return;
        }
        let (first, payload) = failed.payload.split_at(failed.payload.len().min(TRANSPORT_LEN));
        let mut header = [0; TRANSPORT_LEN];
        header[..first.len()].copy_from_slice(first);
        let quote = Quote {
            guest: failed.source,
            remote: failed.destination,
            protocol: failed.piece.protocol,
            header,
            payload,
            fragment: Some(failed.piece),
        };
        let (_, mut cx) = self.split();
        let router = router(cx.settings, failed.destination);
        send_error(router, report, &quote, &mut cx);
    }
}

/// The error about an invalid fragment (RFC 8200 §4.5). IPv4 has none.
fn report(reason: Invalid, source: IpAddr) -> Option<Report> {
    let info = match reason {
        Invalid::OddLength => PAYLOAD_LEN_AT,
        Invalid::TooLong => OFFSET_AT,
        Invalid::Empty => return None,
    };
    source.is_ipv6().then_some(Report { kind: icmp::v6::PARAMETER_PROBLEM, code: 0, info })
}
