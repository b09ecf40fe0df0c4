//! The command: see the library crate.

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    #[cfg(target_arch = "x86_64")]
    return torture::run(&arguments);
    #[cfg(not(target_arch = "x86_64"))]
    anyhow::bail!("torture knows the registers of x86-64 only: {arguments:?} can't be run here");
}
