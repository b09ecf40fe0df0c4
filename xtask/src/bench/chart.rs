//! Charts of figures, as SVG: bars from the left with their spread, in groups of one row each. Colours follow the
//! reader's preference for light or dark.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, ensure};

use super::figures::{Figure, LIMIT, from_file};
use crate::load::Quantity;

/// Width of a chart in pixels, such that its text is readable on a small screen as well.
const WIDTH: f64 = 560.0;
const MARGIN: f64 = 16.0;
/// Room for the value to the right of the longest bar.
const VALUE: f64 = 64.0;
/// Height of a bar with the gap below it.
const BAR: f64 = 17.0;
/// Height of the name above a group of bars, and of a line of the legend.
const NAME: f64 = 24.0;
/// Approximate width of a character.
const CHARACTER: f64 = 7.5;

/// Colours of the text, the background, the limit and the programs, light and dark. Neighbours differ in lightness as
/// well as in hue.
const LIGHT: [&str; 7] = ["#1f2328", "#ffffff", "#b7bec6", "#b3400e", "#2f6fb7", "#4f8f3a", "#8250df"];
const DARK: [&str; 7] = ["#e6edf3", "#0d1117", "#57606a", "#f0883e", "#58a6ff", "#7ee787", "#d2a8ff"];

/// A chart: which figures it shows.
struct Chart {
    /// Name of the file, without its extension.
    name: &'static str,
    title: &'static str,
    quantity: Quantity,
    /// Whether it shows the row of a name.
    has: fn(&str) -> bool,
}

fn is_stream(row: &str) -> bool {
    row.contains("tcp up") || row.contains("tcp down")
}

fn is_machine(row: &str) -> bool {
    row.starts_with("stream ") || row.starts_with("vhost-user")
}

const CHARTS: [Chart; 10] = [
    Chart {
        name: "throughput",
        title: "TCP through the tap, Gbit/s",
        quantity: Quantity::Rate,
        has: |row| row.starts_with("tap ") && is_stream(row),
    },
    Chart {
        name: "transactions",
        title: "Small messages through the tap, thousands a second",
        quantity: Quantity::Rate,
        has: |row| row.starts_with("tap ") && row.contains("rr"),
    },
    Chart {
        name: "slowest",
        title: "Small messages: 99th percentile, µs (less is better)",
        quantity: Quantity::Tail,
        has: |row| row.starts_with("tap ") && row.contains("rr"),
    },
    Chart {
        name: "cost",
        title: "Small messages: processor time, µs (less is better)",
        quantity: Quantity::Cost,
        has: |row| row.starts_with("tap ") && row.contains("rr"),
    },
    Chart {
        name: "lost",
        title: "Lost datagrams, % (less is better)",
        quantity: Quantity::Lost,
        has: |row| row.starts_with("tap ") && row.contains("udp 64"),
    },
    Chart {
        name: "local-throughput",
        title: "TCP between loopback addresses, Gbit/s",
        quantity: Quantity::Rate,
        has: |row| row.starts_with("local ") && is_stream(row),
    },
    Chart {
        name: "local-transactions",
        title: "Small messages on loopback, thousands a second",
        quantity: Quantity::Rate,
        has: |row| row.starts_with("local ") && row.contains("rr"),
    },
    Chart {
        name: "command",
        title: "A command that does nothing, ms (less is better)",
        quantity: Quantity::Median,
        has: |row| row == "command",
    },
    Chart {
        name: "machine-throughput",
        title: "TCP of a virtual machine, MTU 1500, Gbit/s",
        quantity: Quantity::Rate,
        has: |row| is_machine(row) && is_stream(row) && row.ends_with("1500"),
    },
    Chart {
        name: "machine-transactions",
        title: "Small messages of a virtual machine, thousands a second",
        quantity: Quantity::Rate,
        has: |row| is_machine(row) && row.contains("rr"),
    },
];

impl Chart {
    fn shows(&self, figure: &Figure) -> bool {
        figure.quantity == self.quantity && (self.has)(&figure.row)
    }
}

