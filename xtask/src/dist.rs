//! Packages: `cargo xtask dist` and `cargo xtask install`.
//!
//! Two builds of one commit give the same bytes. All times in the files are that of the commit (`SOURCE_DATE_EPOCH`), and no
//! path of the machine gets into a program. Standard tools make the packages: `dpkg-deb`, `rpmbuild`, `tar`, `objcopy`.

mod archive;
mod bill;
mod contents;
mod deb;
mod documents;
mod notices;
mod order;
pub(crate) mod programs;
mod rpm;
pub(crate) mod tool;
mod tree;
mod twice;
mod version;

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use self::programs::Programs;
use crate::house::root;

/// The version of all packages.
const VERSION: &str = env!("CARGO_PKG_VERSION");
const MAINTAINER: &str = "The passt-rs authors <passt-rs@users.noreply.github.com>";
/// The package with the programs.
const PACKAGE: &str = "passt-rs";
const PURPOSE: &str = "user-mode networking for namespaces and virtual machines";
/// The package that takes the place of slirp4netns.
const SLIRP4NETNS_PACKAGE: &str = "passt-rs-slirp4netns";
const SLIRP4NETNS_PURPOSE: &str = "slirp4netns by passt-rs";
/// The version of slirp4netns whose command line and API the program has.
const SLIRP4NETNS_INTERFACE: &str = "1.2.0";
/// The folder for the packages, unless the caller names another one.
const FOLDER: &str = "target/dist";

/// A kind of package.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// For Debian, with programs that use the machine's C library.
    Deb,
    /// For Fedora and others, with the same programs.
    Rpm,
    /// The archive of static programs.
    Static,
}

/// All kinds, and their names.
const KINDS: [(&str, Kind); 3] = [("deb", Kind::Deb), ("rpm", Kind::Rpm), ("static", Kind::Static)];

impl Kind {
    fn name(self) -> &'static str {
        KINDS.iter().find(|(_, kind)| *kind == self).map_or("", |(name, _)| name)
    }
}

/// What to make.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// The folder of the packages.
    folder: PathBuf,
    kinds: Vec<Kind>,
    /// The target of the static programs, unless it is that of this machine.
    target: Option<String>,
    /// Make the packages twice, and compare them.
    twice: bool,
}

/// Parses the arguments of `dist`.
pub(crate) fn options(arguments: &[&str]) -> anyhow::Result<Options> {
    let (mut folder, mut only, mut target, mut twice) = (None, None, None, false);
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match *argument {
            "--only" => {
                only = Some(*arguments.next().context("--only needs a kind of package: deb, rpm or static")?);
            }
            "--target" => {
                target = Some(*arguments.next().context("--target needs a target, as rustc names it")?);
            }
            "--twice" => twice = true,
            option if option.starts_with('-') => {
                bail!("dist: no such option: {option} (see `cargo xtask help`)")
            }
            name if folder.is_none() => folder = Some(PathBuf::from(name)),
            extra => bail!("dist: one folder only, not {extra}, too"),
        }
    }
    let kinds = match (only, target) {
        (None | Some("static"), Some(target)) if target.ends_with("-musl") => vec![Kind::Static],
        (_, Some(target)) => bail!("--target {target}: other targets get static programs only (*-musl)"),
        (None, None) => KINDS.map(|(_, kind)| kind).to_vec(),
        (Some(only), None) => only.split(',').map(kind).collect::<anyhow::Result<_>>()?,
    };
    let folder = folder.unwrap_or_else(|| root().join(FOLDER));
    Ok(Options { folder, kinds, target: target.map(Into::into), twice })
}

fn kind(name: &str) -> anyhow::Result<Kind> {
    let kind = KINDS.iter().find(|(known, _)| *known == name);
    let (_, kind) = kind.with_context(|| format!("--only {name}: not deb, rpm or static"))?;
    Ok(*kind)
}

