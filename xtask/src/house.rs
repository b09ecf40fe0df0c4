//! The rules for crates and files (ARCHITECTURE.md): `cargo xtask house` prints the graph, and the tests check the
//! rules.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use crate::imports::{self, Graph};
use crate::source::{self, Source};

/// The crates of the product and of its tests, lowest layer first. Each has a list of the workspace's crates on which it
/// may depend.
pub(crate) const CRATES: [(&str, &[&str]); 9] = [
    ("sys", &[]),
    ("wire", &[]),
    ("engine", &["wire"]),
    ("testkit", &["engine", "wire"]),
    ("control", &["engine"]),
    ("passt", &["control", "engine", "sys", "wire"]),
    ("pesto", &["control", "engine"]),
    ("qrap", &["sys", "wire"]),
    ("torture", &[]),
];

/// Maximum number of lines of a file.
const MAX_LINES: usize = 800;

/// Names of modules that do not describe their content.
const EMPTY_NAMES: [&str; 6] = ["util", "utils", "common", "helper", "helpers", "misc"];

/// The root of the workspace.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// The folder in which Cargo builds.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Draws the crates and their rooms, from the bottom to the top of each crate. Each room has a list of the rooms that
/// it names. With `with_files`, the files are included, too.
pub(crate) fn draw(with_files: bool) -> anyhow::Result<String> {
    let root = root();
    let sources = source::read(&root, &["crates"])?;
    let mut text = String::new();
    for (name, _) in CRATES {
        let known =
            dependencies(&std::fs::read_to_string(root.join("crates").join(name).join("Cargo.toml"))?);
        let known: Vec<&str> =
            CRATES.iter().map(|(other, _)| *other).filter(|c| known.contains(*c)).collect();
        let files = imports::files(&sources, &Path::new("crates").join(name).join("src"));
        let rooms = imports::rooms(&files);
        let arrows = |graph: &Graph| graph.values().map(BTreeSet::len).sum::<usize>();
        writeln!(text, "{name}{}", arrow(known))?;
        writeln!(
            text,
            "  {} rooms, {} arrows; {} files, {} arrows",
            rooms.len(),
            arrows(&rooms),
            files.len(),
            arrows(&files)
        )?;
        for (module, named) in from_the_bottom(if with_files { &files } else { &rooms }) {
            writeln!(text, "    {module}{}", arrow(named.iter().map(String::as_str)))?;
        }
        for graph in [&rooms, &imports::without_parents(&files)] {
            if let Some(circle) = imports::circle(graph) {
                writeln!(text, "    circle: {}", circle.join(" -> "))?;
            }
        }
    }
    Ok(text)
}

/// Violations of the rules for single files.
pub(crate) fn faults() -> anyhow::Result<Vec<String>> {
    Ok(source::read(&root(), &["bench", "crates", "fuzz", "xtask"])?.iter().flat_map(faults_of).collect())
}

fn arrow<'a>(named: impl IntoIterator<Item = &'a str>) -> String {
    let named: Vec<&str> = named.into_iter().collect();
    if named.is_empty() { String::new() } else { format!(" -> {}", named.join(", ")) }
}

/// Topological order: each module comes after the modules that it imports, unless a circle prevents this.
fn from_the_bottom(graph: &Graph) -> Vec<(&String, &BTreeSet<String>)> {
    let mut listed: Vec<(&String, &BTreeSet<String>)> = Vec::new();
    while listed.len() < graph.len() {
        let is_listed = |name: &String| listed.iter().any(|(other, _)| *other == name);
        let mut left = graph.iter().filter(|(name, _)| !is_listed(name)).peekable();
        let Some(any) = left.peek().copied() else { break };
        let next = left.find(|(_, named)| named.iter().all(is_listed)).unwrap_or(any);
        listed.push(next);
    }
    listed
}

/// Names in the section `[dependencies]` of a manifest.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let section = manifest.lines().skip_while(|line| line.trim() != "[dependencies]").skip(1);
    section
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| line.split(['.', ' ', '=']).next())
        .filter(|name| !name.is_empty() && !name.starts_with('#'))
        .map(str::to_owned)
        .collect()
}

