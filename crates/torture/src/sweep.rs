//! The sweep: records the calls of a session, makes the cells, runs a session for each, and sums up.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::errnos;
use crate::fault::{Cell, Site};
use crate::script::script;
use crate::session::{self, Outcome, Subject};
use crate::start;
use crate::table;
use crate::trace::Task;
use crate::verdict::{Baseline, Row, Start, Verdict, Wrong, judge_start};
use crate::way::Way;

/// Number of sessions without a fault.
const CLEAN: usize = 4;
/// Maximum time of one session, in seconds.
const PATIENCE: &str = "120";
/// A place that a session reaches less often is hit only the first time.
const OFTEN: u64 = 4;
/// Number of starts that share namespaces of host and peer.
const BATCH: usize = 16;
/// Time after which a sample begins no more cells. Those of a machine without other load end long before.
const SAMPLE: Duration = Duration::from_secs(30);

/// What to run.
#[derive(Debug, Default)]
pub(crate) struct Options {
    /// `--sample`.
    pub(crate) sample: bool,
    /// `--list`.
    pub(crate) list: bool,
    /// `--start`: not the running phase.
    pub(crate) start_only: bool,
    /// `--running`: not the start.
    pub(crate) running_only: bool,
    /// `--guest`.
    pub(crate) guest: PathBuf,
    /// `--beside`.
    pub(crate) beside: Option<PathBuf>,
    /// Text that the name of a part must contain.
    pub(crate) way: String,
    /// `--only`.
    pub(crate) only: String,
    /// `--jobs`.
    pub(crate) jobs: usize,
    /// `--table`.
    pub(crate) table: Option<PathBuf>,
    /// `--functions`.
    pub(crate) functions: Option<PathBuf>,
}

/// A session, as it is requested from a process in new namespaces.
#[derive(Deserialize, Serialize)]
struct Request {
    subject: Subject,
    task: Task,
    limits: BTreeMap<String, usize>,
}

/// Starts, as they are requested from a process in new namespaces.
#[derive(Deserialize, Serialize)]
struct Starts {
    programs: PathBuf,
    way: Way,
    cells: Vec<Cell>,
}

/// Does what is requested in this process, which is in new namespaces. Returns the outcome as JSON.
pub(crate) fn inside(request: &str) -> anyhow::Result<String> {
    if let Ok(Starts { programs, way, cells }) = serde_json::from_str(request) {
        return Ok(serde_json::to_string(&start::run(&programs, way, &cells)?)?);
    }
    Ok(serde_json::to_string(&inside_session(request)?)?)
}

fn inside_session(request: &str) -> anyhow::Result<Outcome> {
    let request: Request = serde_json::from_str(request)?;
    session::run(&request.subject, request.task, &request.limits)
}

