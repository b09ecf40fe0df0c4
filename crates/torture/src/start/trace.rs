//! The tracer of a start: follows the program from its execution to its event loop, with all processes and threads that
//! it makes, counts their system calls, and injects one fault.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::Context;
use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::fault::{Cell, Site};
use crate::trace::{Descriptors, Pending, call_of, inject, object_of};

/// `op` of `struct ptrace_syscall_info` at the entry of a call.
const ENTRY: u8 = 1;

/// What the tracer has seen.
#[derive(Clone, Default)]
pub(super) struct Seen {
    /// Number of calls at each place.
    pub(super) counts: BTreeMap<Site, u64>,
    /// The fault was injected.
    pub(super) hit: bool,
    /// The exit status of the first process, as a shell would report it.
    pub(super) status: Option<i32>,
}

/// The program that starts.
pub(super) struct Starting {
    /// The ID of its first process.
    pub(super) pid: i32,
    seen: Arc<Mutex<Seen>>,
    tracer: JoinHandle<anyhow::Result<()>>,
}

impl Starting {
    /// Starts the program. Without a cell, its calls are counted.
    pub(super) fn new(program: Command, cell: Option<Cell>) -> anyhow::Result<Self> {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (sender, receiver) = std::sync::mpsc::channel();
        let state = seen.clone();
        let tracer = std::thread::spawn(move || {
            let pid = launch(program)?;
            sender.send(pid.as_raw())?;
            let mut tracer = Tracer {
                first: pid,
                cell,
                seen: state,
                threads: HashMap::new(),
                done: HashSet::new(),
                descriptors: HashMap::new(),
                begun: false,
                released: false,
            };
            tracer.run()
        });
        match receiver.recv() {
            Ok(pid) => Ok(Self { pid, seen, tracer }),
            Err(_) => {
                tracer.join().map_err(|_| anyhow::anyhow!("the tracer panicked"))??;
                anyhow::bail!("the program did not start")
            }
        }
    }

    /// What has been seen so far.
    pub(super) fn seen(&self) -> Seen {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for the end of all processes that are traced.
    pub(super) fn finish(self) -> anyhow::Result<Seen> {
        self.tracer.join().map_err(|_| anyhow::anyhow!("the tracer panicked"))??;
        Ok(Arc::try_unwrap(self.seen).map_or_else(
            |seen| seen.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            |seen| seen.into_inner().unwrap_or_else(PoisonError::into_inner),
        ))
    }
}

/// Makes the process, traced. It executes the program when the tracer is ready for it.
fn launch(program: Command) -> anyhow::Result<Pid> {
    let mut command = Command::new("sh");
    command.args(["-c", "echo; read _; exec \"$0\" \"$@\" </dev/null >/dev/null"]).arg(program.get_program());
    command.args(program.get_args()).stdin(Stdio::piped()).stdout(Stdio::piped());
    command.env("RUST_BACKTRACE", "0");
    command.stderr(fs::File::create(super::STDERR)?);
    // The tracer reaps the process.
    #[allow(clippy::zombie_processes)]
    let mut child = command.spawn().context("can't start a shell")?;
    let pid = Pid::from_raw(child.id().cast_signed());
    // Until the shell writes, its own execution may not be complete.
    child.stdout.take().context("no pipe")?.read_exact(&mut [0])?;
    let follow = Options::PTRACE_O_TRACEFORK | Options::PTRACE_O_TRACEVFORK | Options::PTRACE_O_TRACECLONE;
    let options = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACEEXEC | follow;
    ptrace::seize(pid, options).context("can't trace (needs root)")?;
    child.stdin.take().context("no pipe")?.write_all(b"\n")?;
    Ok(pid)
}

struct Tracer {
    first: Pid,
    cell: Option<Cell>,
    seen: Arc<Mutex<Seen>>,
    threads: HashMap<i32, Thread>,
    /// Threads that wait for work. They are released, and with a process's first thread all others.
    done: HashSet<i32>,
    descriptors: HashMap<i32, Descriptors>,
    /// The first process has executed the program.
    begun: bool,
    /// The fault is complete: all threads are released.
    released: bool,
}

struct Thread {
    process: i32,
    /// Its process runs the loader and the runtime of the language, before `main`.
    loads: bool,
    pending: Option<Pending>,
}

impl Tracer {
    fn run(&mut self) -> anyhow::Result<()> {
        loop {
            let status = match waitpid(None, Some(WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD)) {
                Err(Errno::EINTR) => continue,
                Err(Errno::ECHILD) => return Ok(()),
                status => status?,
            };
            match status {
                WaitStatus::PtraceSyscall(thread) => {
                    // An error: the thread has been killed meanwhile.
                    let _gone = self.on_call(thread);
                    self.resume(thread, None);
                }
                WaitStatus::PtraceEvent(thread, _, libc::PTRACE_EVENT_EXEC) => self.on_exec(thread),
                WaitStatus::PtraceEvent(thread, ..) => self.resume(thread, None),
                WaitStatus::Stopped(thread, signal) => self.resume(thread, Some(signal)),
                WaitStatus::Exited(thread, code) => self.on_end(thread, code),
                WaitStatus::Signaled(thread, signal, _) => self.on_end(thread, 128 + signal as i32),
                _ => {}
            }
        }
    }

