//! slirp4netns: its start, and requests to its API socket.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use serde_json::{Value, json};

use super::net::Net;
use super::ns::{Finished, Running};
use super::{PATIENCE, runs, wait_until};

/// A running slirp4netns that is ready to serve the guest's namespace.
pub(crate) struct Slirp<'a> {
    net: &'a Net,
    running: Running,
    /// Its process id in the test's PID namespace.
    pub(crate) pid: u32,
}

/// The arguments for the guest's namespace.
pub(crate) const SLIRP_GUEST: [&str; 3] = ["--netns-type=path", "/run/netns/guest", "tap0"];

/// The program under test.
pub(crate) fn slirp_path() -> String {
    let given = std::env::var("SLIRP4NETNS_UNDER_TEST");
    given.unwrap_or_else(|_| env!("CARGO_BIN_EXE_slirp4netns").to_owned())
}

impl Net {
    /// Connects the guest's namespace, with its interface configured. Returns when the network is ready.
    pub(crate) fn slirp(&self, options: &[&str]) -> Slirp<'_> {
        self.slirp_with(&[&["--configure"], options, &SLIRP_GUEST].concat())
    }

    /// The same, with an API socket.
    pub(crate) fn slirp_with_api(&self, options: &[&str]) -> Slirp<'_> {
        self.slirp(&[&["--api-socket", &self.path("api")], options].concat())
    }

    /// Starts the program with exactly these arguments and `--ready-fd`. Returns when the network is ready.
    pub(crate) fn slirp_with(&self, args: &[&str]) -> Slirp<'_> {
        let (ready, pid) = (self.path("ready"), self.path("slirp.pid"));
        let _ = std::fs::remove_file(&ready);
        let script = format!("echo $$ >{pid}; exec \"$@\" 3>{ready}");
        let argv = self.slirp_argv(&[&["--ready-fd=3"], args].concat());
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        let mut running = self.host.start(&[&["sh", "-c", &script, "sh"], &argv[..]].concat());
        let mut written = String::new();
        wait_until("slirp4netns to be ready", || {
            written = std::fs::read_to_string(&ready).unwrap_or_default();
            assert!(running.is_running(), "slirp4netns {args:?} ended: {}", running.stderr());
            !written.is_empty()
        });
        assert_eq!(written, "1");
        let pid = std::fs::read_to_string(&pid).unwrap().trim().parse().unwrap();
        Slirp { net: self, running, pid }
    }

    /// Runs the program to its end.
    pub(crate) fn run_slirp(&self, args: &[&str]) -> Finished {
        let argv = self.slirp_argv(args);
        self.host.run(&argv.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn slirp_argv(&self, args: &[&str]) -> Vec<String> {
        let mut argv = self.as_user();
        argv.push(slirp_path());
        argv.extend(args.iter().map(|arg| (*arg).to_owned()));
        argv
    }
}

impl Slirp<'_> {
    /// Sends a request, closes the sending side, and returns the reply.
    pub(crate) fn ask(&self, request: &str) -> Value {
        let mut client = self.client();
        client.write_all(request.as_bytes()).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        reply(client)
    }

    /// A connection to the API socket.
    pub(crate) fn client(&self) -> UnixStream {
        let mut client = None;
        wait_until("the API socket", || {
            client = UnixStream::connect(self.net.path("api")).ok();
            client.is_some()
        });
        let client = client.unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client
    }

    /// Forwards a port. Returns the reply.
    pub(crate) fn forward(&self, arguments: Value) -> Value {
        self.ask(&json!({"execute": "add_hostfwd", "arguments": arguments}).to_string())
    }

    /// Forwards a port no longer. Returns the reply.
    pub(crate) fn unforward(&self, id: u64) -> Value {
        self.ask(&json!({"execute": "remove_hostfwd", "arguments": {"id": id}}).to_string())
    }

    /// The forwarded ports.
    pub(crate) fn forwards(&self) -> Value {
        self.ask(r#"{"execute": "list_hostfwd"}"#)["entries"].take()
    }

    /// Whether the process runs.
    pub(crate) fn runs(&self) -> bool {
        runs(&self.net.host, self.pid)
    }

    pub(crate) fn signal(&self, name: &str) {
        self.net.host.sh(&format!("kill -{name} {}", self.pid));
    }

    /// Waits until the process has ended by itself.
    pub(crate) fn wait(self) -> Finished {
        self.running.wait()
    }

    /// Ends the process.
    pub(crate) fn terminate(self) {
        self.signal("TERM");
        self.wait();
    }
}

/// Reads a reply up to the end of the connection.
pub(crate) fn reply(mut client: UnixStream) -> Value {
    let mut text = String::new();
    client.read_to_string(&mut text).unwrap();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text:?}"))
}
