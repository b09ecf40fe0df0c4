//! A vhost-user front-end like QEMU's, with a virtio network driver. rust-vmm implements the protocol. The rings are in
//! shared memory, to which a test can write any values.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering, fence};
use std::time::Duration;

use rustix::fs::MemfdFlags;
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserDirtyLogRegion, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory, VolatileSlice};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::wait_until;

/// Guest-physical address of the memory's first byte.
pub(crate) const GUEST: u64 = 0x10_0000;
/// Length of the virtio-net header before each frame, in bytes.
pub(crate) const HEADER: usize = 12;
/// Length of the memory for the rings of one queue, in bytes: descriptors, available ring, used ring.
const RINGS: usize = 0x2_0000;
pub(crate) const AVAILABLE: usize = 0x1_0000;
const USED: usize = 0x1_4000;

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

pub(crate) const GUEST_CSUM: u64 = 1 << 1;
pub(crate) const GUEST_TSO: u64 = 3 << 7;
pub(crate) const MRG_RXBUF: u64 = 1 << 15;
pub(crate) const LOG_ALL: u64 = 1 << 26;
pub(crate) const INDIRECT_DESC: u64 = 1 << 28;
pub(crate) const EVENT_IDX: u64 = 1 << 29;
pub(crate) const PROTOCOL_FEATURES: u64 = 1 << 30;
pub(crate) const VERSION_1: u64 = 1 << 32;

/// The features and sizes that a driver negotiates.
#[derive(Clone, Copy)]
pub(crate) struct DriverConfig {
    pub(crate) features: u64,
    /// Number of pairs of queues.
    pub(crate) pairs: usize,
    /// Number of entries of each ring.
    pub(crate) entries: u16,
    /// Length of each buffer for frames to the guest, in bytes.
    pub(crate) buffer: usize,
}

impl Default for DriverConfig {
    fn default() -> Self {
        DriverConfig {
            features: VERSION_1
                | PROTOCOL_FEATURES
                | MRG_RXBUF
                | GUEST_CSUM
                | GUEST_TSO
                | EVENT_IDX
                | INDIRECT_DESC,
            pairs: 1,
            entries: 256,
            buffer: 4096,
        }
    }
}

/// Memory of the guest, shared with the back-end.
pub(crate) struct Memory {
    pub(crate) file: File,
    view: MmapRegion,
}

