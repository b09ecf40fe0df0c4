//! Shows, replaces and suggests rules about the destinations of a guest (docs/guard.md).

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use engine::policy::spec::{self, MAX_FILE_LEN};

use crate::options::{Policy, Target};
use crate::output::{print, report};
use crate::server::Server;
use crate::suggest;

/// Runs a command.
///
/// # Errors
/// A message for the user.
pub(super) fn run(command: &Policy) -> Result<(), String> {
    match command {
        Policy::Show(target) => print(&connect(target)?.policy()?),
        Policy::Replace { file, target } => {
            let text = read(file)?;
            let report = connect(target)?.replace_policy(&text).map_err(|error| about(file, &error))?;
            print(&format!("{report}\n"))
        }
        Policy::Suggest(log) => {
            let suggestions = open(log).and_then(|log| suggest::read(BufReader::new(log)));
            let suggestions = suggestions.map_err(|error| about(log, &error))?;
            let skipped = suggestions.skipped();
            print(&suggestions.text())?;
            if skipped > 0 {
                report(&about(log, &format!("lines that have no refusal, skipped: {skipped}")));
            }
            Ok(())
        }
    }
}

fn connect(target: &Target) -> Result<Server, String> {
    Server::connect(target.path.as_deref(), target.debug)
}

/// Reads a policy file, and checks it. The server checks it again.
fn read(path: &Path) -> Result<String, String> {
    let mut bytes = Vec::new();
    let read = open(path).and_then(|file| file.take(MAX_FILE_LEN as u64 + 1).read_to_end(&mut bytes));
    read.map_err(|error| about(path, &error))?;
    if bytes.len() > MAX_FILE_LEN {
        return Err(about(path, &format!("it has more than {MAX_FILE_LEN} bytes")));
    }
    let text = String::from_utf8(bytes).map_err(|_| about(path, &"it is not UTF-8"))?;
    let file = spec::parse_file(&text).map_err(|error| about(path, &error))?;
    engine::policy::Policy::new(file.rules, file.default).map_err(|error| about(path, &error))?;
    Ok(text)
}

fn open(path: &Path) -> io::Result<Box<dyn Read>> {
    if path == Path::new("-") { Ok(Box::new(io::stdin())) } else { Ok(Box::new(File::open(path)?)) }
}

fn about(path: &Path, error: &dyn std::fmt::Display) -> String {
    if path == Path::new("-") {
        format!("standard input: {error}")
    } else {
        format!("{}: {error}", path.display())
    }
}
