//! UDP: one unconnected host socket per guest endpoint (RFC 4787 endpoint-independent mapping; SPEC §7).

/// An unconnected datagram socket.
pub trait UdpSocket {}
