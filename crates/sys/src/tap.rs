//! TUN/TAP devices: creation, virtio-net headers, offload flags.
//!
//! A tap device belongs to the network namespace of the thread that creates it. Its descriptor can be used from any
//! namespace.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use bitflags::bitflags;

bitflags! {
    /// Offloads of a tap device: work that one end leaves to the other. All bits require [`Offloads::VNET_HDR`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Offloads: u32 {
        /// A virtio-net header of [`VNET_HDR_LEN`] bytes, little-endian, comes before every frame.
        const VNET_HDR = 1 << 16;
        /// Frames may have a partial checksum.
        const CSUM = libc::TUN_F_CSUM;
        /// TCP over IPv4 super-frames.
        const TSO4 = libc::TUN_F_TSO4;
        /// TCP over IPv6 super-frames.
        const TSO6 = libc::TUN_F_TSO6;
        /// TCP super-frames with ECN bits set.
        const TSO_ECN = libc::TUN_F_TSO_ECN;
        /// UDP super-frames over IPv4 and IPv6 (Linux 6.2; the kernel accepts only both together).
        const USO = libc::TUN_F_USO4 | libc::TUN_F_USO6;
    }
}

/// Length of the virtio-net header before every frame, in bytes: the layout of virtio 1.0, with `num_buffers`.
pub const VNET_HDR_LEN: usize = 12;

/// A tap device that was created.
#[derive(Debug)]
pub struct TapDevice {
    /// The queue: non-blocking, closed on exec. The kernel removes the device with its last descriptor, unless it was
    /// [left to its namespace](Self::leave_to_namespace).
    pub fd: OwnedFd,
    /// The device's name: the requested name, or the name that the kernel made from a pattern.
    pub name: String,
    /// The requested offloads that the kernel granted.
    pub offloads: Offloads,
}

/// Why a tap could not be created.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// `/dev/net/tun` cannot be opened: the module or the permission is missing.
    #[error(
        "can't open /dev/net/tun: {0} (the device node must exist and be readable and writable by this user)"
    )]
    Open(io::Error),
    /// The name is empty, longer than 15 bytes, or contains a zero byte.
    #[error("'{0}' is no interface name: 1 to 15 characters are allowed")]
    Name(String),
    /// The kernel refused the device: the name is in use or malformed, or CAP_NET_ADMIN over the namespace is missing.
    #[error("can't create tap device '{name}': {reason}")]
    Create {
        /// The requested name.
        name: String,
        /// The kernel's error.
        reason: io::Error,
    },
}

impl TapDevice {
    /// Creates a tap device in the network namespace of the calling thread. The device has the `wanted` offloads that
    /// the kernel grants (behaviour §9.1). The kernel replaces a `%d` in `name` with a free number.
    ///
    /// # Errors
    /// [`TapError`]. No device remains.
    pub fn create(name: &str, wanted: Offloads) -> Result<Self, TapError> {
        if wanted.contains(Offloads::VNET_HDR) {
            let (fd, name) = attach(name, libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR)?;
            if set_vnet_layout(&fd).is_ok() {
                let offloads = negotiate(wanted, |offloads| set_offloads(&fd, offloads).is_ok());
                return Ok(Self { fd, name, offloads });
            }
            // Dropping `fd` removes the device, which frees its name for a device without headers.
        }
        let (fd, name) = attach(name, libc::IFF_TAP | libc::IFF_NO_PI)?;
        Ok(Self { fd, name, offloads: Offloads::empty() })
    }