/// Makes the packages and their checksums.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let Options { folder, kinds, target, twice } = options;
    let native = programs::native_target()?;
    let portable = target.clone().unwrap_or_else(|| native.replace("-gnu", "-musl"));
    need(kinds, &portable)?;
    if *twice {
        return twice::run(options);
    }
    let epoch = tool::epoch()?;

    std::fs::create_dir_all(folder).with_context(|| format!("can't create {}", folder.display()))?;
    let folder = folder.canonicalize().with_context(|| format!("no folder {}", folder.display()))?;
    let work = tempfile::tempdir_in(&folder).context("can't create a folder to work in")?;
    let mut made = Vec::new();
    if kinds.contains(&Kind::Deb) || kinds.contains(&Kind::Rpm) {
        let programs = programs::build(&native, work.path())?;
        if kinds.contains(&Kind::Deb) {
            made.extend(deb::make(&programs, epoch, work.path(), &folder)?);
        }
        if kinds.contains(&Kind::Rpm) {
            made.extend(rpm::make(&programs, epoch, work.path(), &folder)?);
        }
        made.push(archive::symbols(&programs, epoch, &folder)?);
    }
    if kinds.contains(&Kind::Static) {
        let programs = programs::build(&portable, work.path())?;
        made.push(archive::make(&programs, epoch, work.path(), &folder)?);
        made.push(archive::symbols(&programs, epoch, &folder)?);
    }
    made.push(archive::checksums(&made, &folder)?);
    made.iter().for_each(|name| println!("{}", folder.join(name).display()));
    Ok(())
}

/// Finds everything that can be missing before the first build, which takes minutes.
fn need(kinds: &[Kind], portable: &str) -> anyhow::Result<()> {
    for kind in kinds {
        match kind {
            Kind::Deb => {
                tool::need(&["dpkg-deb", "dpkg-shlibdeps", "md5sum"], "apt-get install dpkg-dev")?;
            }
            Kind::Rpm => tool::need(&["rpmbuild"], "apt-get install rpm; without it: --only deb")?,
            Kind::Static => programs::need_target(portable)?,
        }
    }
    tool::need(&["tar", "xz", "gzip", "sha256sum"], "apt-get install tar xz-utils gzip coreutils")
}

/// Builds the programs and copies them, with their manual pages and completions, to `prefix`.
pub(crate) fn install(prefix: &str) -> anyhow::Result<()> {
    let prefix = std::path::absolute(prefix).with_context(|| format!("--prefix {prefix}"))?;
    let work = tempfile::tempdir().context("can't create a folder to work in")?;
    let target = programs::native_target()?;
    programs::need_target(&target)?;
    // Without a repository, an installation has no time of the commit, and does not need one.
    let epoch = tool::epoch().unwrap_or_default();
    let programs: Programs = programs::build(&target, work.path())?;
    tree::write(&programs, &prefix, &prefix, epoch)?;
    println!("installed in {}", prefix.display());
    if !in_path(&prefix.join("bin")) {
        println!("{} is not in $PATH", prefix.join("bin").display());
    }
    Ok(())
}

fn in_path(folder: &Path) -> bool {
    std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|entry| entry == folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_choose_the_packages() {
        let all = options(&[]).unwrap();
        assert_eq!(all.kinds, [Kind::Deb, Kind::Rpm, Kind::Static]);
        assert!(all.folder.ends_with(FOLDER));
        let one = options(&["--only", "static", "out"]).unwrap();
        assert_eq!(
            one,
            Options { folder: "out".into(), kinds: vec![Kind::Static], target: None, twice: false }
        );
        let twice = options(&["--twice", "--only", "rpm,deb"]).unwrap();
        assert_eq!((twice.kinds, twice.twice), (vec![Kind::Rpm, Kind::Deb], true));
        let other = options(&["--target", "aarch64-unknown-linux-musl"]).unwrap();
        assert_eq!(
            (other.kinds, other.target.as_deref()),
            (vec![Kind::Static], Some("aarch64-unknown-linux-musl"))
        );
        let wrong = [
            &["--only"][..],
            &["--only", "zip"],
            &["--only", "deb,"],
            &["--foo"],
            &["a", "b"],
            &["--target", "aarch64-unknown-linux-gnu"],
            &["--target", "aarch64-unknown-linux-musl", "--only", "deb"],
        ];
        for wrong in wrong {
            options(wrong).unwrap_err();
        }
    }
}
