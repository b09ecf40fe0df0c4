//! The long texts about options, `docs/options/*.md`. The programs do not contain them.
//!
//! A section has the name of an option as its heading. It consists of paragraphs, and of examples, which are indented by
//! four blanks. Backquotes enclose what is typed. A paragraph that begins with "In `pasta`" is not in the page of `passt`.

use super::escape;

/// The options of `passt` and `pasta`.
pub(super) const PASST: &str = include_str!("../../../docs/options/passt.md");
/// The options of `slirp4netns`.
pub(super) const SLIRP4NETNS: &str = include_str!("../../../docs/options/slirp4netns.md");

const INDENTATION: &str = "    ";
/// Maximum length of a line of text, before markup.
const LINE: usize = 66;

/// The text about one option.
#[derive(Clone, Copy)]
pub(super) struct Section {
    /// The option's preferred long name, without dashes.
    pub(super) name: &'static str,
    body: &'static str,
}

/// The sections of a document.
pub(super) fn sections(document: &'static str) -> impl Iterator<Item = Section> {
    document.split("\n## --").skip(1).map(|text| {
        let (name, body) = text.split_once('\n').unwrap_or((text, ""));
        Section { name, body }
    })
}

impl Section {
    /// The text for the page of `program`, in the format of man(7).
    pub(super) fn format(self, program: &str) -> String {
        let mut text = String::new();
        for block in self.body.split("\n\n").map(|block| block.trim_matches('\n')) {
            if program == "passt" && block.starts_with("In `pasta`") {
                continue;
            }
            if block.starts_with(INDENTATION) {
                let lines: String =
                    examples_in(block, program).map(|line| format!("{}\n", escape(line))).collect();
                if !lines.is_empty() {
                    text += &format!(".IP\n.EX\n{lines}.EE\n");
                }
            } else if !block.is_empty() {
                text += &format!(".IP\n{}", prose(block));
            }
        }
        text
    }

    /// The examples that start `program`.
    #[cfg(test)]
    pub(super) fn examples(self, program: &str) -> impl Iterator<Item = &'static str> {
        let lines = self.body.lines().filter(|line| line.starts_with(INDENTATION));
        lines.map(str::trim).filter(move |line| line.split(' ').next() == Some(program))
    }
}

/// The lines of an example, without those that start the other one of `passt` and `pasta`.
fn examples_in<'a>(block: &'a str, program: &str) -> impl Iterator<Item = &'a str> {
    let other = match program {
        "passt" => "pasta",
        _ => "passt",
    };
    let lines = block.lines().map(|line| line.strip_prefix(INDENTATION).unwrap_or(line));
    lines.filter(move |line| line.split(' ').next() != Some(other))
}

