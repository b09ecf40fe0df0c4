//! What the programs of a target contain: the libraries, from cargo, and what the compiler's own libraries add.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde_json::Value;

use super::tool;
use crate::house::root;

/// The crates of the programs.
const CRATES: [&str; 3] = ["passt", "pesto", "qrap"];

/// Name and version of a library.
pub(super) type Id = (String, String);

/// A library that is part of the programs.
#[derive(Debug)]
pub(super) struct Library {
    /// Name and version.
    pub(super) id: Id,
    /// The licence, as an SPDX expression.
    pub(super) licence: String,
    /// The authors, as its manifest lists them. Many manifests list none.
    pub(super) authors: Vec<String>,
    /// Where it comes from.
    pub(super) origin: Origin,
    /// The libraries that it uses, among those in the programs.
    pub(super) uses: BTreeSet<Id>,
}

/// Where a library comes from.
#[derive(Debug)]
pub(super) enum Origin {
    /// From crates.io.
    Registry {
        /// The folder with its source.
        folder: PathBuf,
        /// SHA-256 of its archive, in hexadecimal digits, from Cargo.lock.
        checksum: String,
    },
    /// It comes with the compiler.
    Compiler,
}

/// The libraries of others in the programs of a target, sorted by name and version. Those of this workspace are not listed.
///
/// # Errors
/// Cargo fails, or says something unexpected.
pub(super) fn libraries(target: &str) -> anyhow::Result<Vec<Library>> {
    let compiled = compiled(target)?;
    let metadata = tool::output(tool::cargo().args([
        "metadata",
        "--format-version=1",
        "--locked",
        "--filter-platform",
        target,
    ]))?;
    let metadata: Value = serde_json::from_str(&metadata).context("cargo metadata prints no JSON")?;
    let checksums = checksums(&std::fs::read_to_string(root().join("Cargo.lock")).context("no Cargo.lock")?);
    let uses = uses(&metadata);
    let mut libraries = Vec::new();
    for package in list(&metadata["packages"]) {
        let id = id(package);
        // Libraries of this workspace have no source.
        if package["source"].is_null() || !compiled.contains(&id) {
            continue;
        }
        let checksum = checksums.get(&id).with_context(|| format!("Cargo.lock has no checksum of {id:?}"))?;
        libraries.push(Library {
            licence: spdx(text(&package["license"])),
            authors: list(&package["authors"]).map(|name| text(name).to_owned()).collect(),
            origin: Origin::Registry {
                folder: Path::new(text(&package["manifest_path"])).parent().context("no folder")?.to_owned(),
                checksum: checksum.clone(),
            },
            uses: uses.get(&id).into_iter().flatten().filter(|id| compiled.contains(*id)).cloned().collect(),
            id,
        });
    }
    libraries.extend(of_compiler(target)?);
    libraries.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(libraries)
}

/// Checks that the libraries, which cargo lists by its plan, include all that a build has compiled. `messages` are those of
/// `cargo build --message-format=json`, and `folder` is where it puts what it builds for the target.
///
/// # Errors
/// One is missing, or the build has reported none.
pub(super) fn check(libraries: &[Library], messages: &str, folder: &Path) -> anyhow::Result<()> {
    let listed: BTreeSet<&Id> = libraries.iter().map(|library| &library.id).collect();
    let built = built(messages, folder);
    if built.is_empty() {
        bail!("cargo has reported no library that it compiled for {}", folder.display());
    }
    let missing: Vec<_> = built.iter().filter(|id| !listed.contains(id)).collect();
    if !missing.is_empty() {
        bail!("the programs contain libraries that are not in the list of libraries: {missing:?}");
    }
    Ok(())
}

/// The libraries of others that a build has compiled for its target. Those for the machine that builds, such as macros, are in
/// another folder.
fn built(messages: &str, folder: &Path) -> BTreeSet<Id> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let artifacts = messages.filter(|message| {
        message["reason"] == "compiler-artifact"
            && list(&message["filenames"]).any(|name| Path::new(text(name)).starts_with(folder))
    });
    // The ID of a package from a registry: registry+ADDRESS#NAME@VERSION.
    let ids = artifacts.filter_map(|message| {
        let (source, id) = text(&message["package_id"]).split_once('#')?;
        let (name, version) = id.split_once('@')?;
        source.starts_with("registry+").then(|| (name.to_owned(), version.to_owned()))
    });
    ids.collect()
}

/// The packages that are compiled into the programs of a target, those of this workspace, too.
fn compiled(target: &str) -> anyhow::Result<BTreeSet<Id>> {
    let mut tree = tool::cargo();
    tree.args(["tree", "--locked", "--edges", "normal,no-proc-macro", "--prefix", "none", "--format", "{p}"]);
    tree.args(["--target", target]).args(CRATES.iter().flat_map(|name| ["--package", name]));
    let tree = tool::output(&mut tree)?;
    let ids = tree.lines().filter_map(|line| {
        let mut words = line.split(' ');
        Some((words.next()?.to_owned(), words.next()?.strip_prefix('v')?.to_owned()))
    });
    Ok(ids.collect())
}

/// Which package uses which others.
fn uses(metadata: &Value) -> BTreeMap<Id, Vec<Id>> {
    let ids: BTreeMap<&str, Id> =
        list(&metadata["packages"]).map(|package| (text(&package["id"]), id(package))).collect();
    let nodes = list(&metadata["resolve"]["nodes"]).filter_map(|node| {
        let uses = list(&node["deps"]).filter_map(|dependency| ids.get(text(&dependency["pkg"])).cloned());
        Some((ids.get(text(&node["id"]))?.clone(), uses.collect()))
    });
    nodes.collect()
}

