//! The packages for Fedora, openSUSE and others that use RPM. They take the place of the packages `passt` and `slirp4netns`.
//!
//! `rpmbuild` makes them, as `dpkg-deb` makes those for Debian. It finds the libraries that the programs need.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Context;

use super::contents::Library;
use super::programs::Programs;
use super::{
    MAINTAINER, PACKAGE, PURPOSE, SLIRP4NETNS_INTERFACE, SLIRP4NETNS_PACKAGE, SLIRP4NETNS_PURPOSE, VERSION,
    tool, tree,
};

/// How often the packages of a version were made.
const RELEASE: &str = "1";

/// What is the same in each build, whatever the machine.
const SETTINGS: [(&str, &str); 8] = [
    ("_rpmfilename", "%%{NAME}-%%{VERSION}-%%{RELEASE}.%%{ARCH}.rpm"),
    ("_buildhost", "localhost"),
    ("_binary_payload", "w6.xzdio"),
    // Times come from SOURCE_DATE_EPOCH.
    ("use_source_date_epoch_as_buildtime", "1"),
    ("source_date_epoch_from_changelog", "0"),
    // The files are ready: no program changes them, and the symbols are in an archive of their own.
    ("__os_install_post", "%{nil}"),
    ("debug_package", "%{nil}"),
    ("_build_id_links", "none"),
];

/// Makes the packages. Returns their names.
///
/// # Errors
/// A file can't be written, or rpmbuild(8) fails.
pub(super) fn make(
    programs: &Programs,
    epoch: u64,
    work: &Path,
    folder: &Path,
) -> anyhow::Result<Vec<String>> {
    let work = work.join("rpm");
    let (main, slirp4netns) = (work.join(PACKAGE), work.join(SLIRP4NETNS_PACKAGE));
    tree::write_main(programs, &main.join("usr"), Path::new("/usr"), epoch)?;
    tree::write_slirp4netns(&slirp4netns.join("usr"))?;
    for tree in [&main, &slirp4netns] {
        follow_conventions(&tree.join("usr/share"))?;
    }
    let architecture = programs.target.split('-').next().unwrap_or_default();
    let spec = work.join("passt-rs.spec");
    let files = [files(&main)?, files(&slirp4netns)?];
    let text = self::spec(&programs.libraries, epoch, [&main, &slirp4netns], &files)?;
    tree::file(&spec, text.as_bytes(), 0o644)?;

    let mut build = Command::new("rpmbuild");
    build.args(["--quiet", "-bb", "--target", architecture]);
    let folders = [("_topdir", &*work), ("_rpmdir", folder)];
    let folders = folders.map(|(name, path)| format!("{name} {}", path.display()));
    let settings = SETTINGS.map(|(name, value)| format!("{name} {value}"));
    for setting in folders.iter().chain(&settings) {
        build.args(["--define", setting]);
    }
    build.env("SOURCE_DATE_EPOCH", epoch.to_string()).stdout(Stdio::null());
    tool::run(build.arg(&spec))?;
    Ok([(PACKAGE, architecture), (SLIRP4NETNS_PACKAGE, "noarch")]
        .map(|(name, architecture)| format!("{name}-{VERSION}-{RELEASE}.{architecture}.rpm"))
        .to_vec())
}

/// Moves the files below `share` to where these distributions look for them.
fn follow_conventions(share: &Path) -> anyhow::Result<()> {
    tree::compress_manual(&share.join("man"))?;
    rename(&share.join("zsh/vendor-completions"), &share.join("zsh/site-functions"))?;
    for name in ["LICENSE-MIT", "LICENSE-APACHE"] {
        let licence = share.join("doc").join(PACKAGE).join(name);
        if licence.exists() {
            rename(&licence, &share.join("licenses").join(PACKAGE).join(name))?;
        }
    }
    Ok(())
}

