//! `/debug/`: what the threads of the process are doing. Served with `--debug-endpoints` only.
//!
//! Nothing here stops a thread, sends it a signal or looks into its stack: all of it is read from where the
//! system keeps it anyway, so that asking cannot hurt a server that has trouble already. One question is
//! answered at a time.

use std::{collections::BTreeMap, fs, path::Path, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{RawQuery, State},
    http::StatusCode,
    routing::get,
};
use sconce_engine::{pool::Pool, text::quote};
use tokio::{sync::Semaphore, time::Instant};

use crate::columns::Table;

/// The threads that are told of; there are some hundreds at most.
const MAX_THREADS: usize = 4096;
/// How long a profile is taken, in seconds, unless somebody says so.
const SECONDS: u64 = 5;
/// And at most.
const MAX_SECONDS: u64 = 60;
/// Between two looks at what the workers do.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// A kind of answer to a question that was asked badly or at the wrong time.
type Refusal = (StatusCode, String);

#[derive(Clone)]
struct Debug {
    pool: Pool,
    /// Whoever has it is being answered.
    turn: Arc<Semaphore>,
}

/// The paths below `/debug/`.
pub(crate) fn routes(pool: Pool) -> Router {
    let debug = Debug { pool, turn: Arc::new(Semaphore::new(1)) };
    Router::new()
        .route("/debug/threads", get(threads))
        .route("/debug/profile", get(profile))
        .with_state(debug)
}

/// A thread, as the system tells of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Thread {
    name: String,
    state: String,
    /// What it waits for in the kernel.
    waits_in: String,
    /// How long it has run, and how long it has waited for a core.
    ran: Duration,
    waited: Duration,
    /// When it was started, in ticks of the system's clock.
    started: u64,
}

type Threads = BTreeMap<u32, Thread>;

async fn threads(State(debug): State<Debug>) -> Result<String, Refusal> {
    let _turn = debug.turn()?;
    let threads = debug.look().await?;
    let mut table = Table::new(&["THREAD", "NAME", "STATE", "RAN", "WAITED FOR A CORE", "WAITS IN"]);
    for (id, thread) in &threads {
        let Thread { name, state, waits_in, ran, waited, .. } = thread;
        let times = [ran, waited].map(|time| format!("{:.3} s", time.as_secs_f64()));
        let [ran, waited] = times;
        table.row(vec![id.to_string(), quote(name), state.clone(), ran, waited, quote(waits_in)], None);
    }
    Ok(format!("{}\n{}", table.text(), workers(&debug.pool)))
}

/// What each worker is doing now.
fn workers(pool: &Pool) -> String {
    let mut table = Table::new(&["WORKER", "RUNS", "FOR"]);
    for worker in pool.status().iter().flat_map(|device| &device.workers) {
        let row = match &worker.running {
            Some(run) => {
                let of = format!("{} version {}", quote(&run.model), run.version);
                let hung = if run.hung { ", not expected to end" } else { "" };
                vec![worker.name.clone(), of, format!("{:.3} s{hung}", run.time.as_secs_f64())]
            }
            None => vec![worker.name.clone(), "-".to_owned(), "-".to_owned()],
        };
        table.row(row, None);
    }
    table.text()
}

async fn profile(State(debug): State<Debug>, RawQuery(query): RawQuery) -> Result<String, Refusal> {
    let time = seconds(query.as_deref())?;
    let _turn = debug.turn()?;
    let before = debug.look().await?;
    let begin = Instant::now();
    // In how many looks a worker ran a version.
    let (mut looks, mut seen) = (0_u32, BTreeMap::<(String, String), u32>::new());
    let mut interval = tokio::time::interval(LOOK_EVERY);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while begin.elapsed() < time {
        interval.tick().await;
        looks += 1;
        for worker in debug.pool.status().into_iter().flat_map(|device| device.workers) {
            if let Some(run) = worker.running {
                let of = format!("{} version {}", quote(&run.model), run.version);
                *seen.entry((worker.name, of)).or_default() += 1;
            }
        }
    }
    let (took, after) = (begin.elapsed(), debug.look().await?);
    let mut table = Table::new(&["WORKER", "RAN", "OF THE TIME"]);
    for ((worker, of), count) in &seen {
        let share = f64::from(*count) / f64::from(looks.max(1));
        table.row(vec![worker.clone(), of.clone(), percent(share)], None);
    }
    let heading = format!("{:.1} s, {looks} looks at the workers", took.as_secs_f64());
    Ok(format!("{heading}\n\n{}\n{}", busiest(&before, &after, took), table.text()))
}

