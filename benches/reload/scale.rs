//! A repository of many models: how soon it is ready, how soon a change in it serves, what it costs idle.

use std::{
    fs,
    time::{Duration, Instant},
};

use sconce_proto::inference::{ServerReadyRequest, ServerReadyResponse};

use super::{
    log::Log,
    publish::{Disk, Publisher, ROWS_50_MB, ROWS_FEW},
    traffic::{self, Pace, Traffic},
};
use crate::support::{
    Result,
    load::Client,
    process::Server,
    report::{Spread, percentile},
};

const MODELS: usize = 1000;
const VERSIONS: u64 = 3;
const CHANGES: usize = 9;
/// A look at everything without a cause comes once in it.
const IDLE: Duration = Duration::from_secs(60);
const START_LIMIT: Duration = Duration::from_secs(600);
const PACE: Pace = Pace { callers: 1, every: Some(Duration::from_millis(2)) };
/// Seconds from renaming to the first answer, and idle CPU as a part of a core.
const AIMS: (f64, f64) = (0.3, 0.005);

/// Models of small files, each a copy: to the server a file of its own.
fn fill(disk: &Disk) -> Result<()> {
    let small = Publisher::new(disk, "model-0", ROWS_FEW)?;
    for number in 0..MODELS {
        for version in 1..=VERSIONS {
            let dir = disk.repository().join(format!("model-{number}")).join(version.to_string());
            fs::create_dir_all(&dir)?;
            fs::copy(small.content(version), dir.join("model.pt"))?;
        }
    }
    Ok(())
}

async fn ready(address: &str) -> Result<()> {
    let end = Instant::now() + START_LIMIT;
    loop {
        let tried = async {
            let mut client = Client::connect(address).await?;
            client.ask::<ServerReadyResponse>("ServerReady", &ServerReadyRequest::default()).await
        };
        match tried.await {
            Ok(answer) if answer.ready => return Ok(()),
            _ if Instant::now() > end => return Err(format!("not ready after {START_LIMIT:?}").into()),
            _ => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// Measures, and prints what there is to say.
pub(crate) async fn measure() -> Result<()> {
    let disk = Disk::new()?;
    fill(&disk)?;
    let mut large = Publisher::new(&disk, "large", ROWS_50_MB)?;
    large.publish()?;
    println!("scale: {MODELS} models, {} versions, and one of 50 MB", MODELS as u64 * VERSIONS);

    let start = Instant::now();
    let (server, log) = Server::sconce_with_log(&disk.repository())?;
    let log = Log::read(log);
    ready(&server.address).await?;
    let (took, cpu) = (start.elapsed().as_secs_f64(), server.cpu_time_of_all()?.as_secs_f64());
    println!("  ready after {took:.1} s, {cpu:.1} s of CPU; a load: {}", log.steps());

    traffic::ready(&server.address, &large.name).await?;
    let mut traffic = Traffic::start(&server.address, &large.name, PACE).await?;
    traffic.begin();
    let mut seconds = Vec::with_capacity(CHANGES);
    for _ in 0..CHANGES {
        seconds.push(traffic.swap(&mut large).await?.as_secs_f64());
    }
    let tally = traffic.end();
    let (aim, failed) = (AIMS.0, tally.failed);
    let spread = Spread::of(seconds.iter().copied());
    println!(
        "  a new version of 50 MB answers after {:.3} s ({:.3} - {:.3}); aim {aim}; a load: {}; \
         p99 meanwhile {:.0} us; failed requests: {failed}{}",
        spread.median,
        spread.min,
        spread.max,
        log.steps(),
        percentile(&tally.microseconds, 0.99),
        traffic::reasons(std::slice::from_ref(&tally)),
    );
    drop(traffic);

    let before = server.cpu_time_of_all()?;
    let begun = Instant::now();
    tokio::time::sleep(IDLE).await;
    let idle = server.cpu_time_of_all()?.saturating_sub(before).as_secs_f64() / begun.elapsed().as_secs_f64();
    println!(
        "  idle for {} s: {:.2} % of a core, aim {:.1} %; RSS {:.0} MB, {} threads, {} inotify watches",
        IDLE.as_secs(),
        idle * 100.0,
        AIMS.1 * 100.0,
        server.mapped("Rss")?,
        server.threads()?,
        server.watches()?
    );
    Ok(())
}
