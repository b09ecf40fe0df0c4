//! One client: its socket, and its buffers, whose sizes are bounded.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recvmsg, send};

use super::{Limits, line};
use crate::errno::retry;

/// Maximum number of bytes that one system call receives.
const STEP: usize = 16 << 10;
/// Maximum number of system calls for one event. If more bytes are left, epoll reports the socket again.
const STEPS: usize = 4;

/// A client.
#[derive(Debug)]
pub(super) struct Client {
    socket: OwnedFd,
    /// Received bytes that are not handled yet: at most a request and its end of line.
    input: Vec<u8>,
    /// The rest of a line that was too long is skipped.
    skips: bool,
    /// A line was too long, and this was not answered yet.
    too_long: bool,
    /// The last descriptor that the client has handed over, and that no request has used yet.
    descriptor: Option<OwnedFd>,
    /// The client sends nothing more.
    ended: bool,
    /// The socket has failed, or the client has closed it.
    failed: bool,
    /// Lines that are being sent, and the number of bytes that were sent already.
    output: Vec<u8>,
    sent: usize,
    /// Events that are sent after `output`.
    events: Vec<u8>,
    /// Maximum length of `events`.
    most_events: usize,
    /// Number of events that were lost after those in `events`.
    lost: u64,
    /// The kinds of events to which the client is subscribed.
    pub(super) subscribed: u8,
    /// The events that epoll reports.
    pub(super) watched: EventFlags,
}

/// A line of a client.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// A line without its end.
    Whole(Vec<u8>),
    /// A line was longer than a request may be. It was skipped.
    TooLong,
}

impl Client {
    /// A client that has sent nothing yet. Its socket must be non-blocking. At most `most_events` bytes of events wait for it.
    pub(super) fn new(socket: OwnedFd, most_events: usize) -> Self {
        Self {
            socket,
            input: Vec::new(),
            skips: false,
            too_long: false,
            descriptor: None,
            ended: false,
            failed: false,
            output: Vec::new(),
            sent: 0,
            events: Vec::new(),
            most_events,
            lost: 0,
            subscribed: 0,
            watched: EventFlags::IN,
        }
    }

    /// Handles an event of the socket.
    pub(super) fn on_event(&mut self, flags: EventFlags) {
        if flags.intersects(EventFlags::HUP | EventFlags::ERR) {
            self.failed = true;
        } else if flags.contains(EventFlags::IN) {
            self.receive();
        }
    }