impl Memory {
    fn new(len: usize) -> Self {
        let file = File::from(rustix::fs::memfd_create("guest", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(len as u64).unwrap();
        let view = MmapRegion::from_file(FileOffset::new(file.try_clone().unwrap(), 0), len).unwrap();
        Memory { file, view }
    }

    pub(crate) fn slice(&self, at: usize, len: usize) -> VolatileSlice<'_> {
        self.view.get_slice(at, len).unwrap()
    }

    pub(crate) fn write(&self, at: usize, bytes: &[u8]) {
        self.slice(at, bytes.len()).copy_from(bytes);
    }

    pub(crate) fn word(&self, at: usize) -> &AtomicU16 {
        self.view.get_atomic_ref(at).unwrap()
    }

    fn double_word(&self, at: usize) -> u32 {
        let mut bytes = [0; 4];
        self.slice(at, 4).copy_to(&mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// The front-end's virtual address of the memory at offset `at`. vhost-user messages contain such addresses.
    fn user(&self, at: usize) -> u64 {
        self.view.as_ptr() as u64 + at as u64
    }
}

/// One queue, from the driver's side.
pub(crate) struct Queue {
    pub(crate) memory: Arc<Memory>,
    pub(crate) index: usize,
    entries: u16,
    event_idx: bool,
    /// Offset of its rings in memory.
    pub(crate) at: usize,
    /// Offset of its buffers, one per descriptor.
    buffers: usize,
    /// Length of each buffer, in bytes.
    pub(crate) buffer: usize,
    pub(crate) kick: EventFd,
    pub(crate) call: EventFd,
    pub(crate) error: EventFd,
    /// The index of the available ring.
    pub(crate) available: u16,
    seen: u16,
    free: Vec<u16>,
}

/// A frame from the back-end.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    pub(crate) header: [u8; HEADER],
    pub(crate) bytes: Vec<u8>,
}

impl Queue {
    fn new(
        memory: &Arc<Memory>,
        index: usize,
        driver: &DriverConfig,
        at: usize,
        buffers: usize,
        buffer: usize,
    ) -> Self {
        let eventfd = || EventFd::new(EFD_NONBLOCK).unwrap();
        Queue {
            memory: Arc::clone(memory),
            index,
            entries: driver.entries,
            event_idx: driver.features & EVENT_IDX != 0,
            at,
            buffers,
            buffer,
            kick: eventfd(),
            call: eventfd(),
            error: eventfd(),
            available: 0,
            seen: 0,
            free: (0..driver.entries).rev().collect(),
        }
    }

    fn is_to_guest(&self) -> bool {
        self.index.is_multiple_of(2)
    }

    /// Writes descriptor `index` for a buffer at the guest-physical `address`.
    pub(crate) fn describe(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = address.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.memory.write(self.at + 16 * usize::from(index), &bytes);
    }

    /// Offset of a descriptor's buffer in memory.
    pub(crate) fn buffer_at(&self, index: u16) -> usize {
        self.buffers + usize::from(index) * self.buffer
    }

    /// Makes a chain available, without a kick.
    pub(crate) fn offer(&mut self, head: u16) {
        let at = self.at + AVAILABLE + 4 + 2 * usize::from(self.available % self.entries);
        self.memory.word(at).store(head.to_le(), Ordering::Relaxed);
        self.available = self.available.wrapping_add(1);
        self.set_available(self.available);
    }

    /// Sets the index of the available ring.
    pub(crate) fn set_available(&self, index: u16) {
        self.memory.word(self.at + AVAILABLE + 2).store(index.to_le(), Ordering::Release);
    }

    /// Notifies the back-end, if it has requested a notification for a chain since the available index was `before`.
    pub(crate) fn kick_if_wanted(&self, before: u16) -> bool {
        fence(Ordering::SeqCst);
        let word = |at| u16::from_le(self.memory.word(self.at + at).load(Ordering::Relaxed));
        let wanted = if self.event_idx {
            let event = word(USED + 4 + 8 * usize::from(self.entries));
            let new = self.available;
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(before)
        } else {
            word(USED) & 1 == 0
        };
        if wanted {
            self.kick.write(1).unwrap();
        }
        wanted
    }

    /// Makes all free buffers available for the back-end to write to.
    pub(crate) fn refill(&mut self) {
        let before = self.available;
        while let Some(index) = self.free.pop() {
            let address = GUEST + self.buffer_at(index) as u64;
            self.describe(index, address, self.buffer as u32, WRITE, 0);
            self.offer(index);
        }
        if before != self.available {
            self.kick_if_wanted(before);
        }
    }

    /// Removes the next used chain. Returns its head, and the number of bytes that the back-end wrote.
    pub(crate) fn take_used(&mut self) -> Option<(u16, usize)> {
        let index = u16::from_le(self.memory.word(self.at + USED + 2).load(Ordering::Acquire));
        if index == self.seen {
            return None;
        }
        let at = self.at + USED + 4 + 8 * usize::from(self.seen % self.entries);
        let (id, len) = (self.memory.double_word(at), self.memory.double_word(at + 4));
        self.seen = self.seen.wrapping_add(1);
        Some((id as u16, len as usize))
    }

    /// Requests a notification of the next used buffer. Returns false if a buffer has already been used.
    pub(crate) fn ask_for_call(&self) -> bool {
        if self.event_idx {
            let at = self.at + AVAILABLE + 4 + 2 * usize::from(self.entries);
            self.memory.word(at).store(self.seen.to_le(), Ordering::Relaxed);
        } else {
            self.memory.word(self.at + AVAILABLE).store(0, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
        u16::from_le(self.memory.word(self.at + USED + 2).load(Ordering::Acquire)) == self.seen
    }

    /// Waits until the back-end has used a buffer.
    pub(crate) fn wait(&self, timeout: Duration) -> bool {
        if self.ask_for_call() {
            wait_for(&self.call, timeout);
            let _ = self.call.read();
        }
        u16::from_le(self.memory.word(self.at + USED + 2).load(Ordering::Acquire)) != self.seen
    }

    /// Whether a frame can be sent now.
    pub(crate) fn has_room(&mut self) -> bool {
        assert!(!self.is_to_guest());
        while let Some((id, _)) = self.take_used() {
            self.free.push(id);
        }
        !self.free.is_empty()
    }

    /// Sends a frame of the guest. Returns false if no buffer is free.
    pub(crate) fn send(&mut self, header: [u8; HEADER], frame: &[u8]) -> bool {
        let before = self.available;
        let is_sent = self.has_room() && self.put(&[&header, frame]);
        self.kick_if_wanted(before);
        is_sent
    }

    /// Makes a frame of the guest available, without a kick. `parts` are the header and the frame. Returns false if no
    /// buffer is free.
    pub(crate) fn put(&mut self, parts: &[&[u8]]) -> bool {
        let Some(index) = self.free.pop() else { return false };
        let (start, mut at) = (self.buffer_at(index), self.buffer_at(index));
        for part in parts {
            self.memory.write(at, part);
            at += part.len();
        }
        self.describe(index, GUEST + start as u64, (at - start) as u32, 0, 0);
        self.offer(index);
        true
    }

    /// The next frame to the guest, if there is one.
    pub(crate) fn receive(&mut self) -> Option<Frame> {
        let mut bytes = Vec::new();
        if !self.receive_into(&mut bytes) {
            return None;
        }
        self.refill();
        let header = bytes.drain(..HEADER).collect::<Vec<u8>>().try_into().unwrap();
        Some(Frame { header, bytes })
    }

    /// Replaces `bytes` by the header and the bytes of the next frame to the guest. Returns false if there is none. Its
    /// buffers become available by [`Queue::refill`].
    pub(crate) fn receive_into(&mut self, bytes: &mut Vec<u8>) -> bool {
        assert!(self.is_to_guest());
        bytes.clear();
        let Some((first, len)) = self.take_used() else { return false };
        self.take(first, len, bytes);
        for _ in 1..u16::from_le_bytes([bytes[10], bytes[11]]) {
            // The back-end publishes all buffers of a frame together.
            let (index, len) = self.take_used().unwrap();
            self.take(index, len, bytes);
        }
        true
    }

    fn take(&mut self, index: u16, len: usize, bytes: &mut Vec<u8>) {
        let start = bytes.len();
        bytes.resize(start + len, 0);
        self.memory.slice(self.buffer_at(index), len).copy_to(&mut bytes[start..]);
        self.free.push(index);
    }

    /// Clears the rings, like a reset of the driver.
    fn clear(&mut self) {
        self.memory.write(self.at, &vec![0; RINGS]);
        (self.available, self.seen) = (0, 0);
        self.free = (0..self.entries).rev().collect();
    }
}

/// Waits until an eventfd was written to.
pub(crate) fn wait_for(event: &EventFd, timeout: Duration) -> bool {
    let epoll = Epoll::new().unwrap();
    let wanted = EpollEvent::new(EventSet::IN, 0);
    epoll.ctl(ControlOperation::Add, event.as_raw_fd(), wanted).unwrap();
    epoll.wait(timeout.as_millis() as i32, &mut [EpollEvent::default()]).is_ok_and(|events| events > 0)
}

/// A front-end that is connected to a back-end.
pub(crate) struct FrontEnd {
    pub(crate) frontend: Frontend,
    pub(crate) memory: Arc<Memory>,
    /// The queues. Those with an even index carry frames to the guest, those with an odd index frames from the guest.
    pub(crate) queues: Vec<Queue>,
    /// The features negotiated with the back-end.
    features: u64,
}

impl FrontEnd {
    /// Connects to `path`, and starts the device.
    pub(crate) fn new(path: &Path, driver: DriverConfig) -> Self {
        let mut front_end = Self::connect(path, driver);
        front_end.negotiate(driver.features);
        front_end.share_memory();
        front_end.start();
        front_end
    }

    /// Connects to `path`, as soon as the back-end listens and has finished with the previous front-end.
    pub(crate) fn connect(path: &Path, driver: DriverConfig) -> Self {
        let queues = 2 * driver.pairs;
        let transmit = 70_000_usize.next_multiple_of(4096);
        let pair = usize::from(driver.entries) * (driver.buffer + transmit);
        let memory = Arc::new(Memory::new(queues * RINGS + driver.pairs * pair));
        let mut frontend = None;
        wait_until("another front-end is served", || {
            let Ok(stream) = UnixStream::connect(path) else { return false };
            let candidate = Frontend::from_stream(stream, queues as u64);
            let served = candidate.get_features().is_ok();
            frontend = Some(candidate);
            served
        });
        let frontend = frontend.unwrap();
        let queues = (0..queues).map(|index| {
            let buffers = queues * RINGS + index / 2 * pair;
            let (buffers, buffer) = match index % 2 {
                0 => (buffers, driver.buffer),
                _ => (buffers + usize::from(driver.entries) * driver.buffer, transmit),
            };
            Queue::new(&memory, index, &driver, index * RINGS, buffers, buffer)
        });
        let queues = queues.collect();
        FrontEnd { frontend, memory, queues, features: 0 }
    }

    pub(crate) fn negotiate(&mut self, features: u64) {
        self.frontend.set_owner().unwrap();
        let offered = self.frontend.get_features().unwrap();
        assert_eq!(features & !offered, 0, "not offered");
        self.features = features;
        if features & PROTOCOL_FEATURES != 0 {
            let protocol = self.frontend.get_protocol_features().unwrap();
            let wanted = VhostUserProtocolFeatures::MQ
                | VhostUserProtocolFeatures::REPLY_ACK
                | VhostUserProtocolFeatures::LOG_SHMFD;
            assert!(protocol.contains(wanted), "{protocol:?}");
            self.frontend.set_protocol_features(wanted).unwrap();
        }
        self.frontend.set_features(features).unwrap();
        if features & PROTOCOL_FEATURES != 0 {
            self.frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
    }

    /// Sends the memory table to the back-end.
    pub(crate) fn share_memory(&self) {
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: GUEST,
            memory_size: self.memory.view.len() as u64,
            userspace_addr: self.memory.user(0),
            mmap_offset: 0,
            mmap_handle: self.memory.file.as_raw_fd(),
        };
        self.frontend.set_mem_table(&[region]).unwrap();
    }

    /// Requests that the back-end logs in `log` the pages to which it writes.
    pub(crate) fn log_to(&self, log: &File, features: u64) {
        let mmap_size = log.metadata().unwrap().len();
        let region = VhostUserDirtyLogRegion { mmap_size, mmap_offset: 0, mmap_handle: log.as_raw_fd() };
        self.frontend.set_log_base(0, Some(region)).unwrap();
        self.frontend.set_features(features | LOG_ALL).unwrap();
    }

    /// Starts all queues.
    pub(crate) fn start(&mut self) {
        for index in 0..self.queues.len() {
            self.start_queue(index);
        }
    }

    /// Starts a queue with empty rings.
    pub(crate) fn start_queue(&mut self, index: usize) {
        let protocol = self.features & PROTOCOL_FEATURES != 0;
        let queue = &mut self.queues[index];
        queue.clear();
        let config = VringConfigData {
            queue_max_size: queue.entries,
            queue_size: queue.entries,
            flags: 0,
            desc_table_addr: self.memory.user(queue.at),
            used_ring_addr: self.memory.user(queue.at + USED),
            avail_ring_addr: self.memory.user(queue.at + AVAILABLE),
            log_addr: None,
        };
        self.frontend.set_vring_num(index, queue.entries).unwrap();
        self.frontend.set_vring_base(index, 0).unwrap();
        self.frontend.set_vring_addr(index, &config).unwrap();
        self.frontend.set_vring_call(index, &queue.call).unwrap();
        self.frontend.set_vring_err(index, &queue.error).unwrap();
        self.frontend.set_vring_kick(index, &queue.kick).unwrap();
        if protocol {
            self.frontend.set_vring_enable(index, true).unwrap();
        }
        if self.queues[index].is_to_guest() {
            self.queues[index].refill();
        }
    }

    /// Stops a queue, like a reset of the guest. Returns its last available index.
    pub(crate) fn stop_queue(&self, index: usize) -> u32 {
        self.frontend.get_vring_base(index).unwrap()
    }
}
