//! Finds which modules of a crate name other modules. The paths in the code show this, for files and for rooms.
//!
//! A module is a source file. A path is followed to the file that defines the named item, also through `pub use`. A
//! path that names only a module (`use crate::host;`) does not count until an item in this module is named. Code that
//! only tests use does not count. A *room* is a top-level module with all modules below it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::source::{Source, code, is_word_part, next_word, split_tests};

/// Modules by their paths (`forward::side`), each with the modules that it names.
pub(crate) type Graph = BTreeMap<String, BTreeSet<String>>;

/// The crate's root in a [`Graph`].
pub(crate) const ROOT: &str = "lib";

/// For each file of the crate in `src`, the files that it names.
pub(crate) fn files(sources: &[Source], src: &Path) -> Graph {
    let modules = Modules::read(sources, src);
    let named = |(path, module): (&String, &Module)| {
        let targets = module.paths.iter().filter_map(|named| modules.resolve(path, named, 0));
        (shown(path), targets.filter(|target| target != path).map(|target| shown(&target)).collect())
    };
    modules.0.iter().map(named).collect()
}

/// For each room, the rooms that it names, from the graph of the files. The root is left out: it may name all rooms.
pub(crate) fn rooms(files: &Graph) -> Graph {
    let mut rooms = Graph::new();
    for (file, named) in files.iter().filter(|(file, _)| *file != ROOT) {
        let room = room_of(file);
        let named = named.iter().map(|name| room_of(name)).filter(|name| *name != room);
        rooms.entry(room.to_owned()).or_default().extend(named.map(str::to_owned));
    }
    rooms
}

fn room_of(file: &str) -> &str {
    file.split_once("::").map_or(file, |(room, _)| room)
}

fn shown(path: &str) -> String {
    if path.is_empty() { ROOT.to_owned() } else { path.to_owned() }
}

/// The graph of the files, without one kind of edge: a file may name items of its parent files (`super::`), except the
/// crate's root. Such a file is part of its parent, so it may use the parent's private items.
pub(crate) fn without_parents(files: &Graph) -> Graph {
    let is_below =
        |file: &str, parent: &str| file.strip_prefix(parent).is_some_and(|rest| rest.starts_with("::"));
    let others = |file: &str, named: &BTreeSet<String>| {
        named.iter().filter(|name| !is_below(file, name)).cloned().collect()
    };
    files.iter().map(|(file, named)| (file.clone(), others(file, named))).collect()
}

/// A circle in a graph, if there is a circle: each module names the next module, and the last module names the first.
pub(crate) fn circle(graph: &Graph) -> Option<Vec<String>> {
    let mut left: BTreeMap<&String, BTreeSet<&String>> =
        graph.iter().map(|(name, named)| (name, named.iter().collect())).collect();
    // A module that names no other module is removed, until no module is left or each remaining module names another.
    loop {
        let done: Vec<&String> =
            left.iter().filter(|(_, named)| named.is_empty()).map(|(name, _)| *name).collect();
        if done.is_empty() {
            break;
        }
        for name in done {
            left.remove(name);
            left.values_mut().for_each(|named| named.retain(|other| *other != name));
        }
    }
    let mut path = vec![*left.keys().next()?];
    loop {
        let next = *left.get(path.last()?)?.first()?;
        if let Some(at) = path.iter().position(|name| *name == next) {
            return Some(path[at..].iter().map(|name| (*name).clone()).collect());
        }
        path.push(next);
    }
}

/// A path as it is written in the code, segment by segment. The last segment of a glob is `*`.
type Segments = Vec<String>;

#[derive(Default)]
struct Module {
    /// Names that `use` declarations bind, and the paths to which they are bound.
    bindings: BTreeMap<String, Segments>,
    /// All paths in the code.
    paths: Vec<Segments>,
}

/// The modules of a crate. The path of the crate's root is empty.
struct Modules(BTreeMap<String, Module>);

impl Modules {
    fn read(sources: &[Source], src: &Path) -> Self {
        let mut only_tests: Vec<PathBuf> = Vec::new();
        let mut product = Vec::new();
        for source in sources {
            let Ok(below) = source.path.strip_prefix(src) else { continue };
            let code = code(&source.text);
            let (code, tests) = split_tests(&code);
            let folder = folder_of_modules(below);
            only_tests.extend(tests.iter().map(|name| folder.join(name)));
            product.push((below.to_owned(), code));
        }
        let in_product = |path: &Path| {
            !path.starts_with("bin")
                && !only_tests.iter().any(|test| path.with_extension("").starts_with(test))
        };
        let product = product.iter().filter(|(path, _)| in_product(path));
        Self(product.map(|(path, code)| (module_path(path), Module::read(code))).collect())
    }