/// Violations of the rules in one source file.
fn faults_of(source: &Source) -> Vec<String> {
    let path = source.path.display();
    let mut faults = Vec::new();
    let lines = source.text.lines().count();
    if lines > MAX_LINES {
        faults.push(format!("{path}: {lines} lines, more than {MAX_LINES}"));
    }
    let code = source::code(&source.text);
    let allowed = source.path.starts_with("crates/sys/src");
    if !allowed && source::has_word(&code, "unsafe") {
        faults.push(format!("{path}: unsafe code outside crates/sys"));
    }
    let relaxed = |level: &str| code.contains(&format!("{level}(unsafe_code)"));
    if !allowed && (relaxed("allow") || relaxed("expect")) {
        faults.push(format!("{path}: relaxes the lint unsafe_code"));
    }
    let components = source.path.iter().filter_map(|part| part.to_str());
    for name in components.map(|part| part.trim_end_matches(".rs")) {
        if EMPTY_NAMES.contains(&name) {
            faults.push(format!("{path}: the name '{name}' does not describe its content"));
        }
    }
    for name in EMPTY_NAMES {
        if code.contains(&format!("mod {name} ")) {
            faults.push(format!("{path}: module '{name}'"));
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn read(path: &str) -> String {
        fs::read_to_string(root().join(path)).unwrap()
    }

    #[test]
    fn no_file_breaks_the_rules() {
        let sources = source::read(&root(), &["bench", "crates", "fuzz", "xtask"]).unwrap();
        assert!(sources.len() > 50, "only {} sources found", sources.len());
        assert_eq!(faults().unwrap(), Vec::<String>::new());
    }

    #[test]
    fn faults_are_found() {
        let of = |path: &str, text: &str| faults_of(&Source { path: path.into(), text: text.into() }).len();
        assert_eq!(of("crates/x/src/a.rs", "// unsafe\nfn f() { \"unsafe\"; }"), 0);
        assert_eq!(of("crates/x/src/a.rs", "fn f() { unsafe { g() } }"), 1);
        assert_eq!(of("crates/sys/src/a.rs", "fn f() { unsafe { g() } }"), 0);
        assert_eq!(of("crates/x/src/a.rs", "#[allow(unsafe_code)]"), 1);
        assert_eq!(of("crates/x/src/a.rs", &"\n".repeat(MAX_LINES + 1)), 1);
        assert_eq!(of("crates/x/src/util/a.rs", ""), 1);
        assert_eq!(of("crates/x/src/helpers.rs", ""), 1);
        assert_eq!(of("crates/x/src/a.rs", "mod misc {}"), 1);
    }

    /// Cargo enforces the layers: a crate cannot name a crate that its manifest does not list.
    #[test]
    fn crates_depend_only_on_lower_layers() {
        for (name, may_know) in CRATES {
            let dependencies = dependencies(&read(&format!("crates/{name}/Cargo.toml")));
            assert!(!dependencies.is_empty(), "{name}");
            let knows: Vec<&str> = CRATES
                .iter()
                .map(|(other, _)| *other)
                .filter(|other| dependencies.contains(*other))
                .collect();
            assert!(knows.iter().all(|other| may_know.contains(other)), "{name} knows {knows:?}");
        }
    }

    /// Without the standard library, `wire` and `engine` cannot open a socket or read a clock.
    #[test]
    fn wire_and_engine_are_no_std() {
        for name in ["wire", "engine"] {
            let lib = read(&format!("crates/{name}/src/lib.rs"));
            for attribute in ["#![no_std]", "#![forbid(unsafe_code)]"] {
                assert!(lib.lines().any(|line| line == attribute), "{name} lacks {attribute}");
            }
            for source in source::read(&root(), &[&format!("crates/{name}/src")]).unwrap() {
                let code = source::code(&source.text);
                let (code, _) = source::split_tests(&code);
                assert!(!code.contains("extern crate std"), "{}", source.path.display());
            }
        }
        assert!(read("crates/passt/src/lib.rs").contains("#![forbid(unsafe_code)]"));
    }

    /// A lint of the workspace denies unsafe code. Every crate except sys inherits all lints.
    #[test]
    fn crates_inherit_the_lints_of_the_workspace() {
        assert!(read("Cargo.toml").lines().any(|line| line == "unsafe_code = \"deny\""));
        let crates =
            CRATES.iter().filter(|(name, _)| *name != "sys").map(|(name, _)| format!("crates/{name}"));
        for manifest in crates.chain(["bench/instructions", "fuzz", "xtask"].map(str::to_owned)) {
            let manifest = read(&format!("{manifest}/Cargo.toml"));
            assert!(manifest.contains("[lints]\nworkspace = true"), "{manifest}");
        }
    }

    #[test]
    fn rooms_and_files_name_each_other_without_a_circle() {
        let sources = source::read(&root(), &["crates"]).unwrap();
        for (name, _) in CRATES {
            let files = imports::files(&sources, &Path::new("crates").join(name).join("src"));
            assert!(files.len() > 1, "{name}: {files:?}");
            assert_eq!(imports::circle(&imports::rooms(&files)), None, "{name}");
            assert_eq!(imports::circle(&imports::without_parents(&files)), None, "{name}");
        }
    }
}
