//! Writing segments to the guest.

use wire::{
    ethernet::MIN_FRAME_LEN,
    frame::Outgoing,
    tcp::{Flags, HEADER_LEN, Header, MAX_OPTIONS_LEN, Options, Seq},
};

use crate::{
    context::{Context, World},
    flow::Ends,
    host::Errno,
    link::{Full, Link},
    memory::{Memory, RoomOf},
};

/// The result of sending a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Sent {
    /// The segment was sent. It occupies this much sequence space: the bytes of payload, and one for a FIN.
    Bytes(u32),
    /// Nothing was sent: the stream of the socket has ended.
    End,
    /// Nothing was sent: the socket has no bytes now.
    Nothing,
    /// Nothing was sent: the link is full.
    LinkFull,
    /// Nothing was sent: the socket has failed.
    Failed(Errno),
}

/// The header of one segment, except for the ports.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fields {
    pub(super) seq: Seq,
    pub(super) ack: Seq,
    pub(super) flags: Flags,
    /// The window as in the header: scaled down.
    pub(super) window: u16,
    /// The urgent pointer: the distance from `seq` to the byte after the urgent byte, or zero if there is no urgent
    /// data. All segments of a super-frame have the same pointer, so only a frame with a single segment may have one.
    pub(super) urgent: u16,
    /// The traffic class of the packet, without ECN bits.
    pub(super) class: u8,
    pub(super) options: Options,
}

/// The limits of a frame's payload.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    /// Maximum length of the payload of the frame, in bytes.
    pub(super) frame: usize,
    /// Length of the payload of each segment except the last, in bytes.
    pub(super) segment: u16,
}

/// Sends a segment with payload. `fill` writes the payload, within the limits of `size`. If `fill` does not return
/// [`Sent::Bytes`], nothing is sent, and the result is that of `fill`.
pub(super) fn with_payload<W: World>(
    ends: &Ends,
    mut fields: Fields,
    size: Size,
    fill: impl FnOnce(RoomOf<'_, W::Memory>, &mut Fields) -> Sent,
    cx: &mut Context<'_, W>,
) -> Sent {
    let headers = cx.settings.headers(cx.guest, ends.remote, ends.guest);
    let outgoing = Outgoing { traffic_class: fields.class, ..headers };
    let mut options = [0; MAX_OPTIONS_LEN];
    let options_len = fields.options.emit(&mut options);
    let headroom = outgoing.headroom(HEADER_LEN + options_len);
    let (head, room) = match size.frame {
        0 => (headroom.max(MIN_FRAME_LEN), 0),
        most => (headroom, most.max(MIN_FRAME_LEN)),
    };
    let Some(mut reserved) = cx.link.reserve(head, room) else { return Sent::LinkFull };
    let (len, written) = {
        let mut slot = reserved.slot();
        let len = match fill(W::Memory::part(&mut slot.room, size.frame), &mut fields) {
            Sent::Bytes(len) => len as usize,
            not_sent => return not_sent,
        };
        slot.pad(len);
        let ports = (ends.remote_port, ends.guest_port);
        let mut header = Header::new(ports, fields.seq, fields.ack, fields.flags, fields.window, options_len);
        if fields.urgent > 0 {
            header.set_urgent(fields.urgent);
        }
        (len, outgoing.tcp(slot.head, header, &options[..options_len], len, Some(size.segment)))
    };
    match written.map(|written| reserved.commit(written.len, &written.offload)) {
        Some(Ok(())) => Sent::Bytes(len as u32),
        Some(Err(Full)) | None => Sent::LinkFull,
    }
}

/// Sends a segment without payload.
///
/// # Errors
/// [`Full`], if the link takes no frame now.
pub(super) fn bare<W: World>(ends: &Ends, fields: Fields, cx: &mut Context<'_, W>) -> Result<(), Full> {
    match with_payload(ends, fields, Size { frame: 0, segment: 0 }, |_, _| Sent::Bytes(0), cx) {
        Sent::Bytes(_) => Ok(()),
        _ => Err(Full),
    }
}
