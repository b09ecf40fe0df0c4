use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use tempfile::TempDir;

use super::*;

/// The minimum limit that `--log-size` accepts.
const LIMIT: u64 = 40960;
const TITLE: &str = "pasta 1: /bin/pasta (1)";

fn heading() -> String {
    format!("{TITLE} - truncated")
}

/// A log file in the directory `parent`.
fn log_in(parent: &Path, limit: u64) -> (TempDir, PathBuf, CappedFile) {
    let dir = tempfile::tempdir_in(parent).unwrap();
    let path = dir.path().join("log");
    let log = CappedFile::create(&path, TITLE, limit).unwrap();
    (dir, path, log)
}

/// Two kinds of directories: on a file system that can't collapse a range, and on a file system that may be able to.
fn places() -> Vec<PathBuf> {
    let places = [PathBuf::from("/dev/shm"), std::env::temp_dir()];
    places.into_iter().filter(|place| tempfile::tempdir_in(place).is_ok()).collect()
}

/// behaviour §1.7.5: the file never exceeds the limit. The first line reports that the file was truncated. The last
/// lines follow without a gap.
#[test]
fn a_full_file_loses_nothing_but_the_oldest() {
    for place in places() {
        let (_dir, path, mut log) = log_in(&place, LIMIT);
        let mut cuts = 0;
        let mut last_size = 0;
        for number in 0..5000_u32 {
            let filling = "x".repeat(number as usize * 37 % 300);
            log.add(&format!("line {number} {filling}\n"), heading).unwrap();
            let size = path.metadata().unwrap().len();
            assert!(size <= LIMIT, "{size}");
            cuts += u32::from(size < last_size);
            last_size = size;
        }
        assert!(cuts > 10, "{cuts}");
        let text = std::fs::read_to_string(&path).unwrap();
        let (first, rest) = text.split_once('\n').unwrap();
        assert_eq!(first.trim_end(), heading());
        let numbers: Vec<u32> =
            rest.lines().map(|line| line.split(' ').nth(1).unwrap().parse().unwrap()).collect();
        let expected: Vec<u32> = (5000 - numbers.len() as u32..5000).collect();
        assert_eq!(numbers, expected, "in {}", place.display());
        assert!(text.len() as u64 > LIMIT / 2, "more than the oldest was lost");
    }
}

/// behaviour §1.7.4.
#[test]
fn the_file_is_readable_by_its_owner_only_and_empty_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    std::fs::write(&path, "old\n".repeat(100)).unwrap();
    std::fs::remove_file(&path).unwrap();
    for _ in 0..2 {
        CappedFile::create(&path, TITLE, LIMIT).unwrap().add("text\n", heading).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{TITLE}\ntext\n"));
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
}

#[test]
fn a_message_as_long_as_the_file_is_cut() {
    let (_dir, path, mut log) = log_in(&std::env::temp_dir(), LIMIT);
    for _ in 0..3 {
        log.add("before\n", heading).unwrap();
        log.add(&("é".repeat(100_000) + "\n"), heading).unwrap();
        log.add("after\n", heading).unwrap();
        assert!(path.metadata().unwrap().len() <= LIMIT);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.ends_with("é [...]\nafter\n"));
    }
}

/// Lines that another process writes to the same file count towards the limit.
#[test]
fn the_limit_holds_for_two_processes() {
    let (_dir, path, mut log) = log_in(&std::env::temp_dir(), LIMIT);
    let mut other = CappedFile { file: log.file.try_clone().unwrap(), limit: Some(LIMIT) };
    for number in 0..1000 {
        log.add(&format!("ours {number}\n"), heading).unwrap();
        other.add(&format!("theirs {number} {}\n", "x".repeat(100)), heading).unwrap();
        assert!(path.metadata().unwrap().len() <= LIMIT);
    }
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains("ours 999\n"));
}

#[test]
fn a_device_has_no_limit() {
    let mut log = CappedFile::create(Path::new("/dev/null"), TITLE, LIMIT).unwrap();
    for _ in 0..1000 {
        log.add(&"x".repeat(1000), heading).unwrap();
    }
}
