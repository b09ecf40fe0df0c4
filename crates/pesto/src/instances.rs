//! The API sockets of this user's instances: sockets `PID.api` in `$XDG_RUNTIME_DIR/passt`, which passt and pasta make,
//! and `NAME.api`, which users ask for (docs/api.md).

use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::connection::{Connection, Fault};
use crate::output::print;
use crate::text;

/// How long to wait for the answer of an instance, so that a stopped one does not hide the others.
const PATIENCE: Duration = Duration::from_secs(2);

/// A socket of a server.
pub(super) enum Socket {
    /// The API socket of an instance.
    Api(PathBuf),
    /// The path that the user has given: a control socket or an API socket.
    Given(PathBuf),
}

/// The headings of [`Instance::row`].
const HEADINGS: [&str; 8] = ["PID", "KIND", "VERSION", "SERVES", "LINK", "FLOWS", "UPTIME", "SOCKET"];

/// An instance that answers.
struct Instance {
    path: PathBuf,
    config: Value,
    stats: Value,
}

/// Prints the instances.
///
/// # Errors
/// A message for the user. There may be no instance.
pub(super) fn list(json: bool) -> Result<(), String> {
    let Found { instances, none, .. } = found()?;
    if json {
        let list: Vec<Value> = instances.iter().map(Instance::json).collect();
        return print(&format!("{}\n", json!({ "instances": list })));
    }
    if instances.is_empty() {
        return Err(none);
    }
    let mut rows = vec![HEADINGS.map(str::to_owned)];
    rows.extend(instances.iter().map(Instance::row));
    print(&text::table(&rows))
}

/// The socket that the user means: of the process with this ID, or without an operand of the only instance.
///
/// # Errors
/// A message for the user: there is no such instance, or there are several.
pub(super) fn meant(given: Option<&Path>) -> Result<Socket, String> {
    let Some(path) = given else { return only().map(Socket::Api) };
    match path.to_str().and_then(|text| text.parse().ok()) {
        // A file with such a name comes first.
        Some(pid) if !path.exists() => of_process(pid).map(Socket::Api),
        _ => Ok(Socket::Given(path.to_owned())),
    }
}

/// The path of the only instance.
fn only() -> Result<PathBuf, String> {
    let Found { instances, none, .. } = found()?;
    match &instances[..] {
        [one] => Ok(one.path.clone()),
        [] => Err(none),
        _ => {
            let list: Vec<String> = instances.iter().map(Instance::named).collect();
            Err(format!("there are several instances; give the PID or PATH of one: {}", list.join(", ")))
        }
    }
}

/// The path of the instance with this process ID.
fn of_process(pid: u32) -> Result<PathBuf, String> {
    let Found { instances, silent, .. } = found()?;
    let own = format!("{pid}.api");
    let found = instances.into_iter().find(|instance| instance.config["pid"] == pid);
    let its_fault = || {
        silent.into_iter().find(|(path, _)| path.ends_with(&own) && path.exists()).map(|(_, reason)| reason)
    };
    found.map(|instance| instance.path).ok_or_else(|| {
        its_fault().unwrap_or_else(|| {
            format!(
                "no instance has the process ID {pid}: pesto without arguments lists them; for others (of root, or with \
                 --no-api), give the PATH of --conf-path or --api-socket"
            )
        })
    })
}

/// The sockets in the folder.
struct Found {
    instances: Vec<Instance>,
    /// The message for the case that there is no instance.
    none: String,
    /// The sockets that did not answer, each with the reason.
    silent: Vec<(PathBuf, String)>,
}

/// Asks at all sockets.
///
/// # Errors
/// A message for the user: the folder is not known.
fn found() -> Result<Found, String> {
    let folder = folder()?;
    let mut found = Found { instances: Vec::new(), none: none(&folder), silent: Vec::new() };
    for path in sockets(&folder) {
        match ask(&path) {
            Ok(instance) => found.instances.push(instance),
            Err(fault) => {
                let reason = format!("{}: {fault}", path.display());
                if path.exists() {
                    found.none.clone_from(&reason);
                }
                found.silent.push((path, reason));
            }
        }
    }
    Ok(found)
}

/// The folder of the sockets.
fn folder() -> Result<PathBuf, String> {
    of_user(std::env::var_os("XDG_RUNTIME_DIR"))
}

fn of_user(runtime: Option<OsString>) -> Result<PathBuf, String> {
    match runtime {
        Some(path) if !path.is_empty() => Ok(Path::new(&path).join("passt")),
        _ => Err(
            "XDG_RUNTIME_DIR is not set: give the PATH of a socket. Services have one with --api-socket PATH"
                .into(),
        ),
    }
}