/// Threads by how much they ran in that time.
fn busiest(before: &Threads, after: &Threads, took: Duration) -> String {
    let share = |time: Duration| time.as_secs_f64() / took.as_secs_f64().max(f64::MIN_POSITIVE);
    let none = Thread::default();
    let mut rows: Vec<_> = after
        .iter()
        .map(|(id, thread)| {
            // A number may have gone to another thread in the meantime.
            let same = before.get(id).filter(|before| before.name == thread.name).unwrap_or(&none);
            (thread.ran.saturating_sub(same.ran), thread.waited.saturating_sub(same.waited), id, thread)
        })
        .filter(|(ran, waited, ..)| !ran.is_zero() || !waited.is_zero())
        .collect();
    rows.sort_by_key(|(ran, waited, id, _)| std::cmp::Reverse((*ran, *waited, **id)));
    let mut table = Table::new(&["THREAD", "NAME", "RAN", "WAITED FOR A CORE"]);
    for (ran, waited, id, thread) in rows {
        table.row(
            vec![id.to_string(), quote(&thread.name), percent(share(ran)), percent(share(waited))],
            None,
        );
    }
    table.text()
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// How long `seconds=N` says, if it says so.
fn seconds(query: Option<&str>) -> Result<Duration, Refusal> {
    let Some(query) = query.filter(|query| !query.is_empty()) else {
        return Ok(Duration::from_secs(SECONDS));
    };
    let number = query.strip_prefix("seconds=").and_then(|number| number.parse().ok());
    match number {
        Some(number @ 1..=MAX_SECONDS) => Ok(Duration::from_secs(number)),
        Some(_) | None => Err((
            StatusCode::BAD_REQUEST,
            format!(
                "'{}' is not served: seconds=N is expected, with N from 1 to {MAX_SECONDS}\n",
                quote(query)
            ),
        )),
    }
}

impl Debug {
    fn turn(&self) -> Result<tokio::sync::SemaphorePermit<'_>, Refusal> {
        self.turn.try_acquire().map_err(|_| {
            let why = "another question to /debug is being answered: ask again when it has been\n";
            (StatusCode::TOO_MANY_REQUESTS, why.to_owned())
        })
    }

    /// All threads of the process, read where waiting for the system holds up nobody.
    async fn look(&self) -> Result<Threads, Refusal> {
        let failed = |why: String| {
            (StatusCode::INTERNAL_SERVER_ERROR, format!("the threads cannot be listed: {}\n", quote(&why)))
        };
        let mut threads = match tokio::task::spawn_blocking(|| list(Path::new("/proc/self/task"))).await {
            Ok(Ok(threads)) => threads,
            Ok(Err(error)) => return Err(failed(error.to_string())),
            Err(error) => return Err(failed(error.to_string())),
        };
        for worker in self.pool.status().iter().flat_map(|device| &device.workers) {
            tell_apart(&mut threads, &worker.name);
        }
        Ok(threads)
    }
}

/// A thread begins with the name of the one that made it, so those that libtorch makes in a worker, to run a part of an
/// operator each, have its name. The worker was there first.
fn tell_apart(threads: &mut Threads, worker: &str) {
    let mut same: Vec<(&u32, &mut Thread)> =
        threads.iter_mut().filter(|(_, thread)| thread.name == worker).collect();
    same.sort_by_key(|(id, thread)| (thread.started, **id));
    same.into_iter().skip(1).for_each(|(_, thread)| thread.name.push_str(", a helper"));
}

/// Threads that end while they are looked at are left out.
fn list(tasks: &Path) -> std::io::Result<Threads> {
    let mut threads = Threads::new();
    for entry in fs::read_dir(tasks)?.take(MAX_THREADS) {
        let entry = entry?;
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        threads.extend(thread(&entry.path()).map(|thread| (id, thread)));
    }
    Ok(threads)
}