/// Reads files of figures, and writes the charts of which they have figures to `folder`. Returns the paths.
pub(crate) fn write(folder: &str, files: &[String]) -> anyhow::Result<Vec<String>> {
    let mut figures = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(file).with_context(|| format!("can't read {file}"))?;
        figures.extend(from_file(&text).with_context(|| format!("{file} has no figures"))?.1);
    }
    let mut seen = BTreeMap::new();
    for Figure { row, quantity, candidate, .. } in &figures {
        let before = seen.insert((row, quantity.name(), candidate), ());
        ensure!(
            before.is_none(),
            "two figures of '{candidate}' in the row '{row}': give one file of each row"
        );
    }
    std::fs::create_dir_all(folder).with_context(|| format!("can't create {folder}"))?;
    let mut paths = Vec::new();
    for chart in &CHARTS {
        let shown: Vec<&Figure> = figures.iter().filter(|figure| chart.shows(figure)).collect();
        if !shown.is_empty() {
            let path = Path::new(folder).join(format!("{}.svg", chart.name));
            std::fs::write(&path, draw(chart.title, &shown))
                .with_context(|| format!("can't write {}", path.display()))?;
            paths.push(path.display().to_string());
        }
    }
    Ok(paths)
}

/// A chart of figures, grouped by row.
fn draw(title: &str, figures: &[&Figure]) -> String {
    let (mut candidates, mut rows) = (Vec::<&str>::new(), Vec::<&str>::new());
    for figure in figures {
        if !candidates.contains(&&*figure.candidate) {
            candidates.push(&figure.candidate);
        }
        if !rows.contains(&&*figure.row) {
            rows.push(&figure.row);
        }
    }
    let longest = figures.iter().map(|figure| figure.highest).fold(f64::MIN_POSITIVE, f64::max);
    let scale = (WIDTH - 2.0 * MARGIN - VALUE) / longest;
    let mut body = String::new();
    let mut y = MARGIN + 16.0;
    text(&mut body, "title", MARGIN, y, title);
    y = legend(&mut body, y + NAME, &candidates) + 8.0;
    for row in rows {
        y += NAME;
        text(&mut body, "", MARGIN, y - 7.0, row);
        for figure in figures.iter().filter(|figure| figure.row == row) {
            bar(&mut body, figure, class(&figure.candidate, &candidates), y, scale);
            y += BAR;
        }
    }
    let height = y + MARGIN;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" role=\"img\">\n<title>{}</title>\n<style>{}</style>\n\
         <rect class=\"back\" width=\"100%\" height=\"100%\" rx=\"6\"/>\n{body}</svg>\n",
        escape(title),
        style()
    )
}

/// Draws the names of the candidates with their colours. Returns the position below.
fn legend(body: &mut String, mut y: f64, candidates: &[&str]) -> f64 {
    let mut x = MARGIN;
    for candidate in candidates {
        let width = 18.0 + CHARACTER * candidate.chars().count() as f64;
        if x > MARGIN && x + width > WIDTH - MARGIN {
            (x, y) = (MARGIN, y + NAME);
        }
        rect(body, class(candidate, candidates), x, y - 11.0, 12.0);
        text(body, "", x + 18.0, y, candidate);
        x += width + 18.0;
    }
    y
}

/// Draws a bar, its spread and its value.
fn bar(body: &mut String, figure: &Figure, class: usize, y: f64, scale: f64) {
    let at = |value: f64| MARGIN + value.max(0.0) * scale;
    // A bar of zero is a line.
    rect(body, class, MARGIN, y, (at(figure.median) - MARGIN).max(1.0));
    let (low, high, middle) = (at(figure.lowest), at(figure.highest), y + 6.0);
    let (top, bottom) = (middle - 4.0, middle + 4.0);
    // A write to a string can't fail.
    let _ = writeln!(
        body,
        "<path class=\"spread\" d=\"M{low:.1} {top}V{bottom}M{low:.1} {middle}H{high:.1}M{high:.1} {top}V{bottom}\"/>"
    );
    text(body, "value", high + 6.0, middle + 4.0, &value(figure.median));
}

