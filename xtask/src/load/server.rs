//! The server of all loads.

use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::{CHUNK, FLOOD_LEN, HANDSHAKE, Load, client, print_and_wait};

/// Number of datagrams of floods that have arrived.
static FLOODED: AtomicU64 = AtomicU64::new(0);
/// After this time without a datagram, a flood is over.
const QUIET: Duration = Duration::from_millis(200);
/// Connections of [`Load::Hold`]. The first one of a client ends those of the client before it.
static HELD: Mutex<Vec<TcpStream>> = Mutex::new(Vec::new());

pub(super) fn serve(port: u16) -> anyhow::Result<()> {
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let listener = TcpListener::bind(any)?;
    let datagrams = UdpSocket::bind(any)?;
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((len, from)) = datagrams.recv_from(&mut buffer) {
            if len == FLOOD_LEN {
                FLOODED.fetch_add(1, Ordering::Relaxed);
            } else {
                let _lost = datagrams.send_to(&buffer[..len], from);
            }
        }
    });
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A client that disconnects is not an error.
            thread::spawn(move || answer(stream).ok());
        }
    });
    print_and_wait("ready")
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut mark = [0];
    stream.read_exact(&mut mark)?;
    let mark = mark[0];
    if mark == Load::Up.mark() {
        let mut chunk = vec![0; CHUNK];
        let (start, mut received) = (Instant::now(), 0_u64);
        loop {
            match stream.read(&mut chunk)? {
                0 => break,
                len => received += len as u64,
            }
        }
        let rate = received as f64 / start.elapsed().as_secs_f64();
        stream.write_all(&rate.to_be_bytes())
    } else if mark == Load::Down.mark() {
        let chunk = vec![0; CHUNK];
        loop {
            stream.write_all(&chunk)?;
        }
    } else if mark == Load::Flood.mark() {
        count_flood(stream)
    } else if mark == Load::Hold.mark() {
        let mut is_first = [0];
        stream.read_exact(&mut is_first)?;
        let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
        if is_first == [1] {
            held.clear();
        }
        stream.write_all(&[0])?;
        held.push(stream);
        Ok(())
    } else if mark == HANDSHAKE {
        stream.read_exact(&mut vec![0; client::hello().len() - 1])?;
        stream.write_all(&[0])
    } else {
        let mut byte = [0];
        while stream.read(&mut byte)? > 0 {
            stream.write_all(&byte)?;
        }
        Ok(())
    }
}

/// Counts datagrams until the client reports the end and no more arrive. Answers with their number.
fn count_flood(mut stream: TcpStream) -> std::io::Result<()> {
    let before = FLOODED.load(Ordering::Relaxed);
    stream.write_all(&[0])?;
    stream.read_exact(&mut [0])?;
    let mut count = FLOODED.load(Ordering::Relaxed);
    loop {
        thread::sleep(QUIET);
        let now = FLOODED.load(Ordering::Relaxed);
        if now == count {
            break;
        }
        count = now;
    }
    stream.write_all(&(count - before).to_be_bytes())
}
