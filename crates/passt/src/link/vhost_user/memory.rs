//! The guest's memory, which the front-end shares.
//!
//! The guest may change any byte of its memory at any time. So the memory is never accessed as a Rust slice, only by
//! `vm-memory`'s volatile accessors. A value on which a decision depends is copied once, and only the copy is checked
//! and used.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};

use sys::shared_memory::Guard;
use thiserror::Error;
use vm_memory::{FileOffset, MmapRegion, VolatileMemory, VolatileSlice};

/// Granularity of the log, in bytes.
const LOG_PAGE: u64 = 4096;

/// Why memory of the front-end can't be mapped.
#[derive(Debug, Error)]
pub(super) enum MapError {
    /// The memory does not fit into our address space, or into 64 bits.
    #[error("it is too large")]
    TooLarge,
    /// The memory extends beyond the end of its file.
    #[error("its file has only {0} bytes")]
    PastTheEnd(u64),
    /// The file can't be examined.
    #[error("its file can't be examined: {0}")]
    File(rustix::io::Errno),
    /// The system refuses the mapping.
    #[error("{0}")]
    Map(vm_memory::mmap::MmapRegionError),
    /// The system does not allow to guard the mapping against the end of its file.
    #[error("it can't be guarded against the end of its file: {0}")]
    Guard(std::io::Error),
}

/// An address range that is not in the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OutOfRange;

/// The location of a region, for the guest and for the front-end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// Guest-physical address.
    pub(super) guest: u64,
    /// Address in the front-end's address space.
    pub(super) user: u64,
    /// Length in bytes.
    pub(super) len: u64,
    /// Start of the region in its file.
    pub(super) offset: u64,
}

/// The table of regions, and the log of written pages.
#[derive(Debug, Default)]
pub(super) struct Memory {
    regions: Arc<Regions>,
    log: Option<Log>,
    /// Whether writes must be logged.
    pub(super) logging: bool,
}

/// A table of regions. The regions stay mapped as long as a reference to the table is held.
#[derive(Debug, Default)]
pub(super) struct Regions(Vec<Region>);

#[derive(Debug)]
struct Region {
    place: Place,
    mapping: Arc<Mapping>,
    /// Start of the region in the mapping.
    skip: usize,
}

/// A mapped file of the front-end. If the front-end shortens the file, the lost pages are replaced by empty ones.
#[derive(Debug)]
struct Mapping {
    /// It is dropped before the memory is unmapped.
    guard: Guard,
    memory: MmapRegion,
}

/// A range of guest memory. The range is in one region of the table in which it was found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    region: u32,
    /// Length in bytes.
    pub(super) len: u32,
    offset: u64,
}

impl Piece {
    /// Removes the first `skip` bytes from a list of pieces.
    pub(super) fn skip(pieces: &mut Vec<Self>, mut skip: u32) {
        let mut empty = 0;
        for piece in pieces.iter_mut() {
            let skipped = skip.min(piece.len);
            skip -= skipped;
            piece.len -= skipped;
            piece.offset += u64::from(skipped);
            if piece.len > 0 {
                break;
            }
            empty += 1;
        }
        pieces.drain(..empty);
    }
}

/// A range of guest memory. The range stays mapped as long as this value is held.
#[derive(Debug)]
pub(super) struct Area {
    mapping: Arc<Mapping>,
    start: usize,
    len: usize,
}

/// A bitmap with one bit for each page of guest memory. It is shared with the front-end.
#[derive(Debug)]
struct Log {
    mapping: Mapping,
    start: usize,
    len: usize,
}

impl Memory {
    /// Maps the regions of `table`, and replaces all other regions.
    pub(super) fn replace(&mut self, table: Vec<(Place, File)>) -> Result<(), MapError> {
        let regions = table.into_iter().map(|(place, file)| Region::new(place, file));
        self.regions = Arc::new(Regions(regions.collect::<Result<_, _>>()?));
        Ok(())
    }

    /// Maps the log, of `len` bytes from `offset` in `file`.
    pub(super) fn set_log(&mut self, file: File, offset: u64, len: u64) -> Result<(), MapError> {
        let (mapping, start) = map(file, offset, len)?;
        self.log = Some(Log { len: mapping.memory.len() - start, mapping, start });
        Ok(())
    }

    /// Whether the front-end has shortened a file, and some memory that was accessed is lost.
    pub(super) fn is_lost(&self) -> bool {
        let mut regions = self.regions.0.iter().map(|region| &*region.mapping);
        regions.any(Mapping::is_lost) || self.log.as_ref().is_some_and(|log| log.mapping.is_lost())
    }

    /// Returns the range at `address` in the front-end's address space, if the range is in one region.
    pub(super) fn area(&self, address: u64, len: usize) -> Option<Area> {
        self.regions.0.iter().find_map(|region| {
            let start = region.within(address.checked_sub(region.place.user)?, len as u64)?;
            Some(Area { mapping: Arc::clone(&region.mapping), start, len })
        })
    }

