//! Services on the guest's link. Each request is answered at once (behaviour §4).
//!
//! Each protocol has a module that makes the decisions. This module selects the protocol and writes the headers of the
//! answers.
//!
//! On every link, every frame of these services has complete checksums. The clients of these protocols often read from
//! packet or raw sockets, or are firmware: they verify checksums, and have no support for checksum offload.

mod arp;
mod dhcp;
mod dhcpv6;
mod echo;
mod ndp;
#[cfg(test)]
mod test;

use core::net::{IpAddr, Ipv6Addr};

use wire::{
    ethernet,
    frame::{Outgoing, Packet, Written},
    icmp,
    offload::Offload,
    payload::Payload,
    segment::complete_checksum,
    udp,
};

use crate::{
    addr::{Guest, Settings},
    link::Link,
};

pub use arp::on_arp;
pub use ndp::Advertiser;

/// Maximum length of a message that is parsed, in bytes. No client sends a longer message.
const LONGEST: usize = 4096;

/// The result of passing a frame to the local services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    /// The packet is not for the local services: the caller continues to process it.
    NotLocal,
    /// The packet was answered.
    Answered,
    /// The packet needs no answer, or the service is off.
    Ignored,
    /// The packet is malformed, or violates its protocol. The caller must count it as dropped.
    Invalid,
    /// The answer was not sent, since the link is full. The guest will ask again.
    LinkFull,
}

impl Outcome {
    /// Whether the frame was for the local services, so that the caller must not process it further.
    #[must_use]
    pub const fn consumed(self) -> bool {
        !matches!(self, Self::NotLocal)
    }
}

/// Answers Neighbour Discovery, and pings of the engine's addresses on a virtual network.
pub fn on_icmp(
    settings: &Settings,
    guest: &mut Guest,
    packet: &Packet<'_, impl Payload>,
    message: &icmp::Message<'_, impl Payload>,
    link: &mut impl Link,
) -> Outcome {
    match ndp::on_icmpv6(settings, guest, packet, message, link) {
        Outcome::NotLocal => echo::on_icmp(settings, guest, packet, message, link),
        outcome => outcome,
    }
}

/// Answers datagrams to the DHCP servers. The datagrams go to port 67 (behaviour §4.3.1), or to port 547 of a
/// multicast address (behaviour §4.4.1).
pub fn on_udp(
    settings: &Settings,
    guest: &mut Guest,
    packet: &Packet<'_, impl Payload>,
    datagram: &udp::Datagram<'_, impl Payload>,
    link: &mut impl Link,
) -> Outcome {
    on_question(settings, guest, packet, datagram, link).unwrap_or_else(|outcome| outcome)
}

fn on_question(
    settings: &Settings,
    guest: &mut Guest,
    packet: &Packet<'_, impl Payload>,
    datagram: &udp::Datagram<'_, impl Payload>,
    link: &mut impl Link,
) -> Result<Outcome, Outcome> {
    match (packet.source, packet.destination, datagram.header.destination_port.get()) {
        (IpAddr::V4(_), IpAddr::V4(_), dhcp::SERVER_PORT) => {
            on_dhcp(settings, guest, copied(datagram.payload, &mut [0; LONGEST])?, link)
        }
        (IpAddr::V6(source), IpAddr::V6(destination), dhcpv6::SERVER_PORT) if destination.is_multicast() => {
            on_dhcpv6(settings, guest, source, copied(datagram.payload, &mut [0; LONGEST])?, link)
        }
        _ => Ok(Outcome::NotLocal),
    }
}

/// Copies a message to `buffer`, for parsing.
fn copied(payload: impl Payload, buffer: &mut [u8; LONGEST]) -> Result<&[u8], Outcome> {
    let len = payload.copy_to(buffer);
    if len < payload.len() { Err(Outcome::Invalid) } else { Ok(&buffer[..len]) }
}

/// Sends requests when the link comes up, so that the guest's answers show its hardware address (behaviour §4.1.3,
/// §4.2). Must be called only when the guest can receive.
pub fn announce_start(settings: &Settings, guest: &Guest, link: &mut impl Link) {
    let gateway = settings.v4.as_ref().and_then(|v4| v4.our_address);
    let main = [gateway.and(guest.v4()).map(IpAddr::V4), guest.v6().map(IpAddr::V6)];
    main.into_iter().flatten().for_each(|address| ask_for(settings, guest, address, link));
}

/// Sends a request for `address` to the guest's network. The host that has `address` will answer.
pub fn ask_for(settings: &Settings, guest: &Guest, address: IpAddr, link: &mut impl Link) {
    // If this request is lost, another request follows, or the guest's own frames show the address.
    let _ = match address {
        IpAddr::V4(address) => arp::ask_for(settings, address, link),
        IpAddr::V6(address) => ndp::ask_for(settings, guest, address, link),
    };
}

