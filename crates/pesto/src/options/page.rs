//! The manual page, `packaging/man/pesto.1`, has each option and valid examples.

use std::ffi::OsString;

use super::{Invocation, all, parse};

fn page() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../packaging/man/pesto.1");
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn the_page_has_exactly_the_options() {
    let page = page();
    // The names of each entry, as in: .It Fl A , Fl \-add
    let entries: Vec<Vec<&str>> = page
        .lines()
        .filter_map(|line| line.strip_prefix(".It Fl "))
        .map(|names| {
            let words = names.split(' ');
            words.filter(|word| !["Fl", ",", "Ar", "table", "spec", "seconds"].contains(word)).collect()
        })
        .collect();
    let options: Vec<Vec<String>> = all()
        .map(|opt| {
            let long = format!("\\-{}", opt.long.replace('-', "\\-"));
            opt.short.map(String::from).into_iter().chain([long]).collect()
        })
        .collect();
    assert_eq!(entries, options);
}

#[test]
fn each_example_is_valid() {
    let page = page();
    let examples: Vec<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix(".Dl ").unwrap_or(line).strip_prefix("pesto "))
        .collect();
    for opt in all() {
        let short = opt.short.map(|letter| format!("-{letter}"));
        let long = format!("--{}", opt.long);
        let mentions =
            |line: &&str| line.split(' ').any(|word| word == long || Some(word) == short.as_deref());
        assert!(examples.iter().any(mentions), "{long}");
    }
    for line in examples {
        let words = line.split(' ').take_while(|word| *word != "|");
        let parsed: Result<Invocation, String> =
            parse(["pesto"].into_iter().chain(words).map(OsString::from));
        assert!(parsed.is_ok(), "{line}: {parsed:?}");
    }
}
