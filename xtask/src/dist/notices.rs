//! The licences of the libraries in the programs. Most of them demand that their text goes with each copy.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::contents::{Library, Origin};
use super::tree;

/// The name of the file.
pub(super) const NAME: &str = "THIRD-PARTY-NOTICES";

const HEAD: &str = "\
The programs of passt-rs contain the libraries that are listed here, each with its version and licence. Where a library has
a choice of licences, passt-rs uses the MIT licence if it is one of them. The texts of the licences follow, each after the
libraries that come with it.

";

/// The list of libraries, and the texts of their licences.
///
/// # Errors
/// A licence can't be read, or a library has no text and a licence whose text is not known here.
pub(super) fn of(libraries: &[Library]) -> anyhow::Result<String> {
    let mut notices = HEAD.to_owned();
    // Many libraries have the same text.
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for library in libraries {
        let name = format!("{} {}", library.id.0, library.id.1);
        notices += &format!("{name}: {}\n", library.licence);
        for text in texts_of(library)? {
            texts.entry(text).or_default().push(name.clone());
        }
    }
    let mut texts: Vec<(Vec<String>, String)> =
        texts.into_iter().map(|(text, names)| (names, text)).collect();
    texts.sort();
    for (names, text) in texts {
        notices += &format!("\n{}\n{}:\n\n{text}\n", "-".repeat(79), names.join(", "));
    }
    Ok(notices)
}

/// The texts that go with a library: those in its folder, else the usual text of its licence.
fn texts_of(library: &Library) -> anyhow::Result<Vec<String>> {
    let mut texts = Vec::new();
    if let Origin::Registry { folder, .. } = &library.origin {
        for file in chosen(files(folder)?, &library.licence) {
            let text = fs::read(&file).with_context(|| format!("can't read {}", file.display()))?;
            texts.push(plain(&String::from_utf8_lossy(&text)));
        }
    }
    if texts.is_empty() {
        texts.push(usual(library)?);
    }
    Ok(texts)
}

/// The files with licences and notices in a folder, by name.
fn files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("can't list {}", folder.display()))?;
    let paths = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
    let mut files: Vec<PathBuf> =
        paths.into_iter().filter(|path| path.is_file() && is_licence(path)).collect();
    files.sort();
    Ok(files)
}

fn is_licence(path: &Path) -> bool {
    let name = upper(path);
    ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE", "UNLICENSE"]
        .iter()
        .any(|word| name.starts_with(word))
}

/// Of several alternatives, the text of the MIT licence is enough. Notices remain.
fn chosen(files: Vec<PathBuf>, licence: &str) -> Vec<PathBuf> {
    let mit = licence.split(" OR ").any(|one| one == "MIT");
    let is_text = |path: &Path| upper(path).starts_with("LICEN") || upper(path).starts_with("UNLICENSE");
    if mit && files.iter().any(|path| upper(path).contains("MIT")) {
        return files.into_iter().filter(|path| !is_text(path) || upper(path).contains("MIT")).collect();
    }
    files
}

fn upper(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().to_uppercase()
}

/// The text of a licence for a library that comes without it.
fn usual(library: &Library) -> anyhow::Result<String> {
    let (name, licence) = (&library.id.0, &library.licence);
    if licence.split(" OR ").any(|one| one == "MIT") {
        let terms = tree::read("LICENSE-MIT")?;
        let (_, terms) = terms.split_once("\n\nPermission").context("LICENSE-MIT has no terms")?;
        let authors = match &library.authors[..] {
            [] => format!("The authors of {name}"),
            authors => authors.join(", "),
        };
        return Ok(plain(&format!("MIT License\n\nCopyright (c) {authors}\n\nPermission{terms}")));
    }
    if licence.contains("Apache-2.0") {
        return Ok(plain(&tree::read("LICENSE-APACHE")?));
    }
    bail!("{name} ({licence}) comes without the text of its licence: see xtask/src/dist/notices.rs")
}

/// The text without blanks at the ends of lines, which differ between copies.
fn plain(text: &str) -> String {
    let lines: Vec<&str> = text.trim().lines().map(str::trim_end).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::contents;
    use super::*;

    fn library(name: &str, licence: &str, origin: Origin) -> Library {
        let authors = vec![format!("the author of {name}")];
        Library {
            id: (name.into(), "1.0.0".into()),
            licence: licence.into(),
            authors,
            origin,
            uses: BTreeSet::new(),
        }
    }

    #[test]
    fn one_text_of_a_choice_is_enough() {
        let names = |names: &[&str], licence| {
            let files = names.iter().map(PathBuf::from).collect();
            chosen(files, licence).iter().map(|path| path.display().to_string()).collect::<Vec<_>>()
        };
        let all = ["COPYRIGHT", "LICENSE-APACHE", "LICENSE-MIT", "NOTICE"];
        assert_eq!(names(&all, "MIT OR Apache-2.0"), ["COPYRIGHT", "LICENSE-MIT", "NOTICE"]);
        assert_eq!(names(&all, "MIT AND Apache-2.0"), all);
        assert_eq!(names(&["LICENSE"], "MIT"), ["LICENSE"]);
    }

    /// The programs have a notice for each of their libraries.
    #[test]
    fn the_libraries_of_the_programs_have_texts() {
        let libraries = contents::libraries("x86_64-unknown-linux-musl").unwrap();
        let notices = of(&libraries).unwrap();
        for Library { id: (name, version), licence, .. } in &libraries {
            assert!(notices.contains(&format!("\n{name} {version}: {licence}\n")), "{name}");
        }
    }

    /// A library without a text gets the usual one, and an unknown licence is an error.
    #[test]
    fn every_library_has_a_text() {
        let folder = tempfile::tempdir().unwrap();
        let origin = || Origin::Registry { folder: folder.path().into(), checksum: String::new() };
        let [plain, apache] =
            [library("a", "MIT", origin()), library("b", "Apache-2.0 OR BSL-1.0", origin())];
        let notices = of(&[plain, apache]).unwrap();
        assert!(notices.contains("a 1.0.0: MIT\n"), "{notices}");
        assert!(
            notices.contains("Copyright (c) the author of a\n\nPermission is hereby granted"),
            "{notices}"
        );
        assert!(notices.contains("Apache License"), "{notices}");
        let error = of(&[library("c", "WTFPL", origin())]).unwrap_err().to_string();
        assert!(error.starts_with("c (WTFPL) comes without"), "{error}");
        fs::write(folder.path().join("LICENSE"), "Do what you want.  \r\n").unwrap();
        let notices = of(&[library("c", "WTFPL", origin()), library("d", "WTFPL", origin())]).unwrap();
        assert!(notices.ends_with("\nc 1.0.0, d 1.0.0:\n\nDo what you want.\n"), "{notices}");
    }
}
