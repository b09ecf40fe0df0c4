//! The programs under test.

/// A program under test, with its path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    /// A program with the command line of pasta.
    Pasta(String),
    /// A program with the command line of passt.
    Passt(String),
    Slirp4netns(String),
}

impl Program {
    /// The kind of a program by the name of its file.
    pub(crate) fn new(path: &str) -> Self {
        let kind = match path.rsplit('/').next() {
            Some(name) if name.starts_with("slirp4netns") => Self::Slirp4netns,
            Some(name) if name.starts_with("passt") => Self::Passt,
            _ => Self::Pasta,
        };
        kind(path.to_owned())
    }

    pub(crate) fn path(&self) -> &str {
        match self {
            Self::Pasta(path) | Self::Passt(path) | Self::Slirp4netns(path) => path,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_of_a_program() {
        assert_eq!(Program::new("/usr/bin/pasta"), Program::Pasta("/usr/bin/pasta".into()));
        assert_eq!(Program::new("/usr/bin/slirp4netns"), Program::Slirp4netns("/usr/bin/slirp4netns".into()));
        assert_eq!(Program::new("passt.avx2"), Program::Passt("passt.avx2".into()));
        assert_eq!(Program::new("passt/pasta"), Program::Pasta("passt/pasta".into()));
    }
}
