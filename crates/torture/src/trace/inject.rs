//! How a fault is put into a system call: at its entry, at its end, or both.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use libc::user_regs_struct as Registers;
use nix::sys::ptrace;
use nix::unistd::Pid;

use super::calls;
use super::kind::Descriptors;
use crate::fault::Fault;

/// Length of a short read from a stream, in bytes.
const SHORT_READ: u64 = 7;
/// Size of `struct epoll_event` on x86-64: it is packed.
const EVENT_LEN: usize = 12;
/// How long a thread is held.
const LATE: Duration = Duration::from_secs(1);

/// What remains to be done at the end of the call.
pub(crate) enum Pending {
    /// The call returns this.
    Result(i64),
    /// Arguments and memory that were changed are restored: the program may use them again.
    Restore(Box<Registers>, Vec<(u64, u64)>),
    /// Arguments are restored, and the call returns this.
    RestoreWithResult(Box<Registers>, i64),
    /// Arguments are restored, and epoll reports the descriptor next, as if it had been full.
    RestoreThenReady(Box<Registers>, i32),
    /// The call returns this, and epoll reports the descriptor next, as if it had become ready since.
    ResultThenReady(i64, i32),
    /// What the two above owe.
    Ready(i32),
    /// A descriptor of this kind is reported, too.
    Spurious(String),
    /// The thread is held.
    Late,
}

/// An argument of the call, by its index.
pub(crate) fn argument(regs: &Registers, index: usize) -> u64 {
    [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9][index]
}

/// On what the call works: the kind of its descriptor, and its operation.
pub(crate) fn object(call: &str, fd: Option<usize>, regs: &Registers, descriptors: &Descriptors) -> String {
    let kind = |value: u64| descriptors.kind(value as i32);
    let on = fd.map_or_else(String::new, |at| kind(argument(regs, at)));
    let flag =
        |value: u64, flag: i32, name: &str| if value & flag as u64 == 0 { "" } else { name }.to_owned();
    match call {
        "epoll_ctl" => {
            let operation = ["?", "ADD", "DEL", "MOD"].get(regs.rsi as usize).copied().unwrap_or("?");
            format!("{operation} {on}")
        }
        "epoll_pwait" | "epoll_pwait2" => String::new(),
        "setsockopt" | "getsockopt" => format!("{on} {}", calls::socket_option(regs.rsi, regs.rdx)),
        "recvfrom" => {
            format!(
                "{on}{}{}",
                flag(regs.r10, libc::MSG_PEEK, " PEEK"),
                flag(regs.r10, libc::MSG_TRUNC, " TRUNC")
            )
        }
        "recvmsg" => format!("{on}{}", flag(regs.rdx, libc::MSG_ERRQUEUE, " ERRQUEUE")),
        "splice" => format!("{on} to {}", kind(regs.rdx)),
        "fcntl" => format!("{on} {}", regs.rsi),
        "ioctl" => match regs.rsi {
            value if value == libc::FIONREAD => format!("{on} FIONREAD"),
            value if value == libc::TIOCOUTQ => format!("{on} TIOCOUTQ"),
            value if value == libc::FIONBIO => format!("{on} FIONBIO"),
            value => format!("{on} {value:#x}"),
        },
        "socket" => {
            let family = match regs.rdi as i32 {
                libc::AF_INET => "inet",
                libc::AF_INET6 => "inet6",
                libc::AF_NETLINK => "netlink",
                _ => "other",
            };
            let kind = ["", "stream", "dgram", "raw"].get(regs.rsi as usize & 0xf).copied().unwrap_or("");
            format!("{family} {kind}")
        }
        "getrandom" => (if regs.rdx & 1 == 0 { "" } else { "nonblock" }).to_owned(),
        "prctl" => format!("{}", regs.rdi),
        "prlimit64" => (if regs.rdx == 0 { "get" } else { "set" }).to_owned(),
        "futex" => match regs.rsi & 0x7f {
            0 | 9 => "wait".to_owned(),
            1 | 10 => "wake".to_owned(),
            _ => "other".to_owned(),
        },
        _ => on,
    }
}

