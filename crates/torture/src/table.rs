//! The table of all cells, as Markdown, and its totals.

use std::collections::BTreeMap;
use std::fmt::{self, Write};

use crate::verdict::{Row, Start, Wrong};

/// The beginning of the page.
const HEAD: &str = "\
# The fault sweep: results

`cargo xtask torture` has written this page. Each call of pasta's running phase fails once, in a session of its own, the first time and
once in the middle. Then each call of a start, from the execution to the event loop, fails once.
[The record](design/torture.md) says how, and what the words mean.
";

/// Totals.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    cells: usize,
    not_reached: usize,
    ended: usize,
    once: usize,
    excepted: usize,
    /// Starts: those that worked, those that warned, and those that ended with an error.
    starts: [usize; 3],
    wrong: BTreeMap<Wrong, usize>,
}

impl Summary {
    /// The totals of these rows.
    pub(crate) fn of(rows: &[Row]) -> Self {
        let mut summary = Self { cells: rows.len(), ..Self::default() };
        for row in rows {
            summary.once += usize::from(row.once.is_some());
            let Some(verdict) = &row.verdict else {
                summary.not_reached += 1;
                continue;
            };
            summary.excepted += usize::from(verdict.excepted.is_some());
            summary.ended += usize::from(verdict.ended > 0 && verdict.wrong.is_empty());
            match verdict.start {
                Some(Start::Works) => summary.starts[0] += 1,
                Some(Start::Warned(_)) => summary.starts[1] += 1,
                Some(Start::Refused(_)) => summary.starts[2] += 1,
                None => {}
            }
            for wrong in verdict.wrong.keys() {
                *summary.wrong.entry(*wrong).or_insert(0) += 1;
            }
        }
        summary
    }

    /// Whether nothing is wrong.
    pub(crate) fn is_clean(&self) -> bool {
        self.wrong.is_empty()
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |wrong| self.wrong.get(&wrong).copied().unwrap_or(0);
        if let [works, warned, refused] = self.starts
            && works + warned + refused > 0
        {
            return write!(
                f,
                "{} cells: {works} start and work, {warned} start with a warning, {refused} end with an error; {} end without a message of their own, \
                 {} end silently, {} hang, {} leave something behind, {} do not work, {} wrong ends; {} exceptions; {} \
                 not reached; {} failed once only",
                self.cells,
                count(Wrong::Exit),
                count(Wrong::Silent),
                count(Wrong::Hang),
                count(Wrong::Left),
                count(Wrong::Later),
                count(Wrong::Status),
                self.excepted,
                self.not_reached,
                self.once,
            );
        }
        write!(
            f,
            "{} cells: {} exits, {} losses, {} hangs, {} corruptions, {} lasting failures, {} leaks, {} spins, \
             {} floods, {} wrong ends; {} exceptions; in {} the flow that was hit ended; {} not reached; {} failed \
             once only",
            self.cells,
            count(Wrong::Exit),
            count(Wrong::Loss),
            count(Wrong::Hang),
            count(Wrong::Corruption),
            count(Wrong::Later),
            count(Wrong::Leak),
            count(Wrong::Spin),
            count(Wrong::Flood),
            count(Wrong::Status),
            self.excepted,
            self.ended,
            self.not_reached,
            self.once,
        )
    }
}

/// The table of each part: one row for each place and result, with the faults that had this result.
pub(crate) fn draw(parts: &[(&str, Vec<Row>)]) -> String {
    let mut text = HEAD.to_owned();
    for (name, rows) in parts {
        let mut merged: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
        for row in rows {
            let result = row.verdict.as_ref().map_or_else(|| "not reached".to_owned(), ToString::to_string);
            let faults = merged.entry((row.cell.site.to_string(), result)).or_default();
            let fault = row.cell.fault.to_string();
            if !faults.contains(&fault) {
                faults.push(fault);
            }
        }
        let summary = Summary::of(rows);
        // Writing to a string does not fail.
        let _written = write!(
            text,
            "\n## {name}\n\n{summary}.\n\n| thread: call (object) | fault | result |\n|---|---|---|\n"
        );
        for ((site, result), faults) in merged {
            let _written = writeln!(text, "| {site} | {} | {result} |", faults.join(", "));
        }
    }
    text
}
