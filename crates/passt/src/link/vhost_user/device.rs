//! The virtio network device that a front-end sets up by messages of the vhost-user protocol.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use rustix::event::epoll::{self, EventFlags};
use vhost::vhost_user::Error::ReqHandlerError;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Backend, GpuBackend, Result, VhostUserBackendReqHandlerMut};

use super::features::{Features, protocol_features};
use super::memory::{Memory, Place};
use super::queue::{Kick, Queue};
use super::ring::{Addresses, MAX_SIZE, Ring, Rules};
use crate::event::Source;

/// Maximum number of pairs of queues. One loop serves all queues, so more pairs are not faster. But some guests are
/// configured with one pair for each processor.
pub(super) const MAX_PAIRS: usize = 16;
/// Number of queues. A pair has two queues.
pub(super) const QUEUES: usize = 2 * MAX_PAIRS;

/// The device that a front-end has set up.
#[derive(Debug, Default)]
pub(super) struct Device {
    /// The features that driver and back-end agree on.
    pub(super) features: Features,
    protocol: u64,
    /// The front-end has requested the number of pairs of queues.
    asked_for_pairs: bool,
    pub(super) memory: Memory,
    /// The queues. Even index: frames to the guest. Odd index: frames from the guest.
    pub(super) queues: [Queue; QUEUES],
    /// Descriptors that the event loop must not watch any more.
    pub(super) retired: Vec<Kick>,
}

impl Device {
    /// Whether REPLY_ACK was negotiated: requests may require an answer.
    pub(super) fn acknowledges(&self) -> bool {
        self.protocol & VhostUserProtocolFeatures::REPLY_ACK.bits() != 0
    }

    /// Whether the front-end requested the number of queues and then set up no queue. QEMU does so if it needs more
    /// queues.
    pub(super) fn had_too_few_queues(&self) -> bool {
        self.asked_for_pairs && self.queues.iter().all(|queue| queue.size == 0)
    }

    /// Whether frames may cross the queue. If protocol features were not negotiated, frames may cross all queues from
    /// the start.
    pub(super) fn is_enabled(&self, index: usize) -> bool {
        !self.features.contains(Features::PROTOCOL_FEATURES)
            || self.queues.get(index).is_some_and(|queue| queue.enabled)
    }

    /// The queues to which frames for the guest may be sent.
    pub(super) fn open_queues(&self) -> impl Iterator<Item = (usize, &Ring)> {
        let even = self.queues.iter().enumerate().step_by(2);
        even.filter(|(index, _)| self.is_enabled(*index))
            .filter_map(|(index, queue)| Some((index, queue.ring.as_ref()?)))
    }

    /// Whether the driver has made buffers for frames to the guest available.
    pub(super) fn has_buffers(&mut self) -> bool {
        let mut some = false;
        for index in (0..QUEUES).step_by(2) {
            let enabled = self.is_enabled(index);
            let queue = &mut self.queues[index];
            match queue.ring.as_ref().map(Ring::waiting) {
                Some(Ok(0)) => queue.short = 0,
                Some(Ok(_)) => some |= enabled,
                Some(Err(broken)) => queue.fail(index, broken),
                None => {}
            }
        }
        some
    }

    /// Requests notifications of new buffers from the driver. Returns whether some buffers are already available.
    pub(super) fn request_buffers(&mut self) -> bool {
        let Self { queues, memory, .. } = self;
        let mut new = false;
        for (index, queue) in queues.iter_mut().enumerate().step_by(2) {
            let Some(ring) = &mut queue.ring else { continue };
            match ring.request_kicks(memory, queue.short) {
                Ok(more) => new |= more > 0,
                Err(broken) => queue.fail(index, broken),
            }
        }
        new
    }

    /// Makes `epoll` watch new descriptors, and forget descriptors that are not in use any more.
    pub(super) fn watch_kicks(&mut self, epoll: &OwnedFd) -> io::Result<()> {
        self.forget_kicks(epoll);
        for (index, queue) in self.queues.iter_mut().enumerate() {
            let Some(kick) = queue.kick.as_mut().filter(|kick| !kick.watched) else { continue };
            let source = Source::Link(super::QUEUE + index as u32);
            source.watch(epoll, &kick.fd, EventFlags::IN | EventFlags::ET)?;
            kick.watched = true;
        }
        Ok(())
    }

