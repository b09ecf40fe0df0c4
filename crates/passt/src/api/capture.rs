//! Frames that a client captures: they are written to the descriptor that the client has handed over.
//!
//! The thread that handles packets passes frames on in batches, and never waits (`link::live`). This thread writes them
//! as fast as the descriptor takes them, without waiting either.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use engine::flow::Protocol;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fs::{FileType, OFlags, fcntl_getfl, fcntl_setfl, fstat};
use rustix::io::{Errno, write};
use serde::Deserialize;
use serde_json::{Value, json};

use super::flows::{find, network};
use super::line::{Failure, Request};
use crate::errno::retry;
use crate::event::rewatch;
use crate::link::live::{Batch, Filter, Live, Reader, live};
use crate::link::pcap;

/// Number of batches that are written before other work has its turn.
const BATCHES: usize = 64;
/// The word of the file's epoll events.
pub(super) const WORD: u64 = 3;

/// The arguments of `capture.start`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Arguments {
    protocol: Option<String>,
    address: Option<String>,
    port: Option<u16>,
}

/// A capture.
#[derive(Debug)]
pub(super) struct Sink {
    /// The client that has asked for it.
    pub(super) client: u64,
    reader: Reader,
    file: OwnedFd,
    epoll: Arc<OwnedFd>,
    /// The file can be full for a time: a pipe or a socket.
    can_be_full: bool,
    full: bool,
    /// epoll reports when the file has room.
    watched: bool,
    /// What is being written, and the number of bytes that were written already.
    batch: Batch,
    sent: usize,
    frames: u64,
    bytes: u64,
    /// Why no more can be written.
    failure: Option<Errno>,
}

impl Sink {
    /// The capture that a request describes, for the link and for this thread. `wake` is the eventfd of this thread. At most
    /// `most` bytes wait for it.
    ///
    /// # Errors
    /// An argument is invalid, or the descriptor can't be used.
    pub(super) fn new(
        request: &Request,
        client: u64,
        file: Option<OwnedFd>,
        wake: Arc<OwnedFd>,
        epoll: Arc<OwnedFd>,
        most: usize,
    ) -> Result<(Live, Self), Failure> {
        let Arguments { protocol, address, port } = request.arguments()?;
        let filter = Filter {
            protocol: protocol.map(|name| find("protocol", &Protocol::ALL, &name)).transpose()?,
            address: address.map(|text| network(&text)).transpose()?,
            port,
        };
        let file = file.ok_or_else(|| {
            Failure::new(
                "invalid-arguments",
                "capture.start: a descriptor must come with the request (SCM_RIGHTS)",
            )
        })?;
        let can_be_full = prepare(&file)?;
        if can_be_full {
            epoll::add(&epoll, &file, EventData::new_u64(WORD), EventFlags::empty())
                .map_err(|_| Failure::new("refused", "capture.start: the descriptor can't be watched"))?;
        }
        let (live, reader) = live(filter, wake, most);
        let mut batch = Batch::default();
        pcap::write_header(&mut batch.bytes).map_err(|error| Failure::new("refused", error.to_string()))?;
        let sink = Self {
            client,
            reader,
            file,
            epoll,
            can_be_full,
            full: false,
            watched: false,
            batch,
            sent: 0,
            frames: 0,
            bytes: 0,
            failure: None,
        };
        Ok((live, sink))
    }

    /// Handles an event of the file.
    pub(super) fn on_event(&mut self, flags: EventFlags) {
        if flags.intersects(EventFlags::HUP | EventFlags::ERR) {
            self.failure = Some(Errno::PIPE);
        }
        self.full = false;
    }

    /// Writes what the file takes. Returns whether there may be more to write now.
    pub(super) fn write(&mut self) -> bool {
        self.write_batches(BATCHES);
        if self.can_be_full && self.full != self.watched && self.failure.is_none() {
            let events = if self.full { EventFlags::OUT } else { EventFlags::empty() };
            match rewatch(&self.epoll, &self.file, WORD, events) {
                Ok(()) => self.watched = self.full,
                Err(errno) => self.failure = Some(errno),
            }
        }
        !self.full && self.failure.is_none() && self.sent < self.batch.bytes.len()
    }

    /// Writes at most this number of batches.
    fn write_batches(&mut self, most: usize) {
        for _ in 0..most {
            if !self.write_batch() {
                break;
            }
            match self.reader.next() {
                Some(batch) => (self.batch, self.sent) = (batch, 0),
                None => break,
            }
        }
    }

    /// Returns whether the batch was written.
    fn write_batch(&mut self) -> bool {
        while self.failure.is_none() {
            let rest = self.batch.bytes.get(self.sent..).unwrap_or_default();
            if rest.is_empty() {
                self.frames += self.batch.frames;
                self.batch = Batch::default();
                self.sent = 0;
                return true;
            }
            match retry(|| write(&self.file, rest)) {
                Ok(count) => {
                    self.sent += count;
                    self.bytes += count as u64;
                }
                Err(Errno::AGAIN) => {
                    self.full = true;
                    return false;
                }
                Err(errno) => self.failure = Some(errno),
            }
        }
        false
    }