/// Begins to inject a fault at the entry of a call. `foreign`: the program's filters are not known. `None`: this call can't have the fault, the next one may.
pub(crate) fn start(
    fault: &Fault,
    call: &str,
    thread: Pid,
    mut regs: Registers,
    descriptors: &Descriptors,
    foreign: bool,
) -> anyhow::Result<Option<Pending>> {
    match fault {
        Fault::Errno(errno) if foreign => {
            // Its filter may allow this thread no other call: the same call, without a descriptor or family.
            let before = Box::new(regs);
            regs.rdi = u64::MAX;
            ptrace::setregs(thread, regs)?;
            Ok(Some(Pending::RestoreWithResult(before, -i64::from(*errno))))
        }
        Fault::Errno(_) if call == "brk" => {
            // The call itself returns no error, but the end of the heap that has not moved. So does a query.
            let before = Box::new(regs);
            regs.rdi = 0;
            ptrace::setregs(thread, regs)?;
            Ok(Some(Pending::Restore(before, Vec::new())))
        }
        Fault::Errno(errno) => {
            // These calls have their effect even if they report this error.
            let effect = call == "close" || call == "connect" && *errno == libc::EINTR;
            if !effect {
                // A call that the filter allows every thread, and that has no effect.
                regs.orig_rax = libc::SYS_gettid.cast_unsigned();
                ptrace::setregs(thread, regs)?;
            }
            let result = -i64::from(*errno);
            // Which of the two descriptors of a splice is not ready is not known: the socket is watched.
            let fd = if call == "splice" && !descriptors.kind(regs.rdi as i32).starts_with("tcp") {
                regs.rdx
            } else {
                regs.rdi
            };
            // Those that may be watched for edges.
            let is_watched = ["tcp", "guest"].contains(&&*descriptors.kind(fd as i32));
            Ok(Some(if *errno == libc::EAGAIN && call != "connect" && is_watched {
                Pending::ResultThenReady(result, fd as i32)
            } else {
                Pending::Result(result)
            }))
        }
        Fault::Short => shorten(call, thread, regs, descriptors),
        Fault::Spurious(kind) => {
            let event = watched(thread, regs.rdi, |fd| descriptors.kind(fd) == *kind);
            Ok(event.map(|_| Pending::Spurious(kind.clone())))
        }
        Fault::Late => Ok(Some(Pending::Late)),
    }
}

fn shorten(
    call: &str,
    thread: Pid,
    mut regs: Registers,
    descriptors: &Descriptors,
) -> anyhow::Result<Option<Pending>> {
    let half = |length: u64| length / 2;
    let before = Box::new(regs);
    let length = match call {
        "read" | "recvfrom" => Some((&mut regs.rdx, SHORT_READ)),
        "write" | "sendto" => Some((&mut regs.rdx, u64::MAX)),
        "splice" => Some((&mut regs.r8, SHORT_READ)),
        // The number of messages.
        "sendmmsg" => Some((&mut regs.rdx, 1)),
        _ => None,
    };
    if let Some((length, maximum)) = length {
        if *length < 2 {
            return Ok(None);
        }
        *length = half(*length).min(maximum);
        ptrace::setregs(thread, regs)?;
        if call == "sendto" && descriptors.kind(before.rdi as i32) == "tcp" {
            let fd = before.rdi as i32;
            return Ok(Some(Pending::RestoreThenReady(before, fd)));
        }
        return Ok(Some(Pending::Restore(before, Vec::new())));
    }
    // A message: only half of its first buffer. `msg_iov` and `msg_iovlen` are at offsets 16 and 24.
    let memory = Memory::of(thread)?;
    let list = memory.read(regs.rsi + 16)?;
    let (count_at, length_at) = (regs.rsi + 24, list + 8);
    let (count, length) = (memory.read(count_at)?, memory.read(length_at)?);
    if count == 0 || length < 2 {
        return Ok(None);
    }
    memory.write(count_at, 1)?;
    memory.write(length_at, half(length))?;
    Ok(Some(Pending::Restore(before, vec![(count_at, count), (length_at, length)])))
}

/// Begins to report a descriptor, at the entry of `epoll_pwait`: the thread does not wait.
pub(crate) fn report_ready(fd: i32, thread: Pid, mut regs: Registers) -> anyhow::Result<Pending> {
    regs.orig_rax = libc::SYS_gettid.cast_unsigned();
    ptrace::setregs(thread, regs)?;
    Ok(Pending::Ready(fd))
}

