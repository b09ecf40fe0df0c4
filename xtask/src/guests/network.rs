//! The network to which the guests are connected, and the scripts that run in it.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, ensure};

/// Addresses of the host. The guest gets the same addresses.
const HOST: [&str; 2] = ["198.51.100.2", "2001:db8:1::2"];
/// Addresses of the peer. The peer is the host's gateway.
const PEER: [&str; 2] = ["198.51.100.1", "2001:db8:1::1"];
/// Resolvers in the host's resolv.conf.
const RESOLVERS: [&str; 2] = ["198.51.100.53", "2001:db8:1::53"];

/// The result of a row.
pub(super) enum Outcome {
    /// All checks passed.
    Works,
    /// The checks that failed, with the end of the client's log.
    Fails(String),
    /// The package that is not installed.
    Skipped(String),
}

/// The host, the peer, and a folder for files.
pub(super) struct Network {
    dir: PathBuf,
    programs: PathBuf,
}

impl Network {
    /// Sets up the network in the namespaces of this process. The folder `programs` contains the programs under test.
    pub(super) fn new(programs: &str) -> anyhow::Result<Self> {
        let programs = fs::canonicalize(programs)
            .with_context(|| format!("no folder {programs} (cargo build first)"))?;
        let dir = std::env::temp_dir().join(format!("guests-{}", std::process::id()));
        fs::create_dir_all(&dir).with_context(|| format!("can't create {}", dir.display()))?;
        let network = Self { dir, programs };
        network.sh("chmod 777 $DIR").context("can't open the folder to all")?;
        let (stdout, ok) = network.sh(HOST_SETUP)?;
        ensure!(ok, "can't set up the network: {stdout}");
        Ok(network)
    }

    /// Removes the folder for files.
    pub(super) fn remove(self) -> anyhow::Result<()> {
        fs::remove_dir_all(&self.dir).with_context(|| format!("can't remove {}", self.dir.display()))
    }

    /// Runs a shell script in the host's namespace. Returns the script's output, and whether the script succeeded.
    fn sh(&self, script: &str) -> anyhow::Result<(String, bool)> {
        let output = Command::new("sh")
            .args(["-c", &format!("exec 2>&1\n{script}")])
            .env("DIR", &self.dir)
            .env("PROGRAMS", &self.programs)
            .envs([("HOST4", HOST[0]), ("HOST6", HOST[1]), ("PEER4", PEER[0]), ("PEER6", PEER[1])])
            .envs([("DNS4", RESOLVERS[0]), ("DNS6", RESOLVERS[1])])
            .output()
            .context("can't run sh")?;
        Ok((String::from_utf8_lossy(&output.stdout).into_owned(), output.status.success()))
    }

    /// Writes `files`, by name, and runs a script in their folder. If the script fails, the last lines of its output
    /// are the reason.
    pub(super) fn judge(&self, files: &[(&str, &str)], script: &str) -> anyhow::Result<Outcome> {
        for (name, text) in files {
            fs::write(self.dir.join(name), text).with_context(|| format!("can't write {name}"))?;
        }
        let (output, ok) = self.sh(script)?;
        let last: Vec<&str> = output.lines().rev().take(3).collect();
        let why = || last.into_iter().rev().collect::<Vec<_>>().join(" | ");
        Ok(if ok { Outcome::Works } else { Outcome::Fails(why()) })
    }
}

const HOST_SETUP: &str = r#"set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /run
ip link set lo up
ip netns add peer
ip link add eth0 type veth peer name eth0 netns peer
for netns in "" "-n peer"; do ip $netns link set eth0 up; done
ip addr add $HOST4/24 dev eth0
ip addr add $HOST6/64 dev eth0 nodad
ip -n peer addr add $PEER4/24 dev eth0
ip -n peer addr add $PEER6/64 dev eth0 nodad
ip -n peer addr add 198.51.100.3/24 dev eth0 # for services: the gateway's address is mapped to the host's loopback
ip route add default via $PEER4
ip -6 route add default via $PEER6
printf 'search example.test\nnameserver %s\nnameserver %s\n' $DNS4 $DNS6 >$DIR/resolv.conf
mount --bind $DIR/resolv.conf /etc/resolv.conf
"#;
