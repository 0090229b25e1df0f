//! What the server costs per request on top of the least that could serve the model: CPU time, rate and
//! memory of `sconce` beside [the floor](floor/src/main.rs), in pairs of rounds taken in turn.
//!
//! `cargo bench --package sconce --bench overhead` measures. With `-- load ADDRESS REQUESTS IN_FLIGHT` it
//! only sends load, to a server that runs under a profiler.

#![allow(clippy::print_stdout)]

mod support;

use std::{path::Path, time::Duration};

use support::{
    IDENTITY, Result, identity,
    load::{self, Client, Traffic},
    process::{self, Server},
    report::{self, Round},
};

/// Pairs of rounds; odd, so that the median is one of them.
const PAIRS: usize = 11;
const START_LIMIT: Duration = Duration::from_secs(60);
/// For everything, however slow the machine.
const LIMIT: Duration = Duration::from_secs(900);
/// What an operator may switch on. No collector listens: spans are made and lost.
const WATCHING: [(&str, &[&str]); 4] = [
    ("access log, all", &["--access-log", "all"]),
    ("access log, errors", &["--access-log", "errors"]),
    ("traced, 1 in 100", &["--trace-endpoint", "http://127.0.0.1:9", "--trace-ratio", "0.01"]),
    ("traced, all", &["--trace-endpoint", "http://127.0.0.1:9", "--trace-ratio", "1"]),
];

/// So many requests of a kind, so many in flight.
struct Scenario {
    name: &'static str,
    traffic: Traffic,
    requests: usize,
    in_flight: usize,
}

fn scenarios() -> [Scenario; 3] {
    let small = Traffic::new(IDENTITY, 16);
    [
        Scenario { name: "64 in flight", traffic: small.clone(), requests: 20_000, in_flight: 64 },
        Scenario { name: "1 in flight", traffic: small, requests: 4_000, in_flight: 1 },
        Scenario {
            name: "1 MiB, 8 in flight",
            traffic: Traffic::rows(IDENTITY, 256),
            requests: 500,
            in_flight: 8,
        },
    ]
}

/// A server with a connection to it.
struct Contestant {
    server: Server,
    client: Client,
}

impl Contestant {
    async fn start(server: Server) -> Result<Self> {
        let client = load::ready(&server.address, &Traffic::new(IDENTITY, 16), START_LIMIT).await?;
        Ok(Self { server, client })
    }

    async fn round(&mut self, scenario: &Scenario) -> Result<Round> {
        let before = self.server.cpu_time()?;
        let wall = self.client.round(&scenario.traffic, scenario.requests, scenario.in_flight).await?;
        let cpu = self.server.cpu_time()?.saturating_sub(before);
        Ok(Round { cpu, wall, requests: scenario.requests })
    }
}

/// Pairs of rounds; who begins alternates, so that a drift of the machine falls on both.
async fn pairs(
    floor: &mut Contestant,
    sconce: &mut Contestant,
    scenario: &Scenario,
) -> Result<Vec<(Round, Round)>> {
    let warm_up =
        Scenario { requests: scenario.requests / 4, traffic: scenario.traffic.clone(), ..*scenario };
    floor.round(&warm_up).await?;
    sconce.round(&warm_up).await?;
    let mut pairs = Vec::with_capacity(PAIRS);
    for number in 0..PAIRS {
        pairs.push(if number % 2 == 0 {
            let first = floor.round(scenario).await?;
            (first, sconce.round(scenario).await?)
        } else {
            let first = sconce.round(scenario).await?;
            (floor.round(scenario).await?, first)
        });
    }
    Ok(pairs)
}

async fn measure(floor: &Path, repository: &Path, model: &Path) -> Result<()> {
    let bare = Server::bare(floor, model)?;
    let mut floor = Contestant::start(Server::floor(floor, model)?).await?;
    let mut sconce = Contestant::start(Server::sconce(repository)?).await?;
    let idle = [bare.memory()?, floor.server.memory()?, sconce.server.memory()?];
    drop(bare);

    println!(
        "identity, FP32 [1,16] but in the last row; one connection; medians of {PAIRS} pairs of rounds\n"
    );
    println!("{}", report::head("floor", "sconce"));
    for scenario in scenarios() {
        let pairs = pairs(&mut floor, &mut sconce, &scenario).await?;
        println!("{}", report::row(scenario.name, &pairs));
    }
    let loaded = [floor.server.memory()?, sconce.server.memory()?];
    println!("\n{}", report::head("plain", "watched"));
    for (name, arguments) in WATCHING {
        let mut watched = Contestant::start(Server::sconce_with(repository, arguments)?).await?;
        let [in_flight_64, ..] = scenarios();
        let pairs = pairs(&mut sconce, &mut watched, &in_flight_64).await?;
        println!("{}", report::row(name, &pairs));
    }

    println!("\nresident MB          idle  (not of files)");
    for (name, (all, own)) in ["bare libtorch", "floor", "sconce"].iter().zip(idle) {
        println!("{name:<17} {all:7.1}  ({own:.1})");
    }
    println!("sconce above bare libtorch: {:.1} MB idle", idle[2].0 - idle[0].0);
    println!("after the load: floor {:.1}, sconce {:.1}", loaded[0].0, loaded[1].0);
    Ok(())
}

/// Only load, for a server that someone else started.
async fn only_load(address: &str, requests: usize, in_flight: usize) -> Result<()> {
    let traffic = Traffic::new(IDENTITY, 16);
    let mut client = load::ready(address, &traffic, START_LIMIT).await?;
    let wall = client.round(&traffic, requests, in_flight).await?;
    println!("{requests} requests in {wall:?}");
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if let [word, address, requests, in_flight] = &arguments[..]
        && word == "load"
    {
        return only_load(address, requests.parse()?, in_flight.parse()?).await;
    }
    let floor = process::build_floor()?;
    let repository = tempfile::tempdir()?;
    let model = identity(repository.path())?;
    let measured = tokio::time::timeout(LIMIT, measure(&floor, repository.path(), &model));
    measured.await.map_err(|_| format!("not done after {LIMIT:?}"))?
}
