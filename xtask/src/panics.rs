//! `cargo xtask panics`: the places in `engine` and `wire` where the program of packages can panic, and the reason why none of
//! them does (docs/design/panics.md). A place is what the compiler has left: it proves that most indices are within bounds.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, ensure};

use crate::dist::{programs, tool};
use crate::house::root;

/// The page with the reasons.
const PAGE: &str = "docs/design/panics.md";
/// The head of its table, which ends the page.
const HEAD: &str = "| file | code | panic | reason |\n|---|---|---|---|\n";
/// The folders whose places are listed, as the program's line tables name them.
const PREFIX: &str = "/passt-rs/";
const FOLDERS: [&str; 2] = ["crates/engine/", "crates/wire/"];
/// The reason of a place for which nobody has written one.
const UNKNOWN: &str = "?";

/// A place where the program can panic. A line of code is named by its text: its number changes with every edit.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Site {
    file: String,
    code: String,
    panic: &'static str,
}

/// The reason of each place.
type Reasons = BTreeMap<(String, String, String), String>;

/// Builds the program, and compares its places with the page; with `write`, replaces the table in the page.
///
/// # Errors
/// A tool fails, or the program has places for which the page has no reason.
pub(crate) fn run(write: bool) -> anyhow::Result<()> {
    let (folder, _) = programs::compile(&programs::native_target()?)?;
    let program = folder.join("release/passt");
    tool::need(&["objdump", "addr2line"], "apt-get install binutils")?;
    let code = tool::output(Command::new("objdump").args(["-d", "--no-show-raw-insn"]).arg(&program))?;
    let calls: Vec<(&str, &'static str)> = code.lines().filter_map(call).collect();
    ensure!(!calls.is_empty(), "no call of a panic in {}", program.display());
    let addresses = calls.iter().map(|(address, _)| *address);
    let frames =
        tool::output(Command::new("addr2line").args(["-i", "-a", "-e"]).arg(&program).args(addresses))?;
    let mut sites: Vec<Site> = Vec::new();
    for (frames, (_, panic)) in frames.split("0x").skip(1).zip(&calls) {
        if let Some((file, line)) = frames.lines().find_map(frame) {
            sites.push(Site { code: line_of(file, line)?, file: file.to_owned(), panic });
        }
    }
    let calls = sites.len();
    sites.sort();
    sites.dedup();

    let page = std::fs::read_to_string(root().join(PAGE)).with_context(|| format!("no {PAGE}"))?;
    let (text, rows) = page.split_once(HEAD).with_context(|| format!("{PAGE} has no table"))?;
    let reasons = reasons(rows);
    let reason = |site: &Site| {
        let key = (site.file.clone(), site.code.clone(), site.panic.to_owned());
        reasons.get(&key).map_or(UNKNOWN, String::as_str)
    };
    println!("{} places, {calls} calls", sites.len());
    if write {
        let row = |site: &Site| {
            format!("| {} | `{}` | {} | {} |\n", site.file, site.code, site.panic, reason(site))
        };
        let table: String = sites.iter().map(row).collect();
        return std::fs::write(root().join(PAGE), format!("{text}{HEAD}{table}"))
            .with_context(|| format!("can't write {PAGE}"));
    }
    let new: Vec<String> = sites
        .iter()
        .filter(|site| reason(site) == UNKNOWN)
        .map(|site| format!("{}: {}: {}", site.file, site.panic, site.code))
        .collect();
    ensure!(new.is_empty(), "no reason in {PAGE} (cargo xtask panics --write):\n{}", new.join("\n"));
    Ok(())
}

/// The address and the kind of panic, if this line of a disassembly calls one.
fn call(line: &str) -> Option<(&str, &'static str)> {
    let (address, instruction) = line.trim().split_once(":\t")?;
    let (operation, operand) = instruction.split_once(char::is_whitespace)?;
    let (_, symbol) = operand.split_once('<')?;
    matches!(operation, "call" | "jmp").then_some((address, panic(symbol.trim_end_matches('>'))?))
}

/// The kind of panic of a function of `core`. Those without memory are another subject (docs/design/memory.md).
fn panic(symbol: &str) -> Option<&'static str> {
    if symbol.contains('+') || !symbol.contains("4core") {
        return None;
    }
    let kinds = [
        ("panic_bounds_check", "index"),
        ("index_fail", "slice"),
        ("error_fail", "slice"),
        ("mismatch_fail", "slice"),
        ("borrowed", "borrow"),
        ("unwrap_failed", "unwrap"),
        ("expect_failed", "unwrap"),
        ("by_zero", "division"),
        ("9panicking", "other"),
    ];
    kinds.iter().find(|(part, _)| symbol.contains(part)).map(|(_, kind)| *kind)
}

