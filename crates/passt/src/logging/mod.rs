//! The outputs of the log, and the lines that each output receives (behaviour §1.7).
//!
//! Lines are written to standard error while the caller waits for the start, and later to syslog. With `--log-file`,
//! lines are written to the log file from the first line on, and not to syslog.
//!
//! After the process is sealed, logging makes these system calls: sendto (syslog), write, lseek, and futex (between
//! threads). For a full log file it also calls fallocate, pread64, pwrite64 and ftruncate.

mod limit;

use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use log::{Level, LevelFilter, Log, Metadata, Record};

use self::limit::{Decision, Limiter};
use crate::capped_file::CappedFile;
use crate::config::Verbosity;

/// Target of messages that form a list. The rate limit does not apply to these messages, so traffic must not be able to
/// cause them.
pub(crate) const LIST: &str = "passt::list";

/// The logger of the process. The `log` crate needs it to be static.
static LOGGER: OnceLock<Logger> = OnceLock::new();

/// Starts to log to standard error, with the name of `program` and at the level of `verbosity`. Only the first call has
/// an effect.
pub(crate) fn start(program: &'static str, verbosity: Verbosity) {
    let logger = LOGGER.get_or_init(|| Logger::new(program, verbosity));
    if log::set_logger(logger).is_ok() {
        log::set_max_level(most_of(verbosity));
    }
}

/// Makes panics also go to the log file or to syslog when standard error is no longer an output.
pub(crate) fn report_panics() {
    let standard = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        // If the logger itself panics, it is locked. Then only standard error can be used.
        if let Some(logger) = LOGGER.get()
            && let Ok(mut outputs) = logger.outputs.try_lock()
            && outputs.stderr == LevelFilter::Off
        {
            logger.write(&mut outputs, Level::Error, &panic.to_string());
        }
        standard(panic);
    }));
}

/// Starts to log to a file. The file never exceeds `limit` bytes.
///
/// # Errors
/// The file can't be created or written.
pub(crate) fn open_file(path: &Path, limit: u64) -> anyhow::Result<()> {
    let Some(logger) = LOGGER.get() else { return Ok(()) };
    let program = std::env::current_exe().unwrap_or_default();
    let title = format!(
        "{} {}: {} ({})",
        logger.program,
        crate::version::VERSION,
        program.display(),
        std::process::id()
    );
    let file = CappedFile::create(path, &title, limit)
        .with_context(|| format!("can't open log file {} (--log-file)", path.display()))?;
    logger.outputs().file = Some(LogFile { file, title, lost: 0 });
    Ok(())
}

/// Connects to syslog. Must be called before the root directory is replaced. A system without syslog is not an error
///
pub(crate) fn open_syslog() {
    let connect = || -> std::io::Result<UnixDatagram> {
        let socket = UnixDatagram::unbound()?;
        socket.connect("/dev/log")?;
        // If syslog is slow, lines are lost, but the process does not block.
        socket.set_nonblocking(true)?;
        Ok(socket)
    };
    if let Some(logger) = LOGGER.get() {
        let mut outputs = logger.outputs();
        if outputs.file.is_none() {
            outputs.syslog = connect().ok();
        }
    }
}

/// Changes which messages are logged.
pub(crate) fn set_verbosity(verbosity: Verbosity) {
    if let Some(logger) = LOGGER.get() {
        logger.verbosity.store(verbosity as u8, Ordering::Relaxed);
        log::set_max_level(most_of(verbosity));
    }
}

/// Which messages are logged.
pub(crate) fn verbosity() -> Verbosity {
    LOGGER.get().map(Logger::verbosity).unwrap_or_default()
}

/// The least severe level that is logged.
const fn most_of(verbosity: Verbosity) -> LevelFilter {
    match verbosity {
        Verbosity::Quiet => LevelFilter::Warn,
        Verbosity::Info => LevelFilter::Info,
        Verbosity::Debug => LevelFilter::Debug,
        Verbosity::Trace => LevelFilter::Trace,
    }
}

/// From now on, only lines of the level `most` or more severe levels go to standard error. The other lines go to the
/// log file or to syslog.
pub(crate) fn limit_stderr(most: LevelFilter) {
    if let Some(logger) = LOGGER.get() {
        logger.outputs().stderr = most;
    }
}

/// Stops the output of lines to standard error. [`show_refusals`] can enable it again.
pub(crate) fn leave_stderr() {
    if let Some(logger) = LOGGER.get() {
        let mut outputs = logger.outputs();
        outputs.stderr = LevelFilter::Off;
        outputs.may_show_refusals = true;
    }
}

