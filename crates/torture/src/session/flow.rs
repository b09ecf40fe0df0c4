//! The ends of flows, and how a TCP connection of the session works.
//!
//! Every byte has a value that follows from its position, and both ends check all bytes.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::net::sockopt;
use serde::{Deserialize, Serialize};

use crate::net::Place;

/// Maximum time without progress of one flow. After this time it hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);
/// Time between two messages of a paced connection.
const PACE: Duration = Duration::from_millis(25);
/// Maximum time during which a connection is refused and opened again.
const REFUSALS: Duration = Duration::from_secs(5);
/// Number of messages of a paced connection.
const MESSAGES: usize = 30;
const CHUNK: usize = 64 << 10;
const HEADER: usize = 12;

/// How a flow ended.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) enum End {
    /// Everything arrived.
    Whole,
    /// An error ended the flow.
    Ended(String),
    /// Nothing happened for [`PATIENCE`].
    Hung(String),
    /// Bytes were wrong, or missing before an orderly end.
    Corrupt(String),
}

/// One end of one flow.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Report {
    /// The flow's group: what it does.
    pub(crate) group: String,
    /// Whether the flow's server reports.
    pub(crate) by_server: bool,
    /// How it ended.
    pub(crate) end: End,
}

/// Collects reports.
#[derive(Clone, Default)]
pub(crate) struct Reports {
    list: Arc<Mutex<Vec<Report>>>,
    /// Number of connections that servers serve at present.
    open: Arc<AtomicUsize>,
}

impl Reports {
    /// Adds a client's report.
    pub(crate) fn add(&self, group: &str, end: End) {
        self.push(Report { group: group.to_owned(), by_server: false, end });
    }

    fn push(&self, report: Report) {
        self.list.lock().unwrap_or_else(PoisonError::into_inner).push(report);
    }

    /// All reports so far, when no server serves a connection any more.
    pub(crate) fn take(&self) -> Vec<Report> {
        while self.open.load(Ordering::SeqCst) > 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::mem::take(&mut *self.list.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What a connection does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// The client sends so many bytes, then the server.
    Bulk { up: u32, down: u32 },
    /// Small messages go back and forth, with pauses.
    Paced,
}

impl Work {
    fn header(self) -> [u8; HEADER] {
        let (kind, up, down) = match self {
            Self::Bulk { up, down } => (0_u32, up, down),
            Self::Paced => (1, 0, 0),
        };
        let mut bytes = [0; HEADER];
        for (field, value) in bytes.chunks_mut(4).zip([kind, up, down]) {
            field.copy_from_slice(&value.to_be_bytes());
        }
        bytes
    }

    fn of(header: [u8; HEADER]) -> Option<Self> {
        let field =
            |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        match field(0) {
            0 => Some(Self::Bulk { up: field(4), down: field(8) }),
            1 => Some(Self::Paced),
            _ => None,
        }
    }
}

/// Starts a server at this address. Its connections belong to `group`.
pub(crate) fn serve(place: &Place, at: SocketAddr, group: &str, reports: &Reports) -> anyhow::Result<()> {
    let listener = place.run(move || TcpListener::bind(at))??;
    let (group, reports) = (group.to_owned(), reports.clone());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (group, reports) = (group.clone(), reports.clone());
            reports.open.fetch_add(1, Ordering::SeqCst);
            std::thread::spawn(move || {
                let end = end_of(server(stream));
                reports.push(Report { group, by_server: true, end });
                reports.open.fetch_sub(1, Ordering::SeqCst);
            });
        }
    });
    Ok(())
}

/// Opens a connection in the namespace of this thread, does the work, and reports.
pub(crate) fn client(to: SocketAddr, work: Work) -> End {
    work_on(TcpStream::connect_timeout(&to, PATIENCE), work)
}

