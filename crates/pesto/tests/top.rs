//! `pesto top` on a pseudoterminal, with a server of the test.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use std::{fs, thread};

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use serde_json::{Value, json};
use tempfile::TempDir;

/// What a hostile guest would use as a name.
const NAME: &str = "\u{1b}]0;t\u{7}.org";

/// A server of one client.
#[derive(Default)]
struct Server {
    /// The requests that have come.
    requests: Mutex<Vec<Value>>,
    client: Mutex<Option<UnixStream>>,
}

impl Server {
    fn start(listener: UnixListener) -> Arc<Self> {
        let server = Arc::new(Self::default());
        let here = server.clone();
        thread::spawn(move || here.serve(listener.accept().unwrap().0));
        server
    }

    fn serve(&self, mut stream: UnixStream) {
        *self.client.lock().unwrap() = stream.try_clone().ok();
        let lines = BufReader::new(stream.try_clone().unwrap()).lines();
        for line in lines.map_while(Result::ok) {
            let request: Value = serde_json::from_str(&line).unwrap();
            let answer = answer(&request, self.count("flows") as u64);
            self.requests.lock().unwrap().push(request);
            // The client may have ended.
            if writeln!(stream, "{answer}").is_err() {
                return;
            }
        }
    }

    fn count(&self, name: &str) -> usize {
        self.requests.lock().unwrap().iter().filter(|request| request["request"] == name).count()
    }

    fn has_got(&self, name: &str, arguments: &Value) -> bool {
        let requests = self.requests.lock().unwrap();
        requests.iter().any(|request| request["request"] == name && request["arguments"] == *arguments)
    }

    /// Closes the connection.
    fn leave(&self) {
        let client = self.client.lock().unwrap();
        client.as_ref().unwrap().shutdown(std::net::Shutdown::Both).unwrap();
    }
}

fn answer(request: &Value, time: u64) -> Value {
    let result = match request["request"].as_str().unwrap() {
        "config" => json!({ "program": "pasta", "version": "0.1.0" }),
        "stats" => json!({ "uptime": time, "tcp": { "open": 1 } }),
        "flow.end" => json!({}),
        "flows" if request["arguments"]["state"] == "bad" => {
            return json!({ "id": 1, "error": { "code": "invalid-arguments", "message": "there is no state bad" } });
        }
        "flows" => json!({ "more": false, "flows": [{
            "flow": 7, "protocol": "tcp", "state": "established", "guest": "192.0.2.10", "guest_port": 40_000,
            "peer": "203.0.113.9", "peer_port": 443, "names": [NAME], "age": time, "bytes_sent": 1000 * time,
            "bytes_received": 3_000_000 * time,
        }] }),
        other => panic!("{other}"),
    };
    json!({ "id": 1, "result": result })
}

/// `pesto top` on a terminal.
struct Top {
    folder: TempDir,
    server: Arc<Server>,
    child: Child,
    master: File,
    terminal: OwnedFd,
    modes: LocalModes,
    output: Arc<Mutex<Vec<u8>>>,
}

impl Top {
    fn start(filter: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.api");
        let server = Server::start(UnixListener::bind(&path).unwrap());
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let terminal =
            rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        resize(&master, 80);
        let modes = tcgetattr(&terminal).unwrap().local_modes;
        let stderr = File::create(folder.path().join("stderr")).unwrap();
        // It is the session's leader on this terminal, so it gets the signal of a resize.
        let child = Command::new("setsid")
            .args(["--ctty", env!("CARGO_BIN_EXE_pesto"), "top", "-d", "0.1"])
            .arg(&path)
            .args(filter)
            .stdin(Stdio::from(terminal.try_clone().unwrap()))
            .stdout(Stdio::from(terminal.try_clone().unwrap()))
            .stderr(stderr)
            .spawn()
            .unwrap();
        let master = File::from(master);
        let output = Arc::default();
        let (mut reader, written): (File, Arc<Mutex<Vec<u8>>>) =
            (master.try_clone().unwrap(), Arc::clone(&output));
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut bytes) {
                written.lock().unwrap().extend(&bytes[..count]);
            }
        });
        Self { folder, server, child, master, terminal, modes, output }
    }

    fn output(&self) -> String {
        String::from_utf8_lossy(&self.output.lock().unwrap()).into_owned()
    }

    fn wait_for(&self, what: &str) {
        wait_until(what, || self.output().contains(what));
    }

    fn press(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until the program has ended. The terminal must be as it was before. Returns the exit status, or the number of
    /// the signal, and what it has written to standard error.
    fn end(mut self) -> (Option<i32>, Option<i32>, String) {
        wait_until("the end", || self.child.try_wait().unwrap().is_some());
        let status = self.child.wait().unwrap();
        assert_eq!(tcgetattr(&self.terminal).unwrap().local_modes, self.modes);
        // The other screen is left, and the cursor is shown.
        self.wait_for("\u{1b}[?1049l");
        wait_until("the cursor", || {
            let output = self.output();
            output.rfind("\u{1b}[?25h") > output.rfind("\u{1b}[?25l")
        });
        let stderr = fs::read_to_string(self.folder.path().join("stderr")).unwrap();
        (status.code(), status.signal(), stderr)
    }
}

