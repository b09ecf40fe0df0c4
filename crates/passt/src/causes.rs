//! The text of an error with its causes.

use std::fmt::{self, Display};

/// Shows an error and its causes, from the last effect to the first cause. The errors of some libraries have their cause in
/// their own text: it is shown once.
pub(crate) struct Causes<'a>(pub(crate) &'a anyhow::Error);

impl Display for Causes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut last = String::new();
        for cause in self.0.chain() {
            let text = cause.to_string();
            let part = if last.is_empty() { text } else { format!(": {text}") };
            if !last.ends_with(&part) {
                f.write_str(&part)?;
            }
            last = part;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn no_cause_is_shown_twice() {
        let denied = std::io::Error::from_raw_os_error(1);
        let error = Err::<(), _>(seccompiler::Error::Prctl(denied)).context("no filter").unwrap_err();
        assert_eq!(
            Causes(&error).to_string(),
            "no filter: Error calling `prctl`: Operation not permitted (os error 1)"
        );
        let error = anyhow::anyhow!("cause").context("effect").context("later effect");
        assert_eq!(Causes(&error).to_string(), "later effect: effect: cause");
    }
}
