//! From fragments to a packet, and from a packet to fragments.

use core::net::IpAddr;

use zerocopy::{FromBytes, IntoBytes};

use crate::{
    ethernet,
    fragment::{Fields, Fragment, HEADER_LEN, Header, UNIT},
    frame::{self, Outgoing, Packet, Unusable},
    ipv4, ipv6,
    payload::Payload,
};

/// The IP header of the original packet of some fragments (RFC 8200 §4.5): fields of the fragment with offset zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OriginalHeader {
    /// Source address.
    pub source: IpAddr,
    /// Destination address; of the same version as `source`.
    pub destination: IpAddr,
    /// Time to live or hop limit.
    pub hop_limit: u8,
    /// DSCP and ECN; the caller combines ECN over all fragments (RFC 3168 §5.3).
    pub traffic_class: u8,
    /// Flow label; zero for IPv4.
    pub flow_label: u32,
    /// Protocol or next header.
    pub protocol: u8,
}

impl OriginalHeader {
    /// The header of the original packet, from the fragment with offset zero. `packet` is the packet that contains this
    /// fragment.
    #[must_use]
    pub const fn new<P, Q>(packet: &Packet<'_, P>, fragment: &Fragment<Q>) -> Self {
        Self {
            source: packet.source,
            destination: packet.destination,
            hop_limit: packet.hop_limit,
            traffic_class: packet.traffic_class,
            flow_label: packet.flow_label,
            protocol: fragment.protocol,
        }
    }

    /// The reassembled packet. `bytes` is its fragmentable part, and `payload` is a view of the same bytes.
    ///
    /// The caller must verify the checksum of TCP, UDP or ICMP now ([`crate::verify::transport`]). The checksum covers
    /// the whole packet, so no link can have verified it.
    ///
    /// # Errors
    /// [`Unusable::Malformed`] if the headers are malformed; drop the packet.
    pub fn packet<'a, P: Payload>(&self, bytes: &'a [u8], payload: P) -> Result<Packet<'a, P>, Unusable> {
        let (protocol, upper) = match self.source {
            IpAddr::V4(_) => (self.protocol, bytes),
            IpAddr::V6(_) => ipv6::upper_layer(self.protocol, bytes).ok_or(Unusable::Malformed)?,
        };
        // No host sends a fragment inside a fragment, and nested reassembly would have no bound.
        let nested = self.source.is_ipv6() && protocol == ipv6::FRAGMENT;
        if nested {
            return Err(Unusable::Malformed);
        }
        let payload = payload.slice(bytes.len() - upper.len()..bytes.len());
        Ok(Packet {
            source: self.source,
            destination: self.destination,
            hop_limit: self.hop_limit,
            traffic_class: self.traffic_class,
            flow_label: self.flow_label,
            dont_fragment: false,
            transport: frame::parse_transport(self.source.is_ipv4(), protocol, frame::head(upper), payload)?,
        })
    }
}

impl Outgoing {
    /// Length of the headers that [`Outgoing::fragment`] writes, in bytes.
    #[must_use]
    pub const fn fragment_headroom(&self) -> usize {
        self.headroom(if self.source.is_ipv4() { 0 } else { HEADER_LEN })
    }

    /// Maximum length of the payload of a fragment that is not the last one, on a link with this MTU. Both are in
    /// bytes. At least [`UNIT`].
    #[must_use]
    pub fn fragment_room(&self, mtu: u16) -> usize {
        let room = usize::from(mtu).saturating_sub(self.fragment_headroom() - ethernet::HEADER_LEN);
        (room / UNIT * UNIT).max(UNIT)
    }

    /// Writes the headers of a fragment with `payload_len` bytes of payload, and zeros the padding that is in `buffer`.
    /// Returns the length of the frame, padding included. None if the headers do not fit in `buffer`, or the payload
    /// does not fit in a packet.
    pub fn fragment(&self, buffer: &mut [u8], fields: &Fields, payload_len: usize) -> Option<usize> {
        let at = if self.source.is_ipv4() {
            let at = self.network(buffer, fields.protocol, payload_len)?;
            let header = buffer.get_mut(ethernet::HEADER_LEN..at)?;
            let header = ipv4::Header::mut_from_bytes(header).ok()?;
            header.set_fragment(fields.id as u16, fields.offset, fields.more);
            at
        } else {
            let at = self.network(buffer, ipv6::FRAGMENT, HEADER_LEN + payload_len)?;
            buffer.get_mut(at..at + HEADER_LEN)?.copy_from_slice(Header::new(fields).as_bytes());
            at + HEADER_LEN
        };
        Some(frame::pad(buffer, at + payload_len))
    }
}
