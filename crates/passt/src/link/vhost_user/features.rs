//! Features of the back-end: bits of the virtio network device (virtio 1.2 §5.1.3) and of the vhost-user protocol.

use bitflags::bitflags;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use virtio_bindings::{virtio_config, virtio_net, virtio_ring};
use wire::offload::{Offload, SegmentKind};

bitflags! {
    /// Features of the device on which driver and back-end agree.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Features: u64 {
        /// Frames of the driver may have an open checksum.
        const CSUM = 1 << virtio_net::VIRTIO_NET_F_CSUM;
        /// Frames to the driver may have an open checksum.
        const GUEST_CSUM = 1 << virtio_net::VIRTIO_NET_F_GUEST_CSUM;
        /// Super-frames to the driver: TCP over IPv4.
        const GUEST_TSO4 = 1 << virtio_net::VIRTIO_NET_F_GUEST_TSO4;
        /// Super-frames to the driver: TCP over IPv6.
        const GUEST_TSO6 = 1 << virtio_net::VIRTIO_NET_F_GUEST_TSO6;
        /// Super-frames to the driver may have ECN's flag "congestion window reduced".
        const GUEST_ECN = 1 << virtio_net::VIRTIO_NET_F_GUEST_ECN;
        /// Super-frames to the driver: UDP over IPv4.
        const GUEST_USO4 = 1 << virtio_net::VIRTIO_NET_F_GUEST_USO4;
        /// Super-frames to the driver: UDP over IPv6.
        const GUEST_USO6 = 1 << virtio_net::VIRTIO_NET_F_GUEST_USO6;
        /// Super-frames of the driver: TCP over IPv4.
        const HOST_TSO4 = 1 << virtio_net::VIRTIO_NET_F_HOST_TSO4;
        /// Super-frames of the driver: TCP over IPv6.
        const HOST_TSO6 = 1 << virtio_net::VIRTIO_NET_F_HOST_TSO6;
        /// Super-frames of the driver may have ECN's flag "congestion window reduced".
        const HOST_ECN = 1 << virtio_net::VIRTIO_NET_F_HOST_ECN;
        /// Super-frames of the driver: UDP.
        const HOST_USO = 1 << virtio_net::VIRTIO_NET_F_HOST_USO;
        /// A frame to the driver may take several buffers.
        const MRG_RXBUF = 1 << virtio_net::VIRTIO_NET_F_MRG_RXBUF;
        /// Several pairs of queues. The front-end handles the control queue.
        const MQ = 1 << virtio_net::VIRTIO_NET_F_MQ;
        /// Descriptors may point to tables of descriptors.
        const INDIRECT_DESC = 1 << virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
        /// Driver and device request notifications by index.
        const EVENT_IDX = 1 << virtio_ring::VIRTIO_RING_F_EVENT_IDX;
        /// The device of virtio 1.0 and later.
        const VERSION_1 = 1 << virtio_config::VIRTIO_F_VERSION_1;
        /// The back-end logs the pages that it writes to: the guest is being migrated.
        const LOG_ALL = VhostUserVirtioFeatures::LOG_ALL.bits();
        /// The vhost-user protocol has its own features.
        const PROTOCOL_FEATURES = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
    }
}

/// Features of the vhost-user protocol. The transfer of the device's state is not offered: only sockets have state.
pub(super) fn protocol_features() -> VhostUserProtocolFeatures {
    VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::LOG_SHMFD
        | VhostUserProtocolFeatures::RARP
        | VhostUserProtocolFeatures::REPLY_ACK
}

impl Features {
    /// Whether the driver accepts a frame (IPv6 or not) with this offload work that is not done yet.
    pub(super) fn takes(self, offload: &Offload, ipv6: bool) -> bool {
        let mut needed = Self::empty();
        if offload.checksum.is_some() {
            needed |= Self::GUEST_CSUM;
        }
        if let Some(segmentation) = offload.segmentation {
            needed |= match segmentation.kind {
                SegmentKind::Tcp4 => Self::GUEST_TSO4,
                SegmentKind::Tcp6 => Self::GUEST_TSO6,
                SegmentKind::Udp if ipv6 => Self::GUEST_USO6,
                SegmentKind::Udp => Self::GUEST_USO4,
            };
            if segmentation.ecn {
                needed |= Self::GUEST_ECN;
            }
        }
        self.contains(needed)
    }
}

#[cfg(test)]
mod tests {
    use wire::offload::{PartialChecksum, Segmentation};

    use super::*;

    #[test]
    fn a_frame_needs_what_it_leaves_undone() {
        let open =
            Offload { checksum: Some(PartialChecksum { start: 34, offset: 16 }), ..Offload::default() };
        assert!(Features::empty().takes(&Offload::default(), false));
        assert!(!Features::empty().takes(&open, false));
        assert!(Features::GUEST_CSUM.takes(&open, false));
        let segmentation = |kind, ecn| Some(Segmentation { kind, size: 1460, ecn });
        let tcp = Offload { segmentation: segmentation(SegmentKind::Tcp4, false), ..open };
        assert!(!(Features::GUEST_CSUM | Features::GUEST_TSO6).takes(&tcp, false));
        assert!((Features::GUEST_CSUM | Features::GUEST_TSO4).takes(&tcp, false));
        let ecn = Offload { segmentation: segmentation(SegmentKind::Tcp4, true), ..open };
        assert!(!(Features::GUEST_CSUM | Features::GUEST_TSO4).takes(&ecn, false));
        let udp = Offload { segmentation: segmentation(SegmentKind::Udp, false), ..open };
        let four = Features::GUEST_CSUM | Features::GUEST_USO4;
        assert!(four.takes(&udp, false) && !four.takes(&udp, true));
    }
}
