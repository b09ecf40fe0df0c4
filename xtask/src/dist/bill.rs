//! The bill of materials of the programs (SBOM), in the format of CycloneDX 1.6.

use anyhow::Context;
use serde_json::{Value, json};

use super::contents::{Id, Library, Origin};
use super::programs::PROGRAMS;
use super::{VERSION, tool};

/// The name of the file.
pub(super) const NAME: &str = "passt-rs.cdx.json";

/// The bill for a target, whose time is `epoch`.
///
/// # Errors
/// date(1) fails.
pub(super) fn of(libraries: &[Library], target: &str, epoch: u64) -> anyhow::Result<String> {
    let time = tool::date(epoch, "+%Y-%m-%dT%H:%M:%SZ")?;
    // Which of our programs uses which library is not listed: they are released together.
    let all: Vec<String> = libraries.iter().map(|library| reference(&library.id)).collect();
    let mut dependencies = vec![json!({"ref": "passt-rs", "dependsOn": all})];
    for library in libraries {
        let uses: Vec<String> = library.uses.iter().map(reference).collect();
        dependencies.push(json!({"ref": reference(&library.id), "dependsOn": uses}));
    }
    let bill = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": time,
            "component": {
                "type": "application",
                "bom-ref": "passt-rs",
                "name": "passt-rs",
                "version": VERSION,
                "description": format!("the programs {} for {target}", PROGRAMS.join(", ")),
                "licenses": [{"expression": "Apache-2.0 OR MIT"}],
            },
        },
        "components": libraries.iter().map(component).collect::<Vec<Value>>(),
        "dependencies": dependencies,
    });
    Ok(serde_json::to_string_pretty(&bill).context("can't write the bill of materials")? + "\n")
}

fn component(library: &Library) -> Value {
    let (name, version) = &library.id;
    let mut component = json!({
        "type": "library",
        "bom-ref": reference(&library.id),
        "name": name,
        "version": version,
        "licenses": [{"expression": library.licence}],
    });
    if let Origin::Registry { checksum, .. } = &library.origin {
        component["purl"] = format!("pkg:cargo/{name}@{version}").into();
        component["hashes"] = json!([{"alg": "SHA-256", "content": checksum}]);
    }
    component
}

fn reference((name, version): &Id) -> String {
    format!("{name}@{version}")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Each library is a component and has an entry among the dependencies; what it uses is there, too.
    #[test]
    fn the_bill_lists_each_library() {
        let id = |name: &str| (name.to_owned(), "1.0.0".to_owned());
        let library = |name: &str, uses: &[&str]| Library {
            id: id(name),
            licence: "MIT".into(),
            authors: Vec::new(),
            origin: Origin::Registry { folder: "/nowhere".into(), checksum: "0f".into() },
            uses: uses.iter().map(|name| id(name)).collect::<BTreeSet<_>>(),
        };
        let bill = of(&[library("a", &["b"]), library("b", &[])], "t", 1_000_000_000).unwrap();
        let bill: Value = serde_json::from_str(&bill).unwrap();
        assert_eq!(bill["metadata"]["timestamp"], "2001-09-09T01:46:40Z");
        assert_eq!(bill["components"][0]["purl"], "pkg:cargo/a@1.0.0");
        assert_eq!(bill["components"][0]["hashes"][0]["content"], "0f");
        assert_eq!(
            bill["dependencies"],
            json!([
                {"ref": "passt-rs", "dependsOn": ["a@1.0.0", "b@1.0.0"]},
                {"ref": "a@1.0.0", "dependsOn": ["b@1.0.0"]},
                {"ref": "b@1.0.0", "dependsOn": []},
            ])
        );
    }
}