/// File and line, if this frame is in one of the listed folders.
fn frame(line: &str) -> Option<(&str, &str)> {
    let (file, number) = line.strip_prefix(PREFIX)?.split_once(':')?;
    let number = number.split(' ').next()?;
    FOLDERS.iter().any(|folder| file.starts_with(folder)).then_some((file, number))
}

/// The text of a line, without what a table can't have.
fn line_of(file: &str, number: &str) -> anyhow::Result<String> {
    // The compiler has merged the panics of several lines.
    let Some(index) = number.parse::<usize>().ok().and_then(|number| number.checked_sub(1)) else {
        return Ok("several".to_owned());
    };
    let source = std::fs::read_to_string(root().join(file)).with_context(|| format!("no {file}"))?;
    let line = source.lines().nth(index).with_context(|| format!("{file} has no line {number}"))?;
    Ok(line.trim().replace('|', "\\|").replace('`', "'"))
}

fn reasons(rows: &str) -> Reasons {
    let row = |line: &str| {
        let rest = line.strip_prefix("| ")?.strip_suffix(" |")?;
        let (file, rest) = rest.split_once(" | `")?;
        let (code, rest) = rest.split_once("` | ")?;
        let (panic, reason) = rest.split_once(" | ")?;
        Some(((file.to_owned(), code.to_owned(), panic.to_owned()), reason.to_owned()))
    };
    rows.lines().filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_of_panics_are_found() {
        let line = "  9a0f3:\tcall   2b1b60 <_RNvNtCs1_4core9panicking18panic_bounds_check>";
        assert_eq!(call(line), Some(("9a0f3", "index")));
        let line = "  9a0f3:\tjmp    2b1b60 <_RNvNtCs1_4core6option13unwrap_failed>";
        assert_eq!(call(line), Some(("9a0f3", "unwrap")));
        for other in [
            "  9a0f3:\tcall   2b1b60 <_RNvNtCs1_5alloc7raw_vec12handle_error>",
            "  9a0f3:\tjmp    2b1b60 <_RNvNtCs1_4core9panicking18panic_bounds_check+0x4>",
            "  9a0f3:\tlea    0x1(%rip),%rax        # 2b1b60 <_RNvNtCs1_4core9panicking18panic_bounds_check>",
            "000000000009a880 <_RNvNtCs1_4core9panicking18panic_bounds_check>:",
        ] {
            assert_eq!(call(other), None, "{other}");
        }
    }

    #[test]
    fn frames_of_other_folders_are_not_places() {
        let frames = [
            "/rust/lib/core/src/slice/mod.rs:12",
            "/passt-rs/crates/engine/src/timer.rs:189 (discriminator 2)",
        ];
        assert_eq!(frames.iter().find_map(|line| frame(line)), Some(("crates/engine/src/timer.rs", "189")));
        assert_eq!(frame("/passt-rs/crates/passt/src/run.rs:1"), None);
    }

    /// Each place of the page is in the source, and has a reason.
    #[test]
    fn the_page_has_a_reason_for_each_place() {
        let page = std::fs::read_to_string(root().join(PAGE)).unwrap();
        let reasons = reasons(page.split_once(HEAD).unwrap().1);
        assert!(reasons.len() > 50);
        for ((file, code, _), reason) in reasons {
            assert!(reason.len() > 10, "{file}: {code}: no reason");
            let source = std::fs::read_to_string(root().join(&file)).unwrap();
            let line = |line: &str| line.trim().replace('|', "\\|").replace('`', "'") == code;
            assert!(
                code == "several" || source.lines().any(line),
                "{file} has no line {code} any more: cargo xtask panics --write"
            );
        }
    }
}