/// Does what is requested in new namespaces.
fn run_inside<T: DeserializeOwned>(request: &impl Serialize) -> anyhow::Result<T> {
    let output = Command::new("timeout")
        .args(["-k", "1", PATIENCE, "unshare"])
        .args(["--net", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc", "--"])
        .arg(std::env::current_exe()?)
        .args(["--inside", &serde_json::to_string(request)?])
        .output()
        .context("can't run timeout and unshare (coreutils, util-linux)")?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "a session failed: {} {}", output.status, text.trim());
    serde_json::from_slice(&output.stdout).context("the session's outcome can't be read")
}

/// Runs both sweeps. Returns whether nothing was lost.
pub(crate) fn run(programs: &Path, options: &Options) -> anyhow::Result<bool> {
    let start = Instant::now();
    let mut parts = Vec::new();
    let before = options.table.as_ref().map(std::fs::read_to_string);
    let before = before.and_then(Result::ok).unwrap_or_default();
    // After each part: a run of all of them takes long.
    let mut add = |part| {
        parts.push(part);
        let table = options.table.as_ref().filter(|_| !options.list);
        table
            .map_or(Ok(()), |path| std::fs::write(path, table::draw(&parts, &before)))
            .context("can't write the table")
    };
    let subject = |way, programs: &Path, plain, foreign| {
        let (programs, guest) = (programs.to_owned(), options.guest.clone());
        Subject { programs, way, guest, plain, foreign }
    };
    if let Some(path) = &options.functions {
        let mut symbols = Vec::new();
        for (way, _) in Way::RUNNING {
            let subject = subject(way, programs, false, false);
            let request = Request { subject, task: Task::Functions, limits: BTreeMap::new() };
            symbols.extend(run_inside::<Outcome>(&request)?.functions);
        }
        std::fs::write(path, script(&symbols)).with_context(|| format!("can't write {}", path.display()))?;
        return Ok(true);
    }
    let is_wanted = |(_, name): &(Way, &str)| name.contains(&options.way);
    if !options.start_only {
        let ways: Vec<(Way, &str)> = Way::RUNNING.into_iter().filter(is_wanted).collect();
        let sweep = |(way, name): &(Way, &'static str)| {
            Ok((*name, sweep_running(&subject(*way, programs, false, false), start, options)?))
        };
        // Each way begins with sessions without a fault: those of a sample do not wait for each other.
        if options.sample {
            let mut swept: Vec<_> =
                each(&ways, ways.len(), |way| Some(sweep(way))).into_iter().collect::<anyhow::Result<_>>()?;
            swept.sort_by_key(|(name, _)| ways.iter().position(|(_, way)| way == name));
            swept.into_iter().try_for_each(&mut add)?;
        } else {
            ways.iter().try_for_each(|way| add(sweep(way)?))?;
        }
    }
    if !options.sample && !options.running_only {
        for (way, name) in Way::ALL.into_iter().filter(is_wanted) {
            add((name, sweep_start(programs, way, options)?))?;
        }
    }
    if let Some(other) = &options.beside {
        for (name, programs, foreign) in [(table::PLAIN, programs, false), (table::BESIDE, other, true)] {
            add((name, sweep_running(&subject(Way::Command, programs, true, foreign), start, options)?))?;
        }
    }
    if options.list {
        return Ok(true);
    }
    for (name, rows) in &parts {
        println!("{name}: {}", table::Summary::of(rows));
    }
    println!("in {} s", start.elapsed().as_secs());
    let ours = parts.iter().filter(|(name, _)| *name != table::BESIDE);
    Ok(ours.map(|(_, rows)| table::Summary::of(rows)).all(|summary| summary.is_clean()))
}

/// Sweeps the start of a program.
fn sweep_start(programs: &Path, way: Way, options: &Options) -> anyhow::Result<Vec<Row>> {
    let starts = |cells: &[Cell]| Starts { programs: programs.to_owned(), way, cells: cells.to_vec() };
    let recorded: Vec<start::Outcome> = run_inside(&starts(&[]))?;
    let recorded = recorded.into_iter().next().context("no outcome")?;
    ensure!(recorded.ready && recorded.broken.is_none(), "without a fault: {recorded:?}");
    let mut cells = Vec::new();
    for (site, count) in &recorded.counts {
        for fault in errnos::faults(site) {
            // Messages are alike.
            let last = if site.object == "stderr" { 1 } else { *count };
            cells.extend((1..=last).map(|number| Cell { site: site.clone(), number, fault: fault.clone() }));
        }
    }
    cells.retain(|cell| cell.to_string().contains(&options.only));
    if options.list {
        cells.iter().for_each(|cell| println!("{cell}"));
        println!("{} places, {} cells", recorded.counts.len(), cells.len());
        return Ok(Vec::new());
    }
    let batches: Vec<&[Cell]> = cells.chunks(BATCH).collect();
    let attempt = |cells: &[Cell]| {
        let failed = |error: anyhow::Error| {
            let wrong: BTreeMap<Wrong, String> = [(Wrong::Hang, format!("{error:#}"))].into();
            cells.iter().map(|_| Some(Verdict { wrong: wrong.clone(), ..Verdict::default() })).collect()
        };
        let judge = |outcomes: Vec<start::Outcome>| {
            let verdict = |(cell, outcome): (&Cell, &start::Outcome)| {
                outcome.hit.then(|| judge_start(cell, way, &recorded, outcome))
            };
            cells.iter().zip(&outcomes).map(verdict).collect::<Vec<_>>()
        };
        run_inside(&starts(cells)).map_or_else(failed, judge)
    };
    let rows = each(&batches, options.jobs, |batch| {
        let is_wrong =
            |verdict: &Option<Verdict>| verdict.as_ref().is_none_or(|verdict| !verdict.wrong.is_empty());
        let row = |(cell, verdict): (&Cell, Option<Verdict>)| {
            // A machine under load can be slow.
            let row = if is_wrong(&verdict) {
                let again = attempt(std::slice::from_ref(cell)).pop().flatten();
                let better = verdict.is_some() && !is_wrong(&again);
                Row { cell: cell.clone(), once: if better { verdict } else { None }, verdict: again }
            } else {
                Row { cell: cell.clone(), verdict, once: None }
            };
            report(&row);
            row
        };
        Some(batch.iter().zip(attempt(batch)).map(row).collect::<Vec<_>>())
    });
    let mut rows: Vec<Row> = rows.into_iter().flatten().collect();
    rows.sort_by(|a, b| a.cell.cmp(&b.cell));
    Ok(rows)
}

/// Sweeps the running phase. `start` is the start of all sweeps.
fn sweep_running(subject: &Subject, start: Instant, options: &Options) -> anyhow::Result<Vec<Row>> {
    let request = |task, limits| Request { subject: subject.clone(), task, limits };
    let recorded: Outcome = run_inside(&request(Task::Record, BTreeMap::new()))?;
    let cells = cells(&recorded.counts, subject, options);
    if options.list {
        cells.iter().for_each(|cell| println!("{cell}"));
        println!("{} places, {} cells", recorded.counts.len(), cells.len());
        return Ok(Vec::new());
    }
    ensure!(!cells.is_empty(), "no cell contains '{}' (--only)", options.only);
    let clean = vec![(); if options.sample && subject.way != Way::Command { 1 } else { CLEAN }];
    let clean = each(&clean, options.jobs, |()| Some(run_inside(&request(Task::Nothing, BTreeMap::new()))));
    let mut outcomes = clean.into_iter().collect::<anyhow::Result<Vec<Outcome>>>()?;
    outcomes.push(recorded);
    let baseline = Baseline::of(&outcomes)?;

    let run_cell = |cell: &Cell| {
        let outcome: Outcome =
            run_inside(&request(Task::Inject(cell.clone()), baseline.descriptors.clone()))?;
        anyhow::Ok(outcome.hit.then(|| baseline.judge(cell, &outcome)))
    };
    let mut rows = each(&cells, options.jobs, |cell| {
        if options.sample && start.elapsed() > SAMPLE {
            return None;
        }
        let row = judge_twice(cell, &run_cell);
        report(&row);
        Some(row)
    });
    if rows.len() < cells.len() {
        println!("{} of {} cells began within {} s", rows.len(), cells.len(), SAMPLE.as_secs());
    }
    rows.sort_by(|a, b| a.cell.cmp(&b.cell));
    Ok(rows)
}

/// Does `work` for each item, `jobs` at a time. Returns the results in any order.
fn each<I: Sync, T: Send>(items: &[I], jobs: usize, work: impl Fn(&I) -> Option<T> + Sync) -> Vec<T> {
    let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let result = work(item);
                    results.lock().unwrap_or_else(PoisonError::into_inner).extend(result);
                }
            });
        }
    });
    results.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a cell, and again if something is wrong: a machine under load can be slow. What was wrong counts if it is not
