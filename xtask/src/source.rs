//! Rust sources of the workspace, as far as the rules of the house need to read them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

/// A source file.
pub(crate) struct Source {
    /// Path below the workspace's root.
    pub(crate) path: PathBuf,
    /// As it is.
    pub(crate) text: String,
}

/// All sources below some folders of the workspace.
pub(crate) fn read(root: &Path, folders: &[&str]) -> anyhow::Result<Vec<Source>> {
    let mut found = Vec::new();
    let mut left: Vec<PathBuf> = folders.iter().map(PathBuf::from).collect();
    while let Some(folder) = left.pop() {
        let entries = fs::read_dir(root.join(&folder)).with_context(|| format!("{}", folder.display()))?;
        for entry in entries {
            let entry = entry?;
            let path = folder.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                left.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text =
                    fs::read_to_string(root.join(&path)).with_context(|| format!("{}", path.display()))?;
                found.push(Source { path, text });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

/// Code alone: comments and the contents of literals are blanks.
pub(crate) fn code(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let len = skipped(rest);
        if len == 0 {
            code.push(first);
            rest = &rest[first.len_utf8()..];
        } else {
            // Lines stay what they were.
            code.extend(rest[..len].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
            rest = &rest[len..];
        }
    }
    code
}

/// Length of the comment or literal that `text` starts with, or zero.
fn skipped(text: &str) -> usize {
    let until =
        |end: &str, from: usize| text[from..].find(end).map_or(text.len(), |at| from + at + end.len());
    if text.starts_with("//") {
        text.find('\n').unwrap_or(text.len())
    } else if text.starts_with("/*") {
        until("*/", 2)
    } else if text.starts_with("r\"") {
        until("\"", 2)
    } else if text.starts_with("r#\"") {
        until("\"#", 3)
    } else if text.starts_with('"') {
        let mut escaped = false;
        let end = text.char_indices().skip(1).find(|&(_, c)| {
            let ends = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        });
        end.map_or(text.len(), |(at, _)| at + 1)
    } else if text.starts_with("'\\") {
        until("'", 3)
    } else {
        // A character, and not a lifetime.
        let mut chars = text.char_indices();
        match (chars.next(), chars.next(), chars.next()) {
            (Some((_, '\'')), Some(_), Some((at, '\''))) => at + 1,
            _ => 0,
        }
    }
}

/// Whether `word` stands in `code` as a word of its own.
pub(crate) fn has_word(code: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word)
        .any(|(at, _)| !code[..at].ends_with(part) && !code[at + word.len()..].starts_with(part))
}

/// Code without the items that only tests have, and the names of modules among them that are other files.
pub(crate) fn split_tests(code: &str) -> (String, Vec<&str>) {
    const MARK: &str = "#[cfg(test)]";
    let mut product = String::new();
    let mut modules = Vec::new();
    let mut rest = code;
    while let Some(at) = rest.find(MARK) {
        product.push_str(&rest[..at]);
        let item = &rest[at + MARK.len()..];
        let end = item_len(item);
        let words: Vec<&str> = item[..end].split_whitespace().collect();
        if let [.., "mod", name] = words[..]
            && let Some(name) = name.strip_suffix(';')
        {
            modules.push(name);
        }
        rest = &item[end..];
    }
    product.push_str(rest);
    (product, modules)
}

/// Length of the item that `code` starts with: up to its semicolon, or the end of its braces.
fn item_len(code: &str) -> usize {
    let mut depth = 0;
    for (at, c) in code.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth <= 1 => return at + 1,
            '}' => depth -= 1,
            ';' if depth == 0 => return at + 1,
            _ => {}
        }
    }
    code.len()
}

/// Where the modules are that a file declares.
fn folder_of_modules(path: &Path) -> PathBuf {
    match path.file_name().and_then(|name| name.to_str()) {
        Some("mod.rs" | "lib.rs" | "main.rs") => path.parent().unwrap_or(path).to_owned(),
        _ => path.with_extension(""),
    }
}

