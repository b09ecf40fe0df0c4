//! `cargo xtask book`: the pages of the repository as a book in HTML, by mdbook.
//!
//! The pages are written to be read where they lie, with links to each other and to other files. So the book's source is
//! a copy of all pages and of the files that they link to, at the same places. No link has to be changed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use crate::house::root;

/// The table of contents: depth, title, page.
const CONTENTS: &[(usize, &str, &str)] = &[
    (0, "passt-rs", "README.md"),
    (0, "User guide", "docs/guide.md"),
    (1, "Options of passt and pasta", "docs/options/passt.md"),
    (1, "Options of slirp4netns", "docs/options/slirp4netns.md"),
    (0, "The guard", "docs/guard.md"),
    (1, "Compared with others", "docs/guard-peers.md"),
    (0, "Moving to passt-rs", "docs/moving.md"),
    (1, "slirp4netns", "docs/slirp4netns.md"),
    (1, "Programs that start it", "docs/clients.md"),
    (0, "Troubleshooting", "docs/troubleshooting.md"),
    (0, "Performance", "docs/performance.md"),
    (1, "Benchmarks", "bench/README.md"),
    (0, "The API socket", "docs/api.md"),
    (1, "The flow log", "docs/flow-log.md"),
    (1, "The Grafana dashboard", "docs/grafana/README.md"),
    (0, "Demonstrations", "demo/README.md"),
    (0, "Security", "SECURITY.md"),
    (1, "The fault sweep", "docs/torture.md"),
    (0, "Behaviour", "docs/behaviour/README.md"),
    (0, "Architecture", "ARCHITECTURE.md"),
    (1, "Crates and files", "docs/layout.md"),
    (1, "Walks through the code", "docs/walks/README.md"),
    (1, "Decision records", "docs/design/README.md"),
    (0, "Contributing", "CONTRIBUTING.md"),
    (1, "Findings", "findings/README.md"),
    (1, "Releasing", "RELEASING.md"),
    (1, "Changelog", "CHANGELOG.md"),
];

/// Folders whose other pages are chapters below the folder's README.md.
const FOLDERS: [&str; 3] = ["docs/behaviour", "docs/design", "docs/walks"];

const SETTINGS: &str = r#"[book]
title = "passt-rs"
src = "src"

[build]
use-default-preprocessors = false # README.md stays README.html: links lead there

[output.html]
no-section-label = true

[output.html.fold]
enable = true
"#;

/// Writes the book to `folder`; its first page is `html/index.html`.
///
/// # Errors
/// mdbook is not installed, or a file can't be read or written.
pub(crate) fn run(folder: &Path) -> anyhow::Result<()> {
    let source = folder.join("src");
    if source.exists() {
        fs::remove_dir_all(&source)?;
    }
    for page in pages()? {
        copy(&page, &source)?;
        for file in links_of(&fs::read_to_string(root().join(&page))?) {
            let path =
                page.parent().unwrap_or(Path::new("")).join(file.split('#').next().unwrap_or_default());
            let path = normal(&path);
            if root().join(&path).is_file() {
                copy(&path, &source)?;
            }
        }
    }
    fs::write(source.join("SUMMARY.md"), summary()?)?;
    fs::write(folder.join("book.toml"), SETTINGS)?;
    let status = Command::new("mdbook").args(["build", "--dest-dir", "html"]).arg(folder).status();
    let status =
        status.context("can't run mdbook: install it (`cargo install mdbook`, or Debian's package)")?;
    ensure!(status.success(), "mdbook failed: {status}");
    println!("{}", folder.join("html/index.html").display());
    Ok(())
}

