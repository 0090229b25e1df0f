//! What runs of a model cost, measured, and what is best run next because of it.
//!
//! Warm-up leaves a first table, every run in service refines it. Requests of one model may differ in
//! size by orders of magnitude, so there is a grid for each power of two of bytes per row. A grid has a
//! column for each number of threads, and a column a point for each power of two of rows.
//!
//! What has not been measured is taken to be a little better than what is known suggests, so that it is
//! tried, and is then known.

use std::time::{Duration, Instant};

/// How much a run counts against all before it when it was faster ...
const FASTER: f64 = 0.4;
/// ... and when it was slower: then something else may have been in its way ...
const SLOWER: f64 = 0.2;
/// ... and one that took more than so many times as long says little of what runs cost.
const WILD: f64 = 3.0;
/// Rates that are this close are equal: then fewer threads and smaller batches are better ...
const CLOSE: f64 = 0.95;
/// ... and so are these where other models use the device, too. Then more threads are better, for they leave
/// workers to the others, who would wait as long as a batch takes.
pub(super) const CLOSE_BESIDE_OTHERS: f64 = 0.88;
/// Twice the rows are hoped to take only this much longer.
const HOPE_ROWS: f64 = 0.7;
/// So much of the gain that other numbers of threads could bring at best is hoped for.
const HOPE_THREADS: f64 = 0.9;
/// A batch is at most so many times as large as the largest that is known: nobody is to wait long for a
/// guess.
const STEP: usize = 4;
/// So many runs have to be seen before one is surely short ...
const ENOUGH: u64 = 16;
/// ... and none of more than so many seconds, ...
const LONG: f64 = 0.01;
/// ... which is forgotten like this, run by run.
const FORGETS: f64 = 0.999;
/// One run in so many is spent on an alternative ...
const TRY_AFTER_RUNS: u64 = 50;
/// ... and one in this time.
const TRY_AFTER: Duration = Duration::from_secs(1);
/// An alternative that is thought to be so many times worse is not tried.
const HOPELESS: f64 = 2.0;
/// Grids that are kept; of more sizes the nearest is used.
const MOST_GRIDS: usize = 24;

/// What the scheduler could give to a model right now.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// Rows of the request that comes first: no batch is smaller.
    pub(super) least: usize,
    /// Rows that wait and may run together, at most the largest batch.
    pub(super) rows: usize,
    /// Rows that wait, of all kinds.
    pub(super) backlog: usize,
    /// Cores of the device that nobody uses; one at least.
    pub(super) cores: usize,
    /// Cores of the device.
    pub(super) all_cores: usize,
    /// Runs of the model that could begin.
    pub(super) runs: usize,
    /// Whether other models use the device, too.
    pub(super) shared: bool,
}

impl Room {
    /// Numbers of threads that are told apart: 1, 2, 4, ... and all, of those that are free.
    fn threads(&self) -> impl Iterator<Item = usize> + use<> {
        let free = self.cores;
        doublings(self.all_cores).take_while(move |threads| *threads <= free.max(1))
    }
}

/// A run: how many rows at most, on how many threads, and how long it is expected to take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Choice {
    pub(super) rows: usize,
    pub(super) threads: usize,
    /// Seconds; `None` while nothing is known.
    pub(super) takes: Option<f64>,
    /// Rows per second that the device would give if it went on so.
    pub(super) rate: f64,
}

/// All that is known of a model.
#[derive(Clone, Debug, Default)]
pub(super) struct Costs {
    /// By power of two of bytes per row.
    grids: Vec<(u8, Grid)>,
}

impl Costs {
    /// A run has taken so long.
    pub(super) fn record(&mut self, size: u8, rows: usize, threads: usize, took: Duration) {
        let index = match self.grids.iter().position(|(known, _)| *known == size) {
            Some(index) => index,
            None if self.grids.len() < MOST_GRIDS => {
                self.grids.push((size, Grid::default()));
                self.grids.len() - 1
            }
            None => return,
        };
        self.grids[index].1.record(rows, threads, took.as_secs_f64());
    }

    /// How long a run is expected to take, in seconds; `None` while nothing like it has been measured.
    pub(super) fn estimate(&self, size: u8, rows: usize, threads: usize) -> Option<f64> {
        self.grid(size)?.estimate(rows, threads)
    }

