//! The tables of sockets in `/proc/net` (proc_pid_net(5)).

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek};

use engine::forward::Protocol;
use engine::forward::scan::PortSet;

/// Maximum length of a line, in bytes. The kernel's lines have less than 200.
const LONGEST: u64 = 4096;

/// The tables of a protocol: one table for each family.
#[derive(Debug)]
pub(super) struct Proc {
    files: Vec<File>,
    state: &'static str,
    text: String,
}

impl Proc {
    /// Opens the tables of the calling thread's namespace.
    ///
    /// # Errors
    /// None of the tables can be opened.
    pub(super) fn open(protocol: Protocol) -> io::Result<Self> {
        // The state in hexadecimal. TCP: TCP_LISTEN. UDP: TCP_CLOSE, the state of a socket that is bound and has no
        // peer.
        let (names, state) = match protocol {
            Protocol::Tcp => (["tcp", "tcp6"], "0A"),
            Protocol::Udp => (["udp", "udp6"], "07"),
        };
        // Not /proc/self: the process's first thread may be in another namespace.
        let open = |name: &str| File::open(format!("/proc/thread-self/net/{name}"));
        let [v4, v6] = names.map(open);
        // A host may lack one family, but not both.
        let files = match (v4, v6) {
            (Err(error), Err(_)) => return Err(error),
            (v4, v6) => v4.into_iter().chain(v6).collect(),
        };
        Ok(Self { files, state, text: String::new() })
    }

    /// Adds the ports in use to `ports`.
    ///
    /// # Errors
    /// A table can't be read.
    pub(super) fn read(&mut self, ports: &mut PortSet) -> io::Result<()> {
        for file in &mut self.files {
            file.rewind()?;
            // The guest decides how long the table is, so it is read line by line.
            let mut lines = BufReader::new(file);
            loop {
                self.text.clear();
                if lines.by_ref().take(LONGEST).read_line(&mut self.text)? == 0 {
                    break;
                }
                port(&self.text, self.state).into_iter().for_each(|port| ports.insert(port));
            }
        }
        Ok(())
    }
}

/// The local port in a line, if the line's socket is in `state`: `  0: 0100007F:0016 00000000:0000 0A ...`.
fn port(line: &str, state: &str) -> Option<u16> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (_, port) = fields.next()?.rsplit_once(':')?;
    if fields.nth(1)? != state {
        return None;
    }
    u16::from_str_radix(port, 16).ok().filter(|port| *port != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let heading = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt";
        let v4 = "   0: 0100007F:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0";
        let v6 = "  12: 00000000000000000000000000000000:FFFF 00000000000000000000000000000000:0000 07 0000";
        assert_eq!(port(heading, "0A"), None);
        assert_eq!((port(v4, "0A"), port(v4, "07")), (Some(22), None));
        assert_eq!(port(v6, "07"), Some(65535));
        for odd in ["", ":", "0: 16", "0: x:y z 0A", "0: A:10000 B:0 0A", "0: A:0 B:0 0A"] {
            assert_eq!(port(odd, "0A"), None, "{odd}");
        }
    }
}