/// The table of contents as mdbook reads it.
fn summary() -> anyhow::Result<String> {
    let mut text = "# Contents\n\n".to_owned();
    for (depth, title, path) in CONTENTS {
        text += &format!("{:1$}- [{title}]({path})\n", "", depth * 4);
        let folder = Path::new(path).parent().unwrap_or(Path::new(""));
        if !FOLDERS.iter().any(|name| Path::new(name) == folder) {
            continue;
        }
        for page in
            pages()?.iter().filter(|page| page.parent() == Some(folder) && !page.ends_with("README.md"))
        {
            let text_of = fs::read_to_string(root().join(page))?;
            text += &format!("{:1$}- [{2}]({3})\n", "", depth * 4 + 4, heading(&text_of), page.display());
        }
    }
    Ok(text)
}

/// The first heading of a page, without anchors.
fn heading(text: &str) -> String {
    let line = text.lines().find_map(|line| line.strip_prefix("# ")).unwrap_or_default();
    let plain = line.rsplit("</a>").next().unwrap_or_default();
    plain.trim().to_owned()
}

fn copy(path: &Path, to: &Path) -> anyhow::Result<()> {
    let target = to.join(path);
    fs::create_dir_all(target.parent().context("a path without a folder")?)?;
    fs::copy(root().join(path), target).with_context(|| path.display().to_string())?;
    Ok(())
}

/// The path without `..`.
pub(crate) fn normal(path: &Path) -> PathBuf {
    let mut parts = Vec::new();
    for part in path {
        if part == ".." {
            parts.pop();
        } else {
            parts.push(part);
        }
    }
    parts.iter().collect()
}

/// All pages of the repository, relative to its root, in order.
pub(crate) fn pages() -> anyhow::Result<Vec<PathBuf>> {
    let mut folders = vec![root()];
    let mut pages = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() && !name.starts_with('.') && name != "target" {
                folders.push(path);
            } else if name.ends_with(".md") {
                pages.push(path.strip_prefix(root())?.to_owned());
            }
        }
    }
    pages.sort();
    Ok(pages)
}

/// The targets of a page's links to other pages and files, without code.
pub(crate) fn links_of(text: &str) -> Vec<String> {
    let mut code = false;
    let lines = text.lines().filter(|line| {
        code ^= line.trim_start().starts_with("```");
        !code
    });
    let targets = lines.flat_map(|line| {
        let plain: String = line.split('`').step_by(2).collect();
        let rest = plain.split("](").skip(1).filter_map(|rest| rest.split(')').next().map(str::to_owned));
        rest.collect::<Vec<_>>()
    });
    targets.filter(|target| !target.contains("://")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_is_in_the_book() {
        let summary = summary().unwrap();
        let absent = |page: &PathBuf| !summary.contains(&format!("]({})", page.display()));
        let mut absent: Vec<_> = pages().unwrap().into_iter().filter(absent).collect();
        // Pages for those who work on these folders.
        absent.retain(|page| !["fuzz", "crates", "packaging"].iter().any(|folder| page.starts_with(folder)));
        assert_eq!(absent, Vec::<PathBuf>::new());
        let titled = summary.lines().all(|line| !line.contains("[]("));
        assert!(titled, "a page has no heading: {summary}");
    }

    /// The anchors of a page's headings.
    fn headings(page: &str) -> impl Iterator<Item = String> {
        let titles = page.lines().filter_map(|line| line.strip_prefix('#'));
        titles.map(|title| {
            let title = title.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
            title.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect()
        })
    }

    #[test]
    fn every_link_has_a_target() {
        let mut links = 0;
        for page in pages().unwrap() {
            let path = root().join(&page);
            for target in links_of(&fs::read_to_string(&path).unwrap()) {
                let (file, anchor) = target.split_once('#').unwrap_or((&target, ""));
                let file = if file.is_empty() { path.clone() } else { path.with_file_name("").join(file) };
                assert!(file.exists(), "{target} in {}", page.display());
                if !anchor.is_empty() {
                    let linked = fs::read_to_string(&file).unwrap();
                    let found = linked.contains(&format!("<a id=\"{anchor}\">"))
                        || headings(&linked).any(|heading| heading == anchor);
                    assert!(found, "{target} in {}", page.display());
                }
                links += 1;
            }
        }
        assert!(links > 300, "only {links} links");
    }
}
