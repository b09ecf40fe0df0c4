//! Citations of docs/behaviour: sections (`behaviour §6.9`), quirks (`Q7`) and regressions (`R-36`).

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::Context;

use crate::source::{self, Source};

/// Regressions without a test. They are about migration, which is not supported.
const WITHOUT_TEST: [u32; 4] = [113, 114, 115, 116];

/// The anchors in the chapters: sections without their `s`, `Q7`, `R-36`.
pub(crate) fn anchors(root: &Path) -> anyhow::Result<BTreeSet<String>> {
    let folder = root.join("docs/behaviour");
    let mut anchors = BTreeSet::new();
    for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        let text = fs::read_to_string(entry?.path())?;
        let ids = text.split("<a id=\"").skip(1).filter_map(|rest| rest.split('"').next());
        anchors.extend(ids.map(|id| match id.strip_prefix('s') {
            Some(section) if section.starts_with(|c: char| c.is_ascii_digit()) => section.to_owned(),
            _ => id.to_owned(),
        }));
    }
    Ok(anchors)
}

/// Citations in Rust sources without an anchor, each with its file.
pub(crate) fn broken(sources: &[Source], anchors: &BTreeSet<String>) -> Vec<String> {
    let mut broken = Vec::new();
    for source in sources {
        let cited = sections(&source.text).into_iter().chain(numbers(&source.text, "R-"));
        broken.extend(
            cited
                .filter(|name| !anchors.contains(name))
                .map(|name| format!("{}: {name} is not in docs/behaviour", source.path.display())),
        );
    }
    broken
}

/// Regressions without a test. The name of a regression test ends with its numbers: `lost_fin_is_sent_again_r69`.
pub(crate) fn untested(sources: &[Source], anchors: &BTreeSet<String>) -> Vec<String> {
    let mut held = BTreeSet::new();
    for source in sources {
        let code = source::code(&source.text);
        for name in code.split("fn ").skip(1).filter_map(|rest| rest.split(['(', '<']).next()) {
            held.extend(name.rsplit('_').map_while(regression));
        }
    }
    let known = anchors.iter().filter_map(|name| name.strip_prefix("R-")?.parse::<u32>().ok());
    let without_test = known.filter(|number| !WITHOUT_TEST.contains(number) && !held.contains(number));
    without_test.map(|number| format!("R-{number}: no test's name ends with _r{number}")).collect()
}

/// Returns the number in a name such as `r36`.
fn regression(part: &str) -> Option<u32> {
    part.strip_prefix('r')?.parse().ok()
}

/// The sections that a text cites.
fn sections(text: &str) -> Vec<String> {
    let starts = text.split("behaviour §").skip(1);
    let number = |rest: &str| {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        rest[..end].trim_end_matches('.').to_owned()
    };
    starts.map(number).filter(|number| !number.is_empty()).collect()
}

/// All words that consist of `prefix` and a number.
fn numbers(text: &str, prefix: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices(prefix) {
        let digits: String = text[at + prefix.len()..].chars().take_while(char::is_ascii_digit).collect();
        let is_word = !text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '-');
        if is_word && !digits.is_empty() {
            found.push(format!("{prefix}{digits}"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::house::root;

    fn sources() -> Vec<Source> {
        source::read(&root(), &["crates", "fuzz", "xtask"]).unwrap()
    }

    #[test]
    fn every_citation_has_an_anchor() {
        let anchors = anchors(&root()).unwrap();
        assert!(anchors.len() > 250, "only {} anchors", anchors.len());
        assert_eq!(broken(&sources(), &anchors), Vec::<String>::new());
    }

    #[test]
    fn every_regression_has_a_test() {
        assert_eq!(untested(&sources(), &anchors(&root()).unwrap()), Vec::<String>::new());
    }

    #[test]
    fn faults_are_found() {
        let anchors = BTreeSet::from(["6.9", "R-7", "R-8", "R-113"].map(str::to_owned));
        let source = |text: &str| Source { path: "a.rs".into(), text: text.into() };
        let good = [source("// behaviour §6.9. R-7\nfn lost_fin_r8_r7() {}")];
        assert_eq!(broken(&good, &anchors), Vec::<String>::new());
        assert_eq!(untested(&good, &anchors), Vec::<String>::new());
        let bad = [source("// behaviour §6.10, R-9, FOR-9\nfn lost_r8() {}")];
        assert_eq!(broken(&bad, &anchors).len(), 2);
        assert_eq!(untested(&bad, &anchors), ["R-7: no test's name ends with _r7"]);
    }
}
