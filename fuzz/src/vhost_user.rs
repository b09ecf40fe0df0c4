//! A vhost-user back-end, with any messages of the front-end and any contents of the guest's memory.

use std::fs::File;
use std::io::{IoSlice, Read, Seek, SeekFrom, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use engine::link::Link;
use engine::memory::Room;
use engine::timer::Instant;
use passt::link::vhost_user::VhostUserLink;
use rustix::event::epoll;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::MemfdFlags;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use wire::offload::Offload;
use wire::payload::Payload;

use crate::seeds::Seed;

/// Size of the guest's memory, in bytes.
const MEMORY: usize = 0x4000;
const GUEST: u64 = 0x10_0000;
const USER: u64 = 0x7000_0000;
/// Number of entries of a ring, and the offsets of the parts of both rings in memory.
const ENTRIES: u32 = 8;
const RINGS: [[u64; 3]; 2] = [[0, 0x80, 0xa0], [0x100, 0x180, 0x1a0]];
const CLIENT: u32 = 1;
const QUEUE: u32 = 2;

/// The front-end.
struct FrontEnd {
    socket: UnixStream,
    link: VhostUserLink,
    epoll: OwnedFd,
    memory: File,
    event: OwnedFd,
}

/// None if the machine has no more descriptors.
fn front_end() -> Option<FrontEnd> {
    let (ours, theirs) = UnixStream::pair().ok()?;
    ours.set_nonblocking(true).ok()?;
    let memory = File::from(rustix::fs::memfd_create("fuzz", MemfdFlags::CLOEXEC).ok()?);
    memory.set_len(MEMORY as u64).ok()?;
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).ok()?;
    let mut link = VhostUserLink::connected(theirs.into(), 1500);
    link.watch(&epoll).ok()?;
    let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).ok()?;
    Some(FrontEnd { socket: ours, link, epoll, memory, event })
}

impl FrontEnd {
    /// Sends bytes with descriptors. Bit 0 of `descriptors` selects memory, bit 1 an eventfd.
    fn send(&mut self, bytes: &[u8], descriptors: u8) {
        let mut fds: Vec<BorrowedFd<'_>> = Vec::new();
        if descriptors & 1 != 0 {
            fds.push(self.memory.as_fd());
        }
        if descriptors & 2 != 0 {
            fds.push(self.event.as_fd());
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(&fds));
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let _ = sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut control, flags);
        self.event(CLIENT);
        drop(self.socket.read(&mut [0; 4096])); // answers
    }

    fn event(&mut self, source: u32) {
        self.link.on_event(source, Instant::default(), &self.epoll);
    }

    /// Sends a valid message.
    fn request(&mut self, request: u32, body: &[u8], descriptors: u8) {
        self.send(&message(request, body), descriptors);
    }

    /// A round of the event loop, with frames from the guest and to the guest. Returns the number of frames from the
    /// guest.
    fn round(&mut self) -> usize {
        for source in QUEUE..QUEUE + 4 {
            self.event(source);
        }
        let mut frames = 0;
        while let Some(mut frame) = self.link.receive() {
            let (head, frame, _) = frame.parts();
            assert!(head.len() <= wire::frame::HEAD_LEN && head.len() <= frame.len());
            frame.copy_to(&mut [0; 2000]);
            frames += 1;
            assert!(frames <= 1000, "too many frames");
        }
        let mut full = false;
        for (head, room) in [(60, 0), (54, 1000), (54, 5000), (42, 65_507)] {
            let Some(mut frame) = self.link.reserve(head, room) else {
                full = true;
                continue;
            };
            frame.slot().room.put(0, &[0x55; 900]);
            full |= frame.commit(head + room.min(1000), &Offload::default()).is_err();
        }
        self.link.finish_round(full);
        frames
    }
}

