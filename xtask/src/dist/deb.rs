//! The packages for Debian and its descendants. They take the place of the packages `passt` and `slirp4netns`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use super::programs::{PROGRAMS, Programs};
use super::{
    MAINTAINER, PACKAGE, PURPOSE, SLIRP4NETNS_INTERFACE, SLIRP4NETNS_PACKAGE, SLIRP4NETNS_PURPOSE, VERSION,
    notices, tool, tree,
};

const DESCRIPTION: &str = " pasta connects a network namespace, and passt connects a virtual machine,
 to the networks of the host, through ordinary sockets of an ordinary user.
 They need no privileges and no daemon. Rules can limit what the guest may
 reach, by name and by address.
 .
 The programs take the place of those of the package passt, with the same
 command lines. The package also contains pesto, which changes forwarding
 rules at run time, and qrap, which starts a QEMU before version 7.2.
";

const SLIRP4NETNS_DESCRIPTION: &str =
    " slirp4netns connects a network namespace by a virtual network, for tools
 that expect this program. This package makes passt-rs serve them: it has
 the command line and the API socket of slirp4netns 1.2.
";

/// Makes the packages. Returns their names.
///
/// # Errors
/// A file can't be written, or a program of Debian's fails.
pub(super) fn make(
    programs: &Programs,
    epoch: u64,
    work: &Path,
    folder: &Path,
) -> anyhow::Result<Vec<String>> {
    // dpkg-shlibdeps expects the source tree of a package, with the files to install in it.
    let source = work.join("source");
    let tree = source.join("debian").join(PACKAGE);
    tree::write_main(programs, &tree.join("usr"), Path::new("/usr"), epoch)?;
    follow_policy(&tree.join("usr/share"), epoch)?;
    let architecture = tool::output(Command::new("dpkg").arg("--print-architecture"))?;
    let libraries = libraries(&source, &tree)?;
    let main = Control {
        name: PACKAGE,
        architecture: architecture.trim(),
        relations: format!(
            "Depends: {libraries}\nProvides: passt (= {VERSION})\nConflicts: passt\nReplaces: passt\n"
        ),
        description: format!("{PURPOSE}\n{DESCRIPTION}"),
    };

    // The program is a link, so the package fits every architecture.
    let second = source.join("debian").join(SLIRP4NETNS_PACKAGE);
    tree::write_slirp4netns(&second.join("usr"))?;
    tree::compress_manual(&second.join("usr/share/man"))?;
    tree::link(&second.join("usr/share/doc").join(SLIRP4NETNS_PACKAGE), PACKAGE)?;
    let slirp4netns = Control {
        name: SLIRP4NETNS_PACKAGE,
        architecture: "all",
        relations: format!(
            "Source: {PACKAGE}\nDepends: {PACKAGE} (= {VERSION})\nProvides: slirp4netns (= {SLIRP4NETNS_INTERFACE})\n\
             Conflicts: slirp4netns\nReplaces: slirp4netns\n"
        ),
        description: format!("{SLIRP4NETNS_PURPOSE}\n{SLIRP4NETNS_DESCRIPTION}"),
    };
    Ok(vec![build(&main, &tree, epoch, folder)?, build(&slirp4netns, &second, epoch, folder)?])
}

/// What differs between the packages in the file `control`.
struct Control<'a> {
    name: &'a str,
    architecture: &'a str,
    /// The fields about other packages.
    relations: String,
    description: String,
}

/// Makes a package of the files in `tree`. Returns its name.
fn build(control: &Control<'_>, tree: &Path, epoch: u64, folder: &Path) -> anyhow::Result<String> {
    let usr = tool::output(
        Command::new("du").args(["--summarize", "--apparent-size", "-k"]).arg(tree.join("usr")),
    )?;
    let size = usr.split_whitespace().next().context("du prints no size")?;
    let Control { name, architecture, relations, description } = control;
    let control = format!(
        "Package: {name}\nVersion: {VERSION}\nArchitecture: {architecture}\nMaintainer: {MAINTAINER}\n\
         Installed-Size: {size}\n{relations}Section: net\nPriority: optional\n\
         Homepage: https://github.com/passt-rs/passt-rs\nDescription: {description}"
    );
    tree::file(&tree.join("DEBIAN/md5sums"), sums(tree)?.as_bytes(), 0o644)?;
    tree::file(&tree.join("DEBIAN/control"), control.as_bytes(), 0o644)?;
    for folder in folders(tree)? {
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("can't set the mode of {}", folder.display()))?;
    }
    let name = format!("{name}_{VERSION}_{architecture}.deb");
    let mut build = Command::new("dpkg-deb");
    build
        .args(["--root-owner-group", "-Zxz", "--threads-max=1", "--build"])
        .arg(tree)
        .arg(folder.join(&name));
    tool::run(build.env("SOURCE_DATE_EPOCH", epoch.to_string()).stdout(std::process::Stdio::null()))?;
    Ok(name)
}