fn rename(from: &Path, to: &Path) -> anyhow::Result<()> {
    let folder = to.parent().context("a file without a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("can't create {}", folder.display()))?;
    fs::rename(from, to).with_context(|| format!("can't move {} to {}", from.display(), to.display()))
}

/// The section `%files` for all files of a tree, sorted.
fn files(tree: &Path) -> anyhow::Result<String> {
    let list = "find . -mindepth 1 -printf '%y %P\\n' | LC_ALL=C sort -k 2";
    let list = tool::output(Command::new("sh").args(["-ec", list]).current_dir(tree))?;
    Ok(list.lines().filter_map(|line| line.split_once(' ')).filter_map(entry).collect())
}

/// The line of a file, by its kind (of find(1)) and its path.
fn entry((kind, path): (&str, &str)) -> Option<String> {
    let below = |folder: &str| path.strip_prefix(folder).is_some_and(|rest| rest.starts_with(PACKAGE));
    let mark = match (below("usr/share/doc/"), below("usr/share/licenses/"), kind) {
        // Other folders belong to packages of the distribution.
        (true, ..) | (_, true, _) if kind == "d" => "%dir ",
        (.., "d") => return None,
        (true, ..) => "%doc ",
        (_, true, _) => "%license ",
        _ => "",
    };
    Some(format!("{mark}\"/{path}\"\n"))
}

/// The input of rpmbuild(8).
fn spec(libraries: &[Library], epoch: u64, trees: [&Path; 2], files: &[String; 2]) -> anyhow::Result<String> {
    let date = tool::date(epoch, "+%a %b %d %Y")?;
    let [main, slirp4netns] = trees.map(Path::display);
    Ok(format!(
        "\
Name: {PACKAGE}
Version: {VERSION}
Release: {RELEASE}
Summary: {PURPOSE}
License: {licence}
URL: https://github.com/passt-rs/passt-rs
Packager: {MAINTAINER}
Group: Applications/Internet
Provides: passt = %{{version}}-%{{release}}
Conflicts: passt
# Its policy confines the programs of the package passt.
Conflicts: passt-selinux

%description
pasta connects a network namespace, and passt connects a virtual machine, to
the networks of the host, through ordinary sockets of an ordinary user. They
need no privileges and no daemon. Rules can limit what the guest may reach, by
name and by address.

The programs take the place of those of the package passt, with the same
command lines. The package also contains pesto, which changes forwarding rules
at run time, and qrap, which starts a QEMU before version 7.2.

%package -n {SLIRP4NETNS_PACKAGE}
Summary: {SLIRP4NETNS_PURPOSE}
License: Apache-2.0 OR MIT
Group: Applications/Internet
BuildArch: noarch
Requires: {PACKAGE} = %{{version}}-%{{release}}
Provides: slirp4netns = {SLIRP4NETNS_INTERFACE}
Conflicts: slirp4netns

%description -n {SLIRP4NETNS_PACKAGE}
slirp4netns connects a network namespace by a virtual network, for tools that
expect this program. This package makes {PACKAGE} serve them: it has the
command line and the API socket of slirp4netns 1.2.

%install
cp -a \"{main}/.\" \"{slirp4netns}/.\" \"%{{buildroot}}/\"
find \"%{{buildroot}}\" -exec touch --no-dereference --date=@{epoch} {{}} +

%files
%defattr(-,root,root,755)
{}
%files -n {SLIRP4NETNS_PACKAGE}
%defattr(-,root,root,755)
{}
%changelog
* {date} {MAINTAINER} - {VERSION}-{RELEASE}
- See CHANGELOG.md.
",
        files[0],
        files[1],
        licence = licence(libraries),
    ))
}

/// The licence of the programs with the libraries in them: each that occurs, in SPDX's syntax.
fn licence(libraries: &[Library]) -> String {
    let all = libraries.iter().map(|library| &*library.licence).chain(["Apache-2.0 OR MIT"]);
    let all: BTreeSet<String> = all
        .map(|licence| {
            let choice: BTreeSet<&str> = licence.split(" OR ").collect();
            let choice: Vec<&str> = choice.into_iter().collect();
            if choice.len() > 1 { format!("({})", choice.join(" OR ")) } else { choice.concat() }
        })
        .collect();
    all.into_iter().collect::<Vec<_>>().join(" AND ")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::contents::Origin;
    use super::*;

    #[test]
    fn a_file_is_listed_by_what_it_is() {
        let entry = |kind, path| entry((kind, path)).unwrap_or_default();
        assert_eq!(entry("f", "usr/bin/passt"), "\"/usr/bin/passt\"\n");
        assert_eq!(entry("d", "usr/bin"), "");
        assert_eq!(entry("d", "usr/share/doc"), "");
        assert_eq!(entry("d", "usr/share/doc/passt-rs/docs"), "%dir \"/usr/share/doc/passt-rs/docs\"\n");
        assert_eq!(
            entry("f", "usr/share/doc/passt-rs/README.md"),
            "%doc \"/usr/share/doc/passt-rs/README.md\"\n"
        );
        assert_eq!(
            entry("f", "usr/share/licenses/passt-rs/LICENSE-MIT"),
            "%license \"/usr/share/licenses/passt-rs/LICENSE-MIT\"\n"
        );
    }

    #[test]
    fn the_licence_has_each_expression_once() {
        let library = |licence: &str| Library {
            id: (licence.into(), "1".into()),
            licence: licence.into(),
            authors: Vec::new(),
            origin: Origin::Compiler,
            uses: BTreeSet::new(),
        };
        let libraries = ["MIT OR Apache-2.0", "Zlib", "Apache-2.0 OR MIT"].map(library);
        assert_eq!(licence(&libraries), "(Apache-2.0 OR MIT) AND Zlib");
    }
}