fn resize(master: &OwnedFd, columns: u16) {
    tcsetwinsize(master, Winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what:?} did not come");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn it_shows_rates_and_quits() {
    let mut top = Top::start(&["tcp"]);
    // Per second of the server's clock.
    top.wait_for("3.0M");
    assert!(
        top.server.has_got(
            "flows",
            &json!({ "protocol": "tcp", "sort": "idle", "ascending": true, "limit": 1000 })
        )
    );
    let output = top.output();
    assert!(
        output.contains("]0;t") && !output.contains("\u{1b}]0") && !output.contains('\u{7}'),
        "{output:?}"
    );
    assert!(!tcgetattr(&top.terminal).unwrap().local_modes.contains(LocalModes::ICANON));
    top.press("q");
    assert_eq!(top.end(), (Some(0), None, String::new()));
}

#[test]
fn it_ends_a_flow_after_a_question() {
    let mut top = Top::start(&[]);
    top.wait_for("estab");
    top.press("\u{1b}[Be");
    top.wait_for("y/n");
    assert_eq!(top.server.count("flow.end"), 0);
    top.press("y");
    wait_until("the request", || top.server.has_got("flow.end", &json!({ "flow": 7 })));
    top.wait_for("has ended");
    top.press("\u{3}");
    assert_eq!(top.end(), (Some(0), None, String::new()));
}

#[test]
fn a_filter_that_the_server_refuses_is_a_message() {
    let mut top = Top::start(&[]);
    top.wait_for("estab");
    top.press("/state=bad\r");
    top.wait_for("there is no state bad");
    top.press("q");
    assert_eq!(top.end(), (Some(0), None, String::new()));
}

#[test]
fn it_follows_the_size_of_the_terminal() {
    let mut top = Top::start(&[]);
    top.wait_for("estab");
    assert!(!top.output().contains("established"));
    resize(&top.terminal, 160);
    top.wait_for("established");
    top.press("q");
    assert_eq!(top.end(), (Some(0), None, String::new()));
}

#[test]
fn a_signal_ends_it_and_restores_the_terminal() {
    for (name, number) in [("TERM", 15), ("HUP", 1), ("INT", 2)] {
        let top = Top::start(&[]);
        top.wait_for("estab");
        let killed = Command::new("kill").args([&format!("-{name}"), &top.child.id().to_string()]).status();
        assert!(killed.unwrap().success());
        assert_eq!(top.end(), (None, Some(number), String::new()));
    }
}

#[test]
fn it_ends_when_the_server_goes_away() {
    for keys in ["", " "] {
        let mut top = Top::start(&[]);
        top.wait_for("estab");
        top.press(keys);
        top.server.leave();
        let (status, signal, stderr) = top.end();
        assert_eq!((status, signal), (Some(1), None));
        assert!(
            stderr.contains("The server has closed the connection") || stderr.contains("API socket"),
            "{stderr}"
        );
    }
}

#[test]
fn without_a_terminal_it_names_the_other_command() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.api");
    let _server = Server::start(UnixListener::bind(&path).unwrap());
    let output = Command::new(env!("CARGO_BIN_EXE_pesto"))
        .arg("top")
        .arg(&path)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(1), &b""[..]));
    assert!(String::from_utf8_lossy(&output.stderr).contains("pesto flows"), "{output:?}");
}

/// Instances are found in the folder of the user.
#[test]
fn without_arguments_it_lists_instances() {
    let folder = tempfile::tempdir().unwrap();
    let pesto = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pesto"));
        command
            .args(arguments)
            .env("XDG_RUNTIME_DIR", folder.path())
            .current_dir(folder.path())
            .output()
            .unwrap()
    };
    let none = pesto(&[]);
    assert_eq!(none.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&none.stderr).contains("--no-api"), "{none:?}");
    fs::create_dir(folder.path().join("passt")).unwrap();
    let listen = |name: &str| UnixListener::bind(folder.path().join("passt").join(name)).unwrap();
    drop(listen("old.api"));
    let _one = Server::start(listen("one.api"));
    let list = pesto(&["--json"]);
    let list: Value = serde_json::from_slice(&list.stdout).unwrap();
    let path = folder.path().join("passt/one.api");
    assert_eq!(list["instances"].as_array().unwrap().len(), 1);
    assert_eq!((&list["instances"][0]["path"], &list["instances"][0]["flows"]), (&json!(path), &json!(1)));
}

/// A command without a path uses the only instance. With several, it lists them.
#[test]
fn a_command_without_a_path_uses_the_only_instance() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("passt")).unwrap();
    let listen = |name: &str| UnixListener::bind(folder.path().join("passt").join(name)).unwrap();
    let run = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pesto"));
        let command = command.arg("flows").env("XDG_RUNTIME_DIR", folder.path()).current_dir(folder.path());
        command.output().unwrap()
    };
    let serve = |listener: UnixListener| {
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                Server::default().serve(stream);
            }
        })
    };
    serve(listen("one.api"));
    let flows = run();
    assert!(String::from_utf8_lossy(&flows.stdout).contains("203.0.113.9:443"), "{flows:?}");
    serve(listen("two.api"));
    let flows = run();
    let message = String::from_utf8_lossy(&flows.stderr).into_owned();
    assert!(
        flows.status.code() == Some(1)
            && message.contains("give the PID or PATH of one")
            && message.contains("one.api, ")
            && message.contains("two.api"),
        "{message}"
    );
}