/// Like [`client`], but repeats what is refused.
pub(crate) fn patient_client(to: SocketAddr, work: Work) -> End {
    let end = Instant::now() + REFUSALS;
    loop {
        match TcpStream::connect_timeout(&to, PATIENCE) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused && Instant::now() < end => {
                std::thread::sleep(PACE);
            }
            connected => return work_on(connected, work),
        }
    }
}

fn work_on(connected: io::Result<TcpStream>, work: Work) -> End {
    end_of(connected.map_err(Stop::Io).and_then(|stream| talk(stream, work)))
}

/// Why a connection did not do all its work.
enum Stop {
    Io(io::Error),
    Wrong(String),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn end_of(result: Result<(), Stop>) -> End {
    match result {
        Ok(()) => End::Whole,
        Err(Stop::Wrong(what)) => End::Corrupt(what),
        Err(Stop::Io(error)) => match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => End::Hung(error.to_string()),
            _ => End::Ended(error.to_string()),
        },
    }
}

fn talk(mut stream: TcpStream, work: Work) -> Result<(), Stop> {
    prepare(&stream)?;
    stream.write_all(&work.header())?;
    match work {
        Work::Bulk { up, down } => {
            send(&mut stream, up)?;
            receive(&mut stream, down)?;
        }
        Work::Paced => {
            for number in 0..MESSAGES {
                let message = [number as u8; 64];
                stream.write_all(&message)?;
                let mut answer = [0; 64];
                stream.read_exact(&mut answer)?;
                if answer != message {
                    return Err(Stop::Wrong("a message is wrong".to_owned()));
                }
                std::thread::sleep(PACE);
            }
        }
    }
    stream.shutdown(Shutdown::Write)?;
    expect_end(&mut stream)
}

fn server(mut stream: TcpStream) -> Result<(), Stop> {
    prepare(&stream)?;
    let mut header = [0; HEADER];
    stream.read_exact(&mut header)?;
    match Work::of(header).ok_or_else(|| Stop::Wrong("the header is wrong".to_owned()))? {
        Work::Bulk { up, down } => {
            receive(&mut stream, up)?;
            send(&mut stream, down)?;
        }
        Work::Paced => {
            for _ in 0..MESSAGES {
                let mut message = [0; 64];
                stream.read_exact(&mut message)?;
                stream.write_all(&message)?;
            }
        }
    }
    expect_end(&mut stream)
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    // It matters to passt's guest: see its settings.
    Ok(sockopt::set_socket_keepalive(stream, true)?)
}

fn expect_end(stream: &mut TcpStream) -> Result<(), Stop> {
    match stream.read(&mut [0; 1])? {
        0 => Ok(()),
        _ => Err(Stop::Wrong("bytes after the end".to_owned())),
    }
}

/// The byte at a position of a stream.
const fn byte(position: usize) -> u8 {
    (position.wrapping_mul(31) ^ (position >> 8).wrapping_mul(17) ^ (position >> 16)) as u8
}

fn send(stream: &mut TcpStream, length: u32) -> Result<(), Stop> {
    let (mut sent, length) = (0, length as usize);
    while sent < length {
        let end = length.min(sent + CHUNK);
        let chunk: Vec<u8> = (sent..end).map(byte).collect();
        stream.write_all(&chunk)?;
        sent = end;
    }
    Ok(())
}

fn receive(stream: &mut TcpStream, length: u32) -> Result<(), Stop> {
    let (mut received, length) = (0, length as usize);
    let mut chunk = vec![0; CHUNK];
    while received < length {
        let room = CHUNK.min(length - received);
        let count = match stream.read(&mut chunk[..room])? {
            0 => return Err(Stop::Wrong(format!("an orderly end after {received} of {length} bytes"))),
            count => count,
        };
        if let Some(wrong) = (0..count).find(|at| chunk[*at] != byte(received + at)) {
            return Err(Stop::Wrong(format!("byte {} is wrong", received + wrong)));
        }
        received += count;
    }
    Ok(())
}
