//! Packet capture of both directions (behaviour §9.5).

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use byteorder::NativeEndian;
use pcap_file::pcap::{PcapHeader, PcapPacket};
use pcap_file::{DataLink, Endianness, TsResolution};

/// Maximum number of octets of a frame that are captured.
const SNAP_LEN: usize = 65535;

/// A capture file. After [`Capture::flush`], the file contains only whole frames, even if the process is killed.
pub(crate) struct Capture {
    /// `None` if a write has failed. The network then continues without the capture.
    file: Option<BufWriter<File>>,
    frame: Vec<u8>,
}

/// Writes the start of a capture file.
///
/// # Errors
/// As the writer.
pub(crate) fn write_header(to: &mut impl Write) -> io::Result<()> {
    let header = PcapHeader {
        snaplen: SNAP_LEN as u32,
        datalink: DataLink::ETHERNET,
        ts_resolution: TsResolution::MicroSecond,
        endianness: Endianness::native(),
        ..PcapHeader::default()
    };
    header.write_to(to).map(drop).map_err(io::Error::other)
}

/// Writes the record of an Ethernet frame that has just crossed the link. The frame consists of `parts`, which are
/// collected in `frame`. Only the first 65535 octets are captured: a super-frame may be longer.
///
/// # Errors
/// As the writer.
pub(super) fn write_record(to: &mut impl Write, frame: &mut Vec<u8>, parts: &[&[u8]]) -> io::Result<()> {
    frame.clear();
    for part in parts {
        let room = SNAP_LEN - frame.len();
        frame.extend_from_slice(&part[..part.len().min(room)]);
    }
    let original = parts.iter().map(|part| part.len()).sum::<usize>();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let packet = PcapPacket::new(now, u32::try_from(original).unwrap_or(u32::MAX), frame);
    let written = packet.write_to::<_, NativeEndian>(to, TsResolution::MicroSecond, SNAP_LEN as u32);
    written.map(drop).map_err(io::Error::other)
}

impl Capture {
    /// Creates the file with mode 0600, or truncates an existing file.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        Self::new(file)
    }

    fn new(file: File) -> io::Result<Self> {
        let mut file = BufWriter::with_capacity(1 << 18, file);
        write_header(&mut file)?;
        file.flush()?;
        Ok(Self { file: Some(file), frame: Vec::with_capacity(SNAP_LEN) })
    }

    /// Writes the added frames to the file.
    pub(crate) fn flush(&mut self) {
        let outcome = self.file.as_mut().map_or(Ok(()), BufWriter::flush);
        self.note(outcome);
    }

    /// Adds a frame that consists of `parts`, see [`write_record`].
    pub(crate) fn add(&mut self, parts: &[&[u8]]) {
        let Self { file, frame } = self;
        let outcome = file.as_mut().map_or(Ok(()), |file| write_record(file, frame, parts));
        self.note(outcome);
    }

    fn note(&mut self, outcome: io::Result<()>) {
        if let Err(error) = outcome {
            log::error!("can't write to the capture file, no more frames go there: {error}");
            self.file = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pcap_file::pcap::PcapReader;

    /// behaviour §9.5, R-10: each flush writes whole frames.
    #[test]
    fn frames_are_complete_once_flushed_r10() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("capture");
        let mut capture = Capture::create(&path).unwrap();
        capture.add(&[&[1; 14], &[2; 46]]);
        capture.add(&[&[3; 14], &[4; 66000]]);
        capture.flush();

        let mode = std::os::unix::fs::PermissionsExt::mode(&path.metadata().unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
        let octets = std::fs::read(&path).unwrap();
        assert_eq!(octets[..4], 0xa1b2_c3d4_u32.to_ne_bytes());
        assert_eq!(octets[4..8], [2_u16.to_ne_bytes(), 4_u16.to_ne_bytes()].concat());

        let mut reader = PcapReader::new(&octets[..]).unwrap();
        assert_eq!(reader.header().snaplen, 65535);
        assert_eq!(reader.header().datalink, DataLink::ETHERNET);
        let first = reader.next_packet().unwrap().unwrap();
        assert_eq!((first.orig_len, first.data[13], first.data[14], first.data.len()), (60, 1, 2, 60));
        let second = reader.next_raw_packet().unwrap().unwrap();
        assert_eq!((second.orig_len, second.data.len()), (66014, 65535));
        assert!(reader.next_raw_packet().is_none());
    }

    /// The records of a capture that a client asks for are those of the file.
    #[test]
    fn records_and_files_have_the_same_format() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("capture");
        let mut capture = Capture::create(&path).unwrap();
        let (mut bytes, mut frame) = (Vec::new(), Vec::new());
        write_header(&mut bytes).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
        for parts in [&[&[1; 14][..], &[2; 46]], &[&[3; 14], &[4; 66000]]] {
            capture.add(parts);
            write_record(&mut bytes, &mut frame, parts).unwrap();
        }
        capture.flush();
        let file = std::fs::read(&path).unwrap();
        assert_eq!(file.len(), bytes.len());
        let read = |bytes: &[u8]| {
            let mut reader = PcapReader::new(bytes).unwrap();
            [(); 2].map(|()| {
                let one = reader.next_raw_packet().unwrap().unwrap();
                (one.orig_len, one.data.into_owned())
            })
        };
        assert_eq!(read(&file), read(&bytes));
    }

    #[test]
    fn a_full_disk_ends_the_capture_only() {
        let Ok(full) = OpenOptions::new().write(true).open("/dev/full") else {
            eprintln!("SKIPPED: no /dev/full here");
            return;
        };
        assert!(Capture::new(full.try_clone().unwrap()).is_err(), "seen at the start");
        let dir = tempfile::tempdir().unwrap();
        for frames in [1, 8] {
            let mut capture = Capture::create(&dir.path().join("capture")).unwrap();
            capture.file = Some(BufWriter::with_capacity(1 << 18, full.try_clone().unwrap()));
            for _ in 0..frames {
                capture.add(&[&[0; 65535]]);
            }
            capture.flush();
            assert!(capture.file.is_none());
            capture.add(&[&[0; 14]]);
            capture.flush();
        }
    }
}