/// The checksum of each package in Cargo.lock.
fn checksums(lock: &str) -> BTreeMap<Id, String> {
    let packages = lock.split("[[package]]").filter_map(|package| {
        let field = |name: &str| {
            let line = package.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = "))?;
            Some(line.trim_matches('"').to_owned())
        };
        Some(((field("name")?, field("version")?), field("checksum")?))
    });
    packages.collect()
}

/// What the compiler's own libraries add to a program.
fn of_compiler(target: &str) -> anyhow::Result<Vec<Library>> {
    let version = tool::output(tool::rustc().arg("-V"))?;
    let version = version.split(' ').nth(1).context("rustc -V prints no version")?;
    let library = |name: &str, licence: &str, author: &str| Library {
        // The compiler does not tell the versions of the others.
        id: (
            name.to_owned(),
            if name == "rust-std" { version.into() } else { format!("of rustc {version}") },
        ),
        licence: licence.into(),
        authors: vec![author.into()],
        origin: Origin::Compiler,
        uses: BTreeSet::new(),
    };
    let mut libraries =
        vec![library("rust-std", "MIT OR Apache-2.0", "The Rust Project contributors and others")];
    if target.ends_with("-musl") {
        libraries.push(library("musl", "MIT", "2005-2020 Rich Felker, et al."));
        let licence = "Apache-2.0 WITH LLVM-exception";
        libraries.push(library("libunwind", licence, "The contributors of the LLVM project"));
    }
    Ok(libraries)
}

/// An older manifest separates alternatives by a slash.
fn spdx(licence: &str) -> String {
    licence.split('/').map(str::trim).collect::<Vec<_>>().join(" OR ")
}

fn id(package: &Value) -> Id {
    (text(&package["name"]).to_owned(), text(&package["version"]).to_owned())
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: &str = "x86_64-unknown-linux-musl";

    /// Every library that a manifest of the programs names is listed, and no library for tests or macros.
    #[test]
    fn all_libraries_of_the_programs_are_listed() {
        let libraries = libraries(TARGET).unwrap();
        let names: BTreeSet<&str> = libraries.iter().map(|library| &*library.id.0).collect();
        let ours = ["passt", "pesto", "qrap", "engine", "control", "sys", "wire"];
        for ours in ours {
            let manifest =
                std::fs::read_to_string(root().join("crates").join(ours).join("Cargo.toml")).unwrap();
            let (_, dependencies) = manifest.split_once("[dependencies]\n").unwrap();
            let dependencies = dependencies.split("\n[").next().unwrap();
            for name in dependencies.lines().filter_map(|line| line.split(['.', ' ']).next()) {
                let expected = name.is_empty() || name == "#" || is_ours(name) || names.contains(name);
                assert!(expected, "{ours}: {name}");
            }
        }
        for name in ["rust-std", "musl"] {
            assert!(names.contains(name), "{name}");
        }
        for name in ["smoltcp", "proptest", "syn", "serde_derive", "passt"] {
            assert!(!names.contains(name), "{name}");
        }
        for library in &libraries {
            assert!(!library.licence.is_empty(), "{library:?}");
            let foreign: Vec<_> = library.uses.iter().filter(|id| !names.contains(&*id.0)).collect();
            assert!(foreign.is_empty(), "{foreign:?}");
        }
    }

    /// Whether a library is one of this workspace.
    fn is_ours(name: &str) -> bool {
        root().join("crates").join(name).is_dir()
    }

    const MESSAGES: &str = r#"
{"reason":"compiler-artifact","package_id":"registry+https://x/y#libc@0.2.1","filenames":["/t/musl/release/deps/liblibc.rlib"]}
{"reason":"compiler-artifact","package_id":"registry+https://x/y#syn@3.0.0","filenames":["/t/release/deps/libsyn.rlib"]}
{"reason":"compiler-artifact","package_id":"path+file:///p/crates/sys#0.1.0","filenames":["/t/musl/release/deps/libsys.rlib"]}
{"reason":"build-script-executed","package_id":"registry+https://x/y#anyhow@1.0.0"}
{"reason":"build-finished","success":true}
"#;

    #[test]
    fn what_is_compiled_for_the_target_must_be_listed() {
        let folder = Path::new("/t/musl");
        assert_eq!(built(MESSAGES, folder), BTreeSet::from([("libc".into(), "0.2.1".into())]));
        let library = Library {
            id: ("libc".into(), "0.2.1".into()),
            licence: "MIT".into(),
            authors: Vec::new(),
            origin: Origin::Compiler,
            uses: BTreeSet::new(),
        };
        check(&[library], MESSAGES, folder).unwrap();
        let missing = check(&[], MESSAGES, folder).unwrap_err().to_string();
        assert!(missing.contains("libc"), "{missing}");
        check(&[], "", folder).unwrap_err();
    }

    #[test]
    fn a_checksum_belongs_to_its_package() {
        let lock = "version = 4\n\n[[package]]\nname = \"a\"\nversion = \"1.0\"\nchecksum = \"0f\"\n\n\
                    [[package]]\nname = \"ours\"\nversion = \"0.1.0\"\ndependencies = [\n \"a\",\n]\n";
        assert_eq!(checksums(lock), BTreeMap::from([(("a".into(), "1.0".into()), "0f".into())]));
    }
}
