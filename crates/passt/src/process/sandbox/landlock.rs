//! Landlock. It is used if the root directory can't be replaced. The process can't open, create, remove or execute
//! files any more. Files that are already open stay usable. Sockets are not affected.

use std::os::fd::BorrowedFd;

use anyhow::Context;
use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr,
};

/// Rules that restrict a thread's access to files. They are not in force before [`FileRules::enforce`].
pub(crate) struct FileRules(RulesetCreated);

impl FileRules {
    /// Denies access to all files, except that files below the directories `readable` can be read, and files below
    /// `emptied` can be removed.
    ///
    /// # Errors
    /// The kernel has no Landlock.
    pub(crate) fn new<'a>(
        readable: impl IntoIterator<Item = BorrowedFd<'a>>,
        emptied: impl IntoIterator<Item = BorrowedFd<'a>>,
    ) -> anyhow::Result<Self> {
        // Version 1 is required. It covers most kinds of access. Kinds of access in later versions are denied if the
        // kernel supports this.
        let mut rules = Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(AccessFs::from_all(ABI::V1))?
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(ABI::V5))?
            .create()?;
        let readable = readable.into_iter().map(|directory| (directory, AccessFs::ReadFile));
        let emptied = emptied.into_iter().map(|directory| (directory, AccessFs::RemoveFile));
        for (directory, access) in readable.chain(emptied) {
            rules = rules.add_rule(PathBeneath::new(directory, access))?;
        }
        Ok(Self(rules))
    }

    /// Restricts the calling thread permanently, and threads that it starts later.
    ///
    /// # Errors
    /// The kernel refuses the rules.
    pub(crate) fn enforce(self) -> anyhow::Result<()> {
        self.0.restrict_self().map(drop).context("can't restrict the thread by Landlock")
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
    fn under_the_rules_only_excepted_files_can_be_opened() {
        let [readable, other, emptied] = [(); 3].map(|()| tempfile::tempdir().unwrap());
        let directory = |dir: &tempfile::TempDir| File::open(dir.path()).unwrap();
        let (first, last) = (directory(&readable), directory(&emptied));
        let Ok(rules) = FileRules::new([first.as_fd()], [last.as_fd()]) else {
            return skipped("the kernel has no Landlock");
        };
        for dir in [&readable, &other, &emptied] {
            fs::write(dir.path().join("file"), "text").unwrap();
        }
        let refused = |result: std::io::Result<()>| result.unwrap_err().kind() == PermissionDenied;
        let test = || {
            rules.enforce().unwrap();
            let [ours, theirs] = [&readable, &other].map(|dir| dir.path().join("file"));
            assert_eq!(fs::read(&ours).unwrap(), b"text");
            assert!(refused(fs::read(&theirs).map(drop)));
            assert!(refused(fs::write(&ours, "")) && refused(fs::write(&theirs, "")));
            assert!(refused(fs::remove_file(&ours)) && refused(fs::create_dir(other.path().join("new"))));
            fs::remove_file(emptied.path().join("file")).unwrap();
            assert!(refused(fs::write(emptied.path().join("file"), "")));
            assert!(refused(fs::read_dir("/").map(drop)));
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        };
        // The rules restrict only the thread that has enforced them.
        thread::scope(|scope| scope.spawn(test).join().unwrap());
        fs::write(other.path().join("file"), "").unwrap();
    }
}
