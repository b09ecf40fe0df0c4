//! The two ends of a measurement: a server, and clients that print one result.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// Number of bytes for each system call.
const CHUNK: usize = 256 << 10;
/// Maximum time without progress. After this time, a load has stalled.
const PATIENCE: Duration = Duration::from_secs(10);

/// The task of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    /// The client sends. The result is the number of bytes per second that have arrived.
    Up,
    /// The client receives. The result is the number of bytes per second.
    Down,
    /// The client sends a byte and receives a byte, repeatedly. The result is the number of transactions per second.
    Transactions,
    /// The client sends a byte and receives a byte. It opens a new connection for each transaction.
    Connections,
    /// The client sends a datagram and receives a datagram, repeatedly. The result is the number of transactions per
    /// second.
    Datagrams,
    /// The client sends a datagram and receives a datagram. It uses a new port for each transaction.
    Ports,
}

impl Load {
    const ALL: [(&str, Self); 6] = [
        ("up", Self::Up),
        ("down", Self::Down),
        ("rr", Self::Transactions),
        ("crr", Self::Connections),
        ("udp-rr", Self::Datagrams),
        ("udp-ports", Self::Ports),
    ];

    /// The load's name on the command line.
    pub(crate) fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, load)| *load == self).map_or("", |(name, _)| name)
    }

    /// The first byte of a connection. It tells the server which load to run.
    fn mark(self) -> u8 {
        self.name().as_bytes()[0]
    }

    /// Whether the result is a number of bytes per second.
    pub(crate) fn is_stream(self) -> bool {
        matches!(self, Self::Up | Self::Down)
    }
}

/// `xtask load serve PORT`, or `xtask load NAME ADDRESS PORT SECONDS`.
pub(crate) fn main(arguments: &[&str]) -> anyhow::Result<()> {
    match *arguments {
        ["serve", port] => serve(port.parse()?),
        [name, address, port, seconds] => {
            let load = Load::ALL.iter().find(|(known, _)| *known == name);
            let load = load.with_context(|| format!("no such load: {name}"))?.1;
            let address: IpAddr = address.parse()?;
            let figure = run(load, (address, port.parse()?).into(), seconds.parse()?)?;
            print_and_wait(&format!("{figure:.0}"))
        }
        _ => bail!("load: wrong arguments"),
    }
}

/// Prints a line, and waits for the end of standard input: the reader first measures the processes.
fn print_and_wait(line: &str) -> anyhow::Result<()> {
    println!("{line}");
    std::io::stdout().flush()?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

fn serve(port: u16) -> anyhow::Result<()> {
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let listener = TcpListener::bind(any)?;
    let datagrams = UdpSocket::bind(any)?;
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((len, from)) = datagrams.recv_from(&mut buffer) {
            let _lost = datagrams.send_to(&buffer[..len], from);
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
    let mut chunk = vec![0; CHUNK];
    if mark[0] == Load::Up.mark() {
        let (start, mut received) = (Instant::now(), 0_u64);
        loop {
            match stream.read(&mut chunk)? {
                0 => break,
                len => received += len as u64,
            }
        }
        let rate = received as f64 / start.elapsed().as_secs_f64();
        stream.write_all(&rate.to_be_bytes())
    } else if mark[0] == Load::Down.mark() {
        loop {
            stream.write_all(&chunk)?;
        }
    } else {
        let mut byte = [0];
        while stream.read(&mut byte)? > 0 {
            stream.write_all(&byte)?;
        }
        Ok(())
    }
}

fn run(load: Load, to: SocketAddr, seconds: f64) -> anyhow::Result<f64> {
    let start = Instant::now();
    let end = start + Duration::from_secs_f64(seconds);
    let per_second = |count: u64| count as f64 / start.elapsed().as_secs_f64();
    let mut count = 0_u64;
    match load {
        Load::Up => {
            let mut stream = open(load, to)?;
            let chunk = vec![0; CHUNK];
            while Instant::now() < end {
                match stream.write(&chunk) {
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => bail!("stalled"),
                    Err(error) => return Err(error.into()),
                }
            }
            stream.shutdown(std::net::Shutdown::Write)?;
            let mut rate = [0; 8];
            stream.read_exact(&mut rate).context("stalled at the end")?;
            Ok(f64::from_be_bytes(rate))
        }
        Load::Down => {
            let mut stream = open(load, to)?;
            let mut chunk = vec![0; CHUNK];
            while Instant::now() < end {
                count += stream.read(&mut chunk).context("stalled")? as u64;
            }
            Ok(per_second(count))
        }
        Load::Transactions => {
            let mut stream = open(load, to)?;
            while Instant::now() < end {
                stream.write_all(&[0])?;
                stream.read_exact(&mut [0]).context("stalled")?;
                count += 1;
            }
            Ok(per_second(count))
        }
        Load::Connections => {
            while Instant::now() < end {
                let mut stream = open(load, to)?;
                stream.write_all(&[0])?;
                stream.read_exact(&mut [0]).context("stalled")?;
                count += 1;
            }
            Ok(per_second(count))
        }
        Load::Datagrams => {
            let socket = datagrams(to)?;
            while Instant::now() < end {
                socket.send(&[0])?;
                socket.recv(&mut [0]).context("lost a datagram")?;
                count += 1;
            }
            Ok(per_second(count))
        }
        Load::Ports => {
            while Instant::now() < end {
                let socket = datagrams(to)?;
                socket.send(&[0])?;
                socket.recv(&mut [0]).with_context(|| format!("lost datagram {count}"))?;
                count += 1;
            }
            Ok(per_second(count))
        }
    }
}

/// A UDP socket with a new port.
fn datagrams(to: SocketAddr) -> anyhow::Result<UdpSocket> {
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Opens a connection, and tells the server which load to run.
fn open(load: Load, to: SocketAddr) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(&[load.mark()])?;
    Ok(stream)
}
