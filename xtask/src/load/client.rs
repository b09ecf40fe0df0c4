//! The clients: one for each load.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use testkit::hello::{long_client_hello, records};

use super::{CHUNK, FLOOD_LEN, HELD, HELLO_LEN, HELLO_NAME, Load, PATIENCE, Quantity, Sample};

/// Time between two bursts of a paced flood. The receiver's queue must hold a burst.
const BURST: Duration = Duration::from_micros(100);

/// Runs a client for some seconds. `pace` is the number of datagrams per second of [`Load::Flood`].
pub(super) fn run(load: Load, to: SocketAddr, seconds: f64, pace: Option<f64>) -> anyhow::Result<Sample> {
    let duration = Duration::from_secs_f64(seconds);
    match load {
        Load::Up => send(to, duration),
        Load::Down => {
            let mut stream = open(load, to)?;
            let mut chunk = vec![0; CHUNK];
            let (start, mut count) = (Instant::now(), 0);
            while start.elapsed() < duration {
                count += stream.read(&mut chunk).context("stalled")?;
            }
            Ok(Sample::with_times(count as f64 / start.elapsed().as_secs_f64(), Vec::new()))
        }
        Load::Transactions => {
            let mut stream = open(load, to)?;
            repeat(duration, || exchange(&mut stream, &[0]))
        }
        Load::Connections => repeat(duration, || exchange(&mut open(load, to)?, &[0])),
        Load::Hellos => {
            let hello = hello();
            let sample = repeat(duration, || exchange(&mut connect(to)?, &hello))?;
            Ok(Sample(vec![sample.0[0]]))
        }
        Load::Datagrams => {
            let socket = datagrams(to)?;
            repeat(duration, || exchange_datagrams(&socket))
        }
        Load::Ports => repeat(duration, || exchange_datagrams(&datagrams(to)?)),
        Load::Flood => flood(to, duration, pace),
        Load::Hold => hold(to),
    }
}

/// Repeats a transaction.
fn repeat(duration: Duration, mut transaction: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<Sample> {
    let start = Instant::now();
    let (mut now, mut times) = (start, Vec::new());
    while now - start < duration {
        transaction().with_context(|| format!("transaction {}", times.len()))?;
        let end = Instant::now();
        times.push(end - now);
        now = end;
    }
    Ok(Sample::with_times(times.len() as f64 / (now - start).as_secs_f64(), times))
}

fn exchange(stream: &mut TcpStream, request: &[u8]) -> anyhow::Result<()> {
    stream.write_all(request)?;
    stream.read_exact(&mut [0]).context("stalled")
}

fn exchange_datagrams(socket: &UdpSocket) -> anyhow::Result<()> {
    socket.send(&[0])?;
    socket.recv(&mut [0]).context("lost a datagram")?;
    Ok(())
}

fn send(to: SocketAddr, duration: Duration) -> anyhow::Result<Sample> {
    let mut stream = open(Load::Up, to)?;
    let chunk = vec![0; CHUNK];
    let start = Instant::now();
    while start.elapsed() < duration {
        match stream.write(&chunk) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => bail!("stalled"),
            Err(error) => return Err(error.into()),
        }
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut rate = [0; 8];
    stream.read_exact(&mut rate).context("stalled at the end")?;
    Ok(Sample::with_times(f64::from_be_bytes(rate), Vec::new()))
}

fn flood(to: SocketAddr, duration: Duration, pace: Option<f64>) -> anyhow::Result<Sample> {
    let socket = datagrams(to)?;
    let mut control = open(Load::Flood, to)?;
    control.read_exact(&mut [0]).context("no answer")?;
    let (start, mut sent) = (Instant::now(), 0_u64);
    loop {
        let elapsed = start.elapsed();
        if elapsed >= duration {
            break;
        }
        if pace.is_some_and(|pace| sent as f64 >= pace * elapsed.as_secs_f64()) {
            thread::sleep(BURST);
            continue;
        }
        socket.send(&[0; FLOOD_LEN])?;
        sent += 1;
    }
    let elapsed = start.elapsed().as_secs_f64();
    control.write_all(&[0])?;
    let mut arrived = [0; 8];
    control.read_exact(&mut arrived).context("no count")?;
    let arrived = u64::from_be_bytes(arrived) as f64;
    let lost = 1.0 - arrived / sent as f64;
    Ok(Sample(vec![(Quantity::Rate, arrived / elapsed), (Quantity::Lost, lost)]))
}

fn hold(to: SocketAddr) -> anyhow::Result<Sample> {
    let start = Instant::now();
    let mut held = Vec::new();
    for number in 1..=HELD {
        let mut stream = open(Load::Hold, to).with_context(|| format!("connection {number}"))?;
        stream.write_all(&[u8::from(number == 1)])?;
        stream.read_exact(&mut [0]).with_context(|| format!("connection {number}"))?;
        held.push(stream);
    }
    let rate = f64::from(HELD) / start.elapsed().as_secs_f64();
    // The connections stay until the process ends.
    held.into_iter().for_each(std::mem::forget);
    Ok(Sample(vec![(Quantity::Rate, rate)]))
}

/// A UDP socket with a new port.
fn datagrams(to: SocketAddr) -> anyhow::Result<UdpSocket> {
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// The records of a ClientHello.
pub(super) fn hello() -> Vec<u8> {
    records(&long_client_hello(HELLO_NAME, HELLO_LEN), HELLO_LEN)
}

/// Opens a connection, and tells the server which load to run.
fn open(load: Load, to: SocketAddr) -> anyhow::Result<TcpStream> {
    let mut stream = connect(to)?;
    stream.write_all(&[load.mark()])?;
    Ok(stream)
}

fn connect(to: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}
