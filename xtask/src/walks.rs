//! The pages in docs/walks explain the code and name functions and types. Each name must be defined in the file to
//! which its link leads.

use std::fs;

use crate::house::root;
use crate::source::code;

/// Pairs of a name and the file to which its link leads: ``[`Tcp::end`](../../crates/engine/src/tcp/mod.rs)``.
fn links(page: &str) -> impl Iterator<Item = (&str, &str)> {
    page.split("[`").skip(1).filter_map(|rest| {
        let (name, rest) = rest.split_once("`](")?;
        Some((name, rest.split_once(')')?.0))
    })
}

/// Whether Rust source defines the last part of a path such as `Tcp::end`, or is the file of the module with this name.
fn defines(file: &str, source: &str, path: &str) -> bool {
    let name = path.rsplit("::").next().unwrap_or(path);
    let code = code(source);
    let defined = ["fn", "struct", "enum", "trait", "type", "const"].iter().any(|kind| {
        let item = format!("{kind} {name}");
        code.match_indices(&item)
            .any(|(at, _)| !code[at + item.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '_'))
    });
    let variant = path.contains("::") && code.split(|c: char| !c.is_alphanumeric()).any(|word| word == name);
    defined || variant || file.ends_with(&format!("{name}.rs")) || file.ends_with(&format!("{name}/mod.rs"))
}

#[test]
fn walks_lead_where_they_say() {
    let folder = root().join("docs/walks");
    let mut steps = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let page = fs::read_to_string(&path).unwrap();
        for (name, target) in links(&page) {
            let source = fs::read_to_string(folder.join(target));
            let source = source.unwrap_or_else(|error| panic!("{target} in {}: {error}", path.display()));
            assert!(defines(target, &source, name), "{name} is not in {target}, see {}", path.display());
            steps += 1;
        }
    }
    assert!(steps > 50, "only {steps} steps");
}

#[test]
fn a_name_that_is_not_there_is_noticed() {
    let source = "fn on_segment() {}\n// fn gone()\npub enum Turn { Idle }";
    for path in ["Tcp::on_segment", "on_segment", "Turn", "Turn::Idle"] {
        assert!(defines("a.rs", source, path), "{path}");
    }
    for path in ["gone", "on_seg", "Tcp::gone", "Idle"] {
        assert!(!defines("a.rs", source, path), "{path}");
    }
    assert!(defines("cli/options/mapping.rs", "", "mapping"));
}