fn message(request: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [request, 1, body.len() as u32] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes.extend(body);
    bytes
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// The bytes of two 32-bit words.
fn pair(first: u32, second: u32) -> Vec<u8> {
    [first.to_ne_bytes(), second.to_ne_bytes()].concat()
}

/// The messages that set up a device with one pair of queues.
fn set_up(features: u64) -> Vec<(u32, Vec<u8>, u8)> {
    let mut messages = vec![
        (3, Vec::new(), 0),
        (1, Vec::new(), 0),
        (16, words(&[9]), 0),
        (2, words(&[features]), 0),
        (5, [pair(1, 0), words(&[GUEST, MEMORY as u64, USER, 0])].concat(), 1),
    ];
    for (index, [descriptors, available, used]) in (0..).zip(RINGS) {
        let addresses = words(&[USER + descriptors, USER + used, USER + available, 0]);
        messages.extend([
            (8, pair(index, ENTRIES), 0),
            (10, pair(index, 0), 0),
            (9, [pair(index, 0), addresses].concat(), 0),
            (13, words(&[index.into()]), 2),
            (14, words(&[index.into()]), 2),
            (12, words(&[index.into()]), 2),
            (18, pair(index, 1), 0),
        ]);
    }
    messages
}

/// Input: messages. Each has a byte that selects its descriptors, two bytes with its length, and its contents. After
/// some messages, there is a round of the event loop.
pub fn messages(mut data: &[u8]) {
    let Some(mut front_end) = front_end() else { return };
    while let [descriptors, low, high, rest @ ..] = data {
        let len = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
        let (bytes, later) = rest.split_at(len);
        front_end.send(bytes, *descriptors);
        if descriptors & 4 != 0 {
            front_end.round();
        }
        data = later;
    }
    front_end.round();
}

/// Input: a byte that selects features, then the contents of the guest's memory at two times. The memory contains the
/// rings.
pub fn rings(data: &[u8]) {
    frames_of_rings(data);
}

/// The number of frames from the rings.
fn frames_of_rings(data: &[u8]) -> usize {
    let Some((&choice, data)) = data.split_first() else { return 0 };
    let Some(mut front_end) = front_end() else { return 0 };
    let mut frames = 0;
    // VERSION_1, PROTOCOL_FEATURES, and some of MRG_RXBUF, INDIRECT_DESC, EVENT_IDX and the offloads.
    let mut features = 1 << 32 | 1 << 30;
    for (bit, feature) in [15, 28, 29, 1, 7, 8].into_iter().enumerate() {
        features |= u64::from(choice >> bit & 1) << feature;
    }
    for (request, body, descriptors) in set_up(features) {
        front_end.request(request, &body, descriptors);
    }
    for half in data.chunks(data.len().div_ceil(2).max(1)) {
        let mut memory = &front_end.memory;
        if memory.seek(SeekFrom::Start(0)).is_err()
            || memory.write_all(&half[..half.len().min(MEMORY)]).is_err()
        {
            return frames;
        }
        for _ in 0..3 {
            frames += front_end.round();
        }
    }
    frames
}

/// Seeds of the corpus.
pub(crate) fn seeds() -> Vec<Seed> {
    let mut all = Vec::new();
    for (request, body, descriptors) in set_up(1 << 32 | 1 << 30 | 1 << 15) {
        let bytes = message(request, &body);
        all.push(descriptors | 4);
        all.extend((bytes.len() as u16).to_le_bytes());
        all.extend(bytes);
    }
    let descriptor = |address: u64, len: u32, flags: u16, next: u16| {
        let rest = [&len.to_le_bytes()[..], &flags.to_le_bytes(), &next.to_le_bytes()].concat();
        [&address.to_le_bytes()[..], &rest].concat()
    };
    // Eight writable buffers, and three frames: one in one descriptor, one in two descriptors, one in an indirect
    // table.
    let mut memory = vec![0; 0x400];
    for index in 0..8 {
        let at = 16 * index;
        memory[at..at + 16].copy_from_slice(&descriptor(GUEST + 0x1000 + 0x400 * index as u64, 0x400, 2, 0));
        memory[0x84 + 2 * index] = index as u8;
    }
    memory[0x82] = 8;
    let frames = [
        descriptor(GUEST + 0x3000, 72, 0, 0),
        descriptor(GUEST + 0x3000, 12, 1, 2),
        descriptor(GUEST + 0x3040, 1000, 0, 0),
        descriptor(GUEST + 0x300, 32, 4, 0),
    ];
    for (index, frame) in frames.iter().enumerate() {
        memory[0x100 + 16 * index..][..16].copy_from_slice(frame);
    }
    memory[0x300..0x310].copy_from_slice(&descriptor(GUEST + 0x3000, 100, 1, 1));
    memory[0x310..0x320].copy_from_slice(&descriptor(GUEST + 0x3800, 500, 0, 0));
    memory[0x182] = 3;
    (memory[0x184], memory[0x186], memory[0x188]) = (0, 1, 3);
    let twice = |choice: u8| [&[choice][..], &memory, &memory].concat();
    let mut endless = memory.clone();
    endless[0x100..0x110].copy_from_slice(&descriptor(GUEST, 64, 1, 0));
    vec![
        ("vhost_messages", "set_up", all),
        ("vhost_rings", "plain", twice(0)),
        ("vhost_rings", "all_features", twice(0xff)),
        ("vhost_rings", "loop", [&[1][..], &endless, &memory].concat()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Valid rings must give frames. Otherwise the target would test nothing.
    #[test]
    fn valid_rings_give_frames() {
        let frames = |name| {
            let seed = seeds().into_iter().find(|seed| seed.1 == name);
            seed.map(|(_, _, bytes)| frames_of_rings(&bytes))
        };
        assert_eq!(frames("all_features"), Some(3));
        assert_eq!(frames("plain"), Some(2)); // INDIRECT_DESC is not negotiated
        assert_eq!(frames("loop"), Some(0));
    }
}
