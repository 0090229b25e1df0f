//! What a change costs those who are being served: latency while versions load, requests lost in swaps,
//! memory after many reloads, and a repository of many models.
//!
//! `cargo bench --package sconce --bench reload -- [under-load] [swaps] [memory] [scale]`; without a name, all.
//! SCONCE_BENCH_ROUNDS, SCONCE_BENCH_SWAPS and SCONCE_BENCH_RELOADS say how many of each.

#![allow(clippy::print_stdout)]

#[path = "../support/mod.rs"]
mod support;

mod busy;
mod log;
mod memory;
mod publish;
mod scale;
mod swaps;
mod traffic;
mod under_load;

use std::time::{Duration, Instant};

use support::{Result, count};

/// For each part, however slow the machine.
const LIMIT: Duration = Duration::from_secs(3600);
const PARTS: [&str; 4] = ["under-load", "swaps", "memory", "scale"];

async fn part(name: &str) -> Result<()> {
    match name {
        "under-load" => under_load::measure(count("SCONCE_BENCH_ROUNDS", 9)?).await,
        "swaps" => swaps::measure(count("SCONCE_BENCH_SWAPS", 1000)?).await,
        "memory" => memory::measure(count("SCONCE_BENCH_RELOADS", 300)?).await,
        "scale" => scale::measure().await,
        other => Err(format!("there is no part {other:?}: {} are expected", PARTS.join(", ")).into()),
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if let [word, file] = &arguments[..]
        && word == busy::WORD
    {
        return busy::run(file.as_ref());
    }
    let named: Vec<&str> = arguments.iter().map(String::as_str).collect();
    for name in if named.is_empty() { &PARTS[..] } else { &named } {
        let start = Instant::now();
        let measured = tokio::time::timeout(LIMIT, Box::pin(part(name))).await;
        measured.map_err(|_| format!("{name} is not done after {LIMIT:?}"))??;
        println!("({name} took {:.0} s)\n", start.elapsed().as_secs_f64());
    }
    Ok(())
}