    /// Returns the module that defines the item that `path` names. `path` is written in the module `from`. Returns
    /// `None` if `path` names a module itself or an item of another crate, or if it is not a path to an item.
    fn resolve(&self, from: &str, path: &[String], depth: usize) -> Option<String> {
        let (first, rest) = path.split_first()?;
        let (mut at, rest) = match first.as_str() {
            "crate" => (String::new(), rest),
            "self" | "super" => (from.to_owned(), path),
            name if self.0.contains_key(&join(from, name)) => (from.to_owned(), path),
            // The path of the bound name is relative to the same module.
            name => return self.follow(from, name, rest, depth),
        };
        for (index, segment) in rest.iter().enumerate() {
            let child = join(&at, segment);
            match segment.as_str() {
                "self" => {}
                "super" => at = parent(&at).to_owned(),
                _ if self.0.contains_key(&child) => at = child,
                name => {
                    let bound = self.0.get(&at).is_some_and(|module| module.bindings.contains_key(name));
                    return if bound { self.follow(&at, name, &rest[index + 1..], depth) } else { Some(at) };
                }
            }
        }
        None
    }

    /// Follows a name that a `use` declaration has bound in the module `at`.
    fn follow(&self, at: &str, name: &str, rest: &[String], depth: usize) -> Option<String> {
        let target = self.0.get(at)?.bindings.get(name).filter(|_| depth < 8)?;
        // `use name;` of another crate would bind the name to itself.
        let path: Segments = target.iter().chain(rest).cloned().collect();
        self.resolve(at, &path, depth + 1)
    }
}

impl Module {
    fn read(code: &str) -> Self {
        let mut module = Self::default();
        let mut rest = code;
        while let Some(at) = next_word(rest, "use") {
            module.paths.extend(paths(&rest[..at]));
            let declaration = &rest[at + "use".len()..];
            let end = declaration.find(';').unwrap_or(declaration.len());
            for (path, alias) in imported(&declaration[..end]) {
                module.bindings.insert(alias, path.clone());
                module.paths.push(path);
            }
            rest = &declaration[end..];
        }
        module.paths.extend(paths(rest));
        module
    }
}

fn join(module: &str, name: &str) -> String {
    if module.is_empty() { name.to_owned() } else { format!("{module}::{name}") }
}

fn parent(module: &str) -> &str {
    module.rsplit_once("::").map_or("", |(parent, _)| parent)
}

/// The path of the module that belongs to a file below `src`.
fn module_path(file: &Path) -> String {
    let mut segments: Vec<&str> = file.iter().filter_map(|part| part.to_str()).collect();
    if let Some("mod.rs" | "lib.rs" | "main.rs") = segments.last().copied() {
        segments.pop();
    }
    segments.join("::").trim_end_matches(".rs").to_owned()
}

/// The folder of the modules that a file declares.
fn folder_of_modules(path: &Path) -> PathBuf {
    match path.file_name().and_then(|name| name.to_str()) {
        Some("mod.rs" | "lib.rs" | "main.rs") => path.parent().unwrap_or(path).to_owned(),
        _ => path.with_extension(""),
    }
}

/// All paths that have two or more segments.
fn paths(code: &str) -> Vec<Segments> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(start) = code[at..].find(is_word_part).map(|offset| at + offset) {
        let (path, end) = path_at(code, start);
        // `pub(in path)` restricts visibility. It does not name an item.
        let is_visibility = code[..start].ends_with("pub(in ");
        let is_relative = !code[..start].ends_with([':', '.']);
        if path.len() > 1 && is_relative && !is_visibility {
            found.push(path);
        }
        at = end;
    }
    found
}

/// Returns the path that starts at `start`, and the position of its end.
fn path_at(code: &str, start: usize) -> (Segments, usize) {
    let mut segments = Vec::new();
    let mut at = start;
    loop {
        let len = code[at..].find(|c| !is_word_part(c)).unwrap_or(code.len() - at);
        segments.push(code[at..at + len].to_owned());
        at += len;
        match code[at..].strip_prefix("::") {
            Some(rest) if rest.starts_with(is_word_part) => at += 2,
            _ => return (segments, at),
        }
    }
}

/// The imports of a `use` declaration without its keyword and semicolon. Each import is a path and the name to which
/// the path is bound.
fn imported(tree: &str) -> Vec<(Segments, String)> {
    let mut found = Vec::new();
    add_imported(&[], tree, &mut found);
    found
}