    /// Whether no more can be written.
    pub(super) const fn has_failed(&self) -> bool {
        self.failure.is_some()
    }

    /// Writes what the file takes at once, and ends the capture. What is left is lost. Returns the counts.
    pub(super) fn finish(mut self) -> Value {
        self.write_batches(usize::MAX);
        let mut lost = self.batch.frames;
        while let Some(batch) = self.reader.next() {
            lost += batch.frames;
        }
        json!({ "frames": self.frames, "bytes": self.bytes, "lost": lost + self.reader.lost() })
    }

    /// Why no more can be written, for the client.
    pub(super) fn reason(&self) -> String {
        self.failure.map(|errno| errno.to_string()).unwrap_or_default()
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        // The client may still have the file open, so closing it is not enough.
        if self.can_be_full {
            let _ = epoll::delete(&self.epoll, &self.file);
        }
    }
}

/// Makes sure that writing does not wait. Returns whether the file can be full for a time.
fn prepare(file: &OwnedFd) -> Result<bool, Failure> {
    let refused = |message: &str| Failure::new("refused", format!("capture.start: {message}"));
    let stat = fstat(file).map_err(|_| refused("the descriptor can't be examined"))?;
    let flags = fcntl_getfl(file).map_err(|_| refused("the descriptor can't be examined"))?;
    if flags & OFlags::RWMODE == OFlags::RDONLY || flags.contains(OFlags::PATH) {
        return Err(refused("the descriptor is not open for writing"));
    }
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(false),
        FileType::Fifo | FileType::Socket => {
            fcntl_setfl(file, flags | OFlags::NONBLOCK)
                .map_err(|_| refused("the descriptor can't be used"))?;
            Ok(true)
        }
        _ => Err(refused("the descriptor is not a regular file, a pipe or a socket")),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    fn request(arguments: Value) -> Request {
        Request { id: json!(1), name: "capture.start".into(), arguments }
    }

    fn start(file: impl Into<OwnedFd>) -> Result<(Live, Sink, Arc<OwnedFd>), Failure> {
        let wake = Arc::new(eventfd(0, EventfdFlags::NONBLOCK).unwrap());
        let epoll = Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC).unwrap());
        let (live, sink) =
            Sink::new(&request(json!({})), 9, Some(file.into()), wake, epoll.clone(), 1 << 20)?;
        Ok((live, sink, epoll))
    }

    /// A descriptor that can't be used, and arguments that are invalid.
    #[test]
    fn what_is_refused() {
        let (read, write) = std::io::pipe().unwrap();
        let null = std::fs::File::create("/dev/null").unwrap();
        for file in [OwnedFd::from(read), null.into()] {
            assert_eq!(start(file).unwrap_err().code, "refused");
        }
        let wake = Arc::new(OwnedFd::from(write));
        let new =
            |arguments, file| Sink::new(&request(arguments), 9, file, wake.clone(), wake.clone(), 1 << 20);
        assert!(new(json!({}), None).unwrap_err().message.contains("SCM_RIGHTS"));
        for arguments in
            [json!({ "port": 70000 }), json!({ "protocol": "sctp" }), json!({ "state": "closing" })]
        {
            assert_eq!(new(arguments, None).unwrap_err().code, "invalid-arguments");
        }
    }

    /// A socket that is full is written to when it has room again. What does not fit in the end is lost.
    #[test]
    fn a_full_socket_is_waited_for() {
        let (mut theirs, ours) = UnixStream::pair().unwrap();
        let (mut live, mut sink, epoll) = start(ours).unwrap();
        let frame = [7; 60_000];
        while !sink.full {
            live.add(&[&frame]);
            live.flush();
            assert!(!sink.write());
        }
        assert!(sink.frames > 0 && !sink.has_failed());
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            theirs.read_to_end(&mut all).unwrap();
            all
        });
        let mut events = Vec::with_capacity(1);
        while sink.full {
            events.clear();
            epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), None).unwrap();
            sink.on_event(events[0].flags);
            sink.write();
        }
        drop(live);
        let counts = sink.finish();
        let bytes = reader.join().unwrap();
        let frames = counts["frames"].as_u64().unwrap();
        assert_eq!((bytes.len() as u64, &counts["lost"]), (24 + frames * 60_016, &json!(0)));
    }

    #[test]
    fn frames_that_nobody_reads_are_lost_and_counted() {
        let (theirs, ours) = UnixStream::pair().unwrap();
        let (mut live, mut sink, _epoll) = start(ours).unwrap();
        for _ in 0..200 {
            live.add(&[&[7; 60_000]]);
            live.flush();
            sink.write();
        }
        drop(live);
        let counts = sink.finish();
        let count = |name: &str| counts[name].as_u64().unwrap();
        assert!(count("lost") > 0 && count("frames") > 0);
        assert_eq!(count("lost") + count("frames"), 200);

        drop(theirs);
        let (mut live, mut sink, _epoll) = start(UnixStream::pair().unwrap().1).unwrap();
        live.add(&[&[7; 60]]);
        live.flush();
        sink.write();
        assert!(sink.has_failed() && sink.reason().contains("ipe"), "{}", sink.reason());
    }
}