    /// Makes the device remain when its last descriptor is closed, without a carrier, until its network namespace ends.
    /// Then closing the descriptor need not wait until all processors have seen that the device is gone (10 to 30 ms).
    ///
    /// # Errors
    /// Kernels accept this for every device that they have created.
    pub fn leave_to_namespace(&self) -> io::Result<()> {
        let persist: libc::c_ulong = 1;
        // SAFETY: the argument of TUNSETPERSIST is the value itself; no memory is passed.
        let result = unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::TUNSETPERSIST, persist) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// Opens a queue and creates its device with the `flags` of TUNSETIFF.
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
        return Err(TapError::Create { name: name.into(), reason: io::Error::last_os_error() });
    }
    let given: Vec<u8> = request.ifr_name.iter().map(|&c| c as u8).take_while(|&c| c != 0).collect();
    Ok((fd, String::from_utf8_lossy(&given).into_owned()))
}

/// Sets the virtio-net header to [`VNET_HDR_LEN`] bytes, little-endian.
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

/// Finds the offloads of `wanted` that the kernel grants. A current kernel grants all of them in one request. Otherwise
/// they are requested one by one, each together with those already granted, since a request replaces the previous one.
/// A refused request changes nothing.
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
    use std::process::Command;
    use std::{env, thread};

    use super::*;

    #[test]
    fn all_offloads_are_requested_at_once() {
        let mut asked = Vec::new();
        let got = negotiate(Offloads::all(), |o| {
            asked.push(o);
            true
        });
        assert_eq!(got, Offloads::all());
        assert_eq!(asked, [Offloads::all() - Offloads::VNET_HDR]);
    }

    /// Kernels before 6.2 lack USO, and some kernels lack ECN. A refused feature does not disable other features
    /// (behaviour §9.1).
    #[test]
    fn a_refused_feature_costs_only_itself() {
        for refused in [Offloads::USO, Offloads::TSO_ECN, Offloads::TSO6, Offloads::TSO4] {
            let got = negotiate(Offloads::all(), |o| !o.intersects(refused));
            assert_eq!(got, Offloads::all() - refused);
        }
        assert_eq!(negotiate(Offloads::all(), |_| false), Offloads::VNET_HDR);
    }

    #[test]
    fn only_wanted_offloads_are_requested() {
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

    /// The test runs on a thread with its own network namespace, so that it does not change the network of the machine. An ordinary
    /// user needs a user namespace for that. A process with several threads can't enter one, so the test starts again in it.
    #[test]
    fn a_tap_is_created_with_and_without_headers() {
        const IN_USER_NAMESPACE: &str = "SYS_TEST_IN_USER_NAMESPACE";
        let thread = thread::spawn(|| crate::netns::enter_new().map(|()| create_and_leave()));
        let Err(error) = thread.join().unwrap() else { return };
        assert!(env::var_os(IN_USER_NAMESPACE).is_none(), "as root of a user namespace: {error}");
        let unshare = || {
            let mut unshare = Command::new("unshare");
            unshare.args(["--user", "--map-root-user", "--"]);
            unshare
        };
        if !unshare().arg("true").status().is_ok_and(|status| status.success()) {
            assert!(env::var_os("CI").is_none(), "would be skipped, but CI is set: {error}");
            eprintln!("SKIPPED: no right to make a network namespace or a user namespace: {error}");
            return;
        }
        let mut again = unshare();
        again.arg(env::current_exe().unwrap()).env(IN_USER_NAMESPACE, "1");
        again.args(["--exact", "tap::tests::a_tap_is_created_with_and_without_headers", "--nocapture"]);
        let output = again.output().unwrap();
        let passed = String::from_utf8_lossy(&output.stdout).contains("1 passed");
        assert!(output.status.success() && passed, "{output:?}");
    }

    fn create_and_leave() {
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
        // The message has the cause. With a source, callers that print the chain would print the cause twice.
        assert!(std::error::Error::source(&taken).is_none(), "{taken}");
        // Without a queue, a device that was left to the namespace can be opened again, and others are gone.
        tap.leave_to_namespace().unwrap();
        drop((tap, plain));
        let exists = |name: &str| std::path::Path::new("/proc/thread-self/net/dev_snmp6").join(name).exists();
        assert_eq!((exists("fifteen-letters"), exists("plain0")), (true, false));
    }
}
