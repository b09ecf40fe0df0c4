//! Figures: medians and spreads of rounds, as text and as a file of tab-separated values.
//!
//! A file has lines with `#` for a reader: programs, machine. Then a line with the names of the columns, and one line for
//! each row, quantity and candidate.

use std::fmt::Write;

use anyhow::{Context, ensure};

use super::row::Row;
use crate::load::{Quantity, Sample};

const COLUMNS: &str = "row\tquantity\tunit\tcandidate\tmedian\tlowest\thighest\trounds";

/// The candidate without a program under test.
pub(crate) const LIMIT: &str = "limit";

/// One quantity of one candidate in one row, in the unit in which it is shown.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Figure {
    pub(crate) row: String,
    pub(crate) quantity: Quantity,
    pub(crate) unit: String,
    pub(crate) candidate: String,
    pub(crate) median: f64,
    pub(crate) lowest: f64,
    pub(crate) highest: f64,
    pub(crate) rounds: usize,
}

/// The figures of the samples of one candidate.
pub(super) fn figures(row: &Row, candidate: &str, samples: &[Sample]) -> Vec<Figure> {
    let figure = |&(_, quantity): &(&str, Quantity)| {
        let (unit, factor) = row.unit(quantity);
        let mut values: Vec<f64> =
            samples.iter().filter_map(|sample| sample.get(quantity)).map(|value| value * factor).collect();
        values.sort_by(f64::total_cmp);
        Some(Figure {
            row: row.name.clone(),
            quantity,
            unit: unit.to_owned(),
            candidate: candidate.to_owned(),
            median: median(&values)?,
            lowest: *values.first()?,
            highest: *values.last()?,
            rounds: values.len(),
        })
    };
    Quantity::ALL.iter().filter_map(figure).collect()
}

/// The median of sorted values.
fn median(values: &[f64]) -> Option<f64> {
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        len if len % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

/// A line of text with all figures of one candidate. `limit` is the median rate without a program.
pub(super) fn text(candidate: &str, figures: &[Figure], limit: Option<f64>) -> String {
    let mut line = format!("{candidate:12}");
    for figure in figures {
        let Figure { quantity, unit, median, lowest, highest, .. } = figure;
        let name = if *quantity == Quantity::Rate { "" } else { quantity.name() };
        // A write to a string can't fail.
        let _ = match quantity {
            Quantity::Cost | Quantity::Memory => write!(line, "  {name} {median:.3} {unit}"),
            _ => write!(line, "  {name} {median:.2} [{lowest:.2}, {highest:.2}] {unit}"),
        };
        if let (Quantity::Rate, Some(limit)) = (quantity, limit) {
            let _ = write!(line, "  {:.2} of the limit", median / limit);
        }
    }
    if figures.is_empty() { line + " failed" } else { line }
}

/// The content of a file. `head` is for its reader.
pub(super) fn to_file(head: &str, figures: &[Figure]) -> String {
    let mut text: String = head.lines().map(|line| format!("# {line}\n")).collect();
    let _ = writeln!(text, "{COLUMNS}");
    for Figure { row, quantity, unit, candidate, median, lowest, highest, rounds } in figures {
        let quantity = quantity.name();
        let _ = writeln!(
            text,
            "{row}\t{quantity}\t{unit}\t{candidate}\t{median:.5}\t{lowest:.5}\t{highest:.5}\t{rounds}"
        );
    }
    text
}

/// The head and the figures of a file.
pub(crate) fn from_file(text: &str) -> anyhow::Result<(String, Vec<Figure>)> {
    let head = text.lines().map_while(|line| line.strip_prefix("# ")).map(|line| format!("{line}\n"));
    let head: String = head.collect();
    let mut lines = text.lines().skip(head.lines().count());
    ensure!(lines.next() == Some(COLUMNS), "the columns are not: {COLUMNS}");
    let figures = lines.map(|line| figure(line).with_context(|| format!("not a figure: {line}")));
    Ok((head, figures.collect::<anyhow::Result<_>>()?))
}

fn figure(line: &str) -> anyhow::Result<Figure> {
    let fields: Vec<&str> = line.split('\t').collect();
    let [row, quantity, unit, candidate, median, lowest, highest, rounds] = fields[..] else {
        anyhow::bail!("{} fields", fields.len())
    };
    Ok(Figure {
        row: row.to_owned(),
        quantity: Quantity::from_name(quantity).context("no such quantity")?,
        unit: unit.to_owned(),
        candidate: candidate.to_owned(),
        median: median.parse()?,
        lowest: lowest.parse()?,
        highest: highest.parse()?,
        rounds: rounds.parse()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::row;

    fn samples() -> [Sample; 2] {
        [3000.0, 1000.0].map(|rate| Sample(vec![(Quantity::Rate, rate), (Quantity::Median, 1.0 / rate)]))
    }

    fn row() -> Row {
        row::rows().into_iter().find(|row| row.name == "tap out, tcp rr").unwrap()
    }

    #[test]
    fn medians() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[1.0, 2.0, 3.0]), Some(2.0));
        assert_eq!(median(&[1.0, 4.0]), Some(2.5));
    }

    #[test]
    fn figures_have_the_unit_of_the_load() {
        let figures = figures(&row(), "A", &samples());
        assert_eq!(figures.len(), 2);
        assert_eq!((figures[0].quantity, &*figures[0].unit, figures[0].rounds), (Quantity::Rate, "k/s", 2));
        assert_eq!((figures[0].median, figures[0].lowest, figures[0].highest), (2.0, 1.0, 3.0));
        assert_eq!((figures[1].quantity, &*figures[1].unit), (Quantity::Median, "us"));
        let line = text("A", &figures, Some(4.0));
        assert!(line.contains("2.00 [1.00, 3.00] k/s  0.50 of the limit  p50 666.67"), "{line}");
        assert!(text("A", &[], None).ends_with("failed"));
    }

    #[test]
    fn a_file_is_read_as_it_was_written() {
        let mut figures = figures(&row(), "A", &samples());
        figures.truncate(1);
        let text = to_file("kernel 7\nA: pasta", &figures);
        assert_eq!(from_file(&text).unwrap(), ("kernel 7\nA: pasta\n".to_owned(), figures));
        assert!(from_file("").is_err());
        assert!(from_file(&text.replace("\t2\n", "\n")).is_err());
        assert!(from_file(&text.replace("rate", "rating")).is_err());
    }
}
