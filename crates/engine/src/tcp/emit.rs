//! Writing segments to the guest.

use core::net::SocketAddr;

use wire::{
    ethernet::MIN_FRAME_LEN,
    frame::Outgoing,
    tcp::{Flags, HEADER_LEN, Header, MAX_OPTIONS_LEN, Options, Seq},
};

use crate::{
    context::Context,
    flow::Endpoints,
    host::Host,
    link::{Full, Link},
    memory::Memory,
};

/// Hop limit of segments to the guest (behaviour §4).
const HOP_LIMIT: u8 = 255;

/// The header of one segment, but for what the connection's ends say.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fields {
    pub(super) seq: Seq,
    pub(super) ack: Seq,
    pub(super) flags: Flags,
    /// As it stands in the header: scaled.
    pub(super) window: u16,
    /// From `seq` to the byte after the urgent one; zero for no urgent data. It is the same for all segments of a
    /// super-frame, so only a frame of a single segment may have it.
    pub(super) urgent: u16,
    /// The traffic class of the packet, without ECN bits.
    pub(super) class: u8,
    pub(super) options: Options,
}

/// The network header of everything sent to the guest on this connection.
fn outgoing<H: Host, L: Link>(ends: &Endpoints, traffic_class: u8, ctx: &Context<'_, H, L>) -> Outgoing {
    Outgoing {
        source_mac: ctx.settings.mac_of(ends.remote.ip()),
        destination_mac: ctx.guest.mac_of(ends.guest.ip()),
        source: ends.remote.ip(),
        destination: ends.guest.ip(),
        hop_limit: HOP_LIMIT,
        traffic_class,
        flow_label: 0,
    }
}

/// Sends a segment whose payload, of up to `max_len` bytes, is put in place by `fill`. What `fill`
/// returns goes back to the caller; with an error nothing is sent.
///
/// # Errors
/// [`Full`] in place of the result, if the link takes no frame now.
pub(super) fn with_payload<H: Host, L: Link, E>(
    ends: &Endpoints,
    mut fields: Fields,
    max_len: usize,
    segment_size: u16,
    ctx: &mut Context<'_, H, L>,
    fill: impl FnOnce(<L::Memory as Memory>::Room<'_>, &mut Fields) -> Result<usize, E>,
) -> Result<Result<usize, E>, Full> {
    let outgoing = outgoing(ends, fields.class, ctx);
    let mut options = [0; MAX_OPTIONS_LEN];
    let options_len = fields.options.emit(&mut options);
    let headroom = outgoing.headroom(HEADER_LEN + options_len);
    let (head, room) = match max_len {
        0 => (headroom.max(MIN_FRAME_LEN), 0),
        _ => (headroom, max_len.max(MIN_FRAME_LEN)),
    };
    let mut reserved = ctx.link.reserve(head, room).ok_or(Full)?;
    let (len, written) = {
        let mut slot = reserved.slot();
        let len = match fill(L::Memory::part(&mut slot.room, max_len), &mut fields) {
            Ok(len) => len,
            Err(error) => return Ok(Err(error)),
        };
        slot.pad(len);
        let mut header =
            Header::new(ports(ends), fields.seq, fields.ack, fields.flags, fields.window, options_len);
        if fields.urgent > 0 {
            header.set_urgent(fields.urgent);
        }
        (len, outgoing.tcp(slot.head, header, &options[..options_len], len, Some(segment_size)))
    };
    let written = written.ok_or(Full)?;
    reserved.commit(written.len, &written.offload)?;
    Ok(Ok(len))
}

/// Sends a segment without payload.
///
/// # Errors
/// [`Full`], if the link takes no frame now.
pub(super) fn bare<H: Host, L: Link>(
    ends: &Endpoints,
    fields: Fields,
    ctx: &mut Context<'_, H, L>,
) -> Result<(), Full> {
    with_payload(ends, fields, 0, 0, ctx, |_, _| Ok::<_, core::convert::Infallible>(0)).map(|_| ())
}

fn ports(ends: &Endpoints) -> (u16, u16) {
    let port = |end: &SocketAddr| end.port();
    (port(&ends.remote), port(&ends.guest))
}
