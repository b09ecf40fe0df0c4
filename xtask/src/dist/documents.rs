//! The documents of an installation. Links between them stay; the others lead to the repository.

use std::path::Path;

use super::{VERSION, tree};
use crate::book;

/// The pages for users.
pub(super) const PAGES: [&str; 11] = [
    "README.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "docs/api.md",
    "docs/clients.md",
    "docs/flow-log.md",
    "docs/guard.md",
    "docs/guide.md",
    "docs/moving.md",
    "docs/slirp4netns.md",
    "docs/troubleshooting.md",
];
/// Files that the pages show or mention, too.
pub(super) const FILES: [&str; 2] = ["docs/api.schema.json", "docs/guard.svg"];
/// Where the files of a version are.
const REPOSITORY: &str = concat!(env!("CARGO_PKG_REPOSITORY"), "/blob/v");

/// A page as it is installed.
///
/// # Errors
/// The page can't be read.
pub(super) fn page(name: &str) -> anyhow::Result<String> {
    let mut text = tree::read(name)?;
    for target in book::links_of(&text) {
        let (file, anchor) =
            target.split_once('#').map_or((&*target, ""), |(file, _)| (file, &target[file.len()..]));
        let path = book::normal(&Path::new(name).with_file_name("").join(file));
        let path = path.to_string_lossy();
        if file.is_empty() || PAGES.contains(&&*path) || FILES.contains(&&*path) {
            continue;
        }
        let url = format!("]({REPOSITORY}{VERSION}/{path}{anchor})");
        text = text.replace(&format!("]({target})"), &url);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each link of an installed page leads to an installed file, or to the repository.
    #[test]
    fn links_lead_to_installed_files() {
        let mut kept = 0;
        for name in PAGES {
            for target in book::links_of(&page(name).unwrap()) {
                let file = target.split('#').next().unwrap_or_default();
                let path = book::normal(&Path::new(name).with_file_name("").join(file));
                let path = path.to_string_lossy();
                let installed = file.is_empty() || PAGES.contains(&&*path) || FILES.contains(&&*path);
                assert!(installed, "{target} in {name}");
                kept += 1;
            }
        }
        assert!(kept > 30, "only {kept} links are left");
        let readme = page("README.md").unwrap();
        assert!(readme.contains("](docs/guide.md)"));
        assert!(readme.contains(&format!("/blob/v{VERSION}/ARCHITECTURE.md)")));
    }
}
