//! Control messages: building and reading them.
