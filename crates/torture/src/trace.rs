//! The tracer: starts the program under test, follows all its threads, counts its system calls, and injects one fault.
//!
//! After the fault has been injected, each thread is released at its next stop, so the rest of the session runs at full
//! speed.

mod calls;
mod functions;
mod inject;
mod kind;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::fault::{Cell, Site};
pub(crate) use calls::of as call_of;
use functions::Functions;
pub(crate) use inject::{Pending, object as object_of, start as inject};
pub(crate) use kind::{Descriptors, UNUSED};

/// Maximum time until the program is ready.
const START: Duration = Duration::from_secs(30);

/// What the tracer does.
#[derive(Clone, Deserialize, Serialize)]
pub(crate) enum Task {
    /// Nothing: the program runs untraced.
    Nothing,
    /// Counts the calls at each place.
    Record,
    /// Injects a fault.
    Inject(Cell),
    /// Notes the functions that are called.
    Functions,
}

/// What the tracer has seen.
#[derive(Clone, Default)]
pub(crate) struct Seen {
    /// Number of calls at each place.
    pub(crate) counts: BTreeMap<Site, u64>,
    /// The counts when the traffic had ended and the later flows began. A fault at a place that the traffic has reached does
    /// not hit a later flow: that would look like a lasting effect.
    pub(crate) of_traffic: BTreeMap<Site, u64>,
    /// The injected fault.
    pub(crate) hit: Option<Hit>,
    /// The symbols of called functions, in the order of their first calls.
    pub(crate) functions: Vec<String>,
    /// The exit status that a shell would report.
    pub(crate) status: Option<i32>,
}

/// An injected fault.
#[derive(Clone, Debug)]
pub(crate) struct Hit {
    /// The ports of the socket that was hit.
    pub(crate) ports: Vec<u16>,
}

/// The program under test.
pub(crate) struct Tracee {
    /// Its process ID.
    pub(crate) pid: i32,
    seen: Arc<Mutex<Seen>>,
    tracer: JoinHandle<anyhow::Result<()>>,
}

impl Tracee {
    /// Starts the program. Returns when `ready` exists and all threads are traced.
    ///
    /// `foreign`: its filters of system calls are not known.
    pub(crate) fn start(command: Command, ready: PathBuf, task: Task, foreign: bool) -> anyhow::Result<Self> {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (sender, receiver) = mpsc::channel();
        let state = seen.clone();
        let tracer = std::thread::spawn(move || trace(command, ready, task, foreign, state, sender));
        let Ok(pid) = receive(&receiver) else {
            let error = tracer.join().map_err(|_| anyhow::anyhow!("the tracer panicked"))?;
            error.context("the program did not start")?;
            bail!("the program did not start");
        };
        Ok(Self { pid, seen, tracer })
    }

    /// What has been seen so far.
    pub(crate) fn seen(&self) -> Seen {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes that the traffic has ended, and that later flows begin.
    pub(crate) fn end_traffic(&self) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.of_traffic = seen.counts.clone();
    }