/// Escapes a paragraph, and makes bold what is between backquotes. A sentence ends at the end of a line, so that
/// formatters recognise it.
fn prose(block: &str) -> String {
    let mut lines = vec![String::new()];
    for word in block.split_whitespace() {
        let line = lines.last().map_or("", String::as_str);
        if line.ends_with('.') || line.len() + word.len() > LINE {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            *line += if line.is_empty() { "" } else { " " };
            *line += word;
        }
    }
    let mut bold = false;
    let lines: String = lines.iter().map(|line| format!("{}\n", escape(line))).collect();
    let (mut formatted, mut parts) = (String::new(), lines.split('`'));
    formatted += parts.next().unwrap_or_default();
    for part in parts {
        bold = !bold;
        formatted += if bold { "\\fB" } else { "\\fR" };
        formatted += part;
    }
    formatted
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::ffi::OsString;

    use passt::cli::{self, options::Opt};

    use super::*;
    use crate::man::{self, Program, options_of};

    /// Maximum length of an example, which a page of 80 columns indents by 14.
    const EXAMPLE: usize = 66;

    const PROGRAMS: [(Program, &str); 3] =
        [(man::PASTA, "pasta"), (man::PASST, "passt"), (man::SLIRP4NETNS, "slirp4netns")];

    /// The words of a command line. Single quotes enclose whole words.
    fn words(line: &str) -> Vec<OsString> {
        let mut words = Vec::new();
        for (index, part) in line.split('\'').enumerate() {
            if index % 2 == 1 {
                words.push(part.into());
            } else {
                words.extend(part.split_whitespace().map(OsString::from));
            }
        }
        words
    }

    fn mentions(line: &str, opt: &Opt) -> bool {
        words(line).iter().filter_map(|word| word.to_str()).any(|word| {
            let long = word.strip_prefix("--").and_then(|word| word.split('=').next());
            opt.long.iter().any(|name| long == Some(*name))
                || opt.short.is_some_and(|letter| word == format!("-{letter}"))
        })
    }

    #[test]
    fn each_option_has_one_section_and_each_section_an_option() {
        for document in [PASST, SLIRP4NETNS] {
            let names: Vec<&str> = sections(document).map(|section| section.name).collect();
            let of_table: BTreeSet<&str> = PROGRAMS
                .into_iter()
                .filter(|(program, _)| program.texts == document)
                .flat_map(|(program, _)| options_of(program).map(|opt| opt.long[0]))
                .collect();
            assert_eq!(names.iter().copied().collect::<BTreeSet<_>>(), of_table);
            assert_eq!(names.len(), of_table.len(), "a section is there twice");
        }
    }

    #[test]
    fn each_option_has_an_example_for_each_program() {
        for (program, name) in PROGRAMS {
            for opt in options_of(program) {
                let section = sections(program.texts).find(|section| section.name == opt.long[0]).unwrap();
                assert!(section.examples(name).any(|line| mentions(line, opt)), "{name} --{}", opt.long[0]);
            }
        }
    }

    #[test]
    fn the_program_accepts_each_example() {
        for (program, name) in PROGRAMS {
            for line in sections(program.texts).flat_map(|section| section.examples(name)) {
                if let Err(error) = cli::parse(words(line), || 32768..=60999) {
                    panic!("{line}: {error}");
                }
            }
        }
    }

    #[test]
    fn each_option_that_a_text_mentions_exists() {
        for document in [PASST, SLIRP4NETNS] {
            let of_document = PROGRAMS.into_iter().filter(|(program, _)| program.texts == document);
            let options: Vec<&Opt> = of_document.flat_map(|(program, _)| options_of(program)).collect();
            for name in
                document.split("`--").skip(1).filter_map(|text| text.split(['`', ' ', '=', '\n']).next())
            {
                assert!(options.iter().any(|opt| opt.long.contains(&name)), "--{name}");
            }
        }
    }

    /// A line that starts no known program would be in no page, or untested.
    #[test]
    fn each_example_starts_the_program() {
        for document in [PASST, SLIRP4NETNS] {
            for line in document.lines().filter(|line| line.starts_with(INDENTATION)) {
                let program = line.trim().split(' ').next();
                assert!(PROGRAMS.iter().any(|(_, name)| program == Some(name)), "{line}");
                assert!(line.len() <= EXAMPLE + INDENTATION.len(), "wider than a terminal: {line}");
            }
        }
    }

    #[test]
    fn sections_become_paragraphs_and_examples() {
        let section =
            sections("# x\n\n## --one\n\nUse `-a\nb`.\n\n    pasta -a\n    passt -a\n\n## --two\n").next();
        let section = section.unwrap();
        assert_eq!(section.name, "one");
        assert_eq!(section.format("pasta"), ".IP\nUse \\fB\\-a b\\fR.\n.IP\n.EX\npasta \\-a\n.EE\n");
        assert_eq!(section.examples("passt").collect::<Vec<_>>(), ["passt -a"]);
        let section = sections("\n## --one\n\nIn `pasta`, yes.\n\n.no\n").next().unwrap();
        assert_eq!(section.format("passt"), ".IP\n\\&.no\n");
        assert_eq!(section.format("pasta"), ".IP\nIn \\fBpasta\\fR, yes.\n.IP\n\\&.no\n");
    }
}
