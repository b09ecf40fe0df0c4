//! The functions that the program calls, in the order of their first calls: each has a breakpoint at its entry, which its
//! first call removes. So the program runs at nearly full speed.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::process::Command;

use anyhow::{Context, ensure};
use nix::sys::ptrace;
use nix::unistd::Pid;

/// The instruction `int3`.
const BREAKPOINT: u8 = 0xcc;

/// The functions of a traced process.
pub(crate) struct Functions {
    memory: File,
    by_entry: BTreeMap<u64, Function>,
}

struct Function {
    symbol: String,
    /// In bytes.
    size: u64,
    /// The first byte of its code.
    first: u8,
    was_called: bool,
}

impl Functions {
    /// Sets a breakpoint at the entry of each function. All threads must be traced.
    pub(crate) fn watch(pid: Pid) -> anyhow::Result<Self> {
        let memory = OpenOptions::new().read(true).write(true).open(format!("/proc/{pid}/mem"))?;
        let base = base(pid)?;
        let mut by_entry = BTreeMap::new();
        for (address, size, symbol) in symbols(pid)? {
            let entry = base + address;
            let mut first = [0];
            memory.read_exact_at(&mut first, entry).with_context(|| format!("no code of {symbol}"))?;
            // Functions with the same code can have the same address.
            by_entry.entry(entry).or_insert(Function { symbol, size, first: first[0], was_called: false });
        }
        ensure!(!by_entry.is_empty(), "the program has no symbols");
        for entry in by_entry.keys() {
            memory.write_all_at(&[BREAKPOINT], *entry)?;
        }
        Ok(Self { memory, by_entry })
    }

    /// Lets a thread that has reached a breakpoint continue with the function. Returns the symbols of its caller and of the
    /// function, if these are new: the caller can be a loop that was entered before.
    pub(crate) fn on_trap(&mut self, thread: Pid) -> anyhow::Result<Vec<String>> {
        let mut regs = ptrace::getregs(thread)?;
        let entry = regs.rip - 1;
        if !self.by_entry.contains_key(&entry) {
            return Ok(Vec::new());
        }
        regs.rip = entry;
        ptrace::setregs(thread, regs)?;
        let mut caller = [0; 8];
        self.memory.read_exact_at(&mut caller, regs.rsp)?;
        let called = [u64::from_ne_bytes(caller), entry].map(|address| self.called(address));
        called.into_iter().filter_map(Result::transpose).collect()
    }

    /// Notes that the function with this address was called. Returns its symbol the first time.
    fn called(&mut self, address: u64) -> anyhow::Result<Option<String>> {
        let Some((entry, function)) = self.by_entry.range_mut(..=address).next_back() else {
            return Ok(None);
        };
        if address - entry >= function.size || std::mem::replace(&mut function.was_called, true) {
            return Ok(None);
        }
        self.memory.write_all_at(&[function.first], *entry)?;
        Ok(Some(function.symbol.clone()))
    }
}

/// The address to which the program is relocated.
fn base(pid: Pid) -> anyhow::Result<u64> {
    let program = fs::read_link(format!("/proc/{pid}/exe"))?.to_string_lossy().into_owned();
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let first = maps.lines().find(|line| line.ends_with(&program)).context("the program is not mapped")?;
    let (start, _) = first.split_once('-').context("unknown format of /proc/PID/maps")?;
    Ok(u64::from_str_radix(start, 16)?)
}

/// The functions' addresses in the file, their sizes in bytes, and their symbols.
fn symbols(pid: Pid) -> anyhow::Result<Vec<(u64, u64, String)>> {
    let mut nm = Command::new("nm");
    nm.args(["--defined-only", "--format=posix"]).arg(format!("/proc/{pid}/exe"));
    let output = nm.output().context("can't run nm (binutils)")?;
    ensure!(output.status.success(), "nm: {}", String::from_utf8_lossy(&output.stderr).trim());
    let text = String::from_utf8_lossy(&output.stdout);
    let function = |line: &str| {
        let [symbol, "t" | "T", address, size] = line.split(' ').collect::<Vec<_>>()[..] else { return None };
        let (address, size) = (u64::from_str_radix(address, 16).ok()?, u64::from_str_radix(size, 16).ok()?);
        (size > 0).then(|| (address, size, symbol.to_owned()))
    };
    Ok(text.lines().filter_map(function).collect())
}
