//! Domain names of rules, and their order, which puts each name before the names below it.

use alloc::boxed::Box;
use core::{cmp::Ordering, fmt};

use idna::uts46::{AsciiDenyList, DnsLength, Hyphens, Uts46};
use wire::domain::MAX_DOTTED_LEN;

/// ASCII characters that are not allowed in the name of a rule. A host name has letters, digits, hyphens and dots.
/// Names of services also have underscores (RFC 8552).
const DENIED: AsciiDenyList = AsciiDenyList::new(true, "!\"#$%&'()*+,/:;<=>?@[\\]^`{|}~");

/// A domain name in A-labels and lower case, without a trailing dot.
///
/// The order compares labels from the last to the first, so that a name is followed by the names below it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Name(Box<str>);

impl Name {
    /// Reads a name. U-labels become A-labels (UTS #46, non-transitional). One trailing dot is allowed. Returns none
    /// if the text is not a domain name, or if it ends in a number, since only addresses end in a number. A text that begins
    /// with a hyphen is no name (RFC 5891 §4.2.3.1), but an option that lacks its argument.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        // A label in Unicode has at most four bytes for each byte of its A-label.
        if text.len() > 4 * MAX_DOTTED_LEN || text.starts_with('-') {
            return None;
        }
        let text = without_dot(text);
        let ascii = Uts46::new().to_ascii(text.as_bytes(), DENIED, Hyphens::Allow, DnsLength::Verify).ok()?;
        let last = ascii.rsplit('.').next()?;
        let number = last.bytes().all(|b| b.is_ascii_digit());
        (!number && ascii.len() <= MAX_DOTTED_LEN).then(|| Self(ascii.as_ref().into()))
    }

    /// The name in lower case, without a trailing dot.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether `name` is this name. Case and a trailing dot do not matter.
    #[must_use]
    pub fn is(&self, name: &str) -> bool {
        same(name, &self.0)
    }

    /// Whether `name` is below this name. A name is not below itself. Case and a trailing dot do not matter.
    #[must_use]
    pub fn is_above(&self, name: &str) -> bool {
        below(without_dot(name), &self.0)
    }

    /// Whether this name is below `name`.
    pub(super) fn is_below(&self, name: &str) -> bool {
        let name = without_dot(name);
        name.is_empty() || below(&self.0, name)
    }

    /// Compares this name with `name`. Case does not matter.
    pub(super) fn order(&self, name: &str) -> Ordering {
        order(&self.0, without_dot(name))
    }
}

impl Ord for Name {
    fn cmp(&self, other: &Self) -> Ordering {
        order(&self.0, &other.0)
    }
}

impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Whether two names are the same. Case and a trailing dot do not matter.
pub(super) fn same(a: &str, b: &str) -> bool {
    without_dot(a).eq_ignore_ascii_case(without_dot(b))
}

fn without_dot(name: &str) -> &str {
    name.strip_suffix('.').unwrap_or(name)
}

fn below(name: &str, above: &str) -> bool {
    let (name, above) = (name.as_bytes(), above.as_bytes());
    let Some(dot) = name.len().checked_sub(above.len() + 1) else { return false };
    name[dot] == b'.' && name[dot + 1..].eq_ignore_ascii_case(above)
}

/// Compares from the end. The dot is the lowest byte, since `a-b.example` must not come between `b.example` and the
/// names below `b.example`.
fn order(a: &str, b: &str) -> Ordering {
    let key = |b: u8| if b == b'.' { 0 } else { b.to_ascii_lowercase() };
    for (a, b) in a.bytes().rev().zip(b.bytes().rev()) {
        // Most bytes are equal, since the compared names often have the same parent domains.
        if a != b && key(a) != key(b) {
            return key(a).cmp(&key(b));
        }
    }
    a.len().cmp(&b.len())
}
