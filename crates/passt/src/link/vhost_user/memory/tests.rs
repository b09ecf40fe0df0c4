use super::super::driver::file;
use super::*;

const PAGE: u64 = 4096;

fn two_regions() -> Memory {
    let mut memory = Memory::default();
    let place = |guest, user, offset| Place { guest, user, len: PAGE, offset };
    // The regions are adjacent for the guest, but not for the front-end. They are in one file, at an offset that is not
    // a multiple of the page size.
    let shared = file(3 * PAGE as usize);
    let table = vec![
        (place(PAGE, 0x10_0000, 100), shared.try_clone().unwrap()),
        (place(2 * PAGE, 0x50_0000, 100 + PAGE), shared),
    ];
    memory.replace(table).unwrap();
    memory
}

fn find(memory: &Memory, address: u64, len: u32) -> Result<Vec<u32>, OutOfRange> {
    let mut pieces = Vec::new();
    memory.find(address, len, &mut pieces)?;
    Ok(pieces.iter().map(|piece| piece.len).collect())
}

#[test]
fn a_buffer_may_go_on_in_the_next_region() {
    let memory = two_regions();
    assert_eq!(find(&memory, PAGE, 4096), Ok(vec![4096]));
    assert_eq!(find(&memory, 2 * PAGE - 10, 30), Ok(vec![10, 20]));
    assert_eq!(find(&memory, PAGE - 1, 1), Err(OutOfRange));
    assert_eq!(find(&memory, 3 * PAGE - 1, 2), Err(OutOfRange));
    assert_eq!(find(&memory, 3 * PAGE, 1), Err(OutOfRange));
    assert_eq!(find(&memory, 0, u32::MAX), Err(OutOfRange));
    assert_eq!(find(&memory, u64::MAX, 2), Err(OutOfRange));
}

#[test]
fn regions_are_where_they_are_in_their_file() {
    let memory = two_regions();
    let mut pieces = Vec::new();
    memory.find(2 * PAGE - 2, 4, &mut pieces).unwrap();
    memory.slice(pieces[0]).unwrap().copy_from(b"ab");
    memory.slice(pieces[1]).unwrap().copy_from(b"cd");
    let area = memory.area(0x10_0000 + PAGE - 2, 2).unwrap();
    let mut bytes = [0; 2];
    area.slice(0, 2).unwrap().copy_to(&mut bytes);
    assert_eq!(&bytes, b"ab");
    assert_eq!(memory.read(2 * PAGE), Ok(*b"cd"));
    assert_eq!(memory.read::<4>(2 * PAGE - 2), Err(OutOfRange)); // in two regions
    assert!(memory.area(0x10_0000 + PAGE - 2, 3).is_none());
    assert!(area.slice(1, 2).is_err() && area.slice(usize::MAX, 2).is_err());
}

#[test]
fn an_area_outlives_the_table_it_was_found_in() {
    let mut memory = two_regions();
    let area = memory.area(0x10_0000, 16).unwrap();
    memory.replace(Vec::new()).unwrap();
    area.slice(0, 16).unwrap().copy_from(&[7; 16]);
    assert!(memory.area(0x10_0000, 16).is_none());
    assert_eq!(find(&memory, PAGE, 1), Err(OutOfRange));
}

#[test]
fn what_a_file_does_not_have_is_not_mapped() {
    let mut memory = Memory::default();
    let mut map = |len, offset| memory.replace(vec![(Place { guest: 0, user: 0, len, offset }, file(4096))]);
    assert!(matches!(map(4097, 0), Err(MapError::PastTheEnd(4096))));
    assert!(matches!(map(1, 4096), Err(MapError::PastTheEnd(_))));
    assert!(matches!(map(u64::MAX, 1), Err(MapError::TooLarge)));
    assert!(matches!(map(u64::MAX, 0), Err(MapError::PastTheEnd(_))));
    map(1, 4095).unwrap();
}

#[test]
fn pages_written_to_are_logged() {
    let mut memory = two_regions();
    let log = file(16);
    memory.set_log(log.try_clone().unwrap(), 8, 8).unwrap();
    let mut pieces = Vec::new();
    memory.find(2 * PAGE - 1, 2, &mut pieces).unwrap();
    memory.mark(pieces[0]);
    let logged = || {
        let mut bytes = [0; 16];
        std::os::unix::fs::FileExt::read_exact_at(&log, &mut bytes, 0).unwrap();
        u128::from_le_bytes(bytes)
    };
    assert_eq!(logged(), 0); // logging is off
    memory.logging = true;
    memory.mark(pieces[0]);
    assert_eq!(logged(), 1 << (64 + 1));
    memory.mark(pieces[1]);
    assert_eq!(logged(), 3 << (64 + 1));
    memory.mark_at(10 * PAGE + 4095, 2 + PAGE);
    assert_eq!(logged(), (3 << (64 + 1)) | (7 << (64 + 10)));
    memory.mark_at(64 * PAGE, 1); // past the end of the log
    memory.mark_at(u64::MAX - 1, 5);
    assert_eq!(logged(), (3 << (64 + 1)) | (7 << (64 + 10)));
}
