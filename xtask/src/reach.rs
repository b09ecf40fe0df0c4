//! `cargo xtask reach PID`: the resources that an attacker inside a running process could use. To find the allowed
//! system calls, this task evaluates the seccomp filters of each thread for every system call number, with unknown
//! arguments.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, bail};
use rustix::process::Pid;
use sys::ptrace::{Instruction, filters};

/// Number of system call numbers to try. No kernel has so many.
const NUMBERS: u32 = 1024;
/// SECCOMP_RET_ALLOW of `<linux/seccomp.h>`.
const ALLOW: u32 = 0x7fff_0000;
/// AUDIT_ARCH of this build's architecture (`<linux/audit.h>`).
const ARCH: u32 = if cfg!(target_arch = "aarch64") { 0xc000_00b7 } else { 0xc000_003e };
/// Files with the names of system call numbers, if the kernel's headers are installed.
const HEADERS: [&str; 3] = [
    "/usr/include/x86_64-linux-gnu/asm/unistd_64.h",
    "/usr/include/asm/unistd_64.h",
    "/usr/include/asm-generic/unistd.h",
];

/// The report on process `pid`. Needs root.
pub(crate) fn report(pid: &str) -> anyhow::Result<String> {
    let proc = Path::new("/proc").join(pid);
    let explain = || format!("can't inspect process {pid}: does it exist, and are you root?");
    let mut report = String::new();
    let apart: Vec<String> = ["user", "mnt", "pid", "ipc", "uts", "net", "cgroup", "time"]
        .into_iter()
        .filter(|kind| {
            let of = |process: &Path| fs::read_link(process.join("ns").join(kind)).ok();
            of(&proc) != of(Path::new("/proc/self"))
        })
        .map(str::to_owned)
        .collect();
    let status = fs::read_to_string(proc.join("status")).with_context(explain)?;
    let files = fs::read_dir(proc.join("fd")).with_context(explain)?.count();
    let root = fs::read_dir(proc.join("root/")).with_context(explain)?.count();
    writeln!(report, "namespaces other than those of this shell: {}", apart.join(" "))?;
    writeln!(report, "entries of its root directory: {root}")?;
    writeln!(report, "open descriptors: {files}")?;
    writeln!(report, "memory (RSS): {}", field(&status, "VmRSS"))?;
    let mut threads: Vec<_> = fs::read_dir(proc.join("task"))?.flatten().collect();
    threads.sort_by_key(fs::DirEntry::file_name);
    let names = names();
    for thread in threads {
        let status = fs::read_to_string(thread.path().join("status"))?;
        let tid = thread.file_name().to_string_lossy().parse().ok().and_then(Pid::from_raw);
        let tid = tid.context("a thread without a number")?;
        writeln!(
            report,
            "\nthread {}: capabilities in effect {}, permitted {}, bounding {}, NoNewPrivs {}",
            field(&status, "Name"),
            field(&status, "CapEff"),
            field(&status, "CapPrm"),
            field(&status, "CapBnd"),
            field(&status, "NoNewPrivs"),
        )?;
        let filters = filters(tid).with_context(|| format!("can't read the filters of thread {tid:?}"))?;
        if filters.is_empty() {
            writeln!(report, "no filter: all system calls are allowed")?;
            continue;
        }
        let reach = reachable(&filters)?;
        let list = |some: bool| -> Vec<String> {
            let wanted = reach.iter().filter(|(_, partly)| **partly == some);
            wanted.map(|(n, _)| names.get(n).cloned().unwrap_or_else(|| n.to_string())).collect()
        };
        writeln!(report, "{} system calls: {}", reach.len(), list(false).join(" "))?;
        writeln!(report, "of these, only with some arguments: {}", list(true).join(" "))?;
    }
    Ok(report)
}

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or("?").trim()
}

/// Numbers of system calls, by name.
fn names() -> BTreeMap<u32, String> {
    let text = HEADERS.iter().find_map(|path| fs::read_to_string(path).ok()).unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            let (name, number) = line.strip_prefix("#define __NR_")?.split_once(char::is_whitespace)?;
            Some((number.trim().parse().ok()?, name.to_owned()))
        })
        .collect()
}

/// The system calls that all filters allow. The value is true if the permission depends on arguments.
fn reachable(filters: &[Vec<Instruction>]) -> anyhow::Result<BTreeMap<u32, bool>> {
    let mut reach = BTreeMap::new();
    for number in 0..NUMBERS {
        let mut partly = false;
        let mut allowed = true;
        for filter in filters {
            let ends = evaluate(filter, number)?;
            allowed &= ends.contains(&ALLOW);
            partly |= ends.len() > 1;
        }
        if allowed {
            reach.insert(number, partly);
        }
    }
    Ok(reach)
}

/// The state of the machine that runs a filter. An unknown value is `None`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct State {
    next: usize,
    a: Option<u32>,
    x: Option<u32>,
    memory: [Option<u32>; 16],
}