/// A value with three significant digits, or all digits before the point.
fn value(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size < 1.0 => format!("{value:.3}"),
        size if size < 10.0 => format!("{value:.2}"),
        size if size < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// The number of a candidate's colour: 0 is the limit.
fn class(candidate: &str, candidates: &[&str]) -> usize {
    let programs = candidates.iter().filter(|known| **known != LIMIT);
    let number = programs.take_while(|known| **known != candidate).count();
    if candidate == LIMIT { 0 } else { 1 + number % (LIGHT.len() - 3) }
}

fn style() -> String {
    let colours = |[text, back, programs @ ..]: [&str; 7]| {
        let mut style = format!("text{{fill:{text}}}.spread{{stroke:{text}}}.back{{fill:{back}}}");
        for (number, colour) in programs.iter().enumerate() {
            let _ = write!(style, ".c{number}{{fill:{colour}}}");
        }
        style
    };
    format!(
        "text{{font:13px system-ui,sans-serif}}.title{{font-weight:600;font-size:15px}}.value{{font-size:12px}}\
         .spread{{fill:none;stroke-opacity:.7}}{}@media(prefers-color-scheme:dark){{{}}}",
        colours(LIGHT),
        colours(DARK)
    )
}

fn rect(body: &mut String, class: usize, x: f64, y: f64, width: f64) {
    let _ = writeln!(
        body,
        "<rect class=\"c{class}\" x=\"{x:.1}\" y=\"{y}\" width=\"{width:.1}\" height=\"12\" rx=\"2\"/>"
    );
}

fn text(body: &mut String, class: &str, x: f64, y: f64, text: &str) {
    let text = escape(text);
    let _ = writeln!(body, "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y}\">{text}</text>");
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::row;

    fn figure(row: &str, candidate: &str, median: f64) -> Figure {
        Figure {
            row: row.to_owned(),
            quantity: Quantity::Rate,
            unit: "Gbit/s".to_owned(),
            candidate: candidate.to_owned(),
            median,
            lowest: median * 0.9,
            highest: median * 1.25,
            rounds: 3,
        }
    }

    /// The values of an attribute in elements of a class.
    fn attributes(svg: &str, class: &str, name: &str) -> Vec<f64> {
        let element = format!("class=\"{class}\"");
        let name = format!(" {name}=\"");
        let value = |line: &str| line.split_once(&name)?.1.split_once('"')?.0.parse().ok();
        svg.lines().filter(|line| line.contains(&element)).filter_map(value).collect()
    }

    #[test]
    fn bars_are_as_long_as_their_values_and_values_fit() {
        let figures = [figure("a", LIMIT, 40.0), figure("a", "<ours>", 20.0), figure("b", "<ours>", 0.0)];
        let svg = draw("Gbit/s & more", &figures.each_ref());
        // The first of each class is in the legend.
        let limit = attributes(&svg, "c0", "width")[1];
        let ours = attributes(&svg, "c1", "width");
        assert!((limit / ours[1] - 2.0).abs() < 0.01, "{svg}");
        assert_eq!(ours[2], 1.0);
        let values = attributes(&svg, "value", "x");
        assert_eq!(values.len(), 3);
        assert!(values.iter().all(|x| x + 5.0 * CHARACTER < WIDTH), "{values:?}");
        // Texts of a column do not overlap.
        let mut lines: Vec<f64> = svg
            .lines()
            .filter(|line| line.contains("<text"))
            .filter_map(|line| line.split_once(" y=\"")?.1.split_once('"')?.0.parse().ok())
            .collect();
        lines.dedup();
        assert!(lines.windows(2).all(|pair| pair[1] - pair[0] >= 12.0), "{lines:?}");
        assert!(svg.contains("Gbit/s &amp; more") && svg.contains("&lt;ours&gt;") && !svg.contains("<ours>"));
        assert!(svg.contains("prefers-color-scheme:dark"));
    }

    #[test]
    fn a_legend_that_is_too_wide_continues_on_the_next_line() {
        let (mut one, mut two) = (String::new(), String::new());
        let name = "a program with a rather long name";
        assert_eq!(legend(&mut one, 50.0, &[name]), 50.0);
        assert_eq!(legend(&mut two, 50.0, &[name, name]), 50.0 + NAME);
    }

    #[test]
    fn titles_and_names_of_rows_fit() {
        let fits =
            |text: &str, character: f64| MARGIN + character * text.chars().count() as f64 <= WIDTH - MARGIN;
        for chart in &CHARTS {
            assert!(fits(chart.title, 9.2), "{}", chart.title);
        }
        for row in row::rows().into_iter().chain(row::machine_rows()) {
            assert!(fits(&row.name, CHARACTER), "{}", row.name);
        }
    }

    #[test]
    fn every_chart_has_rows() {
        let names: Vec<String> =
            row::rows().into_iter().chain(row::machine_rows()).map(|row| row.name).collect();
        for chart in &CHARTS {
            let mut figure = figure("", "A", 1.0);
            figure.quantity = chart.quantity;
            let shown = names.iter().filter(|name| {
                figure.row.clone_from(name);
                chart.shows(&figure)
            });
            assert!(shown.count() > 0, "{}", chart.name);
        }
    }

    #[test]
    fn a_row_in_two_files_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("figures.tsv");
        let text = super::super::figures::to_file("", &[figure("tap out, tcp up, MTU 1500", "A", 1.0)]);
        std::fs::write(&file, text).unwrap();
        let (file, folder) = (file.display().to_string(), folder.path().display().to_string());
        assert_eq!(
            write(&folder, std::slice::from_ref(&file)).unwrap(),
            [format!("{folder}/throughput.svg")]
        );
        assert!(write(&folder, &[file.clone(), file]).is_err());
    }
}