    /// Makes `epoll` forget the descriptors that are not in use any more.
    pub(super) fn forget_kicks(&mut self, epoll: &OwnedFd) {
        for kick in self.retired.drain(..).filter(|kick| kick.watched) {
            // It is not enough to close the descriptor: the front-end has a copy.
            let _ = epoll::delete(epoll, &kick.fd);
        }
    }

    fn rules(&self) -> Rules {
        Rules {
            event_idx: self.features.contains(Features::EVENT_IDX),
            indirect: self.features.contains(Features::INDIRECT_DESC),
        }
    }

    /// Publishes the chains that were given back, on all queues.
    pub(super) fn publish(&mut self) {
        for (index, queue) in self.queues.iter_mut().enumerate() {
            queue.publish(index, &self.memory);
        }
    }

    fn queue(&mut self, index: u32) -> Result<&mut Queue> {
        self.queues.get_mut(index as usize).ok_or_else(|| no_queue(index))
    }

    fn start(&mut self, index: u32) {
        let rules = self.rules();
        if let Some(queue) = self.queues.get_mut(index as usize) {
            queue.start(index as usize, &self.memory, rules, false);
        }
    }

    fn stop(&mut self, index: usize) {
        if let Some(queue) = self.queues.get_mut(index) {
            self.retired.extend(queue.stop());
        }
    }

    /// Forgets the front-end, but keeps the descriptors that the event loop must forget.
    pub(super) fn reset(&mut self) {
        for index in 0..QUEUES {
            self.stop(index);
        }
        *self = Self { retired: std::mem::take(&mut self.retired), ..Self::default() };
    }
}

