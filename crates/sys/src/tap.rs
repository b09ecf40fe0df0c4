//! TUN/TAP devices: creation, virtio-net headers, offload flags.
//!
//! A tap belongs to the network namespace of the thread that creates it; the descriptor works from any other.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use bitflags::bitflags;

bitflags! {
    /// What the two ends of a tap need not do themselves. Without [`Offloads::VNET_HDR`] there is no other bit.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Offloads: u32 {
        /// Every frame is preceded by a virtio-net header of [`VNET_HDR_LEN`] bytes, little endian.
        const VNET_HDR = 1 << 16;
        /// Frames may carry a checksum that is still to be completed.
        const CSUM = libc::TUN_F_CSUM;
        /// TCP over IPv4 super-frames.
        const TSO4 = libc::TUN_F_TSO4;
        /// TCP over IPv6 super-frames.
        const TSO6 = libc::TUN_F_TSO6;
        /// TCP super-frames with ECN bits set.
        const TSO_ECN = libc::TUN_F_TSO_ECN;
        /// UDP super-frames, both families (Linux 6.2; the kernel takes the pair only).
        const USO = libc::TUN_F_USO4 | libc::TUN_F_USO6;
    }
}

/// Length in bytes of the virtio-net header in front of every frame (the modern layout, with `num_buffers`).
pub const VNET_HDR_LEN: usize = 12;

/// A tap device, as created.
#[derive(Debug)]
pub struct TapDevice {
    /// The queue: non-blocking, closed on exec. The device disappears with its last descriptor.
    pub fd: OwnedFd,
    /// The name the kernel gave it: as asked for, or a free one of the pattern.
    pub name: String,
    /// What the kernel granted of the offloads asked for.
    pub offloads: Offloads,
}

