//! TUN/TAP devices: creation, virtio-net headers, offload flags.