/// The error for a request that is refused.
fn refused(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> vhost::vhost_user::Error {
    ReqHandlerError(io::Error::other(why))
}

fn no_queue(index: u32) -> vhost::vhost_user::Error {
    refused(format!("there is no queue {index}, as there are {MAX_PAIRS} pairs of queues at most"))
}

fn unsupported<T>() -> Result<T> {
    Err(refused("this was never offered"))
}

/// Makes a descriptor non-blocking: the other side may read late, or never.
fn without_blocking(fd: Option<File>) -> Result<Option<File>> {
    if let Some(fd) = &fd {
        let set = |flags| rustix::fs::fcntl_setfl(fd, flags | rustix::fs::OFlags::NONBLOCK);
        rustix::fs::fcntl_getfl(fd).and_then(set).map_err(|errno| refused(errno.to_string()))?;
    }
    Ok(fd)
}

impl VhostUserBackendReqHandlerMut for Device {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        // The vhost-user specification says that this message is no longer used and should be ignored.
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(Features::all().bits())
    }

    fn set_features(&mut self, bits: u64) -> Result<()> {
        let Some(features) = Features::from_bits(bits) else {
            return Err(refused(format!(
                "features {:#x} were never offered",
                bits & !Features::all().bits()
            )));
        };
        if !features.contains(Features::VERSION_1) {
            return Err(refused("the guest's driver speaks virtio before 1.0, which is not supported"));
        }
        log::debug!("features of the guest's driver: {features:?}");
        self.features = features;
        self.memory.logging = features.contains(Features::LOG_ALL);
        let rules = self.rules();
        for ring in self.queues.iter_mut().filter_map(|queue| queue.ring.as_mut()) {
            ring.set_rules(rules);
        }
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(protocol_features())
    }

    fn set_protocol_features(&mut self, bits: u64) -> Result<()> {
        match bits & !protocol_features().bits() {
            0 => {
                self.protocol = bits;
                Ok(())
            }
            unknown => Err(refused(format!("protocol features {unknown:#x} were never offered"))),
        }
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        self.asked_for_pairs = true;
        Ok(MAX_PAIRS as u64)
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _: Option<bool>,
    ) -> Result<Option<Vec<u64>>> {
        let table = regions.iter().zip(files).map(|(region, file)| {
            let place = Place {
                guest: region.guest_phys_addr,
                user: region.user_addr,
                len: region.memory_size,
                offset: region.mmap_offset,
            };
            (place, file)
        });
        self.memory
            .replace(table.collect())
            .map_err(|error| refused(format!("the guest's memory can't be mapped: {error}")))?;
        let rules = self.rules();
        for (index, queue) in self.queues.iter_mut().enumerate() {
            if queue.ring.is_some() {
                queue.start(index, &self.memory, rules, true);
            }
        }
        Ok(None)
    }

    fn set_log_base(&mut self, log: &VhostUserLog, file: File) -> Result<()> {
        let (offset, len) = (log.mmap_offset, log.mmap_size);
        self.memory
            .set_log(file, offset, len)
            .map_err(|error| refused(format!("the log of written pages can't be mapped: {error}")))
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let queue = self.queue(index)?;
        if !num.is_power_of_two() || num > MAX_SIZE {
            return Err(refused(format!("queue {index} can't have {num} entries")));
        }
        if queue.ring.is_some() {
            return Err(refused(format!("queue {index} is in use")));
        }
        queue.size = num as u16;
        Ok(())
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        descriptors: u64,
        used: u64,
        available: u64,
        log: u64,
    ) -> Result<()> {
        let log = flags.contains(VhostUserVringAddrFlags::VHOST_VRING_F_LOG).then_some(log);
        let (memory, rules) = (&self.memory, self.rules());
        let Some(queue) = self.queues.get_mut(index as usize) else {
            return Err(no_queue(index));
        };
        queue.addresses = Some(Addresses { descriptors, available, used, log });
        // A front-end sends this message for a queue in use to turn logging on or off.
        queue.start(index as usize, memory, rules, true);
        Ok(())
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let queue = self.queue(index)?;
        let base = u16::try_from(base).map_err(|_| refused(format!("queue {index} has no entry {base}")))?;
        if queue.ring.is_some() {
            return Err(refused(format!("queue {index} is in use")));
        }
        queue.base = base;
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        self.queue(index)?;
        self.stop(index as usize);
        let base = self.queue(index)?.base;
        Ok(VhostUserVringState::new(index, u32::from(base)))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let queue = self.queue(index.into())?;
        let Some(fd) = fd else {
            return Err(refused(format!("queue {index} would have to be polled, which is not supported")));
        };
        let old = queue.kick.replace(Kick { fd, watched: false });
        self.retired.extend(old);
        self.start(index.into());
        Ok(())
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let fd = without_blocking(fd)?;
        let queue = self.queue(index.into())?;
        queue.call = fd;
        // A notification over the previous descriptor may have been lost.
        queue.call_now();
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let fd = without_blocking(fd)?;
        self.queue(index.into())?.error = fd;
        Ok(())
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        let queue = self.queue(index)?;
        queue.enabled = enable;
        queue.pending = queue.ring.is_some();
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        unsupported()
    }

    fn get_config(&mut self, _: u32, _: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        unsupported()
    }

    fn set_config(&mut self, _: u32, _: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        unsupported()
    }

    fn set_backend_req_fd(&mut self, _: Backend) {}

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        unsupported()
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        unsupported()
    }

    fn get_inflight_fd(&mut self, _: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        unsupported()
    }

    fn set_inflight_fd(&mut self, _: &VhostUserInflight, _: File) -> Result<()> {
        unsupported()
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        unsupported()
    }

    fn add_mem_region(
        &mut self,
        _: &VhostUserSingleMemoryRegion,
        _: File,
        _: Option<bool>,
    ) -> Result<Option<u64>> {
        unsupported()
    }

    fn remove_mem_region(&mut self, _: &VhostUserSingleMemoryRegion) -> Result<()> {
        unsupported()
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        unsupported()
    }

    fn check_device_state(&mut self) -> Result<()> {
        unsupported()
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        unsupported()
    }
}
