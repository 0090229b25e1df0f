//! What a message of a stream costs the server beside a call of its own: CPU time and rate of the same requests to the
//! same server, in pairs of rounds taken in turn.
//!
//! - `fair`: how long a message takes beside a stream that sends as many as it can
//! - `generation`: many answers to each of many requests at once, beside one request after the other
//!
//! `cargo bench --package sconce --bench streams`; `-- messages`, `fair` or `generation` for one of the parts.

#![allow(clippy::print_stdout)]

mod fair;
mod generation;
#[path = "../support/mod.rs"]
mod support;

use std::time::Duration;

use support::{
    IDENTITY, Result, identity,
    load::{self, Client, Traffic},
    process::Server,
    report::{self, Round},
};

/// Pairs of rounds; odd, so that the median is one of them.
const PAIRS: usize = 11;
const START_LIMIT: Duration = Duration::from_secs(60);
/// For everything, however slow the machine.
const LIMIT: Duration = Duration::from_secs(600);

/// So many requests over so many streams, and as many calls in flight.
struct Scenario {
    name: &'static str,
    requests: usize,
    streams: usize,
    in_flight: usize,
}

const SCENARIOS: [Scenario; 3] = [
    Scenario { name: "1 stream of 64", requests: 20_000, streams: 1, in_flight: 64 },
    Scenario { name: "64 streams of 1", requests: 20_032, streams: 64, in_flight: 1 },
    Scenario { name: "1 stream of 1", requests: 4_000, streams: 1, in_flight: 1 },
];

async fn round(server: &Server, client: &mut Client, scenario: &Scenario, streamed: bool) -> Result<Round> {
    let traffic = Traffic::new(IDENTITY, 16);
    let Scenario { requests, streams, in_flight, .. } = *scenario;
    let before = server.cpu_time()?;
    let wall = match streamed {
        true => client.streamed(&traffic, requests, streams, in_flight).await?,
        false => client.round(&traffic, requests, streams * in_flight).await?,
    };
    Ok(Round { cpu: server.cpu_time()?.saturating_sub(before), wall, requests })
}

async fn messages(server: &Server) -> Result<()> {
    let mut client = load::ready(&server.address, &Traffic::new(IDENTITY, 16), START_LIMIT).await?;
    println!("identity, FP32 [1,16]; one connection; medians of {PAIRS} pairs of rounds\n");
    println!("{}", report::head("unary", "stream"));
    for scenario in &SCENARIOS {
        for streamed in [false, true] {
            round(server, &mut client, scenario, streamed).await?;
        }
        let mut pairs = Vec::with_capacity(PAIRS);
        for number in 0..PAIRS {
            let first = number % 2 == 1;
            let one = round(server, &mut client, scenario, first).await?;
            let other = round(server, &mut client, scenario, !first).await?;
            pairs.push(if first { (other, one) } else { (one, other) });
        }
        println!("{}", report::row(scenario.name, &pairs));
    }
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let repository = tempfile::tempdir()?;
    identity(repository.path())?;
    let server = Server::sconce(repository.path())?;
    let wanted: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let wants = |part: &str| wanted.is_empty() || wanted.iter().any(|word| word == part);
    let measured = tokio::time::timeout(LIMIT, async {
        if wants("messages") {
            messages(&server).await?;
        }
        if wants("fair") {
            fair::measure(&server).await?;
        }
        if wants("generation") {
            generation::measure().await?;
        }
        Ok(())
    });
    measured.await.map_err(|_| format!("not done after {LIMIT:?}"))?
}