    /// Whether a run of about so many rows has been seen: if not, anything is better than a guess.
    pub(super) fn has_seen(&self, size: u8, rows: usize, threads: usize) -> bool {
        let grid = self.grids.iter().find(|(known, _)| *known == size).map(|(_, grid)| grid);
        let column = grid.and_then(|grid| grid.columns.iter().find(|column| column.threads == threads));
        column.is_some_and(|column| column.points.iter().any(|point| point.power == rows.max(1).ilog2()))
    }

    /// How long a run on one thread takes, in seconds, where many have been seen and none of them took long;
    /// `None` for all others.
    pub(super) fn surely(&self, size: u8, rows: usize) -> Option<f64> {
        let (_, grid) = self.grids.iter().find(|(known, _)| *known == size)?;
        let column = grid.columns.iter().find(|column| column.threads == 1)?;
        let point = column.points.iter().find(|point| point.power == rows.ilog2())?;
        (point.runs >= ENOUGH && point.longest < LONG).then_some(point.takes)
    }

    /// The run that gives the most rows per second, with what there is to run and to run it on.
    pub(super) fn best(&self, size: u8, room: &Room) -> Choice {
        let most = room.threads().last().unwrap_or(1);
        let unknown = Choice { rows: room.least, threads: most, takes: None, rate: 0.0 };
        let Some(grid) = self.grid(size) else { return unknown };
        // Where a run cannot have more of the device than one worker, others wait for whole batches.
        let close_rows = if room.shared && most == 1 { CLOSE_BESIDE_OTHERS } else { CLOSE };
        let close_threads = if room.shared { CLOSE_BESIDE_OTHERS } else { CLOSE };
        let of = |threads| {
            let sizes = doublings(room.rows).filter(|rows| *rows >= room.least.min(room.rows));
            let choices = sizes.filter_map(move |rows| grid.choice(rows, threads, room));
            really_best(choices, close_rows)
        };
        let best = if room.shared {
            let counts: Vec<usize> = room.threads().collect();
            really_best(counts.into_iter().rev().filter_map(of), close_threads)
        } else {
            really_best(room.threads().filter_map(of), close_threads)
        };
        best.unwrap_or(unknown)
    }

    /// As [`Costs::best`], but now and then something that is not known to be worse by much.
    pub(super) fn next(&mut self, size: u8, room: &Room, now: Instant) -> Choice {
        let best = self.best(size, room);
        let Some((_, grid)) = self.grids.iter_mut().find(|(known, _)| *known == size) else { return best };
        grid.other(&best, room, now).unwrap_or(best)
    }

    /// What was measured of the version before, until this one has its own.
    pub(super) fn inherit(&mut self, other: &Self) {
        if self.grids.is_empty() {
            self.grids.clone_from(&other.grids);
        }
    }

    fn grid(&self, size: u8) -> Option<&Grid> {
        let exact = self.grids.iter().find(|(known, _)| *known == size);
        // What a run costs beside its data is the same for all sizes, so a neighbour is better than nothing.
        let near = || {
            self.grids
                .iter()
                .filter(|(known, _)| known.abs_diff(size) <= 2)
                .min_by_key(|(known, _)| known.abs_diff(size))
        };
        exact.or_else(near).map(|(_, grid)| grid)
    }
}

/// The first, unless another is really better: rates that are as close as this are equal.
fn really_best(choices: impl Iterator<Item = Choice>, close: f64) -> Option<Choice> {
    choices.reduce(|best, choice| if choice.rate * close > best.rate { choice } else { best })
}

/// 1, 2, 4, ... up to and with `most`.
fn doublings(most: usize) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(1usize), |size| size.checked_mul(2))
        .take_while(move |size| *size < most)
        .chain(Some(most.max(1)))
}

/// Requests of about one size.
#[derive(Clone, Debug, Default)]
struct Grid {
    columns: Vec<Column>,
    /// The most rows that have been run.
    largest: usize,
    /// Runs since an alternative was tried, and when that was.
    runs: u64,
    last_try: Option<Instant>,
    /// How many alternatives have been tried.
    tried: usize,
}

#[derive(Clone, Debug)]
struct Column {
    threads: usize,
    /// By power of two of rows, ascending.
    points: Vec<Point>,
}

#[derive(Clone, Copy, Debug)]
struct Point {
    power: u32,
    /// The mean of the rows that were run.
    rows: f64,
    /// Seconds.
    takes: f64,
    /// How many have been seen.
    runs: u64,
    /// The longest, slowly forgotten; seconds.
    longest: f64,
}

