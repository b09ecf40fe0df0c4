use super::super::driver::{BUFFERS, Driver};
use super::super::ring::Rules;
use super::*;

/// A device that has been offered a buffer with each of `contents`.
fn offered(contents: &[&[u8]]) -> (Device, Driver) {
    let mut driver = Driver::new();
    let mut device = Device::default();
    device.queues[1].ring = Some(driver.ring(Rules::default()).unwrap());
    device.queues[1].pending = true;
    device.memory = std::mem::take(&mut driver.memory);
    let mut at = BUFFERS;
    for (index, bytes) in (0..).zip(contents) {
        driver.write(at, bytes);
        driver.describe(index, at, bytes.len() as u32, 0, 0);
        driver.offer(index);
        at += bytes.len();
    }
    (device, driver)
}

/// A buffer without a valid frame counts as an empty frame, so that the caller's limit of frames also limits these
/// buffers.
#[test]
fn what_is_no_frame_is_an_empty_one() {
    let good = [&[0; HEADER_LEN][..], &[0x55; 60]].concat();
    let mut unknown = good.clone();
    unknown[1] = 3; // a kind of segmentation that was never offered
    let too_long = vec![0; BUFFER_LEN + 1];
    let contents = [&good[..11], &good[..12], &good[..13], &unknown, &too_long, &good];
    let (mut device, driver) = offered(&contents);
    let (mut from_guest, mut frame) = (FromGuest::default(), Frame::new());
    let mut lens = Vec::new();
    while from_guest.next(&mut device, &mut frame, false) {
        let (head, whole, _) = frame.parts();
        assert_eq!(head.len(), wire::payload::Payload::len(whole));
        lens.push(head.len());
    }
    assert_eq!(lens, [0, 0, 1, 0, 0, 60]);
    device.publish();
    assert_eq!(driver.used_index(), 6, "all are given back");
}