/// Changes the files below `share` as Debian's policy demands: compressed manual pages and change log, a file of
/// licences.
fn follow_policy(share: &Path, epoch: u64) -> anyhow::Result<()> {
    let documents = share.join("doc").join(PACKAGE);
    let date = tool::date(epoch, "+%a, %d %b %Y %H:%M:%S %z")?;
    let changelog = format!(
        "{PACKAGE} ({VERSION}) unstable; urgency=medium\n\n  * See CHANGELOG.md.\n\n -- {MAINTAINER}  {date}\n"
    );
    tree::file(&documents.join("changelog"), changelog.as_bytes(), 0o644)?;
    let licence = tree::read("LICENSE-MIT")?;
    // The licences are in `copyright`.
    for name in ["LICENSE-MIT", "LICENSE-APACHE"] {
        fs::remove_file(documents.join(name)).with_context(|| format!("can't remove {name}"))?;
    }
    let copyright = copyright(&tool::date(epoch, "+%Y")?, &licence);
    tree::file(&documents.join("copyright"), copyright.as_bytes(), 0o644)?;
    tree::compress_manual(&share.join("man"))?;
    tool::run(Command::new("gzip").arg("-9n").arg(documents.join("changelog")))
}

fn copyright(year: &str, licence: &str) -> String {
    let terms = licence.split("\n\n").skip(2).collect::<Vec<_>>().join("\n\n");
    let terms: String = terms
        .lines()
        .map(|line| if line.is_empty() { " .\n".to_owned() } else { format!(" {line}\n") })
        .collect();
    format!(
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\
         Upstream-Name: passt-rs\nSource: https://github.com/passt-rs/passt-rs\n\
         Comment: The libraries in the programs, and their licences, are in the file {}.\n\n\
         Files: *\nCopyright: {year} The passt-rs authors\nLicense: Apache-2.0 or Expat\n\n\
         License: Apache-2.0\n On Debian systems, the text is in /usr/share/common-licenses/Apache-2.0.\n\n\
         License: Expat\n{terms}",
        notices::NAME
    )
}

/// The packages of the libraries that the programs use, in the form of the field Depends.
fn libraries(source: &Path, tree: &Path) -> anyhow::Result<String> {
    tree::file(
        &source.join("debian/control"),
        format!("Source: {PACKAGE}\n\nPackage: {PACKAGE}\nArchitecture: any\n").as_bytes(),
        0o644,
    )?;
    let mut find = Command::new("dpkg-shlibdeps");
    find.arg("-O").args(PROGRAMS.map(|name| tree.join("usr/bin").join(name))).current_dir(source);
    let found = tool::output(&mut find)?;
    let depends = found.lines().find_map(|line| line.strip_prefix("shlibs:Depends="));
    Ok(depends.context("dpkg-shlibdeps finds no library")?.to_owned())
}

/// The checksums of all files, sorted by name.
fn sums(tree: &Path) -> anyhow::Result<String> {
    let list = "find usr -type f | LC_ALL=C sort | xargs md5sum";
    tool::output(Command::new("sh").args(["-ec", list]).current_dir(tree))
}

fn folders(tree: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let list = tool::output(Command::new("find").arg(tree).args(["-type", "d"]))?;
    Ok(list.lines().map(PathBuf::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A line of a licence's text begins with a blank, and an empty line is a dot.
    #[test]
    fn copyright_is_machine_readable() {
        let text = copyright(
            "2030",
            "MIT License\n\nCopyright (c) X\n\nPermission is granted\nto all.\n\nNo warranty.\n",
        );
        assert!(
            text.ends_with("License: Expat\n Permission is granted\n to all.\n .\n No warranty.\n"),
            "{text}"
        );
    }
}