impl Grid {
    fn record(&mut self, rows: usize, threads: usize, took: f64) {
        self.runs += 1;
        self.largest = self.largest.max(rows);
        let column = match self.columns.iter_mut().position(|column| column.threads == threads) {
            Some(index) => &mut self.columns[index],
            None => {
                self.columns.push(Column { threads, points: Vec::new() });
                self.columns.last_mut().expect("just pushed")
            }
        };
        column.record(rows.max(1), took.max(1e-9));
    }

    fn estimate(&self, rows: usize, threads: usize) -> Option<f64> {
        if let Some(column) = self.columns.iter().find(|column| column.threads == threads) {
            return Some(column.estimate(rows));
        }
        let nearest = |column: &&Column| column.threads.abs_diff(threads);
        let column = self.columns.iter().min_by_key(nearest)?;
        let (known, wanted) = (column.threads as f64, threads as f64);
        // With more threads it is hoped to scale; with fewer, to have scaled badly.
        let factor = if wanted > known { (known / wanted).powf(HOPE_THREADS) } else { 1.0 / HOPE_THREADS };
        Some(column.estimate(rows) * factor)
    }

    fn choice(&self, rows: usize, threads: usize, room: &Room) -> Option<Choice> {
        if rows > self.largest * STEP {
            return None;
        }
        let takes = self.estimate(rows, threads)?;
        // As many such runs side by side as there are cores, workers and rows for.
        let beside = (room.cores / threads.max(1)).clamp(1, room.runs.max(1));
        let at_once = (rows * beside).min(room.backlog.max(rows));
        Some(Choice { rows, threads, takes: Some(takes), rate: at_once as f64 / takes })
    }

    /// An alternative to `best`, when it is time to try one.
    fn other(&mut self, best: &Choice, room: &Room, now: Instant) -> Option<Choice> {
        let long_ago = |last: Instant| now.saturating_duration_since(last) >= TRY_AFTER;
        if self.runs < TRY_AFTER_RUNS || !self.last_try.is_none_or(long_ago) {
            return None;
        }
        let others: Vec<Choice> = room
            .threads()
            .filter(|threads| *threads != best.threads)
            .map(|threads| (best.rows, threads))
            .chain([best.rows / 2, best.rows * 2].into_iter().map(|rows| (rows, best.threads)))
            // Nobody else is to wait longer for a guess.
            .filter(|(rows, _)| {
                (room.least..=room.rows).contains(rows) && !(room.shared && *rows > best.rows)
            })
            .filter_map(|(rows, threads)| self.choice(rows, threads, room))
            .filter(|other| other.rate * HOPELESS > best.rate)
            .collect();
        self.tried += 1;
        (self.runs, self.last_try) = (0, Some(now));
        others.get(self.tried % others.len().max(1)).copied()
    }
}

impl Column {
    fn record(&mut self, rows: usize, took: f64) {
        let power = rows.ilog2();
        let index = self.points.partition_point(|point| point.power < power);
        match self.points.get_mut(index).filter(|point| point.power == power) {
            Some(point) => {
                let part = if took < point.takes { FASTER } else { SLOWER };
                point.runs += 1;
                point.longest = (point.longest * FORGETS).max(took);
                point.takes += (took.min(point.takes * WILD) - point.takes) * part;
                point.rows += (rows as f64 - point.rows) * part;
            }
            None => self
                .points
                .insert(index, Point { power, rows: rows as f64, takes: took, runs: 1, longest: took }),
        }
    }

    /// Between two points a line; beyond them what is hoped for. There is at least one point.
    fn estimate(&self, rows: usize) -> f64 {
        let rows = rows as f64;
        let index = self.points.partition_point(|point| point.rows < rows);
        match (index.checked_sub(1).map(|before| self.points[before]), self.points.get(index)) {
            (Some(low), Some(high)) if high.rows > low.rows => {
                low.takes + (high.takes - low.takes) * (rows - low.rows) / (high.rows - low.rows)
            }
            (Some(low), _) => low.takes * (rows / low.rows).powf(HOPE_ROWS),
            // That small batches cost nothing extra is the best that can be hoped for.
            (None, Some(high)) => high.takes * rows / high.rows,
            (None, None) => f64::MAX,
        }
    }
}

#[cfg(test)]
#[path = "cost_tests.rs"]
mod tests;