    /// Waits until the program has ended, at most this long. Returns whether it has.
    pub(crate) fn wait(&self, patience: Duration) -> bool {
        let end = Instant::now() + patience;
        while self.seen().status.is_none() && !self.tracer.is_finished() {
            if Instant::now() > end {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }
}

fn receive(receiver: &Receiver<i32>) -> anyhow::Result<i32> {
    receiver.recv_timeout(START * 2).context("not ready")
}

/// The thread that is the program's parent and tracer: only one thread of a process can be its tracer.
fn trace(
    mut command: Command,
    ready: PathBuf,
    task: Task,
    foreign: bool,
    seen: Arc<Mutex<Seen>>,
    sender: Sender<i32>,
) -> anyhow::Result<()> {
    // The tracer reaps the process, with all its threads.
    #[allow(clippy::zombie_processes)]
    let child = command.spawn().context("can't start the program")?;
    let pid = Pid::from_raw(child.id().cast_signed());
    let end = Instant::now() + START;
    // Breakpoints that are set before the event loop begins are lost (`sys::pages::release_code`).
    while !ready.exists() || matches!(task, Task::Functions) && !waits_for_events(pid) {
        if let status @ (WaitStatus::Exited(..) | WaitStatus::Signaled(..)) =
            waitpid(pid, Some(WaitPidFlag::WNOHANG))?
        {
            bail!("ended at its start: {status:?}");
        }
        if Instant::now() > end {
            bail!("not ready after {} s", START.as_secs());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let descriptors = Descriptors::of(pid.as_raw())?;
    let mut tracer = Tracer {
        pid,
        task,
        foreign,
        seen,
        threads: HashMap::new(),
        descriptors,
        functions: None,
        released: false,
        owed: None,
    };
    if !matches!(tracer.task, Task::Nothing) {
        tracer.attach()?;
    }
    sender.send(pid.as_raw())?;
    tracer.run()
}

/// Whether the main thread of a process waits for events.
fn waits_for_events(pid: Pid) -> bool {
    let call = fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
    let number = call.split(' ').next().and_then(|number| number.parse().ok());
    number.and_then(call_of).is_some_and(|(name, _)| name.starts_with("epoll_"))
}

struct Tracer {
    pid: Pid,
    task: Task,
    foreign: bool,
    seen: Arc<Mutex<Seen>>,
    threads: HashMap<i32, Thread>,
    descriptors: Descriptors,
    functions: Option<Functions>,
    /// The fault is complete: threads are to be released.
    released: bool,
    /// A thread whose next `epoll_pwait` is to report a descriptor.
    owed: Option<(Pid, i32)>,
}

struct Thread {
    name: String,
    /// The thread is in a system call whose end will be reported.
    inside: bool,
    pending: Option<Pending>,
}

impl Tracer {
    fn attach(&mut self) -> anyhow::Result<()> {
        for entry in fs::read_dir(format!("/proc/{}/task", self.pid))? {
            let tid: i32 = entry?.file_name().to_string_lossy().parse()?;
            let name = fs::read_to_string(format!("/proc/{}/task/{tid}/comm", self.pid))?.trim().to_owned();
            let thread = Pid::from_raw(tid);
            ptrace::seize(thread, Options::PTRACE_O_TRACESYSGOOD).context("can't trace (needs root)")?;
            ptrace::interrupt(thread)?;
            self.threads.insert(tid, Thread { name, inside: false, pending: None });
        }
        if matches!(self.task, Task::Functions) {
            self.functions = Some(Functions::watch(self.pid)?);
        }
        Ok(())
    }

    /// Handles stops until the program has ended.
    fn run(&mut self) -> anyhow::Result<()> {
        loop {
            let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
            let status = match waitpid(None, Some(flags)) {
                Err(Errno::EINTR) => continue,
                Err(Errno::ECHILD) => return Ok(()),
                status => status?,
            };
            match status {
                WaitStatus::PtraceSyscall(thread) => self.on_call(thread),
                WaitStatus::Stopped(thread, Signal::SIGTRAP) if self.functions.is_some() => {
                    self.on_trap(thread)
                }
                WaitStatus::Stopped(thread, signal) => self.resume(thread, Some(signal)),
                WaitStatus::PtraceEvent(thread, ..) => self.resume(thread, None),
                WaitStatus::Exited(thread, code) => self.on_end(thread, code),
                WaitStatus::Signaled(thread, signal, _) => self.on_end(thread, 128 + signal as i32),
                _ => {}
            }
        }
    }

    fn on_end(&mut self, thread: Pid, status: i32) {
        self.threads.remove(&thread.as_raw());
        if thread == self.pid {
            self.seen.lock().unwrap_or_else(PoisonError::into_inner).status = Some(status);
        }
    }

    /// Lets a stopped thread continue. If the thread has been killed meanwhile, the error does not matter.
    fn resume(&self, thread: Pid, signal: Option<Signal>) {
        let busy = self.threads.get(&thread.as_raw()).is_some_and(|thread| thread.pending.is_some());
        let _gone = if self.functions.is_some() {
            ptrace::cont(thread, signal)
        } else if self.released && !busy {
            ptrace::detach(thread, signal)
        } else {
            ptrace::syscall(thread, signal)
        };
    }

    fn on_trap(&mut self, thread: Pid) {
        if let Some(Ok(called)) = self.functions.as_mut().map(|functions| functions.on_trap(thread)) {
            self.seen.lock().unwrap_or_else(PoisonError::into_inner).functions.extend(called);
        }
        self.resume(thread, None);
    }

    fn on_call(&mut self, thread: Pid) {
        if let Err(_gone) = self.handle(thread) {
            // The thread has been killed, or its memory is not mapped any more.
        }
        self.resume(thread, None);
    }

    fn handle(&mut self, id: Pid) -> anyhow::Result<()> {
        let regs = ptrace::getregs(id)?;
        let Some(thread) = self.threads.get_mut(&id.as_raw()) else { return Ok(()) };
        let enters = !thread.inside && regs.rax.cast_signed() == i64::from(-libc::ENOSYS);
        thread.inside = enters;
        if !enters {
            let Some(pending) = thread.pending.take() else { return Ok(()) };
            self.owed = pending.owes().map(|fd| (id, fd));
            self.released = self.owed.is_none();
            return pending.finish(id, &self.descriptors, regs);
        }
        let Some((call, fd)) = call_of(regs.orig_rax) else { return Ok(()) };
        if let Some((_, ready)) = self.owed.filter(|(owed, _)| *owed == id && call.starts_with("epoll_pwait"))
        {
            self.owed = None;
            thread.pending = Some(inject::report_ready(ready, id, regs)?);
            return Ok(());
        }
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.hit.is_some() {
            return Ok(());
        }
        if let Task::Inject(cell) = &self.task
            && (cell.site.call != call || cell.site.thread != thread.name)
        {
            return Ok(());
        }
        let site = Site {
            thread: thread.name.clone(),
            call: call.to_owned(),
            object: object_of(call, fd, &regs, &self.descriptors),
        };
        let count = seen.counts.entry(site.clone()).or_insert(0);
        *count += 1;
        let count = *count;
        if let Task::Inject(cell) = &self.task
            && cell.site == site
            && count >= cell.number
            && !seen.of_traffic.contains_key(&site)
            && let Some(pending) = inject(&cell.fault, call, id, regs, &self.descriptors, self.foreign)?
        {
            let ports = fd.map(|at| self.descriptors.ports(inject::argument(&regs, at) as i32));
            seen.hit = Some(Hit { ports: ports.unwrap_or_default() });
            thread.pending = Some(pending);
        }
        Ok(())
    }
}
