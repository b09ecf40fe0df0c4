//! The life of the process as one-way doors: each privilege can only fall (HOUSE rules in ARCHITECTURE.md).