    /// Finds `len` bytes at the guest-physical `address`, and adds the pieces that contain them to `pieces`. There are
    /// several pieces if the bytes are in several regions.
    pub(super) fn find(&self, mut address: u64, len: u32, pieces: &mut Vec<Piece>) -> Result<(), OutOfRange> {
        let mut left = len;
        while left > 0 {
            let found = self.regions.0.iter().enumerate().find_map(|(index, region)| {
                let offset = address.checked_sub(region.place.guest)?;
                Some((index, offset, region.place.len.checked_sub(offset).filter(|room| *room > 0)?))
            });
            let (index, offset, room) = found.ok_or(OutOfRange)?;
            let len = u32::try_from(room).map_or(left, |room| room.min(left));
            pieces.push(Piece { region: index as u32, offset, len });
            left -= len;
            address = address.checked_add(u64::from(len)).ok_or(OutOfRange)?;
        }
        Ok(())
    }

    /// Returns the bytes of a piece that this table has found.
    pub(super) fn slice(&self, piece: Piece) -> Option<VolatileSlice<'_>> {
        self.regions.slice(piece)
    }

    /// The present table.
    pub(super) fn regions(&self) -> &Arc<Regions> {
        &self.regions
    }

    /// Copies the bytes at the guest-physical `address`. The bytes must be in one region.
    pub(super) fn read<const N: usize>(&self, address: u64) -> Result<[u8; N], OutOfRange> {
        let found = self.regions.0.iter().find_map(|region| {
            let start = region.within(address.checked_sub(region.place.guest)?, N as u64)?;
            region.mapping.memory.get_slice(start, N).ok()
        });
        let mut bytes = [0; N];
        found.ok_or(OutOfRange)?.copy_to(&mut bytes);
        Ok(bytes)
    }

    /// Logs that a piece was written to.
    pub(super) fn mark(&self, piece: Piece) {
        if self.logging
            && let Some(region) = self.regions.0.get(piece.region as usize)
        {
            self.mark_at(region.place.guest.saturating_add(piece.offset), u64::from(piece.len));
        }
    }

    /// Logs that `len` bytes were written at `address`, an address of the log.
    pub(super) fn mark_at(&self, address: u64, len: u64) {
        let (true, Some(log), Some(last)) = (self.logging, &self.log, len.checked_sub(1)) else { return };
        for page in address / LOG_PAGE..=address.saturating_add(last) / LOG_PAGE {
            let Ok(at) = usize::try_from(page / 8) else { return };
            if at >= log.len {
                return;
            }
            if let Ok(bits) = log.mapping.memory.get_atomic_ref::<AtomicU8>(log.start + at) {
                bits.fetch_or(1 << (page % 8), Ordering::Relaxed);
            }
        }
    }
}

impl Regions {
    /// Returns the bytes of a piece that this table has found.
    pub(super) fn slice(&self, piece: Piece) -> Option<VolatileSlice<'_>> {
        let region = self.0.get(piece.region as usize)?;
        let start = region.within(piece.offset, u64::from(piece.len))?;
        region.mapping.memory.get_slice(start, piece.len as usize).ok()
    }
}

impl Mapping {
    fn is_lost(&self) -> bool {
        self.guard.is_lost()
    }
}

impl Region {
    fn new(place: Place, file: File) -> Result<Self, MapError> {
        let (mapping, skip) = map(file, place.offset, place.len)?;
        Ok(Self { place, mapping: Arc::new(mapping), skip })
    }

    /// Returns the position in the mapping of `len` bytes at `offset` of the region, if the region contains them.
    fn within(&self, offset: u64, len: u64) -> Option<usize> {
        let end = offset.checked_add(len)?;
        (end <= self.place.len).then(|| self.skip + offset as usize)
    }
}

impl Area {
    /// Returns `len` bytes at position `at`.
    pub(super) fn slice(&self, at: usize, len: usize) -> Result<VolatileSlice<'_>, OutOfRange> {
        self.mapping.memory.get_slice(self.within(at, len)?, len).map_err(|_| OutOfRange)
    }

    /// Returns the word at position `at`.
    pub(super) fn atomic(&self, at: usize) -> Result<&AtomicU16, OutOfRange> {
        self.mapping.memory.get_atomic_ref(self.within(at, 2)?).map_err(|_| OutOfRange)
    }

    fn within(&self, at: usize, len: usize) -> Result<usize, OutOfRange> {
        let fits = at.checked_add(len).is_some_and(|end| end <= self.len);
        if fits { Ok(self.start + at) } else { Err(OutOfRange) }
    }
}

/// Maps `len` bytes at `offset` of `file`. Also returns the position of these bytes in the mapping. The mapping begins
/// at the start of the file: the offset may not be a multiple of the file's page size, which may be that of a huge
/// page.
fn map(file: File, offset: u64, len: u64) -> Result<(Mapping, usize), MapError> {
    let end = offset.checked_add(len).ok_or(MapError::TooLarge)?;
    let (start, size) = (usize::try_from(offset), usize::try_from(end));
    let (Ok(start), Ok(size)) = (start, size) else { return Err(MapError::TooLarge) };
    // An access past the end of the file would lose the guest's memory at once.
    let stat = rustix::fs::fstat(&file).map_err(MapError::File)?;
    let has = u64::try_from(stat.st_size).unwrap_or(0);
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::RegularFile && has < end {
        return Err(MapError::PastTheEnd(has));
    }
    let memory = MmapRegion::from_file(FileOffset::new(file, 0), size).map_err(MapError::Map)?;
    let guard = Guard::new(&memory.as_volatile_slice()).map_err(MapError::Guard)?;
    Ok((Mapping { guard, memory }, start))
}

#[cfg(test)]
mod tests;