impl Pending {
    /// The descriptor that epoll has to report next.
    pub(crate) const fn owes(&self) -> Option<i32> {
        match self {
            Self::ResultThenReady(_, fd) | Self::RestoreThenReady(_, fd) => Some(*fd),
            _ => None,
        }
    }

    /// Completes the fault at the end of the call.
    pub(crate) fn finish(
        self,
        thread: Pid,
        descriptors: &Descriptors,
        mut regs: Registers,
    ) -> anyhow::Result<()> {
        match self {
            Self::Result(value) | Self::ResultThenReady(value, _) => {
                regs.rax = value.cast_unsigned();
                Ok(ptrace::setregs(thread, regs)?)
            }
            Self::Restore(before, words) => {
                (regs.rdi, regs.rdx, regs.r8) = (before.rdi, before.rdx, before.r8);
                ptrace::setregs(thread, regs)?;
                let memory = Memory::of(thread)?;
                words.into_iter().try_for_each(|(at, word)| memory.write(at, word))
            }
            Self::RestoreWithResult(before, value) => {
                (regs.rdi, regs.rax) = (before.rdi, value.cast_unsigned());
                Ok(ptrace::setregs(thread, regs)?)
            }
            Self::RestoreThenReady(before, _) => {
                (regs.rdx, regs.r8) = (before.rdx, before.r8);
                Ok(ptrace::setregs(thread, regs)?)
            }
            Self::Ready(fd) => {
                let event = watched(thread, regs.rdi, |other| other == fd);
                report(thread, regs, 0, event)
            }
            Self::Spurious(kind) => {
                let count = regs.rax.cast_signed().max(0).cast_unsigned();
                let event = watched(thread, regs.rdi, |fd| descriptors.kind(fd) == kind);
                report(thread, regs, count, event)
            }
            Self::Late => {
                std::thread::sleep(LATE);
                Ok(())
            }
        }
    }
}

/// Adds an event to the `count` events that epoll reports, if there is room.
fn report(
    thread: Pid,
    mut regs: Registers,
    count: u64,
    event: Option<[u8; EVENT_LEN]>,
) -> anyhow::Result<()> {
    regs.rax = count;
    if let Some(event) = event.filter(|_| count < regs.rdx) {
        Memory::of(thread)?.0.write_all_at(&event, regs.rsi + count * EVENT_LEN as u64)?;
        regs.rax = count + 1;
    }
    Ok(ptrace::setregs(thread, regs)?)
}

/// An event of a descriptor that the epoll set watches: all that it watches for.
fn watched(thread: Pid, epoll: u64, is_wanted: impl Fn(i32) -> bool) -> Option<[u8; EVENT_LEN]> {
    let info = std::fs::read_to_string(format!("/proc/{thread}/fdinfo/{epoll}")).ok()?;
    // A line: "tfd: 8 events: 19 data: 100000002 pos:0 ino:b sdev:8", events and data in hexadecimal.
    info.lines().filter_map(|line| line.strip_prefix("tfd:")).find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (fd, events, data) = (words.first()?, words.get(2)?, words.get(4)?);
        if !is_wanted(fd.parse().ok()?) {
            return None;
        }
        let ready = u32::from_str_radix(events, 16).ok()? & (libc::EPOLLIN | libc::EPOLLOUT).cast_unsigned();
        let mut event = [0; EVENT_LEN];
        event[..4].copy_from_slice(&ready.to_ne_bytes());
        event[4..].copy_from_slice(&u64::from_str_radix(data, 16).ok()?.to_ne_bytes());
        (ready != 0).then_some(event)
    })
}

/// The memory of the program.
struct Memory(File);

impl Memory {
    fn of(thread: Pid) -> anyhow::Result<Self> {
        Ok(Self(File::options().read(true).write(true).open(format!("/proc/{thread}/mem"))?))
    }

    fn read(&self, at: u64) -> anyhow::Result<u64> {
        let mut word = [0; 8];
        self.0.read_exact_at(&mut word, at)?;
        Ok(u64::from_ne_bytes(word))
    }

    fn write(&self, at: u64, word: u64) -> anyhow::Result<()> {
        Ok(self.0.write_all_at(&word.to_ne_bytes(), at)?)
    }
}
