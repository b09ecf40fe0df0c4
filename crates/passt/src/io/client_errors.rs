//! ICMP errors for clients of the bypass in the guest's namespace (docs/guard.md).
//!
//! The sockets are opened at the start in the guest's namespace, where the process has all rights then. They are for
//! sending only, and send nothing but what a process of the guest could send as well.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::io;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, ipproto, sendto, socket_with, sockopt};

/// The sockets that send errors, one for each family. A family without a socket sends no errors.
#[derive(Debug, Default)]
pub(crate) struct ClientErrors {
    v4: Option<OwnedFd>,
    v6: Option<OwnedFd>,
}

impl ClientErrors {
    /// Opens the sockets in the network namespace of the calling thread. If the kernel refuses a socket, refusals of
    /// this family are silent, and this is logged.
    pub(crate) fn open() -> Self {
        let [v4, v6] =
            [(AddressFamily::INET, "IPv4"), (AddressFamily::INET6, "IPv6")].map(|(family, name)| {
                open(family)
                    .inspect_err(|error| {
                        log::info!(
                            "Refused {name} datagrams that bypass the link get no ICMP error: {error}"
                        );
                    })
                    .ok()
            });
        Self { v4, v6 }
    }

    /// Sends a whole IP packet to `client`. If this fails, the packet is lost.
    pub(crate) fn send(&self, client: IpAddr, packet: &[u8]) {
        let socket = if client.is_ipv4() { &self.v4 } else { &self.v6 };
        if let Some(socket) = socket {
            let to = SocketAddr::new(client, 0);
            if let Err(error) = sendto(socket, packet, SendFlags::DONTWAIT, &to) {
                log::debug!("can't send an ICMP error to {client}: {error}");
            }
        }
    }
}

/// A socket of the protocol `RAW` sends packets with their IP header, and receives nothing but packets of the unused
/// protocol 255. These are never read, so its buffer is as small as possible.
fn open(family: AddressFamily) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::RAW, flags, Some(ipproto::RAW))?;
    sockopt::set_socket_recv_buffer_size(&socket, 0)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use crate::isolated::isolated;

    /// An error with this quote ends the wait of a connected socket.
    #[test]
    fn a_connected_socket_gets_the_error() {
        isolated(|| {
            let errors = ClientErrors::open();
            let client = UdpSocket::bind("127.0.0.1:0").unwrap();
            client.connect("127.0.0.1:7").unwrap();
            let port = client.local_addr().unwrap().port().to_be_bytes();
            let ip =
                |protocol, len| [0x45, 0, 0, len, 0, 0, 0, 0, 64, protocol, 0, 0, 127, 0, 0, 1, 127, 0, 0, 1];
            let quote = [&ip(17, 28)[..], &port, &[0, 7, 0, 8, 0, 0]].concat();
            let mut message = [&[3, 13, 0, 0, 0, 0, 0, 0][..], &quote].concat();
            let sum = wire::checksum::Sum::new().bytes(&message).finish().to_be_bytes();
            message[2..4].copy_from_slice(&sum);
            errors.send("127.0.0.1".parse().unwrap(), &[&ip(1, 56)[..], &message].concat());
            let error = client.recv(&mut [0]).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(io::Errno::HOSTUNREACH.raw_os_error()));
        });
    }
}
