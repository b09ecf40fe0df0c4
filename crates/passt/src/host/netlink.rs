//! A blocking rtnetlink socket, for dumps of any size and for batches of requests.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer,
    NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable, NlasIterator,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rustix::{
    io::Errno,
    net::{RecvFlags, sockopt},
};

use crate::errno::retry;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSG_HEADER_LEN: usize = 16;
/// Attribute of an acknowledgement that contains the error as text (`NLMSGERR_ATTR_MSG`).
const ACK_MESSAGE: u16 = 1;

/// Maximum time to wait for one datagram. The kernel answers while it handles the request, so this time expires only if
/// the kernel does not answer at all.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How many times a dump is tried if the list changes during the dump.
const DUMP_ATTEMPTS: usize = 8;
/// Size of the receive buffer, in octets. A datagram of the kernel has at most 32 KiB, unless it contains a single
/// message: one attribute of a message can have 64 KiB. Unused pages of the buffer take no memory.
const RECEIVE_BUFFER: usize = 256 << 10;
/// Maximum number of requests in a batch. The default receive buffer of a socket has room for refusals of all these
/// requests.
const BATCH_REQUESTS: usize = 64;
/// Maximum number of octets in a batch. A single, longer request is sent alone.
const BATCH_OCTETS: usize = 32 << 10;

/// The reason for the failure of an exchange with the kernel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket can't be opened or used.
    #[error("netlink socket: {0}")]
    Socket(io::Error),
    /// The kernel refused a dump.
    #[error("netlink: the kernel refuses to list {what}: {refusal}")]
    Dump {
        /// The kind of entries in the dump, for the message.
        what: &'static str,
        /// The answer.
        refusal: Refusal,
    },
    /// The kernel sent a datagram that is longer than the buffer.
    #[error("netlink: the kernel sent {length} octets at once")]
    Oversize {
        /// Length of the datagram, in octets.
        length: usize,
    },
    /// The kernel didn't answer.
    #[error("netlink: no answer from the kernel within {} s", TIMEOUT.as_secs())]
    Silent,
}

// The message contains the error, so the error is not a source, too: a chain would show it twice.
impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Socket(error)
    }
}

/// The reason for the kernel's refusal of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Error number.
    pub errno: Errno,
    /// The kernel's error text, if there is one.
    pub reason: Option<String>,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let error = io::Error::from(self.errno);
        match &self.reason {
            Some(reason) => write!(f, "{error}: {reason}"),
            None => write!(f, "{error}"),
        }
    }
}

/// A message for the kernel.
pub(crate) type Request = NetlinkMessage<RouteNetlinkMessage>;

/// Makes a request for a change, with `flags` (`NLM_F_CREATE` and similar flags).
pub(crate) fn request(message: RouteNetlinkMessage, flags: u16) -> Request {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message))
}

