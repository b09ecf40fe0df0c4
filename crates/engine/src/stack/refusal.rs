//! Refusal of packets of protocols that are not forwarded. The guest gets an error at once, so it need not wait for an
//! answer (behaviour §4.6; RFC 1122 §3.2.2.1, RFC 4443 §3.4).

use core::time::Duration;

use wire::{frame::Packet, icmp, ipv6, payload::Payload};

use super::round::Round;
use crate::{
    context::World,
    host::Report,
    icmp::{MAX_UPPER, Quote, send_router_error},
    memory::PayloadOf,
    timer::Instant,
};

/// Code of "destination unreachable": protocol unreachable.
const PROTOCOL_UNREACHABLE: u8 = 2;
/// Code of ICMPv6 "parameter problem" for an unknown next header, and the offset of this next header field in the
/// quoted packet, in bytes.
const UNKNOWN_HEADER: (u8, u32) = (1, 6);

/// The rate limit of such errors: a token bucket (RFC 4443 §2.4(f)).
#[derive(Debug)]
pub(super) struct Limit {
    tokens: u32,
    /// When the last token was added.
    since: Instant,
}

impl Limit {
    /// Maximum number of tokens: so many messages may be sent at once.
    const BURST: u32 = 10;
    /// Time after which a token is added.
    const INTERVAL: Duration = Duration::from_millis(100);

    pub(super) const fn new(now: Instant) -> Self {
        Self { tokens: Self::BURST, since: now }
    }

    fn take(&mut self, now: Instant) -> bool {
        let new = now.since(self.since).as_millis() / Self::INTERVAL.as_millis();
        if new > 0 {
            self.tokens = Self::BURST.min(self.tokens.saturating_add(u32::try_from(new).unwrap_or(u32::MAX)));
            self.since = now;
        }
        let taken = self.tokens > 0;
        self.tokens = self.tokens.saturating_sub(1);
        taken
    }
}

impl<W: World> Round<'_, W> {
    /// Drops a packet whose `upper` layer is not forwarded, and sends an error to its sender.
    pub(super) fn refuse(
        &mut self,
        packet: &Packet<'_, PayloadOf<'_, W::Memory>>,
        protocol: u8,
        upper: PayloadOf<'_, W::Memory>,
    ) {
        self.stack.counters.unsupported += 1;
        self.stack.guard.note_unsupported(protocol, packet.source, packet.destination);
        let v4 = packet.source.is_ipv4();
        let has_no_payload = !v4 && protocol == ipv6::NO_NEXT_HEADER;
        if has_no_payload
            || !self.stack.settings.valid_guest_source(packet.source)
            || !self.stack.refusals.take(self.now)
        {
            return;
        }
        let mut bytes = [0; MAX_UPPER];
        let len = upper.copy_to(&mut bytes);
        let quote = Quote::of_packet((packet.source, packet.destination), protocol, &bytes[..len], None);
        let (code, info) = UNKNOWN_HEADER;
        let report = if v4 {
            Report { kind: icmp::v4::UNREACHABLE, code: PROTOCOL_UNREACHABLE, info: 0 }
        } else {
            Report { kind: icmp::v6::PARAMETER_PROBLEM, code, info }
        };
        send_router_error(report, &quote, &mut self.split().1);
    }
}
