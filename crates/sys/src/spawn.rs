//! Processes: fork, clone with namespaces, exec preparation.