/// A socket in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// Opens a socket. This needs no privilege, but some requests do.
    pub(crate) fn open() -> Result<Self, Error> {
        let socket = Socket::new(NETLINK_ROUTE)?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(TIMEOUT))
            .map_err(io::Error::from)?;
        // Each option only makes answers shorter, stricter or clearer, so an option may be missing.
        for option in
            [socket.set_netlink_get_strict_chk(true), socket.set_cap_ack(true), socket.set_ext_ack(true)]
        {
            if let Err(error) = option {
                log::debug!("netlink socket option: {error}");
            }
        }
        Ok(Self { socket, sequence: 0, buffer: Vec::with_capacity(RECEIVE_BUFFER) })
    }

    /// Opens a socket that receives the messages of multicast groups (`RTNLGRP_*`). [`Netlink::drain`] reads them.
    pub(crate) fn subscribe(groups: &[u32]) -> Result<Self, Error> {
        let mut netlink = Self::open()?;
        // The kernel delivers multicast messages only to bound sockets.
        netlink.socket.bind_auto()?;
        for group in groups {
            netlink.socket.add_membership(*group)?;
        }
        Ok(netlink)
    }

    /// Calls `message` with the type and payload of every message that has arrived, without waiting. Returns false if
    /// messages are lost, because they did not fit into the receive buffer (ENOBUFS).
    #[must_use = "after a loss, the list must be read again"]
    pub(crate) fn drain(&mut self, mut message: impl FnMut(u16, &[u8])) -> bool {
        let mut complete = true;
        loop {
            self.buffer.clear();
            let received =
                retry(|| self.socket.recv(&mut self.buffer, RecvFlags::DONTWAIT.bits().cast_signed()));
            match received {
                Ok(_) => Messages(&self.buffer).for_each(|m| message(m.message_type(), m.payload())),
                Err(error) if error.raw_os_error() == Some(Errno::NOBUFS.raw_os_error()) => complete = false,
                Err(_) => return complete,
            }
        }
    }

    /// Returns all entries that the kernel lists in answer to `query`, parsed by `parse`. Entries for which `parse`
    /// returns `None` are skipped. If the list changes during the dump, the dump is repeated, at most [`DUMP_ATTEMPTS`]
    /// times.
    pub(crate) fn dump<Q: NetlinkSerializable + Clone, T>(
        &mut self,
        what: &'static str,
        query: Q,
        parse: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        let mut found = Vec::new();
        for _ in 0..DUMP_ATTEMPTS {
            found.clear();
            let mut header = NetlinkHeader::default();
            header.flags = NLM_F_REQUEST | NLM_F_DUMP;
            header.sequence_number = self.next_sequence();
            let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(query.clone()));
            message.finalize();
            let mut octets = vec![0; message.buffer_len()];
            message.serialize(&mut octets);
            self.send(&octets)?;
            let mut reply = DumpReply { what, sequence: self.sequence, intact: true };
            while !reply.take(self.receive()?, &parse, &mut found)? {}
            if reply.intact {
                return Ok(found);
            }
        }
        log::debug!("{what} changed during each dump: using the last list");
        Ok(found)
    }

    /// Sends all `requests`. Returns the results, in the order of the requests.
    pub(crate) fn perform(&mut self, requests: Vec<Request>) -> Result<Vec<Result<(), Refusal>>, Error> {
        let mut results = Vec::with_capacity(requests.len());
        let mut batch = Vec::new();
        let mut waiting = requests.into_iter().peekable();
        let mut count = 0;
        while let Some(mut request) = waiting.next() {
            let next_len = waiting.peek().map(NetlinkMessage::buffer_len);
            count += 1;
            let full = batch.len() + request.buffer_len() + next_len.unwrap_or(0) > BATCH_OCTETS;
            let last = count == BATCH_REQUESTS || full || next_len.is_none();
            request.header.sequence_number = self.next_sequence();
            if last {
                // The kernel always reports a refusal, but reports success only on request. An acknowledgement of the
                // last request is enough: the kernel handles requests in order.
                request.header.flags |= NLM_F_ACK;
            }
            request.finalize();
            let start = batch.len();
            batch.resize(start + request.buffer_len(), 0);
            request.serialize(&mut batch[start..]);
            if last {
                self.send(&batch)?;
                let mut reply = BatchReply { last: self.sequence, results: vec![Ok(()); count] };
                while !reply.take(self.receive()?) {}
                results.append(&mut reply.results);
                batch.clear();
                count = 0;
            }
        }
        Ok(results)
    }

    fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    fn send(&self, octets: &[u8]) -> Result<(), Error> {
        retry(|| self.socket.send_to(octets, &SocketAddr::new(0, 0), 0))?;
        Ok(())
    }

    /// Waits for one datagram.
    fn receive(&mut self) -> Result<&[u8], Error> {
        self.buffer.clear();
        match retry(|| self.socket.recv(&mut self.buffer, RecvFlags::TRUNC.bits().cast_signed())) {
            Ok(length) if length <= self.buffer.len() => Ok(&self.buffer),
            Ok(length) => Err(Error::Oversize { length }),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(Error::Silent),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The state of a dump while its datagrams arrive.
struct DumpReply {
    what: &'static str,
    sequence: u32,
    /// Whether the list is consistent. False if the list changed during the dump.
    intact: bool,
}

impl DumpReply {
    /// Adds the entries of a datagram to `found`. Returns true if the dump is complete.
    fn take<T>(
        &mut self,
        datagram: &[u8],
        parse: impl Fn(&[u8]) -> Option<T>,
        found: &mut Vec<T>,
    ) -> Result<bool, Error> {
        for message in Messages(datagram).filter(|message| message.sequence_number() == self.sequence) {
            self.intact &= message.flags() & NLM_F_DUMP_INTR == 0;
            match message.message_type() {
                NLMSG_DONE | NLMSG_ERROR => match refusal(&message) {
                    // The main table of a family does not exist before the family has its first route.
                    Some(refusal) if refusal.errno != Errno::NOENT => {
                        return Err(Error::Dump { what: self.what, refusal });
                    }
                    _ => return Ok(true),
                },
                _ => found.extend(parse(message.payload())),
            }
        }
        Ok(false)
    }
}

/// The results of a batch of requests. The kernel reports all refusals, but reports success only for the last request.
struct BatchReply {
    /// Sequence number of the last request.
    last: u32,
    results: Vec<Result<(), Refusal>>,
}

impl BatchReply {
    /// Stores the results in a datagram. Returns true if the datagram has the result of the last request.
    fn take(&mut self, datagram: &[u8]) -> bool {
        for message in Messages(datagram).filter(|message| message.message_type() == NLMSG_ERROR) {
            let age = self.last.wrapping_sub(message.sequence_number()) as usize;
            let Some(result) = self.results.iter_mut().rev().nth(age) else { continue };
            if let Some(refusal) = refusal(&message) {
                *result = Err(refusal);
            }
            if age == 0 {
                return true;
            }
        }
        false
    }
}

/// The error in an acknowledgement or at the end of a dump. `None`: success.
fn refusal(message: &NetlinkBuffer<&[u8]>) -> Option<Refusal> {
    let payload = message.payload();
    let code = payload.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
    if code >= 0 {
        return None;
    }
    // The attributes follow the error number and, in an acknowledgement, the request or its header.
    let mut skipped = 4;
    if message.message_type() == NLMSG_ERROR {
        let request_len = payload[4..].first_chunk().map_or(0, |len| u32::from_ne_bytes(*len)) as usize;
        let kept = if message.flags() & NLM_F_CAPPED != 0 { NLMSG_HEADER_LEN } else { request_len };
        skipped += kept.next_multiple_of(4);
    }
    let attributes = if message.flags() & NLM_F_ACK_TLVS != 0 { payload.get(skipped..) } else { None };
    let reason = NlasIterator::new(attributes.unwrap_or_default())
        .map_while(Result::ok)
        .find(|attribute| attribute.kind() == ACK_MESSAGE)
        .map(|text| String::from_utf8_lossy(text.value()).trim_end_matches('\0').to_owned());
    Some(Refusal { errno: Errno::from_raw_os_error(code.saturating_neg()), reason })
}

/// Iterates over the messages of a datagram. Ends at the first incomplete message.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = NetlinkBuffer<&'a [u8]>;

    fn next(&mut self) -> Option<Self::Item> {
        let message = NetlinkBuffer::new_checked(self.0).ok()?;
        let length = (message.length() as usize).next_multiple_of(4);
        let whole = NetlinkBuffer::new(&self.0[..message.length() as usize]);
        self.0 = self.0.get(length..).unwrap_or_default();
        Some(whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(sequence: u32, kind: u16, flags: u16, payload: &[u8]) -> Vec<u8> {
        let mut octets = message(kind, flags, payload);
        NetlinkBuffer::new(&mut octets).set_sequence_number(sequence);
        octets
    }

    fn message(kind: u16, flags: u16, payload: &[u8]) -> Vec<u8> {
        let mut octets = vec![0; NLMSG_HEADER_LEN];
        octets.extend(payload);
        let length = octets.len() as u32;
        let mut header = NetlinkBuffer::new(&mut octets);
        header.set_length(length);
        header.set_message_type(kind);
        header.set_flags(flags);
        octets
    }

    #[test]
    fn messages_of_a_datagram_end_at_an_incomplete_one() {
        let mut datagram = message(7, 0, b"abc");
        datagram.push(0);
        datagram.extend(message(8, 0, b"defg"));
        datagram.extend(&message(9, 0, b"cut off")[..20]);
        let seen: Vec<_> = Messages(&datagram).map(|m| (m.message_type(), m.payload().to_vec())).collect();
        assert_eq!(seen, [(7, b"abc".to_vec()), (8, b"defg".to_vec())]);
        assert_eq!(Messages(&[]).count(), 0);
        assert_eq!(Messages(&[0; 64]).count(), 0, "a length of 0 ends the iteration");
    }

    #[test]
    fn refusals_have_the_kernels_error_text() {
        let attribute = [&[8, 0, 1, 0], &b"why\0"[..]].concat();
        let capped = [&(-22i32).to_ne_bytes()[..], &[0; NLMSG_HEADER_LEN], &attribute].concat();
        let octets = message(NLMSG_ERROR, NLM_F_CAPPED | NLM_F_ACK_TLVS, &capped);
        let parsed = refusal(&NetlinkBuffer::new(&octets[..])).unwrap();
        assert_eq!(parsed, Refusal { errno: Errno::INVAL, reason: Some("why".into()) });
        assert_eq!(parsed.to_string(), "Invalid argument (os error 22): why");

        let octets = message(NLMSG_DONE, NLM_F_ACK_TLVS, &[&(-22i32).to_ne_bytes()[..], &attribute].concat());
        assert_eq!(refusal(&NetlinkBuffer::new(&octets[..])), Some(parsed));

        for short in [&[][..], &[1], &0i32.to_ne_bytes()] {
            let octets = message(NLMSG_ERROR, NLM_F_ACK_TLVS, short);
            assert_eq!(refusal(&NetlinkBuffer::new(&octets[..])), None);
        }
        let octets = message(NLMSG_ERROR, NLM_F_ACK_TLVS, &(-1i32).to_ne_bytes());
        assert_eq!(
            refusal(&NetlinkBuffer::new(&octets[..])),
            Some(Refusal { errno: Errno::PERM, reason: None })
        );
    }

    const ROUTE: u16 = 24;

    /// the end of a dump may come in a separate datagram, or after other messages in the same datagram.
    #[test]
    fn dump_ends_with_a_datagram_r28() {
        let last = [numbered(5, ROUTE, 0, b"bbbb"), numbered(5, NLMSG_DONE, 0, &[0; 4])];
        for datagrams in [last.to_vec(), vec![last.concat()]] {
            let mut reply = DumpReply { what: "routes", sequence: 5, intact: true };
            let mut found = Vec::new();
            let parse = |octets: &[u8]| Some(octets.to_vec());
            let first = [numbered(4, ROUTE, 0, b"old!"), numbered(5, ROUTE, 0, b"aaaa")].concat();
            assert!(!reply.take(&first, parse, &mut found).unwrap());
            let ended: Vec<bool> =
                datagrams.iter().map(|d| reply.take(d, parse, &mut found).unwrap()).collect();
            assert_eq!(ended.iter().filter(|ended| **ended).count(), 1);
            assert_eq!(ended.last(), Some(&true));
            assert_eq!(found, [b"aaaa", b"bbbb"], "and nothing of an earlier dump");
            assert!(reply.intact);
        }
    }

    #[test]
    fn dumps_that_are_interrupted_or_refused() {
        let reply = |datagram: &[u8]| {
            let mut reply = DumpReply { what: "routes", sequence: 5, intact: true };
            reply.take(datagram, |_| Some(()), &mut Vec::new()).map(|ended| (ended, reply.intact))
        };
        assert_eq!(reply(&numbered(5, ROUTE, NLM_F_DUMP_INTR, b"aaaa")).unwrap(), (false, false));
        assert_eq!(reply(&numbered(5, NLMSG_DONE, NLM_F_DUMP_INTR, &[0; 4])).unwrap(), (true, false));
        assert_eq!(
            reply(&numbered(5, NLMSG_ERROR, 0, &(-2i32).to_ne_bytes())).unwrap(),
            (true, true),
            "no table"
        );
        assert_eq!(reply(&[]).unwrap(), (false, true));
        let error = reply(&numbered(5, NLMSG_DONE, 0, &(-1i32).to_ne_bytes())).unwrap_err();
        assert_eq!(
            error.to_string(),
            "netlink: the kernel refuses to list routes: Operation not permitted (os error 1)"
        );
    }

    #[test]
    fn refusals_are_matched_to_requests_by_sequence_number() {
        let mut reply = BatchReply { last: 1, results: vec![Ok(()); 4] };
        let refused = |sequence, code: i32| numbered(sequence, NLMSG_ERROR, 0, &code.to_ne_bytes());
        // Sequence numbers wrap around. 10 and u32::MAX - 2 don't belong to this batch.
        let first = [refused(10, -1), refused(u32::MAX, -101), refused(u32::MAX - 2, -1)].concat();
        assert!(!reply.take(&first));
        assert!(reply.take(&[refused(1, 0), refused(0, -1)].concat()));
        let refusal = Refusal { errno: Errno::NETUNREACH, reason: None };
        assert_eq!(reply.results, [Ok(()), Err(refusal), Ok(()), Ok(())]);
    }
}