/// Must be called if there are rules about the destinations of the guest. After [`leave_stderr`], this enables warnings
/// and errors on standard error again, so that the user sees refusals.
pub(crate) fn show_refusals() {
    if let Some(logger) = LOGGER.get() {
        let mut outputs = logger.outputs();
        if outputs.may_show_refusals {
            outputs.stderr = LevelFilter::Warn;
        }
    }
}

/// Starts to limit the rate of each call site. Must be called before traffic can cause log lines.
pub(crate) fn limit_rates() {
    if let Some(logger) = LOGGER.get() {
        logger.outputs().limiter = Some(Limiter::default());
    }
}

/// Sets the process ID for syslog. A process in a PID namespace can't determine its process ID in the caller's
/// namespace.
pub(crate) fn set_pid(pid: u32) {
    if let Some(logger) = LOGGER.get() {
        logger.outputs().pid = pid;
    }
}

struct Logger {
    program: &'static str,
    /// A [`Verbosity`].
    verbosity: AtomicU8,
    started: Instant,
    outputs: Mutex<Outputs>,
}

/// The log file.
struct LogFile {
    file: CappedFile,
    /// The first line, without the text that is added when old lines are removed.
    title: String,
    /// Lines that could not be written since the last one that was, such as on a full disk.
    lost: u64,
}

impl LogFile {
    /// Adds a line, after a note if lines before it are missing.
    fn add(&mut self, line: &str, now: &str) {
        let Self { file, title, lost } = self;
        let mut add = |line: &str| file.add(line, || format!("{title} - log truncated at {now}"));
        let note = |lost| format!("{lost} lines are missing: the file could not be written to");
        if *lost > 0 && add(&file_line(now, Level::Warn, &note(*lost))).is_ok() {
            *lost = 0;
        }
        if *lost > 0 || add(line).is_err() {
            *lost += 1;
        }
    }
}

/// The outputs of log lines.
struct Outputs {
    /// The least severe level of lines that go to standard error.
    stderr: LevelFilter,
    /// Whether [`show_refusals`] may write to standard error again.
    may_show_refusals: bool,
    file: Option<LogFile>,
    /// Syslog. It receives lines if lines are not written to standard error and there is no log file.
    syslog: Option<UnixDatagram>,
    limiter: Option<Limiter>,
    /// Process ID for syslog.
    pid: u32,
}

impl Log for Logger {
    /// Messages of libraries are logged only with `--trace`.
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        const OURS: [&str; 4] = ["passt", "engine", "wire", "sys"];
        let target = metadata.target().split("::").next().unwrap_or_default();
        self.verbosity() == Verbosity::Trace || OURS.contains(&target)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let mut outputs = self.outputs();
        let decision = match &mut outputs.limiter {
            // `--debug` and `--trace` show all messages.
            Some(limiter) if record.level() <= Level::Info && record.target() != LIST => limiter.decide(
                record.file_static().unwrap_or_default(),
                record.line(),
                self.started.elapsed(),
            ),
            _ => Decision::Show { left_out: 0 },
        };
        let level = record.level();
        match decision {
            Decision::Show { left_out: 0 } => self.write(&mut outputs, level, &record.args().to_string()),
            Decision::Show { left_out } => {
                self.write(&mut outputs, level, &format!("{} ({left_out} more before)", record.args()));
            }
            Decision::Announce => {
                let text = format!("{} (and more, left out for a second)", record.args());
                self.write(&mut outputs, level, &text);
            }
            Decision::LeaveOut => {}
        }
    }

    fn flush(&self) {}
}

impl Logger {
    fn new(program: &'static str, verbosity: Verbosity) -> Self {
        let pid = std::process::id();
        let outputs = Outputs {
            stderr: LevelFilter::Trace,
            may_show_refusals: false,
            file: None,
            syslog: None,
            limiter: None,
            pid,
        };
        let verbosity = AtomicU8::new(verbosity as u8);
        Self { program, verbosity, started: Instant::now(), outputs: Mutex::new(outputs) }
    }

    fn verbosity(&self) -> Verbosity {
        const ALL: [Verbosity; 4] = [Verbosity::Quiet, Verbosity::Info, Verbosity::Debug, Verbosity::Trace];
        let present = self.verbosity.load(Ordering::Relaxed);
        ALL.into_iter().find(|verbosity| *verbosity as u8 == present).unwrap_or_default()
    }

