use super::super::driver::{BUFFERS, Driver, SIZE, WRITE};
use super::super::ring::Rules;
use super::*;
use crate::link::all_sums;

const BUFFER: usize = 256;

/// A driver that accepts no open checksum receives correct checksums, for all sums.
#[test]
fn all_sums_are_right_without_offload() {
    let mut driver = Driver::new();
    let mut device = Device::default();
    device.queues[0].ring = Some(driver.ring(Rules::default()).unwrap());
    device.memory = std::mem::take(&mut driver.memory);
    let (mut to_guest, mut watcher) = (ToGuest::new(1500), Watcher::new(None));
    let at = |index: u16| BUFFERS + BUFFER * usize::from(index);
    (0..SIZE).for_each(|index| driver.describe(index, at(index), BUFFER as u32, WRITE, 0));
    (0..SIZE).for_each(|index| driver.offer(index));
    let mut seen = 0_u16;
    all_sums::check(|frame, offload| {
        let layout = Layout { head: frame.len(), room: 0 };
        assert!(to_guest.prepare(&mut device, layout, false));
        to_guest.slot(&device, layout).head.copy_from_slice(frame);
        to_guest.commit(&mut device, &mut watcher, frame.len(), offload).unwrap();
        device.publish();
        let mut frames = Vec::new();
        while seen != driver.used_index() {
            let (index, len) = driver.used(seen);
            let frame = driver.read(at(index as u16), len as usize);
            assert_eq!(frame[..NUM_BUFFERS_AT], [0; NUM_BUFFERS_AT], "nothing is left open");
            frames.push(frame[HEADER_LEN..].to_vec());
            driver.offer(index as u16);
            seen = seen.wrapping_add(1);
        }
        frames
    });
}
