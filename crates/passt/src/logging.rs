//! Where log lines go, and which of them (SPEC §1.7).
//!
//! To standard error as long as somebody may be waiting there for us to start, then to the system's log.

use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::net::UnixDatagram;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::config::Verbosity;

/// The one logger of the process, as the `log` crate wants it.
static LOGGER: OnceLock<Logger> = OnceLock::new();

/// Sends log lines to standard error from now on, as `program` and as many as `verbosity` says. Only the first
/// call does anything.
pub(crate) fn start(program: &'static str, verbosity: Verbosity) {
    let logger = LOGGER.get_or_init(|| Logger {
        program,
        verbosity,
        started: Instant::now(),
        syslog: Mutex::new(Syslog::Later),
    });
    if log::set_logger(logger).is_ok() {
        log::set_max_level(match verbosity {
            Verbosity::Quiet => LevelFilter::Warn,
            Verbosity::Info => LevelFilter::Info,
            Verbosity::Debug => LevelFilter::Debug,
            Verbosity::Trace => LevelFilter::Trace,
        });
    }
}

/// Connects to the system's log, which can't be found any more from within an empty root. Having none is no error
///
pub(crate) fn open_syslog() {
    let connect = || -> std::io::Result<UnixDatagram> {
        let socket = UnixDatagram::unbound()?;
        socket.connect("/dev/log")?;
        // A log that takes no more is not worth a standstill.
        socket.set_nonblocking(true)?;
        Ok(socket)
    };
    set_syslog(Syslog::Open(connect().ok()));
}

/// Leaves standard error to others: lines go to the system's log from now on.
pub(crate) fn leave_stderr() {
    if let Some(logger) = LOGGER.get() {
        let mut syslog = logger.syslog.lock().unwrap_or_else(PoisonError::into_inner);
        *syslog = match std::mem::replace(&mut *syslog, Syslog::Later) {
            Syslog::Open(socket) | Syslog::InUse(socket) => Syslog::InUse(socket),
            Syslog::Later => Syslog::InUse(None),
        };
    }
}

fn set_syslog(to: Syslog) {
    if let Some(logger) = LOGGER.get() {
        *logger.syslog.lock().unwrap_or_else(PoisonError::into_inner) = to;
    }
}

struct Logger {
    program: &'static str,
    verbosity: Verbosity,
    started: Instant,
    syslog: Mutex<Syslog>,
}

/// The system's log. Where there is none, its lines go nowhere.
enum Syslog {
    Later,
    Open(Option<UnixDatagram>),
    InUse(Option<UnixDatagram>),
}

impl Log for Logger {
    /// Libraries have their say only when tracing.
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        const OURS: [&str; 4] = ["passt", "engine", "wire", "sys"];
        let target = metadata.target().split("::").next().unwrap_or_default();
        self.verbosity == Verbosity::Trace || OURS.contains(&target)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let syslog = self.syslog.lock().unwrap_or_else(PoisonError::into_inner);
        // Errors of writing have nowhere to go.
        match &*syslog {
            Syslog::InUse(None) => {}
            Syslog::InUse(Some(socket)) => drop(socket.send(self.syslog_line(record).as_bytes())),
            Syslog::Later | Syslog::Open(_) => {
                drop(std::io::stderr().write_all(self.stderr_line(record).as_bytes()));
            }
        }
    }

    fn flush(&self) {}
}

impl Logger {
    fn stderr_line(&self, record: &Record<'_>) -> String {
        let mut line = String::new();
        if self.verbosity >= Verbosity::Debug {
            line.push_str(&stamp(self.started.elapsed()));
        }
        let prefix = match record.level() {
            Level::Error => Some(""),
            Level::Warn => Some("warning: "),
            Level::Info | Level::Debug | Level::Trace => None,
        };
        let written = match prefix {
            Some(prefix) => writeln!(line, "{}: {prefix}{}", self.program, record.args()),
            None => writeln!(line, "{}", record.args()),
        };
        debug_assert!(written.is_ok(), "a string takes everything");
        line
    }

    /// As RFC 3164 §4.1 has it, without the timestamp, which the receiver adds (§4.3.2).
    fn syslog_line(&self, record: &Record<'_>) -> String {
        const FACILITY_DAEMON: u8 = 3;
        let severity = match record.level() {
            Level::Error => 3,
            Level::Warn => 4,
            Level::Info => 6,
            Level::Debug | Level::Trace => 7,
        };
        let priority = FACILITY_DAEMON * 8 + severity;
        format!("<{priority}>{}[{}]: {}", self.program, std::process::id(), record.args())
    }
}

/// Time since start, in front of a debug line: seconds and four digits.
fn stamp(elapsed: Duration) -> String {
    format!("{}.{:04}: ", elapsed.as_secs(), elapsed.subsec_micros() / 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logger(verbosity: Verbosity) -> Logger {
        Logger { program: "pasta", verbosity, started: Instant::now(), syslog: Mutex::new(Syslog::Later) }
    }

    fn line(level: Level, verbosity: Verbosity) -> String {
        logger(verbosity).stderr_line(&Record::builder().level(level).args(format_args!("text")).build())
    }

    /// four digits, cut and not rounded, so that they never carry.
    #[test]
    fn stamps_have_four_digits() {
        assert_eq!(stamp(Duration::ZERO), "0.0000: ");
        assert_eq!(stamp(Duration::from_micros(1_000_999)), "1.0009: ");
        assert_eq!(stamp(Duration::from_nanos(9_999_999_999)), "9.9999: ");
    }

    /// one prefix to a line.
    #[test]
    fn lines_on_stderr() {
        assert_eq!(line(Level::Error, Verbosity::Info), "pasta: text\n");
        assert_eq!(line(Level::Warn, Verbosity::Quiet), "pasta: warning: text\n");
        assert_eq!(line(Level::Info, Verbosity::Info), "text\n");
        let stamped = line(Level::Debug, Verbosity::Debug);
        let (time, text) = stamped.split_once(": ").unwrap();
        assert_eq!(text, "text\n");
        assert_eq!(time.split_once('.').unwrap().1.len(), 4, "{stamped}");
    }

    #[test]
    fn lines_to_syslog_carry_facility_and_severity() {
        let record = Record::builder().level(Level::Warn).args(format_args!("text")).build();
        let line = logger(Verbosity::Info).syslog_line(&record);
        assert_eq!(line, format!("<28>pasta[{}]: text", std::process::id()));
    }

    #[test]
    fn libraries_are_silent_unless_tracing() {
        let foreign = Metadata::builder().target("netlink_packet_route::link").build();
        let ours = Metadata::builder().target("passt::host").build();
        assert!(!logger(Verbosity::Debug).enabled(&foreign));
        assert!(logger(Verbosity::Trace).enabled(&foreign));
        assert!(logger(Verbosity::Debug).enabled(&ours));
    }
}