fn thread(task: &Path) -> Option<Thread> {
    let read = |name: &str| fs::read_to_string(task.join(name)).ok();
    // `ID (NAME) STATE ...`, where the name may have anything in it, parentheses too.
    let stat = read("stat")?;
    let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = match fields.next()? {
        "R" => "runs",
        "S" | "I" => "sleeps",
        "D" => "waits for a disk",
        "T" | "t" => "is stopped",
        "Z" | "X" => "has ended",
        other => other,
    };
    // Not every system tells these.
    let spent = read("schedstat").unwrap_or_default();
    let mut spent = spent.split_whitespace().map(|number| number.parse().unwrap_or(0));
    let mut next = || Duration::from_nanos(spent.next().unwrap_or(0));
    let (ran, waited) = (next(), next());
    let waits_in = read("wchan").filter(|name| name != "0" && !name.is_empty());
    Some(Thread {
        name: name.to_owned(),
        state: state.to_owned(),
        started: fields.nth(18).and_then(|ticks| ticks.parse().ok()).unwrap_or_default(),
        waits_in: waits_in.unwrap_or_else(|| "-".to_owned()),
        ran,
        waited,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_read_whatever_their_names_are() {
        let dir = tempfile::tempdir().unwrap();
        let file = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        file("7/stat", "7 (a) b (c) R 1 2 3\n");
        file("7/schedstat", "1500000000 250 3\n");
        file("7/wchan", "0");
        file("8/stat", "8 (cpu-0) S 1");
        file("8/wchan", "ep_poll");
        file("9/comm", "it ended meanwhile");
        file("self/stat", "1 (no thread) S");
        let threads = list(dir.path()).unwrap();
        assert_eq!(threads.keys().collect::<Vec<_>>(), [&7, &8]);
        let seven = &threads[&7];
        assert_eq!((&*seven.name, &*seven.state, &*seven.waits_in), ("a) b (c", "runs", "-"));
        assert_eq!((seven.ran, seven.waited), (Duration::from_millis(1500), Duration::from_nanos(250)));
        assert_eq!((&*threads[&8].waits_in, threads[&8].ran), ("ep_poll", Duration::ZERO));
        let this = list(Path::new("/proc/self/task")).unwrap();
        assert!(this.values().any(|thread| thread.state == "runs"), "{this:?}");
    }

    #[test]
    fn a_thread_that_a_worker_has_made_is_told_from_it() {
        let thread = |name: &str, started| Thread { name: name.to_owned(), started, ..Thread::default() };
        let mut threads = Threads::from([
            (3, thread("cpu-0", 8)),
            (7, thread("cpu-0", 5)),
            (8, thread("cpu-0", 5)),
            (9, thread("cpu-1", 5)),
            (10, thread("cpu-10", 5)),
        ]);
        for worker in ["cpu-0", "cpu-1", "gpu:0-0"] {
            tell_apart(&mut threads, worker);
        }
        let names: Vec<&str> = threads.values().map(|thread| &*thread.name).collect();
        assert_eq!(names, ["cpu-0, a helper", "cpu-0", "cpu-0, a helper", "cpu-1", "cpu-10"]);
        let this = list(Path::new("/proc/self/task")).unwrap();
        assert!(this.values().all(|thread| thread.started > 0), "{this:?}");
    }

    #[test]
    fn who_ran_most_comes_first_and_who_did_not_is_left_out() {
        let thread = |name: &str, ran| Thread {
            name: name.to_owned(),
            ran: Duration::from_millis(ran),
            ..Thread::default()
        };
        let before = Threads::from([(1, thread("idle", 5)), (2, thread("busy", 5)), (3, thread("gone", 5))]);
        let after =
            Threads::from([(1, thread("idle", 5)), (2, thread("busy", 505)), (3, thread("new", 100))]);
        assert_eq!(
            busiest(&before, &after, Duration::from_secs(1)),
            "THREAD  NAME  RAN     WAITED FOR A CORE\n2       busy  50.0 %  0.0 %\n3       new   10.0 %  0.0 %\n"
        );
    }

    #[test]
    fn a_profile_takes_a_bounded_time() {
        assert_eq!(seconds(None), Ok(Duration::from_secs(SECONDS)));
        assert_eq!(seconds(Some("seconds=60")), Ok(Duration::from_secs(60)));
        for bad in ["seconds=0", "seconds=61", "seconds=-1", "seconds=1e3", "seconds=", "second=1", "x\n"] {
            let (status, text) = seconds(Some(bad)).unwrap_err();
            assert_eq!(status, StatusCode::BAD_REQUEST);
            assert!(text.contains(&quote(bad)) && text.lines().count() == 1, "{text}");
        }
    }
}