/// Announces a neighbour's new hardware address to the guest (behaviour §4.1.4). The guest may have learned an earlier
/// address.
pub fn announce_neighbour(settings: &Settings, guest: &Guest, neighbour: IpAddr, link: &mut impl Link) {
    // If the announcement is lost, the guest keeps the old hardware address, which leads to the engine as well.
    let _ = match neighbour {
        IpAddr::V4(neighbour) => arp::announce(settings, neighbour, link),
        IpAddr::V6(neighbour) => ndp::announce(settings, guest, neighbour, link),
    };
}

/// How a message changes the guest's lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Binding {
    /// The guest has the lease now.
    Made,
    /// The guest has declined the address, because another host has it.
    Declined,
    /// The guest has released the address.
    Released,
}

impl Binding {
    fn apply(self, guest: &mut Guest, assigned: IpAddr) {
        match self {
            Self::Made => guest.leases(assigned),
            Self::Declined => {
                log::warn!("The guest has declined {assigned}: another host of its network has the address");
                guest.gives_up(assigned);
            }
            Self::Released => guest.gives_up(assigned),
        }
    }
}

fn on_dhcp(
    settings: &Settings,
    guest: &mut Guest,
    request: &[u8],
    link: &mut impl Link,
) -> Result<Outcome, Outcome> {
    let v4 = settings.v4.as_ref().ok_or(Outcome::Ignored)?;
    let reply = dhcp::reply(settings, request);
    let binding = reply.as_ref().map_or_else(|_| dhcp::ends(settings, request), |reply| reply.binding);
    if let Some(binding) = binding {
        binding.apply(guest, v4.assigned.into());
    }
    let reply = reply?;
    let mut headers = headers(settings, guest, reply.source.into(), reply.destination.into());
    headers.destination_mac = guest.present_mac();
    Ok(send_udp(link, &headers, (dhcp::SERVER_PORT, dhcp::CLIENT_PORT), &reply.message))
}

fn on_dhcpv6(
    settings: &Settings,
    guest: &mut Guest,
    client: Ipv6Addr,
    request: &[u8],
    link: &mut impl Link,
) -> Result<Outcome, Outcome> {
    let v6 = settings.v6.as_ref().ok_or(Outcome::Ignored)?;
    if !settings.valid_guest_source(client.into()) {
        return Err(Outcome::Invalid);
    }
    let reply = dhcpv6::reply(settings, request)?;
    if let (Some(binding), Some(assigned)) = (reply.binding, v6.assigned) {
        binding.apply(guest, assigned.into());
    }
    let mut headers = headers(settings, guest, v6.our_link_local.into(), client.into());
    headers.flow_label = reply.flow_label;
    Ok(send_udp(link, &headers, (dhcpv6::SERVER_PORT, dhcpv6::CLIENT_PORT), &reply.message))
}

/// The headers of a packet to the guest from an address of the engine itself.
fn headers(settings: &Settings, guest: &Guest, source: IpAddr, destination: IpAddr) -> Outgoing {
    Outgoing { source_mac: settings.our_mac, ..settings.headers(guest, source, destination) }
}

fn send_udp(link: &mut impl Link, headers: &Outgoing, ports: (u16, u16), payload: &[u8]) -> Outcome {
    let start = headers.headroom(udp::HEADER_LEN);
    send(link, start + payload.len(), |slot| {
        slot.get_mut(start..start + payload.len())?.copy_from_slice(payload);
        headers.udp(slot, ports, payload.len(), None)
    })
}

/// Sends an ICMPv6 message. `body` writes at most `max_len` bytes after the header and returns the number of bytes.
fn send_icmp(
    link: &mut impl Link,
    headers: &Outgoing,
    header: icmp::Header,
    max_len: usize,
    body: impl FnOnce(&mut [u8]) -> Option<usize>,
) -> Outcome {
    let start = headers.headroom(icmp::HEADER_LEN);
    send(link, start + max_len, |slot| {
        let len = body(slot.get_mut(start..)?)?;
        headers.icmp(slot, header, len)
    })
}

/// Sends the frame that `build` writes (at most `len` bytes), and completes its checksum.
fn send(link: &mut impl Link, len: usize, build: impl FnOnce(&mut [u8]) -> Option<Written>) -> Outcome {
    let Some(mut reserved) = link.reserve_head(len.max(ethernet::MIN_FRAME_LEN)) else {
        return Outcome::LinkFull;
    };
    let slot = reserved.head();
    let Some(written) = build(slot) else {
        return Outcome::Invalid; // the answer does not fit in any frame
    };
    if !slot.get_mut(..written.len).is_some_and(|frame| complete_checksum(frame, &written.offload)) {
        return Outcome::Invalid;
    }
    match reserved.commit(written.len, &Offload::default()) {
        Ok(()) => Outcome::Answered,
        Err(_) => Outcome::LinkFull,
    }
}