/// shown to be right.
fn judge_twice(cell: &Cell, run: &impl Fn(&Cell) -> anyhow::Result<Option<Verdict>>) -> Row {
    let attempt = || {
        run(cell).unwrap_or_else(|error| {
            let wrong = [(Wrong::Hang, format!("{error:#}"))].into();
            Some(Verdict { wrong, ..Verdict::default() })
        })
    };
    let first = attempt();
    let is_wrong =
        |verdict: &Option<Verdict>| verdict.as_ref().is_some_and(|verdict| !verdict.wrong.is_empty());
    if first.is_some() && !is_wrong(&first) {
        return Row { cell: cell.clone(), verdict: first, once: None };
    }
    let mut second = attempt();
    if is_wrong(&first) && second.is_none() {
        second = attempt();
    }
    match (is_wrong(&first), second) {
        (true, Some(better)) if better.wrong.is_empty() => {
            Row { cell: cell.clone(), verdict: Some(better), once: first }
        }
        (true, _) => Row { cell: cell.clone(), verdict: first, once: None },
        (false, second) => Row { cell: cell.clone(), verdict: second, once: None },
    }
}

fn report(row: &Row) {
    match (&row.verdict, &row.once) {
        (Some(verdict), Some(once)) => println!("{}: {verdict} (once: {once})", row.cell),
        (Some(Verdict { start: Some(Start::Refused(message)), wrong, .. }), None) if wrong.is_empty() => {
            println!("{}: ended: {}", row.cell, message.lines().last().unwrap_or_default());
        }
        (Some(Verdict { start: Some(Start::Warned(warning)), .. }), None) => {
            println!("{}: started with: {warning}", row.cell);
        }
        (Some(verdict), None) => println!("{}: {verdict}", row.cell),
        (None, _) => println!("{}: not reached", row.cell),
    }
}

fn cells(counts: &[(Site, u64)], subject: &Subject, options: &Options) -> Vec<Cell> {
    let mut cells = Vec::new();
    for (site, count) in counts {
        // Most of what passt does, pasta does, too.
        let is_known = subject.plain || subject.way != Way::Command && !site.is_guests();
        let numbers: &[u64] = match *count {
            ..OFTEN => &[1],
            count if is_known => &[count / 2],
            count => &[1, count / 2],
        };
        for fault in errnos::faults(site) {
            cells.extend(numbers.iter().map(|n| Cell {
                site: site.clone(),
                number: *n,
                fault: fault.clone(),
            }));
        }
    }
    cells.retain(|cell| cell.to_string().contains(&options.only));
    if options.sample { sample(&cells, subject.way) } else { cells }
}

