//! Memory after many reloads, over memory after the first.

use std::time::Duration;

use super::{
    log::Log,
    publish::{Disk, Publisher, ROWS_10_MB},
    traffic::{self, Pace, Traffic},
};
use crate::support::{Result, process::Server, report::percentile};

const PACE: Pace = Pace { callers: 1, every: Some(Duration::from_millis(2)) };
/// What all is divided by: memory after so many reloads.
const FIRST: usize = 50;
const EVERY: usize = 100;
/// Memory is the median after so many reloads in a row: a version that is just being let go is no growth.
const SAMPLES: usize = 11;
const AIM: f64 = 1.05;

/// Resident, proportional and anonymous memory in MB.
type Memory = [f64; 3];

fn memory(server: &Server) -> Result<Memory> {
    Ok([server.mapped("Rss")?, server.mapped("Pss")?, server.mapped("Anonymous")?])
}

fn median(samples: &[Memory]) -> Memory {
    std::array::from_fn(|field| {
        percentile(&samples.iter().map(|sample| sample[field]).collect::<Vec<_>>(), 0.5)
    })
}

/// Measures, and prints a row every hundred reloads.
pub(crate) async fn measure(reloads: usize) -> Result<()> {
    let disk = Disk::new()?;
    let mut publisher = Publisher::new(&disk, "reloaded", ROWS_10_MB)?;
    publisher.publish()?;
    let (server, log) = Server::sconce_with_log(&disk.repository())?;
    let log = Log::read(log);
    traffic::ready(&server.address, &publisher.name).await?;
    let mut traffic = Traffic::start(&server.address, &publisher.name, PACE).await?;
    println!("memory: reloads of a model of 10 MB, with traffic; aim of RSS after {reloads}: {AIM} times");
    println!("  reloads   RSS MB   PSS MB   anonymous MB   RSS over that after {FIRST}   threads");
    let mut samples = Vec::new();
    let mut first = None;
    traffic.begin();
    for reload in 1..=reloads.max(FIRST) {
        traffic.swap(&mut publisher).await?;
        let told = reload == FIRST || reload == reloads || reload.is_multiple_of(EVERY);
        let next = if reload <= FIRST { FIRST } else { reload.next_multiple_of(EVERY).min(reloads) };
        if next - reload < SAMPLES {
            samples.push(memory(&server)?);
        }
        if told {
            let [all, shared, own] = median(&samples);
            samples.clear();
            let first = *first.get_or_insert(all);
            println!(
                "  {reload:7} {all:8.1} {shared:8.1} {own:14.1} {:26.3} {:9}",
                all / first,
                server.threads()?
            );
        }
    }
    let tally = traffic.end();
    let (failed, reasons) = (tally.failed, traffic::reasons(std::slice::from_ref(&tally)));
    println!("  failed requests: {failed}{reasons}; a load: {}", log.steps());
    Ok(())
}
