//! What will be done: a pure function of what was asked and what the machine has (SPEC §3).