fn add_imported(prefix: &[String], tree: &str, found: &mut Vec<(Segments, String)>) {
    let tree = tree.trim();
    if let Some((path, list)) = tree.split_once('{') {
        let prefix: Segments = prefix.iter().cloned().chain(segments(path)).collect();
        let list = list.strip_suffix('}').unwrap_or(list);
        members(list).into_iter().for_each(|member| add_imported(&prefix, member, found));
        return;
    }
    let (path, alias) = match tree.split_once(" as ") {
        Some((path, alias)) => (path, Some(alias.trim().to_owned())),
        None => (tree, None),
    };
    let mut path: Segments = prefix.iter().cloned().chain(segments(path)).collect();
    if path.len() > 1 {
        path.pop_if(|last| last == "self");
    }
    if let Some(name) = alias.or_else(|| path.last().cloned()) {
        found.push((path, name));
    }
}

fn segments(path: &str) -> impl Iterator<Item = String> {
    path.split("::").map(str::trim).filter(|segment| !segment.is_empty()).map(str::to_owned)
}

/// The members of a list. Commas outside inner braces separate the members.
fn members(list: &str) -> Vec<&str> {
    let mut members = Vec::new();
    let mut depth = 0;
    let mut start = 0;
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                members.push(&list[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    members.push(&list[start..]);
    members.retain(|member| !member.trim().is_empty());
    members
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> Source {
        Source { path: path.into(), text: text.into() }
    }

    fn named<'a>(graph: &'a Graph, name: &str) -> Vec<&'a str> {
        graph[name].iter().map(String::as_str).collect()
    }

    #[test]
    fn imports_are_found_and_circles_among_them() {
        let mut sources = vec![
            source("x/src/lib.rs", "mod a; mod b; mod c;\n#[cfg(test)]\nmod mock;"),
            source("x/src/a/mod.rs", "mod deep; use crate::{b::{One, Two}, c}; fn f() { c::g() }"),
            source("x/src/a/deep.rs", "use crate::b::One;"),
            source(
                "x/src/b.rs",
                "// crate::a\n#[cfg(test)]\nmod t { use crate::a; }\nfn f() { crate::c::g() }",
            ),
            source("x/src/mock.rs", "use crate::a::X;"),
            source("x/src/c.rs", ""),
        ];
        let rooms_of = |sources: &[Source]| rooms(&files(sources, Path::new("x/src")));
        let graph = rooms_of(&sources);
        assert_eq!(
            (named(&graph, "a"), named(&graph, "b"), named(&graph, "c")),
            (vec!["b", "c"], vec!["c"], vec![])
        );
        assert_eq!(graph.len(), 3);
        assert_eq!(circle(&graph), None);

        sources.push(source("x/src/c/inner.rs", "pub(super) use crate::b::One;"));
        assert_eq!(circle(&rooms_of(&sources)), Some(vec!["b".into(), "c".into()]));
    }

    #[test]
    fn paths_lead_to_the_file_that_defines_the_item() {
        let sources = [
            source("x/src/lib.rs", "mod a; mod b; pub use a::inner::Deep;"),
            source("x/src/a/mod.rs", "pub mod inner; mod other; pub use inner::{Deep, self as alias};"),
            source("x/src/a/inner.rs", "pub(in crate::b) struct Deep; use std::io::{self, Write};"),
            source(
                "x/src/a/other.rs",
                "use super::{Deep as D, Own}; fn f() { super::super::b::g(); io::h() }",
            ),
            source(
                "x/src/b.rs",
                "use crate::a; fn f() { a::alias::g(); crate::Deep::new(); self::f::<Q>() }",
            ),
        ];
        let graph = files(&sources, Path::new("x/src"));
        assert_eq!(named(&graph, "a::other"), ["a", "a::inner", "b"]);
        assert_eq!(named(&graph, "b"), ["a::inner"]);
        assert_eq!(named(&graph, "a"), ["a::inner"]);
        assert_eq!(named(&graph, "lib"), ["a::inner"]);
        assert_eq!(named(&graph, "a::inner"), [""; 0]);
    }

    #[test]
    fn only_parents_may_be_named_back() {
        let mut sources = vec![
            source("x/src/lib.rs", "mod a; mod c; pub const N: u8 = 1;"),
            source("x/src/a.rs", "mod b; fn f() { b::g() } struct P;"),
            source("x/src/a/b.rs", "mod deep; fn g() { super::P; deep::h() }"),
            source("x/src/a/b/deep.rs", "fn h() { super::super::P; super::g() }"),
            source("x/src/c.rs", "fn i() { crate::N }"),
        ];
        let circle_of = |sources: &[Source]| circle(&without_parents(&files(sources, Path::new("x/src"))));
        assert_eq!(circle_of(&sources), None);
        sources[0].text.push_str("use c::i;");
        assert_eq!(circle_of(&sources), Some(vec!["c".into(), "lib".into()]));
        sources[0].text.clear();
        sources.push(source("x/src/a/d.rs", "use super::b::g; fn j() {}"));
        assert_eq!(circle_of(&sources), None);
        sources[3].text.push_str("use crate::a::d::j;");
        assert!(circle_of(&sources).is_some());
    }
}