/// All values that a filter can return for a system call number, over all arguments. Classic BPF has no loops, so this
/// function terminates.
fn evaluate(filter: &[Instruction], number: u32) -> anyhow::Result<BTreeSet<u32>> {
    let mut returns = BTreeSet::new();
    let mut seen = BTreeSet::new();
    let mut pending = vec![State { next: 0, a: Some(0), x: Some(0), memory: [Some(0); 16] }];
    while let Some(state) = pending.pop() {
        if !seen.insert(state) {
            continue;
        }
        let instruction = filter.get(state.next).context("a filter without an end")?;
        match step(state, instruction, number, filter.len())? {
            Step::Return(value) => drop(returns.insert(value & 0xffff_0000)),
            Step::Go(states) => pending.extend(states),
        }
    }
    Ok(returns)
}

enum Step {
    Return(u32),
    Go(Vec<State>),
}

fn step(state: State, i: &Instruction, number: u32, len: usize) -> anyhow::Result<Step> {
    let mut next = State { next: state.next + 1, ..state };
    let operand = if i.code & 0x08 == 0 { Some(i.k) } else { state.x };
    let slot = i.k as usize & 15;
    match i.code & 0x07 {
        0x00 | 0x01 => {
            let value = match (i.code & 0xe0, i.k) {
                (0x00, k) => Some(k),
                (0x20, 0) => Some(number),
                (0x20, 4) => Some(ARCH),
                (0x20, _) => None,
                (0x60, _) => state.memory[slot],
                (0x80, _) => u32::try_from(len).ok(),
                _ => bail!("unknown load {:#x}", i.code),
            };
            if i.code & 0x07 == 0 { next.a = value } else { next.x = value }
        }
        0x02 => next.memory[slot] = state.a,
        0x03 => next.memory[slot] = state.x,
        0x04 => {
            next.a = state.a.zip(operand).and_then(|(a, b)| match i.code & 0xf0 {
                0x00 => Some(a.wrapping_add(b)),
                0x10 => Some(a.wrapping_sub(b)),
                0x20 => Some(a.wrapping_mul(b)),
                0x30 => a.checked_div(b),
                0x40 => Some(a | b),
                0x50 => Some(a & b),
                0x60 => a.checked_shl(b),
                0x70 => a.checked_shr(b),
                0x80 => Some(a.wrapping_neg()),
                0xa0 => Some(a ^ b),
                _ => None,
            });
        }
        0x05 if i.code & 0xf0 == 0 => next.next += i.k as usize,
        0x05 => return Ok(Step::Go(branches(next, state.a.zip(operand), i)?)),
        0x06 if i.code & 0x18 == 0x10 => {
            return Ok(Step::Return(state.a.context("a filter that returns an argument")?));
        }
        0x06 => return Ok(Step::Return(i.k)),
        _ if i.code & 0xf8 == 0 => next.x = state.a,
        _ => next.a = state.x,
    }
    Ok(Step::Go(vec![next]))
}

/// The next states after a comparison. If a compared value is unknown, both branches are returned.
fn branches(next: State, compared: Option<(u32, u32)>, i: &Instruction) -> anyhow::Result<Vec<State>> {
    let way = |holds: bool| State {
        next: next.next + usize::from(if holds { i.if_true } else { i.if_false }),
        ..next
    };
    let Some((a, b)) = compared else { return Ok(vec![way(true), way(false)]) };
    let holds = match i.code & 0xf0 {
        0x10 => a == b,
        0x20 => a > b,
        0x30 => a >= b,
        0x40 => a & b != 0,
        _ => bail!("unknown comparison {:#x}", i.code),
    };
    Ok(vec![way(holds)])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn i(code: u16, if_true: u8, if_false: u8, k: u32) -> Instruction {
        Instruction { code, if_true, if_false, k }
    }

    /// The filter allows number 1 with any arguments, number 2 with some arguments, and no other number.
    #[test]
    fn calls_are_found_with_and_without_arguments() {
        let filter = [
            i(0x20, 0, 0, 4),     // the architecture
            i(0x15, 1, 0, ARCH),  // this build's architecture: continue
            i(0x06, 0, 0, 0),     // kill
            i(0x20, 0, 0, 0),     // the number
            i(0x15, 4, 0, 1),     // 1: allow
            i(0x15, 0, 2, 2),     // 2: check its argument
            i(0x20, 0, 0, 16),    //
            i(0x45, 1, 0, 4),     // the bit is set: allow
            i(0x06, 0, 0, 0),     // kill
            i(0x06, 0, 0, ALLOW), // allow
        ];
        let reach = reachable(&[filter.to_vec()]).unwrap();
        assert_eq!(reach, BTreeMap::from([(1, false), (2, true)]));
        let none = [i(0x06, 0, 0, 0x0005_0001)];
        assert_eq!(reachable(&[filter.to_vec(), none.to_vec()]).unwrap(), BTreeMap::new());
    }
}
