//! A row of the table.

use std::path::Path;
use std::process::Command;

use super::network::{Network, Outcome};

/// A guest and its checks.
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) protocol: &'static str,
    /// Pairs of a Debian package and a file or program in this package. The row needs all of these.
    pub(super) needs: &'static [(&'static str, &'static str)],
    /// Files for the script, by name.
    pub(super) files: [(&'static str, &'static str); 3],
    /// A shell script that succeeds if and only if all checks pass.
    pub(super) script: &'static str,
}

impl Row {
    /// Runs the row if all files and programs that it needs are installed.
    pub(super) fn run(&self, network: &Network) -> anyhow::Result<Outcome> {
        let missing = |&&(_, file): &&(&str, &str)| !is_there(file);
        match self.needs.iter().find(missing) {
            Some((package, _)) => Ok(Outcome::Skipped(format!("not installed: package {package}"))),
            None => network.judge(&self.files, self.script),
        }
    }

    /// The installed version of the first package in `needs`.
    pub(super) fn version(&self) -> String {
        let package = self.needs.first().map_or("", |(package, _)| package);
        let output = Command::new("dpkg-query").args(["-W", "-f", "${Version}", package]).output();
        let version = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        version.ok().filter(|version| !version.is_empty()).unwrap_or_else(|| "?".into())
    }
}

/// Whether a file or a program with this name exists.
fn is_there(name: &str) -> bool {
    let folders = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    Path::new(name).exists() || folders.iter().any(|folder| Path::new(folder).join(name).exists())
}
