//! Builds the programs of a package: optimised, without paths of this machine, with their debug symbols apart.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use super::contents::{self, Library};
use super::{order, tool, version};
use crate::house::root;

/// The programs. Each is one file.
pub(super) const PROGRAMS: [&str; 3] = ["passt", "pesto", "qrap"];
/// Maximum size of a program without its symbols, in bytes.
const MAX_SIZE: u64 = 3 << 20;

/// The programs of one target.
pub(super) struct Programs {
    /// The target, as Rust names it.
    pub(super) target: String,
    /// The folder of the programs.
    pub(super) stripped: PathBuf,
    /// The folder of the debug symbols: a file `PROGRAM.debug` for each program.
    pub(super) symbols: PathBuf,
    /// The libraries in them.
    pub(super) libraries: Vec<Library>,
}

/// The target of this machine.
///
/// # Errors
/// There is no Rust compiler.
pub(crate) fn native_target() -> anyhow::Result<String> {
    let version = tool::output(tool::rustc().arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc -vV does not name its host")?.to_owned())
}

/// Checks that programs can be built for a target.
///
/// # Errors
/// The target's standard library or objcopy(1) is missing.
pub(super) fn need_target(target: &str) -> anyhow::Result<()> {
    if !sysroot()?.join("lib/rustlib").join(target).join("lib").is_dir() {
        bail!(
            "the Rust target {target} is not installed (rustup target add {target}); without it: --only deb"
        );
    }
    let package = match foreign(target) {
        None => "binutils".to_owned(),
        Some(architecture) => format!("binutils-{}-linux-gnu", architecture.replace('_', "-")),
    };
    tool::need(&[&objcopy(target)], &format!("apt-get install {package}"))
}

/// The architecture of a target, if this machine has another one and so can't run the programs.
fn foreign(target: &str) -> Option<&str> {
    let architecture = target.split('-').next()?;
    (architecture != std::env::consts::ARCH).then_some(architecture)
}

fn objcopy(target: &str) -> String {
    foreign(target).map_or("objcopy".into(), |architecture| format!("{architecture}-linux-gnu-objcopy"))
}

/// Compiles the programs for a target, in a folder of their own below `target/`. Returns the folder of the target, in
/// which `release` has the programs with their symbols, and the messages of cargo.
///
/// # Errors
/// The build fails.
pub(crate) fn compile(target: &str) -> anyhow::Result<(PathBuf, String)> {
    let folder = root().join("target/dist-build");
    let mut cargo = tool::cargo();
    cargo.args(["build", "--release", "--locked", "--target", target, "--target-dir"]).arg(&folder);
    cargo.args(PROGRAMS.iter().flat_map(|name| ["--bin", name]));
    cargo
        .env("CARGO_ENCODED_RUSTFLAGS", flags(&folder)?)
        .env("CARGO_INCREMENTAL", "0")
        .env("PASST_RS_VERSION", version::full(&root())?)
        .env_remove("RUSTFLAGS");
    if target.ends_with("-musl") {
        // The compiler brings this linker, as it brings the C library of these targets. GNU ld fills the file up to a multiple of
        // the page size before each segment.
        cargo.env(format!("CARGO_TARGET_{}_LINKER", target.to_uppercase().replace('-', "_")), "rust-lld");
    }
    let messages = tool::output(cargo.arg("--message-format=json-render-diagnostics"))?;
    Ok((folder.join(target), messages))
}

/// Builds the programs for a target, and puts them into `work`.
///
/// # Errors
/// A build fails, or a program is larger than it may be.
pub(super) fn build(target: &str, work: &Path) -> anyhow::Result<Programs> {
    let (folder, messages) = compile(target)?;
    let built = folder.join("release");
    order::check(&built.join("passt"))?;
    let libraries = contents::libraries(target)?;
    contents::check(&libraries, &messages, &folder)?;

    let programs = Programs {
        target: target.to_owned(),
        libraries,
        stripped: work.join(target).join("programs"),
        symbols: work.join(target).join("symbols"),
    };
    for folder in [&programs.stripped, &programs.symbols] {
        std::fs::create_dir_all(folder).with_context(|| format!("can't create {}", folder.display()))?;
    }
    for name in PROGRAMS {
        programs.strip(&built.join(name), name)?;
    }
    Ok(programs)
}

impl Programs {
    /// Puts a program and its symbols into their folders. The program names the file of its symbols, so debuggers find it.
    fn strip(&self, built: &Path, name: &str) -> anyhow::Result<()> {
        let (program, symbols) = (self.stripped.join(name), self.symbols.join(format!("{name}.debug")));
        let objcopy = objcopy(&self.target);
        tool::run(Command::new(&objcopy).arg("--only-keep-debug").arg(built).arg(&symbols))?;
        let mut link = OsString::from("--add-gnu-debuglink=");
        link.push(&symbols);
        tool::run(Command::new(&objcopy).arg("--strip-all").arg(link).arg(built).arg(&program))?;
        let size = program.metadata().with_context(|| format!("no {}", program.display()))?.len();
        println!("{} {name}: {size} bytes", self.target);
        if size > MAX_SIZE {
            bail!("{name} ({}) has {size} bytes, more than its budget of {MAX_SIZE}", self.target);
        }
        Ok(())
    }
}

/// The compiler's flags for a build in `folder`, separated as cargo expects them. Paths of this machine get names that are the
/// same everywhere.
fn flags(folder: &Path) -> anyhow::Result<OsString> {
    let cargo_home = match std::env::var_os("CARGO_HOME") {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from(std::env::var_os("HOME").context("neither CARGO_HOME nor HOME is set")?)
            .join(".cargo"),
    };
    let mut paths = vec![(cargo_home.clone(), "/cargo"), (sysroot()?, "/rust"), (root(), "/passt-rs")];
    // Below this folder, each registry has a folder whose name depends on its address. The last match counts.
    let registries = std::fs::read_dir(cargo_home.join("registry/src")).into_iter().flatten().flatten();
    paths.extend(registries.map(|entry| (entry.path(), "/cargo/registry")));
    let remap = paths.into_iter().map(|(path, name)| {
        let mut flag = OsString::from("--remap-path-prefix=");
        flag.push(path);
        flag.push("=");
        flag.push(name);
        flag
    });
    let flags: Vec<OsString> = order::flags(folder)?.into_iter().chain(remap).collect();
    Ok(flags.join(OsStr::new("\x1f")))
}

fn sysroot() -> anyhow::Result<PathBuf> {
    Ok(PathBuf::from(tool::output(tool::rustc().args(["--print", "sysroot"]))?.trim_end()))
}