    fn on_end(&mut self, thread: Pid, status: i32) {
        self.threads.remove(&thread.as_raw());
        if thread == self.first {
            self.seen.lock().unwrap_or_else(PoisonError::into_inner).status = Some(status);
        }
    }

    fn on_exec(&mut self, thread: Pid) {
        if self.begun {
            // The guest's command.
            let _gone = ptrace::detach(thread, None);
            return;
        }
        self.begun = true;
        let process = thread.as_raw();
        self.threads.insert(process, Thread { process, loads: true, pending: None });
        self.resume(thread, None);
    }

    /// Lets a stopped thread continue. An error: the thread has been killed meanwhile.
    fn resume(&self, thread: Pid, signal: Option<Signal>) {
        let known = self.threads.get(&thread.as_raw());
        let busy = known.is_some_and(|thread| thread.pending.is_some());
        let done = self.released
            || self.done.contains(&thread.as_raw())
            || known.is_some_and(|thread| self.done.contains(&thread.process));
        let _gone = if !self.begun {
            ptrace::cont(thread, signal)
        } else if done && !busy {
            ptrace::detach(thread, signal)
        } else {
            ptrace::syscall(thread, signal)
        };
    }

    fn on_call(&mut self, id: Pid) -> anyhow::Result<()> {
        let (info, regs) = (ptrace::syscall_info(id)?, ptrace::getregs(id)?);
        let thread = match self.threads.entry(id.as_raw()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                new.insert(Thread { process: process_of(id)?, loads: false, pending: None })
            }
        };
        let process = thread.process;
        let descriptors = match self.descriptors.entry(process) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(Descriptors::of(process)?),
        };
        if info.op != ENTRY {
            let Some(pending) = thread.pending.take() else { return Ok(()) };
            self.released = true;
            pending.finish(id, descriptors, regs)?;
            self.interrupt(|_| true);
            return Ok(());
        }
        thread.loads &= !ends_loading(&regs);
        let Some((call, fd)) = call_of(regs.orig_rax) else { return Ok(()) };
        if call == "epoll_pwait" {
            // The thread waits for work; so its start is over, and the process's, if it is the first thread.
            self.done.insert(id.as_raw());
            if id.as_raw() == process {
                self.interrupt(|thread| thread.process == process);
            }
            return Ok(());
        }
        let is_call = |cell: &Cell| cell.site.call == call;
        if self.cell.as_ref().is_some_and(|cell| !is_call(cell)) {
            return Ok(());
        }
        let site = Site {
            thread: name(id, process, self.first, thread.loads)?,
            call: call.to_owned(),
            object: object_of(call, fd, &regs, descriptors),
        };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let count = seen.counts.entry(site.clone()).or_insert(0);
        *count += 1;
        if let Some(cell) = &self.cell
            && cell.site == site
            && *count >= cell.number
            && !seen.hit
            && let Some(pending) = inject(&cell.fault, call, id, regs, descriptors, false)?
        {
            seen.hit = true;
            thread.pending = Some(pending);
        }
        Ok(())
    }

    /// Stops threads that wait in a call, so that they can be released.
    fn interrupt(&self, which: impl Fn(&Thread) -> bool) {
        for (id, _) in self.threads.iter().filter(|(_, thread)| which(thread)) {
            let _gone = ptrace::interrupt(Pid::from_raw(*id));
        }
    }
}

/// Whether a call shows that the loader and the runtime of the language are ready: Rust's runtime handles SIGBUS last;
/// other runtimes make none of the other calls.
fn ends_loading(regs: &libc::user_regs_struct) -> bool {
    let number = regs.orig_rax.cast_signed();
    let handles_sigbus = number == libc::SYS_rt_sigaction && regs.rdi == libc::SIGBUS as u64 && regs.rsi != 0;
    handles_sigbus || [libc::SYS_close_range, libc::SYS_socket, libc::SYS_prctl].contains(&number)
}

/// What a thread is, in the table.
fn name(thread: Pid, process: i32, first: Pid, loads: bool) -> anyhow::Result<String> {
    if loads {
        return Ok("before main".to_owned());
    }
    let comm = fs::read_to_string(format!("/proc/{process}/task/{thread}/comm"))?;
    let comm = comm.trim();
    Ok(if process == first.as_raw() { comm.to_owned() } else { format!("child {comm}") })
}

/// The process of a thread.
fn process_of(thread: Pid) -> anyhow::Result<i32> {
    let status = fs::read_to_string(format!("/proc/{thread}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("Tgid:")).context("no Tgid")?;
    Ok(line.trim().parse()?)
}
