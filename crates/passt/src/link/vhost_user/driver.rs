//! The driver's side of the rings, for tests: guest memory, and a driver that can write any value to it.

use std::fs::File;

use rustix::fs::MemfdFlags;
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

use super::memory::{Memory, Place};
use super::ring::{Addresses, Broken, Ring, Rules};

/// The address at which memory begins, both for the guest and for the front-end.
pub(super) const GUEST: u64 = 0x10_0000;
pub(super) const USER: u64 = 0x7000_0000;
/// Number of entries of the ring.
pub(super) const SIZE: u16 = 16;
const DESCRIPTORS: usize = 0;
const AVAILABLE: usize = 0x1000;
const USED: usize = 0x2000;
/// The start of the area for buffers. The area ends at [`LEN`].
pub(super) const BUFFERS: usize = 0x3000;
/// Number of bytes of memory.
pub(super) const LEN: usize = 0x2_0000;

pub(super) const NEXT: u16 = 1;
pub(super) const WRITE: u16 = 2;
pub(super) const INDIRECT: u16 = 4;

/// Guest memory with one ring in it.
pub(super) struct Driver {
    pub(super) memory: Memory,
    view: MmapRegion,
    available: u16,
}

/// A file of `len` bytes in memory.
pub(super) fn file(len: usize) -> File {
    let file = File::from(rustix::fs::memfd_create("test", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(len as u64).unwrap();
    file
}

impl Driver {
    pub(super) fn new() -> Self {
        let file = file(LEN);
        let view = MmapRegion::from_file(FileOffset::new(file.try_clone().unwrap(), 0), LEN).unwrap();
        let mut memory = Memory::default();
        memory.replace(vec![(Place { guest: GUEST, user: USER, len: LEN as u64, offset: 0 }, file)]).unwrap();
        Self { memory, view, available: 0 }
    }

    pub(super) fn addresses() -> Addresses {
        let at = |offset: usize| USER + offset as u64;
        Addresses { descriptors: at(DESCRIPTORS), available: at(AVAILABLE), used: at(USED), log: None }
    }

    /// The device's side of the ring.
    pub(super) fn ring(&self, rules: Rules) -> Result<Ring, Broken> {
        Ring::new(&self.memory, SIZE, Self::addresses(), rules, 0)
    }

    pub(super) fn write(&self, at: usize, bytes: &[u8]) {
        self.view.get_slice(at, bytes.len()).unwrap().copy_from(bytes);
    }

    pub(super) fn read(&self, at: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.view.get_slice(at, len).unwrap().copy_to(&mut bytes);
        bytes
    }

    fn word(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.read(at, 2).try_into().unwrap())
    }

    /// Writes descriptor `index` of the table that starts at `table`.
    pub(super) fn describe_at(
        &self,
        table: usize,
        index: usize,
        address: u64,
        len: u32,
        flags: u16,
        next: u16,
    ) {
        let mut bytes = address.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.write(table + 16 * index, &bytes);
    }

    /// Writes a descriptor of a buffer that starts at offset `at` of the memory.
    pub(super) fn describe(&self, index: u16, at: usize, len: u32, flags: u16, next: u16) {
        self.describe_at(DESCRIPTORS, index.into(), GUEST + at as u64, len, flags, next);
    }

    /// Makes the chain that starts with descriptor `head` available.
    pub(super) fn offer(&mut self, head: u16) {
        self.write(AVAILABLE + 4 + 2 * usize::from(self.available % SIZE), &head.to_le_bytes());
        self.available = self.available.wrapping_add(1);
        self.set_index(self.available);
    }

    pub(super) fn set_index(&self, index: u16) {
        self.write(AVAILABLE + 2, &index.to_le_bytes());
    }

    /// VRING_AVAIL_F_NO_INTERRUPT.
    pub(super) fn set_flags(&self, flags: u16) {
        self.write(AVAILABLE, &flags.to_le_bytes());
    }

    /// Sets the used entry after which the driver asks to be notified.
    pub(super) fn set_used_event(&self, index: u16) {
        self.write(AVAILABLE + 4 + 2 * usize::from(SIZE), &index.to_le_bytes());
    }

    pub(super) fn used_index(&self) -> u16 {
        self.word(USED + 2)
    }

    pub(super) fn used_flags(&self) -> u16 {
        self.word(USED)
    }

    /// The available entry after which the device asks to be notified.
    pub(super) fn available_event(&self) -> u16 {
        self.word(USED + 4 + 8 * usize::from(SIZE))
    }

    /// Entry `at` of the used ring: the chain, and the number of bytes that were written to it.
    pub(super) fn used(&self, at: u16) -> (u32, u32) {
        let bytes = self.read(USED + 4 + 8 * usize::from(at % SIZE), 8);
        let word = |range: std::ops::Range<usize>| u32::from_le_bytes(bytes[range].try_into().unwrap());
        (word(0..4), word(4..8))
    }
}
