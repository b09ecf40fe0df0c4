//! The user under which the process runs (behaviour §10.2).

use anyhow::{Context, bail};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, getegid, geteuid, set_dumpable_behavior};
use rustix::thread::{
    CapabilitySet, CapabilitySets, Gid, Uid, capabilities, set_capabilities, set_keep_capabilities,
    set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};
use sys::passwd::{User, group_by_name, user_by_name};

use crate::config::{Id, RunAs};

/// The user to which root changes if `--runas` is not given.
const UNPRIVILEGED: &str = "nobody";

/// The user under which the process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Identity {
    /// The caller. It is an ordinary user, root of a user namespace (an ordinary user outside the namespace), or root
    /// without the capabilities to change user.
    Callers,
    /// The user of `--runas`. A spawned command runs as this user, too.
    Asked(User),
    /// An unprivileged user instead of root. A spawned command still runs as root.
    InsteadOfRoot(User),
}

impl Identity {
    /// Chooses the user by `--runas` and the caller. Must be called while the user database can be read.
    pub(crate) fn choose(asked: Option<&RunAs>) -> anyhow::Result<Self> {
        if let Some(asked) = asked {
            return resolve(asked).map(Self::Asked);
        }
        if !geteuid().is_root() || !in_initial_user_namespace()? || !can_serve_as_another()? {
            return Ok(Self::Callers);
        }
        let user = user_by_name(UNPRIVILEGED)
            .with_context(|| format!("can't look up user {UNPRIVILEGED}"))?
            .with_context(|| {
                format!("started as root, and there is no user {UNPRIVILEGED} to change to (--runas)")
            })?;
        Ok(Self::InsteadOfRoot(user))
    }
}

/// Whether the process has the capabilities to change user, and to serve a guest of root as the new user. A caller that
/// has removed these capabilities from root does not expect a change of user.
fn can_serve_as_another() -> anyhow::Result<bool> {
    let needed = CapabilitySet::SETUID | CapabilitySet::SETGID | CapabilitySet::SYS_ADMIN;
    let ours = capabilities(None).context("can't read our capabilities")?;
    Ok(ours.effective.contains(needed))
}

/// Whether this is the initial user namespace. Its map contains all IDs. Other user namespaces map only some IDs.
fn in_initial_user_namespace() -> anyhow::Result<bool> {
    if !std::path::Path::new("/proc/self").exists() {
        bail!("started as root, but /proc is not mounted, so the user namespace is unknown: mount it");
    }
    // If the file doesn't exist, the kernel has no user namespaces.
    Ok(std::fs::read_to_string("/proc/self/uid_map").map_or(true, |map| is_identity(&map)))
}

fn is_identity(uid_map: &str) -> bool {
    uid_map.split_whitespace().eq(["0", "0", "4294967295"])
}

fn resolve(asked: &RunAs) -> anyhow::Result<User> {
    let user = match &asked.user {
        Id::Number(uid) => User { uid: *uid, gid: *uid },
        Id::Name(name) if name == "root" => {
            bail!("--runas: root is not accepted by name; to stay root, give the number 0")
        }
        Id::Name(name) => user_by_name(name)
            .with_context(|| format!("can't look up user '{name}' (--runas)"))?
            .with_context(|| format!("invalid --runas option: no user '{name}'"))?,
    };
    let gid = match &asked.group {
        None => user.gid,
        Some(Id::Number(gid)) => *gid,
        Some(Id::Name(name)) => group_by_name(name)
            .with_context(|| format!("can't look up group '{name}' (--runas)"))?
            .with_context(|| format!("invalid --runas option: no group '{name}'"))?,
    };
    Ok(User { gid, ..user })
}

/// Changes to a user, without supplementary groups. Capabilities are kept: some of them are needed to enter the guest's
/// namespace. They are dropped later.
///
/// The process must have only one thread, because IDs belong to threads.
pub(crate) fn change_to(user: User) -> anyhow::Result<()> {
    if (geteuid().as_raw(), getegid().as_raw()) == (user.uid, user.gid) && !geteuid().is_root() {
        return Ok(());
    }
    let explain =
        || format!("can't change to user {} and group {}: this needs root's rights", user.uid, user.gid);
    match set_thread_groups(&[]) {
        // User namespaces often forbid setgroups(2).
        Ok(()) | Err(Errno::PERM) => {}
        Err(error) => return Err(error).with_context(explain),
    }
    set_keep_capabilities(true).with_context(explain)?;
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    set_thread_res_gid(gid, gid, gid).with_context(explain)?;
    set_thread_res_uid(uid, uid, uid).with_context(explain)?;
    set_keep_capabilities(false).with_context(explain)?;
    let sets = capabilities(None).with_context(explain)?;
    set_capabilities(None, CapabilitySets { effective: sets.permitted, ..sets }).with_context(explain)?;
    // After the change, /proc/self belongs to root until the process is dumpable. Access to /proc/self is needed to
    // enter the namespace.
    set_dumpable_behavior(DumpableBehavior::Dumpable).with_context(explain)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runas(user: Id, group: Option<Id>) -> anyhow::Result<User> {
        resolve(&RunAs { user, group })
    }

    fn name(name: &str) -> Id {
        Id::Name(name.into())
    }

    /// behaviour §2.2: the four forms of `--runas`.
    #[test]
    fn runas_takes_numbers_and_names() {
        assert_eq!(runas(Id::Number(0), None).unwrap(), User { uid: 0, gid: 0 });
        assert_eq!(runas(Id::Number(12), None).unwrap(), User { uid: 12, gid: 12 });
        assert_eq!(runas(Id::Number(12), Some(Id::Number(13))).unwrap(), User { uid: 12, gid: 13 });
        let nobody = user_by_name("nobody").unwrap().unwrap();
        assert_eq!(runas(name("nobody"), None).unwrap(), nobody);
        assert_eq!(runas(name("nobody"), Some(name("root"))).unwrap(), User { gid: 0, ..nobody });
    }

    #[test]
    fn runas_refuses_root_by_name_and_unknown_names() {
        for (user, group) in [("root", None), ("no such user", None), ("nobody", Some(name("no such group")))]
        {
            let error = runas(name(user), group).unwrap_err();
            assert!(error.to_string().contains("--runas"), "{error}");
        }
    }

    #[test]
    fn the_initial_user_namespace_maps_all_ids() {
        assert!(is_identity("         0          0 4294967295\n"));
        assert!(!is_identity("         0       1000          1\n"));
        assert!(!is_identity("0 1000 1\n1 100000 65536\n"));
    }
}
