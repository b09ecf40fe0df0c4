//! The text of the rules in force, as a policy file. It is written in parts, since it may be long.

use engine::guard::Guard;
use engine::policy::Reason;

use control::policy;

/// The part of the text that was not written yet.
#[derive(Debug)]
pub(super) struct Listing {
    /// Index of the next line.
    next: usize,
}

impl Listing {
    /// Begins a reply. Also returns its first bytes.
    pub(super) fn begin(guard: &Guard) -> (Self, Vec<u8>) {
        let len = (0..count(guard)).map(|index| line(guard, index).len() + 1).sum();
        (Self { next: 0 }, policy::reply_head(len).to_vec())
    }

    /// Adds lines to `output` until it has at least `len` bytes, or the text is complete.
    pub(super) fn fill(&mut self, guard: &Guard, output: &mut Vec<u8>, len: usize) {
        while output.len() < len && !self.is_over(guard) {
            output.extend_from_slice(line(guard, self.next).as_bytes());
            output.push(b'\n');
            self.next += 1;
        }
    }

    /// Whether the text is complete.
    pub(super) fn is_over(&self, guard: &Guard) -> bool {
        self.next >= count(guard)
    }
}

/// The number of lines: a comment, the rules, and the default.
fn count(guard: &Guard) -> usize {
    guard.policy().map_or(0, |policy| policy.rules().len()) + 2
}

fn line(guard: &Guard, index: usize) -> &str {
    match (index, guard.policy()) {
        (0, None) => "# There are no rules.",
        (0, Some(_)) if guard.audits() => {
            "# --policy-audit: nothing is refused, and the log has what would be."
        }
        (0, Some(_)) => "# The rules in force.",
        (_, None) => "default allow",
        (index, Some(policy)) if index <= policy.rules().len() => policy.text(Reason::Rule(index - 1)),
        (_, Some(policy)) => policy.text(Reason::Default),
    }
}

#[cfg(test)]
mod tests {
    use engine::guard::Mode;
    use engine::policy::{Policy, spec};

    use super::*;

    fn guard(rules: &str, audit: bool) -> Guard {
        let file = spec::parse_file(rules).unwrap();
        let policy = Policy::new(file.rules, file.default).unwrap();
        Guard::new(policy, Mode { audit, ..Mode::default() }, [1; 16])
    }

    /// The text, written in parts of about `len` bytes.
    fn text(guard: &Guard, len: usize) -> String {
        let (mut listing, head) = Listing::begin(guard);
        let (mut all, mut parts) = (head, Vec::new());
        while !listing.is_over(guard) {
            listing.fill(guard, &mut parts, len);
            all.append(&mut parts);
        }
        match policy::read_reply(&all[..]) {
            Ok(control::reply::Reply::Applied(text)) => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_text_is_a_policy_file_with_the_same_rules() {
        let rules = "deny metadata\nallow tcp/[2001:db8::10]:443 # the registry\n\ndeny host\n";
        for (audit, first) in [(false, "# The rules"), (true, "# --policy-audit: ")] {
            for len in [1, 40, 10_000] {
                let text = text(&guard(rules, audit), len);
                assert!(text.starts_with(first), "{text}");
                let lines: Vec<&str> = text.lines().skip(1).collect();
                assert_eq!(
                    lines,
                    ["deny metadata", "allow tcp/[2001:db8::10]:443", "deny host", "default deny"]
                );
            }
        }
        assert!(text(&guard("", false), 1).ends_with("\ndefault allow\n"));
        let free = Guard::without_rules(Mode::default(), [1; 16]);
        assert_eq!(text(&free, 1), "# There are no rules.\ndefault allow\n");
    }
}