/// Which top-level module of a crate names which. Tests don't count.
pub(crate) fn imports(sources: &[Source], crate_src: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let mut only_tests: Vec<PathBuf> = Vec::new();
    let mut product = Vec::new();
    for source in sources {
        let Ok(below) = source.path.strip_prefix(crate_src) else { continue };
        let code = code(&source.text);
        let (code, modules) = split_tests(&code);
        let folder = folder_of_modules(below);
        only_tests.extend(modules.iter().map(|name| folder.join(name)));
        product.push((below.to_owned(), code));
    }
    product.retain(|(path, _)| !only_tests.iter().any(|test| path.with_extension("").starts_with(test)));

    let top_of = |path: &Path| {
        let top = path.components().next().and_then(|top| top.as_os_str().to_str());
        top.unwrap_or_default().trim_end_matches(".rs").to_owned()
    };
    let modules = product.iter().map(|(path, _)| top_of(path));
    let mut graph: BTreeMap<String, BTreeSet<String>> = modules
        .filter(|top| !matches!(top.as_str(), "lib" | "bin" | "main"))
        .map(|top| (top, BTreeSet::new()))
        .collect();
    let modules: BTreeSet<String> = graph.keys().cloned().collect();
    for (path, code) in &product {
        let top = top_of(path);
        if let Some(named) = graph.get_mut(&top) {
            let others = named_in_crate(code).filter(|name| *name != top && modules.contains(*name));
            named.extend(others.map(str::to_owned));
        }
    }
    graph
}

/// The first names of all paths that start at the crate.
fn named_in_crate(code: &str) -> impl Iterator<Item = &str> {
    code.match_indices("crate::").flat_map(|(at, found)| {
        let rest = &code[at + found.len()..];
        match rest.strip_prefix('{') {
            Some(list) => first_names(list),
            None => vec![leading_name(rest)],
        }
    })
}

/// The first name of each path in a list up to its closing brace.
fn first_names(list: &str) -> Vec<&str> {
    let mut names = Vec::new();
    let mut depth = 0;
    let mut start = 0;
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                names.push(leading_name(&list[start..at]));
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                names.push(leading_name(&list[start..at]));
                start = at + 1;
            }
            _ => {}
        }
    }
    names
}

fn leading_name(path: &str) -> &str {
    let path = path.trim_start();
    let end = path.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(path.len());
    &path[..end]
}

/// A circle in a graph, if there is one.
pub(crate) fn circle(graph: &BTreeMap<String, BTreeSet<String>>) -> Option<Vec<String>> {
    let mut left: BTreeMap<&String, BTreeSet<&String>> =
        graph.iter().map(|(name, named)| (name, named.iter().collect())).collect();
    // Take away who names nobody that is left, until all are gone or each names another.
    loop {
        let done: Vec<&String> =
            left.iter().filter(|(_, named)| named.is_empty()).map(|(name, _)| *name).collect();
        if done.is_empty() {
            break;
        }
        for name in done {
            left.remove(name);
            left.values_mut().for_each(|named| named.retain(|other| *other != name));
        }
    }
    let mut path = vec![*left.keys().next()?];
    loop {
        let next = *left.get(path.last()?)?.first()?;
        if let Some(at) = path.iter().position(|name| *name == next) {
            return Some(path[at..].iter().map(|name| (*name).clone()).collect());
        }
        path.push(next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_without_comments_and_literals() {
        let text = "a /* b */ \"c\\\"d\" 'e' '\\'' r#\"f\"g\"# h<'i> // j\nk";
        let words: Vec<String> = code(text).split_whitespace().map(str::to_owned).collect();
        assert_eq!(words, ["a", "h<'i>", "k"]);
    }

    #[test]
    fn words_are_whole() {
        assert!(has_word("let x = word { y };", "word"));
        assert!(!has_word("deny(word_code)", "word"));
        assert!(!has_word("password", "word"));
    }

    fn source(path: &str, text: &str) -> Source {
        Source { path: path.into(), text: text.into() }
    }

    #[test]
    fn imports_are_found_and_circles_among_them() {
        let mut sources = vec![
            source("x/src/lib.rs", "mod a; mod b; mod c;\n#[cfg(test)]\nmod mock;"),
            source("x/src/a/mod.rs", "use crate::{b::{One, Two}, c};"),
            source("x/src/a/deep.rs", "use crate::a::Three;"),
            source(
                "x/src/b.rs",
                "// crate::a\n#[cfg(test)]\nmod t { use crate::a; }\nfn f() { crate::c::g() }",
            ),
            source("x/src/mock.rs", "use crate::a;"),
            source("x/src/c.rs", ""),
        ];
        let graph = imports(&sources, Path::new("x/src"));
        let named = |name: &str| graph[name].iter().map(String::as_str).collect::<Vec<_>>();
        assert_eq!((named("a"), named("b"), named("c")), (vec!["b", "c"], vec!["c"], vec![]));
        assert_eq!(graph.len(), 3);
        assert_eq!(circle(&graph), None);

        sources.push(source("x/src/c/inner.rs", "pub(super) use crate::b::One;"));
        assert_eq!(circle(&imports(&sources, Path::new("x/src"))), Some(vec!["b".into(), "c".into()]));
    }
}
