//! Shows that two builds of a commit give the same bytes: `cargo xtask dist --twice`.
//!
//! Each build has a clean clone, in another folder, with another umask, time zone and number of jobs.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};

use super::{Options, tool};
use crate::house::root;

/// What differs between the builds.
struct Build {
    /// The folder of the clone, below the folder to work in.
    folder: &'static str,
    umask: &'static str,
    environment: [(&'static str, &'static str); 2],
}

const BUILDS: [Build; 2] = [
    Build { folder: "one", umask: "022", environment: [("TZ", "UTC"), ("CARGO_BUILD_JOBS", "2")] },
    Build {
        folder: "another folder/with-a-longer-name",
        umask: "077",
        environment: [("TZ", "Pacific/Auckland"), ("CARGO_BUILD_JOBS", "1")],
    },
];

/// Makes the packages of the last commit twice, prints the checksums, and keeps the packages of the first build.
///
/// # Errors
/// A build fails, or a package differs.
pub(super) fn run(options: &Options) -> anyhow::Result<()> {
    let commit = tool::output(Command::new("git").args(["rev-parse", "HEAD"]).current_dir(root()))?;
    let commit = commit.trim();
    println!("commit {commit}");
    let changed = Command::new("git").args(["diff", "--quiet", "HEAD"]).current_dir(root()).status();
    if !changed.context("can't run git")?.success() {
        println!("changes that are not committed are left out");
    }
    fs::create_dir_all(&options.folder)
        .with_context(|| format!("can't create {}", options.folder.display()))?;
    let folder = options.folder.canonicalize().context("no folder for the packages")?;
    let work = tempfile::tempdir_in(&folder).context("can't create a folder to work in")?;
    let mut made = Vec::new();
    for build in &BUILDS {
        let clone = work.path().join(build.folder);
        let packages = work.path().join(format!("{}.packages", build.folder));
        clone_at(commit, &root(), &clone)?;
        build.run(options, &clone, &packages)?;
        made.push(packages);
        // The build has taken gigabytes.
        fs::remove_dir_all(&clone).with_context(|| format!("can't remove {}", clone.display()))?;
    }
    let [first, second] = [sums(&made[0])?, sums(&made[1])?];
    let (table, differ) = compare(&first, &second);
    print!("{table}");
    if differ > 0 {
        let kept = work.keep();
        bail!("{differ} packages differ: the packages of both builds are in {}", kept.display());
    }
    for name in first.keys().map(String::as_str).chain(["SHA256SUMS"]) {
        fs::rename(made[0].join(name), folder.join(name))
            .with_context(|| format!("can't move {name} to {}", folder.display()))?;
    }
    Ok(())
}

/// Clones a repository, and checks out a commit, which need not be the last one: a build takes long enough for another commit.
fn clone_at(commit: &str, repository: &Path, clone: &Path) -> anyhow::Result<()> {
    tool::run(Command::new("git").args(["clone", "--quiet", "--no-checkout"]).arg(repository).arg(clone))?;
    tool::run(Command::new("git").args(["checkout", "--quiet", "--detach", commit]).current_dir(clone))
}

impl Build {
    /// Makes the packages in a clone, with the program of that clone.
    fn run(&self, options: &Options, clone: &Path, packages: &Path) -> anyhow::Result<()> {
        let mut dist = Command::new("sh");
        dist.args(["-ec", "umask \"$1\"; shift; exec \"$@\"", "sh", self.umask]);
        dist.arg(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        dist.args(["xtask", "dist"]).arg(packages);
        match &options.target {
            Some(target) => dist.args(["--target", target]),
            None => {
                let kinds: Vec<&str> = options.kinds.iter().map(|kind| kind.name()).collect();
                dist.args(["--only", &kinds.join(",")])
            }
        };
        // The folders of builds are those of the clones.
        for variable in ["CARGO_TARGET_DIR", "CARGO_MANIFEST_DIR", "SOURCE_DATE_EPOCH"] {
            dist.env_remove(variable);
        }
        tool::run(dist.envs(self.environment).current_dir(clone).stdout(Stdio::null()))
    }
}

/// The checksums of the packages in a folder, by name.
fn sums(folder: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let file = folder.join("SHA256SUMS");
    let text = fs::read_to_string(&file).with_context(|| format!("can't read {}", file.display()))?;
    let sums: BTreeMap<String, String> = text
        .lines()
        .filter_map(|line| line.split_once("  "))
        .map(|(sum, name)| (name.into(), sum.into()))
        .collect();
    ensure!(!sums.is_empty(), "{} is empty", file.display());
    Ok(sums)
}

/// A table of the packages of two builds, and how many of them differ or are missing in one.
fn compare(first: &BTreeMap<String, String>, second: &BTreeMap<String, String>) -> (String, usize) {
    let (mut table, mut differ) = (String::new(), 0);
    let mut names: Vec<&String> = first.keys().chain(second.keys()).collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        table += &match (first.get(name), second.get(name)) {
            (Some(one), Some(other)) if one == other => format!("same     {one}  {name}\n"),
            (one, other) => {
                differ += 1;
                let [one, other] = [one, other].map(|sum| sum.map_or("missing", String::as_str));
                format!("differs  {one} {other}  {name}\n")
            }
        };
    }
    (table, differ)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_that_differ_or_are_missing_are_counted() {
        let sums = |list: &[(&str, &str)]| {
            list.iter().map(|(name, sum)| ((*name).to_owned(), (*sum).to_owned())).collect()
        };
        let first = sums(&[("a", "1"), ("b", "2"), ("c", "3")]);
        let (table, differ) = compare(&first, &sums(&[("a", "1"), ("b", "4"), ("d", "5")]));
        assert_eq!(table, "same     1  a\ndiffers  2 4  b\ndiffers  3 missing  c\ndiffers  missing 5  d\n");
        assert_eq!(differ, 3);
        assert_eq!(compare(&first, &first).1, 0);
    }

    #[test]
    fn both_clones_have_the_commit_of_the_start() {
        let folder = tempfile::tempdir().unwrap();
        let [repository, clone] = ["repository", "clone"].map(|name| folder.path().join(name));
        fs::create_dir(&repository).unwrap();
        let git = |arguments: &[&str]| {
            let mut git = Command::new("git");
            git.args(["-c", "user.name=a", "-c", "user.email=a@b"]).args(arguments).current_dir(&repository);
            tool::output(&mut git).unwrap().trim().to_owned()
        };
        git(&["init", "--quiet"]);
        git(&["commit", "--quiet", "--allow-empty", "--message", "first"]);
        let commit = git(&["rev-parse", "HEAD"]);
        git(&["commit", "--quiet", "--allow-empty", "--message", "second"]);
        clone_at(&commit, &repository, &clone).unwrap();
        let mut head = Command::new("git");
        let head = tool::output(head.args(["rev-parse", "HEAD"]).current_dir(&clone)).unwrap();
        assert_eq!(head.trim(), commit);
        assert_ne!(commit, git(&["rev-parse", "HEAD"]));
    }

    #[test]
    fn checksums_are_read_by_name() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("SHA256SUMS"), "12  a.deb\n34  b.rpm\n").unwrap();
        let sums = sums(folder.path()).unwrap();
        assert_eq!(sums.get("b.rpm").map(String::as_str), Some("34"));
        assert_eq!(sums.len(), 2);
        fs::write(folder.path().join("SHA256SUMS"), "").unwrap();
        super::sums(folder.path()).unwrap_err();
    }
}
