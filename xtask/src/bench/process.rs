//! Processes of a measurement: each prints one line, and exits at the end of its standard input.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context, bail, ensure};

/// Number of clock ticks per second in /proc (USER_HZ).
const TICKS: f64 = 100.0;

/// A child that prints one line, and exits at the end of its standard input.
pub(super) struct Process {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Process {
    pub(super) fn start(command: &mut Command) -> anyhow::Result<Self> {
        let mut child = command
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("can't run {}", command.get_program().display()))?;
        let out = child.stdout.take().context("no output")?;
        Ok(Self { child, out: BufReader::new(out) })
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        self.out.read_line(&mut line)?;
        if line.is_empty() {
            bail!("ended without a figure");
        }
        Ok(line.trim().to_owned())
    }

    /// For a process that does not exit at the end of its standard input.
    pub(super) fn kill(mut self) {
        let _gone = self.child.kill();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // The process has two seconds to exit.
        for _ in 0..200 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }
}

/// Processor time of a process so far, in seconds.
pub(super) fn cpu(pid: u32) -> f64 {
    seconds(&fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default(), 11)
}

/// Processor time of all ended children of this process, and of theirs, in seconds.
pub(super) fn cpu_of_children() -> f64 {
    seconds(&fs::read_to_string("/proc/self/stat").unwrap_or_default(), 13)
}

/// The sum of two fields of /proc/PID/stat. `index` is that of the first one, counted from the state of the process
/// (proc_pid_stat(5)).
fn seconds(stat: &str, index: usize) -> f64 {
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(index) + ticks(index + 1)) / TICKS
}

/// Resident memory of a process, in bytes.
pub(super) fn memory(pid: u32) -> Option<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<f64>().ok()? * 1024.0)
}

/// Runs a command to its end.
pub(super) fn run(program: &str, arguments: &str) -> anyhow::Result<()> {
    let status = Command::new(program).args(arguments.split_whitespace()).status();
    let status = status.with_context(|| format!("can't run {program}"))?;
    ensure!(status.success(), "{program} {arguments}: {status}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_read_after_a_name_with_spaces() {
        let stat = "7 (a ) b) S 1 2 3 4 5 6 7 8 9 10 150 50 30 20 20 0";
        assert_eq!(seconds(stat, 11), 2.0);
        assert_eq!(seconds(stat, 13), 0.5);
        assert_eq!(seconds("", 11), 0.0);
    }

    #[test]
    fn this_process_has_memory() {
        assert!(memory(std::process::id()).unwrap() > 65536.0);
    }
}
