//! Handling of the guest's fragments: reassembly into packets, and reports to the guest if this fails.

use core::net::IpAddr;

use wire::{
    assembly::OriginalHeader,
    fragment::{self, Fragment},
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
    icmp::{MAX_UPPER, Quote, send_router_error},
    memory::PayloadOf,
    reassembly::{Invalid, Outcome},
};

/// Offset of the payload length in an IPv6 header, in bytes.
const PAYLOAD_LEN_AT: u32 = 4;
/// Offset of the fragment offset in a fragment header right after the IPv6 header, in bytes.
const OFFSET_AT: u32 = ipv6::HEADER_LEN as u32 + 2;

impl<W: World> Round<'_, W> {
    /// Adds a fragment. If it completes a packet, the packet is processed like any other.
    pub(super) fn on_fragment<'a>(
        &mut self,
        packet: &Packet<'_, PayloadOf<'a, W::Memory>>,
        fragment: &Fragment<PayloadOf<'a, W::Memory>>,
    ) {
        let (source, destination) = (packet.source, packet.destination);
        match self.stack.reassembly.add(packet, fragment, self.now) {
            Outcome::Waiting => {}
            Outcome::Complete(header, bytes) => {
                match header.packet(&bytes, bytes.as_slice().into()) {
                    // A fragmented packet of an unsupported protocol gets no error.
                    Ok(Packet { transport: Transport::Other(number, _), .. }) => {
                        self.stack.counters.unsupported += 1;
                        self.stack.guard.note_unsupported(number, source, destination);
                    }
                    Ok(packet) if !verify::transport(&packet) => self.count_wrong_checksum(),
                    Ok(packet) => self.on_packet(&packet, &Offload::VERIFIED),
                    Err(_) => self.stack.counters.malformed += 1,
                }
                self.stack.reassembly.recycle(bytes);
            }
            Outcome::Conflict => self.count_fragments(source, destination, "they contradict each other"),
            Outcome::Invalid(reason) => {
                self.count_fragments(source, destination, "one is empty, too long or not aligned");
                let Some(report) = report(reason, source) else { return };
                let mut payload = [0; MAX_UPPER];
                let len = fragment.payload.copy_to(&mut payload);
                let Fragment { id, protocol, offset, more, .. } = *fragment;
                let fields = fragment::Fields { protocol, id, offset, more };
                self.report_fragment((source, destination), fields, &payload[..len], report);
            }
        }
    }

    /// Drops datagrams that have waited too long for their fragments.
    pub(super) fn expire_fragments(&mut self) {
        while let Some(expired) = self.stack.reassembly.expire(self.now) {
            self.count_fragments(expired.source, expired.destination, "some are missing");
            let Some((header, payload)) = expired.first else { continue };
            let kind = match header.source {
                IpAddr::V4(_) => icmp::v4::TIME_EXCEEDED,
                IpAddr::V6(_) => icmp::v6::TIME_EXCEEDED,
            };
            let OriginalHeader { source, destination, protocol, .. } = header;
            let fields = fragment::Fields { protocol, id: expired.id, offset: 0, more: true };
            let report = Report { kind, code: icmp::REASSEMBLY_TIME_EXCEEDED, info: 0 };
            self.report_fragment((source, destination), fields, &payload, report);
        }
    }

    /// Counts and logs one or more fragments that are dropped.
    fn count_fragments(&mut self, source: IpAddr, destination: IpAddr, why: &str) {
        self.stack.counters.fragments += 1;
        self.stack.guard.note_fragments(source, destination, why);
    }

    /// Sends the guest an error about a fragment.
    fn report_fragment(
        &mut self,
        (source, destination): (IpAddr, IpAddr),
        fields: fragment::Fields,
        payload: &[u8],
        report: Report,
    ) {
        if self.stack.settings.valid_guest_source(source) {
            let quote = Quote::of_packet((source, destination), fields.protocol, payload, Some(fields));
            send_router_error(report, &quote, &mut self.split().1);
        }
    }
}

/// The error about an invalid fragment (RFC 8200 §4.5). IPv4 has no such error.
fn report(reason: Invalid, source: IpAddr) -> Option<Report> {
    let info = match reason {
        Invalid::UnalignedLength => PAYLOAD_LEN_AT,
        Invalid::TooLong => OFFSET_AT,
        Invalid::Empty => return None,
    };
    source.is_ipv6().then_some(Report { kind: icmp::v6::PARAMETER_PROBLEM, code: 0, info })
}
