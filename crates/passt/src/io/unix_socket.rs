//! Listening UNIX sockets (behaviour §9.2).

use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};

/// Maximum number of clients that may wait to be accepted.
const BACKLOG: i32 = 8;

/// Listens at `path`. Replaces a socket on which no process listens any more.
///
/// # Errors
/// Another process listens at the path, the path is a file that is not a socket, or the path can't be used.
pub(crate) fn listen_at(path: &Path) -> anyhow::Result<OwnedFd> {
    let shown = path.display();
    let address = SocketAddrUnix::new(path).with_context(|| format!("can't use socket path {shown}"))?;
    let new = || {
        socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )
        .context("can't make a UNIX domain socket")
    };
    match connect(new()?, &address) {
        // AGAIN: the backlog of the existing socket is full.
        Ok(()) | Err(Errno::AGAIN) => bail!("Socket path {shown} already in use"),
        Err(_) => {}
    }
    match path.symlink_metadata() {
        Ok(there) if there.file_type().is_socket() => {
            std::fs::remove_file(path).with_context(|| format!("can't remove old socket {shown}"))?;
        }
        Ok(_) => bail!("{shown} exists and is not a socket"),
        Err(_) => {}
    }
    let socket = new()?;
    bind(&socket, &address).with_context(|| format!("can't bind UNIX domain socket at {shown}"))?;
    if let Err(error) = listen(&socket, BACKLOG) {
        // The file is of no use then. If this fails, the next start replaces it.
        let _ = std::fs::remove_file(path);
        return Err(error).with_context(|| format!("can't listen at {shown}"));
    }
    log::info!("UNIX domain socket bound at {shown}");
    Ok(socket)
}

/// Listens at the first path in `paths` that can be used.
///
/// # Errors
/// No path can be used. The error belongs to the last path.
pub(crate) fn listen_at_first(paths: impl Iterator<Item = PathBuf>) -> anyhow::Result<(OwnedFd, PathBuf)> {
    let mut last = None;
    for path in paths {
        match listen_at(&path) {
            Ok(socket) => return Ok((socket, path)),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| anyhow::anyhow!("no socket path to try")))
        .context("no default socket path is free (--socket)")
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    /// behaviour §9.2: the path is free, has a socket that is not in use, or has a socket in use. A file that is not a
    /// socket is kept.
    #[test]
    fn replacement_rules() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        drop(listen_at(&path).unwrap());
        let second = listen_at(&path).unwrap();
        UnixStream::connect(&path).unwrap();
        let error = listen_at(&path).unwrap_err().to_string();
        assert_eq!(error, format!("Socket path {} already in use", path.display()));
        UnixStream::connect(&path).unwrap();
        drop(second);
        drop(UnixListener::from(listen_at(&path).unwrap()));

        let file = folder.path().join("file");
        std::fs::write(&file, "precious").unwrap();
        assert!(listen_at(&file).unwrap_err().to_string().ends_with("is not a socket"));
        assert_eq!(std::fs::read(&file).unwrap(), b"precious");
        assert!(listen_at(&folder.path().join("missing/s")).is_err());
    }

    /// behaviour §9.2, no path given: a path is skipped if it is in use, or if its file must not be replaced.
    #[test]
    fn the_first_that_is_free() {
        let folder = tempfile::tempdir().unwrap();
        let paths = || (1..4).map(|number| folder.path().join(format!("{number}.socket")));
        let (_first, path) = listen_at_first(paths()).unwrap();
        assert_eq!(path, folder.path().join("1.socket"));
        std::fs::write(folder.path().join("2.socket"), "precious").unwrap();
        let (third, path) = listen_at_first(paths()).unwrap();
        assert_eq!(path, folder.path().join("3.socket"));
        let error = format!("{:#}", listen_at_first(paths()).unwrap_err());
        assert!(error.starts_with("no default socket path is free (--socket): "), "{error}");
        drop(third);
        assert_eq!(listen_at_first(paths()).unwrap().1, path);
    }
}
