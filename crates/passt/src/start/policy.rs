//! The guard of the command line and the policy file.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context, ensure};
use engine::guard::{Guard, Mode};
use engine::policy::{Policy, spec};

use crate::config::{Config, NameCheck};

/// Maximum length of a policy file, in bytes.
const MAX_FILE_LEN: u64 = 16 << 20;

/// The guard for the rules of the command line, followed by the rules of the policy file.
///
/// # Errors
/// The file can't be read, or the rules are invalid.
pub(super) fn guard(config: &Config) -> anyhow::Result<Guard> {
    let mut rules = config.rules.clone();
    let mut default = None;
    if let Some(path) = &config.policy {
        let file = read(path).with_context(|| format!("--policy: can't use {}", path.display()))?;
        rules.extend(file.rules);
        default = file.default;
    } else if rules.is_empty() {
        return Ok(Guard::default());
    }
    let policy = Policy::new(rules, default).context("--allow, --deny, --policy")?;
    policy.rules().iter().for_each(|rule| log::debug!("Rule: {rule}"));
    log::debug!("Rule: default {}", policy.default_action());
    let mut hash_key = [0; 16];
    getrandom::fill(&mut hash_key).context("can't get random numbers")?;
    let mode = Mode {
        audit: config.policy_audit,
        by_answer_alone: config.policy_names == NameCheck::Address,
        ech: config.policy_ech,
    };
    Ok(Guard::new(policy, mode, hash_key))
}

fn read(path: &Path) -> anyhow::Result<spec::File> {
    let mut text = Vec::new();
    File::open(path)?.take(MAX_FILE_LEN + 1).read_to_end(&mut text)?;
    ensure!(text.len() as u64 <= MAX_FILE_LEN, "it has more than {MAX_FILE_LEN} bytes");
    Ok(spec::parse_file(&String::from_utf8(text).context("it is not UTF-8")?)?)
}