fn none(folder: &Path) -> String {
    format!(
        "nothing listens at a socket {}/*.api: start pasta or passt with the same XDG_RUNTIME_DIR and without \
         --no-api, or with --api-socket, and give the PATH of that socket",
        folder.display()
    )
}

/// The sockets in `folder`, in the order of their names.
fn sockets(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let socket = |entry: &std::fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_socket());
    let paths = entries.filter(socket).map(|entry| entry.path());
    let mut paths: Vec<PathBuf> =
        paths.filter(|path| path.extension().is_some_and(|extension| extension == "api")).collect();
    paths.sort();
    paths
}

/// Asks the instance at `path`.
fn ask(path: &Path) -> Result<Instance, Fault> {
    let connection = Connection::open(path, PATIENCE).inspect_err(|_| remove_old(path));
    let mut connection = connection.map_err(Fault::Lost)?;
    let config = connection.request("config", &json!({}))?;
    let stats = connection.request("stats", &json!({}))?;
    Ok(Instance { path: path.to_owned(), config, stats })
}

/// Removes a socket that a process had made by itself, and that it has left behind since it was killed.
fn remove_old(path: &Path) {
    // A socket has its name when it listens already. So one that refuses connections will not be used again.
    let is_old = UnixStream::connect(path).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused);
    if is_old && is_made_by_itself(path) {
        // Another pesto may have removed it.
        let _ = std::fs::remove_file(path);
    }
}

/// Whether the name is `PID.api` or `PID-NUMBER.api`.
fn is_made_by_itself(path: &Path) -> bool {
    let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
    let (pid, number) = name.split_once('-').unwrap_or((name, "1"));
    [pid, number].iter().all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()))
}

impl Instance {
    fn uptime(&self) -> f64 {
        self.stats["uptime"].as_f64().unwrap_or(0.0)
    }

    fn flows(&self) -> u64 {
        let kinds = ["tcp", "tcp_bypass", "udp", "ping"].iter();
        kinds.filter_map(|kind| self.stats[*kind]["open"].as_u64()).sum()
    }

    /// The process ID, what it serves, and the path.
    fn named(&self) -> String {
        let [pid, serves] = ["pid", "serves"].map(|key| text::word(&self.config[key]));
        format!("{pid} ({serves}) {}", self.path.display())
    }

    fn row(&self) -> [String; HEADINGS.len()] {
        let path = Value::from(self.path.to_string_lossy());
        [
            text::word(&self.config["pid"]),
            text::word(&self.config["program"]),
            text::word(&self.config["version"]),
            text::word(&self.config["serves"]),
            text::word(&self.config["link"]),
            self.flows().to_string(),
            text::duration(self.uptime()),
            text::word(&path),
        ]
    }

    fn json(&self) -> Value {
        json!({
            "path": self.path.to_string_lossy(),
            "pid": self.config["pid"],
            "serves": self.config["serves"],
            "program": self.config["program"],
            "version": self.config["version"],
            "link": self.config["link"],
            "flows": self.flows(),
            "uptime": self.uptime(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn only_sockets_with_the_suffix_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("file.api"), "").unwrap();
        let _listeners =
            ["b.api", "a.api", "control.sock"].map(|name| UnixListener::bind(path(name)).unwrap());
        assert_eq!(sockets(folder.path()), [path("a.api"), path("b.api")]);
        assert!(sockets(&path("missing")).is_empty());
    }

    #[test]
    fn the_folder_is_the_users() {
        assert_eq!(of_user(Some("/run/user/1000".into())), Ok("/run/user/1000/passt".into()));
        assert!(of_user(Some(OsString::new())).is_err());
        assert!(of_user(None).unwrap_err().contains("XDG_RUNTIME_DIR"));
    }

    /// A socket that was left behind by a process that has ended is no instance. It is removed unless a user has chosen
    /// its name.
    #[test]
    fn a_socket_without_a_listener_is_no_instance() {
        let folder = tempfile::tempdir().unwrap();
        for (name, removed) in
            [("12.api", true), ("12-3.api", true), ("old.api", false), ("-1.api", false), ("1-.api", false)]
        {
            let path = folder.path().join(name);
            drop(UnixListener::bind(&path).unwrap());
            assert!(ask(&path).is_err());
            assert_eq!(path.exists(), !removed, "{name}");
        }
        // One that listens stays, even if it answers nothing.
        let path = folder.path().join("13.api");
        let listener = UnixListener::bind(&path).unwrap();
        remove_old(&path);
        assert!(path.exists());
        drop(listener);
    }
}
