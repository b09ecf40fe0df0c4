//! The command line: one OPTIONS table, from which parsing, help and completions follow (SPEC §2).