/// Why a tap could not be created.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// `/dev/net/tun` can't be opened: module missing, or no permission.
    #[error(
        "can't open /dev/net/tun: {0} (the device node must exist and be readable and writable by this user)"
    )]
    Open(#[source] io::Error),
    /// The name is empty, longer than 15 bytes, or has a zero byte in it.
    #[error("'{0}' is no interface name: 1 to 15 characters are allowed")]
    Name(String),
    /// The kernel refused the device: name taken or malformed, or no CAP_NET_ADMIN over the namespace.
    #[error("can't create tap device '{name}': {source}")]
    Create {
        /// The name asked for.
        name: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

impl TapDevice {
    /// Creates a tap named `name` (a `%d` in it is replaced by a free number) in the network namespace of the
    /// calling thread, with as many of the `wanted` offloads as the kernel grants (behaviour §9.1).
    pub fn create(name: &str, wanted: Offloads) -> Result<Self, TapError> {
        if wanted.contains(Offloads::VNET_HDR) {
            let (fd, name) = attach(name, libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR)?;
            if set_vnet_layout(&fd).is_ok() {
                let offloads = negotiate(wanted, |offloads| set_offloads(&fd, offloads).is_ok());
                return Ok(Self { fd, name, offloads });
            }
            // Dropping `fd` removes the device, so that its name is free for the plain one.
        }
        let (fd, name) = attach(name, libc::IFF_TAP | libc::IFF_NO_PI)?;
        Ok(Self { fd, name, offloads: Offloads::empty() })
    }
}

/// Opens a queue and creates its device with `flags` of `TUNSETIFF`.
fn attach(name: &str, flags: libc::c_int) -> Result<(OwnedFd, String), TapError> {
    // SAFETY: `ifreq` is plain data, for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let room = request.ifr_name.len() - 1;
    if name.is_empty() || name.len() > room || name.contains('\0') {
        return Err(TapError::Name(name.into()));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = flags as libc::c_short;

    let fd: OwnedFd = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")
        .map_err(TapError::Open)?
        .into();
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which `request` is.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result < 0 {
        return Err(TapError::Create { name: name.into(), source: io::Error::last_os_error() });
    }
    let given: Vec<u8> = request.ifr_name.iter().map(|&c| c as u8).take_while(|&c| c != 0).collect();
    Ok((fd, String::from_utf8_lossy(&given).into_owned()))
}

/// Chooses the header layout of [`VNET_HDR_LEN`] bytes in little endian.
fn set_vnet_layout(fd: &OwnedFd) -> io::Result<()> {
    let len = VNET_HDR_LEN as libc::c_int;
    let little_endian: libc::c_int = 1;
    // SAFETY: both requests read one int through the pointer, which lives until the call returns.
    let results = unsafe {
        [
            libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const len),
            libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETLE, &raw const little_endian),
        ]
    };
    if results.iter().any(|&r| r < 0) { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Finds what is granted of `wanted`: all at once on a current kernel, else one by one, each keeping those
/// already granted. (A refused request leaves the device as it was.)
fn negotiate(wanted: Offloads, mut grant: impl FnMut(Offloads) -> bool) -> Offloads {
    let features = wanted - Offloads::VNET_HDR;
    if features.is_empty() || grant(features) {
        return features | Offloads::VNET_HDR;
    }
    let mut granted = Offloads::empty();
    for feature in [Offloads::CSUM, Offloads::TSO4, Offloads::TSO6, Offloads::TSO_ECN, Offloads::USO] {
        if features.contains(feature) && grant(granted | feature) {
            granted |= feature;
        }
    }
    granted | Offloads::VNET_HDR
}

fn set_offloads(fd: &OwnedFd, offloads: Offloads) -> io::Result<()> {
    let bits = libc::c_ulong::from(offloads.bits());
    // SAFETY: the argument of TUNSETOFFLOAD is the value itself; no memory is passed.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, bits) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_wanted_is_asked_for_at_once() {
        let mut asked = Vec::new();
        let got = negotiate(Offloads::all(), |o| {
            asked.push(o);
            true
        });
        assert_eq!(got, Offloads::all());
        assert_eq!(asked, [Offloads::all() - Offloads::VNET_HDR]);
    }

    /// A kernel before 6.2 knows no USO, one without ECN neither: each falls back by itself (behaviour §9.1).
    #[test]
    fn a_refused_feature_costs_only_itself() {
        for refused in [Offloads::USO, Offloads::TSO_ECN, Offloads::TSO6, Offloads::TSO4] {
            let got = negotiate(Offloads::all(), |o| !o.intersects(refused));
            assert_eq!(got, Offloads::all() - refused);
        }
        assert_eq!(negotiate(Offloads::all(), |_| false), Offloads::VNET_HDR);
    }

    #[test]
    fn only_what_is_wanted_is_asked_for() {
        let wanted = Offloads::VNET_HDR | Offloads::CSUM | Offloads::TSO4;
        let got = negotiate(wanted, |o| wanted.contains(o));
        assert_eq!(got, wanted);
    }

    /// a name of 15 characters is the longest.
    #[test]
    fn a_name_too_long_is_refused_before_the_kernel_sees_it_r15() {
        for bad in ["", "sixteen-letters-", "a\0b"] {
            assert!(matches!(TapDevice::create(bad, Offloads::all()), Err(TapError::Name(_))), "{bad:?}");
        }
    }

    /// On a thread with a network namespace of its own, so that the machine's is left alone.
    #[test]
    fn a_tap_is_created_with_and_without_headers() {
        std::thread::spawn(|| {
            if let Err(error) = crate::netns::enter_new() {
                eprintln!("SKIPPED: no right to make a network namespace: {error}");
                return;
            }
            let plain = TapDevice::create("plain%d", Offloads::empty()).unwrap();
            assert_eq!((plain.name.as_str(), plain.offloads), ("plain0", Offloads::empty()));
            let tap = TapDevice::create("fifteen-letters", Offloads::all()).unwrap();
            assert_eq!(tap.name, "fifteen-letters");
            assert!(
                tap.offloads.contains(Offloads::VNET_HDR | Offloads::CSUM | Offloads::TSO4),
                "{:?}",
                tap.offloads
            );
            let taken = TapDevice::create("fifteen-letters", Offloads::all()).unwrap_err();
            assert!(matches!(taken, TapError::Create { .. }), "{taken}");
        })
        .join()
        .unwrap();
    }
}
