use super::super::driver::{BUFFERS, Driver, GUEST, INDIRECT, LEN, NEXT, SIZE, USER, WRITE};
use super::super::memory::Piece;
use super::*;

const ALL: Rules = Rules { event_idx: false, indirect: true };

fn peek(driver: &Driver, direction: Direction) -> Result<(Chain, Vec<Piece>), Broken> {
    let mut pieces = Vec::new();
    let chain = driver.ring(ALL)?.peek(&driver.memory, 0, direction, &mut pieces)?;
    Ok((chain, pieces))
}

/// The error that the driver's ring causes.
fn broken(driver: &Driver) -> Broken {
    peek(driver, Direction::FromDriver).unwrap_err()
}

#[test]
fn a_chain_is_taken_and_given_back_r112() {
    let mut driver = Driver::new();
    let mut ring = driver.ring(ALL).unwrap();
    assert_eq!(ring.waiting(), Ok(0));
    driver.write(BUFFERS, b"headpayload");
    driver.describe(3, BUFFERS, 4, NEXT, 5);
    driver.describe(5, BUFFERS + 4, 7, 0, 0);
    driver.offer(3);
    assert_eq!(ring.waiting(), Ok(1));
    let (chain, pieces) = peek(&driver, Direction::FromDriver).unwrap();
    assert_eq!((chain.head, chain.len), (3, 11));
    let mut bytes = Vec::new();
    for piece in pieces {
        let mut part = vec![0; piece.len as usize];
        driver.memory.slice(piece).unwrap().copy_to(&mut part);
        bytes.extend(part);
    }
    assert_eq!(bytes, b"headpayload");
    ring.advance(1);
    ring.give_back(&driver.memory, 3, 0).unwrap();
    assert_eq!((driver.used_index(), ring.unpublished()), (0, 1));
    ring.publish(&driver.memory).unwrap();
    assert_eq!((driver.used_index(), driver.used(0)), (1, (3, 0)));
    assert_eq!(ring.waiting(), Ok(0));
}

#[test]
fn descriptors_may_be_in_a_table_of_their_own() {
    let mut driver = Driver::new();
    let table = 0x8000;
    driver.describe_at(table, 0, GUEST + BUFFERS as u64, 10, NEXT, 2);
    driver.describe_at(table, 2, GUEST + BUFFERS as u64, 20, 0, 0);
    driver.describe(0, table, 48, INDIRECT, 0);
    driver.offer(0);
    let (chain, pieces) = peek(&driver, Direction::FromDriver).unwrap();
    assert_eq!((chain.head, chain.len, pieces.len()), (0, 30, 2));
}

#[test]
fn what_cannot_be_breaks_the_ring() {
    let offer = |index: u16, at: usize, len: u32, flags: u16, next: u16| {
        let mut driver = Driver::new();
        driver.describe(index, at, len, flags, next);
        driver.offer(index);
        driver
    };
    // loops
    assert_eq!(broken(&offer(0, BUFFERS, 1, NEXT, 0)), Broken::Chain);
    let two = offer(1, BUFFERS, 1, NEXT, 2);
    two.describe(2, BUFFERS, 1, NEXT, 1);
    assert_eq!(broken(&two), Broken::Chain);
    // indices
    assert_eq!(broken(&offer(0, BUFFERS, 1, NEXT, SIZE)), Broken::Descriptor(SIZE));
    let mut head = Driver::new();
    head.offer(0xffff);
    assert_eq!(broken(&head), Broken::Descriptor(0xffff));
    // addresses
    assert_eq!(broken(&offer(0, LEN - 1, 2, 0, 0)), Broken::Buffer);
    assert_eq!(broken(&offer(0, LEN, 1, 0, 0)), Broken::Buffer);
    assert_eq!(broken(&offer(0, BUFFERS, u32::MAX, 0, 0)), Broken::Buffer);
    let far = offer(0, 0, 1, 0, 0);
    far.describe_at(0, 0, u64::MAX, 1, 0, 0);
    assert_eq!(broken(&far), Broken::Buffer);
    // lengths and directions
    assert_eq!(broken(&offer(0, BUFFERS, 0, 0, 0)), Broken::Empty);
    assert_eq!(broken(&offer(0, BUFFERS, 1, WRITE, 0)), Broken::Direction);
    let read_only = offer(0, BUFFERS, 1, 0, 0);
    assert_eq!(peek(&read_only, Direction::ToDriver).unwrap_err(), Broken::Direction);
}

