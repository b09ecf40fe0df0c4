use wire::frame::{Body, Transport};
use wire::payload::Payload as _;
use wire::segment::complete_checksum;
use wire::tcp::{self, Seq};

use super::super::driver::{BUFFERS, Driver, GUEST, INDIRECT, NEXT};
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
    while from_guest.next(&mut device, &mut frame, false) == 1 {
        let (head, whole, _) = frame.parts();
        assert_eq!(head.len(), wire::payload::Payload::len(whole));
        lens.push(head.len());
    }
    assert_eq!(lens, [0, 0, 1, 0, 0, 60]);
    device.publish();
    assert_eq!(driver.used_index(), 6, "all are given back");
}

const PAYLOAD: usize = 1000;

/// How a guest leaves the checksum of a segment.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Checksum {
    Complete,
    Partial,
    Wrong,
}

/// The buffer, with its header, of the `number`th segment of a stream.
fn segment(v6: bool, number: u8, checksum: Checksum) -> Vec<u8> {
    let (source, destination) = if v6 { ("fd00::2", "fd00::7") } else { ("192.0.2.2", "192.0.2.7") };
    let seq = Seq(u32::MAX - 1500) + u32::from(number) * PAYLOAD as u32;
    let header = tcp::Header::new((5000, 80), seq, Seq(7), tcp::Flags::ACK, 100, 0);
    let headers = testkit::guest::headers_of(source, destination);
    let (mut frame, mut offload) =
        testkit::guest::tcp(&headers, header, &[], PAYLOAD, |room| room.fill(number));
    if checksum != Checksum::Partial {
        assert!(complete_checksum(&mut frame, &offload));
        offload = Offload::default();
    }
    if checksum == Checksum::Wrong {
        *frame.last_mut().unwrap() ^= 1;
    }
    [&offload.to_virtio()[..], &frame].concat()
}

/// The next frame: the number of frames of the guest that it consists of, and its payload and offload work, if it is a
/// segment.
fn take(from_guest: &mut FromGuest, device: &mut Device, whole: bool) -> (usize, Vec<u8>, Offload) {
    let mut frame = Frame::new();
    let count = from_guest.next(device, &mut frame, whole);
    let (head, whole, offload) = frame.parts();
    let Ok(parsed) = wire::frame::parse_head(head, whole) else { return (count, Vec::new(), offload) };
    let Body::Ip(packet) = parsed.body else { unreachable!() };
    let Transport::Tcp(segment) = packet.transport else { unreachable!() };
    let mut payload = vec![0; segment.payload.len()];
    assert_eq!(segment.payload.copy_to(&mut payload), payload.len());
    (count, payload, offload)
}

fn bytes(numbers: std::ops::Range<u8>) -> Vec<u8> {
    numbers.flat_map(|number| [number; PAYLOAD]).collect()
}

