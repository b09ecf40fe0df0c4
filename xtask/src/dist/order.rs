//! The order of the functions in `passt`: a linker script puts those of the running phase side by side
//! (docs/design/memory.md). `cargo xtask torture --functions` writes it.

use std::ffi::OsString;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};

use super::tool;
use crate::house::root;

/// The script, below the root of the workspace.
pub(crate) const SCRIPT: &str = "crates/passt/running.ld";

/// The compiler's flags for the order. The script names functions with their types, as v0 symbols have them. The program is
/// loaded at a multiple of the pieces in which the kernel maps code: else each address of the program has other pieces.
///
/// # Errors
/// The script can't be read, or copied to `folder`.
pub(super) fn flags(folder: &Path) -> anyhow::Result<[OsString; 4]> {
    let script = std::fs::read_to_string(root().join(SCRIPT)).with_context(|| format!("no {SCRIPT}"))?;
    let mut hasher = DefaultHasher::new();
    script.hash(&mut hasher);
    // Cargo does not know the file: another name makes it link again.
    let copy = folder.join(format!("{:016x}.ld", hasher.finish()));
    std::fs::create_dir_all(folder).and_then(|()| std::fs::write(&copy, script))?;
    let mut link = OsString::from("-Clink-arg=-T");
    link.push(copy);
    let aligned = "-Clink-arg=max-page-size=65536".into();
    Ok(["-Csymbol-mangling-version=v0".into(), link, "-Clink-arg=-z".into(), aligned])
}

/// Checks that the script names the functions of a program that was built: those of another compiler can have other symbols.
///
/// # Errors
/// A quarter of the functions or more is not in the program.
pub(super) fn check(program: &Path) -> anyhow::Result<()> {
    let script = std::fs::read_to_string(root().join(SCRIPT))?;
    let patterns: Vec<&str> = script.lines().filter_map(pattern).collect();
    let symbols =
        tool::output(Command::new("nm").args(["--defined-only", "--format=just-symbols"]).arg(program))?;
    let symbols: Vec<&str> = symbols.lines().collect();
    let found =
        patterns.iter().filter(|pattern| symbols.iter().any(|symbol| matches(pattern, symbol))).count();
    println!("{SCRIPT}: {found} of {} functions", patterns.len());
    ensure!(
        found * 4 > patterns.len() * 3,
        "{SCRIPT} names {} functions, and {} has only {found} of them: cargo xtask torture --functions {SCRIPT}",
        patterns.len(),
        program.display()
    );
    Ok(())
}

/// The pattern of a line of the script.
fn pattern(line: &str) -> Option<&str> {
    line.trim().strip_prefix("*(.text*.")?.strip_suffix(')')
}

/// Whether a symbol matches a pattern, in which `*` stands for any text.
fn matches(pattern: &str, symbol: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == symbol };
    let Some(symbol) = symbol.strip_prefix(start) else { return false };
    symbol.char_indices().any(|(at, _)| matches(rest, &symbol[at..])) || rest.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_text() {
        for (pattern, symbol, expected) in [
            ("ab", "ab", true),
            ("ab", "abc", false),
            ("a*", "a", true),
            ("a*", "abc", true),
            ("a*c", "abbc", true),
            ("a*c", "abcb", false),
            ("*b*b", "abab", true),
            ("*b*b", "ab", false),
        ] {
            assert_eq!(matches(pattern, symbol), expected, "{pattern} {symbol}");
        }
    }

    #[test]
    fn the_script_names_the_event_loop() {
        let script = std::fs::read_to_string(root().join(SCRIPT)).unwrap();
        assert!(script.lines().filter_map(pattern).any(|pattern| pattern.ends_with("5Shard8on_event")));
    }
}
