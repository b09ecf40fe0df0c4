//! Landlock, where the machine's files can't be put out of sight: nothing can be opened any more, read, written, made or
//! executed. What is open stays usable; sockets and TCP are not its concern.

use std::os::fd::BorrowedFd;

use anyhow::Context;
use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr,
};

/// What a thread is about to restrict itself to.
pub(crate) struct Fence(RulesetCreated);

impl Fence {
    /// No files but those below the directories `readable`, which can be read.
    ///
    /// # Errors
    /// The kernel has no Landlock.
    pub(crate) fn new<'a>(readable: impl IntoIterator<Item = BorrowedFd<'a>>) -> anyhow::Result<Self> {
        // The first version covers all but some ways to change what is there; they are taken as far as they go.
        let mut rules = Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(AccessFs::from_all(ABI::V1))?
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(ABI::V5))?
            .create()?;
        for directory in readable {
            rules = rules.add_rule(PathBeneath::new(directory, AccessFs::ReadFile))?;
        }
        Ok(Self(rules))
    }

    /// Restricts the calling thread, for good, and those that it may start.
    pub(crate) fn enter(self) -> anyhow::Result<()> {
        self.0.restrict_self().map(drop).context("can't restrict ourselves by Landlock")
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::ErrorKind::PermissionDenied;
    use std::net::{Ipv4Addr, TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::thread;

    use super::*;
    use crate::isolated::skipped;

    #[test]
    fn behind_the_fence_nothing_is_opened_but_what_was_excepted() {
        let (readable, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let directory = File::open(readable.path()).unwrap();
        let Ok(fence) = Fence::new([directory.as_fd()]) else {
            return skipped("the kernel has no Landlock");
        };
        for dir in [&readable, &other] {
            fs::write(dir.path().join("file"), "text").unwrap();
        }
        let refused = |result: std::io::Result<()>| result.unwrap_err().kind() == PermissionDenied;
        let test = || {
            fence.enter().unwrap();
            let [ours, theirs] = [&readable, &other].map(|dir| dir.path().join("file"));
            assert_eq!(fs::read(&ours).unwrap(), b"text");
            assert!(refused(fs::read(&theirs).map(drop)));
            assert!(refused(fs::write(&ours, "")) && refused(fs::write(&theirs, "")));
            assert!(refused(fs::remove_file(&ours)) && refused(fs::create_dir(other.path().join("new"))));
            assert!(refused(fs::read_dir("/").map(drop)));
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        };
        // For this thread alone, and for good.
        thread::scope(|scope| scope.spawn(test).join().unwrap());
        fs::write(other.path().join("file"), "").unwrap();
    }
}
