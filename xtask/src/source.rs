//! Rust sources of the workspace. They are parsed as far as the checks of the rules require.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

/// A source file.
pub(crate) struct Source {
    /// Path, relative to the root of the workspace.
    pub(crate) path: PathBuf,
    /// Content.
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

/// Returns the code. Comments and literals are replaced by blanks.
pub(crate) fn code(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let len = skipped(rest);
        if len == 0 {
            code.push(first);
            rest = &rest[first.len_utf8()..];
        } else {
            // Line breaks are kept, so line numbers stay the same.
            code.extend(rest[..len].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
            rest = &rest[len..];
        }
    }
    code
}

/// Length of the comment or literal at the start of `text`, or zero.
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
        // A character literal, not a lifetime.
        let mut chars = text.char_indices();
        match (chars.next(), chars.next(), chars.next()) {
            (Some((_, '\'')), Some(_), Some((at, '\''))) => at + 1,
            _ => 0,
        }
    }
}

/// Whether `code` contains `word` as a whole word.
pub(crate) fn has_word(code: &str, word: &str) -> bool {
    next_word(code, word).is_some()
}

/// Offset of the first whole word `word` in `code`.
pub(crate) fn next_word(code: &str, word: &str) -> Option<usize> {
    code.match_indices(word)
        .map(|(at, _)| at)
        .find(|at| !code[..*at].ends_with(is_word_part) && !code[at + word.len()..].starts_with(is_word_part))
}

/// Whether a name can contain this character.
pub(crate) fn is_word_part(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Returns the code without test items, and the names of test modules that are in other files.
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

/// Length of the item at the start of `code`: up to its semicolon, or to the end of its braces.
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
}
