//! Real DHCP and DHCPv6 clients and firmware as guests. Each of them has a row in the table.
//!
//! ```text
//! [guest] == (pasta or passt in [host]) eth0 --- eth0 [peer]: TFTP, HTTP
//! ```
//!
//! Needs root: the clients change users, mount file systems, and configure interfaces. They run in new namespaces, with
//! copies of the directories to which they write.

mod client;
mod machine;
mod network;
mod row;

use std::process::Command;

use anyhow::{Context, bail, ensure};
use network::{Network, Outcome};
use row::Row;

/// Which rows to run, and the programs under test.
pub(crate) struct Options {
    /// The folder that contains the programs under test, `pasta` and `passt`.
    pub(crate) programs: String,
    /// Run only rows whose name or protocol contains this text.
    pub(crate) only: String,
}

/// Starts this program again in new namespaces, so that the kernel removes them at the end.
pub(crate) fn enter(arguments: &[String]) -> anyhow::Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "guests: the clients need root");
    let unshare = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];
    let status = Command::new("unshare")
        .args(unshare)
        .arg("--")
        .arg(std::env::current_exe()?)
        .args(["guests", "--inside"])
        .args(arguments)
        .status()
        .context("can't run unshare (util-linux)")?;
    ensure!(status.success(), "not all guests work");
    Ok(())
}

/// Runs all rows in the new namespaces, and prints the table.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let network = Network::new(&options.programs)?;
    let wanted = |row: &Row| row.name.contains(&options.only) || row.protocol.contains(&options.only);
    let mut failed = 0;
    println!("{:<22} {:<32} {:<22} RESULT", "GUEST", "VERSION", "PROTOCOL");
    for row in client::rows().into_iter().chain(machine::rows()).filter(wanted) {
        let result = match row.run(&network)? {
            Outcome::Works => "works".into(),
            Outcome::Skipped(why) => format!("skipped: {why}"),
            Outcome::Fails(why) => {
                failed += 1;
                format!("FAILS: {why}")
            }
        };
        println!("{:<22} {:<32} {:<22} {result}", row.name, row.version(), row.protocol);
    }
    network.remove()?;
    if failed > 0 { bail!("{failed} fail") } else { Ok(()) }
}
