//! Servers for tests. They record every byte that they receive.
//!
//! When the first byte of a connection arrives, the server connects the client with a service in the test process. With
//! a certificate, a process `openssl s_server` for each connection terminates TLS. Its standard input and output carry
//! the plain text.

use super::{Net, Ns, PATIENCE, wait_until};
use rustix::net::sockopt::{self, Timeout};
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// Interval at which a server checks whether its test has ended.
pub(super) const TICK: Duration = Duration::from_millis(100);

/// A service: it reads the plain text of a client, and writes the plain text of the server.
type Service = Arc<dyn Fn(&mut dyn Read, &mut dyn Write) + Send + Sync>;

/// A certificate and its key, in files.
#[derive(Clone, Debug)]
pub(crate) struct Certificate {
    /// The self-signed certificate.
    pub(crate) path: String,
    key: String,
    dir: PathBuf,
}

/// The bytes of one connection to a server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) bytes: Vec<u8>,
    /// Whether the client has closed or reset the connection.
    pub(crate) ended: bool,
}

/// A running server. It ends when this value is dropped.
pub(crate) struct Server {
    seen: Arc<Mutex<Vec<Seen>>>,
    over: Arc<AtomicBool>,
}

impl Net {
    /// A certificate for these names.
    pub(crate) fn certificate(&self, names: &[&str]) -> Certificate {
        let (path, key) = (self.path("certificate.pem"), self.path("key.pem"));
        let names: Vec<String> = names.iter().map(|name| format!("DNS:{name}")).collect();
        self.host
            .run(&[
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-days",
                "2",
                "-subj",
                "/CN=test",
                "-addext",
                &format!("subjectAltName={}", names.join(",")),
                "-out",
                &path,
                "-keyout",
                &key,
            ])
            .ok();
        Certificate { path, key, dir: self.dir.path().to_owned() }
    }
}

impl Server {
    /// Listens in `ns`. With a certificate, clients must speak TLS.
    pub(crate) fn start(
        ns: &Ns,
        at: (IpAddr, u16),
        certificate: Option<&Certificate>,
        service: impl Fn(&mut dyn Read, &mut dyn Write) + Send + Sync + 'static,
    ) -> Self {
        let service: Service = Arc::new(service);
        let server = Server { seen: Arc::default(), over: Arc::default() };
        let listener = ns.listen(at);
        let (seen, over, certificate) = (server.seen.clone(), server.over.clone(), certificate.cloned());
        thread::spawn(move || {
            accept_until(&over, &listener, |stream| {
                let (seen, certificate, service) = (seen.clone(), certificate.clone(), service.clone());
                let index = seen.lock().unwrap().len();
                seen.lock().unwrap().push(Seen::default());
                thread::spawn(move || serve(stream, (&seen, index), certificate.as_ref(), &service));
            });
        });
        server
    }

