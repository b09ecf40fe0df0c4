//! The ports in use in a network namespace: TCP ports with a listening socket, and UDP ports with a bound socket
//! (behaviour §8.4).
//!
//! Over netlink (sock_diag), the kernel lists exactly these ports. Netlink may not be available: a kernel module may be
//! missing, or a container's seccomp filter may forbid it. Then the tables in `/proc/net` are read: they have the same
//! information, but need more parsing.

mod diag;
mod filter;
mod proc;

use std::net::IpAddr;

use engine::forward::Protocol;
use engine::forward::scan::{InUse, PortSet};

use crate::host::missing;
use diag::Diag;
use proc::Proc;

/// Scans one namespace repeatedly.
#[derive(Debug)]
pub(crate) struct Scanner {
    tcp: Option<Source>,
    udp: Option<Source>,
    in_use: InUse,
    /// The result of the present scan. The scan is not complete yet.
    next: PortSet,
    /// The ports to look for. A protocol with an empty set is not scanned.
    relevant: InUse,
}

#[derive(Debug)]
enum Source {
    Diag(Diag),
    Proc(Proc),
}

impl Scanner {
    /// Opens a scanner for the namespace of the calling thread. If a protocol can't be scanned, this is logged, and the
    /// ports of the protocol count as not in use. The scanner scans nothing before [`Scanner::look_for`].
    pub(crate) fn open() -> Self {
        Self {
            tcp: Source::open(Protocol::Tcp),
            udp: Source::open(Protocol::Udp),
            in_use: InUse::default(),
            next: PortSet::default(),
            relevant: InUse::default(),
        }
    }

    /// Sets the ports to look for.
    pub(crate) fn look_for(&mut self, relevant: InUse) {
        for (source, ports) in [(&mut self.tcp, &relevant.tcp), (&mut self.udp, &relevant.udp)] {
            if let Some(Source::Diag(diag)) = source {
                diag.look_for(ports);
            }
        }
        self.relevant = relevant;
    }

    /// The ports in use at the last scan.
    pub(crate) fn in_use(&self) -> &InUse {
        &self.in_use
    }

    /// Whether one of the ports to look for has come into use at `address` since the last scan. Always false with
    /// `/proc/net`: these tables do not support a query for a single port.
    pub(crate) fn has_opened(&mut self, address: IpAddr, port: u16) -> bool {
        for (protocol, source) in [(Protocol::Tcp, &mut self.tcp), (Protocol::Udp, &mut self.udp)] {
            let Some(Source::Diag(diag)) = source else { continue };
            if !self.relevant.of(protocol).contains(port) || self.in_use.of(protocol).contains(port) {
                continue;
            }
            match diag.is_in_use(address, port, &mut self.next) {
                Ok(true) => return true,
                Ok(false) => {}
                Err(error) => log::debug!("can't check whether {protocol} port {port} is in use: {error}"),
            }
        }
        false
    }

    /// Scans again. Returns true if the ports in use have changed. After an error, the previous result is kept.
    pub(crate) fn scan(&mut self) -> bool {
        let mut changed = false;
        for (protocol, source) in [(Protocol::Tcp, &mut self.tcp), (Protocol::Udp, &mut self.udp)] {
            let Some(source) = source else { continue };
            self.next.clear();
            let relevant = self.relevant.of(protocol);
            let read = if relevant.is_empty() { Ok(()) } else { source.read(&mut self.next) };
            match read {
                Ok(()) => {
                    self.next.retain_common(relevant);
                    let present = self.in_use.of(protocol);
                    if *present != self.next {
                        std::mem::swap(present, &mut self.next);
                        changed = true;
                    }
                }
                Err(error) => log::debug!("can't scan for {protocol} ports in use: {error}"),
            }
        }
        changed
    }
}

impl Source {
    fn open(protocol: Protocol) -> Option<Self> {
        let diag = if missing::is_missing(missing::SOCK_DIAG) {
            Err(std::io::ErrorKind::Unsupported.into())
        } else {
            Diag::open(protocol)
        };
        let diag = diag.and_then(|mut diag| {
            // A first list shows whether the kernel supports sock_diag.
            diag.look_for(&PortSet::default());
            diag.read(&mut PortSet::default())?;
            Ok(diag)
        });
        let error = match diag {
            Ok(diag) => return Some(Self::Diag(diag)),
            Err(error) => error,
        };
        log::debug!("no sock_diag for {protocol}: {error}; using /proc/net");
        match Proc::open(protocol) {
            Ok(tables) => Some(Self::Proc(tables)),
            Err(error) => {
                log::warn!("Can't find {protocol} ports in use (\"auto\"): {error}");
                None
            }
        }
    }

    fn read(&mut self, ports: &mut PortSet) -> std::io::Result<()> {
        match self {
            Self::Diag(diag) => diag.read(ports),
            Self::Proc(tables) => tables.read(ports),
        }
    }
}

#[cfg(test)]
mod tests;
