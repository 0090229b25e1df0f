//! Versions that follow each other as fast as they are served: what is lost, and how soon each serves.

use std::time::Duration;

use super::{
    log::Log,
    publish::{Disk, Publisher, ROWS_50_MB, ROWS_FEW},
    traffic::{self, Pace, Traffic},
};
use crate::support::{Result, process::Server, report::percentile};

/// Enough to see what gets lost, and to see a new version within a millisecond; half of what the cores can
/// do, so that versions load all the same.
const PACE: Pace = Pace { callers: 4, every: Some(Duration::from_millis(2)) };
/// Of the large model.
const LARGE_SWAPS: usize = 50;
/// Seconds from renaming to the first answer.
const AIM: f64 = 0.3;

async fn swaps(name: &str, rows: usize, count: usize) -> Result<()> {
    let disk = Disk::new()?;
    let mut publisher = Publisher::new(&disk, "swapped", rows)?;
    publisher.publish()?;
    let (server, log) = Server::sconce_with_log(&disk.repository())?;
    let log = Log::read(log);
    traffic::ready(&server.address, &publisher.name).await?;
    let mut traffic = Traffic::start(&server.address, &publisher.name, PACE).await?;
    drop(log.steps());
    traffic.begin();
    let mut seconds = Vec::with_capacity(count);
    for _ in 0..count {
        seconds.push(traffic.swap(&mut publisher).await?.as_secs_f64());
    }
    let tally = traffic.end();
    println!(
        "  {name:<7} {count:5} {:9} {:7}   {:6.3} {:6.3} {:6.3}   {:6.0} {:6.0}   {}{}",
        tally.microseconds.len(),
        tally.failed,
        percentile(&seconds, 0.5),
        percentile(&seconds, 0.99),
        percentile(&seconds, 1.0),
        percentile(&tally.microseconds, 0.5),
        percentile(&tally.microseconds, 0.99),
        log.steps(),
        traffic::reasons(std::slice::from_ref(&tally)),
    );
    Ok(())
}

/// Measures, and prints a row for each size.
pub(crate) async fn measure(count: usize) -> Result<()> {
    println!("swaps under load; aims: none failed, a new version answers {AIM} s after its renaming");
    println!(
        "            swaps  requests  failed   serves after s: p50, p99, max   us: p50, p99   a load, medians"
    );
    swaps("small", ROWS_FEW, count).await?;
    swaps("50 MB", ROWS_50_MB, LARGE_SWAPS.min(count)).await
}
