//! The table of all cells, as Markdown, and its totals.

use std::collections::BTreeMap;
use std::fmt;

use crate::verdict::{Row, Start, Wrong};
use crate::way::Way;

/// The beginning of the page.
const HEAD: &str = "\
# The fault sweep: results

`cargo xtask torture` has written this page. Each call of the running phase of pasta and passt fails once, in a session of its own,
with each of its errors; those of pasta and of the guest's connection to passt the first time and once in the middle. Then each call of
a start, from the execution to the event loop, fails once.
[The record](design/torture.md) says how, and what the words mean.
";

/// The headings of the results in the plain session: ours, and those of another program.
pub(crate) const PLAIN: &str = "The running phase of pasta in a plain session";
pub(crate) const BESIDE: &str = "The running phase of another pasta in a plain session";

/// The heading of their totals.
const COMPARED: &str = "Side by side";

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

    fn count(&self, wrong: Wrong) -> usize {
        self.wrong.get(&wrong).copied().unwrap_or(0)
    }

    /// The totals of a running phase, and what they are called.
    fn running(&self) -> [(usize, &'static str); 14] {
        [
            (self.cells, "cells"),
            (self.count(Wrong::Exit), "exits"),
            (self.count(Wrong::Loss), "losses"),
            (self.count(Wrong::Hang), "hangs"),
            (self.count(Wrong::Corruption), "corruptions"),
            (self.count(Wrong::Later), "lasting failures"),
            (self.count(Wrong::Leak), "leaks"),
            (self.count(Wrong::Spin), "spins"),
            (self.count(Wrong::Flood), "floods"),
            (self.count(Wrong::Status), "wrong ends"),
            (self.excepted, "exceptions"),
            (self.ended, "the flow that was hit ended"),
            (self.not_reached, "not reached"),
            (self.once, "failed once only"),
        ]
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [works, warned, refused] = self.starts
            && works + warned + refused > 0
        {
            return write!(
                f,
                "{} cells: {works} start and work, {warned} start with a warning, {refused} end with an error; {} end without a message of their own, \
                 {} end silently, {} hang, {} leave something behind, {} do not work, {} wrong ends; {} exceptions; {} \
                 not reached; {} failed once only",
                self.cells,
                self.count(Wrong::Exit),
                self.count(Wrong::Silent),
                self.count(Wrong::Hang),
                self.count(Wrong::Left),
                self.count(Wrong::Later),
                self.count(Wrong::Status),
                self.excepted,
                self.not_reached,
                self.once,
            );
        }
        let words = self.running().map(|(number, name)| format!("{number} {name}"));
        write!(f, "{}", words.join(", "))
    }
}

/// The table of each part: one row for each place and result, with the faults that had this result. Parts of the page
/// `before` that were not run again stay.
pub(crate) fn draw(parts: &[(&str, Vec<Row>)], before: &str) -> String {
    let mut sections: Vec<(String, String)> = Vec::new();
    for section in before.split("\n## ").skip(1) {
        let (name, text) = section.split_once('\n').unwrap_or((section, ""));
        sections.push((name.to_owned(), format!("{}\n", text.trim_end())));
    }
    let mut put = |name: &str, text: String| match sections.iter_mut().find(|(known, _)| known == name) {
        Some(section) => section.1 = text,
        None => sections.push((name.to_owned(), text)),
    };
    // Of another program, only totals: the page is about this one.
    for (name, rows) in parts.iter().filter(|(name, _)| *name != BESIDE) {
        put(name, section(rows));
    }
    let summary = |wanted| parts.iter().find(|(name, _)| *name == wanted).map(|(_, rows)| Summary::of(rows));
    if let (Some(ours), Some(other)) = (summary(PLAIN), summary(BESIDE)) {
        put(COMPARED, compared(&ours, &other));
    }
    // First the running phases, then the comparison.
    let order = || Way::RUNNING.into_iter().map(|(_, name)| name).chain([COMPARED, PLAIN]);
    let place = |name: &str| order().position(|known| known == name).unwrap_or(usize::MAX);
    sections.sort_by_key(|(name, _)| place(name));
    sections.into_iter().fold(HEAD.to_owned(), |page, (name, text)| format!("{page}\n## {name}\n{text}"))
}

fn section(rows: &[Row]) -> String {
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
    let head = format!("\n{summary}.\n\n| thread: call (object) | fault | result |\n|---|---|---|\n");
    merged.into_iter().fold(head, |text, ((site, result), faults)| {
        format!("{text}| {site} | {} | {result} |\n", faults.join(", "))
    })
}

/// The totals of the two programs in the plain session.
fn compared(ours: &Summary, other: &Summary) -> String {
    let head = "\nBoth in the plain session: no API, no control socket, no rules, and little bulk of the guest through \
                the link. The programs make different calls, so they have different cells.\n\n\
                | | this pasta | another pasta |\n|---|---|---|\n";
    let rows = ours.running().into_iter().zip(other.running());
    rows.fold(head.to_owned(), |text, ((ours, name), (other, _))| {
        format!("{text}| {name} | {ours} | {other} |\n")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::{Cell, Fault, Site};
    use crate::verdict::Verdict;

    fn row(wrong: &[Wrong]) -> Row {
        let site = Site { thread: "pasta".into(), call: "read".into(), object: "tap".into() };
        let cell = Cell { site, number: 1, fault: Fault::Short };
        let wrong = wrong.iter().map(|wrong| (*wrong, "why".to_owned())).collect();
        Row { cell, verdict: Some(Verdict { wrong, ..Verdict::default() }), once: None }
    }

    #[test]
    fn parts_that_are_not_run_again_stay() {
        let first = draw(&[("The running phase of passt", vec![row(&[])]), ("later", vec![row(&[])])], "");
        let parts = [("The running phase of pasta", vec![row(&[Wrong::Leak])]), ("later", vec![])];
        let page = draw(&parts, &first);
        let names: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("## ")).collect();
        assert_eq!(names, ["The running phase of pasta", "The running phase of passt", "later"]);
        assert!(
            page.starts_with(HEAD) && page.contains("| pasta: read(tap) | short | Leak: why |"),
            "{page}"
        );
        assert_eq!(page.matches("nothing lost").count(), 1, "{page}");
        assert_eq!(draw(&parts, &page), page);
    }

    #[test]
    fn two_programs_are_compared() {
        let parts = [(PLAIN, vec![row(&[])]), (BESIDE, vec![row(&[Wrong::Exit]), row(&[Wrong::Exit])])];
        let page = draw(&parts, "");
        assert!(page.contains("| cells | 1 | 2 |") && page.contains("| exits | 0 | 2 |"), "{page}");
        assert!(page.contains(&format!("## {PLAIN}\n")) && !page.contains(BESIDE), "{page}");
    }
}
