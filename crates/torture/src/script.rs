//! The linker script that puts the functions of the running phase side by side (docs/design/memory.md).

use std::collections::HashSet;
use std::fmt::Write;

/// Functions that are not called while breakpoints are watched, but continue then: a thread waits in them.
const WAITING: [&str; 1] = ["_RNvNtNtCs*_3std6thread9functions5sleep"];

/// The script for functions with these symbols, in this order. Those that the compiler takes for cold are in sections of
/// another name, `.text.unlikely.` and the symbol.
pub(crate) fn script(symbols: &[String]) -> String {
    let mut text = "\
/* The functions that the running phase calls, in the order of their first calls, side by side: the kernel maps code in pieces of
   64 KiB. Written by `cargo xtask torture --functions FILE`. */
SECTIONS
{
  .text.running :
  {
"
    .to_owned();
    let mut before = HashSet::new();
    for pattern in WAITING.map(str::to_owned).into_iter().chain(symbols.iter().map(|symbol| pattern(symbol)))
    {
        if !before.contains(&pattern) {
            let _infallible = writeln!(text, "    *(.text*.{pattern})");
            before.insert(pattern);
        }
    }
    text + "  }\n}\nINSERT BEFORE .text;\n"
}

/// A symbol with `*` for what differs between builds: the hashes of crates, the crate for which a function was compiled, and
/// the suffix of local copies. Symbols are those of Rust's v0 mangling. Those of the older form do not have the types of generic
/// functions.
fn pattern(symbol: &str) -> String {
    let symbol = symbol.split_once(".llvm.").map_or(symbol, |(symbol, _)| symbol);
    // A crate is "Cs", its hash, "_", the length of its name, and its name.
    let mut parts = symbol.split("Cs").peekable();
    let mut pattern = parts.next().unwrap_or_default().to_owned();
    while let Some(part) = parts.next() {
        let hash = part.bytes().take_while(u8::is_ascii_alphanumeric).count();
        match part.get(hash..).and_then(|rest| rest.strip_prefix('_')) {
            // The compiler keeps one of equal functions that were compiled for several crates.
            Some(name) if hash > 0 && parts.peek().is_none() && is_identifier(name) => pattern += "*",
            Some(rest) if hash > 0 => pattern += &format!("Cs*_{rest}"),
            _ => pattern += &format!("Cs{part}"),
        }
    }
    pattern
}

/// Whether this is one identifier after its length.
fn is_identifier(text: &str) -> bool {
    let name = text.trim_start_matches(|digit: char| digit.is_ascii_digit());
    text.strip_suffix(name).and_then(|length| length.parse().ok()) == Some(name.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_between_builds_is_not_in_a_pattern() {
        for (symbol, expected) in [
            (
                "_RNvMNtCslqy8shQA99m_3std4timeNtB2_7Instant7elapsed",
                "_RNvMNtCs*_3std4timeNtB2_7Instant7elapsed",
            ),
            ("_RNvCs1_3std4readNtCs2_4core1aCs3_5passt.llvm.5", "_RNvCs*_3std4readNtCs*_4core1a*"),
            ("_RNvCs1_5passt3run", "_RNvCs*_5passt3run"),
            ("memcpy", "memcpy"),
        ] {
            assert_eq!(pattern(symbol), expected);
        }
    }

    #[test]
    fn a_script_has_each_pattern_once_in_order() {
        let symbols = ["b", "_RNvCs1_1a1b", "_RNvCs2_1a1b"].map(str::to_owned);
        let script = script(&symbols);
        let lines: Vec<&str> = script.lines().filter(|line| line.contains("*(")).map(str::trim).collect();
        let [.., first, second] = lines[..] else { panic!("{script}") };
        assert_eq!(lines.len(), WAITING.len() + 2);
        assert_eq!([first, second], ["*(.text*.b)", "*(.text*._RNvCs*_1a1b)"]);
    }
}