#[test]
fn a_broken_table_breaks_the_ring() {
    let table = |len: u32, flags: u16| {
        let mut driver = Driver::new();
        driver.describe(0, 0x8000, len, flags, 0);
        driver.offer(0);
        driver
    };
    assert_eq!(broken(&table(0, INDIRECT)), Broken::Indirect);
    assert_eq!(broken(&table(17, INDIRECT)), Broken::Indirect);
    assert_eq!(broken(&table(16, INDIRECT | NEXT)), Broken::Indirect);
    let nested = table(16, INDIRECT);
    nested.describe_at(0x8000, 0, GUEST, 16, INDIRECT, 0);
    assert_eq!(broken(&nested), Broken::Indirect);
    let outside = table(16, INDIRECT);
    outside.describe_at(0x8000, 0, GUEST, 16, NEXT, 1);
    assert_eq!(broken(&outside), Broken::Descriptor(1));
    let loops = table(32, INDIRECT);
    loops.describe_at(0x8000, 0, GUEST, 16, NEXT, 1);
    loops.describe_at(0x8000, 1, GUEST, 16, NEXT, 0);
    assert_eq!(broken(&loops), Broken::Chain);
    let mut far = Driver::new();
    far.describe(0, LEN - 16, 32, INDIRECT, 0);
    far.describe_at(LEN - 16, 0, GUEST, 1, NEXT, 1);
    far.offer(0);
    assert_eq!(broken(&far), Broken::Buffer);
    // never negotiated
    let plain = table(16, INDIRECT);
    let ring = plain.ring(Rules::default()).unwrap();
    let result = ring.peek(&plain.memory, 0, Direction::FromDriver, &mut Vec::new());
    assert_eq!(result.unwrap_err(), Broken::Indirect);
}

#[test]
fn an_index_too_far_ahead_breaks_the_ring() {
    let driver = Driver::new();
    let ring = driver.ring(ALL).unwrap();
    driver.set_index(SIZE);
    assert_eq!(ring.waiting(), Ok(SIZE));
    driver.set_index(SIZE + 1);
    assert_eq!(ring.waiting(), Err(Broken::Index(SIZE + 1)));
    driver.set_index(u16::MAX);
    assert_eq!(ring.waiting(), Err(Broken::Index(u16::MAX)));
}

#[test]
fn a_ring_has_to_be_in_memory_and_aligned() {
    let driver = Driver::new();
    let at = |addresses| Ring::new(&driver.memory, SIZE, addresses, ALL, 0).err();
    let good = Driver::addresses();
    assert_eq!(at(good), None);
    let end = USER + LEN as u64;
    assert_eq!(at(Addresses { descriptors: end - 16, ..good }), Some(Broken::Ring));
    assert_eq!(at(Addresses { available: end - 4, ..good }), Some(Broken::Ring));
    assert_eq!(at(Addresses { used: end, ..good }), Some(Broken::Ring));
    assert_eq!(at(Addresses { used: u64::MAX - 3, ..good }), Some(Broken::Ring));
    assert_eq!(at(Addresses { used: 0, ..good }), Some(Broken::Ring));
    assert_eq!(at(Addresses { available: good.available + 1, ..good }), Some(Broken::Ring));
}

#[test]
fn the_driver_is_called_when_it_wants_to_be() {
    let driver = Driver::new();
    let mut ring = driver.ring(ALL).unwrap();
    let call = |ring: &mut Ring, count| {
        (0..count).for_each(|_| ring.give_back(&driver.memory, 0, 0).unwrap());
        ring.publish(&driver.memory).unwrap();
        ring.wants_call().unwrap()
    };
    assert!(!call(&mut ring, 0)); // no new chain
    assert!(call(&mut ring, 3));
    driver.set_flags(1);
    assert!(!call(&mut ring, 1));
    ring.set_rules(Rules { event_idx: true, indirect: true });
    driver.set_used_event(5); // after the sixth chain
    assert!(!call(&mut ring, 1));
    assert!(call(&mut ring, 1));
    assert!(!call(&mut ring, 1));
    driver.set_used_event(9);
    assert!(call(&mut ring, 6)); // in one batch
}

#[test]
fn indices_go_around() {
    let mut driver = Driver::new();
    driver.describe(0, BUFFERS, 4, 0, 0);
    let mut ring = driver.ring(ALL).unwrap();
    for round in 0..70_000_u32 {
        driver.offer(0);
        assert_eq!(ring.waiting(), Ok(1));
        let mut pieces = Vec::new();
        let chain = ring.peek(&driver.memory, 0, Direction::FromDriver, &mut pieces).unwrap();
        ring.advance(1);
        ring.give_back(&driver.memory, chain.head, 0).unwrap();
        ring.publish(&driver.memory).unwrap();
        assert_eq!(u32::from(driver.used_index()), (round + 1) & 0xffff);
    }
}

#[test]
fn kicks_are_asked_for_by_flag_or_by_index() {
    let mut driver = Driver::new();
    driver.describe(0, BUFFERS, 4, 0, 0);
    let mut ring = driver.ring(ALL).unwrap();
    ring.suppress_kicks(&driver.memory).unwrap();
    assert_eq!(driver.used_flags(), 1);
    driver.offer(0);
    assert_eq!(ring.request_kicks(&driver.memory, 0), Ok(1)); // arrived before the request
    assert_eq!(driver.used_flags(), 0);
    assert_eq!(ring.request_kicks(&driver.memory, 1), Ok(0));
    ring.set_rules(Rules { event_idx: true, indirect: true });
    assert_eq!(ring.request_kicks(&driver.memory, 1), Ok(0));
    assert_eq!(driver.available_event(), 1); // the second chain
}
