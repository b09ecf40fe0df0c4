//! Socket options and queries that rustix lacks.
