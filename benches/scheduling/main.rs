//! How requests are scheduled: throughput beside bare libtorch, the defaults beside hand-tuned settings, overload, and
//! a small model beside a saturated large one.
//!
//! `cargo bench --package sconce --bench scheduling -- [throughput] [tuned] [overload] [fair]`; without a name, all.
//! SCONCE_BENCH_ROUNDS and SCONCE_BENCH_SECONDS say how many rounds, and how long each window is at least;
//! SCONCE_BENCH_MODELS names the models, with commas.

#![allow(clippy::print_stdout)]

#[path = "../support/mod.rs"]
mod support;

mod bare;
mod closed;
mod fair;
mod models;
mod open;
mod overload;
mod questions;
mod target;
mod throughput;
mod tuned;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use models::{Disk, MODELS, Model};
use support::{Result, count, process, report::Spread};

/// For each part, however slow the machine.
const LIMIT: Duration = Duration::from_secs(7200);
const PARTS: [&str; 4] = ["throughput", "tuned", "overload", "fair"];

/// What is measured, and how often.
#[derive(Debug)]
struct Plan {
    disk: Disk,
    floor: PathBuf,
    rounds: usize,
    window: Duration,
    /// None were named: each part takes those that suit it.
    models: Option<Vec<&'static Model>>,
}

impl Plan {
    fn new() -> Result<Self> {
        let models = std::env::var("SCONCE_BENCH_MODELS").ok();
        let named = |names: String| names.split(',').map(models::named).collect::<Result<_>>();
        Ok(Self {
            disk: Disk::new()?,
            floor: process::build_floor()?,
            rounds: count("SCONCE_BENCH_ROUNDS", 9)?,
            window: Duration::from_secs(count("SCONCE_BENCH_SECONDS", 2)? as u64),
            models: models.map(named).transpose()?,
        })
    }

    /// Those that were named, or else those that suit.
    fn models(&self, suits: fn(&Model) -> bool) -> Vec<&'static Model> {
        let all = || MODELS.iter().filter(|model| suits(model)).collect();
        self.models.clone().unwrap_or_else(all)
    }
}

/// A median with its spread.
fn spread(numbers: impl Iterator<Item = f64>) -> String {
    let spread = Spread::of(numbers);
    format!("{:.3} ({:.3} - {:.3})", spread.median, spread.min, spread.max)
}

fn median(numbers: impl Iterator<Item = f64>) -> f64 {
    Spread::of(numbers).median
}

async fn part(plan: &Plan, name: &str) -> Result<()> {
    match name {
        "throughput" => throughput::measure(plan).await,
        "tuned" => tuned::measure(plan).await,
        "overload" => overload::measure(plan).await,
        "fair" => fair::measure(plan).await,
        other => Err(format!("there is no part {other:?}: {} are expected", PARTS.join(", ")).into()),
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let named: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let plan = Plan::new()?;
    for name in if named.is_empty() { &PARTS[..] } else { &named } {
        let start = Instant::now();
        let measured = tokio::time::timeout(LIMIT, Box::pin(part(&plan, name))).await;
        measured.map_err(|_| format!("{name} is not done after {LIMIT:?}"))??;
        println!("({name} took {:.0} s)\n", start.elapsed().as_secs_f64());
    }
    Ok(())
}