    fn receive(&mut self) {
        let mut buffer = [0; STEP];
        for _ in 0..STEPS {
            let room = if self.takes_input() { Limits::REQUEST + 1 - self.input.len() } else { return };
            let part = buffer.get_mut(..room.min(STEP)).unwrap_or_default();
            // The kernel closes descriptors beyond the first.
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            let received = retry(|| recvmsg(&self.socket, &mut [IoSliceMut::new(part)], &mut control, flags));
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                    self.descriptor = descriptors.last();
                }
            }
            match received.map(|message| message.bytes) {
                Ok(0) => return self.ended = true,
                Ok(count) => self.take(buffer.get(..count).unwrap_or_default()),
                Err(Errno::AGAIN) => return,
                Err(_) => return self.failed = true,
            }
        }
    }

    fn take(&mut self, mut bytes: &[u8]) {
        if self.skips {
            let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else { return };
            (self.skips, bytes) = (false, bytes.get(end + 1..).unwrap_or_default());
        }
        self.input.extend_from_slice(bytes);
        if self.input.len() > Limits::REQUEST && !self.input.contains(&b'\n') {
            self.input.clear();
            (self.skips, self.too_long) = (true, true);
        }
    }

    fn takes_input(&self) -> bool {
        !self.ended && !self.too_long && self.input.len() <= Limits::REQUEST
    }

    /// Whether a line of the client can be handled: it is complete, and the client has read most of its answers.
    pub(super) fn is_ready(&self) -> bool {
        let has_line = self.too_long || self.input.contains(&b'\n') || self.ended && !self.input.is_empty();
        has_line && !self.failed && self.output.len() - self.sent < Limits::UNREAD
    }

    /// The next line. The last one needs no end of line.
    pub(super) fn next_line(&mut self) -> Option<Line> {
        if std::mem::take(&mut self.too_long) {
            return Some(Line::TooLong);
        }
        let line = match self.input.iter().position(|byte| *byte == b'\n') {
            Some(end) => {
                let mut line: Vec<u8> = self.input.drain(..=end).collect();
                line.pop();
                line
            }
            None if self.ended && !self.input.is_empty() => std::mem::take(&mut self.input),
            None => return None,
        };
        Some(Line::Whole(line))
    }

    /// Whether the client has handed over a descriptor that no request has used.
    pub(super) const fn has_descriptor(&self) -> bool {
        self.descriptor.is_some()
    }

    /// Takes this descriptor.
    pub(super) const fn take_descriptor(&mut self) -> Option<OwnedFd> {
        self.descriptor.take()
    }

    /// Adds the line of an answer.
    pub(super) fn answer(&mut self, line: &str) {
        self.output.extend_from_slice(line.as_bytes());
    }

    /// Adds the line of an event. If the client has not read enough, the event is lost, and counted.
    pub(super) fn report(&mut self, line: &str) {
        if self.lost > 0 || self.events.len() + line.len() > self.most_events {
            self.lost += 1;
        } else {
            self.events.extend_from_slice(line.as_bytes());
        }
    }

    /// Counts events that were lost before they reached this thread.
    pub(super) const fn note_lost(&mut self, count: u64) {
        self.lost += count;
    }

    /// Sends what the socket takes.
    pub(super) fn flush(&mut self) {
        loop {
            if self.sent == self.output.len() {
                self.sent = 0;
                self.output = std::mem::take(&mut self.events);
                if self.lost > 0 {
                    self.output.extend_from_slice(line::lost(self.lost).as_bytes());
                    self.lost = 0;
                }
            }
            let rest = self.output.get(self.sent..).unwrap_or_default();
            if rest.is_empty() || self.failed {
                return;
            }
            match retry(|| send(&self.socket, rest, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)) {
                Ok(count) => self.sent += count,
                Err(Errno::AGAIN) => return,
                Err(_) => self.failed = true,
            }
        }
    }

    /// The events for which epoll must watch the socket.
    pub(super) fn wants(&self) -> EventFlags {
        let mut wanted = EventFlags::empty();
        wanted.set(EventFlags::IN, self.takes_input());
        wanted.set(EventFlags::OUT, self.sent < self.output.len());
        wanted
    }

    /// Whether the socket has failed, or the client has closed it.
    pub(super) const fn has_failed(&self) -> bool {
        self.failed
    }

    /// Whether the client is to be closed: its socket has failed, or the client has ended its requests, has got all
    /// answers, and is not subscribed to events.
    pub(super) fn is_over(&self) -> bool {
        let idle = self.input.is_empty() && !self.too_long && self.sent == self.output.len();
        self.failed || self.ended && idle && self.subscribed == 0
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::Shutdown;
    use std::os::unix::net::UnixStream;

    use super::*;

    const MAX_EVENTS: usize = Limits::DEFAULT.events;

    fn pair() -> (UnixStream, Client) {
        let (theirs, ours) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (theirs, Client::new(ours.into(), MAX_EVENTS))
    }

    fn whole(line: &str) -> Option<Line> {
        Some(Line::Whole(line.into()))
    }

    #[test]
    fn lines_arrive_in_any_pieces() {
        let (mut theirs, mut client) = pair();
        theirs.write_all(b"one\ntw").unwrap();
        client.on_event(EventFlags::IN);
        assert!(client.is_ready());
        assert_eq!((client.next_line(), client.next_line()), (whole("one"), None));
        assert!(!client.is_ready());
        theirs.write_all(b"o\n\nlast").unwrap();
        theirs.shutdown(Shutdown::Write).unwrap();
        client.on_event(EventFlags::IN);
        assert!(!client.is_over());
        assert_eq!((client.next_line(), client.next_line()), (whole("two"), whole("")));
        assert_eq!((client.next_line(), client.next_line()), (whole("last"), None));
        assert!(client.is_over() && client.wants().is_empty());
    }

    /// A line of the maximum length is whole. A longer one is skipped, and the next line is read.
    #[test]
    fn too_long_lines_are_skipped() {
        for (len, is_whole) in
            [(Limits::REQUEST, true), (Limits::REQUEST + 1, false), (Limits::REQUEST * 5, false)]
        {
            let (mut theirs, mut client) = pair();
            let writer = std::thread::spawn(move || {
                theirs.write_all(&[&vec![b'x'; len][..], b"\nnext\n"].concat()).unwrap();
                theirs
            });
            let mut lines = Vec::new();
            while lines.len() < 2 {
                client.on_event(EventFlags::IN);
                assert!(client.input.len() <= Limits::REQUEST + 1);
                lines.extend(client.next_line());
            }
            drop(writer.join().unwrap());
            match &lines[0] {
                Line::Whole(line) => assert!(is_whole && line.len() == len),
                Line::TooLong => assert!(!is_whole),
            }
            assert_eq!(lines.remove(1), whole("next").unwrap());
        }
    }

    /// Events that don't fit are counted, and the count comes after the events before them. Later ones follow it.
    #[test]
    fn a_client_that_does_not_read_loses_events() {
        let (mut theirs, mut client) = pair();
        let event = format!("{{\"event\":\"{}\"}}\n", "x".repeat(1000));
        let mut reported = 0;
        while client.lost < 3 {
            client.report(&event);
            client.flush();
            reported += 1;
            assert!(client.events.len() <= MAX_EVENTS && client.output.len() <= MAX_EVENTS);
        }
        assert!(client.wants().contains(EventFlags::OUT));
        let kept = reported - 3;
        let mut text = Vec::new();
        let mut buffer = vec![0; 1 << 20];
        while client.wants().contains(EventFlags::OUT) {
            let count = theirs.read(&mut buffer).unwrap();
            text.extend_from_slice(&buffer[..count]);
            client.flush();
        }
        client.report("{\"event\":\"later\"}\n");
        client.flush();
        drop(client);
        theirs.read_to_end(&mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), kept + 2);
        assert!(lines[..kept].iter().all(|line| *line == event.trim_end()));
        assert_eq!(lines[kept..], [line::lost(3).trim_end(), "{\"event\":\"later\"}"]);
    }

    /// A client that does not read its answers gets no more, and its socket is not read any more.
    #[test]
    fn requests_wait_for_a_client_that_does_not_read() {
        let (mut theirs, mut client) = pair();
        client.answer(&"x".repeat(Limits::UNREAD + (4 << 20)));
        client.flush();
        theirs.set_nonblocking(true).unwrap();
        let requests = b"0123456789\n".repeat(2 * Limits::REQUEST / 11);
        let mut sent = 0;
        while sent < requests.len() {
            match theirs.write(&requests[sent..]) {
                Ok(count) => sent += count,
                Err(_) if client.takes_input() => client.on_event(EventFlags::IN),
                Err(_) => break,
            }
        }
        (0..9).for_each(|_| client.on_event(EventFlags::IN));
        assert!(!client.is_ready() && client.input.len() == Limits::REQUEST + 1);
        assert_eq!(client.wants(), EventFlags::OUT);
        drop(theirs);
        client.on_event(EventFlags::HUP);
        assert!(client.is_over());
    }
}
