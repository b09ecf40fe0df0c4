//! What is in use in a network namespace: ports that somebody listens on or is bound to (behaviour §8.4).
//!
//! The kernel lists just those over netlink, typed; where it can't (the module of a protocol is missing, or a filter of
//! system calls is in the way), the tables in `/proc/net` say the same at greater length.

mod diag;
mod filter;
mod proc;

use std::net::IpAddr;

use engine::forward::Protocol;
use engine::forward::scan::{InUse, PortSet};

use diag::Diag;
use proc::Proc;

/// Looks at one namespace, again and again.
#[derive(Debug)]
pub(crate) struct Scanner {
    tcp: Option<Source>,
    udp: Option<Source>,
    in_use: InUse,
    next: PortSet,
    /// Nothing of a protocol whose set is empty.
    relevant: InUse,
}

#[derive(Debug)]
enum Source {
    Diag(Diag),
    Proc(Proc),
}

impl Scanner {
    /// Opens what is needed to look at the namespace of the calling thread. What can't be looked at is told, and counts
    /// as not in use. Nothing is looked for before [`Scanner::look_for`].
    pub(crate) fn open() -> Self {
        Self {
            tcp: Source::open(Protocol::Tcp),
            udp: Source::open(Protocol::Udp),
            in_use: InUse::default(),
            next: PortSet::default(),
            relevant: InUse::default(),
        }
    }

    /// From now on, looks for these ports.
    pub(crate) fn look_for(&mut self, relevant: InUse) {
        for (source, ports) in [(&mut self.tcp, &relevant.tcp), (&mut self.udp, &relevant.udp)] {
            if let Some(Source::Diag(diag)) = source {
                diag.look_for(ports);
            }
        }
        self.relevant = relevant;
    }

    /// Ports in use when they were last looked at.
    pub(crate) fn in_use(&self) -> &InUse {
        &self.in_use
    }

    /// Whether a port that it looks for has come into use at `address` since the last scan. False where the kernel can't
    /// be asked about a single port.
    pub(crate) fn has_opened(&mut self, address: IpAddr, port: u16) -> bool {
        for (protocol, source) in [(Protocol::Tcp, &mut self.tcp), (Protocol::Udp, &mut self.udp)] {
            let Some(Source::Diag(diag)) = source else { continue };
            if !self.relevant.of(protocol).contains(port) || self.in_use.of(protocol).contains(port) {
                continue;
            }
            match diag.holds(address, port, &mut self.next) {
                Ok(true) => return true,
                Ok(false) => {}
                Err(error) => log::debug!("can't ask about {protocol} port {port}: {error}"),
            }
        }
        false
    }

    /// Looks again. True if something has changed of what it looks for. What can't be read this time stays as it was.
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
                Err(error) => log::debug!("can't look for {protocol} ports in use: {error}"),
            }
        }
        changed
    }
}

impl Source {
    fn open(protocol: Protocol) -> Option<Self> {
        let diag = Diag::open(protocol).and_then(|mut diag| {
            // Just to see whether it works.
            diag.look_for(&PortSet::default());
            diag.read(&mut PortSet::default())?;
            Ok(diag)
        });
        let error = match diag {
            Ok(diag) => return Some(Self::Diag(diag)),
            Err(error) => error,
        };
        log::debug!("no {protocol} socket diagnosis: {error}; /proc/net instead");
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