#[test]
fn adjacent_segments_are_one_frame() {
    for v6 in [false, true] {
        for checksum in [Checksum::Complete, Checksum::Partial] {
            let segments: Vec<_> = (0..5).map(|number| segment(v6, number, checksum)).collect();
            let contents: Vec<_> = segments.iter().map(Vec::as_slice).collect();
            let (mut device, driver) = offered(&contents);
            let mut from_guest = FromGuest::default();
            let taken = take(&mut from_guest, &mut device, false);
            assert!(taken == (5, bytes(0..5), Offload::VERIFIED), "IPv6: {v6}, {checksum:?}: {}", taken.0);
            device.publish();
            assert_eq!(driver.used_index(), 0, "the places are in use");
            from_guest.release(&mut device);
            device.publish();
            assert_eq!(driver.used_index(), 5);
            assert_eq!((0..5).map(|at| driver.used(at).0).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        }
    }
}

/// What can't be joined is the next frame, as it is.
#[test]
fn other_frames_end_a_train() {
    let first = segment(false, 0, Checksum::Complete);
    let mut super_frame = segment(false, 1, Checksum::Partial);
    super_frame[1] = 1; // VIRTIO_NET_HDR_GSO_TCPV4
    super_frame[4..6].copy_from_slice(&500_u16.to_le_bytes());
    let mut unknown = segment(false, 1, Checksum::Complete);
    unknown[1] = 3;
    let others = [
        segment(false, 1, Checksum::Wrong),
        segment(false, 2, Checksum::Complete),
        segment(true, 1, Checksum::Complete),
        super_frame,
        unknown,
        vec![0; HEADER_LEN - 1],
    ];
    for other in &others {
        let (mut device, driver) = offered(&[&first, other]);
        let mut from_guest = FromGuest::default();
        let taken = take(&mut from_guest, &mut device, false);
        assert_eq!((taken.0, taken.1), (1, bytes(0..1)));
        let alone = take(&mut FromGuest::default(), &mut offered(&[other]).0, false);
        assert_eq!(take(&mut from_guest, &mut device, false), alone);
        assert_eq!(take(&mut from_guest, &mut device, false).0, 0);
        device.publish();
        assert_eq!(driver.used_index(), 2);
    }
}

/// A capture shows the frames that the guest sent.
#[test]
fn copied_frames_are_not_joined() {
    let segments = [0, 1].map(|number| segment(false, number, Checksum::Complete));
    let (mut device, _driver) = offered(&[&segments[0], &segments[1]]);
    let mut from_guest = FromGuest::default();
    for number in 0..2 {
        let taken = take(&mut from_guest, &mut device, true);
        assert_eq!(taken, (1, bytes(number..number + 1), Offload::default()));
    }
}

/// A chain that breaks the ring ends the train. The train is handled first.
#[test]
fn a_broken_chain_does_not_lose_the_train() {
    let segments = [0, 1].map(|number| segment(false, number, Checksum::Complete));
    let (mut device, mut driver) = offered(&[&segments[0], &segments[1]]);
    driver.describe(2, BUFFERS, 0, 0, 0);
    driver.offer(2);
    let mut from_guest = FromGuest::default();
    assert_eq!(take(&mut from_guest, &mut device, false), (2, bytes(0..2), Offload::VERIFIED));
    assert!(device.queues[1].ring.is_some());
    assert_eq!(take(&mut from_guest, &mut device, false).0, 0);
    assert!(device.queues[1].ring.is_none());
    assert_eq!(driver.used_index(), 0, "a ring that is broken is not written to");
}

/// Headers and payload may be in any number of buffers. A train has at most [`MAX_PIECES`] of them.
#[test]
fn segments_in_pieces_are_joined() {
    let mut driver = Driver::new();
    let mut device = Device::default();
    device.queues[1].ring = Some(driver.ring(Rules { indirect: true, ..Rules::default() }).unwrap());
    device.queues[1].pending = true;
    device.memory = std::mem::take(&mut driver.memory);
    let (mut at, mut table) = (BUFFERS + 0x1000, BUFFERS);
    for number in 0..14 {
        let segment = segment(false, number, Checksum::Complete);
        // The first cut is in the virtio header, the second one in the TCP header.
        let lens = [5, 50, 200, 300, 10, 77, segment.len() - 642];
        driver.write(at, &segment);
        for (index, len) in lens.into_iter().enumerate() {
            let next = if index + 1 < lens.len() { NEXT } else { 0 };
            let address = GUEST + at as u64;
            driver.describe_at(table, index, address, len as u32, next, index as u16 + 1);
            at += len;
        }
        driver.describe(number.into(), table, 16 * lens.len() as u32, INDIRECT, 0);
        driver.offer(number.into());
        table += 16 * lens.len();
    }
    let mut from_guest = FromGuest::default();
    // The first segment has 7 pieces, the others have 5 without their headers. There is room for 64 pieces, with the headers of the next segment.
    for segments in [0..12, 12..14] {
        let (count, payload, offload) = take(&mut from_guest, &mut device, false);
        assert_eq!((count, offload), (segments.len(), Offload::VERIFIED));
        assert!(payload == bytes(segments));
    }
}
