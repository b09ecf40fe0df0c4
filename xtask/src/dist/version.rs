//! The version that programs show, with the commit from which they were built.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};

use super::{VERSION, tool};

/// The version, with the commit and its date (UTC) if `repository` is a git repository.
///
/// # Errors
/// The commit has the tag of another version.
pub(super) fn full(repository: &Path) -> anyhow::Result<String> {
    if !repository.join(".git").exists() {
        return Ok(VERSION.to_owned());
    }
    let git = |arguments: &[&str]| {
        let mut git = Command::new("git");
        git.arg("-C").arg(repository).args(arguments).env("TZ", "UTC");
        tool::output(&mut git).map(|text| text.trim_end().to_owned())
    };
    let tags = git(&["tag", "--points-at", "HEAD", "--list", "v[0-9]*"])?;
    if let Some(tag) = tags.lines().find(|tag| *tag != format!("v{VERSION}")) {
        bail!("the commit has the tag {tag}, but Cargo.toml has the version {VERSION}");
    }
    let shown = git(&["show", "--no-patch", "--format=%H %cd", "--date=format-local:%Y-%m-%d", "HEAD"])?;
    let (commit, date) = shown.split_once(' ').context("git show prints no commit and date")?;
    let commit = commit.get(..12).context("git show prints no commit")?;
    let changed =
        if git(&["status", "--porcelain", "--untracked-files=no"])?.is_empty() { "" } else { ", changed" };
    Ok(format!("{VERSION} (commit {commit} of {date}{changed})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_names_the_commit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        assert_eq!(full(path).unwrap(), VERSION);
        let git = |arguments: &[&str]| {
            let mut git = Command::new("git");
            git.arg("-C").arg(path).args(["-c", "user.name=x", "-c", "user.email=x"]).args(arguments);
            // Half past eleven in the evening of the last day of the year, and the next day in UTC.
            git.env("GIT_COMMITTER_DATE", "2025-12-31T23:30:00-02:00");
            tool::output(&mut git).unwrap()
        };
        git(&["init", "--quiet"]);
        std::fs::write(path.join("file"), "1").unwrap();
        git(&["add", "file"]);
        git(&["commit", "--quiet", "--message", "first"]);
        let commit = git(&["rev-parse", "HEAD"]);
        let named = format!("{VERSION} (commit {} of 2026-01-01", &commit[..12]);
        assert_eq!(full(path).unwrap(), format!("{named})"));
        std::fs::write(path.join("file"), "2").unwrap();
        assert_eq!(full(path).unwrap(), format!("{named}, changed)"));
        git(&["tag", &format!("v{VERSION}")]);
        assert!(full(path).is_ok());
        git(&["tag", "v99.0.0"]);
        assert!(full(path).unwrap_err().to_string().contains("v99.0.0"));
    }
}
