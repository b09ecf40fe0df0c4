//! The version that the program shows.

/// The version. With `cargo xtask dist` and `install`, it names the commit and its date.
pub(crate) const VERSION: &str = match option_env!("PASST_RS_VERSION") {
    Some(version) => version,
    None => env!("CARGO_PKG_VERSION"),
};