    fn outputs(&self) -> MutexGuard<'_, Outputs> {
        self.outputs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a message to its outputs. Errors are ignored: there is no other output to report them.
    fn write(&self, outputs: &mut Outputs, level: Level, text: &str) {
        let on_stderr = level <= outputs.stderr;
        if on_stderr {
            drop(std::io::stderr().write_all(self.stderr_line(level, text).as_bytes()));
        }
        if let Some(file) = &mut outputs.file {
            let now = stamp(self.started.elapsed());
            file.add(&file_line(&now, level, text), &now);
        } else if let Some(socket) = outputs.syslog.as_ref().filter(|_| !on_stderr && level <= Level::Info) {
            drop(socket.send(self.syslog_line(outputs.pid, level, text).as_bytes()));
        }
    }

    fn stderr_line(&self, level: Level, text: &str) -> String {
        let mut line = String::new();
        if self.verbosity() >= Verbosity::Debug {
            line.push_str(&stamp(self.started.elapsed()));
            line.push_str(": ");
        }
        let prefix = match level {
            Level::Error => Some(""),
            Level::Warn => Some("warning: "),
            Level::Info | Level::Debug | Level::Trace => None,
        };
        let written = match prefix {
            Some(prefix) => writeln!(line, "{}: {prefix}{text}", self.program),
            None => writeln!(line, "{text}"),
        };
        debug_assert!(written.is_ok(), "writing to a string can't fail");
        line
    }

    /// A message of RFC 3164 §4.1 without timestamp. The receiver adds a timestamp (§4.3.2).
    fn syslog_line(&self, pid: u32, level: Level, text: &str) -> String {
        const FACILITY_DAEMON: u8 = 3;
        let severity = match level {
            Level::Error => 3,
            Level::Warn => 4,
            Level::Info => 6,
            Level::Debug | Level::Trace => 7,
        };
        let priority = FACILITY_DAEMON * 8 + severity;
        format!("<{priority}>{}[{pid}]: {text}", self.program)
    }
}

/// A line of the log file (behaviour §1.7.4).
fn file_line(now: &str, level: Level, text: &str) -> String {
    let prefix = match level {
        Level::Error => "ERROR:",
        Level::Warn => "WARNING:",
        Level::Info => "info:",
        Level::Debug | Level::Trace => "",
    };
    format!("{now}: {prefix:<9}{text}\n")
}

/// Time since the start: seconds with four decimal places.
fn stamp(elapsed: Duration) -> String {
    format!("{}.{:04}", elapsed.as_secs(), elapsed.subsec_micros() / 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(level: Level, verbosity: Verbosity) -> String {
        Logger::new("pasta", verbosity).stderr_line(level, "text")
    }

    /// stamps have four decimal places. They are truncated and not rounded, so there is never a carry.
    #[test]
    fn stamps_have_four_digits_r9() {
        assert_eq!(stamp(Duration::ZERO), "0.0000");
        assert_eq!(stamp(Duration::from_micros(1_000_999)), "1.0009");
        assert_eq!(stamp(Duration::from_nanos(9_999_999_999)), "9.9999");
    }

    /// each line has one prefix.
    #[test]
    fn lines_on_stderr_r8() {
        assert_eq!(line(Level::Error, Verbosity::Info), "pasta: text\n");
        assert_eq!(line(Level::Warn, Verbosity::Quiet), "pasta: warning: text\n");
        assert_eq!(line(Level::Info, Verbosity::Info), "text\n");
        let stamped = line(Level::Debug, Verbosity::Debug);
        let (time, text) = stamped.split_once(": ").unwrap();
        assert_eq!(text, "text\n");
        assert_eq!(time.split_once('.').unwrap().1.len(), 4, "{stamped}");
    }

    /// behaviour §1.7.4.
    #[test]
    fn lines_in_the_file() {
        let lines =
            [Level::Error, Level::Warn, Level::Info, Level::Debug].map(|l| file_line("1.0000", l, "text"));
        assert_eq!(lines[0], "1.0000: ERROR:   text\n");
        assert_eq!(lines[1], "1.0000: WARNING: text\n");
        assert_eq!(lines[2], "1.0000: info:    text\n");
        assert_eq!(lines[3], "1.0000:          text\n");
    }

    #[test]
    fn lines_to_syslog_have_facility_and_severity() {
        let line = Logger::new("pasta", Verbosity::Info).syslog_line(4711, Level::Warn, "text");
        assert_eq!(line, "<28>pasta[4711]: text");
    }

    #[test]
    fn libraries_are_silent_unless_tracing() {
        let foreign = Metadata::builder().target("netlink_packet_route::link").build();
        let ours = Metadata::builder().target("passt::host").build();
        assert!(!Logger::new("pasta", Verbosity::Debug).enabled(&foreign));
        assert!(Logger::new("pasta", Verbosity::Trace).enabled(&foreign));
        assert!(Logger::new("pasta", Verbosity::Debug).enabled(&ours));
    }
}