/// One cell of each call, the first time that a thread makes it; of passt, only those calls that carry the guest's frames
/// and messages. Which fault it is differs from call to call.
fn sample(cells: &[Cell], way: Way) -> Vec<Cell> {
    const CARRYING: [&str; 4] = ["accept4", "recvfrom", "sendmsg", "recvmsg"];
    let carries = |cell: &&Cell| cell.site.is_guests() && CARRYING.contains(&&*cell.site.call);
    let wanted: Vec<&Cell> = cells.iter().filter(|cell| way == Way::Command || carries(cell)).collect();
    let calls: BTreeSet<&str> = wanted.iter().map(|cell| &*cell.site.call).collect();
    let pick = |(number, call): (usize, &str)| {
        let all: Vec<&&Cell> =
            wanted.iter().filter(|cell| cell.site.call == call && cell.number == 1).collect();
        all.get(number % all.len().max(1)).map(|cell| (**cell).clone())
    };
    calls.into_iter().enumerate().filter_map(pick).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Fault;

    fn site(call: &str, object: &str) -> Site {
        Site { thread: "pasta".into(), call: call.into(), object: object.into() }
    }

    fn subject(way: Way) -> Subject {
        Subject { programs: PathBuf::new(), way, guest: PathBuf::new(), plain: false, foreign: false }
    }

    #[test]
    fn a_place_that_is_reached_often_is_hit_twice() {
        let counts = [(site("shutdown", "tcp"), 3), (site("shutdown", "unix"), 8)];
        let cells = cells(&counts, &subject(Way::Command), &Options::default());
        let numbers: Vec<u64> = cells.iter().map(|cell| cell.number).collect();
        assert_eq!(numbers, [1, 1, 4]);
    }

    /// Of passt, only places of the guest's connection: pasta's sweep has the others.
    #[test]
    fn places_of_the_guests_connection_are_hit_twice() {
        let counts = [(site("listen", "guest"), 8), (site("listen", "unix"), 8)];
        let cells =
            cells(&counts, &subject(Way::Passt), &Options { only: "ENOMEM".into(), ..Options::default() });
        let numbers: Vec<u64> = cells.iter().map(|cell| cell.number).collect();
        assert_eq!(numbers, [1, 4, 4]);
    }

    /// The sample has each call, and does not depend on how often a session reaches a place.
    #[test]
    fn a_sample_has_one_cell_of_each_call() {
        let sample = |count| {
            let counts = [(site("bind", "udp"), count), (site("close", "udp"), 1), (site("close", "tap"), 1)];
            cells(&counts, &subject(Way::Command), &Options { sample: true, ..Options::default() })
        };
        assert_eq!(sample(2), sample(200));
        let calls: Vec<String> = sample(2).into_iter().map(|cell| cell.site.call).collect();
        assert_eq!(calls, ["bind", "close"]);
    }

    /// The verdicts of a cell that is run repeatedly.
    fn judged(verdicts: &[Option<Verdict>]) -> Row {
        let cell = Cell { site: site("bind", "udp"), number: 1, fault: Fault::Short };
        let next = std::cell::Cell::new(0);
        judge_twice(&cell, &|_| Ok(verdicts[next.replace(next.get() + 1)].clone()))
    }

    #[test]
    fn what_was_wrong_is_right_only_if_the_place_is_reached_again() {
        let wrong = Verdict { wrong: [(Wrong::Hang, String::new())].into(), ..Verdict::default() };
        let (wrong, right) = (Some(wrong), Some(Verdict::default()));
        for (verdicts, verdict, once) in [
            (vec![right.clone()], &right, &None),
            (vec![None, right.clone()], &right, &None),
            (vec![None, None], &None, &None),
            (vec![wrong.clone(), right.clone()], &right, &wrong),
            (vec![wrong.clone(), wrong.clone()], &wrong, &None),
            (vec![wrong.clone(), None, right.clone()], &right, &wrong),
            (vec![wrong.clone(), None, None], &wrong, &None),
        ] {
            let row = judged(&verdicts);
            assert_eq!((&row.verdict, &row.once), (verdict, once), "{verdicts:?}");
        }
    }

    #[test]
    fn only_matching_cells_are_run() {
        let options = Options { only: "close(udp) #1: EIO".into(), ..Options::default() };
        let counts = [(site("bind", "udp"), 1), (site("close", "udp"), 1), (site("close", "tap"), 1)];
        let found = cells(&counts, &subject(Way::Command), &options);
        assert_eq!(found, [Cell { site: site("close", "udp"), number: 1, fault: Fault::Errno(libc::EIO) }]);
    }
}