    /// The bytes that were received so far from each connection, in the order in which the connections were accepted.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// Waits until all connections have ended. Returns the bytes that were received from each. Checks that there were
    /// `count` connections.
    pub(crate) fn all_seen(&self, count: usize) -> Vec<Vec<u8>> {
        wait_until("the end of the connections", || {
            let seen = self.seen();
            seen.len() >= count && seen.iter().all(|seen| seen.ended)
        });
        let seen = self.seen();
        assert_eq!(seen.len(), count, "{seen:?}");
        seen.into_iter().map(|seen| seen.bytes).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// Accepts connections until `over` is true.
pub(super) fn accept_until(over: &AtomicBool, listener: &TcpListener, mut serve: impl FnMut(TcpStream)) {
    sockopt::set_socket_timeout(listener, Timeout::Recv, Some(TICK)).unwrap();
    while !over.load(Ordering::Relaxed) {
        if let Ok((stream, _)) = listener.accept() {
            for timeout in [Timeout::Recv, Timeout::Send] {
                sockopt::set_socket_timeout(&stream, timeout, Some(PATIENCE)).unwrap();
            }
            serve(stream);
        }
    }
}

/// Records the bytes of a client, and forwards them to the service. Also records what arrives after the service has
/// ended.
fn serve(
    mut stream: TcpStream,
    (seen, index): (&Mutex<Vec<Seen>>, usize),
    certificate: Option<&Certificate>,
    service: &Service,
) {
    let mut buffer = [0; 1 << 14];
    let mut inner = None;
    while let Ok(len @ 1..) = stream.read(&mut buffer) {
        seen.lock().unwrap()[index].bytes.extend_from_slice(&buffer[..len]);
        let inner = inner.get_or_insert_with(|| {
            let inner = begin(certificate, service.clone());
            let (mut from, mut to) = (inner.try_clone().unwrap(), stream.try_clone().unwrap());
            thread::spawn(move || {
                let _ = std::io::copy(&mut from, &mut to);
                let _ = to.shutdown(Shutdown::Write);
            });
            inner
        });
        let _ = inner.write_all(&buffer[..len]);
    }
    if let Some(inner) = inner {
        let _ = inner.shutdown(Shutdown::Write);
    }
    seen.lock().unwrap()[index].ended = true;
}

/// Starts the service for one connection. Returns the client's end.
fn begin(certificate: Option<&Certificate>, service: Service) -> UnixStream {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let Some(certificate) = certificate else {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        thread::spawn(move || service(&mut theirs.try_clone().unwrap(), &mut theirs));
        return ours;
    };
    let path = certificate.dir.join(format!("tls{}", NUMBER.fetch_add(1, Ordering::Relaxed)));
    let mut tls = s_server(certificate, &path);
    let (mut from, mut to) = (tls.stdout.take().unwrap(), tls.stdin.take().unwrap());
    thread::spawn(move || {
        service(&mut from, &mut to);
        // s_server ends when the connection ends. But it would not end if its standard input was closed, so `to` is
        // dropped last.
        let _ = std::io::copy(&mut from, &mut std::io::sink());
        let _ = tls.wait();
        drop(to);
    });
    let mut connection = None;
    wait_until("openssl s_server", || {
        connection = UnixStream::connect(&path).ok();
        connection.is_some()
    });
    connection.unwrap()
}

fn s_server(certificate: &Certificate, path: &std::path::Path) -> Child {
    let seconds = (PATIENCE.as_secs() * 2).to_string();
    Command::new("timeout")
        .args([&seconds, "openssl", "s_server", "-quiet", "-naccept", "1", "-alpn", "h2,http/1.1"])
        .args(["-cert", &certificate.path, "-key", &certificate.key, "-unix"])
        .arg(path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// A service of HTTP/1 and HTTP/2 that answers one request with the text `hello`.
pub(crate) fn web(from: &mut dyn Read, to: &mut dyn Write) {
    let Some(head) = read_head(from) else { return };
    let answer = if head.starts_with("PRI * HTTP/2.0") {
        if !read_h2_request(from) {
            return;
        }
        &H2_ANSWER[..]
    } else {
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"
    };
    let _ = to.write_all(answer).and_then(|()| to.flush());
}

/// Frames of a server (RFC 9113 §4.1): SETTINGS; HEADERS of stream 1 with `:status: 200`; DATA with the end of the
/// stream.
const H2_ANSWER: [u8; 33] =
    *b"\0\0\0\x04\0\0\0\0\0\0\0\x01\x01\x04\0\0\0\x01\x88\0\0\x05\0\x01\0\0\0\x01hello";

/// Reads the head of a request, up to the empty line. None if the client has closed the connection.
pub(crate) fn read_head(from: &mut dyn Read) -> Option<String> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        from.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    String::from_utf8(head).ok()
}

/// Reads the rest of the preface, and frames up to HEADERS. Returns false if the client has closed the connection.
fn read_h2_request(from: &mut dyn Read) -> bool {
    const HEADERS: u8 = 1;
    let (mut rest, mut head) = ([0; 6], [0; 9]);
    if from.read_exact(&mut rest).is_err() {
        return false;
    }
    while from.read_exact(&mut head).is_ok() {
        let mut content = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        if from.read_exact(&mut content).is_ok() && head[3] == HEADERS {
            return true;
        }
    }
    false
}
