//! The guard of the command line and the policy file.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context, ensure};
use engine::guard::{Guard, Mode};
use engine::policy::{Policy, spec};

use crate::config::{self, Config, NameCheck, Target};

/// The guard for the rules of the command line, followed by the rules of the policy file. If there are no rules, the
/// guard can get rules later.
///
/// # Errors
/// The file can't be read, or the rules are invalid.
pub(super) fn guard(config: &Config) -> anyhow::Result<Guard> {
    let mut hash_key = [0; 16];
    getrandom::fill(&mut hash_key).context("can't get random numbers")?;
    let mode = Mode {
        audit: config.policy_audit,
        by_answer_alone: config.policy_names == NameCheck::Address,
        ech: config.policy_ech,
    };
    let mut rules = config.rules.clone();
    let mut default = None;
    if let Some(path) = &config.policy {
        let file = read(path).with_context(|| format!("--policy: can't use {}", path.display()))?;
        rules.extend(file.rules);
        default = file.default;
    } else if rules.is_empty() {
        return Ok(Guard::without_rules(mode, hash_key));
    }
    let policy = Policy::new(rules, default).context("--allow, --deny, --policy")?;
    policy.rules().iter().for_each(|rule| log::debug!("Rule: {rule}"));
    log::debug!("Rule: default {}", policy.default_action());
    Ok(Guard::new(policy, mode, hash_key))
}

/// Warns if the command that pasta spawns could replace the rules: it sees the path of the control socket, and runs as
/// the socket's owner.
pub(super) fn check_control_socket(config: &Config, guard: &Guard) {
    if let (Some(path), Target::Spawn { .. }, true) =
        (&config.conf_path, &config.pasta.target, guard.policy().is_some())
        && config.mode == config::Mode::Pasta
    {
        log::warn!(
            "--conf-path: the command sees the socket {0} and can replace its own rules by it; instead, connect pasta to \
             a namespace (--netns) whose processes don't see {0}",
            path.display()
        );
    }
}

fn read(path: &Path) -> anyhow::Result<spec::File> {
    let mut text = Vec::new();
    File::open(path)?.take(spec::MAX_FILE_LEN as u64 + 1).read_to_end(&mut text)?;
    ensure!(text.len() <= spec::MAX_FILE_LEN, "it has more than {} bytes", spec::MAX_FILE_LEN);
    Ok(spec::parse_file(&String::from_utf8(text).context("it is not UTF-8")?)?)
}
